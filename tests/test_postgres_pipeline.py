"""Works in steps in PostgreSQL: their first statements are sent together, and each work still has its own outcome."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from support.stores import hold_thread
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin.errors import StoreInDoubtError
from trio_ledger_plugin.stores import PostgresStore, open_postgres_store
from trio_ledger_plugin.stores.postgres_database import StoreConnection
from trio_ledger_plugin.stores.postgres_prepared import Prepared
from trio_ledger_plugin.stores.steps import IN_TURN, InSteps, Steps, Work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

if sys.platform != "win32":
    import resource

INSERT = Prepared("INSERT INTO mine VALUES (%s) RETURNING number")
COUNT = Prepared("SELECT count(*) FROM mine")
ECHO = Prepared("SELECT CAST(%s AS text)")
SLEEP = Prepared("SELECT pg_sleep(0.4)")
HANG_UP = Prepared("SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(postgres_dsn, replication="none") as store:
        await store.transaction(lambda connection: connection.execute("CREATE TABLE mine (number BIGINT PRIMARY KEY)"))
        yield store


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many statements were sent together, each time."""
    sent: list[int] = []
    execute_together = StoreConnection.execute_together

    def count(self: StoreConnection, statements: Any) -> Any:
        sent.append(len(statements))
        return execute_together(self, statements)

    monkeypatch.setattr(StoreConnection, "execute_together", count)
    return sent


async def run_together(store: PostgresStore, *works: Callable[[Any], Any]) -> list[Any]:
    """Run works that wait for the store's thread together; return what each returns or raises."""
    results: list[Any] = [None] * len(works)

    async def run(number: int) -> None:
        try:
            results[number] = await store.transaction(works[number])
        except Exception as error:  # noqa: BLE001 (it is the result)
            results[number] = error

    async with trio.open_nursery() as nursery, hold_thread(store):
        for number in range(len(works)):
            nursery.start_soon(run, number)
            await wait_all_tasks_blocked()
    return results


def in_steps(function: Callable[..., Steps[Any]], *args: Any) -> Work[Any]:
    return Work(InSteps(function), args, {})


def insert(connection: Any, number: int) -> Steps[tuple[int, int]]:
    """Insert a number; return it, and how many there are afterwards."""
    ((found,),) = (yield INSERT, (number,)).fetchall()
    return found, connection.execute(COUNT).fetchone()[0]


def run_one(_connection: Any, statement: Prepared, *values: Any) -> Steps[Any]:
    return (yield statement, values).fetchone()[0]


def count(connection: Any) -> int:
    found: int = connection.execute(COUNT).fetchone()[0]
    return found


async def test_first_statements_are_sent_together_and_works_go_on_in_order(
    store: PostgresStore, sent: list[int]
) -> None:
    results = await run_together(store, *(in_steps(insert, number) for number in range(5)))
    assert results == [(number, 5) for number in range(5)]
    assert sent == [5]


async def test_works_without_steps_keep_their_place(store: PostgresStore, sent: list[int]) -> None:
    """A work sees what those before it did, and nothing of those after it."""

    def in_turn(connection: Any) -> Steps[int]:
        yield IN_TURN
        return count(connection)

    works: list[Any] = [in_steps(insert, 1), in_steps(insert, 2), count, in_steps(insert, 3), in_steps(in_turn)]
    assert await run_together(store, *works, in_steps(insert, 4), in_steps(insert, 5), count) == [
        *((1, 2), (2, 2), 2, (3, 3), 3, (4, 5), (5, 5), 5),
    ]
    assert sent == [2, 2]


async def test_statement_that_fails_fails_alone(store: PostgresStore, sent: list[int]) -> None:
    results = await run_together(store, *(in_steps(insert, number) for number in (1, 2, 1, 3)))
    assert [results[number] for number in (0, 1, 3)] == [(1, 1), (2, 2), (3, 3)]
    assert isinstance(results[2], psycopg.errors.UniqueViolation)
    # Each has run again, in a transaction of its own.
    assert sent == [4]
    assert await store.transaction(count) == 3


@pytest.mark.parametrize("late", [False, True], ids=["a statement fails", "a work fails after its statement"])
async def test_works_that_do_not_go_on_are_closed_before_they_run_again(store: PostgresStore, *, late: bool) -> None:
    """What they have counted on would be taken by themselves when each runs again, alone."""
    taken = 0
    seen: list[int] = []

    def take(_connection: Any, number: int) -> Steps[int]:
        nonlocal taken
        taken += 1
        seen.append(taken)
        done = False
        try:
            yield INSERT, (number,)
            done = True
            return number
        finally:
            taken -= 0 if done else 1

    def fail(_connection: Any) -> Steps[None]:
        yield (ECHO, ("x",)) if late else (INSERT, (0,))
        raise ValueError("no")

    await run_together(store, in_steps(insert, 0))
    error, *rest = await run_together(store, in_steps(fail), *(in_steps(take, number) for number in (2, 3)))
    assert isinstance(error, ValueError if late else psycopg.errors.UniqueViolation)
    assert rest == [2, 3]
    # Together, and then each alone.
    assert seen == [1, 2, 1, 2]


@pytest.mark.parametrize("late", [False, True], ids=["before its first statement", "after it"])
async def test_work_that_raises_fails_alone(store: PostgresStore, *, late: bool) -> None:
    def fail(_connection: Any) -> Steps[None]:
        if late:
            yield INSERT, (9,)
        raise ValueError("no")

    first, error, last = await run_together(store, in_steps(insert, 1), in_steps(fail), in_steps(insert, 2))
    assert isinstance(error, ValueError)
    assert (first, last) == ((1, 1), (2, 2))


async def test_work_that_ends_before_a_statement_has_its_result(store: PostgresStore) -> None:
    def end(_connection: Any) -> Steps[str]:
        yield from ()
        return "at once"

    assert await run_together(store, in_steps(insert, 1), in_steps(end), in_steps(insert, 2)) == [
        *((1, 1), "at once", (2, 2)),
    ]


async def test_connection_that_ends_between_statements_fails_one_work(store: PostgresStore) -> None:
    first, error, last = await run_together(store, in_steps(insert, 1), in_steps(run_one, HANG_UP), in_steps(insert, 2))
    assert isinstance(error, Exception)
    assert (first, last) == ((1, 1), (2, 2))
    assert await store.transaction(count) == 2


async def test_other_tasks_run_while_the_server_works(store: PostgresStore) -> None:
    """libpq's own way to wait for a result keeps Python's other threads from running."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        began = trio.current_time()
        await run_together(store, in_steps(run_one, SLEEP), in_steps(run_one, SLEEP))
        assert trio.current_time() - began > 0.8
        nursery.cancel_scope.cancel()
    assert longest < 0.3


async def test_more_is_sent_and_answered_than_sockets_hold(store: PostgresStore, sent: list[int]) -> None:
    """A client that sends and does not read, to a server that answers and does not read, would wait for ever."""
    texts = [chr(65 + number % 26) * 300_000 for number in range(60)]
    with trio.fail_after(30):
        assert await run_together(store, *map(partial(in_steps, run_one, ECHO), texts)) == texts
    assert sent == [60]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of descriptors")
async def test_statements_are_sent_together_without_a_free_descriptor(store: PostgresStore, sent: list[int]) -> None:
    """A server with too many connections would leave its payments in doubt."""
    await run_together(store, in_steps(insert, 1), in_steps(insert, 2))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        results = await run_together(store, in_steps(insert, 3), in_steps(insert, 4))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert results == [(3, 4), (4, 4)]
    assert sent == [2, 2]


async def test_unexpected_error_leaves_nothing_to_the_next_transaction(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Works that were reported as in doubt would be committed together with a later one."""

    def fail(_connection: StoreConnection, _statements: Any) -> Any:
        raise OSError("a mistake")

    def insert_at_once(connection: Any) -> None:
        connection.execute(INSERT, (1,))

    with monkeypatch.context() as patched:
        patched.setattr(StoreConnection, "execute_together", fail)
        results = await run_together(store, insert_at_once, in_steps(insert, 2), in_steps(insert, 3))
    assert [type(result) for result in results] == [StoreInDoubtError] * 3
    assert await store.transaction(count) == 0
