"""``transfers``: lists the transfers in a store, and settles those in doubt."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import click

from ..errors import LedgerPluginError, TransferNotFoundError
from ..log import escape
from ..money.journal import Journal, ledgers_in
from ..money.tables import STEPS
from ..options.base import PluginOptions
from ..stores import open_sqlite_store
from ..stores.reader import open_reader
from ..transfer import TransferDirection, TransferState
from .errors import COMMON, ENDED, Exit, one_line
from .output import Screen
from .parameters import Command, epilog, json_option
from .signals import run_until_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..transfer import JournalEntry, Totals

__all__ = ["transfers"]

EXAMPLES = """
  trio-ledger-plugin transfers wallet.db                       all transfers, and the totals
  trio-ledger-plugin transfers wallet.db --state in_doubt      transfers that an operator must settle
  trio-ledger-plugin transfers wallet.db --confirm KEY         the peer has applied it
  trio-ledger-plugin transfers wallet.db --reject KEY          the peer has not, and never will
"""

COLOURS = {TransferState.IN_DOUBT: "yellow", TransferState.REJECTED: "red", TransferState.REFUSED: "red"}
STATES = click.Choice([state.value for state in TransferState])
DIRECTIONS = click.Choice([direction.value for direction in TransferDirection])


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON, *ENDED),
    short_help="List a store's transfers; settle those in doubt.",
)
@click.argument("db", type=click.Path(exists=True, dir_okay=False))
@click.option("--ledger", default="main", show_default=True, help="The plugin's ledger_id.")
@click.option("--account", help="Only this account of a server with many.")
@click.option("--state", type=STATES, help="Only transfers in this state.")
@click.option("--direction", type=DIRECTIONS, help="Only outgoing or incoming transfers.")
@click.option("--confirm", metavar="KEY", help="Settle a transfer in doubt: the peer has applied it.")
@click.option("--reject", metavar="KEY", help="Settle a transfer in doubt: the peer has not applied it.")
@click.option("--reset-level", is_flag=True, help="Allow money without keys (PLAIN) to a peer that had them (KEYED).")
@json_option
def transfers(db: str, ledger: str, account: str | None, as_json: bool, **choices: Any) -> int:  # noqa: ANN401 (click's)
    """List the transfers in a store, or settle one that is in doubt.

    DB is the file of open_sqlite_store(). Listing works while a program has it open; settling does not: stop that
    program, or have it use plugin.transfers.
    """
    actions = [name for name in ("confirm", "reject", "reset_level") if choices[name]]
    if len(actions) > 1:
        raise click.UsageError("--confirm, --reject and --reset-level exclude each other")
    if actions and (choices["state"] or choices["direction"]):
        raise click.UsageError("--state and --direction are for listing")
    journal = Journal(ledger, max_keys=PluginOptions().max_transfer_keys)
    _Journal(journal, db).check_ledger()
    if not actions:
        wanted = _wanted(account, choices["direction"], choices["state"])
        _list(_Journal(journal, db), wanted, as_json=as_json)
        return Exit.OK
    action = actions[0]
    done = run_until_sigterm(_settle, db, journal, account or "", action, choices[action])
    click.echo(json.dumps({"done": done}) if as_json else done)
    return Exit.OK


def _wanted(account: str | None, direction: str | None, state: str | None) -> tuple[Any, Any, Any]:
    return account, direction and TransferDirection(direction), state and TransferState(state)


class _Journal:
    """Reads a journal; the file is open only during each call, and not while the caller prints."""

    def __init__(self, journal: Journal, db: str) -> None:
        self._journal = journal
        self._db = db

    def check_ledger(self) -> None:
        """Check that the file has rows of the ledger, if it has rows at all.

        Raises:
            click.UsageError: It has rows of other ledgers only; the text names them.
        """
        ledgers = self._read(ledgers_in)
        if ledgers and self._journal.ledger not in ledgers:
            names = ", ".join(map(repr, ledgers))
            raise click.UsageError(f"this file has no ledger {self._journal.ledger!r}; --ledger takes one of: {names}")

    def entries(self, account: str | None, *wanted: Any) -> Iterator[JournalEntry]:  # noqa: ANN401 (as page() has them)
        after = 0
        while page := self._read(self._journal.page, account, *wanted, after):
            yield from page
            after = page[-1].number

    def totals(self, account: str | None) -> Totals:
        totals: Totals = self._read(self._journal.totals, account)
        return totals

    def _read(self, method: Callable[..., Any], *args: object) -> Any:  # noqa: ANN401 (as the method has it)
        try:
            with open_reader(self._db, {"transfers": STEPS}) as connection:
                return method(connection, *args)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                raise click.ClickException("there are no transfers in this store") from error
            raise


def _list(journal: _Journal, wanted: tuple[Any, Any, Any], *, as_json: bool) -> None:
    totals = journal.totals(wanted[0])
    sums = {"sent": str(totals.sent), "received": str(totals.received), "in_doubt": str(totals.in_doubt)}
    if as_json:
        click.echo(json.dumps({"totals": sums, "transfers": [_as_json(entry) for entry in journal.entries(*wanted)]}))
        return
    screen = Screen()
    for entry in journal.entries(*wanted):
        screen.line(_as_line(entry), COLOURS.get(entry.state, ""))
    screen.line(f"sent {totals.sent}, received {totals.received}, in doubt {totals.in_doubt}", "bold")


def _as_line(entry: JournalEntry) -> str:
    account = f"  account {escape(entry.account)}" if entry.account else ""
    error = f"  {one_line(entry.error)}" if entry.error is not None else ""
    return (
        f"{entry.created:%Y-%m-%d %H:%M:%S}Z  {entry.direction.value:3}  {entry.state.value:9}  {entry.amount:>12}"
        f"  {entry.level.value}  {escape(entry.key)}{account}{error}"
    )


def _as_json(entry: JournalEntry) -> dict[str, str | None]:
    return {
        "key": entry.key,
        "account": entry.account,
        "direction": entry.direction.value,
        "state": entry.state.value,
        "amount": str(entry.amount),
        "level": entry.level.value,
        "error": None if entry.error is None else str(entry.error),
        "created": entry.created.isoformat(),
        "changed": entry.changed.isoformat(),
    }


async def _settle(db: str, journal: Journal, account: str, action: str, key: str) -> str:
    """Settle in a store that no program has open."""
    async with open_sqlite_store(db) as store:
        if action == "reset_level":
            await store.transaction(lambda connection: journal.reset_level(connection, account))
            return "money may be sent to this peer without keys (PLAIN) again; unanswered transfers are in doubt"
        settle = journal.confirm if action == "confirm" else journal.reject
        try:
            await store.transaction(lambda connection: settle(connection, account, key))
        except TransferNotFoundError as error:
            text = f"{one_line(error)}; without --{action} this command lists the keys, each with its account"
            raise click.ClickException(text) from error
        except LedgerPluginError as error:
            raise click.ClickException(one_line(error)) from error
        return f"transfer {key!r} is {'acknowledged' if action == 'confirm' else 'rejected'}"
