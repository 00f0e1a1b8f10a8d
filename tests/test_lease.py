"""One process at a time owns a ledger; another takes it over, and the first one changes nothing afterwards."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import trio
from support.ledgers import (
    WEEK,
    HeldStore,
    Payer,
    open_journal,
    open_payer,
    receive,
    settle,
    states,
    sums,
    two_stores,
    until,
)
from support.scripted import ScriptedOptions

from trio_ledger_plugin import (
    InvalidServicesError,
    LedgerLostError,
    PluginFailedError,
    PluginServices,
    StoreError,
    TransferInDoubtError,
    open_plugin,
)
from trio_ledger_plugin.money.lease import BEAT_SECONDS, LEASE_SECONDS
from trio_ledger_plugin.stores import MemoryStore, open_sqlite_store
from trio_ledger_plugin.stores.postgres_dialect import PostgresClaims

CLAIMS = PostgresClaims()


@pytest.fixture(autouse=True)
def lease_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of Trio decides how old a claim is, so that a test can let time pass."""
    monkeypatch.setattr("trio_ledger_plugin.money.lease.clock", trio.current_time)


def find(store: HeldStore) -> Any:
    return store.inner.transaction(partial(CLAIMS.find, ledger="main"))


async def take_by_force(store: HeldStore) -> None:
    """Take the ledger as a process does that has waited for long enough."""
    found = await find(store)
    epoch = await store.inner.transaction(partial(CLAIMS.take, ledger="main", owner="another", seen=found))
    assert epoch == found[0] + 1


async def test_second_process_is_refused_while_the_first_is_alive(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second), open_payer(first):
        with pytest.raises(ExceptionGroup) as caught:
            async with open_payer(second):
                raise AssertionError("opened")
        assert caught.group_contains(InvalidServicesError, match="another process .* keeps ledger 'main'")
        # It is refused at the first sign of life.
        assert trio.current_time() < LEASE_SECONDS


async def test_ledger_that_was_released_is_taken_at_once(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second):
        async with open_payer(first) as payer:
            await payer.aclose()
        before = trio.current_time()
        async with open_payer(second):
            assert trio.current_time() < before + 0.1
        assert (await find(first))[0] == 2


async def test_ledger_of_a_process_that_died_is_taken_after_a_lease(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second):
        await take_by_force(first)
        async with open_payer(second):
            assert LEASE_SECONDS <= trio.current_time() <= LEASE_SECONDS + 2 * BEAT_SECONDS


async def test_standby_waits_and_takes_over(postgres_dsn: str, clock: Any) -> None:
    """Its port opens with the ledger, whatever the connect timeout is."""
    opts = {"plugin": "btp", "listener": {"port": 0, "secret": "s"}, "connectTimeout": 1000, "standby": True}
    opened = trio.Event()

    async def stand_by(store: HeldStore) -> None:
        async with open_plugin(opts, PluginServices(store=store)) as plugin:
            assert plugin.is_connected() is False
            await (await trio.open_tcp_stream("127.0.0.1", int(plugin.address.rpartition(":")[2]))).aclose()
            opened.set()

    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        async with open_payer(first) as payer:
            nursery.start_soon(stand_by, second)
            await trio.sleep(5 * LEASE_SECONDS)
            assert not opened.is_set()
            await payer.aclose()
        with trio.fail_after(BEAT_SECONDS + 1):
            await opened.wait()


async def test_only_a_standby_waits_for_a_store_that_fails_at_the_start(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        first.refuses = second.refuses = True
        with pytest.raises(StoreError):
            await (await _make_payer(first, nursery)).connect()
        waiting = await _make_payer(second, nursery, standby=True)
        nursery.start_soon(waiting.connect)
        await trio.sleep(5 * BEAT_SECONDS)
        assert not waiting.is_connected()
        second.refuses = False
        with trio.fail_after(BEAT_SECONDS + 1):
            await waiting.wait_connected()
        nursery.cancel_scope.cancel()


async def test_process_that_lost_its_ledger_fails_and_changes_nothing(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second):
        with pytest.raises(PluginFailedError) as caught:
            await _lose(first, second)
        assert isinstance(caught.value.__cause__, LedgerLostError)
        async with open_journal(second) as plugin:
            assert await sums(plugin) == (0, 0, 0)


async def _lose(first: HeldStore, second: HeldStore) -> None:
    opts = {"plugin": "loopback", "name": "lost"}
    async with open_plugin(opts, PluginServices(store=first)) as plugin:
        await take_by_force(second)
        with pytest.raises(StoreError, match="nothing was changed"):
            await plugin.money.journal.run("", _forbidden)  # type: ignore[attr-defined]
        await trio.sleep(1)


def _forbidden(_connection: Any) -> None:
    raise AssertionError("run")


async def test_transaction_of_the_owner_keeps_its_ledger_until_its_end(postgres_dsn: str) -> None:
    """Otherwise a transaction that has begun would be committed after another process has read what it changes."""
    async with two_stores(postgres_dsn) as (first, second):
        await take_by_force(first)
        token, begun, order = trio.lowlevel.current_trio_token(), trio.Event(), []

        def write(connection: Any) -> None:
            assert CLAIMS.is_owner(connection, "main", 1)
            token.run_sync_soon(begun.set)
            connection.execute("SELECT pg_sleep(0.3)")
            order.append("written")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.inner.transaction, write)
            await begun.wait()
            await take_by_force(second)
            order.append("taken")
        assert order == ["written", "taken"]
        assert not await first.inner.transaction(lambda connection: CLAIMS.is_owner(connection, "main", 1))


async def test_beat_since_the_last_look_keeps_the_ledger(postgres_dsn: str) -> None:
    async with two_stores(postgres_dsn) as (first, second):
        await take_by_force(first)
        seen = await find(second)
        await first.inner.transaction(partial(CLAIMS.beat, ledger="main"))
        take = partial(CLAIMS.take, ledger="main", owner="late", seen=seen)
        assert await second.inner.transaction(take) is None
        assert (await find(first))[:2] == (1, "another")


@pytest.mark.parametrize("kind", ["memory", "sqlite", "none"])
async def test_standby_needs_a_store_for_several_programs(tmp_path: Any, kind: str) -> None:
    async with open_sqlite_store(tmp_path / "money.db") as sqlite:
        store: Any = {"memory": MemoryStore(), "sqlite": sqlite, "none": None}[kind]
        with pytest.raises(InvalidServicesError, match="standby=True needs one that several programs can open"):
            async with open_plugin({"plugin": "loopback", "standby": True}, PluginServices(store=store)):
                raise AssertionError("opened")


async def test_operator_cannot_settle_in_a_ledger_of_another_process(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second), open_payer(first), trio.open_nursery() as nursery:
        other = await _make_payer(second, nursery)
        with pytest.raises(InvalidServicesError, match="connect the plugin first"):
            await other.transfers.reject("key")
        assert await sums(other) == (0, 0, 0)


@pytest.mark.parametrize("retention", [None, WEEK])
async def test_call_of_another_process_under_a_known_key_changes_nothing(
    postgres_dsn: str, clock: Any, retention: int | None
) -> None:
    """It would put the transfer in doubt that the owner of the ledger is sending."""
    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        owner, other = await _make_payer(first, nursery), await _make_payer(second, nursery)
        owner.retention = retention
        await owner.connect()
        nursery.start_soon(partial(owner.send_money, 5, idempotency_key="k"))
        await until(lambda: owner.sent_keys)
        with pytest.raises(TransferInDoubtError, match="no outcome yet"):
            await other.send_money(5, idempotency_key="k")
        with pytest.raises(StoreError, match="does not own ledger 'main'"):
            await other.money.journal.run("", _forbidden)
        assert await states(owner) == {"k": "sent"}
        owner.answer()
        await settle(first)
        await other.send_money(5, idempotency_key="k")
        nursery.cancel_scope.cancel()


async def _make_payer(store: HeldStore, nursery: trio.Nursery, **options: Any) -> Any:
    return Payer(ScriptedOptions(**options), PluginServices(store=store), nursery, lambda _failure: None)


async def test_plain_transfer_is_not_sent_after_a_pause_without_a_look(postgres_dsn: str, clock: Any) -> None:
    """The process was stopped between the commit and the first byte; another one has put the transfer in doubt."""
    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        plugin = await _make_payer(first, nursery)
        plugin.retention = None
        await plugin.connect()
        first.may_return = trio.Event()
        results: list[Any] = []

        async def pay() -> None:
            with pytest.raises((TransferInDoubtError, PluginFailedError)) as caught:
                await plugin.send_money(5, idempotency_key="plain")
            results.append(caught.value)

        nursery.start_soon(pay)
        await until(lambda: first.running)
        await trio.testing.wait_all_tasks_blocked(0.2)
        await take_by_force(second)
        clock.jump(LEASE_SECONDS)
        first.may_return.set()
        await until(lambda: results)
        assert plugin.sent_keys == []
        nursery.cancel_scope.cancel()


async def test_money_received_after_the_loss_is_refused(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        plugin = await _make_payer(first, nursery)
        plugin.register_money_handler(_ignore)
        await plugin.connect()
        await take_by_force(second)
        receive(plugin, 1, "late")
        await settle(first)
        async with open_journal(second) as other:
            assert await states(other) == {}
        nursery.cancel_scope.cancel()


async def _ignore(_amount: str) -> None:
    pass
