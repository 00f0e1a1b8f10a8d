"""Copies a store in an SQLite file into a PostgreSQL database, exactly."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..errors import StoreError

if TYPE_CHECKING:
    from .dialect import Connection
    from .worker import WorkerStore

__all__ = ["copy_store"]

TABLES: Final = (
    *("lpi_values", "lpi_ledgers", "lpi_accounts", "lpi_peers", "lpi_transfers", "lpi_to_send", "lpi_to_deliver"),
)
ALL: Final = "SELECT * FROM {}"
ANY: Final = "SELECT 1 FROM {} LIMIT 1"
COPY: Final = "COPY {} ({}) FROM STDIN"

# The columns and the rows of each table.
Rows: TypeAlias = dict[str, tuple[list[str], list[tuple[Any, ...]]]]


async def copy_store(source: WorkerStore[Any], target: WorkerStore[Any]) -> int:
    """Copy every row of a store into an empty one, in one transaction, and return the number of rows.

    Args:
        source: An open SQLite store whose tables have the newest version.
        target: An open PostgreSQL store, likewise.

    Raises:
        StoreError: The target has rows; nothing was copied.

    Cancellation: Nothing is copied, unless the commit has begun.
    """
    rows, last = await source.transaction(_read)
    return await target.transaction(partial(_write, rows, last))


def _read(connection: Connection) -> tuple[Rows, int]:
    found = {}
    for table in TABLES:
        cursor = connection.execute(ALL.format(table))
        found[table] = [column[0] for column in cursor.description], cursor.fetchall()
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'lpi_transfers'").fetchone()
    return found, 0 if row is None else row[0]


def _write(rows: Rows, last: int, connection: Any) -> int:  # noqa: ANN401 (of psycopg)
    total = 0
    for table, (columns, values) in rows.items():
        if connection.execute(ANY.format(table)).fetchone() is not None:
            raise StoreError(f"the target is not empty: it has rows in {table}; nothing was copied")
        with connection.cursor() as cursor, cursor.copy(COPY.format(table, ", ".join(columns))) as copy:
            for row in values:
                copy.write_row(row)
        total += len(values)
    # Numbers that were used stay used, also those of transfers that are forgotten.
    connection.execute("SELECT setval(pg_get_serial_sequence('lpi_transfers', 'id'), %s)", (max(1, last),))
    return total
