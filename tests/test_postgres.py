"""The store in PostgreSQL: commits that count, works that may not end their transaction, and nothing that leaks."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from attrs import evolve
from support.programs import CANARY
from support.stores import hold_thread
from support.tasks import open_tasks

from trio_ledger_plugin import InvalidFieldsError, NotAcceptedError, PluginServices, StoreError, loopback_pair
from trio_ledger_plugin.net.tokens import AccountTokens
from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.runtime.context import Context
from trio_ledger_plugin.secret import Secret
from trio_ledger_plugin.stores import PostgresStore, open_postgres_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.postgres import Server


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresStore]:
    async with open_postgres_store(postgres_dsn, replication="none") as store:
        yield store


def insert(connection: Any, number: int) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS mine (number INT PRIMARY KEY)")
    connection.execute("INSERT INTO mine VALUES (%s)", (number,))


def count(connection: Any) -> int:
    return int(connection.execute("SELECT count(*) FROM mine").fetchone()[0])


# Works.


async def test_calls_that_wait_together_share_a_commit(store: PostgresStore) -> None:
    def transaction_id(connection: Any) -> int:
        return int(connection.execute("SELECT pg_current_xact_id()::text").fetchone()[0])

    ids: list[int] = []

    async def call() -> None:
        ids.append(await store.transaction(transaction_id))

    async with trio.open_nursery() as nursery, hold_thread(store):
        for _ in range(10):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
    assert len(ids) == 10
    assert len(set(ids)) == 1


async def test_failed_work_undoes_only_itself(store: PostgresStore) -> None:
    """Any error breaks a transaction of PostgreSQL; the works that share it must not fail with it."""
    results: dict[int, Any] = {}

    async def call(number: int, statement: str) -> None:
        def work(connection: Any) -> None:
            insert(connection, number)
            connection.execute(statement)

        try:
            results[number] = await store.transaction(work)
        except psycopg.Error as error:
            results[number] = error

    async with trio.open_nursery() as nursery, hold_thread(store):
        for number, statement in enumerate(("SELECT 1", "SELECT nothing", "SELECT 2")):
            nursery.start_soon(call, number, statement)
        await trio.testing.wait_all_tasks_blocked()
    assert isinstance(results.pop(1), psycopg.errors.UndefinedColumn)
    assert results == {0: None, 2: None}
    assert await store.transaction(count) == 2


@pytest.mark.parametrize(
    "statement",
    [
        *("COMMIT", "ROLLBACK", "END", "ABORT", "BEGIN", "START TRANSACTION", "SELECT 1; COMMIT", "-- text\n commit"),
        *("/* text */ rollback work", "PREPARE TRANSACTION 'x'", "SET SESSION lock_timeout = 0", "RESET ROLE"),
    ],
)
async def test_work_may_not_end_its_transaction(store: PostgresStore, statement: str) -> None:
    def work(connection: Any) -> None:
        insert(connection, 1)
        connection.execute(statement)

    await store.transaction(lambda connection: insert(connection, 0))
    with pytest.raises(RuntimeError, match="must not begin, commit or roll back"):
        await store.transaction(work)
    assert await store.transaction(count) == 1


@pytest.mark.parametrize("method", ["commit", "rollback", "close"])
async def test_work_may_not_end_its_transaction_by_a_method(store: PostgresStore, method: str) -> None:
    with pytest.raises(RuntimeError, match="must not begin, commit or roll back"):
        await store.transaction(lambda connection: _call(connection, method))
    assert await store.get("key") is None


def _call(connection: Any, method: str) -> None:
    getattr(connection, method)()


async def test_work_may_use_savepoints(store: PostgresStore) -> None:
    def work(connection: Any) -> int:
        insert(connection, 1)
        connection.execute("SAVEPOINT mine")
        insert(connection, 2)
        connection.execute("ROLLBACK TO SAVEPOINT mine")
        with pytest.raises(psycopg.Error), connection.transaction():
            connection.execute("SELECT nothing")
        return count(connection)

    assert await store.transaction(work) == 1


async def test_work_that_continues_after_an_error_changes_nothing(store: PostgresStore) -> None:
    def work(connection: Any) -> str:
        insert(connection, 1)
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT nothing")
        return "done"

    await store.transaction(lambda connection: insert(connection, 0))
    with pytest.raises(StoreError, match="but the work continued"):
        await store.transaction(work)
    assert await store.transaction(count) == 1


async def test_async_work_is_refused(store: PostgresStore) -> None:
    async def function(_connection: Any) -> None:
        pass

    work: Any = function
    with pytest.raises(TypeError, match="plain function"):
        await store.transaction(work)


async def test_work_whose_commit_is_refused_fails_alone(store: PostgresStore) -> None:
    def make(connection: Any) -> None:
        connection.execute("CREATE TABLE mine (number INT UNIQUE DEFERRABLE INITIALLY DEFERRED)")

    def twice(connection: Any) -> None:
        connection.execute("INSERT INTO mine VALUES (1), (1)")

    await store.transaction(make)
    async with trio.open_nursery() as nursery, hold_thread(store):
        nursery.start_soon(store.put, "key", "value")
        nursery.start_soon(_expect, psycopg.errors.UniqueViolation, store, twice)
        await trio.testing.wait_all_tasks_blocked()
    assert await store.get("key") == "value"
    assert await store.transaction(count) == 0


async def _expect(kind: type[Exception], store: PostgresStore, work: Any) -> None:
    with pytest.raises(kind):
        await store.transaction(work)


async def test_sums_are_exact_at_any_size(store: PostgresStore) -> None:
    large = str(2**200)
    query = "SELECT lpi_add(%s, %s), lpi_add(%s, %s), lpi_add(NULL, '1')"
    row = await store.transaction(
        lambda connection: connection.execute(query, (large, "1", large, f"-{large}")).fetchone()
    )
    assert row == (str(2**200 + 1), "0", None)


# Connections.


async def test_connection_that_was_terminated_is_made_again(store: PostgresStore, postgres_server: Server) -> None:
    await store.put("key", "value")
    pid = await store.transaction(lambda connection: connection.info.backend_pid)
    postgres_server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
    with pytest.raises(StoreError, match=r"PostgreSQL \(schema lpi\): "):
        await store.put("key", "lost")
    assert await store.get("key") == "value"


async def test_late_work_holds_up_works_on_other_connections(postgres_dsn: str) -> None:
    """A caller that gave up may look what has become of its work: it must not look before the work has ended."""
    async with open_postgres_store(postgres_dsn, connections=2, replication="none") as store:
        await store.transaction(lambda connection: insert(connection, 0))
        holding = psycopg.connect(postgres_dsn)
        holding.execute("LOCK TABLE lpi.mine")
        with trio.move_on_after(0.1) as scope:
            await store.transaction(lambda connection: insert(connection, 1))
        assert scope.cancelled_caught
        found: list[int] = []

        async def look() -> None:
            found.append(await store.transaction(count))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(0.1)
            assert found == []
            holding.rollback()
        holding.close()
        assert found == [2]


async def test_plugins_that_come_and_go_leave_no_statements_behind(store: PostgresStore) -> None:
    """The server keeps each prepared statement as long as the connection, which may be months."""

    async def take(_amount: str) -> None:
        pass

    query = "SELECT count(*) FROM pg_prepared_statements"
    counts = []
    for _ in range(3):
        async with loopback_pair(PluginServices(store=store)) as (payer, payee):
            payee.register_money_handler(take)
            await payer.send_money(1)
        counts.append(await store.transaction(lambda connection: connection.execute(query).fetchone()))
    assert counts[0] == counts[1] == counts[2]


async def test_two_stores_share_a_database_and_schemas_do_not(postgres_dsn: str) -> None:
    async with (
        open_postgres_store(postgres_dsn, replication="none") as first,
        open_postgres_store(postgres_dsn, replication="none") as second,
        open_postgres_store(postgres_dsn, replication="none", schema='an "other"') as third,
    ):
        assert await first.put_if_absent("key", "first") == "first"
        assert await second.put_if_absent("key", "second") == "first"
        assert await third.get("key") is None


async def test_put_if_absent_has_one_winner_among_processes(postgres_dsn: str) -> None:
    """The second waits for the first's transaction, and gets its value: no two owners of one new name."""
    async with (
        open_postgres_store(postgres_dsn, replication="none") as first,
        open_postgres_store(postgres_dsn, replication="none") as second,
    ):
        token, entered = trio.lowlevel.current_trio_token(), trio.Event()
        winners: list[str] = []

        def enter_slowly(connection: Any) -> None:
            connection.execute("INSERT INTO lpi_values VALUES ('key', 'first')")
            token.run_sync_soon(entered.set)
            connection.execute("SELECT pg_sleep(0.3)")

        async def enter() -> None:
            winners.append(await second.put_if_absent("key", "second"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.transaction, enter_slowly)
            await entered.wait()
            nursery.start_soon(enter)
        assert winners == ["first"]


# Opening.


async def test_server_without_a_standby_is_refused(postgres_dsn: str) -> None:
    with pytest.raises(StoreError, match="no synchronous standby"):
        async with open_postgres_store(postgres_dsn):
            raise AssertionError("opened")
    async with open_postgres_store(postgres_dsn, replication="trusted") as store:
        await store.put("key", "value")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connections": 0}, "connections: got 0"),
        ({"schema": ""}, "schema: must be"),
        ({"replication": "maybe"}, "replication: got 'maybe'"),
    ],
)
async def test_wrong_arguments_are_named(options: Any, message: str) -> None:
    with pytest.raises(InvalidFieldsError, match=message):
        async with open_postgres_store("postgresql:///", **options):
            raise AssertionError("opened")


@pytest.mark.parametrize(
    "dsn",
    [
        f"host=/nowhere password={CANARY}",
        f"postgresql://user:{CANARY}@127.0.0.1:1/db",
        f"postgresql://user:a@{CANARY}@127.0.0.1:1/db",
        f"host=/nowhere pasword={CANARY}",
        f"host=/nowhere {CANARY}",
        f"postgresql://user:{CANARY}@127.0.0.1:port/db",
    ],
)
async def test_no_error_shows_the_password(dsn: str) -> None:
    for given in (dsn, Secret(dsn)):
        with pytest.raises((StoreError, InvalidFieldsError)) as caught:
            async with open_postgres_store(given, replication="none"):
                raise AssertionError("opened")
        error: BaseException | None = caught.value
        while error is not None:
            assert CANARY not in f"{error!r} {error}"
            error = error.__cause__ or error.__context__


async def test_no_repr_shows_the_password(postgres_dsn: str) -> None:
    async with open_postgres_store(f"{postgres_dsn} password={CANARY}", replication="none") as store:
        assert CANARY not in f"{store!r} {vars(store)!r}"


def test_package_does_not_import_psycopg() -> None:
    program = "import sys, trio_ledger_plugin, trio_ledger_plugin.stores; assert 'psycopg' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


MISSING = """
import sys, trio
sys.modules["psycopg"] = None
from trio_ledger_plugin.stores import open_postgres_store

async def main():
    try:
        async with open_postgres_store("postgresql:///"):
            pass
    except ModuleNotFoundError as error:
        print(error)

trio.run(main)
"""


def test_missing_extra_is_one_sentence_with_the_command() -> None:
    done = subprocess.run([sys.executable, "-c", MISSING], check=True, timeout=30, capture_output=True, text=True)
    assert (
        done.stdout == "open_postgres_store() needs psycopg, which is an extra; in a clone: pip install '.[postgres]'\n"
    )


# Accounts.


class LateStore:
    """A store whose owner is held up between its look for a name's token and its entry."""

    def __init__(self, inner: PostgresStore) -> None:
        self.inner = inner
        self.put, self.get, self.delete = inner.put, inner.get, inner.delete
        self.looked, self.may_add = trio.Event(), trio.Event()

    async def put_if_absent(self, key: str, value: str) -> str:
        if key.startswith("alice"):
            self.looked.set()
            await self.may_add.wait()
        return await self.inner.put_if_absent(key, value)


async def test_new_name_gets_one_owner_among_two_servers(postgres_dsn: str) -> None:
    """Two processes that share a store both let in the first who asked for a name."""
    async with (
        open_postgres_store(postgres_dsn, replication="none") as one,
        open_postgres_store(postgres_dsn, replication="none") as two,
        open_tasks() as tasks,
        trio.open_nursery() as nursery,
    ):
        late = LateStore(one)
        receive: Any = None
        context = evolve(
            Context.for_plugin(
                PluginOptions(), PluginServices(), nursery, receive=receive, on_end=receive, is_busy=receive
            ),
            tasks=tasks,
        )
        first, second = (AccountTokens(store, False, context, lambda _: False) for store in (late, two))
        refused: list[NotAcceptedError] = []

        async def log_in() -> None:
            with pytest.raises(NotAcceptedError) as caught:
                await first.verify("alice", b"first")
            refused.append(caught.value)

        nursery.start_soon(log_in)
        await late.looked.wait()
        await second.verify("alice", b"second")
        late.may_add.set()
        while not refused:  # noqa: ASYNC110 (nothing else tells)
            await trio.sleep(0.01)
        await second.verify("alice", b"second")
