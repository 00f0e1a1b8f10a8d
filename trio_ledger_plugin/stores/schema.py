"""The tables of a store: how they come to be, and how a newer version of this package changes them.

The law of this module: what a file says of itself is the number of steps that made it, component by component. Steps
are only ever appended; those that have been released never change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import StoreError

if TYPE_CHECKING:
    import sqlite3

__all__ = ["VALUES", "Steps", "add_functions", "migrate"]

Steps = tuple[tuple[str, ...], ...]

VALUES: Steps = (("CREATE TABLE lpi_values (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",),)


def migrate(connection: sqlite3.Connection, component: str, steps: Steps) -> None:
    """Bring a component's tables to the newest version; does nothing when they are.

    Args:
        connection: In a transaction, which the caller commits: a step counts wholly or not at all.
        component: Whose tables they are.
        steps: The statements that lead from each version to the next; a file's version is how many were applied.

    Raises:
        StoreError: The file was made by a version of this package that knows more steps.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS lpi_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    row = connection.execute("SELECT version FROM lpi_schema WHERE component = ?", (component,)).fetchone()
    version: int = row[0] if row else 0
    if version > len(steps):
        raise StoreError(
            f"the store's tables of {component!r} have version {version}, and this program knows {len(steps)}: they "
            "were made by a newer version of trio_ledger_plugin; upgrade it"
        )
    if version == len(steps):
        return
    for statements in steps[version:]:
        for statement in statements:
            connection.execute(statement)
    connection.execute("INSERT OR REPLACE INTO lpi_schema VALUES (?, ?)", (component, len(steps)))


def add_functions(connection: sqlite3.Connection) -> None:
    """Give a connection the SQL functions that statements on the tables may use.

    ``lpi_add(a, b)`` is the sum of two whole numbers written as text, exact at any size: SQLite's own integers end at
    2**63. It is NULL when either is.
    """
    connection.create_function("lpi_add", 2, _add, deterministic=True)


def _add(left: str | None, right: str | None) -> str | None:
    return None if left is None or right is None else str(int(left) + int(right))
