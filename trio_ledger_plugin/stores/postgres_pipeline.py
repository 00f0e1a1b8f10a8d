"""Sends the first statements of works that share a transaction together, in libpq's pipeline mode.

Invariant: while the server works, Python's other threads run. libpq waits for a result without letting them run, so it
is asked for one only when it has one.
"""

from __future__ import annotations

import selectors
from contextlib import contextmanager
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, BaseSelector
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ExecStatus

from .postgres_prepared import Prepared, Rows, check, encode_all, prepare
from .steps import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from psycopg.pq.abc import PGconn, PGresult

    from .dialect import Connection
    from .steps import Steps

    Statement = tuple[Prepared, tuple[Any, ...]]
    Work = Callable[[Connection], Any]

__all__ = ["in_runs", "run_together"]

# One that needs no descriptor of its own, which the process may have none left for.
_Selector: type[BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


def in_runs(connection: Connection, works: Iterable[Work]) -> Generator[Work, None, None]:
    """Yield works in their order, each to be run before the next is asked for.

    The first statements of works in steps that follow one another are sent together; these works then go on behind it.

    Args:
        connection: A ``StoreConnection``, inside a transaction.
        works: The works.

    Raises:
        psycopg.Error: A statement failed; the transaction has to be undone, and this generator closed.
    """
    run: list[tuple[Steps[Any], Statement]] = []
    try:
        for work in works:
            begun = _begin(connection, work)
            if isinstance(begun, tuple):
                run.append(begun)
            else:
                yield from _send(connection, run)
                run = []
                yield begun
        yield from _send(connection, run)
    finally:
        # What does not go on gives back now what it has taken: the same works may run again, each alone.
        for steps, _ in run:
            steps.close()


def _begin(connection: Connection, work: Work) -> Work | tuple[Steps[Any], Statement]:
    """Begin a work; return it with its first statement, or the work to be run in its turn."""
    start = getattr(work, "start", None)
    if start is None:
        return work
    try:
        steps = start(connection)
        if steps is None:
            return work
        statement = next(steps)
    except StopIteration as stop:
        return partial(_return, stop.value)
    except Exception as error:  # noqa: BLE001 (it is the work's own, and raised in its turn)
        return partial(_raise, error)
    return partial(_go_on, steps, None) if statement is None else (steps, statement)


def _send(connection: Connection, run: Sequence[tuple[Steps[Any], Statement]]) -> Iterator[Work]:
    if len(run) == 1:
        ((steps, statement),) = run
        yield partial(_go_on, steps, connection.execute(*statement))
    elif run:
        results = connection.execute_together([statement for _, statement in run])
        for (steps, _), result in zip(run, results, strict=True):
            yield partial(_go_on, steps, result)


def _go_on(steps: Steps[Any], result: Rows | None, connection: Connection) -> Any:  # noqa: ANN401 (the work's result)
    return finish(steps, connection, result)


def _return(value: object, _connection: Connection) -> object:
    return value


def _raise(error: Exception, _connection: Connection) -> object:
    raise error


def run_together(pgconn: PGconn, known: set[bytes], statements: Sequence[Statement]) -> list[Rows]:
    """Run statements in one round trip, and return the result of each.

    Args:
        pgconn: The connection of libpq.
        known: The names of the statements that it has prepared.
        statements: The statements, and their values.

    Raises:
        psycopg.Error: One failed; those after it were not run.
    """
    for statement, _ in statements:
        prepare(pgconn, known, statement)
    encoded = [(statement.name, encode_all(values)) for statement, values in statements]
    with _Selector() as selector, _pipeline(pgconn):
        selector.register(pgconn.socket, EVENT_READ)
        for name, values in encoded:
            pgconn.send_query_prepared(name, values)
        pgconn.pipeline_sync()
        while pgconn.flush():
            # What the server answers has to be read, or it would read no more itself.
            selector.modify(pgconn.socket, EVENT_READ | EVENT_WRITE)
            if any(events & EVENT_READ for _, events in selector.select()):
                pgconn.consume_input()
        selector.modify(pgconn.socket, EVENT_READ)
        results = [_next_result(pgconn, selector) for _ in encoded]
        if _next_result(pgconn, selector, ended=False).status != ExecStatus.PIPELINE_SYNC:
            raise psycopg.InternalError("the server did not end the pipeline")
    return [Rows(check(pgconn, result)) for result in results]


@contextmanager
def _pipeline(pgconn: PGconn) -> Iterator[None]:
    pgconn.nonblocking = 1
    pgconn.enter_pipeline_mode()
    try:
        yield
        pgconn.exit_pipeline_mode()
    finally:
        pgconn.nonblocking = 0


def _next_result(pgconn: PGconn, selector: BaseSelector, *, ended: bool = True) -> PGresult:
    """Return the next result; with ``ended``, also read the end of its statement."""
    result = _wait_result(pgconn, selector)
    if result is None or (ended and _wait_result(pgconn, selector) is not None):
        raise psycopg.InternalError("the server's answers do not match the statements")
    return result


def _wait_result(pgconn: PGconn, selector: BaseSelector) -> PGresult | None:
    while pgconn.is_busy():
        selector.select()
        pgconn.consume_input()
    return pgconn.get_result()
