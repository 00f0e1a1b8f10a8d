"""The tables of a store: how they are created, and how a newer version of this package changes them.

Invariant: for each component, the file records how many steps have been applied to it. Steps are only ever appended; a
released step never changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import StoreError
from .dialect import SQLITE

if TYPE_CHECKING:
    import sqlite3

    from .dialect import Connection, Dialect

__all__ = ["VALUES", "Steps", "add_functions", "check_version", "migrate"]

Steps = tuple[tuple[str, ...], ...]

VALUES: Steps = (
    ("CREATE TABLE lpi_values (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",),
    (
        """CREATE TABLE lpi_opening (
            one INTEGER PRIMARY KEY CHECK (one = 1),
            id TEXT NOT NULL,
            closed INTEGER NOT NULL
        )""",
    ),
)


def migrate(connection: Connection, component: str, steps: Steps, dialect: Dialect = SQLITE) -> None:
    """Upgrade a component's tables to the newest version, unless they already have it.

    Args:
        connection: Inside a transaction, which the caller commits, so that a step is applied completely or not at all.
        component: The name of the component that owns the tables.
        steps: The statements that lead from each version to the next; a file's version is the number of applied steps.
        dialect: The database's dialect.

    Raises:
        StoreError: The file was made by a newer version of this package, which has more steps.
    """
    if connection.execute(dialect.schema_exists).fetchone() is None:
        connection.execute("CREATE TABLE lpi_schema (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
    version = check_version(connection, component, steps, dialect=dialect)
    if version == len(steps):
        return
    for statements in steps[version:]:
        for statement in statements:
            connection.execute(statement)
    statement = "INSERT INTO lpi_schema VALUES (?, ?) ON CONFLICT (component) DO UPDATE SET version = excluded.version"
    connection.execute(dialect.statement(statement), (component, len(steps)))


def check_version(
    connection: Connection, component: str, steps: Steps, *, reading: bool = False, dialect: Dialect = SQLITE
) -> int:
    """Return how many steps have been applied to a component's tables; 0 if the file does not have them.

    Args:
        connection: The connection; nothing is written.
        component: The name of the component that owns the tables.
        steps: The steps that this program knows.
        reading: Whether the tables are only read, and so not upgraded if they are older.
        dialect: The database's dialect.

    Raises:
        StoreError: A newer version of this package made the tables, or ``reading`` and an older one did.
    """
    if connection.execute(dialect.schema_exists).fetchone() is None:
        return 0
    statement = dialect.statement("SELECT version FROM lpi_schema WHERE component = ?")
    row = connection.execute(statement, (component,)).fetchone()
    version: int = row[0] if row else 0
    if version > len(steps):
        raise StoreError(
            f"the store's tables of {component!r} have version {version}, but this program knows only versions up to "
            f"{len(steps)}: a newer version of trio_ledger_plugin made them; upgrade it"
        )
    if reading and 0 < version < len(steps):
        raise StoreError(
            f"the store's tables of {component!r} have version {version}, and this program reads version {len(steps)}: "
            "open the file once with a program that uses this version of trio_ledger_plugin, which upgrades it"
        )
    return version


def add_functions(connection: sqlite3.Connection) -> None:
    """Define the SQL functions that statements on the tables may use.

    ``lpi_add(a, b)`` returns the sum of two whole numbers as text. The sum is exact at any size, whereas SQLite's
    integers end at 2**63. The result is NULL if either argument is NULL. ``lpi_sum(a)`` is such a sum over all rows.
    """
    connection.create_function("lpi_add", 2, _add, deterministic=True)
    connection.create_aggregate("lpi_sum", 1, _Sum)  # type: ignore[arg-type]  # typeshed: steps get an int only


class _Sum:
    """Adds whole numbers that are text, exactly."""

    def __init__(self) -> None:
        self._total = 0

    def step(self, amount: str | None) -> None:
        self._total += int(amount or 0)

    def finalize(self) -> str:
        return str(self._total)


def _add(left: str | None, right: str | None) -> str | None:
    return None if left is None or right is None else str(int(left) + int(right))
