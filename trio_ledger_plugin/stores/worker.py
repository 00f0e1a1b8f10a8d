"""Stores whose database is used by threads of their own, for Trio: when a call returns, its changes are safe.

Invariants: only the store's threads use the database, and only Trio's thread wakes callers. A job goes to a thread
through a queue and is claimed exactly once: by a thread when it begins the job, or by the caller when it gives up. A
thread takes all waiting jobs at once, so that they share one commit, and returns their results together.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, closing, suppress
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import outcome
import trio

from ..errors import StoreError, StoreInDoubtError
from .interpreter import StoreJobs, current_pauses
from .job import Job
from .memory import check_key, check_text
from .values import Update, Values

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ..services import Changes, Read
    from .dialect import Dialect

__all__ = ["Database", "Result", "UndoneError", "WorkerStore", "opened", "with_cause"]

T = TypeVar("T")
ConnectionT = TypeVar("ConnectionT")
ErrorT = TypeVar("ErrorT", bound=BaseException)
StoreT = TypeVar("StoreT", bound="WorkerStore[Any]")

Result = outcome.Value[Any] | outcome.Error

# Seconds that a block waits for the threads when it is cancelled or left by an exception.
CLOSING = 5.0
# How long a cancelled call whose work has begun waits for its result.
GRACE_SECONDS = 0.2
# How many works may share a commit. It limits how much is run again when one of them has to be undone.
MOST_AT_ONCE = 256
# How often a work is tried in its own transaction before it is reported as failed.
TRIES = 2

# How often this process is a fork of the one that imported this module: a comparison costs less than a system call.
_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 (a fork concerns the whole process)
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


class UndoneError(Exception):
    """A transaction was undone completely; its works may run again, each in its own transaction.

    Attributes:
        error: The error to report if the work was already in its own transaction.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class Database(ABC):
    """A database as one thread uses it.

    Attributes:
        when_undone: What to call if the present transaction is undone. Its connection has the same list.
    """

    def __init__(self) -> None:
        self.when_undone: list[Callable[[], None]] = []

    def run(self, works: Sequence[Callable[[Any], Any]]) -> list[Result]:
        """Run works, in one transaction if possible, and return the result of each once all are committed."""
        try:
            return self._run_together(works)
        except UndoneError:
            return [self._run_alone(work) for work in works]
        except StoreError as error:
            # A separate error for each: raising an exception changes its traceback.
            return [outcome.Error(with_cause(type(error)(*error.args), error)) for _ in works]

    @abstractmethod
    def transaction(self, works: Sequence[Callable[[Any], Any]]) -> list[Result]:
        """Run works in one transaction.

        Raises:
            StoreError: It could not begin; nothing has changed.
            UndoneError: Nothing has changed, and each work should be tried again in its own transaction.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the database."""

    def _run_together(self, works: Sequence[Callable[[Any], Any]]) -> list[Result]:
        """Run works in one transaction; if it is undone, take back what is in memory about its changes."""
        undone = True
        try:
            results = self.transaction(works)
            undone = len(works) == 1 and _has_failed(results[0])
        finally:
            while self.when_undone:
                function = self.when_undone.pop()
                if undone:
                    function()
        return results

    def _run_alone(self, work: Callable[[Any], Any]) -> Result:
        for _ in range(TRIES):
            try:
                return self._run_together([work])[0]
            except UndoneError as undone:
                error: BaseException = undone.error
            except StoreError as refused:
                return outcome.Error(refused)
        return outcome.Error(error)


class WorkerStore(Generic[ConnectionT]):
    """A ``TransactionalStore`` whose database is used by one or several threads.

    Cancellation: A cancelled call whose work has not begun changes nothing. One whose work has begun finishes it and
    returns, unless that takes longer than 0.2 s.
    Concurrency: Any number of tasks of the Trio run that opened the store may use it at once. Calls that wait at the
    same time share one commit, so many tasks together are much faster than one.

    Every method raises ``StoreError`` if the store failed or is closed; nothing has changed. Every method raises
    ``StoreInDoubtError`` if the store cannot tell whether the change counts. Every method raises ``RuntimeError`` if
    the store was opened in another Trio run, or by the process from which this one was forked.

    Args:
        name: How errors name the store; it must not contain credentials.
        dialect: The database's dialect.
        databases: Each is called in a thread of its own, which uses the database that it returns.
    """

    def __init__(self, name: str, dialect: Dialect, databases: Sequence[Callable[[], Database]]) -> None:
        self._name = name
        self.dialect: Dialect = dialect
        self._values = Values(dialect)
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._token = trio.lowlevel.current_trio_token()
        self._given = StoreJobs(current_pauses())
        self._ended = trio.Event()
        self._forks = _forks
        self._closed = False
        # Jobs of which a thread has not finished the transaction although their callers have given up.
        self._late: set[Job] = set()
        self._late_changed = threading.Condition()
        # Daemon threads: a disk or a network that hangs must not keep the program from exiting.
        where = f"store {os.path.basename(name)}"
        self._threads = [
            threading.Thread(target=self._serve, args=(each,), name=where, daemon=True) for each in databases
        ]
        self._running = 0

    async def put(self, key: str, value: str) -> None:
        """Store a value under a key, replacing an earlier one; it is safely stored when the call returns.

        Raises:
            TypeError: ``key`` or ``value`` is not a str.
            InvalidFieldsError: One of them is text that UTF-8 cannot encode, or ``key`` has a NUL character.
            StoreError: See the class.

        Cancellation: See the class.
        """
        self._check_key(key)
        self._check_value(value)
        await self.transaction(lambda connection: self._values.put(connection, key, value))

    async def put_if_absent(self, key: str, value: str) -> str:
        """Store a value under a key that has none, and return the key's value, which another process may have stored.

        Raises:
            TypeError: ``key`` or ``value`` is not a str.
            InvalidFieldsError: One of them is text that UTF-8 cannot encode, or ``key`` has a NUL character.
            StoreError: See the class.

        Cancellation: See the class.
        """
        self._check_key(key)
        self._check_value(value)
        return await self.transaction(lambda connection: self._values.add(connection, key, value))

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None if there is none. A returned value is safely stored.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot encode, or has a NUL character.
            StoreError: See the class.

        Cancellation: See the class.
        """
        self._check_key(key)
        return await self.transaction(lambda connection: self._values.get(connection, key))

    async def delete(self, key: str) -> None:
        """Remove a key and its value; a missing key is not an error. It is safely removed when the call returns.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot encode, or has a NUL character.
            StoreError: See the class.

        Cancellation: See the class.
        """
        self._check_key(key)
        await self.transaction(lambda connection: self._values.delete(connection, key))

    async def update(self, decide: Callable[[Read], tuple[T, Changes]]) -> T:
        """Read values and change some of them, in one transaction; no other process changes these in between.

        Args:
            decide: Called with ``read(keys)``, which returns the values of up to three keys, with None for a key that
                has none. It returns a result, and a mapping of keys that it has read to their new values, with None to
                remove one. It may be called again, and must change nothing else.

        Returns:
            The result.

        Raises:
            StoreError: See the class.

        Cancellation: See the class.
        """
        return await self.transaction(Update(self._values, decide))

    def _check_key(self, key: str) -> None:
        check_key(key)

    def _check_value(self, value: str) -> None:
        check_text("value", value)

    async def transaction(self, work: Callable[[ConnectionT], T]) -> T:
        """Run ``work(connection)`` inside a transaction and return its result once the changes are safely stored.

        Args:
            work: A plain function, called in a thread of the store. It must change nothing but the database, because it
                may run again after its changes were undone. It must not begin, commit or roll back (savepoints are
                allowed), and must not keep a cursor. If it raises an exception, its changes are undone and this method
                raises that exception. The SQL function ``lpi_add(a, b)`` adds whole numbers that are text, exactly.

        Raises:
            StoreError: The store failed or is closed; nothing has changed.
            StoreInDoubtError: The store failed during the commit; it is not known whether the changes count.
            RuntimeError: ``work`` tried to begin, commit or roll back, to change the connection's settings or to close
                it, or to continue after its transaction was undone; or see the class. Nothing has changed.
            TypeError: ``work`` is an async function.

        Cancellation: ``work`` does not run if it has not begun. Once begun, it commits anyway, and the call returns its
            result; only if that takes longer than 0.2 s, the call raises ``trio.Cancelled`` and the result is lost.
        Concurrency: Any number of tasks may call this at once. With one thread, works run one at a time in the order
            of the calls, and a slow one delays all others. Calls that wait at the same time share a commit.
        """
        self._check_caller()
        if self._closed:
            raise StoreError(f"{self._name}: the store is closed")
        await trio.lowlevel.checkpoint_if_cancelled()
        job = Job(work)
        self._given.begin()
        self._jobs.put(job)
        try:
            result: T = await job.wait()
        except trio.Cancelled:
            if job.withdrawn:
                raise
            # The work has begun: its result is known soon, unless the database hangs.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GRACE_SECONDS):
                late: T = await job.wait()
                return late  # noqa: ASYNC104 (the cancellation is met at the next checkpoint; the work is done)
            self._give_up(job)
            raise
        return result

    def _give_up(self, job: Job) -> None:
        """Have later calls wait for a work that goes on without its caller: they may rely on what it has done."""
        with self._late_changed:
            if not job.over:
                self._late.add(job)

    def _check_caller(self) -> None:
        """Check that the store is used where it was opened.

        Raises:
            RuntimeError: This is another process or another Trio run.
        """
        if self._forks != _forks:
            raise RuntimeError(f"{self._name}: the store was opened by the process that forked this one")
        if trio.lowlevel.current_trio_token() is not self._token:
            raise RuntimeError(
                f"{self._name}: the store was opened in another Trio run; use it there, or through "
                "trio.from_thread.run() with that run's token"
            )

    def _start(self) -> None:
        for thread in self._threads:
            try:
                thread.start()
            except RuntimeError as error:
                raise StoreError(f"{self._name}: {error}") from error
            self._running += 1

    async def _aclose(self) -> None:
        """Finish all queued jobs, close the database and end the threads."""
        if self._forks != _forks:
            # The threads are in the parent only.
            return
        if not self._closed:
            self._closed = True
            for _ in range(self._running):
                self._jobs.put(None)
        if self._running:
            await self._ended.wait()
        for thread in filter(attrgetter("ident"), self._threads):
            thread.join()

    def _serve(self, open_database: Callable[[], Database]) -> None:
        """Run jobs until the store is closed; the body of a thread."""
        # The Trio run may have ended without closing the store; then no caller is waiting.
        with suppress(trio.RunFinishedError):
            try:
                with closing(open_database()) as database:
                    while self._serve_batch(database):
                        pass
            finally:
                self._token.run_sync_soon(self._thread_ended)

    def _deliver(self, given: int, jobs: Sequence[Job], results: Sequence[outcome.Outcome[Any]]) -> None:
        self._given.end(given)
        for job, result in zip(jobs, results, strict=True):
            job.deliver(result)

    def _thread_ended(self) -> None:
        self._running -= 1
        if self._running:
            return
        self._ended.set()
        # Unless the store was closed, every thread has ended with an error, which Python has printed.
        self._closed = True
        why = f"{self._name}: the store's threads have ended with an error"
        with suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None and job.claim():
                    job.deliver(outcome.Error(StoreError(why)))

    def _serve_batch(self, database: Database) -> bool:
        """Wait for jobs, run all that are queued together, and return whether more may come."""
        waiting = [self._jobs.get()]
        with suppress(Empty):
            while len(waiting) < MOST_AT_ONCE and waiting[-1] is not None:
                waiting.append(self._jobs.get_nowait())
        if waiting[0] is not None:
            # Before the jobs are claimed: a claimed job may be late itself when its caller gives up.
            with self._late_changed:
                self._late_changed.wait_for(lambda: not self._late)
        given = [job for job in waiting if job is not None]
        jobs = [job for job in given if job.claim()]
        results: Sequence[outcome.Outcome[Any]] = []
        if jobs:
            done = outcome.capture(database.run, [job.work for job in jobs])
            # An error of the whole is a bug in this package, but its callers must not wait for ever.
            results = [_unexpected(done.error) for _ in jobs] if isinstance(done, outcome.Error) else done.value
            with self._late_changed:
                for job in jobs:
                    job.over = True
                if self._late:
                    self._late.difference_update(jobs)
                    self._late_changed.notify_all()
        self._token.run_sync_soon(self._deliver, len(given), jobs, results)
        return waiting[-1] is not None


@asynccontextmanager
async def opened(store: StoreT) -> AsyncIterator[StoreT]:
    """Start the threads of a store, and close it at the end of the block.

    Raises:
        StoreError: The database cannot be opened.

    Cancellation: The block ends once all requested changes are stored. If it is cancelled or left by an exception, it
        waits for that for at most 5 s.
    """
    try:
        store._start()
        # The first job makes a thread open the database, so that errors are raised here.
        await store.transaction(lambda _connection: None)
        yield store
        await store._aclose()
    finally:
        with trio.move_on_after(CLOSING, shield=True):
            await store._aclose()
        store._given.leave()


def _has_failed(result: Result) -> bool:
    """Whether a work has certainly changed nothing."""
    return isinstance(result, outcome.Error) and not isinstance(result.error, StoreInDoubtError)


def _unexpected(error: BaseException) -> outcome.Error:
    return outcome.Error(with_cause(StoreInDoubtError(f"the store failed with an unexpected error: {error!r}"), error))


def with_cause(error: ErrorT, cause: BaseException) -> ErrorT:
    """Return an error, with its cause set."""
    error.__cause__ = cause
    return error
