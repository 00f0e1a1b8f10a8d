"""What differs between the databases that a journal can be kept in.

Statements are written once, for SQLite, in the subset that others share: ``RETURNING``, ``ON CONFLICT`` and
``coalesce``. The function ``lpi_add`` is SQLite's from ``schema.py``; another database defines its own.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import frozen

from .sqlite_errors import is_storage_error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SQLITE", "Claims", "Connection", "Dialect", "dialect_of"]

#: A connection of the database's driver; ``sqlite3.Connection`` for an SQLite store.
Connection: TypeAlias = Any


class Claims(ABC):
    """How a database keeps which process owns a ledger; every method runs inside a transaction.

    Invariant: a ledger has an epoch, which grows each time that a process takes it. The owner reads the row in each of
    its transactions with a lock that keeps others from taking the ledger before that transaction has ended.
    """

    @abstractmethod
    def find(self, connection: Connection, ledger: str) -> tuple[int, str, int]:
        """Return a ledger's epoch, its owner (empty for none) and the beat that the owner changes all the time."""

    @abstractmethod
    def take(self, connection: Connection, ledger: str, owner: str, seen: tuple[int, str, int]) -> int | None:
        """Take a ledger that is as it was seen, and return its new epoch; None if it has changed."""

    @abstractmethod
    def is_owner(self, connection: Connection, ledger: str, epoch: int) -> bool:
        """Whether this epoch is the present one; if so, it stays so until the transaction ends."""

    @abstractmethod
    def beat(self, connection: Connection, ledger: str) -> None:
        """Show that the owner is alive."""

    @abstractmethod
    def release(self, connection: Connection, ledger: str, epoch: int) -> None:
        """Give a ledger up, so that another process can take it at once; does nothing if the epoch has passed."""


def _is_never(_connection: Connection) -> bool:
    return False


@frozen
class Dialect:
    """How one database differs from others.

    Attributes:
        placeholder: Stands for a value in a statement.
        types: What a ``CREATE TABLE`` has for ``{id}``, a number that is never used again, ``{number}``,
            ``{blob}``, ``{real}`` and ``{keyed}``, the end of a table that is read by its primary key.
        error: The class of the errors of the database.
        is_storage_error: Whether an error is about the storage, not about the statement.
        schema_exists: A query that has a row if the table ``lpi_schema`` exists.
        joins: Whether one statement may contain several that change rows (``WITH ... AS (UPDATE ...)``).
        lock: The end of a ``SELECT`` that locks its rows, in place of ``{lock}``; empty if transactions that write run
            one after another.
        is_broken: Whether a statement has failed and the transaction refuses all others.
        claims: How this process claims a ledger among the programs that may have the database open; None if only one
            program can.
    """

    placeholder: str
    types: dict[str, str]
    error: type[Exception]
    is_storage_error: Callable[[BaseException], bool]
    schema_exists: str
    joins: bool = False
    lock: str = ""
    is_broken: Callable[[Connection], bool] = _is_never
    claims: Claims | None = None

    def statement(self, text: str) -> str:
        """Return a statement, written with ``?`` for each value and ``{lock}``, as the database takes it."""
        return text.replace("{lock}", self.lock).replace("?", self.placeholder)

    def table(self, text: str) -> str:
        """Return a ``CREATE`` statement with the database's types."""
        return text.format_map(self.types)


SQLITE: Final = Dialect(
    placeholder="?",
    types={
        "id": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "number": "INTEGER",
        "blob": "BLOB",
        "real": "REAL",
        "keyed": " WITHOUT ROWID",
    },
    error=sqlite3.Error,
    is_storage_error=is_storage_error,
    schema_exists="SELECT 1 FROM sqlite_schema WHERE name = 'lpi_schema'",
)


def dialect_of(store: object) -> Dialect:
    """Return the dialect of a store: its attribute ``dialect``, and SQLite's for a store without one."""
    dialect = getattr(store, "dialect", SQLITE)
    return dialect if isinstance(dialect, Dialect) else SQLITE
