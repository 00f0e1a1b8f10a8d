"""Settings and fixtures of all tests."""

import itertools
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from support.journals import Book
from support.ledgers import HeldStore
from support.old_store import make_old_store
from support.postgres import REQUIRING, Server, UnavailableError, open_server
from trio.testing import MockClock

from trio_ledger_plugin.stores import open_postgres_store, open_sqlite_store


def pytest_configure() -> None:
    """Let SIGINT interrupt programs that tests start; a shell ignores it for commands in the background."""
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGQUIT", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name functions and packets so that a test has the same name in each run and in each process."""
    if isinstance(val, bytes) and len(val) > 32:
        return f"{len(val)} bytes"
    name: str | None = getattr(val, "__qualname__", None) if callable(val) and not isinstance(val, type) else None
    return name and name.replace(".<locals>.", ".")


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps when nothing has happened for a while; sockets on this machine are faster."""
    return MockClock(autojump_threshold=0.03)


@pytest.fixture(scope="session")
def old_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store of eight days with a history of another account; a test copies it."""
    path = tmp_path_factory.mktemp("old") / "money.db"
    trio.run(partial(make_old_store, path, 20_000, account="another"))
    return path


SLOW = pytest.mark.slow
_schemas = itertools.count(1)


@pytest.fixture(params=["new", pytest.param("old", marks=SLOW), pytest.param("postgres", marks=SLOW)])
def store_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """The path of a store for money: a new one, and one with a history; and a new one in PostgreSQL."""
    path = tmp_path / "money.db"
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_server").dsn())
    if request.param == "old":
        shutil.copy(request.getfixturevalue("old_store"), path)
    return path


@pytest.fixture
async def store(store_path: Path | str) -> AsyncIterator[HeldStore]:
    """A store for money that a test can delay and make fail."""
    if isinstance(store_path, str):
        # A schema of its own: making a database takes longer than most tests.
        schema = f"test{next(_schemas)}"
        async with open_postgres_store(store_path, replication="none", schema=schema) as database:
            yield HeldStore(database)
    else:
        async with open_sqlite_store(store_path) as inner:
            yield HeldStore(inner)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """A PostgreSQL server without replication."""
    try:
        with open_server() as server:
            yield server
    except UnavailableError as error:
        if asked := [name for name in REQUIRING if os.environ.get(name)]:
            pytest.fail(f"{error} (required, since {asked[0]} is set)", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def postgres_dsn(postgres_server: Server) -> str:
    """The connection string of an empty database."""
    return postgres_server.new_database()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=SLOW)])
def book(request: pytest.FixtureRequest) -> Iterator[Book]:
    """An open journal in memory, and one in PostgreSQL."""
    book = Book(None if request.param == "sqlite" else request.getfixturevalue("postgres_server").dsn())
    yield book
    book.connection.close()
