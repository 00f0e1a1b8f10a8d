"""How PostgreSQL differs from other databases: types, errors, and how a process claims a ledger."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus

from .dialect import Claims, Connection, Dialect
from .postgres_prepared import Prepared

__all__ = ["POSTGRES", "VALUES", "PostgresClaims", "is_storage_error"]

# Classes of SQLSTATE that are about the server or the connection, not about the statement: connection, resources,
# operator intervention, system error, internal error; and insufficient resources of one transaction: deadlock, failed
# serialization, a lock that another holds, a transaction that was idle for too long, a server that only reads.
CLASSES: Final = frozenset({"08", "53", "57", "58", "XX", "40"})
STATES: Final = frozenset({"55P03", "25P03", "25006", "25P04"})
# Errors of a statement whose transaction may succeed if it runs again, alone.
TRY_AGAIN: Final = frozenset({"40001", "40P01", "55P03"})

TEXT: Final = re.compile(r"\bTEXT\b")
# Compared byte by byte, as SQLite does: an index stays right when the system's rules for sorting change.
COLLATED: Final = 'TEXT COLLATE "C"'

# lpi_values: text under keys. lpi_batches: for each connection, the number of its last transaction; a transaction is
# committed if and only if its number is there (postgres_database.py). lpi_owners: the owner and the epoch of each
# ledger. lpi_beats: what the owner changes to show that it is alive, in a table of its own, so that this does not wait
# for those who hold a lock on the epoch.
VALUES: Final = (
    (
        f"CREATE TABLE lpi_values (key {COLLATED} PRIMARY KEY, value {COLLATED} NOT NULL)",
        """CREATE TABLE lpi_batches (
            session TEXT PRIMARY KEY,
            batch BIGINT NOT NULL,
            seen TIMESTAMPTZ NOT NULL
        ) WITH (fillfactor = 50)""",
        f"CREATE TABLE lpi_owners (ledger {COLLATED} PRIMARY KEY, epoch BIGINT NOT NULL, owner TEXT NOT NULL)",
        f"CREATE TABLE lpi_beats (ledger {COLLATED} PRIMARY KEY, beat BIGINT NOT NULL) WITH (fillfactor = 50)",
        """CREATE FUNCTION lpi_add(TEXT, TEXT) RETURNS TEXT LANGUAGE SQL IMMUTABLE STRICT
            AS 'SELECT ($1::numeric + $2::numeric)::text'""",
    ),
)


def is_storage_error(error: BaseException) -> bool:
    """Return whether an error is about the server or the connection, not about the statement."""
    if not isinstance(error, psycopg.Error):
        return False
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state[:2] in CLASSES or state in STATES


def _is_broken(connection: Connection) -> bool:
    return bool(connection.info.transaction_status == TransactionStatus.INERROR)


# Each text once: a connection keeps every statement that it has prepared, and a store may see many plugins.
_prepared: Final = cache(Prepared)


class _PostgresDialect(Dialect):
    def statement(self, text: str) -> str:
        return _prepared(super().statement(text))

    def table(self, text: str) -> str:
        return TEXT.sub(COLLATED, super().table(text))


class PostgresClaims(Claims):
    """Claims ledgers in the tables ``lpi_owners`` and ``lpi_beats``; ``Claims`` documents the methods."""

    def find(self, connection: Connection, ledger: str) -> tuple[int, str, int]:
        """Return a ledger's epoch, its owner and its beat."""
        query = "SELECT epoch, owner, beat FROM lpi_owners JOIN lpi_beats USING (ledger) WHERE ledger = %s"
        row: tuple[int, str, int] | None = connection.execute(query, (ledger,)).fetchone()
        return row or (0, "", 0)

    def take(self, connection: Connection, ledger: str, owner: str, seen: tuple[int, str, int]) -> int | None:
        """Take a ledger that is as it was seen, and return its new epoch; None if it has changed."""
        enter = "INSERT INTO lpi_owners VALUES (%s, 0, '') ON CONFLICT DO NOTHING"
        connection.execute(enter, (ledger,))
        connection.execute("INSERT INTO lpi_beats VALUES (%s, 0) ON CONFLICT DO NOTHING", (ledger,))
        # Waits for transactions of the present owner, which hold a lock on the row.
        connection.execute("SELECT 1 FROM lpi_owners WHERE ledger = %s FOR UPDATE", (ledger,))
        found = self.find(connection, ledger)
        # A ledger that was released may be taken, whatever was seen.
        if found[1] and found != seen:
            return None
        change = "UPDATE lpi_owners SET epoch = epoch + 1, owner = %s WHERE ledger = %s RETURNING epoch"
        epoch: int = connection.execute(change, (owner, ledger)).fetchone()[0]
        self.beat(connection, ledger)
        return epoch

    def is_owner(self, connection: Any, ledger: str, epoch: int) -> bool:  # noqa: ANN401 (a connection of the store)
        """Whether this epoch is the present one; if so, it stays so until the transaction ends."""
        found: int | None = connection.epoch_of(ledger)
        return found == epoch

    def beat(self, connection: Connection, ledger: str) -> None:
        """Show that the owner is alive."""
        connection.execute("UPDATE lpi_beats SET beat = beat + 1 WHERE ledger = %s", (ledger,))

    def release(self, connection: Connection, ledger: str, epoch: int) -> None:
        """Give a ledger up; does nothing if the epoch has passed."""
        connection.execute("UPDATE lpi_owners SET owner = '' WHERE ledger = %s AND epoch = %s", (ledger, epoch))


POSTGRES: Final = _PostgresDialect(
    placeholder="%s",
    types={
        "id": "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
        "number": "BIGINT",
        "blob": "BYTEA",
        "real": "DOUBLE PRECISION",
        "keyed": "",
    },
    error=psycopg.Error,
    is_storage_error=is_storage_error,
    schema_exists="SELECT 1 WHERE to_regclass('lpi_schema') IS NOT NULL",
    joins=True,
    lock=" FOR UPDATE",
    is_broken=_is_broken,
    claims=PostgresClaims(),
)
