"""``transfers``: lists the transfers in a store, and settles those that are not final by hand."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click
import trio

from ..errors import InvalidFieldsError, LedgerPluginError, TransferNotFoundError
from ..log import StdlibLog, escape
from ..money.journal import Journal
from ..money.reconciliation import Transfers
from ..money.room import Room
from ..money.sql import SqlJournal
from ..options.base import PluginOptions
from ..runtime.plugin_log import PluginLog
from ..runtime.timers import Timers
from ..transfer import Totals, TransferDirection, TransferState
from .errors import COMMON, ENDED, Exit, one_line
from .output import Screen
from .parameters import Command, Time, epilog, json_option
from .signals import run_until_sigterm
from .stores import StoreChoice, StoreName, dialect_for, open_any_reader, open_any_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from ..money.history import AccountTotals
    from ..transfer import JournalEntry

__all__ = ["transfers"]

T = TypeVar("T")

EXAMPLES = """
  trio-ledger-plugin transfers wallet.db                       all transfers, and the totals
  trio-ledger-plugin transfers wallet.db --totals              what each account has sent and received
  trio-ledger-plugin transfers wallet.db --state in_doubt      transfers that an operator must settle
  trio-ledger-plugin transfers postgresql://localhost/wallet   the same in PostgreSQL
  trio-ledger-plugin transfers wallet.db --confirm KEY         the peer has applied it
  trio-ledger-plugin transfers wallet.db --reject KEY          the peer has not, and never will
"""

COLOURS = {TransferState.IN_DOUBT: "yellow", TransferState.REJECTED: "red", TransferState.REFUSED: "red"}
STATES = click.Choice([state.value for state in TransferState])
DIRECTIONS = click.Choice([direction.value for direction in TransferDirection])
HEADER = f"{'created (UTC)':20}  dir  {'state':9}  {'amount':>12}  level  key"
TOTALS_HEADER = f"{'account':24}  level  {'sent':>20}  {'received':>20}  {'in doubt':>20}"
# How long a ledger in PostgreSQL may take to be released.
RELEASE_SECONDS = 1.0
# How many names an error lists.
NAMED = 20


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON, *ENDED),
    short_help="List a store's transfers; settle those in doubt.",
)
@click.argument("db", type=StoreName(exists=True, dir_okay=False))
@click.option("--ledger", default="main", show_default=True, help="The plugin's ledger_id.")
@click.option("--account", help="Only this account of a server with many.")
@click.option("--state", type=STATES, help="Only transfers in this state.")
@click.option("--direction", type=DIRECTIONS, help="Only outgoing or incoming transfers.")
@click.option(
    "--since",
    type=Time(),
    metavar="TIME",
    help="Only transfers entered at this time (UTC) or later.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N transfers, the oldest first.")
@click.option("--totals", is_flag=True, help="The totals of each account instead of transfers.")
@click.option("--confirm", metavar="KEY", help="Settle a transfer that is not final: the peer has applied it.")
@click.option("--reject", metavar="KEY", help="Settle a transfer that is not final: the peer has not applied it.")
@click.option("--reset-level", is_flag=True, help="Allow money without keys (PLAIN) to a peer that had them (KEYED).")
@json_option
def transfers(db: str, ledger: str, account: str | None, as_json: bool, **choices: Any) -> int:  # noqa: ANN401 (click's)
    """List the transfers in a store, or settle one that is not final.

    DB is the file of open_sqlite_store(), or the URL of the database of open_postgres_store(). Listing works while a
    program has it open; settling does not: stop that program, or have it use plugin.transfers.
    """
    # An action with an empty key fails; it must not become a listing.
    actions = [name for name in ("confirm", "reject", "reset_level") if choices[name] not in (None, False)]
    filters = [name for name in ("state", "direction", "since", "limit") if choices[name] is not None]
    if len(actions) > 1:
        raise click.UsageError("--confirm, --reject and --reset-level exclude each other")
    if filters and (actions or choices["totals"]):
        raise click.UsageError(f"--{filters[0]} is for listing transfers")
    if actions and choices["totals"]:
        raise click.UsageError("--totals is for listing")
    reader = _Reader(db, ledger)
    reader.check(account)
    if actions:
        done = run_until_sigterm(_settle, db, ledger, account, actions[0], choices[actions[0]])
        click.echo(json.dumps({"done": done}) if as_json else done)
    elif choices["totals"]:
        _show_totals(reader, account, as_json=as_json)
    else:
        _show_transfers(reader, account, choices, as_json=as_json)
    return Exit.OK


class _Reader:
    """Reads a journal; the file is open only during each call, and not while the caller prints."""

    def __init__(self, db: str, ledger: str) -> None:
        self._db = db
        self._ledger = ledger
        options = PluginOptions()
        self._history = SqlJournal(
            ledger,
            dialect_for(db),
            room=Room.of(options),
            key_retention=options.key_retention,
            promised=options.key_retention,
        ).history

    def check(self, account: str | None) -> None:
        """Check that the file has the ledger and the account.

        Raises:
            click.UsageError: It does not; the text lists what there is.
            click.ClickException: The file has no transfers at all.
        """
        ledgers = self._read(self._history.ledgers)
        if self._ledger not in ledgers:
            if not ledgers:
                raise click.ClickException("there are no transfers in this store")
            raise click.UsageError(
                f"this file has no ledger {self._ledger!r}; --ledger takes one of: {_listed(ledgers)}"
            )
        if account is not None and not self._read(self._history.knows, account):
            names = [each.account for each in islice(self.accounts(), NAMED + 1)]
            if names in ([], [""]):
                raise click.UsageError(f"this ledger has no account {account!r}, and none that has a name")
            raise click.UsageError(f"this ledger has no account {account!r}; --account takes one of: {_listed(names)}")

    def entries(self, account: str | None, choices: dict[str, Any]) -> Iterator[JournalEntry]:
        """Yield the transfers that were asked for."""
        direction, state, since = choices["direction"], choices["state"], choices["since"]
        wanted = account, direction and TransferDirection(direction), state and TransferState(state)
        after: int | None = 0
        while after is not None:
            page = self._read(self._history.page, *wanted, after, since)
            yield from page.entries
            after = page.after

    def accounts(self, only: str | None = None) -> Iterator[AccountTotals]:
        """Yield the totals of every account, in the order of their names, or those of one."""
        after: str | None = None
        while page := self._read(self._history.accounts, after):
            for each in page:
                if only in (None, each.account):
                    yield each
                if only == each.account:
                    return
            after = page[-1].account

    def totals(self, account: str | None) -> Totals:
        """Return the totals of an account, or of all."""
        if account is not None:
            return self._read(self._history.totals, account)
        sent = received = in_doubt = 0
        for each in self.accounts():
            sent += each.totals.sent
            received += each.totals.received
            in_doubt += each.totals.in_doubt
        return Totals(sent, received, in_doubt)

    def _read(self, method: Callable[..., T], *args: object) -> T:
        try:
            with open_any_reader(self._db) as connection:
                return method(connection, *args)
        except dialect_for(self._db).error as error:
            if "no such table" in str(error) or "does not exist" in str(error):
                raise click.ClickException("there are no transfers in this store") from error
            raise


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:NAMED])
    return f"{shown}, ..." if len(names) > NAMED else shown


def _show_transfers(reader: _Reader, account: str | None, choices: dict[str, Any], *, as_json: bool) -> None:
    totals = reader.totals(account)
    entries = islice(reader.entries(account, choices), choices["limit"])
    if as_json:
        _write_json(totals, "transfers", map(_as_json, entries))
        return
    screen = Screen()
    screen.line(HEADER, "bold")
    for entry in entries:
        screen.line(_as_line(entry), COLOURS.get(entry.state, ""))
    screen.line(_sums_line(totals), "bold")


def _show_totals(reader: _Reader, account: str | None, *, as_json: bool) -> None:
    totals = reader.totals(account)
    accounts = reader.accounts(account)
    if as_json:
        _write_json(totals, "accounts", map(_totals_as_json, accounts))
        return
    screen = Screen()
    screen.line(TOTALS_HEADER, "bold")
    for each in accounts:
        screen.line(_totals_as_line(each), "yellow" if each.totals.in_doubt else "")
    screen.line(_sums_line(totals), "bold")


def _write_json(totals: Totals, name: str, rows: Iterable[dict[str, str | None]]) -> None:
    """Write one JSON object, each row as it is read: a journal may be larger than memory."""
    click.echo(f'{{"totals": {json.dumps(_sums(totals))}, "{name}": [', nl=False)
    separator = ""
    for row in rows:
        click.echo(f"{separator}\n{json.dumps(row)}", nl=False)
        separator = ","
    click.echo("]}")


def _sums_line(totals: Totals) -> str:
    return f"sent {totals.sent}, received {totals.received}, in doubt {totals.in_doubt}"


def _sums(totals: Totals) -> dict[str, str]:
    return {"sent": str(totals.sent), "received": str(totals.received), "in_doubt": str(totals.in_doubt)}


def _totals_as_line(each: AccountTotals) -> str:
    totals = each.totals
    sums = f"{totals.sent:>20}  {totals.received:>20}  {totals.in_doubt:>20}"
    return f"{escape(each.account) or '-':24}  {each.level.value}  {sums}"


def _totals_as_json(each: AccountTotals) -> dict[str, str | None]:
    return {"account": each.account, "level": each.level.value, **_sums(each.totals)}


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


async def _settle(db: str, ledger: str, account: str | None, action: str, key: str) -> str:
    """Settle in a store that no program has open, as ``plugin.transfers`` does."""
    async with open_any_store(StoreChoice(db)) as store:
        journal = Journal(store, PluginOptions(ledger_id=ledger), PluginLog(StdlibLog(), (), Timers()))
        journal.claim()
        try:
            await journal.take()
            return await _act(Transfers(journal, None), account or "", action, key)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_SECONDS):
                await journal.give_up()
            journal.release()


async def _act(transfers: Transfers, account: str, action: str, key: str) -> str:
    try:
        if action == "reset_level":
            await transfers.reset_level(account=account)
            return "money may be sent to this peer without keys (PLAIN) again; unanswered transfers are in doubt"
        await (transfers.confirm if action == "confirm" else transfers.reject)(key, account=account)
    except TransferNotFoundError as error:
        text = f"{one_line(error)}; without --{action} this command lists the keys, each with its account"
        raise click.ClickException(text) from error
    except InvalidFieldsError as error:
        hint = "; --account names one of a server's accounts" if action == "reset_level" and not account else ""
        raise click.ClickException(one_line(error) + hint) from error
    except LedgerPluginError as error:
        raise click.ClickException(one_line(error)) from error
    return f"transfer {key!r} is {'acknowledged' if action == 'confirm' else 'rejected'}"
