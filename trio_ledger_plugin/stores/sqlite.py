"""A store in an SQLite file, for Trio: what it says is stored has reached the disk.

The law of this module: one thread has the file, and Trio's side has the callers. A job goes to the thread through a
queue, and belongs to whoever claims it first: the thread that begins it, or the caller who gives it up. The thread
takes all that wait at once, so that they share one commit, and hands their results back in one go.
"""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import outcome
import trio

from ..errors import InvalidFieldsError, StoreError, StoreInDoubtError
from ..parking import Waiter, park
from .memory import check_text
from .sqlite_file import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence

__all__ = ["SqliteStore", "open_sqlite_store"]

T = TypeVar("T")

# Seconds that a block which did not end as planned waits for the thread.
CLOSING = 5.0
# How long a call that is cancelled in the middle waits for the disk.
GRACE_SECONDS = 0.2
# Works that share a commit; it bounds what is run again when one of them has to be undone.
MOST_AT_ONCE = 256

GET = "SELECT value FROM lpi_values WHERE key = ?"
PUT = "INSERT INTO lpi_values VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
DELETE = "DELETE FROM lpi_values WHERE key = ?"


class _Job(Waiter):
    """One caller's work."""

    __slots__ = ("_claimed", "_result", "withdrawn", "work")

    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        super().__init__()
        self.work: Callable[[sqlite3.Connection], Any] = work
        self._claimed = threading.Lock()
        self._result: outcome.Outcome[Any] | None = None
        self.withdrawn: bool = False

    def claim(self) -> bool:
        """Take the job, to run it or to give it up; return False to all but the first."""
        return self._claimed.acquire(blocking=False)

    async def wait(self) -> Any:  # noqa: ANN401 (what the work returns)
        """Wait for the result.

        Cancellation: Withdraws the job, unless the thread has begun it.
        """
        return await park(self) if self._result is None else self._result.unwrap()

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self.withdrawn = self.claim()
        return super().abandon(raise_cancel)

    def deliver(self, result: outcome.Outcome[Any]) -> None:
        """Give the caller its result, if it still waits."""
        if self.task is None:
            self._result = result
        self.wake(result)


class SqliteStore:
    """Text under keys, and transactions, in an SQLite file; made by ``open_sqlite_store()`` (a ``TransactionalStore``).

    Cancellation: A cancelled call that has not begun changes nothing; one that has begun is finished first, and
    returns, unless the disk takes longer than 0.2 s.
    Concurrency: Any number of tasks may use it at once, of the Trio run that opened it. What waits at the same time
    shares one commit, so that many tasks together are much faster than one.

    Every method raises:
        StoreError: The file could not be written or read, or the store is closed; nothing has changed.
        StoreInDoubtError: The file failed in a commit, and again right after: the change may count or not.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._closed = False
        # A daemon: a disk that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._serve, name=f"store {os.path.basename(path)}", daemon=True)

    async def put(self, key: str, value: str) -> None:
        """Store a value under a key, replacing what was there; it is on the disk on return.

        Raises:
            TypeError: ``key`` or ``value`` is not a str.
            InvalidFieldsError: One of them is text that UTF-8 cannot hold.
            StoreError: See the class.

        Cancellation: See the class.
        """
        check_text("key", key)
        check_text("value", value)
        await self.transaction(lambda connection: _run(connection, PUT, key, value))

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None when there is none. What it returns is on the disk.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot hold.
            StoreError: See the class.

        Cancellation: See the class.
        """
        check_text("key", key)
        return await self.transaction(lambda connection: _value(connection, key))

    async def delete(self, key: str) -> None:
        """Remove a key; a missing one is no error. It is gone from the disk on return.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot hold.
            StoreError: See the class.

        Cancellation: See the class.
        """
        check_text("key", key)
        await self.transaction(lambda connection: _run(connection, DELETE, key))

    async def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work(connection)`` inside a transaction and return its result once that is safely on the disk.

        Args:
            work: A plain function, called in the store's own thread, one at a time. It changes nothing but the
                database, for it may be run again; what it did before is undone then. It does not begin, commit or roll
                back (savepoints are allowed), and keeps no cursor. An exception that it raises undoes what it did,
                and is raised here. Foreign keys are enforced. ``lpi_add(a, b)`` adds whole numbers written as text,
                exactly.

        Raises:
            StoreError: The store failed or is closed; nothing has changed.
            StoreInDoubtError: The store failed during the commit, and cannot tell whether it counts.
            RuntimeError: ``work`` tried to begin, commit or roll back, to attach a database, to set a PRAGMA, to close
                the connection, or to go on after SQLite rolled back by itself; nothing has changed.
            TypeError: ``work`` is an async function.

        Cancellation: ``work`` is not run if it has not begun. Once begun it commits all the same, and the call returns
            its result; only when the disk takes longer than 0.2 s for it, the caller is let go without one.
        Concurrency: Any number of tasks may call this at once; works run in the order of the calls, and those that
            wait together are committed together. A long one keeps all others waiting.
        """
        if self._closed:
            raise StoreError(f"{self._path}: the store is closed")
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(work)
        self._jobs.put(job)
        try:
            result: T = await job.wait()
        except trio.Cancelled:
            if job.withdrawn:
                raise
            # It has begun: how it ends is known soon, unless the disk hangs.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GRACE_SECONDS):
                late: T = await job.wait()
                return late  # noqa: ASYNC104 (the cancellation is met at the next checkpoint; the work is done)
            raise
        return result

    async def _aclose(self) -> None:
        """Finish what was asked for, close the file and end the thread."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await self._ended.wait()
        self._thread.join()

    def _serve(self) -> None:
        """Do the jobs until there are no more to come; this is what the thread runs."""
        database = Database(self._path)
        # Trio's run is over when the host was torn down around the store; then nobody waits.
        with suppress(trio.RunFinishedError):
            try:
                while self._serve_batch(database):
                    pass
            finally:
                database.close()
                self._token.run_sync_soon(self._ended.set)

    def _serve_batch(self, database: Database) -> bool:
        """Wait for jobs and do those that are there, together; return whether more may come."""
        waiting = [self._jobs.get()]
        with suppress(Empty):
            while len(waiting) < MOST_AT_ONCE and waiting[-1] is not None:
                waiting.append(self._jobs.get_nowait())
        jobs = [job for job in waiting if job is not None and job.claim()]
        if jobs:
            done = outcome.capture(database.run, [job.work for job in jobs])
            if isinstance(done, outcome.Error):
                # Nothing should come here; whatever it is, nobody is left waiting.
                results: Sequence[outcome.Outcome[Any]] = [_unexpected(done.error) for _ in jobs]
            else:
                results = done.value
            self._token.run_sync_soon(_deliver, jobs, results)
        return waiting[-1] is not None


@asynccontextmanager
async def open_sqlite_store(path: str | os.PathLike[str]) -> AsyncIterator[SqliteStore]:
    """Open a store in a file, which is made when it is not there, for the length of a block.

    Beside the file are ``<path>-wal`` and ``<path>-shm`` while it is open, and ``<path>.lock``, which stays.

    Args:
        path: The file, on a local disk. One program may have it open at a time.

    Yields:
        The store. It is usable within the block.

    Raises:
        StoreError: The file is in use by another program, is damaged, was made by a newer version of this package, or
            cannot be opened or written; the text says what to do.
        InvalidFieldsError: ``":memory:"`` or an empty path: what is to be forgotten goes into a ``MemoryStore``.
        TypeError: ``path`` is no path.

    Cancellation: The block ends once all that was asked for is on the disk; when it is cancelled or left by an
        exception, it waits for that for at most 5 s.
    """
    store = SqliteStore(_checked(path))
    store._thread.start()
    try:
        # The thread opens the file when something is first asked of it.
        await store.transaction(lambda _connection: None)
        yield store
        await store._aclose()
    finally:
        with trio.move_on_after(CLOSING, shield=True):
            await store._aclose()


def _checked(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"a store's path is text (str), not {type(name).__name__}")
    if name in ("", ":memory:"):
        raise InvalidFieldsError(f"path: {name!r} names no file, and would be forgotten; use MemoryStore for that")
    # So that the lock is the same by whatever name, and the file stays the same when the directory is changed.
    return os.path.realpath(name)


def _deliver(jobs: Sequence[_Job], results: Sequence[outcome.Outcome[Any]]) -> None:
    for job, result in zip(jobs, results, strict=True):
        job.deliver(result)


def _unexpected(error: BaseException) -> outcome.Error:
    in_doubt = StoreInDoubtError(f"the store met an error that it did not expect: {error!r}")
    in_doubt.__cause__ = error
    return outcome.Error(in_doubt)


def _run(connection: sqlite3.Connection, statement: str, *values: str) -> None:
    connection.execute(statement, values)


def _value(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute(GET, (key,)).fetchone()
    return None if row is None else row[0]
