"""One connection to PostgreSQL, and transactions on it that share their commits; without Trio and without threads.

Invariants: work that is reported as done is committed, and with synchronous replication also at the standby; work that
is reported as failed has changed nothing; if neither is certain, it is reported as in doubt. Many works share a
transaction; if one of them fails, all are undone, and each runs again in its own transaction: after an error,
PostgreSQL refuses every statement of the transaction.

The hard case is a connection that is lost in a commit. Each transaction begins by writing its number to the row of this
database object in ``lpi_batches``. To find out what became of it, another transaction writes to the same row: it waits
until the lost one has ended, at the server that has the data now, and finds its number if it was committed. When this
other transaction is committed, which waits for the standby, the lost one is there as well. (The status of a transaction
by its id would not do: after a crash the server gives the same id to another transaction.)

A transaction that only reads does not wait for the standby, and may read what the standby never gets. Since each
transaction writes its number, there is none.
"""

from __future__ import annotations

import re
import time
from contextlib import closing, suppress
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import outcome
import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from ..errors import StoreError, StoreInDoubtError
from . import worker
from .postgres_dialect import POSTGRES, TRY_AGAIN, VALUES, is_storage_error
from .postgres_pipeline import in_runs, run_together
from .postgres_prepared import Prepared, run_prepared, run_text, text_array
from .schema import migrate
from .worker import UndoneError, with_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .postgres_prepared import Rows
    from .worker import Result

    Work = Callable[["StoreConnection"], Any]

__all__ = ["Database", "StoreConnection", "quoted"]

MISUSE: Final = (
    "a transaction's work must not begin, commit or roll back, continue after its transaction was undone, or close or "
    "change the connection; savepoints are allowed"
)
# Statements that end a transaction or begin another, anywhere in a text of several statements.
ENDING: Final = re.compile(
    r"(?:^|;)(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    r"(?:begin|start|commit|end|abort|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b)"
    r"|(?:re)?set\s+(?:session|local|role|transaction)\b|discard)\b",
    re.IGNORECASE | re.DOTALL,
)
# How long a statement waits for a lock, in milliseconds. A commit is never given up.
LOCK_MS: Final = 2000
# A transaction that is idle for so long belongs to a process that hangs; it keeps others from taking its ledger.
IDLE_MS: Final = 5000
# How long it is tried to find out what became of a commit, in seconds.
SETTLE_SECONDS: Final = 10.0
SETTLE_PAUSE: Final = 0.2
# Until when the row of a connection that is not used any more stays.
STALE: Final = "30 days"
# The lock that is held while tables are made.
MIGRATING: Final = 0x6C7069

# How every transaction begins. A pooler may give each another connection, so the settings are the transaction's own.
BEGIN: Final = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL search_path = {path};"
    " SET LOCAL lock_timeout = {lock}; SET LOCAL idle_in_transaction_session_timeout = {idle};"
    " SET LOCAL synchronous_commit = {synchronous}"
)
# Writes the transaction's number, and locks the epochs of ledgers.
NUMBER: Final = Prepared(
    "WITH numbered AS (INSERT INTO lpi_batches VALUES (%s, %s, now())"
    " ON CONFLICT (session) DO UPDATE SET batch = excluded.batch, seen = excluded.seen)"
    " SELECT ledger, epoch FROM lpi_owners WHERE ledger = ANY(CAST(%s AS text[])) ORDER BY ledger FOR SHARE"
)
FATE: Final = (
    "INSERT INTO lpi_batches VALUES (%s, 0, now()) ON CONFLICT (session) DO UPDATE SET seen = now() RETURNING batch"
)
EPOCH: Final = Prepared("SELECT epoch FROM lpi_owners WHERE ledger = %s FOR SHARE")
FORGET: Final = "DELETE FROM lpi_batches WHERE session = %s OR seen < now() - %s::interval"


class _Cursor(psycopg.Cursor[Any]):
    """A cursor that refuses statements which end the transaction, while the connection is at work."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> _Cursor:  # noqa: ANN401 (psycopg's)
        self._allow(query)
        return super().execute(query, params, **options)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:  # noqa: ANN401 (psycopg's)
        self._allow(query)
        super().executemany(query, params_seq, **options)

    def _allow(self, query: object) -> None:
        connection = self.connection
        if isinstance(connection, StoreConnection) and connection.at_work:
            connection.allow(query)


class StoreConnection(psycopg.Connection[Any]):
    """A connection that restricts what a work may do while ``at_work`` is set."""

    at_work = False

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 (psycopg's)
        super().__init__(*args, **options)
        self.cursor_factory: type[_Cursor] = _Cursor
        self._allowed: set[object] = set()
        self._known: set[bytes] = set()
        #: The epochs of ledgers as the transaction has locked them, and the ledgers to lock in the next one.
        self.epochs: dict[str, int] = {}
        self.ledgers: set[str] = set()
        #: What to call if the transaction is undone.
        self.when_undone: list[Callable[[], None]] = []
        #: Whether the server has warned: a commit may not have waited for the standby.
        self.warned = False

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:  # noqa: ANN401 (psycopg's)
        """Run a statement; one of this package on a faster way."""
        if query.__class__ is Prepared:
            return run_prepared(self.pgconn, self._known, query, params or ())
        return super().execute(query, params, **options)

    def execute_together(self, statements: Sequence[tuple[Prepared, tuple[Any, ...]]]) -> list[Rows]:
        """Run statements of this package in one round trip, and return the result of each.

        Raises:
            psycopg.Error: One failed; those after it were not run.
        """
        return run_together(self.pgconn, self._known, statements)

    def epoch_of(self, ledger: str) -> int | None:
        """Return a ledger's epoch, which does not change before the transaction ends; None if it has none."""
        if ledger not in self.epochs:
            # From the next transaction on, the row is locked at its beginning, together with the others.
            self.ledgers.add(ledger)
            row = self.execute(EPOCH, (ledger,)).fetchone()
            return None if row is None else int(row[0])
        return self.epochs[ledger]

    def allow(self, query: object) -> None:
        """Check a statement of a work.

        Raises:
            RuntimeError: It would end the transaction.
        """
        if not isinstance(query, str | bytes):
            query = query.as_string(self) if isinstance(query, sql.Composable) else str(query)
        if query not in self._allowed:
            if ENDING.search(query.decode() if isinstance(query, bytes) else query):
                raise RuntimeError(MISUSE)
            if len(self._allowed) < 1000:
                self._allowed.add(query)

    def _refuse(self) -> None:
        if self.at_work:
            raise RuntimeError(MISUSE)

    def commit(self) -> None:
        """Commit; a work may not."""
        self._refuse()
        super().commit()

    def rollback(self) -> None:
        """Roll back; a work may not."""
        self._refuse()
        super().rollback()

    def close(self) -> None:
        """Close the connection; a work may not."""
        self._refuse()
        super().close()

    def set_autocommit(self, value: bool) -> None:
        """Change whether statements begin transactions; a work may not."""
        self._refuse()
        super().set_autocommit(value)


class Database(worker.Database):
    """One database, for one thread.

    Args:
        name: How errors name it.
        connect: Returns a new connection.
        schema: The schema of the tables; it is created if it does not exist.
        replicated: Whether to refuse a server without a synchronous standby.
    """

    def __init__(
        self, name: str, connect: Callable[[type[StoreConnection]], StoreConnection], schema: str, *, replicated: bool
    ) -> None:
        super().__init__()
        self._name = name
        self._connect_anew = connect
        self._schema = schema
        self._replicated = replicated
        self._session = uuid4().hex
        self._batch = 0
        self._connection: StoreConnection | None = None
        self._migrated = False
        self._synchronous = "on"
        self._ledgers: set[str] = set()

    def transaction(self, works: Sequence[Work]) -> list[Result]:
        """Run works in one transaction; ``worker.Database.transaction`` documents it."""
        connection = self._connect()
        self._batch += 1
        try:
            self._begin(connection)
            values = self._session, self._batch, text_array(sorted(connection.ledgers))
            connection.epochs = dict(connection.execute(NUMBER, values).fetchall())
        except psycopg.Error as error:
            self._undo(connection)
            raise self._told(error) from error
        try:
            results, undone = self._run_works(connection, works)
        except psycopg.Error as error:
            # Of a statement that was sent together with others.
            self._undo(connection)
            raise UndoneError(self._told(error)) from error
        except BaseException as error:
            if not isinstance(error, UndoneError):
                # Of this package. What was done must not become a part of the next transaction.
                self._drop()
            raise
        return results if undone else self._commit(connection, results)

    def close(self) -> None:
        """Close the connection."""
        connection = self._connection
        if connection is not None:
            with suppress(psycopg.Error):
                self._begin(connection)
                connection.execute(FORGET, (self._session, STALE))
                connection.execute("COMMIT")
        self._drop()

    # A transaction.

    def _begin(self, connection: StoreConnection) -> None:
        connection.epochs = {}
        connection.warned = False
        path = f"{quoted(self._schema)}, public"
        text = BEGIN.format(path=path, lock=LOCK_MS, idle=IDLE_MS, synchronous=self._synchronous)
        run_text(connection.pgconn, text.encode())

    def _run_works(self, connection: StoreConnection, works: Sequence[Work]) -> tuple[list[Result], bool]:
        """Run works in the transaction; return their results, and whether the whole transaction was undone.

        Raises:
            UndoneError: It was, and each work should be tried again in its own transaction.
        """
        results: list[Result] = []
        with closing(in_runs(connection, works) if len(works) > 1 else (work for work in works)) as begun:
            for work in begun:
                result, undone = self._run_work(connection, work)
                if undone and len(works) > 1:
                    raise UndoneError(StoreError("undone together with another work"))
                if undone:
                    return [result], True
                results.append(result)
        return results, False

    def _run_work(self, connection: StoreConnection, work: Work) -> tuple[Result, bool]:
        """Run one work in the transaction; return its result, and whether the whole transaction was undone."""
        connection.at_work = True
        result: Result = outcome.capture(work, connection)
        connection.at_work = False
        # Reset, so that the next work does not inherit what this one set.
        connection.row_factory = psycopg.rows.tuple_row
        if isinstance(result, outcome.Value):
            status = connection.info.transaction_status
            if iscoroutine(result.value):
                result.value.close()
                result = outcome.Error(TypeError("a transaction's work is a plain function, not an async one"))
            elif status is TransactionStatus.INTRANS:
                return result, False
            else:
                text = f"{self._name}: a statement failed and its transaction was undone, but the work continued"
                result = outcome.Error(StoreError(text))
        error = result.error
        if isinstance(error, psycopg.Error) and is_storage_error(error):
            again = error.sqlstate in TRY_AGAIN
            self._undo(connection)
            told = with_cause(self._told(error), error)
            if again:
                raise UndoneError(told)
            return outcome.Error(told), True
        self._undo(connection)
        return outcome.Error(error), True

    def _undo(self, connection: StoreConnection) -> None:
        try:
            connection.execute("ROLLBACK")
        except psycopg.Error:
            self._drop()

    def _commit(self, connection: StoreConnection, results: list[Result]) -> list[Result]:
        """Commit, and return the results if that is certain.

        Raises:
            UndoneError: Nothing has changed, and each work should be tried again in its own transaction.
        """
        batch = self._batch
        try:
            status = run_text(connection.pgconn, b"COMMIT")
        except psycopg.Error as error:
            if not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE:
                # The server has refused to commit: a constraint that is checked at the end, for example.
                failure = self._told(error) if is_storage_error(error) else error
                if len(results) > 1 or error.sqlstate in TRY_AGAIN:
                    raise UndoneError(failure) from error
                return [outcome.Error(failure)]
            return self._settle(batch, results, error)
        if status != b"COMMIT":
            raise UndoneError(StoreError(f"{self._name}: the transaction was undone"))
        if connection.warned:
            warning = StoreError("the server has warned that the commit may not have waited for its standby")
            return self._settle(batch, results, warning)
        return results

    def _settle(self, batch: int, results: list[Result], error: Exception) -> list[Result]:
        """Find out what became of a commit, and make certain that the standby has it.

        Raises:
            UndoneError: It was not committed.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        failure: BaseException = error
        while True:
            try:
                connection = self._connect()
                self._begin(connection)
                found = connection.execute(FATE, (self._session,)).fetchone()
                connection.execute("COMMIT")
                if not connection.warned:
                    break
            except (StoreError, psycopg.Error) as again:
                failure = again
                self._drop()
            if time.monotonic() >= deadline:
                text = f"{self._name}: the connection was lost in a commit, which may count or not ({_text(failure)})"
                return [outcome.Error(with_cause(StoreInDoubtError(text), error)) for _ in results]
            time.sleep(SETTLE_PAUSE)
        if found[0] >= batch:
            return results
        raise UndoneError(self._told(error))

    # The connection.

    def _connect(self) -> StoreConnection:
        """Return the connection; open it first if necessary.

        Raises:
            StoreError: It cannot be opened; the text says why.
        """
        if self._connection is not None and not self._connection.closed:
            return self._connection
        self._drop()
        try:
            connection = self._connect_anew(StoreConnection)
        except psycopg.Error as error:
            raise self._told(error) from error
        try:
            self._set_up(connection)
        except psycopg.Error as error:
            connection.close()
            raise self._told(error) from error
        except StoreError:
            connection.close()
            raise
        connection.ledgers = self._ledgers
        connection.when_undone = self.when_undone
        self._connection = connection
        return connection

    def _set_up(self, connection: StoreConnection) -> None:
        def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
            connection.warned = connection.warned or diagnostic.severity_nonlocalized == "WARNING"

        connection.add_notice_handler(notice)
        cursor = connection.execute(
            "SELECT current_setting('fsync'), current_setting('synchronous_standby_names'),"
            " current_setting('synchronous_commit')"
        )
        ((fsync, standbys, synchronous),) = cursor.fetchall()
        if fsync != "on":
            raise StoreError(f"{self._name}: the server has fsync off, and loses what it has committed; turn it on")
        if self._replicated and not standbys.strip():
            raise StoreError(
                f"{self._name}: the server has no synchronous standby (synchronous_standby_names is empty), so what it"
                " has committed can be lost with it. Set one up; or open the store with replication='trusted' if the"
                " storage itself replicates, or with replication='none' if the loss of this server may lose money"
            )
        self._synchronous = synchronous if synchronous in ("on", "remote_apply") else "on"
        if not self._migrated:
            connection.execute("BEGIN")
            self._migrate(connection)
            connection.execute("COMMIT")
            self._migrated = True

    def _migrate(self, connection: StoreConnection) -> None:
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATING,))
        known = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (self._schema,)).fetchone()
        if known is None:
            connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(self._schema)))
        connection.execute("SELECT set_config('search_path', %s, true)", (quoted(self._schema),))
        migrate(connection, "values", VALUES, POSTGRES)

    def _drop(self) -> None:
        """Close a connection that may be broken; the next transaction opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    def _told(self, error: BaseException) -> StoreError:
        return StoreError(f"{self._name}: {_text(error)}")


def quoted(schema: str) -> str:
    """Return the name of a schema as SQL has it."""
    return '"' + schema.replace('"', '""') + '"'


def _text(error: BaseException) -> str:
    """Return an error's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
