"""What a host's plugin stores comes back, and a cancelled call has done nothing."""

from typing import Any

import pytest
import trio
import trio.testing

from trio_ledger_plugin.errors import InvalidFieldsError
from trio_ledger_plugin.stores import MemoryStore, open_sqlite_store


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: Any, tmp_path: Any) -> Any:
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with open_sqlite_store(tmp_path / "store.db") as store:
            yield store


async def test_what_was_stored_comes_back(store: Any) -> None:
    await store.put("key", "one")
    await store.put("key", "two")
    assert await store.get("key") == "two"
    assert await store.get("other") is None


async def test_deleting_is_final_and_safe_twice(store: Any) -> None:
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
        ("get", (5,), "key"),
        ("delete", (None,), "key"),
    ],
)
async def test_anything_but_text_is_refused(store: Any, method: Any, arguments: Any, what: Any) -> None:
    with pytest.raises(TypeError, match=f"store's {what} is text"):
        await getattr(store, method)(*arguments)


@pytest.mark.parametrize(
    ("method", "arguments", "what"),
    [("put", ("\ud800", "value"), "key"), ("put", ("key", "a\udfff"), "value"), ("get", ("\ud800",), "key")],
)
async def test_text_that_cannot_be_written_is_refused(store: Any, method: Any, arguments: Any, what: Any) -> None:
    """And not by an error of Python's codec, which shows all of it."""
    with pytest.raises(InvalidFieldsError, match=f"store's {what} has a lone surrogate") as caught:
        await getattr(store, method)(*arguments)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(("method", "arguments"), [("put", ("key", "new")), ("get", ("key",)), ("delete", ("key",))])
async def test_every_call_lets_others_run_and_changes_nothing_when_cancelled(
    store: Any, method: Any, arguments: Any
) -> None:
    with trio.testing.assert_checkpoints():
        await getattr(store, method)(*arguments)
    await store.put("key", "old")
    with trio.CancelScope() as scope:
        scope.cancel()
        await getattr(store, method)(*arguments)
    assert scope.cancelled_caught
    assert await store.get("key") == "old"
