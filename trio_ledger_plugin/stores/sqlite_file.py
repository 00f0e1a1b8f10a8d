"""One SQLite file, and transactions on it that share their commits; without Trio and without threads.

Invariants: work that is reported as done is on the disk, work that is reported as failed has changed nothing, and if
neither is certain, it is reported as in doubt. Many works share a transaction; if one of them has to be undone, all are
undone, and each runs again in its own transaction.

The hard case is a commit that fails with an I/O error. The connection does not count its changes, but its pages may be
in the write-ahead log, where a recovery after a crash would find them. Therefore another commit follows at once and
overwrites them: then it is certain that the first commit does not count. If that fails too, the first is in doubt.

A commit also counts only if it is found after a restart. Therefore the files are compared with what has their names,
before and after each commit (``open_files.py``).
"""

from __future__ import annotations

import secrets
import sqlite3
from contextlib import suppress
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any

import outcome

from ..errors import StoreError, StoreInDoubtError
from . import worker
from .lock import Claim
from .open_files import OpenFiles, check_file
from .openings import examine, record_closing, record_opening
from .schema import VALUES, add_functions, migrate
from .sqlite_errors import NOT_AUTHORIZED, TROUBLE, is_storage_error, primary_code, told
from .values import Update
from .worker import UndoneError, with_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .worker import Result

    Work = Callable[[sqlite3.Connection], Any]

__all__ = ["Database"]

BUSY_TIMEOUT = 1.0
SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA wal_autocheckpoint = 1000",
    "PRAGMA journal_size_limit = 67108864",
)
# The SQL comment distinguishes it from statements of works: SQLite does not authorize a cached statement again, so a
# work could otherwise reuse this one.
BEGIN = "BEGIN IMMEDIATE -- by the store"
FORBIDDEN = frozenset((sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH))
READING_PRAGMAS = frozenset(
    ("table_info", "table_xinfo", "table_list", "index_info", "index_xinfo", "index_list", "foreign_key_list")
)
MISUSE = (
    "a transaction's work must not begin, commit or roll back, continue after SQLite rolled back, attach a database, "
    "set a PRAGMA or close the connection; savepoints are allowed"
)
# A commit that fails with one of these has left nothing in the log that a recovery would count.
NOT_COMMITTED = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY))


class _Connection(sqlite3.Connection):
    """A connection that restricts what a work may do while ``at_work`` is set."""

    at_work = False
    blob_opened = False
    when_undone: list[Callable[[], None]]

    def authorize(self, action: int, first: str | None, second: str | None, *_: str | None) -> int:
        if not self.at_work:
            return sqlite3.SQLITE_OK
        setting = action == sqlite3.SQLITE_PRAGMA and second is not None and first not in READING_PRAGMAS
        return sqlite3.SQLITE_DENY if setting or action in FORBIDDEN else sqlite3.SQLITE_OK

    def blobopen(
        self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main"
    ) -> sqlite3.Blob:
        # total_changes does not count writes through a blob.
        self.blob_opened = True
        return super().blobopen(table, column, row, readonly=readonly, name=name)

    def close(self) -> None:
        if self.at_work:
            raise RuntimeError(MISUSE)
        super().close()


class Database(worker.Database):
    """One database file, for one thread.

    Args:
        path: The file, absolute and without symbolic links. It is opened when first needed, and again after an error.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._claim: Claim | None = None
        self._files: OpenFiles | None = None
        self._connection: _Connection | None = None
        self._known_good = False
        self._schema_version = 0

    def close(self) -> None:
        """Close the file and release the claim on it."""
        if self._connection is not None:
            # Otherwise the file is checked when it is opened again.
            with suppress(StoreError, *TROUBLE):
                self._verify()
                self._connection.execute(BEGIN)
                record_closing(self._connection)
                self._connection.commit()
        if self._files is not None:
            self._files.release()
        # Before the claim closes its own descriptor of the file, which releases SQLite's locks on it.
        self._drop()
        if self._claim is not None:
            self._claim.release()
        self._claim = self._files = None

    def run(self, works: Sequence[Work]) -> list[Result]:
        """Run works, and return the result of each once all are committed.

        An update that changes nothing needs no transaction, which costs more than to read.
        """
        looked = [self._look(work) if isinstance(work, Update) else None for work in works]
        if None not in looked:
            return [result for result in looked if result is not None]
        done = iter(super().run([work for work, result in zip(works, looked, strict=True) if result is None]))
        return [next(done) if result is None else result for result in looked]

    def _look(self, work: Update[Any]) -> Result | None:
        """Return the result of an update that changes nothing; None if it has to run in a transaction."""
        try:
            connection = self._connect()
            self._verify()
            found = work.look(connection)
        except Exception:  # noqa: BLE001 (it is raised again in the transaction, which knows what to do about it)
            return None
        return None if found is None else outcome.Value(found[0])

    def transaction(self, works: Sequence[Work]) -> list[Result]:
        """Run works in one transaction.

        Raises:
            StoreError: It could not begin, or the file is not the one that was opened; nothing has changed.
            UndoneError: Nothing has changed, and each work should be tried again in its own transaction.
        """
        connection = self._connect()
        try:
            connection.execute(BEGIN)
        except TROUBLE as error:
            self._drop()
            raise told(self._path, error) from error
        results = []
        for work in works:
            result, undone = self._run_work(connection, work)
            if undone and len(works) > 1:
                raise UndoneError(StoreError("undone together with another work"))
            if undone:
                return [result]
            results.append(result)
        try:
            self._verify()
        except StoreError:
            self._undo(connection)
            raise
        try:
            connection.commit()
        except TROUBLE as error:
            return self._commit_failed(connection, works, error)
        try:
            self._verify()
        except StoreError as error:
            # The commit is in a file, but which file will be read after a restart is not known.
            return [outcome.Error(with_cause(StoreInDoubtError(*error.args), error)) for _ in works]
        return results

    def _verify(self) -> None:
        """Check that the file and its log still have their names.

        Raises:
            StoreError: They do not, or it cannot be known.
        """
        if self._files is not None:
            self._files.verify()

    def _run_work(self, connection: _Connection, work: Work) -> tuple[Result, bool]:
        """Run one work in the transaction; return its result, and whether the whole transaction was undone."""
        before = connection.total_changes
        connection.blob_opened = False
        connection.at_work = True
        result: Result = outcome.capture(work, connection)
        connection.at_work = False
        # Reset, so that the next work does not inherit what this one set.
        connection.row_factory = None
        connection.text_factory = str
        if isinstance(result, outcome.Value):
            if iscoroutine(result.value):
                result.value.close()
                result = outcome.Error(TypeError("a transaction's work is a plain function, not an async one"))
            elif connection.in_transaction:
                return result, False
            else:
                result = outcome.Error(StoreError(f"{self._path}: SQLite rolled back, but the work continued"))
        broken = is_storage_error(result.error) and primary_code(result.error) not in NOT_COMMITTED
        undone = broken or not connection.in_transaction or self._has_changed(connection, before)
        if broken:
            # The next transaction may succeed on a new connection.
            self._drop()
        elif undone:
            self._undo(connection)
        return outcome.Error(self._caller_error(result.error)), undone

    def _caller_error(self, error: BaseException) -> BaseException:
        """Return the error that the caller gets for an exception of its work."""
        if not isinstance(error, sqlite3.Error):
            return error
        if primary_code(error) == NOT_AUTHORIZED:
            translated: BaseException = RuntimeError(MISUSE)
        elif is_storage_error(error):
            translated = told(self._path, error)
        else:
            return error
        translated.__cause__ = error
        return translated

    def _has_changed(self, connection: _Connection, before: int) -> bool:
        """Return whether a failed work may have changed anything."""
        if connection.total_changes != before or connection.blob_opened:
            return True
        try:
            # total_changes does not count creating and dropping tables either.
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
        """Find out whether a failed commit counts, and return the results of its works.

        Raises:
            UndoneError: Nothing has changed, and each work should be tried again in its own transaction.
        """
        self._undo(connection)
        code = primary_code(error)
        if not isinstance(error, sqlite3.Error) or (is_storage_error(error) and code not in NOT_COMMITTED):
            if not self._overwrite_commit(connection):
                doubt = f"{self._path}: the commit failed and may count or not ({error}); check the disk"
                return [outcome.Error(with_cause(StoreInDoubtError(doubt), error)) for _ in works]
            raise UndoneError(with_cause(told(self._path, error), error))
        translated = self._caller_error(error)
        if code == sqlite3.SQLITE_BUSY:
            # A work has kept the cursor of a running statement, which would block every later commit.
            self._drop()
            translated = error
        if len(works) > 1:
            raise UndoneError(translated)
        return [outcome.Error(translated)]

    def _overwrite_commit(self, connection: _Connection) -> bool:
        """Commit again, to overwrite what a failed commit may have left in the log; return whether that succeeded."""
        if connection is not self._connection:
            return False
        try:
            connection.execute(BEGIN)
            _write_same_value(connection)
            connection.commit()
        except TROUBLE:
            self._drop()
            return False
        return True

    def _connect(self) -> _Connection:
        """Return the connection; open it first if necessary.

        Raises:
            StoreError: It cannot be opened; the text says why.
        """
        if self._connection is None:
            if self._claim is None:
                check_file(self._path)
                self._claim = Claim(self._path)
            if self._files is None:
                self._files = OpenFiles(self._path, self._claim)
            self._connection = self._open(self._claim, self._files)
        return self._connection

    def _open(self, claim: Claim, files: OpenFiles) -> _Connection:
        files.verify()
        opening = secrets.token_hex(8)
        try:
            if not self._known_good:
                before = examine(self._path, claim.openings)
                # Both, because the program may be killed between this and the commit.
                claim.record(*filter(None, (before, opening)), durable=True)
            # Not autocommit: if SQLite has rolled back by itself, the next change of the work would be committed at
            # once. With this level, the sqlite3 module tries to begin a transaction first, which a work may not do.
            connection = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT, isolation_level="DEFERRED", cached_statements=512, factory=_Connection
            )
        except (OSError, *TROUBLE) as error:
            raise told(self._path, error) from error
        connection.when_undone = self.when_undone
        try:
            connection.set_authorizer(connection.authorize)
            add_functions(connection)
            _set_up(self._path, connection)
            connection.execute(BEGIN)
            migrate(connection, "values", VALUES)
            if self._known_good:
                # It is open again after an error: if it still fails, that shows here and leaves no payment in doubt.
                _write_same_value(connection)
            else:
                record_opening(connection, opening)
            files.log_opened()
            connection.commit()
            files.verify()
            if not self._known_good:
                claim.record(opening, durable=False)
            self._known_good = True
            self._schema_version = _schema_version(connection)
        except TROUBLE as error:
            self._close_unopened(connection, files)
            raise told(self._path, error) from error
        except StoreError:
            self._close_unopened(connection, files)
            raise
        return connection

    def _close_unopened(self, connection: _Connection, files: OpenFiles) -> None:
        """Close a connection that could not be set up."""
        if not self._known_good:
            # SQLite may delete the log that it has created.
            files.release()
        connection.close()

    def _drop(self) -> None:
        """Close a connection that may be broken; the next transaction opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*TROUBLE):
                connection.close()
            if self._files is not None:
                self._files.log_closed()


def _set_up(path: str, connection: sqlite3.Connection) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StoreError(f"{path}: its file system does not support write-ahead logging; use a local disk")
    for setting in SETTINGS:
        connection.execute(setting)


def _write_same_value(connection: sqlite3.Connection) -> None:
    """Write a value that is the same as before, so that a commit has something to write."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.execute(f"PRAGMA user_version = {version}")


def _schema_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA schema_version").fetchone()[0]
    return version
