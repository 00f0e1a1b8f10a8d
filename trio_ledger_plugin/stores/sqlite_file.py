"""One SQLite file, and transactions on it that share their commits; without Trio and without threads.

The law of this module: work that is said to be done is on the disk, work that is said to have failed is nowhere, and
what cannot be told is said to be in doubt. Many works share a transaction; as soon as one of them has to be undone,
all are, and each is run again in a transaction of its own.

A commit that fails with an I/O error is the hard case. Its pages may stand in the write-ahead log, where a recovery
after a crash would find them, although the connection does not count them. So another commit is made at once, which
overwrites them: then it is certain that the first does not count. When that fails as well, it is in doubt.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from inspect import iscoroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import outcome

from ..errors import StoreError, StoreInDoubtError
from .lock import hold_lock
from .schema import VALUES, add_functions, migrate
from .sqlite_errors import NOT_AUTHORIZED, is_storage_error, primary_code, told

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Work = Callable[[sqlite3.Connection], Any]
    Result = outcome.Value[Any] | outcome.Error

__all__ = ["Database", "read_sqlite"]

T = TypeVar("T")

BUSY_TIMEOUT = 1.0
# How often a work is committed alone before its caller is told that it failed.
TRIES = 2
SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA journal_size_limit = 67108864",
)
# The comment keeps it apart from what works execute: a statement in the cache is not put to the authorizer again.
BEGIN = "BEGIN IMMEDIATE -- by the store"
FORBIDDEN = frozenset((sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH))
READING_PRAGMAS = frozenset(
    ("table_info", "table_xinfo", "table_list", "index_info", "index_xinfo", "index_list", "foreign_key_list")
)
MISUSE = (
    "a transaction's work must not begin, commit or roll back, go on after SQLite rolled back, attach a database, set "
    "a PRAGMA or close the connection; savepoints are allowed"
)
# A commit that ends so has left nothing in the log that a recovery would count.
NOT_COMMITTED = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY))
# What SQLite raises; it may run out of memory anywhere.
TROUBLE = (sqlite3.Error, MemoryError)


class _UndoneError(Exception):
    """Nothing of a transaction counts; its works may be run again, each alone.

    Attributes:
        error: What to say where that has been done already.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(error)
        self.error = error


class _Connection(sqlite3.Connection):
    """A connection that knows while a work has it, and then lets no more be done than a work may do."""

    at_work = False
    blob_opened = False

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if not self.at_work:
            return sqlite3.SQLITE_OK
        setting = action == sqlite3.SQLITE_PRAGMA and second is not None and first not in READING_PRAGMAS
        return sqlite3.SQLITE_DENY if setting or action in FORBIDDEN else sqlite3.SQLITE_OK

    def blobopen(
        self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main"
    ) -> sqlite3.Blob:
        # What is written through a blob is not among total_changes.
        self.blob_opened = True
        return super().blobopen(table, column, row, readonly=readonly, name=name)

    def close(self) -> None:
        if self.at_work:
            raise RuntimeError(MISUSE)
        super().close()


class Database:
    """One database file, for one thread.

    Args:
        path: The file, absolute and without symbolic links. It is opened when first needed, and again after trouble.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock: int | None = None
        self._connection: _Connection | None = None
        self._known_good = False
        self._schema_version = 0

    def run(self, works: Sequence[Work]) -> list[Result]:
        """Run works, in one transaction where that can be, and return what became of each once it is on the disk."""
        try:
            return self._transaction(works)
        except _UndoneError:
            return [self._alone(work) for work in works]
        except StoreError as error:
            # An error of its own for each: an exception grows a traceback wherever it is raised.
            return [outcome.Error(_again(error)) for _ in works]

    def close(self) -> None:
        """Close the file, and let others have it."""
        self._drop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _alone(self, work: Work) -> Result:
        for _ in range(TRIES):
            try:
                return self._transaction([work])[0]
            except _UndoneError as undone:
                error: BaseException = undone.error
            except StoreError as refused:
                return outcome.Error(refused)
        return outcome.Error(error)

    def _transaction(self, works: Sequence[Work]) -> list[Result]:
        """Run works in one transaction.

        Raises:
            StoreError: It could not begin; nothing counts.
            _UndoneError: Nothing counts, and it is worth another try, each alone.
        """
        connection = self._opened()
        try:
            connection.execute(BEGIN)
        except TROUBLE as error:
            self._drop()
            raise told(self._path, error) from error
        results = []
        for work in works:
            result, undone = self._work(connection, work)
            if undone and len(works) > 1:
                raise _UndoneError(StoreError("undone with another"))
            if undone:
                return [result]
            results.append(result)
        try:
            connection.commit()
        except TROUBLE as error:
            return self._commit_failed(connection, works, error)
        return results

    def _work(self, connection: _Connection, work: Work) -> tuple[Result, bool]:
        """Run one work in the transaction; return its result, and whether the whole transaction was undone for it."""
        before = connection.total_changes
        connection.blob_opened = False
        connection.at_work = True
        result: Result = outcome.capture(work, connection)
        connection.at_work = False
        # Another work is not to meet what this one set.
        connection.row_factory = None
        connection.text_factory = str
        if isinstance(result, outcome.Value):
            if iscoroutine(result.value):
                result.value.close()
                result = outcome.Error(TypeError("a transaction's work is a plain function, not an async one"))
            elif connection.in_transaction:
                return result, False
            else:
                result = outcome.Error(StoreError(f"{self._path}: SQLite undid the transaction, and its work went on"))
        broken = is_storage_error(result.error) and primary_code(result.error) not in NOT_COMMITTED
        undone = broken or not connection.in_transaction or self._has_changed(connection, before)
        if broken:
            # The next transaction may fare better on a connection of its own.
            self._drop()
        elif undone:
            self._undo(connection)
        return outcome.Error(self._plainly(result.error)), undone

    def _plainly(self, error: BaseException) -> BaseException:
        """Return the error that a work's caller gets for what the work raised."""
        if not isinstance(error, sqlite3.Error):
            return error
        if primary_code(error) == NOT_AUTHORIZED:
            plain: BaseException = RuntimeError(MISUSE)
        elif is_storage_error(error):
            plain = told(self._path, error)
        else:
            return error
        plain.__cause__ = error
        return plain

    def _has_changed(self, connection: _Connection, before: int) -> bool:
        """Return whether a work that failed may have changed anything before it did."""
        if connection.total_changes != before or connection.blob_opened:
            return True
        try:
            # Making and dropping tables is not among total_changes either.
            return _schema_version(connection) != self._schema_version
        except TROUBLE:
            return True

    def _undo(self, connection: _Connection) -> None:
        try:
            connection.rollback()
            self._schema_version = _schema_version(connection)
        except TROUBLE:
            self._drop()

    def _commit_failed(self, connection: _Connection, works: Sequence[Work], error: BaseException) -> list[Result]:
        """Find out what a failed commit means, and say so.

        Raises:
            _UndoneError: Nothing counts, and it is worth another try, each alone.
        """
        self._undo(connection)
        code = primary_code(error)
        if not isinstance(error, sqlite3.Error) or (is_storage_error(error) and code not in NOT_COMMITTED):
            if not self._settle(connection):
                doubt = f"{self._path}: the commit failed, and may count or not ({error}); check the disk"
                return [outcome.Error(_caused(StoreInDoubtError(doubt), error)) for _ in works]
            raise _UndoneError(_caused(told(self._path, error), error))
        own = self._plainly(error)
        if code == sqlite3.SQLITE_BUSY:
            # A statement runs on, whose cursor a work has kept: it would be in the way of every commit to come.
            self._drop()
            own = error
        if len(works) > 1:
            raise _UndoneError(own)
        return [outcome.Error(own)]

    def _settle(self, connection: _Connection) -> bool:
        """Make a commit that overwrites what a failed one may have left in the log; return whether that is certain."""
        if connection is not self._connection:
            return False
        try:
            connection.execute(BEGIN)
            _write(connection)
            connection.commit()
        except TROUBLE:
            self._drop()
            return False
        return True

    def _opened(self) -> _Connection:
        """Return the connection, opened where it is not.

        Raises:
            StoreError: It cannot be; the text says why.
        """
        if self._connection is None:
            if self._lock is None:
                self._lock = hold_lock(self._path)
            self._connection = self._open()
        return self._connection

    def _open(self) -> _Connection:
        try:
            # Not autocommit: where SQLite has rolled back by itself, the next change would count at once. As it is,
            # the module begins a transaction for it first, and that a work may not do.
            connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT, isolation_level="DEFERRED", cached_statements=512, factory=_Connection
            )
        except TROUBLE as error:
            raise told(self._path, error) from error
        try:
            connection.set_authorizer(connection.authorize)
            add_functions(connection)
            _set_up(self._path, connection)
            if not self._known_good:
                _check(self._path, connection)
            connection.execute(BEGIN)
            migrate(connection, "values", VALUES)
            if self._known_good:
                # It is open anew after trouble: better to find out here than with a payment that is in doubt then.
                _write(connection)
            connection.commit()
            self._known_good = True
            self._schema_version = _schema_version(connection)
        except TROUBLE as error:
            connection.close()
            raise told(self._path, error) from error
        except StoreError:
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        """Close a connection that is not to be trusted; the next transaction opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*TROUBLE):
                connection.close()


def read_sqlite(path: str | os.PathLike[str], work: Callable[[sqlite3.Connection], T]) -> T:
    """Read a store's file, also while another program has it open; for command-line tools.

    Args:
        path: The store's file.
        work: Called with a connection that cannot write. All that it reads is of one moment.

    Raises:
        StoreError: The file is not there, or cannot be read; the text says what to do.
        Exception: What ``work`` raises, unless it is the file's trouble.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real):
        raise StoreError(f"{real}: there is no such file")
    try:
        connection = sqlite3.connect(f"{Path(real).as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            add_functions(connection)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            return work(connection)
        finally:
            connection.close()
    except TROUBLE as error:
        if is_storage_error(error):
            raise told(real, error) from error
        raise


def _set_up(path: str, connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: its file system cannot do write-ahead logging; use a local disk")
    for setting in SETTINGS:
        connection.execute(setting)


def _check(path: str, connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        error = sqlite3.DatabaseError(str(found))
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
        raise told(path, error)


def _write(connection: sqlite3.Connection) -> None:
    """Write something and change nothing."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute(f"PRAGMA user_version = {version}")


def _schema_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA schema_version").fetchone()[0]
    return version


def _again(error: StoreError) -> StoreError:
    return _caused(type(error)(*error.args), error)


E = TypeVar("E", bound=BaseException)


def _caused(error: E, cause: BaseException) -> E:
    error.__cause__ = cause
    return error
