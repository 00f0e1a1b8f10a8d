"""Clients that are offline: requests to them are rejected at once, at any scale, and leave nothing behind."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any

import pytest
import trio
from support.accounts import FULFILL, HOST, answer, code_of, enter, leave, open_accounts, prepare
from support.events import names, next_event
from support.leftovers import all_tasks
from support.peers import dial
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_ledger_plugin import AccountConnected, AccountDisconnected, Connected, ConnectionLostError
from trio_ledger_plugin.stores import MemoryStore
from trio_ledger_plugin.testing.conformance.assertions import read_events

SENDS = 100_000
# Tracing allocations makes each send ten times slower.
TRACED = 10_000
MONTH = 30 * 86400


def held_by(plugin: Any) -> tuple[int, ...]:
    """Count what a send could leave in the plugin or in the program."""
    gc.collect()
    objects = len(gc.get_objects())
    return len(plugin.table), plugin.calls_in_flight(), len(plugin.exchanges()), len(all_tasks()), objects


async def come_and_go(plugin: Any, name: str) -> None:
    await (await enter(plugin, name)).aclose()
    for kind in (Connected, AccountConnected, AccountDisconnected):
        await next_event(plugin.events, kind)


async def test_100_000_sends_to_offline_clients_leave_nothing_behind(clock: MockClock) -> None:
    """mini-accounts keeps each for its whole timeout: a client that went away would cost the server its memory."""
    async with open_accounts(store=MemoryStore()) as plugin:
        # A client that never connected, one that left, and one whose account the application holds.
        await come_and_go(plugin, "gone")
        held = plugin.account("held")
        requests = [
            prepare(f"{HOST}.{name}", lifetime) for name in ("never", "gone", "held") for lifetime in (30, MONTH)
        ]
        start = trio.current_time()
        first = [await plugin.send_data(request) for request in requests]
        assert [code_of(response) for response in first] == ["T01"] * 6
        before = held_by(plugin)
        for number in range(SENDS - TRACED):
            assert await plugin.send_data(requests[number % 6]) == first[0]
        tracemalloc.start()
        try:
            for number in range(TRACED):
                assert await plugin.send_data(requests[number % 6]) == first[0]
            gc.collect()
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        after = held_by(plugin)
        assert after[:-1] == before[:-1]
        assert after[-1] - before[-1] < 100
        # Less than two bytes for each request.
        assert grown < 2 * TRACED
        assert trio.current_time() == start
        assert not held.is_connected()
        assert held.statistics().requests_sent == plugin.statistics().requests_sent == 0


async def test_100_000_unknown_names_cost_nothing(clock: MockClock) -> None:
    """Names cost a sender nothing to make up: each must not become an account."""
    async with open_accounts(store=MemoryStore()) as plugin:
        request = prepare(f"{HOST}.name-000000")
        before = held_by(plugin)
        for number in range(SENDS):
            response = await plugin.send_data(request.replace(b"000000", b"%06d" % number))
        assert code_of(response) == "T01"
        after = held_by(plugin)
        assert after[:-1] == before[:-1]
        assert after[-1] - before[-1] < 100


async def test_sends_to_an_offline_client_do_not_wait_for_each_other(clock: MockClock) -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        codes: list[str] = []

        async def send() -> None:
            codes.append(code_of(await plugin.send_data(prepare(f"{HOST}.alice", MONTH))))

        async with trio.open_nursery() as nursery:
            for _ in range(2000):
                nursery.start_soon(send)
        assert codes == ["T01"] * 2000
        assert plugin.calls_in_flight() == 0
        assert plugin.accounts() == ()


@pytest.mark.parametrize("online", [True, False])
async def test_expired_prepare_is_rejected_at_once_for_any_account(online: bool, clock: MockClock) -> None:
    """If it were sent on, it could be fulfilled after its sender stopped paying for it."""
    async with open_accounts(store=MemoryStore()) as plugin:
        alice = await enter(plugin, "alice") if online else None
        before = held_by(plugin)
        request = prepare(f"{HOST}.alice", -0.001)
        for _ in range(1000):
            assert code_of(await plugin.send_data(request)) == "R00"
        assert held_by(plugin)[:-1] == before[:-1]
        assert plugin.statistics().requests_sent == 0
        if alice is not None:
            await alice.aclose()


async def test_month_long_request_ends_with_its_connection(clock: MockClock) -> None:
    """Otherwise the sender would wait for the month, and the server keep the call."""
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        request = prepare(f"{HOST}.alice", MONTH)
        for _ in range(3):
            alice = await enter(plugin, "alice")
            nursery.start_soon(answer, alice, FULFILL)
            assert await plugin.send_data(request) == FULFILL
            async with trio.open_nursery() as calls:
                for _ in range(10):
                    calls.start_soon(lose, plugin, request)
                for _ in range(10):
                    await alice.receive_packet()
                assert plugin.calls_in_flight() == 10
                await alice.aclose()
            assert code_of(await plugin.send_data(request)) == "T01"
            assert held_by(plugin)[:3] == (0, 0, 0)


async def lose(plugin: Any, request: bytes) -> None:
    with pytest.raises(ConnectionLostError):
        await plugin.send_data(request)


async def test_wrong_token_does_not_bring_an_offline_client_online(clock: MockClock) -> None:
    """Packets for the offline client would go to any client that knows its name."""
    async with open_accounts(store=MemoryStore()) as plugin:
        await come_and_go(plugin, "alice")
        for _ in range(3):
            refused = await dial(plugin.address)
            refusal = await refused.authenticate("wrong", account="alice")
            assert refusal.code == "F00"
            # The refused client is still connected; its connection is about to be closed.
            assert code_of(await plugin.send_data(prepare(f"{HOST}.alice"))) == "T01"
            await leave(refused)
        await wait_all_tasks_blocked()
        assert plugin.accounts() == ()
        assert names(read_events(plugin)) == []
        assert plugin.statistics().requests_sent == 0
