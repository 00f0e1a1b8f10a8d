"""Lookups that come together share a transaction of the store, and each has its own outcome."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from support.tasks import open_tasks
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin.errors import StoreError
from trio_ledger_plugin.net.lookups import AT_ONCE, Lookups
from trio_ledger_plugin.runtime.tasks import TaskGroup
from trio_ledger_plugin.stores import SqliteStore, open_sqlite_store


class CountedStore:
    """A store that counts transactions, and that a test can hold up and make fail."""

    def __init__(self, inner: SqliteStore) -> None:
        self.put, self.get, self.delete = inner.put, inner.get, inner.delete
        self._inner = inner
        self.updates = 0
        self.error: Exception | None = None
        self.may_begin = trio.Event()
        self.may_begin.set()

    async def update(self, decide: Any) -> Any:
        self.updates += 1
        await self.may_begin.wait()
        if self.error is not None:
            raise self.error
        return await self._inner.update(decide)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CountedStore]:
    async with open_sqlite_store(tmp_path / "store.db") as inner:
        yield CountedStore(inner)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    async with open_tasks() as tasks:
        yield tasks


def take(key: str, value: str) -> Any:
    """Return a lookup that takes a key if it is free, and says whose it is."""

    def decide(read: Any) -> Any:
        (known,) = read((key,))
        return (known, {}) if known is not None else (value, {key: value})

    return decide


def ignore(result: object) -> None:
    pass


async def run_all(lookups: Lookups, *decides: Any) -> list[Any]:
    results: list[Any] = [None] * len(decides)

    async def run(number: int) -> None:
        try:
            results[number] = await lookups.run(decides[number], ignore)
        except StoreError as error:
            results[number] = error

    async with trio.open_nursery() as nursery:
        for number in range(len(decides)):
            nursery.start_soon(run, number)
    return results


async def test_lookups_that_come_together_share_a_transaction(store: CountedStore, tasks: TaskGroup) -> None:
    lookups = Lookups(tasks, store)
    assert await run_all(lookups, *(take(f"key {n}", f"{n}") for n in range(10))) == [f"{n}" for n in range(10)]
    assert store.updates == 1
    assert await lookups.run(take("key 3", "other"), ignore) == "3"
    many = 2 * AT_ONCE + 1
    assert await run_all(lookups, *(take(f"more {n}", "x") for n in range(many))) == ["x"] * many
    assert store.updates == 5


async def test_same_key_in_one_transaction_has_one_owner(store: CountedStore, tasks: TaskGroup) -> None:
    """Two clients that ask for a new name at the same moment would both get it."""
    results = await run_all(Lookups(tasks, store), *(take("name", f"client {n}") for n in range(5)))
    assert len(set(results)) == 1
    assert await store.get("name") == results[0]


async def test_failure_of_the_store_reaches_each_lookup(store: CountedStore, tasks: TaskGroup) -> None:
    lookups = Lookups(tasks, store)
    store.error = OSError("the disk is gone")
    errors = await run_all(lookups, take("a", "1"), take("b", "2"))
    assert all(isinstance(error, StoreError) and error.__cause__ is store.error for error in errors)
    assert errors[0] is not errors[1]
    store.error = None
    assert await lookups.run(take("a", "1"), ignore) == "1"


async def test_cancelled_lookup_leaves_the_others(store: CountedStore, tasks: TaskGroup) -> None:
    """A client whose time is over must not take others with it."""
    lookups = Lookups(tasks, store)
    store.may_begin = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_all, lookups, take("a", "1"))
        await wait_all_tasks_blocked()
        with trio.move_on_after(0) as scope:
            await lookups.run(take("b", "2"), ignore)
        assert scope.cancelled_caught
        nursery.start_soon(run_all, lookups, take("c", "3"))
        await wait_all_tasks_blocked()
        store.may_begin.set()
    assert [await store.get(key) for key in "abc"] == ["1", None, "3"]
    assert store.updates == 2


async def test_result_is_noted_if_its_caller_is_gone(store: CountedStore, tasks: TaskGroup) -> None:
    """What is in the store must be counted, whether the client has waited for it or not."""
    lookups = Lookups(tasks, store)
    store.may_begin = trio.Event()
    noted: list[str] = []
    with trio.move_on_after(0.01) as scope:
        await lookups.run(take("a", "1"), noted.append)
    assert scope.cancelled_caught
    store.may_begin.set()
    assert await lookups.run(take("b", "2"), noted.append) == "2"
    assert noted == ["1", "2"]
