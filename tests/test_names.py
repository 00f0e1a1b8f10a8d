"""The names in a server's store: their number is limited, and one that was only tried is forgotten."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
from support.accounts import ask, enter, leave, open_accounts, options
from support.peers import TOKEN, dial

from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.net import names, store_values
from trio_ledger_plugin.stores import MemoryStore, SqliteStore, open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import echo


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with open_sqlite_store(tmp_path / "store.db") as store:
        yield store


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """One name may be forgotten at a time, and what happens is recorded soon."""
    monkeypatch.setattr(names, "PLACES", 1)
    monkeypatch.setattr(names, "RECORD_SECONDS", 0.01)


async def visit(plugin: Any, account: str, token: str = TOKEN) -> None:
    """Connect, and leave without having done anything."""
    peer = await enter(plugin, account, token)
    await peer.aclose()
    while plugin.account(account).is_connected():  # noqa: ASYNC110 (the end of a connection is seen later)
        await trio.sleep(0.001)


async def until(condition: Callable[[], Awaitable[object]]) -> None:
    with trio.fail_after(5):
        while not await condition():  # noqa: ASYNC110 (there is no event to wait for)
            await trio.sleep(0.005)


async def is_free(plugin: Any, account: str) -> bool:
    """Whether a name has no owner."""
    return await plugin.services.store.get(f"{account}:token:main") is None


async def refusal(plugin: Any, account: str, token: str = TOKEN) -> Any:
    peer = await dial(plugin.address)
    error = await peer.authenticate(token, account=account)
    await leave(peer)
    return error


async def test_name_that_was_only_tried_is_forgotten(store: SqliteStore) -> None:
    """Names are free: a client that takes one after the other would fill the disk."""
    async with open_accounts(store=store) as plugin:
        await visit(plugin, "first")
        for number in range(5):
            await visit(plugin, f"name-{number}")
        await until(lambda: is_free(plugin, "name-3"))
        assert await is_free(plugin, "first")
        assert not await is_free(plugin, "name-4")
        await until(lambda: _has(store, "lpi:names:main", "1"))
        # It is anybody's now.
        await visit(plugin, "first", "another token")


async def test_connected_name_keeps_a_place_when_the_store_fails(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that lost its place before the store failed would have stayed for ever."""
    calls = 0

    async def update(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise OSError("the disk is full")
        return await store_values.update(*args)

    monkeypatch.setattr(names, "AT_ONCE", 1)
    monkeypatch.setattr(names, "RECORD_SECONDS", 3600)
    async with open_accounts(store=store) as plugin:
        peers = [await enter(plugin, f"name-{number}") for number in range(3)]
        kept = plugin.tokens.names
        assert kept is not None
        monkeypatch.setattr(names, "update", update)
        # The second takes the place of the first, which is connected; the third fails.
        await kept._record()
        assert sorted(kept._without_place) == ["name-0", "name-2"]
        for peer in peers:
            await peer.aclose()


async def _has(store: SqliteStore, key: str, value: str) -> bool:
    return await store.get(key) == value


@pytest.mark.parametrize("how", ["shows its token again", "asks", "is asked"])
async def test_name_that_was_used_is_never_forgotten(store: SqliteStore, how: str) -> None:
    """It may have money, and another client could take it with a token of its own."""
    async with open_accounts(store=store, data_handler=echo) as plugin:
        peer = await enter(plugin, "alice")
        if how == "asks":
            await ask(peer, b"?")
        elif how == "is asked":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plugin.account("alice").send_data, b"?")
                request = await peer.receive_packet()
                await peer.respond(request.request_id, b"!")
        await peer.aclose()
        if how == "shows its token again":
            await visit(plugin, "alice")
        await until(lambda: _is_kept(store, "alice"))
        for number in range(5):
            await visit(plugin, f"name-{number}")
        await until(lambda: is_free(plugin, "name-3"))
        assert (await refusal(plugin, "alice", "another token")).code == "F00"
        await visit(plugin, "alice")


async def _is_kept(store: SqliteStore, account: str) -> bool:
    return (await store.get(f"{account}:token:main") or "").startswith("hmac-sha256:")


async def test_name_is_kept_while_it_is_connected(store: SqliteStore) -> None:
    async with open_accounts(store=store) as plugin:
        peer = await enter(plugin, "alice")
        for number in range(5):
            await visit(plugin, f"name-{number}")
        await trio.sleep(0.1)
        assert not await is_free(plugin, "alice")
        await peer.aclose()
        for number in range(5, 10):
            await visit(plugin, f"name-{number}")
        await until(lambda: is_free(plugin, "alice"))


async def test_name_in_use_over_a_long_connection_is_kept(store: SqliteStore) -> None:
    """It must not depend on an orderly end of the program."""
    async with open_accounts(store=store, data_handler=echo) as plugin:
        peer = await enter(plugin, "alice")
        await ask(peer, b"?")
        await until(lambda: _is_kept(store, "alice"))
        await peer.aclose()


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
async def test_number_of_names_is_limited(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "PLACES", 1000)

    async def run(store: Any) -> None:
        for known in (["a", "b"], ["a", "b"]):
            async with open_accounts(options(max_accounts=2), store=store) as plugin:
                for name in known:
                    await visit(plugin, name)
                error = await refusal(plugin, "c")
                # Temporary: there may be room later.
                assert (error.code, error.data) == (
                    "T00",
                    b"this server remembers too many accounts; try again later",
                )
                assert plugin.statistics().links_refused == 1
                # A name that the token proves takes no room.
                await (await enter(plugin)).aclose()
                await trio.sleep(0.1)

    if kind == "memory":
        await run(MemoryStore())
        return
    async with open_sqlite_store(tmp_path / "names.db") as store:
        await run(store)


class SlowStore:
    """A store that takes its time."""

    def __init__(self, inner: SqliteStore, seconds: float) -> None:
        self.put, self.get, self.delete, self.put_if_absent = inner.put, inner.get, inner.delete, inner.put_if_absent
        self._inner = inner
        self.seconds = seconds

    async def update(self, decide: Any) -> Any:
        await trio.sleep(self.seconds)
        return await self._inner.update(decide)


async def test_name_whose_client_has_hung_up_meanwhile_is_forgotten(store: SqliteStore) -> None:
    """A client that hangs up while the store is asked would fill the disk, and the table of names for good."""
    async with open_accounts(options(auth_timeout=0.2), store=SlowStore(store, 0.02)) as plugin:
        for number in range(5):
            peer = await dial(plugin.address)
            await peer.send(peer.frame(auth_message(1, f"name-{number}", TOKEN, {})))
            await peer.aclose()
        # The number is 1 after the first name as well.
        await trio.sleep(0.5)
        await until(lambda: _has(store, "lpi:names:main", "1"))
        assert sum([not await is_free(plugin, f"name-{number}") for number in range(5)]) == 1
        assert plugin.tokens.names is not None
        assert not plugin.tokens.names._watched


async def test_name_of_a_login_that_took_too_long_is_counted(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit would not hold for clients that make the server drop them."""
    monkeypatch.setattr(names, "PLACES", 1000)
    slow = SlowStore(store, 0.0)
    async with open_accounts(options(auth_timeout=0.1, max_accounts=2), store=slow) as plugin:
        await visit(plugin, "first")
        slow.seconds = 0.2
        assert (await refusal(plugin, "late")).code == "T00"
        slow.seconds = 0.0
        await until(lambda: _has(store, "lpi:names:main", "2"))
        assert b"too many accounts" in (await refusal(plugin, "c")).data


class SimpleStore:
    """An application's store, which has no transactions and takes its time."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.seconds = 0.0

    async def get(self, key: str) -> str | None:
        await trio.lowlevel.checkpoint()
        return self.values.get(key)

    async def put(self, key: str, value: str) -> None:
        self.values[key] = value
        await trio.sleep(self.seconds)

    async def delete(self, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self.values.pop(key, None)


async def test_cancelled_login_is_counted_without_transactions() -> None:
    """The name is stored, and there would be more and more of them."""
    store = SimpleStore()
    async with open_accounts(options(auth_timeout=0.1, max_accounts=2), store=store) as plugin:
        await visit(plugin, "first")
        store.seconds = 0.2
        assert (await refusal(plugin, "late")).code == "T00"
        store.seconds = 0.0
        assert b"too many accounts" in (await refusal(plugin, "c")).data


async def test_names_are_recorded_when_the_store_works_again(store: SqliteStore) -> None:
    """Until then, nothing is lost but time."""
    async with open_accounts(store=store) as plugin:
        await visit(plugin, "first")
        await until(lambda: _has(store, "lpi:names:main", "1"))
        await visit(plugin, "second")
        await store.transaction(partial(rename, "lpi_values", "lpi_gone"))
        await trio.sleep(0.1)
        await store.transaction(partial(rename, "lpi_gone", "lpi_values"))
        await until(lambda: is_free(plugin, "first"))
        assert not await is_free(plugin, "second")


def rename(table: str, name: str, connection: Any) -> None:
    connection.execute(f"ALTER TABLE {table} RENAME TO {name}")
