"""``ildcp``: which ILP address and asset a peer assigns to this end of the account."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from attrs import asdict

from ..errors import DecodeError, RemoteError
from ..ilp.configuration import fetch_ildcp
from ..log import escape
from ..opening import open_plugin
from ..options.base import ConnectOptions
from .errors import COMMON, ENDED, Exit, one_line
from .output import Screen
from .parameters import Command, Seconds, client_options, epilog, insecure_option, json_option
from .signals import run_until_sigterm

if TYPE_CHECKING:
    from ..btp.options import BtpOptions
    from ..codec.ildcp import IldcpResponse
    from ..http.options import HttpOptions

__all__ = ["ildcp"]

EXAMPLES = """
  trio-ledger-plugin serve --accounts                            (in another terminal) a server that answers
  trio-ledger-plugin ildcp btp+ws://:TOKEN@localhost:7768        ask it, with a token of your choice
  TRIO_LEDGER_PLUGIN_SECRET=TOKEN trio-ledger-plugin ildcp btp+wss://alice@connector.example/ilp --json
"""
HINT = "connectors answer ILDCP, and so does 'trio-ledger-plugin serve --accounts'"


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON, Exit.UNREACHABLE, Exit.REFUSED, *ENDED),
    short_help="Which ILP address and asset a peer assigns to you.",
)
@click.argument("url")
@click.option(
    "--timeout", type=Seconds(), default=5.0, show_default=True, help="Seconds for connecting, and for the answer."
)
@insecure_option
@json_option
def ildcp(url: str, timeout: float, allow_insecure: bool, as_json: bool) -> int:
    """Ask a server for this account's ILP address, and for the asset and scale of its amounts (RFC-0031).

    URL is btp+ws://account:token@host:port/path, or btp+wss:// for TLS; for ILP over HTTP it begins with http:// or
    https://. If the URL has no token, the one in the environment variable TRIO_LEDGER_PLUGIN_SECRET is used. Servers
    are verified with the system's certificates; SSL_CERT_FILE names others.
    """
    options = client_options(url, timeout, allow_insecure=allow_insecure)
    response = run_until_sigterm(_ask, options)
    if as_json:
        click.echo(json.dumps({"address": options.address, **asdict(response)}))
        return Exit.OK
    screen = Screen()
    screen.line(f"client address: {response.client_address}")
    screen.line(f"asset scale: {response.asset_scale}")
    screen.line(f"asset code: {escape(response.asset_code)}")
    return Exit.OK


async def _ask(options: BtpOptions | HttpOptions) -> IldcpResponse:
    """Connect and ask.

    Raises:
        click.ClickException: The peer refuses the request, or its answer is not an ILDCP response.
    """
    async with open_plugin(options, connect=ConnectOptions(seconds=options.connect_timeout)) as plugin:
        try:
            return await fetch_ildcp(plugin)
        except RemoteError as error:
            raise click.ClickException(f"the peer does not answer ILDCP requests: {one_line(error)}; {HINT}") from error
        except DecodeError as error:
            raise click.ClickException(
                f"the peer's answer is not an ILDCP response: {one_line(error)}; {HINT}"
            ) from error
