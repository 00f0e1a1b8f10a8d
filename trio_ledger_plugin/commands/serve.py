"""``serve``: a server for one client, which shows what the client does."""

from __future__ import annotations

import secrets
import signal
import socket
import ssl
from ipaddress import ip_address
from typing import TYPE_CHECKING

import click
import trio
from rich.live import Live
from rich.text import Text

from ..btp.plugin import BtpPlugin
from ..opening import open_plugin
from ..options import BtpOptions, ListenerOptions
from ..services import PluginServices
from .arguments import SECRET_VARIABLE, Command, epilog
from .exits import Exit
from .replies import REPLIES
from .screen import Screen, ScreenLog, said

if TYPE_CHECKING:
    from ..plugin import LedgerPlugin

__all__ = ["serve"]

DEFAULT_PORT = 7768
CLOSE_SECONDS = 0.5
REFRESH_SECONDS = 0.5

EXAMPLES = """
  trio-ledger-plugin serve
  trio-ledger-plugin serve --port 0 --reply fulfill
  TRIO_LEDGER_PLUGIN_SECRET=... trio-ledger-plugin serve --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
"""


@click.command(
    cls=Command, epilog=epilog(EXAMPLES), short_help="A server for one client, which shows what the client does."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="The port; 0: any free one."
)
@click.option("--secret", envvar=SECRET_VARIABLE, show_envvar=True, help="The client's token; random when not given.")
@click.option("--tls-cert", type=click.Path(exists=True, dir_okay=False), help="Serve TLS with this certificate (PEM).")
@click.option("--tls-key", type=click.Path(exists=True, dir_okay=False), help="Its key, unless in the same file (PEM).")
@click.option(
    "--reply",
    type=click.Choice(list(REPLIES)),
    default="echo",
    show_default=True,
    help="How requests are answered: with their own bytes; a Prepare with its Fulfill, if its condition is the SHA-256 "
    "digest of the SHA-256 digest of its data; or all with a Reject.",
)
def serve(host: str, port: int, secret: str | None, tls_cert: str | None, tls_key: str | None, reply: str) -> int:
    """Listen for one BTP client, answer its requests, take its money, and show what it does.

    A new client with the right token takes the place of the one before. Without --secret a random token is made, and
    shown once, in the URL for the client. On a terminal the last line shows the rates. Ctrl-C or SIGTERM ends the
    server within a second; the exit code is 0 then.
    """
    context = _tls_context(tls_cert, tls_key)
    shown = "***"
    if secret == "":
        raise click.UsageError("--secret is empty; leave it out to have a random one")
    if secret is None:
        secret = shown = secrets.token_hex(16)
    listener = ListenerOptions(port=port, secret=secret, host=host, ssl_context=context)
    options = BtpOptions(listener=listener, close_timeout=CLOSE_SECONDS)
    try:
        trio.run(_serve, options, reply, shown)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise click.ClickException(f"{error.strerror or error}; choose another with --host or --port") from error
    return Exit.OK


def _tls_context(certificate: str | None, key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise click.UsageError("--tls-key needs --tls-cert")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password function OpenSSL would ask on the terminal, and a service would hang.
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--tls-cert and --tls-key are no certificate with its key: {error}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one that is not")


async def _serve(options: BtpOptions, reply: str, token: str) -> None:
    screen = Screen()

    async def take_money(amount: str) -> None:
        screen.timed_line(f"received money: {amount}", "green")

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with open_plugin(
            options, PluginServices(log=ScreenLog(screen)), data_handler=REPLIES[reply], money_handler=take_money
        ) as plugin:
            assert isinstance(plugin, BtpPlugin)
            _introduce(screen, plugin.address, reply, token)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_show_events, screen, plugin)
                if screen.is_terminal:
                    nursery.start_soon(_show_rates, screen, plugin)
                await anext(signals)
                nursery.cancel_scope.cancel()
        counts = plugin.statistics()
    screen.timed_line(
        f"closed; {counts.requests_received} requests, {counts.responses_sent} answered, {counts.errors_sent} refused"
    )


def _introduce(screen: Screen, address: str, reply: str, token: str) -> None:
    scheme, _, location = address.partition("://")
    host, _, port = location.rpartition(":")
    try:
        anywhere = ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        anywhere = False
    url = f"{scheme}://:{token}@{socket.gethostname() if anywhere else host}:{port}"
    screen.line(f"listening on {address}, answering with: {reply}")
    screen.line(f"the client's URL: {url}")
    screen.line("try it: trio-ledger-plugin ping URL (Ctrl-C ends the server)")


async def _show_events(screen: Screen, plugin: LedgerPlugin) -> None:
    async for event in plugin.events:
        screen.timed_line(said(event), "cyan")


async def _show_rates(screen: Screen, plugin: LedgerPlugin) -> None:
    """Keep a line up to date at the bottom of the terminal."""
    # Rich would refresh from a thread of its own.
    with Live(console=screen.console, auto_refresh=False, transient=True) as live:
        before, then = plugin.statistics().requests_received, trio.current_time()
        while True:
            await trio.sleep(REFRESH_SECONDS)
            counts, now = plugin.statistics(), trio.current_time()
            rate = (counts.requests_received - before) / (now - then)
            before, then = counts.requests_received, now
            state = "connected" if plugin.is_connected() else "waiting for a client"
            text = (
                f"{state}, {rate:,.0f} requests/s, {counts.requests_received:,} in all, {counts.errors_sent:,} refused"
            )
            live.update(Text(text, "bold", no_wrap=True), refresh=True)
