"""The journal of transfers, in SQL, without Trio.

Invariants: the journal holds an outgoing transfer from before its first byte is sent, and an incoming one from the
moment that it is applied, until it cannot be sent again. An account's totals change in the same transaction as the
state of the transfer. Amounts are whole numbers of any size, stored as text and summed exactly.

Every method runs inside the caller's transaction, on the store's thread. Each first reads the current state, so that
running it again after a failed commit does no harm.

The states of an outgoing transfer, and of an incoming one::

    SENT ── answered ──> ACKED or REJECTED        APPLIED ── the money handler has finished ──> DELIVERED
      └── outcome unknown ──> IN_DOUBT            REFUSED, by a handler within the transaction
            └── confirm, reject ──> ACKED or REJECTED
"""

from __future__ import annotations

from datetime import UTC, datetime
from json import dumps, loads
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..errors import (
    DuplicateIdError,
    InvalidFieldsError,
    LedgerPluginError,
    MoneyLevelError,
    NotAcceptedError,
    RemoteError,
    TransferNotFoundError,
    UnreachableError,
    wire_error,
)
from ..stores.schema import migrate
from ..transfer import JournalEntry, MoneyLevel, Totals, Transfer, TransferDirection, TransferState, Window
from .tables import STEPS
from .totals import AccountTotals

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    Apply: TypeAlias = Callable[[sqlite3.Connection, Transfer], LedgerPluginError | None]

__all__ = ["Journal", "ledgers_in"]

LOST_KEYS: Final = (
    "this account is at KEYED, but this transfer has no key: the other end has lost its journal or is another program;"
    " reset the account's level to allow PLAIN"
)
NO_KEYS: Final = "money is accepted at KEYED only"
# How many rows are read or removed in one transaction; it limits how long other transactions wait.
PAGE: Final = 1000

COLUMNS: Final = (
    "id, account, direction, key, amount, level, state, error_code, error_name, error_data, created, changed,"
    " resend_until"
)


class _StoredRefusalError(LedgerPluginError):
    """The refusal of an earlier reply, for a transfer that the peer sends again."""

    code: str  # type: ignore[misc]  # one class for all codes

    def __init__(self, code: str, name: str, message: str) -> None:
        super().__init__(message)
        self.code, self.name = code, name


class Journal:
    """The transfers of one ledger.

    Args:
        ledger: The name of the ledger, which distinguishes its rows from those of others in the same database.
        max_keys: How many incoming transfers are kept for an account; further ones are refused.
    """

    def __init__(self, ledger: str, *, max_keys: int) -> None:
        self.ledger: str = ledger
        self._account_totals = AccountTotals(ledger, max_keys=max_keys)
        # None while the ledger does not age, because this journal may not write to it.
        self._opened_at: float | None = None
        self._age_before = 0.0

    def open(self, connection: sqlite3.Connection, *, settle: bool) -> set[str]:
        """Create or upgrade the tables, and return the accounts with transfers to send again.

        Args:
            connection: The connection, inside a transaction.
            settle: Whether to settle transfers of an earlier run: those SENT at PLAIN become IN_DOUBT.
        """
        migrate(connection, "transfers", STEPS)
        self._age_before = self._age_known(connection)
        self._opened_at = monotonic() if settle else None
        if settle:
            connection.execute(
                "UPDATE lpi_transfers SET state = 'in_doubt', changed = ?"
                " WHERE ledger = ? AND state = 'sent' AND level = 'plain'",
                (time(), self.ledger),
            )
        rows = connection.execute(
            "SELECT DISTINCT account FROM lpi_transfers WHERE ledger = ? AND state = 'sent'", (self.ledger,)
        )
        return {account for (account,) in rows}

    def _age_known(self, connection: sqlite3.Connection) -> float:
        """Return the saved age or the age at which the last transfer was entered, whichever is greater."""
        saved = connection.execute("SELECT age FROM lpi_ledgers WHERE ledger = ?", (self.ledger,)).fetchone()
        last = connection.execute(
            "SELECT remembered_from FROM lpi_transfers WHERE ledger = ? ORDER BY id DESC LIMIT 1", (self.ledger,)
        ).fetchone()
        return max(*(saved or (0.0,)), *(last or (0.0,)))

    def save_age(self, connection: sqlite3.Connection) -> None:
        """Save the ledger's age for the next time it is opened."""
        connection.execute(
            "INSERT INTO lpi_ledgers (ledger, age) VALUES (?, ?)"
            " ON CONFLICT (ledger) DO UPDATE SET age = max(age, excluded.age)",
            (self.ledger, self._age()),
        )

    def rest(self) -> None:
        """Stop the ledger's age: from now on another plugin may write to it."""
        self._opened_at, self._age_before = None, self._age()

    def _age(self) -> float:
        """Return for how many seconds in total this ledger has been open: a clock that cannot be set."""
        return self._age_before + (0.0 if self._opened_at is None else monotonic() - self._opened_at)

    # Outgoing transfers.

    def begin(
        self, connection: sqlite3.Connection, transfer: Transfer, window: Window | None, *, plain_allowed: bool
    ) -> JournalEntry | None:
        """Enter a transfer as SENT and return None, or return the entry that its key already has.

        Raises:
            MoneyLevelError: It is new and PLAIN, and PLAIN is not allowed, or its account is KEYED.
        """
        account, plain = transfer.account, transfer.level is MoneyLevel.PLAIN
        # Before the checks: a caller whose known key is refused would believe that nothing was sent, and pay again.
        known = self.find(connection, account, TransferDirection.OUT, transfer.key)
        if known is not None:
            return known
        if plain and not plain_allowed:
            raise MoneyLevelError("the peer does not keep transfer keys, and money is set to KEYED; nothing was sent")
        created, until = window or (time(), None)
        if plain and self._account_totals.level(connection, account) is MoneyLevel.KEYED:
            raise MoneyLevelError(LOST_KEYS)
        connection.execute(
            "INSERT INTO lpi_transfers"
            " (ledger, account, direction, key, amount, level, state, created, changed, remembered_from, resend_until)"
            " VALUES (?, ?, 'out', ?, ?, ?, 'sent', ?, ?, ?, ?)",
            (
                *(self.ledger, account, transfer.key, transfer.amount, transfer.level.value),
                *(created, created, self._age(), until),
            ),
        )
        if not plain and self._account_totals.level(connection, account) is MoneyLevel.PLAIN:
            self._account_totals.set_level(connection, account, MoneyLevel.KEYED)
        return None

    def answered(self, connection: sqlite3.Connection, transfer: Transfer, error: RemoteError | None) -> None:
        """Record the peer's reply: an acknowledgement (None), or the error that refuses the transfer."""
        state = TransferState.ACKED if error is None else TransferState.REJECTED
        for before in (TransferState.SENT, TransferState.IN_DOUBT):
            self._move(connection, transfer, before, state, error)

    def doubt(self, connection: sqlite3.Connection, transfer: Transfer) -> None:
        """Record that it is not known whether the peer has applied a transfer."""
        self._move(connection, transfer, TransferState.SENT, TransferState.IN_DOUBT, None)

    def _move(
        self,
        connection: sqlite3.Connection,
        transfer: Transfer,
        before: TransferState,
        after: TransferState,
        error: RemoteError | None,
    ) -> None:
        """Change the state of an outgoing transfer from ``before`` to ``after``, if it is in ``before``."""
        refusal = (None, None, None) if error is None else (error.code, error.name, error.data)
        moved = connection.execute(
            "UPDATE lpi_transfers SET state = ?, error_code = ?, error_name = ?, error_data = ?, changed = ?,"
            " remembered_from = ? WHERE ledger = ? AND account = ? AND direction = 'out' AND key = ? AND state = ?",
            (after.value, *refusal, time(), self._age(), self.ledger, transfer.account, transfer.key, before.value),
        )
        if moved.rowcount and after is TransferState.ACKED:
            self._account_totals.count_sent(connection, transfer.account, transfer.amount)

    def withdraw(self, connection: sqlite3.Connection, transfer: Transfer) -> None:
        """Remove a transfer that was certainly not applied, so that its key may be used again."""
        connection.execute(
            "DELETE FROM lpi_transfers"
            " WHERE ledger = ? AND account = ? AND direction = 'out' AND key = ? AND state IN ('sent', 'in_doubt')",
            (self.ledger, transfer.account, transfer.key),
        )

    def unanswered(
        self, connection: sqlite3.Connection, account: str, after: int
    ) -> list[tuple[int, Transfer, Window]]:
        """Return a page of KEYED transfers that must be sent again, with their numbers and windows."""
        rows = connection.execute(
            "SELECT id, amount, key, created, resend_until FROM lpi_transfers"
            " WHERE ledger = ? AND state = 'sent' AND account = ? AND level = 'keyed' AND id > ?"
            " ORDER BY id LIMIT ?",
            (self.ledger, account, after, PAGE),
        )
        return [
            (number, Transfer(amount, account, key=key, level=MoneyLevel.KEYED), (created, until))
            for number, amount, key, created, until in rows
        ]

    # Incoming transfers.

    def receive(
        self, connection: sqlite3.Connection, transfer: Transfer, apply: Apply | None, *, plain_allowed: bool
    ) -> LedgerPluginError | None:
        """Credit a transfer once and return None, or return its refusal.

        A transfer that was received before gets the same reply as then. A temporary refusal (a code that begins with T)
        is not recorded.

        Args:
            connection: The connection, inside a transaction.
            transfer: The transfer that the peer sent; its key is set.
            apply: Calls the transactional money handler and returns its refusal or None. If None, the transfer waits in
                the outbox for the ordinary money handler.
            plain_allowed: Whether an account that was never at KEYED may receive at PLAIN.
        """
        account, now = transfer.account, time()
        if transfer.level is MoneyLevel.PLAIN:
            level = self._account_totals.level(connection, account)
            if level is MoneyLevel.KEYED or not plain_allowed:
                return NotAcceptedError(LOST_KEYS if level is MoneyLevel.KEYED else NO_KEYS)
        state = TransferState.APPLIED if apply is None else TransferState.DELIVERED
        entered = connection.execute(
            "INSERT INTO lpi_transfers"
            " (ledger, account, direction, key, amount, level, state, digest, created, changed, remembered_from)"
            " VALUES (?, ?, 'in', ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                *(self.ledger, account, transfer.key, transfer.amount, transfer.level.value, state.value),
                *(transfer.digest, now, now, self._age()),
            ),
        )
        if not entered.rowcount:
            return self._repeat_reply(connection, transfer)
        number = entered.lastrowid
        if not self._account_totals.credit(connection, account, transfer.amount, transfer.level):
            connection.execute("DELETE FROM lpi_transfers WHERE id = ?", (number,))
            return UnreachableError("too many transfers are remembered already")
        refusal = None if apply is None else _run(connection, transfer, apply)
        if refusal is not None:
            self._account_totals.take_back(connection, account, transfer.amount)
            self._refuse(connection, account, number, refusal)
        return refusal

    def _repeat_reply(self, connection: sqlite3.Connection, transfer: Transfer) -> LedgerPluginError | None:
        digest, code, name, data = connection.execute(
            "SELECT digest, error_code, error_name, error_data FROM lpi_transfers"
            " WHERE ledger = ? AND account = ? AND direction = 'in' AND key = ?",
            (self.ledger, transfer.account, transfer.key),
        ).fetchone()
        if digest != transfer.digest:
            return DuplicateIdError("this key belongs to another transfer")
        return None if code is None else _StoredRefusalError(code, name, loads(data)["message"])

    def _refuse(
        self, connection: sqlite3.Connection, account: str, number: int | None, refusal: LedgerPluginError
    ) -> None:
        code, name, data = wire_error(refusal)
        if code.startswith("T"):
            self._forget(connection, account, [number])
        else:
            connection.execute(
                "UPDATE lpi_transfers SET state = 'refused', error_code = ?, error_name = ?, error_data = ?"
                " WHERE id = ?",
                (code, name, data, number),
            )

    def _forget(self, connection: sqlite3.Connection, account: str, numbers: list[int | None]) -> None:
        connection.executemany("DELETE FROM lpi_transfers WHERE id = ?", [(number,) for number in numbers])
        self._account_totals.forget_keys(connection, account, len(numbers))

    def undelivered(
        self, connection: sqlite3.Connection, after: int, limit: int, without: Sequence[str] = ()
    ) -> list[tuple[int, Transfer]]:
        """Return the next credited transfers that no handler has finished with, except those of some accounts."""
        rows = connection.execute(
            "SELECT id, amount, account, key, level FROM lpi_transfers"
            " WHERE ledger = ? AND state = 'applied' AND id > ?"
            " AND account NOT IN (SELECT value FROM json_each(?)) ORDER BY id LIMIT ?",
            (self.ledger, after, dumps(list(without)), limit),
        )
        return [
            (number, Transfer(amount, account, key=key, level=MoneyLevel(level)))
            for number, amount, account, key, level in rows
        ]

    def delivered(self, connection: sqlite3.Connection, number: int) -> None:
        """Record that the money handler has finished with a transfer."""
        connection.execute(
            "UPDATE lpi_transfers SET state = 'delivered', changed = ? WHERE id = ? AND state = 'applied'",
            (time(), number),
        )

    def purge(self, connection: sqlite3.Connection, after: int, retention: float) -> int | None:
        """Remove the transfers of one page that were finished longer than ``retention`` seconds ago.

        Only the time during which the ledger was open counts, so setting the clock never removes a key too early.

        Returns:
            The number to continue after, or None at the end.
        """
        self.save_age(connection)
        rows = connection.execute(
            "SELECT id, account, direction, state FROM lpi_transfers"
            " WHERE ledger = ? AND id > ? AND remembered_from < ? ORDER BY id LIMIT ?",
            (self.ledger, after, self._age() - retention, PAGE),
        ).fetchall()
        received: dict[str, list[int | None]] = {}
        for number, account, direction, state in rows:
            if direction == "out" and state in ("acked", "rejected"):
                connection.execute("DELETE FROM lpi_transfers WHERE id = ?", (number,))
            elif direction == "in" and state != "applied":
                received.setdefault(account, []).append(number)
        for account, numbers in received.items():
            self._forget(connection, account, numbers)
        return rows[-1][0] if len(rows) == PAGE else None

    # Reading, and reconciling.

    def reset_level(self, connection: sqlite3.Connection, account: str) -> None:
        """Set an account's level to PLAIN again; its transfers SENT at KEYED become IN_DOUBT."""
        self._account_totals.set_level(connection, account, MoneyLevel.PLAIN)
        connection.execute(
            "UPDATE lpi_transfers SET state = 'in_doubt', changed = ?"
            " WHERE ledger = ? AND state = 'sent' AND account = ?",
            (time(), self.ledger, account),
        )

    def totals(self, connection: sqlite3.Connection, account: str | None) -> Totals:
        """Return the totals of one account, or of all."""
        sent, received = self._account_totals.sums(connection, account)
        unsettled = connection.execute(
            "SELECT amount FROM lpi_transfers WHERE ledger = ? AND state IN ('sent', 'in_doubt')"
            " AND (? IS NULL OR account = ?)",
            (self.ledger, account, account),
        )
        return Totals(sent, received, in_doubt=sum(int(amount) for (amount,) in unsettled))

    def find(
        self, connection: sqlite3.Connection, account: str, direction: TransferDirection, key: str | None
    ) -> JournalEntry | None:
        """Return the transfer under a key, or None."""
        row = connection.execute(
            f"SELECT {COLUMNS} FROM lpi_transfers WHERE ledger = ? AND account = ? AND direction = ? AND key = ?",  # noqa: S608 (constants)
            (self.ledger, account, direction.value, key),
        ).fetchone()
        return None if row is None else _read_entry(row)

    def page(
        self,
        connection: sqlite3.Connection,
        account: str | None,
        direction: TransferDirection | None,
        state: TransferState | None,
        after: int,
    ) -> list[JournalEntry]:
        """Return a page of transfers in the order in which they were entered."""
        rows = connection.execute(
            f"SELECT {COLUMNS} FROM lpi_transfers WHERE ledger = ? AND id > ?"  # noqa: S608 (constants)
            " AND account = ifnull(?, account) AND direction = ifnull(?, direction) AND state = ifnull(?, state)"
            " ORDER BY id LIMIT ?",
            (self.ledger, after, account, direction and direction.value, state and state.value, PAGE),
        )
        return [_read_entry(row) for row in rows]

    def confirm(self, connection: sqlite3.Connection, account: str, key: str) -> None:
        """Settle a transfer in doubt that the peer has applied.

        Raises:
            TransferNotFoundError: No outgoing transfer has this key.
            InvalidFieldsError: It is not in doubt.
        """
        self._settle(connection, account, key, TransferState.ACKED)

    def reject(self, connection: sqlite3.Connection, account: str, key: str) -> None:
        """Settle a transfer in doubt that the peer has not applied.

        Raises:
            TransferNotFoundError: No outgoing transfer has this key.
            InvalidFieldsError: It is not in doubt.
        """
        self._settle(connection, account, key, TransferState.REJECTED)

    def _settle(self, connection: sqlite3.Connection, account: str, key: str, state: TransferState) -> None:
        entry = self.find(connection, account, TransferDirection.OUT, key)
        if entry is None:
            raise TransferNotFoundError(f"no transfer was sent under the key {key!r}")
        if entry.state is TransferState.IN_DOUBT:
            transfer = Transfer(str(entry.amount), account, key=key)
            self._move(connection, transfer, TransferState.IN_DOUBT, state, None)
        elif entry.state is not state:
            raise InvalidFieldsError(f"transfer {key!r} is {entry.state.value}; only one in doubt can be settled")


def _read_entry(row: tuple[Any, ...]) -> JournalEntry:
    """Return the entry for a row of ``COLUMNS``."""
    number, account, direction, key, amount, level, state, code, name, data, created, changed, until = row
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
        None if until is None else (created, until),
    )


def ledgers_in(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the ledgers in a store; a ledger may be in only some of the tables."""
    tables = ("lpi_ledgers", "lpi_accounts", "lpi_transfers")
    query = " UNION ".join(f"SELECT ledger FROM {table}" for table in tables)  # noqa: S608 (constants)
    return [ledger for (ledger,) in connection.execute(query)]


def _run(connection: sqlite3.Connection, transfer: Transfer, apply: Apply) -> LedgerPluginError | None:
    """Run a transactional money handler; if it refuses, undo its changes."""
    connection.execute("SAVEPOINT lpi_handler")
    refusal = apply(connection, transfer)
    if refusal is not None:
        connection.execute("ROLLBACK TO lpi_handler")
    connection.execute("RELEASE lpi_handler")
    return refusal
