"""On a failing disk, acknowledged values are kept, failed ones are not, and no change is kept in part."""

from collections import Counter
from contextlib import suppress
from random import Random

import pytest
import trio
from support.faulty_vfs import faulty_vfs

from trio_ledger_plugin.errors import StoreError, StoreInDoubtError
from trio_ledger_plugin.stores import open_sqlite_store

TASKS = 5
EACH = 4
ROUNDS = 2
REFUSED = min(TASKS, EACH) * ROUNDS


@pytest.fixture
def faults():
    with faulty_vfs() as faults:
        yield faults


def make_tables(connection):
    connection.execute("CREATE TABLE IF NOT EXISTS debits (name TEXT, filling BLOB)")
    connection.execute("CREATE TABLE IF NOT EXISTS credits (name TEXT)")


async def transfer(store, name, filling, outcomes):
    """Change two tables, so that a change done twice or by half can be seen; record the caller's outcome."""

    def work(connection):
        connection.execute("INSERT INTO debits VALUES (?, zeroblob(?))", (name, filling))
        if name.endswith("refused"):
            raise ValueError(name)
        connection.execute("INSERT INTO credits VALUES (?)", (name,))

    try:
        await store.transaction(work)
        outcomes[name] = "done"
    except StoreInDoubtError:
        outcomes[name] = "in doubt"
    except (StoreError, ValueError):
        outcomes[name] = "failed"


async def busy_day(path, filling, outcomes):
    """Open the store, let several tasks use it at once, and close it; repeat for each round."""
    for round_ in range(ROUNDS):
        async with open_sqlite_store(path) as store:
            await store.transaction(make_tables)

            async def customer(number, round_=round_, store=store):
                for i in range(EACH):
                    name = f"{round_}.{number}.{i}{'refused' if number == i else ''}"
                    await transfer(store, name, filling, outcomes)

            async with trio.open_nursery() as nursery:
                for number in range(TASKS):
                    nursery.start_soon(customer, number)


async def read_tables(path):
    def work(connection):
        make_tables(connection)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = ("SELECT name FROM debits", "SELECT name FROM credits")
        return [Counter(name for (name,) in connection.execute(table)) for table in tables]

    async with open_sqlite_store(path) as store:
        return await store.transaction(work)


async def check(path, outcomes):
    debited, credited = await read_tables(path)
    assert debited == credited, "half a transaction is there"
    assert set(debited.values()) <= {1}, "a transaction was done twice"
    for name, word in outcomes.items():
        if word != "in doubt":
            assert debited[name] == (word == "done"), f"{name} was reported as {word}"
    assert set(debited) <= set(outcomes)


async def count_operations(faults, path, filling):
    await busy_day(path, filling, {})
    return faults.operations


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize("kind", ["ioerr", "full"])
@pytest.mark.parametrize(("filling", "points"), [(10, 60), (150_000, 5)])
async def test_acknowledged_values_survive_a_failing_disk(tmp_path, faults, kind, forever, filling, points):
    """With the large filling, the log is checkpointed into the database while the store is in use."""
    total = await count_operations(faults, tmp_path / "none.db", filling)
    whole = 0
    # The number of operations depends on which calls happen to wait together; the last point is after all of them.
    for after in (*range(1, total, max(total // points, 1)), 10 * total):
        path = tmp_path / f"{after}.db"
        outcomes: dict[str, str] = {}
        faults.arm(after=after, kind=kind, forever=forever)
        with suppress(StoreError):  # opening the store may fail
            await busy_day(path, filling, outcomes)
        faults.disarm()
        await check(path, outcomes)
        words = Counter(outcomes.values())
        whole += words["done"] == TASKS * EACH * ROUNDS - REFUSED
        if forever:
            assert words["in doubt"] <= TASKS, "a disk that is known to be dead leaves no more in doubt"
        else:
            assert words["in doubt"] == 0, "one failure that is over leaves no doubt"
            assert words["failed"] <= REFUSED + int(kind == "full")
    assert whole > 0


@pytest.mark.parametrize("random", [None, Random(1), Random(2)], ids=["nothing", "some", "others"])
@pytest.mark.parametrize(("filling", "points"), [(10, 60), (150_000, 5)])
async def test_acknowledged_values_survive_a_loss_of_power(tmp_path, faults, random, filling, points):
    """The disk keeps what was synced, and any part of the rest."""
    total = await count_operations(faults, tmp_path / "none.db", filling)
    places = range(1, total, max(total // points, 1))
    crashes = 0
    for after in places:
        path = tmp_path / f"{after}.db"
        outcomes: dict[str, str] = {}
        faults.arm(after=after, kind="crash")
        with suppress(StoreError):
            await busy_day(path, filling, outcomes)
        # The number of operations depends on which calls happen to wait together: the last places may be behind them.
        crashes += faults.crashed
        faults.recover(random)
        await check(path, outcomes)
    assert crashes >= 0.8 * len(places)
