"""Journals in memory or in a transaction of PostgreSQL, for tests that need neither Trio nor a file."""

from __future__ import annotations

import sqlite3
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from trio_ledger_plugin import MoneyLevel, NotAcceptedError, RemoteError, Totals, Transfer
from trio_ledger_plugin.money.history import START, AccountTotals
from trio_ledger_plugin.money.outgoing import BeingSent
from trio_ledger_plugin.money.room import UNLIMITED, Room
from trio_ledger_plugin.money.sql import SqlJournal
from trio_ledger_plugin.negotiation import JournalOffer, PeerJournal
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.stores.postgres_dialect import POSTGRES, VALUES
from trio_ledger_plugin.stores.schema import add_functions, migrate
from trio_ledger_plugin.transfer import JournalEntry, TransferDirection, TransferState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from trio_ledger_plugin.money.incoming import Apply, Received
    from trio_ledger_plugin.stores.dialect import Dialect

T = TypeVar("T")

KEYED, PLAIN = MoneyLevel.KEYED, MoneyLevel.PLAIN
OUT, IN = TransferDirection.OUT, TransferDirection.IN
RETENTION = 1000.0
PROMISED = 700.0
PEER_RETENTION = 100_000
REFUSAL = RemoteError("F00", "NotAcceptedError", data=b"{}")
TABLES = ("lpi_ledgers", "lpi_accounts", "lpi_peers", "lpi_transfers", "lpi_to_send", "lpi_to_deliver")


def connect() -> sqlite3.Connection:
    """Return a connection as a store makes it."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    add_functions(connection)
    return connection


def transfer_of(account: str, key: str, amount: int, level: MoneyLevel, journal: str = "", number: int = 0) -> Transfer:
    digest = f"{amount}".encode() if level is KEYED else b""
    return Transfer(str(amount), account, key=key, level=level, journal=journal, digest=digest, number=number)


def journal_of(peer: str, age: float = 1000.0) -> PeerJournal:
    """Return a peer's journal whose age stands still."""
    return PeerJournal(JournalOffer(PEER_RETENTION, peer, age), None, inf)


def new_journal(
    clock: Any,
    ledger: str = "main",
    *,
    max_keys: int = 10_000,
    max_ledger_keys: int = UNLIMITED,
    max_accounts: int = UNLIMITED,
    key_retention: float = RETENTION,
    promised: float = PROMISED,
    dialect: Dialect = SQLITE,
) -> SqlJournal:
    room = Room(max_keys, max_ledger_keys, max_accounts)
    return SqlJournal(ledger, dialect, room=room, key_retention=key_retention, promised=promised, clock=clock)


def in_transaction(connection: Any, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run work as a store does: if it raises an exception, its changes are undone."""
    connection.execute("BEGIN")
    try:
        result = work(connection, *args, **kwargs)
    except Exception:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    return result


def rows_of(connection: Any, ledger: str) -> list[Any]:
    """Return all rows of a ledger."""
    # The names are constants.
    return [connection.execute(f"SELECT * FROM {table} WHERE ledger = ?", (ledger,)).fetchall() for table in TABLES]  # noqa: S608


def read_pages(
    connection: Any,
    journal: SqlJournal,
    *,
    account: str | None = None,
    direction: TransferDirection | None = None,
    state: TransferState | None = None,
    since: datetime | None = None,
) -> Iterator[list[JournalEntry]]:
    """Yield the pages of a journal, each when it is asked for."""
    after: int | None = 0
    while after is not None:
        page = journal.history.page(connection, account, direction, state, after, since)
        after = page.after
        yield page.entries


def forget_in_slices(connection: Any, journal: SqlJournal) -> Iterator[None]:
    """Remove what may be forgotten; yield after each slice."""
    after: tuple[float, int] | None = START
    while after is not None:
        after = journal.history.forget(connection, after)
        yield


def accept(_connection: Any, _transfer: Transfer) -> None:
    """A transactional money handler that accepts every transfer."""


def refuse(_connection: Any, _transfer: Transfer) -> NotAcceptedError:
    """A transactional money handler that refuses every transfer."""
    return NotAcceptedError("no")


class PostgresConnection:
    """A connection to PostgreSQL that tests use like one of SQLite: in one transaction, which is never committed."""

    def __init__(self, dsn: str) -> None:
        self._inner = psycopg.connect(dsn)
        self._inner.execute("CREATE SCHEMA book")
        self._inner.execute("SET LOCAL search_path = book")
        migrate(self, "values", VALUES, POSTGRES)

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> psycopg.Cursor[Any]:
        statement = WITHIN.get(statement, statement)
        return self._inner.execute(statement.replace("?", "%s").encode(), values or None)

    def close(self) -> None:
        self._inner.close()


# What stands for a transaction within a transaction.
WITHIN = {
    "BEGIN": "SAVEPOINT book",
    "COMMIT": "RELEASE SAVEPOINT book",
    "ROLLBACK": "ROLLBACK TO SAVEPOINT book; RELEASE SAVEPOINT book",
}


class Book:
    """An open journal, in a database in memory or in a transaction of PostgreSQL, and a clock that the test sets."""

    def __init__(self, dsn: str | None = None) -> None:
        self.now = 0.0
        # The age that peers' journals have shown.
        self.peer_age = 1000.0
        self.dialect = SQLITE if dsn is None else POSTGRES
        self.connection: Any = connect() if dsn is None else PostgresConnection(dsn)
        self.journal = self.reopen()

    def reopen(self, ledger: str = "main", *, settle: bool = True, **options: Any) -> SqlJournal:
        """Open a ledger as the next process does; use it from now on."""
        self.journal = new_journal(lambda: self.now, ledger, dialect=self.dialect, **options)
        self.journal.open(self.connection, settle=settle)
        return self.journal

    def begin(
        self, key: str, *, amount: int = 5, level: MoneyLevel = KEYED, account: str = "", peer: str = "first"
    ) -> BeingSent:
        """Enter a transfer that is about to be sent."""
        transfer = transfer_of(account, key, amount, level)
        shown = journal_of(peer, self.peer_age) if level is KEYED else None
        sent = in_transaction(self.connection, self.journal.outgoing.begin, transfer, shown, plain_allowed=True)
        assert isinstance(sent, BeingSent)
        return sent

    def pay(self, key: str, **which: Any) -> None:
        """Send a transfer that the peer acknowledges."""
        self.answer(self.begin(key, **which))

    def answer(self, sent: BeingSent, error: RemoteError | None = None, *, receipt: int = 0) -> TransferState:
        return self.journal.outgoing.answered(self.connection, sent, error, receipt)

    def receive(
        self,
        key: str,
        *,
        amount: int = 5,
        level: MoneyLevel = KEYED,
        account: str = "",
        peer: str = "first",
        number: int = 0,
        apply: Apply | None = None,
    ) -> Received:
        """Receive a transfer, for a transactional handler or for the queue."""
        transfer = transfer_of(account, key, amount, level, peer if level is KEYED else "", number)
        return self.journal.incoming.receive(self.connection, transfer, apply, plain_allowed=True)

    def settle(self, key: str, state: TransferState, account: str = "") -> None:
        self.journal.history.settle(self.connection, account, key, state)

    def find(self, key: str, account: str = "") -> JournalEntry | None:
        return self.journal.outgoing.find(self.connection, account, key)

    def state(self, key: str, account: str = "") -> TransferState | None:
        """Return the state of an outgoing transfer; None if it is not in the journal."""
        entry = self.find(key, account)
        return None if entry is None else entry.state

    def pages(self, **which: Any) -> Iterator[list[JournalEntry]]:
        """Yield the pages of the journal, each when it is asked for."""
        yield from read_pages(self.connection, self.journal, **which)

    def walk(self, **which: Any) -> list[JournalEntry]:
        """Return the entries of the journal."""
        return [entry for page in self.pages(**which) for entry in page]

    @property
    def keys(self) -> list[str]:
        """The keys in the journal."""
        return [entry.key for entry in self.walk()]

    def forget(self) -> int:
        """Remove what may be forgotten; return the number of slices."""
        return len(list(forget_in_slices(self.connection, self.journal)))

    def totals(self, account: str = "") -> Totals:
        return self.journal.history.totals(self.connection, account)

    def accounts(self) -> dict[str, AccountTotals]:
        """Return all accounts with their totals."""
        found: list[AccountTotals] = []
        while page := self.journal.history.accounts(self.connection, found[-1].account if found else None):
            found += page
        assert [each.account for each in found] == sorted(each.account for each in found)
        return {each.account: each for each in found}

    def level(self, account: str = "") -> MoneyLevel:
        return self.accounts()[account].level

    def select(self, statement: str, *values: object) -> list[Any]:
        return list(self.connection.execute(statement, values).fetchall())
