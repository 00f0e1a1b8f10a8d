"""``send-money``: one transfer to a peer, over BTP."""

from __future__ import annotations

import json
from shlex import quote
from typing import TYPE_CHECKING

import click
from attrs import define

from ..errors import InvalidFieldsError, RemoteError, TransferInDoubtError
from ..opening import open_plugin
from ..options.base import ConnectOptions
from ..services import PluginServices
from ..transfer import MoneyLevel, check_key
from .errors import COMMON, ENDED, Exit, TerminatedError, one_line, unwrap_error
from .output import Screen
from .parameters import Amount, Command, Seconds, address_of, client_options, epilog, insecure_option, json_option
from .serving import open_store
from .signals import run_until_sigterm
from .stores import StoreChoice, StoreName

if TYPE_CHECKING:
    from ..options.base import PluginOptions

__all__ = ["send_money"]

EXAMPLES = """
  trio-ledger-plugin send-money btp+ws://:TOKEN@localhost:7768 250
  trio-ledger-plugin send-money btp+wss://alice:TOKEN@connector.example/ilp 250 --store wallet.db --key rent-july
"""


@click.command(
    "send-money",
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON, Exit.UNREACHABLE, Exit.REFUSED, *ENDED),
    short_help="Send money to a peer.",
)
@click.argument("url")
@click.argument("amount", type=Amount())
@click.option("--key", help="The transfer's name: a second transfer with it is not sent. Needs --store.")
@click.option(
    "--store",
    type=StoreName(dir_okay=False),
    help="A file or a PostgreSQL database for the journal. With one at each end, the transfer takes effect once "
    "(KEYED). Without it, a lost answer leaves it in doubt (PLAIN).",
)
@click.option(
    "--timeout", type=Seconds(), default=10.0, show_default=True, help="Seconds for connecting, and for the answer."
)
@insecure_option
@json_option
def send_money(
    url: str, amount: int, key: str | None, store: str | None, timeout: float, allow_insecure: bool, as_json: bool
) -> int:
    """Send money to the peer at the other end of an account, and wait until the peer has acknowledged it.

    URL is as for ping, over BTP: HTTP carries no money. AMOUNT is a whole number of the account's smallest units. To
    pay somebody else over Interledger, use pay. After an error that says "in doubt", the same command with the same
    --key and --store finds out what happened; without a store, ask the peer.
    """
    if key is not None and store is None:
        raise click.UsageError("--key needs --store: nothing else remembers the key")
    try:
        name = check_key(key)
    except InvalidFieldsError as error:
        raise click.UsageError(one_line(error)) from error
    options = client_options(url, timeout, allow_insecure=allow_insecure)
    choice = None if store is None else StoreChoice(store)
    sending = _Sending()
    try:
        level = run_until_sigterm(_send, options, amount, name, choice, sending)
    except BaseException as error:
        ended = unwrap_error(error)
        if sending.has_begun and isinstance(ended, KeyboardInterrupt | TerminatedError):
            ended.add_note(f"the money may have been sent, or may still be; {_what_next(name, choice)}")
        raise
    told = {"address": address_of(options), "amount": str(amount), "key": name if store else None, "level": level.value}
    if as_json:
        click.echo(json.dumps(told))
    else:
        named = f" under the key {name}" if store else ""
        Screen().line(f"sent {amount:,}{named} ({level.name}): the peer has acknowledged it")
    return Exit.OK


@define
class _Sending:
    """How far the command is."""

    has_begun: bool = False


def _what_next(key: str, choice: StoreChoice | None) -> str:
    """Return how to find out what became of a transfer."""
    return "ask the peer" if choice is None else f"run the command again with --key {quote(key)}"


async def _send(
    options: PluginOptions, amount: int, key: str, choice: StoreChoice | None, sending: _Sending
) -> MoneyLevel:
    """Send the transfer, and return the level at which it was sent.

    Raises:
        click.ClickException: The peer refuses it, or it is in doubt.
    """
    async with open_store(choice) as store:
        connect = ConnectOptions(seconds=options.connect_timeout)
        async with open_plugin(options, PluginServices(store=store), connect=connect) as plugin:
            sending.has_begun = True
            try:
                await plugin.send_money(amount, idempotency_key=None if store is None else key)
            except RemoteError as error:
                raise click.ClickException(f"the peer refuses the money: {one_line(error)}") from error
            except TransferInDoubtError as error:
                raise click.ClickException(f"{one_line(error)}; {_what_next(key, choice)}") from error
            return MoneyLevel.PLAIN if plugin.peer_journal() is None else MoneyLevel.KEYED
