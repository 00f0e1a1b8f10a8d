"""Reads a store in PostgreSQL from another program, without writing anything."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg

from ..errors import StoreError
from .postgres_database import StoreConnection, quoted
from .postgres_dialect import POSTGRES, VALUES
from .schema import check_version

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .schema import Steps

__all__ = ["open_postgres_reader"]


@contextmanager
def open_postgres_reader(conninfo: str, schema: str, components: Mapping[str, Steps]) -> Iterator[StoreConnection]:
    """Open a store for reading for the duration of a block; each statement sees a snapshot of its own.

    Args:
        conninfo: The connection string.
        schema: The schema of the store's tables.
        components: The tables that are read besides the store's own values, with the steps that this program knows.

    Yields:
        A connection that cannot write.

    Raises:
        StoreError: The server cannot be reached, or another version of this package made the tables.
    """
    name = f"PostgreSQL (schema {schema})"
    try:
        with StoreConnection.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
            connection.execute("SELECT set_config('default_transaction_read_only', 'on', false)")
            path = f"{quoted(schema)}, public"
            connection.execute("SELECT set_config('search_path', %s, false)", (path,))
            for component, steps in ({"values": VALUES} | dict(components)).items():
                check_version(connection, component, steps, reading=True, dialect=POSTGRES)
            yield connection
    except psycopg.OperationalError as error:
        raise StoreError(f"{name}: {' '.join(str(error).split())}") from error
