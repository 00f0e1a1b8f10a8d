"""What differs between the databases that a journal can be kept in.

Statements are written once, for SQLite, in the subset that others share: ``RETURNING``, ``ON CONFLICT`` and
``coalesce``. The function ``lpi_add`` is SQLite's from ``schema.py``; another database defines its own.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from attrs import frozen

from .sqlite_errors import is_storage_error

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SQLITE", "Connection", "Dialect", "dialect_of"]

#: A connection of the database's driver; ``sqlite3.Connection`` for an SQLite store.
Connection: TypeAlias = Any


@frozen
class Dialect:
    """How one database differs from others.

    Attributes:
        placeholder: Stands for a value in a statement.
        types: What a ``CREATE TABLE`` has for ``{id}``, a number that is never used again, ``{number}``,
            ``{blob}``, ``{real}`` and ``{keyed}``, the end of a table that is read by its primary key.
        error: The class of the errors of the database.
        is_storage_error: Whether an error is about the storage, not about the statement.
    """

    placeholder: str
    types: dict[str, str]
    error: type[Exception]
    is_storage_error: Callable[[BaseException], bool]

    def statement(self, text: str) -> str:
        """Return a statement, written with ``?`` for each value, as the database takes it."""
        return text if self.placeholder == "?" else text.replace("?", self.placeholder)

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
)


def dialect_of(store: object) -> Dialect:
    """Return the dialect of a store: its attribute ``dialect``, and SQLite's for a store without one."""
    dialect = getattr(store, "dialect", SQLITE)
    return dialect if isinstance(dialect, Dialect) else SQLITE
