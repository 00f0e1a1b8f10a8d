"""The deadlines of a plugin: each at its time, and none before what has arrived is read."""

import gc
import os
import weakref
from contextlib import AsyncExitStack
from math import inf
from secrets import token_hex
from typing import Any

import pytest
import trio
import trio.testing
from support.accounts import enter, open_accounts, options
from support.peers import dial_in, linked
from trio.testing import MockClock

from trio_ledger_plugin.btp.link import Link
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.parking import Waiter
from trio_ledger_plugin.runtime.timers import Timers


class Alarm:
    """A timer that keeps when it fired, and asks for the next times of a list."""

    def __init__(self, *times: float) -> None:
        self.times = list(times)
        self.fired: list[float] = []

    def fire(self, now: float) -> float:
        self.fired.append(now)
        return self.times.pop(0) if self.times else inf


async def test_timers_fire_at_their_times(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    timers, alarm = Timers(), Alarm(3, 7)
    timers.schedule(alarm, 1)
    nursery.start_soon(timers.run, lambda: True)
    await trio.sleep(10)
    assert alarm.fired == [1, 3, 7]
    nursery.cancel_scope.cancel()


async def test_timer_that_asks_for_another_turn_lets_others_run(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    timers, alarm = Timers(), Alarm(1, 1, 1)
    timers.schedule(alarm, 1)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        await trio.sleep(1)
        while len(alarm.fired) < 4:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(timers.run, lambda: True)
    nursery.start_soon(count_turns)
    await trio.sleep(2)
    assert alarm.fired == [1, 1, 1, 1]
    assert turns >= 3
    nursery.cancel_scope.cancel()


async def test_cancelled_timer_does_not_fire_and_does_not_stay(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    timers, alarm, other = Timers(), Alarm(3, 7), Alarm()
    scheduled = timers.schedule(alarm, 1)
    timers.schedule(other, 5)
    nursery.start_soon(timers.run, lambda: True)
    await trio.sleep(2)
    timers.cancel(scheduled)
    timers.cancel(scheduled)
    reference, fired = weakref.ref(alarm), alarm.fired
    del alarm
    gc.collect()
    assert reference() is None
    await trio.sleep(8)
    assert fired == [1]
    assert other.fired == [5]
    nursery.cancel_scope.cancel()


class Once:
    """A timer that cancels itself when it fires, as a link that is given up does."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.fired = 0
        self.scheduled = timers.schedule(self, 1)

    def fire(self, now: float) -> float:
        self.fired += 1
        self._timers.cancel(self.scheduled)
        return now + 1


async def test_timer_that_cancels_itself_fires_no_more(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    timers = Timers()
    once = Once(timers)
    nursery.start_soon(timers.run, lambda: True)
    await trio.sleep(5)
    assert once.fired == 1
    nursery.cancel_scope.cancel()


def test_many_cancelled_timers_leave_no_entries() -> None:
    timers, kept = Timers(), Alarm()
    timers.schedule(kept, 3600)
    for _ in range(10_000):
        timers.cancel(timers.schedule(Alarm(), 3600))
    assert len(timers._due) < 300


class Seen(Waiter):
    __slots__ = ("__weakref__", "is_over")

    def __init__(self) -> None:
        super().__init__()
        self.is_over = False


async def wait_for(timers: Timers, waiter: Seen, deadline: float, ended: list[tuple[float, float]]) -> None:
    """Wait as callers do."""
    while trio.current_time() < deadline and not waiter.is_over:
        await timers.wait(waiter, deadline)
    ended.append((deadline, trio.current_time()))


@pytest.mark.parametrize("deadlines", [(2, 4, 4, 6), (6, 2, 4), (inf, 3)], ids=["in order", "out of order", "for ever"])
async def test_wait_ends_at_its_deadline(
    nursery: trio.Nursery, autojump_clock: MockClock, deadlines: tuple[float, ...]
) -> None:
    timers, ended = Timers(), list[tuple[float, float]]()
    nursery.start_soon(timers.run, lambda: True)
    await trio.testing.wait_all_tasks_blocked()
    for deadline in deadlines:
        nursery.start_soon(wait_for, timers, Seen(), deadline, ended)
        await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(10)
    assert ended == [(deadline, deadline) for deadline in sorted(deadlines) if deadline < inf]
    nursery.cancel_scope.cancel()


async def test_wait_ends_when_it_is_woken_and_others_go_on(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    timers, ended = Timers(), list[tuple[float, float]]()
    nursery.start_soon(timers.run, lambda: True)
    await trio.testing.wait_all_tasks_blocked()
    first = Seen()
    nursery.start_soon(wait_for, timers, first, 5, ended)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(wait_for, timers, Seen(), 7, ended)
    await trio.sleep(1)
    first.is_over = True
    first.wake()
    await trio.sleep(9)
    assert ended == [(5, 1), (7, 7)]
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("runs", [True, False])
async def test_wait_goes_on_without_the_timers_task(
    nursery: trio.Nursery, autojump_clock: MockClock, runs: bool
) -> None:
    """The task may end before the waiters: a caller would wait for ever."""
    timers, ended = Timers(), list[tuple[float, float]]()
    with trio.CancelScope() as scope:
        if runs:
            async with trio.open_nursery() as other:
                other.start_soon(timers.run, lambda: True)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(wait_for, timers, Seen(), 5, ended)
                await trio.sleep(1)
                scope.cancel()
        else:
            nursery.start_soon(wait_for, timers, Seen(), 5, ended)
    timers.clear()
    await trio.sleep(10)
    assert ended == [(5, 5)]


async def test_cancelled_wait_leaves_nothing(nursery: trio.Nursery, autojump_clock: MockClock) -> None:
    timers, waiter = Timers(), Seen()
    reference = weakref.ref(waiter)
    nursery.start_soon(timers.run, lambda: True)
    await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(1) as scope:
        await timers.wait(waiter, 5)
    assert scope.cancelled_caught
    del waiter
    await trio.lowlevel.checkpoint()
    gc.collect()
    assert reference() is None
    nursery.cancel_scope.cancel()


def count_links() -> int:
    gc.collect()
    return sum(isinstance(found, Link) for found in gc.get_objects())


async def test_lost_links_do_not_stay_until_their_deadlines() -> None:
    """A server to which clients connect again and again would keep seconds of lost links in memory."""
    before = count_links()
    async with linked(response_timeout=3600, ping_interval=3600) as (plugin, first):
        await first.aclose()
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(20):
            peer = await dial_in(plugin.address)
            await plugin.wait_connected()
            await peer.aclose()
            await trio.testing.wait_all_tasks_blocked()
        assert not plugin.is_connected()
        # The last ones may be named in what a task did last.
        assert count_links() <= before + 3


async def test_idle_links_wake_the_loop_together(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """Each wake-up costs more than a link's timer: 10,000 idle connections would take a tenth of a core."""
    fired: list[tuple[Link, float]] = []
    fire = Link.fire

    def recording(link: Link, now: float) -> float:
        fired.append((link, now))
        return fire(link, now)

    monkeypatch.setattr(Link, "fire", recording)
    async with open_accounts(options(ping_interval=15)) as plugin, AsyncExitStack() as stack:
        for _ in range(20):
            peer = await enter(plugin, token=token_hex(8))
            stack.push_async_callback(peer.aclose)
            mock_clock.jump(0.002)
        for pause in (9.9, 4.8):  # for the first look at each link, and for the first ping
            mock_clock.jump(pause)
            fired.clear()
            for _ in range(200):
                mock_clock.jump(0.001)
                await trio.testing.wait_all_tasks_blocked()
            assert len({link for link, _ in fired}) == 20
            assert len({now for _, now in fired}) <= 2


@pytest.mark.parametrize("kind", ["data", "money"])
async def test_answers_in_the_socket_are_read_before_calls_expire(kind: str, mock_clock: MockClock) -> None:
    """A blocking call, or a virtual machine that was paused, would put payments in doubt that were answered in time."""
    async with linked(response_timeout=5, ping_interval=inf) as (plugin, peer), trio.open_nursery() as nursery:
        answered: list[None] = []

        async def call() -> None:
            await (plugin.send_data(b"ask") if kind == "data" else plugin.send_money(1))
            answered.append(None)

        for _ in range(200):
            nursery.start_soon(call)
        requests = [await peer.receive_packet() for _ in range(200)]
        stream = peer.stream
        assert isinstance(stream, trio.SocketStream)
        frames = b"".join(peer.frame(btp.encode(btp.Response(request.request_id))) for request in requests)
        # The answers arrive, and the process stands still, before any other task runs.
        assert os.write(stream.socket.fileno(), frames) == len(frames)
        mock_clock.jump(60)
        with trio.fail_after(5):
            while len(answered) < 200:
                await trio.lowlevel.checkpoint()
        assert plugin.statistics().unexpected_responses == 0


async def test_send_deadline_counts_only_after_a_try_to_send(mock_clock: MockClock) -> None:
    """After such a pause, a link whose peer has read everything meanwhile would be aborted."""
    options: dict[str, Any] = {"ping_interval": inf, "max_send_queue_bytes": 8_000_000}
    async with linked(**options) as (plugin, peer), trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(plugin.send_data, bytes(60_000))
        await trio.testing.wait_all_tasks_blocked()
        stream = peer.stream
        assert isinstance(stream, trio.SocketStream)
        received = 0
        # The peer reads all that has left, while the process stands still.
        while True:
            try:
                received += len(os.read(stream.socket.fileno(), 1 << 20))
            except BlockingIOError:
                break
        assert received < 6_000_000
        mock_clock.jump(15)
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.is_connected()
        nursery.cancel_scope.cancel()
