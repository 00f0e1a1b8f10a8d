"""A store in PostgreSQL, for Trio: when a call returns, its changes are committed, at the standby as well."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..errors import InvalidFieldsError
from ..secret import Secret
from .memory import check_text
from .worker import WorkerStore, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .dialect import Dialect
    from .postgres_database import Database, StoreConnection

__all__ = ["PostgresStore", "import_dialect", "is_dsn", "open_postgres_store", "read_dsn"]

REPLICATION: Final = ("checked", "trusted", "none")
EXTRA: Final = "open_postgres_store() needs psycopg, which is an extra; in a clone: pip install '.[postgres]'"
# An index of PostgreSQL takes 2,704 bytes.
MAX_KEY_BYTES: Final = 2000
MAX_CONNECTIONS: Final = 64
# Where the caller's DSN says nothing else: a lost network is noticed, and a server that only reads is passed over.
DEFAULTS: Final = {
    "application_name": "trio_ledger_plugin",
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",
}


class PostgresStore(WorkerStore["StoreConnection"]):
    """A ``TransactionalStore`` in PostgreSQL; ``open_postgres_store()`` returns it.

    Cancellation: A cancelled call whose work has not begun changes nothing. One whose work has begun finishes it and
    returns, unless the server takes longer than 0.2 s.
    Concurrency: Any number of tasks of the Trio run that opened the store may use it at once. Calls that wait at the
    same time share one commit, so many tasks together are much faster than one.

    Every method raises ``StoreError`` if the server cannot be reached or has failed, or the store is closed; nothing
    has changed, and the next call connects again. Every method raises ``StoreInDoubtError`` if the connection was lost
    during the commit and it cannot be found out whether the change counts. Every method raises ``RuntimeError`` if the
    store was opened in another Trio run, or by the process from which this one was forked.
    """

    def _check_key(self, key: str) -> None:
        super()._check_key(key)
        if len(key.encode()) > MAX_KEY_BYTES:
            raise InvalidFieldsError(f"a store's key has {len(key.encode())} bytes, must be {MAX_KEY_BYTES} at most")

    def _check_value(self, value: str) -> None:
        super()._check_value(value)
        if "\0" in value:
            raise InvalidFieldsError("a store's value has a NUL character, which PostgreSQL cannot hold")


@asynccontextmanager
async def open_postgres_store(
    dsn: str | Secret, *, connections: int = 1, schema: str = "lpi", replication: str = "checked"
) -> AsyncIterator[PostgresStore]:
    """Open a store in a PostgreSQL database for the duration of a block; needs the extra ``postgres``.

    Several programs may have the same database open. A plugin claims its ledger in the database, so that only one
    program at a time sends and receives the ledger's money; with the option ``standby`` others wait to take over.

    Args:
        dsn: A URL or a connection string of libpq. Several hosts may be given, and the one is used that can be written
            to. No log, repr or error shows it.
        connections: How many connections the store uses, each in a thread of its own.
        schema: The schema for the tables; it is created if it does not exist.
        replication: ``"checked"``: a server without a synchronous standby is refused. ``"trusted"``: the storage
            replicates. ``"none"``: what is committed may be lost with the server.

    Yields:
        The store. It is usable within the block.

    Raises:
        ModuleNotFoundError: The extra is not installed.
        StoreError: The server cannot be reached or used, has no synchronous standby, or its tables were made by a newer
            version of this package; the text says what to do.
        InvalidFieldsError: An argument is out of its range, or ``dsn`` cannot be read.
        TypeError: An argument has another type.

    Cancellation: The block ends once all requested changes are committed. If it is cancelled or left by an exception,
        it waits for that for at most 5 s.
    """
    _check(connections, schema, replication)
    dialect = import_dialect()
    secret = Secret(read_dsn(dsn.reveal() if isinstance(dsn, Secret) else dsn))
    name = f"PostgreSQL (schema {schema})"
    make = partial(_open_database, name, partial(_connect, secret), schema, replicated=replication == "checked")
    async with opened(PostgresStore(name, dialect, [make] * connections)) as store:
        yield store


def import_dialect() -> Dialect:
    """Return the dialect of PostgreSQL.

    Raises:
        ModuleNotFoundError: The extra is not installed.
    """
    try:
        from .postgres_dialect import POSTGRES  # noqa: PLC0415 (psycopg is an extra)
    except ImportError as error:
        raise ModuleNotFoundError(EXTRA, name=getattr(error, "name", None)) from error
    return POSTGRES


def is_dsn(text: str) -> bool:
    """Whether text names a PostgreSQL database and not a file."""
    return text.startswith(("postgresql://", "postgres://"))


def _check(connections: object, schema: object, replication: object) -> None:
    if not isinstance(connections, int) or isinstance(connections, bool):
        raise TypeError(f"connections is a number (int), not {type(connections).__name__}")
    if not 1 <= connections <= MAX_CONNECTIONS:
        raise InvalidFieldsError(f"connections: got {connections}, must be 1 to {MAX_CONNECTIONS}")
    check_text("schema", schema)
    if not schema or "\0" in str(schema):
        raise InvalidFieldsError("schema: must be the name of a schema, not empty")
    if replication not in REPLICATION:
        raise InvalidFieldsError(f"replication: got {replication!r}, must be 'checked', 'trusted' or 'none'")


def read_dsn(dsn: object) -> str:
    """Return a connection string with the defaults of this package.

    Raises:
        TypeError: ``dsn`` is not text.
        InvalidFieldsError: It cannot be read. The error does not repeat it: a part of it is the password.
    """
    from psycopg import Error  # noqa: PLC0415 (an extra)
    from psycopg.conninfo import conninfo_to_dict, make_conninfo  # noqa: PLC0415

    if not isinstance(dsn, str):
        raise TypeError(f"dsn is text (str) or a Secret, not {type(dsn).__name__}")
    known: dict[str, Any] | None = None
    with suppress(Error):
        known = conninfo_to_dict(dsn)
    # Raised here: the error above contains parts of the text.
    if known is None or "@" in str(known.get("host") or ""):
        raise InvalidFieldsError(
            "dsn: cannot be read; it is like postgresql://user:password@host/database, with %40 for an @ in the"
            " password, or like 'host=... dbname=... user=...'"
        )
    merged: dict[str, Any] = {**DEFAULTS, **known}
    return make_conninfo(**merged)


def _connect(secret: Secret, connection_class: type[StoreConnection]) -> StoreConnection:
    # This package prepares its own statements; psycopg would deallocate them with its own after a rollback.
    return connection_class.connect(secret.reveal(), autocommit=True, prepare_threshold=None)


def _open_database(
    name: str,
    connect: Callable[[type[StoreConnection]], StoreConnection],
    schema: str,
    *,
    replicated: bool,
) -> Database:
    from .postgres_database import Database  # noqa: PLC0415 (needs psycopg)

    return Database(name, connect, schema, replicated=replicated)
