"""Stores as commands name them: the path of a file, or the URL of a PostgreSQL database."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from ..errors import LedgerPluginError, StoreError
from ..money.tables import COMPONENT, steps_of
from ..stores import open_postgres_store, open_sqlite_store
from ..stores.dialect import SQLITE
from ..stores.postgres import import_dialect, is_dsn, read_dsn
from ..stores.reader import open_reader
from .errors import one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ..stores import PostgresStore, SqliteStore
    from ..stores.dialect import Connection, Dialect

__all__ = ["StoreChoice", "StoreName", "dialect_for", "open_any_reader", "open_any_store"]

SCHEMA = "lpi"
# How errors name the option in Python.
REPLICATION = re.compile(r"replication='(\w+)'")


class StoreName(click.Path):
    """The path of a file, or a URL that begins with ``postgresql://``."""

    name = "path|dsn"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 (as click has it)
        """Return the path or the URL. A URL of another kind is not taken for a path."""
        if isinstance(value, str):
            if is_dsn(value):
                return value
            if not value or re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", value):
                self.fail("a store is a file, or a URL that begins with postgresql://", param, ctx)
        return super().convert(value, param, ctx)


@frozen
class StoreChoice:
    """A store, as a command's options describe it.

    Attributes:
        name: The path of a file or the URL of a database.
        replication: How the database replicates.
    """

    name: str
    replication: str = "trusted"


def dialect_for(name: str) -> Dialect:
    """Return the dialect of a store.

    Raises:
        click.ClickException: PostgreSQL needs an extra that is not installed.
    """
    if not is_dsn(name):
        return SQLITE
    try:
        return import_dialect()
    except ModuleNotFoundError as error:
        raise click.ClickException(str(error)) from error


@asynccontextmanager
async def open_any_store(choice: StoreChoice) -> AsyncIterator[SqliteStore | PostgresStore]:
    """Open a store.

    Raises:
        StoreError: The file cannot be opened.
        click.ClickException: The database cannot be opened, or PostgreSQL needs an extra that is not installed.
    """
    if dialect_for(choice.name) is SQLITE:
        async with open_sqlite_store(choice.name) as file:
            yield file
    else:
        opening = open_postgres_store(choice.name, replication=choice.replication)
        async with AsyncExitStack() as stack:
            try:
                database = await stack.enter_async_context(opening)
            except StoreError as error:
                raise click.ClickException(REPLICATION.sub(r"--replication \1", one_line(error))) from error
            yield database


@contextmanager
def open_any_reader(name: str) -> Iterator[Connection]:
    """Open a store for reading, with its journal.

    Raises:
        StoreError: It cannot be read.
        click.ClickException: PostgreSQL needs an extra that is not installed.
    """
    dialect = dialect_for(name)
    if dialect is SQLITE:
        with open_reader(name, {COMPONENT: steps_of(dialect)}) as connection:
            yield connection
        return
    from ..stores.postgres_reader import open_postgres_reader  # noqa: PLC0415 (psycopg is an extra)

    try:
        conninfo = read_dsn(name)
    except LedgerPluginError as error:
        raise click.UsageError(str(error)) from error
    with open_postgres_reader(conninfo, SCHEMA, {COMPONENT: steps_of(dialect)}) as database:
        yield database
