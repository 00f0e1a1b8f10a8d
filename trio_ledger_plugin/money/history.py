"""What is in a journal: totals, entries, what operators settle by hand, and what is forgotten.

Every method runs inside the caller's transaction, on the store's thread, and reads a limited slice of the history.
"""

from __future__ import annotations

from datetime import UTC, datetime
from math import inf
from time import time
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from ..errors import InvalidFieldsError, RemoteError, TransferNotFoundError
from ..transfer import (
    TRANSITIONS,
    JournalEntry,
    MoneyLevel,
    Totals,
    Transfer,
    TransferDirection,
    TransferState,
)
from .room import drop_unused

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..stores.dialect import Connection
    from .room import Room
    from .statements import Statements

__all__ = ["AccountTotals", "Page", "SqlHistory", "read_entry"]

# How many rows are read or removed in one transaction; it limits how long other transactions wait.
PAGE: Final = 200
# The same of rows that are only counted.
KEYS_PAGE: Final = 1000
# Before the first row that can be forgotten.
START: Final = (-inf, 0)
# By how much the time of an entry may differ from the stored one, in seconds: more than it does.
ROUNDED: Final = 0.001


@frozen
class AccountTotals:
    """The totals of one account.

    Attributes:
        account: The account's name; empty for a plugin with one peer.
        totals: Its totals.
        level: KEYED once it has been at KEYED, until it is reset.
    """

    account: str
    totals: Totals
    level: MoneyLevel


@frozen
class Page:
    """A slice of the history.

    Attributes:
        entries: The entries that were asked for.
        after: The number after which the next slice begins; None at the end.
    """

    entries: list[JournalEntry]
    after: int | None


class SqlHistory:
    """The history of one ledger.

    Args:
        ledger: The ledger's name.
        statements: The SQL.
        age: Returns the ledger's age.
        room: How much the ledger may keep.
        undo_sending: Undoes what a transfer that the peer has not applied did to its account.
        count_acked: Counts a transfer that the peer has applied.
    """

    def __init__(
        self,
        ledger: str,
        statements: Statements,
        age: Callable[[], float],
        room: Room,
        *,
        undo_sending: Callable[[Connection, int, Transfer], None],
        count_acked: Callable[[Connection, Transfer], None],
    ) -> None:
        self._ledger = ledger
        self._sql = statements
        self._age = age
        self._room = room
        self._undo_sending = undo_sending
        self._count_acked = count_acked

    # Reading.

    def ledgers(self, connection: Connection) -> list[str]:
        """Return the names of all ledgers in the store."""
        return [ledger for (ledger,) in connection.execute(self._sql.LIST_LEDGERS).fetchall()]

    def knows(self, connection: Connection, account: str) -> bool:
        """Whether the ledger has an account."""
        return connection.execute(self._sql.FIND_LEVEL, (self._ledger, account)).fetchone() is not None

    def totals(self, connection: Connection, account: str) -> Totals:
        """Return the totals of one account; zeros if it is not known."""
        row = connection.execute(self._sql.FIND_SUMS, (self._ledger, account)).fetchone()
        return Totals(*(int(amount) for amount in row)) if row else Totals(0, 0, 0)

    def accounts(self, connection: Connection, after: str | None) -> list[AccountTotals]:
        """Return a page of the accounts, in the order of their names.

        Args:
            connection: The connection.
            after: The name after which the page begins; None for the first page.
        """
        first = self._sql.FIRST_SUMS if after is None else self._sql.LIST_SUMS
        place = (self._ledger, after or "", PAGE)
        return [
            AccountTotals(
                account,
                Totals(int(sent), int(received), int(in_doubt)),
                MoneyLevel.KEYED if keyed else MoneyLevel.PLAIN,
            )
            for account, sent, received, in_doubt, keyed in connection.execute(first, place).fetchall()
        ]

    def page(
        self,
        connection: Connection,
        account: str | None,
        direction: TransferDirection | None,
        state: TransferState | None,
        after: int,
        since: datetime | None = None,
    ) -> Page:
        """Return a slice of the transfers in the order in which they were entered; it may be empty before the end.

        Args:
            connection: The connection.
            account: Only this account; None for all.
            direction: Only this direction; None for both.
            state: Only this state; None for all.
            after: The number after which the slice begins.
            since: Only transfers that were entered at this time or later; None for all.
        """
        sql = self._sql
        if state is TransferState.IN_DOUBT:
            rows = connection.execute(sql.IN_DOUBT, (self._ledger, after, PAGE)).fetchall()
            following = rows[-1][0] if len(rows) == PAGE else None
        else:
            first = connection.execute(sql.SLICE_FROM, (after,)).fetchone()[0]
            if first is None:
                return Page([], None)
            # Not beyond the last one: what is entered before the next slice is read belongs to that one.
            following = min(first - 1 + PAGE, connection.execute(sql.LAST_NUMBER).fetchone()[0])
            rows = connection.execute(sql.SLICE, (first - 1, following, self._ledger)).fetchall()
        wanted = (account, direction and direction.value, state and state.value)
        # The stored time has digits that an entry's time rounds off; the latter decides.
        from_time = -inf if since is None else since.timestamp() - ROUNDED
        entries = [read_entry(row) for row in rows if _matches(row, *wanted) and row[10] >= from_time]
        if since is not None:
            entries = [entry for entry in entries if entry.created >= since]
        return Page(entries, following)

    def in_doubt(self, connection: Connection, after: int) -> tuple[int, int, int | None]:
        """Return the number and sum of a slice of the transfers in doubt, and after which number the next begins."""
        page = self.page(connection, None, None, TransferState.IN_DOUBT, after)
        return len(page.entries), sum(entry.amount for entry in page.entries), page.after

    # Settling by hand.

    def settle(self, connection: Connection, account: str, key: str, state: TransferState) -> None:
        """Settle an outgoing transfer whose outcome is known from elsewhere.

        Args:
            connection: The connection, inside a transaction.
            account: The transfer's account.
            key: Its idempotency key.
            state: ACKED or REJECTED.

        Raises:
            TransferNotFoundError: No outgoing transfer has this key.
            InvalidFieldsError: It is final already; nothing has changed.
        """
        row = connection.execute(self._sql.FIND_OUTGOING, (self._ledger, account, key)).fetchone()
        if row is None:
            raise TransferNotFoundError(f"no transfer was sent under the key {key!r}; nothing was changed")
        entry = read_entry(row)
        if state not in TRANSITIONS[entry.state]:
            raise InvalidFieldsError(f"transfer {key!r} is {entry.state.value} already; nothing was changed")
        values = (state.value, None, None, None, None, time(), self._age(), entry.number)
        if not connection.execute(self._sql.SETTLE, values).rowcount:
            # On another connection, since it was read.
            raise InvalidFieldsError(f"transfer {key!r} was settled meanwhile; nothing was changed")
        connection.execute(self._sql.DROP_TO_SEND, (entry.number,))
        transfer = Transfer(str(entry.amount), account, key=key, level=entry.level)
        if state is TransferState.ACKED:
            self._count_acked(connection, transfer)
        else:
            self._undo_sending(connection, entry.number, transfer)

    def reset_level(self, connection: Connection, account: str) -> None:
        """Set an account's level to PLAIN again.

        Raises:
            InvalidFieldsError: The account is not known or not at KEYED; nothing has changed.
        """
        if not connection.execute(self._sql.RESET_LEVEL, (self._ledger, account)).rowcount:
            known = connection.execute(self._sql.FIND_LEVEL, (self._ledger, account)).fetchone()
            what = "is not at KEYED" if known else "is not known"
            raise InvalidFieldsError(f"account {account!r} {what}; nothing was changed")

    # Forgetting, and what is kept.

    def note_handler(self, connection: Connection) -> None:
        """Record that a money handler was registered: from now on, what waits for one is not forgotten."""
        connection.execute(self._sql.NOTE_HANDLER, (self._ledger,))

    def count(self, connection: Connection, after: str | None) -> str | None:
        """Count a page of the accounts, in the order of their names, and their remembered transfers.

        Args:
            connection: The connection.
            after: The name after which the page begins; None for the first page.

        Returns:
            Where to continue; None at the end.
        """
        statement = self._sql.FIRST_KEYS if after is None else self._sql.LIST_KEYS
        page = connection.execute(statement, (self._ledger, after or "", KEYS_PAGE)).fetchall()
        is_last = len(page) < KEYS_PAGE
        self._room.count(connection, page, is_first=after is None, is_last=is_last)
        return None if is_last else page[-1][0]

    def forget(self, connection: Connection, after: tuple[float, int] = START) -> tuple[float, int] | None:
        """Remove a slice of the transfers whose keys need not be kept any longer.

        Only the time for which the ledger was open counts, so setting the clock never removes a key too early.

        Args:
            connection: The connection, inside a transaction.
            after: The age and number of the last row of the slice before.

        Returns:
            Where to continue; None at the end.
        """
        place = (self._ledger, *after, self._age(), PAGE)
        rows = connection.execute(self._sql.FORGETTABLE, place).fetchall()
        applied = TransferState.APPLIED.value
        # A credited transfer stays until a handler has finished with it, unless no program has ever asked for it.
        if connection.execute(self._sql.HAD_HANDLER, (self._ledger,)).fetchone()[0]:
            gone = [row for row in rows if row[3] != applied]
        else:
            gone = rows
        kept: dict[str, int] = {}
        for number, account, direction, state, level, _ in gone:
            connection.execute(self._sql.DROP_TRANSFER, (number,))
            if state == applied:
                connection.execute(self._sql.DROP_TO_DELIVER, (number,))
            if state == applied or (direction == TransferDirection.IN.value and level == MoneyLevel.KEYED.value):
                kept[account] = kept.get(account, 0) + 1
        for account, number in kept.items():
            connection.execute(self._sql.FORGET_KEYS, (number, self._ledger, account))
            self._room.add(connection, account, keys=-number)
            drop_unused(connection, self._sql, (self._ledger, account), self._room)
        return (rows[-1][5], rows[-1][0]) if len(rows) == PAGE else None


def _matches(row: tuple[Any, ...], account: str | None, direction: str | None, state: str | None) -> bool:
    return (
        (account is None or row[1] == account)
        and (direction is None or row[2] == direction)
        and (state is None or row[6] == state)
    )


def read_entry(row: tuple[Any, ...]) -> JournalEntry:
    """Return the entry for a row of ``COLUMNS``."""
    number, account, direction, key, amount, level, state, code, name, data, created, changed, *_ = row
    return JournalEntry(
        number,
        account,
        TransferDirection(direction),
        key,
        int(amount),
        MoneyLevel(level),
        TransferState(state),
        None if code is None else RemoteError(code, name, data=data),
        datetime.fromtimestamp(created, UTC),
        datetime.fromtimestamp(changed, UTC),
    )
