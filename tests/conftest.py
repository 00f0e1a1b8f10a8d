"""Settings and fixtures of all tests."""

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from support.journals import Book
from support.ledgers import HeldStore
from trio.testing import MockClock

from trio_ledger_plugin.stores import open_sqlite_store


def pytest_configure() -> None:
    """Let SIGINT interrupt programs that tests start; a shell ignores it for commands in the background."""
    for name, usual in (("SIGINT", signal.default_int_handler), ("SIGQUIT", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps when nothing has happened for a while; sockets on this machine are faster."""
    return MockClock(autojump_threshold=0.03)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[HeldStore]:
    """A store for money that a test can delay and make fail."""
    async with open_sqlite_store(tmp_path / "money.db") as inner:
        yield HeldStore(inner)


@pytest.fixture
def book() -> Iterator[Book]:
    """An open journal in memory."""
    book = Book()
    yield book
    book.connection.close()
