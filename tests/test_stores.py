"""A stored value comes back, and a cancelled call changes nothing."""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import outcome
import pytest
import trio
import trio.testing

from trio_ledger_plugin.errors import InvalidFieldsError, StoreError
from trio_ledger_plugin.net.store_values import update
from trio_ledger_plugin.stores import MemoryStore, open_postgres_store, open_sqlite_store
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.stores.values import Values
from trio_ledger_plugin.stores.worker import Database, Result, WorkerStore, opened


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request: Any, tmp_path: Any) -> Any:
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "postgres":
        dsn = request.getfixturevalue("postgres_dsn")
        async with open_postgres_store(dsn, replication="none") as store:
            yield store
    else:
        async with open_sqlite_store(tmp_path / "store.db") as store:
            yield store


async def test_stored_values_come_back(store: Any) -> None:
    await store.put("key", "one")
    await store.put("key", "two")
    assert await store.get("key") == "two"
    assert await store.get("other") is None


async def test_put_if_absent_returns_the_value_that_was_first(store: Any) -> None:
    assert await store.put_if_absent("key", "first") == "first"
    assert await store.put_if_absent("key", "second") == "first"
    assert await store.get("key") == "first"


async def test_update_reads_and_changes_values(store: Any) -> None:
    await store.put("changed", "1")
    await store.put("removed", "2")

    def decide(read: Any) -> tuple[str, dict[str, str | None]]:
        found = read(("changed", "removed", "new")), read(("untouched",))
        assert found == (["1", "2", None], [None])
        return "done", {"changed": "one", "removed": None, "new": "3", "untouched": None}

    assert await update(store, decide) == "done"
    assert [await store.get(key) for key in ("changed", "removed", "new", "untouched")] == ["one", None, "3", None]


@pytest.mark.parametrize("store", ["sqlite", "postgres"], indirect=True)
@pytest.mark.parametrize("before", [None, "old"])
async def test_update_starts_again_when_others_were_faster(store: Any, before: str | None) -> None:
    """Two servers would give one name to two tokens."""
    if before is not None:
        await store.put("key", before)
    seen: list[str | None] = []

    def work(connection: Any) -> str:
        values = Values(store.dialect)

        def decide(read: Any) -> tuple[str, dict[str, str | None]]:
            (value,) = read(("key",))
            seen.append(value)
            if len(seen) == 1:
                # As another process may, between the look and the change.
                values.put(connection, "key", "theirs")
            return "mine", {"key": f"{value} and mine"}

        return values.update(connection, decide)

    assert await store.transaction(work) == "mine"
    assert seen == [before, "theirs"]
    assert await store.get("key") == "theirs and mine"


async def test_delete_removes_the_value_and_is_safe_twice(store: Any) -> None:
    await store.put("key", "value")
    await store.delete("key")
    await store.delete("key")
    assert await store.get("key") is None


async def test_two_stores_share_nothing(store: Any, tmp_path: Any) -> None:
    await store.put("key", "value")
    assert await MemoryStore().get("key") is None
    async with open_sqlite_store(tmp_path / "other.db") as other:
        assert await other.get("key") is None


@pytest.mark.parametrize(
    ("method", "arguments", "what"),
    [
        ("put", (b"key", "value"), "key"),
        ("put", ("key", 5), "value"),
        ("put", ("key", None), "value"),
        ("put_if_absent", ("key", None), "value"),
        ("get", (5,), "key"),
        ("delete", (None,), "key"),
    ],
)
async def test_other_types_than_text_are_refused(store: Any, method: Any, arguments: Any, what: Any) -> None:
    with pytest.raises(TypeError, match=f"store's {what} is text"):
        await getattr(store, method)(*arguments)


@pytest.mark.parametrize(
    ("method", "arguments", "what"),
    [("put", ("\ud800", "value"), "key"), ("put", ("key", "a\udfff"), "value"), ("get", ("\ud800",), "key")],
)
async def test_text_that_utf8_cannot_encode_is_refused(store: Any, method: Any, arguments: Any, what: Any) -> None:
    """Python's UnicodeEncodeError, which contains the whole text, must not leave the store."""
    with pytest.raises(InvalidFieldsError, match=f"store's {what} has a lone surrogate") as caught:
        await getattr(store, method)(*arguments)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("put", ("a\0b", "value")), ("put_if_absent", ("\0", "value")), ("get", ("a\0b",)), ("delete", ("\0",))],
)
async def test_key_with_a_nul_character_is_refused(store: Any, method: Any, arguments: Any) -> None:
    """PostgreSQL's text cannot hold it, so a program would fail when it changes its store."""
    with pytest.raises(InvalidFieldsError, match="store's key has a NUL character"):
        await getattr(store, method)(*arguments)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("put", ("key", "new")), ("put_if_absent", ("key", "new")), ("get", ("key",)), ("delete", ("key",))],
)
async def test_calls_are_checkpoints_and_change_nothing_if_cancelled(store: Any, method: Any, arguments: Any) -> None:
    with trio.testing.assert_checkpoints():
        await getattr(store, method)(*arguments)
    await store.put("key", "old")
    with trio.CancelScope() as scope:
        scope.cancel()
        await getattr(store, method)(*arguments)
    assert scope.cancelled_caught
    assert await store.get("key") == "old"


async def test_update_that_changes_nothing_waits_for_no_other_program(tmp_path: Any) -> None:
    """An operator's tool that writes to the file must not keep clients out."""
    path = tmp_path / "store.db"
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        with closing(sqlite3.connect(path, isolation_level=None)) as tool:
            tool.execute("BEGIN IMMEDIATE")
            with trio.fail_after(0.5):
                assert await store.update(lambda read: (read(("key", "other")), {})) == ["value", None]
            with pytest.raises(StoreError):
                await store.update(lambda read: (read(("key",)), {"key": "changed"}))
        assert await store.get("key") == "value"


class _NoDatabase(Database):
    """Calls works without a database."""

    def transaction(self, works: Sequence[Callable[[Any], Any]]) -> list[Result]:
        return [outcome.capture(work, None) for work in works]

    def close(self) -> None:
        pass


async def test_callers_that_give_up_behind_a_late_work_block_nothing() -> None:
    """A thread would wait for a work that it has to run itself, and the store would hang for good."""
    may_end = threading.Event()
    ran: list[str] = []
    two: WorkerStore[Any] = WorkerStore("two threads", SQLITE, [_NoDatabase, _NoDatabase])
    async with opened(two) as store:
        with trio.move_on_after(0.05):
            await store.transaction(lambda _: may_end.wait(10))
        with trio.move_on_after(0.05):
            await store.transaction(lambda _: ran.append("cancelled"))
        may_end.set()
        with trio.fail_after(5):
            await store.transaction(lambda _: ran.append("next"))
    assert ran == ["next"]
