"""A store in an SQLite file, for Trio: when a call returns, its changes are on the disk.

Invariants: only the store's thread uses the file, and only Trio's thread wakes callers. A job goes to the store's
thread through a queue and is claimed exactly once: by that thread when it begins the job, or by the caller when it
gives up. The thread takes all waiting jobs at once, so that they share one commit, and returns their results together.
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
from .memory import check_key, check_text
from .sqlite_file import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Sequence

__all__ = ["SqliteStore", "open_sqlite_store"]

T = TypeVar("T")

# Seconds that a block waits for the thread when it is cancelled or left by an exception.
CLOSING = 5.0
# How long a cancelled call whose work has begun waits for the disk.
GRACE_SECONDS = 0.2
# How many works may share a commit. It limits how much is run again when one of them has to be undone.
MOST_AT_ONCE = 256

GET = "SELECT value FROM lpi_values WHERE key = ?"
PUT = "INSERT INTO lpi_values VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
DELETE = "DELETE FROM lpi_values WHERE key = ?"

# How often this process is a fork of the one that imported this module: a comparison costs less than a system call.
_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 (a fork concerns the whole process)
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


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
        """Claim the job, to run it or to withdraw it; return False if it has been claimed already."""
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
        """Give the caller its result, if it is still waiting."""
        if self.task is None:
            self._result = result
        self.wake(result)


class SqliteStore:
    """A ``TransactionalStore`` in an SQLite file; ``open_sqlite_store()`` returns it.

    Cancellation: A cancelled call whose work has not begun changes nothing. One whose work has begun finishes it and
    returns, unless the disk takes longer than 0.2 s.
    Concurrency: Any number of tasks of the Trio run that opened the store may use it at once. Calls that wait at the
    same time share one commit, so many tasks together are much faster than one.

    Every method raises ``StoreError`` if the file could not be written or read, or the store is closed; nothing has
    changed. If the file or its log was deleted, renamed or replaced, every call raises it until the store is opened
    again. Every method raises ``StoreInDoubtError`` if the file failed in a commit and in the write after it, or was
    deleted, renamed or replaced during the commit: the change may count or not. Every method raises ``RuntimeError`` if
    the store was opened in another Trio run, or by the process from which this one was forked.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._ended = trio.Event()
        self._forks = _forks
        self._closed = False
        # A daemon thread: a disk that hangs must not keep the program from exiting.
        self._thread = threading.Thread(target=self._serve, name=f"store {os.path.basename(path)}", daemon=True)

    async def put(self, key: str, value: str) -> None:
        """Store a value under a key, replacing an earlier one; it is on the disk when the call returns.

        Raises:
            TypeError: ``key`` or ``value`` is not a str.
            InvalidFieldsError: One of them is text that UTF-8 cannot encode, or ``key`` has a NUL character.
            StoreError: See the class.

        Cancellation: See the class.
        """
        check_key(key)
        check_text("value", value)
        await self.transaction(lambda connection: _run(connection, PUT, key, value))

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None if there is none. A returned value is on the disk.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot encode, or has a NUL character.
            StoreError: See the class.

        Cancellation: See the class.
        """
        check_key(key)
        return await self.transaction(lambda connection: _value(connection, key))

    async def delete(self, key: str) -> None:
        """Remove a key and its value; a missing key is not an error. The removal is on the disk when the call returns.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot encode, or has a NUL character.
            StoreError: See the class.

        Cancellation: See the class.
        """
        check_key(key)
        await self.transaction(lambda connection: _run(connection, DELETE, key))

    async def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work(connection)`` inside a transaction and return its result once the changes are safely on the disk.

        Args:
            work: A plain function, called in the store's own thread, one call at a time. It must change nothing but the
                database, because it may run again after its changes were undone. It must not begin, commit or roll
                back (savepoints are allowed), and must not keep a cursor. If it raises an exception, its changes are
                undone and this method raises that exception. Foreign keys are enforced. The SQL function
                ``lpi_add(a, b)`` adds whole numbers that are text, exactly.

        Raises:
            StoreError: The store failed or is closed; nothing has changed.
            StoreInDoubtError: The store failed during the commit; it is not known whether the changes count.
            RuntimeError: ``work`` tried to begin, commit or roll back, to attach a database, to set a PRAGMA, to close
                the connection, or to continue after SQLite rolled back by itself; or see the class. Nothing has
                changed.
            TypeError: ``work`` is an async function.

        Cancellation: ``work`` does not run if it has not begun. Once begun, it commits anyway, and the call returns its
            result; only if the disk takes longer than 0.2 s, the call raises ``trio.Cancelled`` and the result is lost.
        Concurrency: Any number of tasks may call this at once. Works run in the order of the calls, and calls that
            wait at the same time share a commit. A slow one delays all others.
        """
        self._check_caller()
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
            # The work has begun: its result is known soon, unless the disk hangs.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GRACE_SECONDS):
                late: T = await job.wait()
                return late  # noqa: ASYNC104 (the cancellation is met at the next checkpoint; the work is done)
            raise
        return result

    def _check_caller(self) -> None:
        """Check that the store is used where it was opened.

        Raises:
            RuntimeError: This is another process or another Trio run.
        """
        if self._forks != _forks:
            raise RuntimeError(f"{self._path}: the store was opened by the process that forked this one")
        if trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError(
                f"{self._path}: the store was opened in another Trio run; use it there, or through "
                "trio.from_thread.run() with that run's token"
            )

    async def _aclose(self) -> None:
        """Finish all queued jobs, close the file and end the thread."""
        if self._forks != _forks:
            # The thread is in the parent only.
            return
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await self._ended.wait()
        self._thread.join()

    def _serve(self) -> None:
        """Run jobs until the store is closed; the body of the store's thread."""
        database = Database(self._path)
        # The Trio run may have ended without closing the store; then no caller is waiting.
        with suppress(trio.RunFinishedError):
            try:
                while self._serve_batch(database):
                    pass
            finally:
                database.close()
                self._token.run_sync_soon(self._ended.set)

    def _serve_batch(self, database: Database) -> bool:
        """Wait for jobs, run all that are queued together, and return whether more may come."""
        waiting = [self._jobs.get()]
        with suppress(Empty):
            while len(waiting) < MOST_AT_ONCE and waiting[-1] is not None:
                waiting.append(self._jobs.get_nowait())
        jobs = [job for job in waiting if job is not None and job.claim()]
        if jobs:
            done = outcome.capture(database.run, [job.work for job in jobs])
            if isinstance(done, outcome.Error):
                # A bug in this package, but its callers must not wait for ever.
                results: Sequence[outcome.Outcome[Any]] = [_unexpected(done.error) for _ in jobs]
            else:
                results = done.value
            self._token.run_sync_soon(_deliver, jobs, results)
        return waiting[-1] is not None


@asynccontextmanager
async def open_sqlite_store(path: str | os.PathLike[str]) -> AsyncIterator[SqliteStore]:
    """Open a store in a file, which is created if it does not exist, for the duration of a block.

    While the store is open, ``<path>-wal`` and ``<path>-shm`` exist next to it. ``<path>.lock`` also stays afterwards.
    New files can be read and written by their owner only. A process that was forked cannot use the store.

    Args:
        path: The file, on a local disk. Only one program may have it open at a time.

    Yields:
        The store. It is usable within the block.

    Raises:
        StoreError: The file is in use by another program, is damaged, was made by a newer version of this package, is
            not the one that was last open under this name, has a second hard link, or cannot be opened or written; the
            text says what to do.
        InvalidFieldsError: ``":memory:"`` or an empty path, for which SQLite keeps nothing; use a ``MemoryStore``.
        TypeError: ``path`` is not a path.

    Cancellation: The block ends once all requested changes are on the disk. If it is cancelled or left by an
        exception, it waits for that for at most 5 s.
    """
    store = SqliteStore(_checked(path))
    store._thread.start()
    try:
        # The first job makes the thread open the file, so that errors are raised here.
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
        raise InvalidFieldsError(f"path: {name!r} is not a file, and its data would be lost; use MemoryStore for that")
    # Resolved, so that every name of the file leads to the same lock, and a later chdir() changes nothing.
    return os.path.realpath(name)


def _deliver(jobs: Sequence[_Job], results: Sequence[outcome.Outcome[Any]]) -> None:
    for job, result in zip(jobs, results, strict=True):
        job.deliver(result)


def _unexpected(error: BaseException) -> outcome.Error:
    in_doubt = StoreInDoubtError(f"the store failed with an unexpected error: {error!r}")
    in_doubt.__cause__ = error
    return outcome.Error(in_doubt)


def _run(connection: sqlite3.Connection, statement: str, *values: str) -> None:
    connection.execute(statement, values)


def _value(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute(GET, (key,)).fetchone()
    return None if row is None else row[0]
