"""One task serves each accepted request in a fresh context; a handler that hangs does not affect others."""

import math
from contextlib import suppress
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
import trio
from support.calls import sleep_on, sleeping
from support.leftovers import all_tasks
from support.scripted import after, scripted
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import LedgerPluginError, NotAcceptedError, UnreachableError, current_transfer
from trio_ledger_plugin.runtime.workers import REQUEST_BYTES
from trio_ledger_plugin.transfer import Transfer

seen: ContextVar[str] = ContextVar("seen", default="nothing")


async def connected(nursery, handler=None, money=None, **options):
    plugin = scripted(nursery, **options)
    if handler is not None:
        plugin.register_data_handler(handler)
    if money is not None:
        plugin.register_money_handler(money)
    await plugin.connect()
    return plugin


async def test_each_handler_runs_in_a_fresh_context(nursery):
    """Otherwise one request's trace id, locale or database transaction leaks into another's."""

    async def handle(data):
        before = seen.get()
        seen.set(data.decode())
        await trio.lowlevel.checkpoint()
        assert seen.get() == data.decode()
        return before.encode()

    seen.set("the application's")
    plugin = await connected(nursery, handle, max_handlers=2)
    seen.set("later")
    for request_id in range(6):
        assert plugin.ask(request_id, b"request")
    await wait_all_tasks_blocked()
    for request_id in range(6, 9):
        assert plugin.ask(request_id, b"request")
        await wait_all_tasks_blocked()
    assert plugin.replies == dict.fromkeys(range(9), b"the application's")


async def test_transfer_of_one_handler_is_not_visible_to_the_next(nursery):
    transfers = []

    async def money(amount):
        transfers.append(current_transfer())

    async def handle(data):
        with pytest.raises(RuntimeError):
            current_transfer()
        return b""

    plugin = await connected(nursery, handle, money, max_handlers=1)
    plugin.ask(1, Transfer("5", key="k"))
    plugin.ask(2, b"request")
    plugin.ask(3, Transfer("6"))
    await wait_all_tasks_blocked()
    assert plugin.replies == {1: None, 2: b"", 3: None}
    assert transfers == [Transfer("5", key="k"), Transfer("6")]


async def test_handlers_past_the_limit_wait_their_turn(nursery, autojump_clock):
    running = peak = 0

    async def handle(data):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await trio.sleep(1)
        running -= 1
        return data

    plugin = await connected(nursery, handle, max_handlers=3)
    for request_id in range(10):
        assert plugin.ask(request_id, b"%d" % request_id)
    assert plugin.statistics().handlers_running == 3
    await trio.sleep(10)
    assert peak == 3
    assert plugin.replies == {number: b"%d" % number for number in range(10)}
    assert plugin.statistics().handlers_running == 0


async def test_waiting_requests_are_bounded_in_bytes(nursery):
    plugin = await connected(nursery, sleeping(math.inf), max_handlers=1, max_backlog_bytes=10_000)
    assert plugin.ask(0, b"runs")
    taken = 0
    while plugin.ask(1 + taken, bytes(800)):
        taken += 1
    assert taken == 10_000 // (800 + REQUEST_BYTES)


@pytest.mark.parametrize("payload", [b"", Transfer("1")])
async def test_a_flood_of_empty_requests_is_bounded_too(nursery, payload):
    """Requests without a byte of payload use memory too."""
    plugin = await connected(nursery, sleeping(math.inf), max_handlers=1, max_backlog_bytes=10_000)
    plugin.register_money_handler(sleep_on)
    taken = 0
    while taken < 1000 and plugin.ask(taken, payload):
        taken += 1
    assert taken == 1 + 10_000 // REQUEST_BYTES


async def test_handler_at_its_deadline_is_cancelled_with_an_error_reply(nursery, autojump_clock):
    ends = []

    async def handle(data):
        try:
            await trio.sleep_forever()
        finally:
            ends.append(trio.current_time())

    plugin = await connected(nursery, handle, handler_timeout=3.0)
    start = trio.current_time()
    plugin.ask(1, b"")
    await trio.sleep(1)
    plugin.ask(2, b"")
    await trio.sleep(1.9)
    assert plugin.replies == {}
    await trio.sleep(0.2)
    assert list(plugin.replies) == [1]
    await trio.sleep(1)
    assert list(plugin.replies) == [1, 2]
    assert ends == pytest.approx([start + 3, start + 4])
    assert plugin.statistics().handlers_running == 0


async def test_reused_worker_has_a_new_deadline_each_time(nursery, autojump_clock):
    async def handle(data):
        await trio.sleep(2)
        return b"done"

    plugin = await connected(nursery, handle, handler_timeout=3.0, max_handlers=1)
    for request_id in range(4):
        plugin.ask(request_id, b"")
    await trio.sleep(8.5)
    assert plugin.replies == dict.fromkeys(range(4), b"done")


async def swallow(data):
    with suppress(trio.Cancelled):
        await trio.sleep_forever()
    return b"too late"


async def raise_over(data):
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("while it was cancelled")


async def raise_group(data):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_over, data)
        nursery.start_soon(raise_over, data)


async def linger(data):
    with trio.CancelScope(shield=True):
        await trio.sleep(5)
    return b"too late"


@pytest.mark.parametrize("handler", [swallow, raise_over, raise_group, linger])
async def test_handler_that_resists_cancellation_gets_no_second_reply(nursery, autojump_clock, handler):
    async def handle(data):
        return await handler(data) if data == b"bad" else b"good"

    plugin = await connected(nursery, handle, handler_timeout=3.0, max_handlers=1)
    plugin.ask(1, b"bad")
    plugin.ask(2, b"next")
    await trio.sleep(3.1)
    assert isinstance(plugin.replies[1], LedgerPluginError)
    assert str(plugin.replies[1]) == "the handler took too long"
    await trio.sleep(6)
    assert str(plugin.replies[1]) == "the handler took too long"
    assert plugin.replies[2] == b"good"
    assert plugin.statistics().handlers_running == 0
    plugin.ask(3, b"again")
    await wait_all_tasks_blocked()
    assert plugin.replies[3] == b"good"


async def slow_money(amount):
    await trio.sleep(100)


async def test_money_handler_past_its_deadline_gets_no_error_reply(nursery, autojump_clock):
    """An error would tell the peer that the money was not applied."""
    plugin = await connected(nursery, money=slow_money, handler_timeout=3.0)
    plugin.ask(1, Transfer("5"))
    await trio.sleep(99)
    assert plugin.replies == {}
    await trio.sleep(2)
    assert plugin.replies == {1: None}


async def test_cancelled_money_handler_is_logged(autojump_clock, caplog):
    """Without a journal only the log shows the operator which transfer the two ends may disagree about."""
    async with trio.open_nursery() as nursery:
        plugin = await connected(nursery, sleeping(math.inf), slow_money, close_timeout=3.0)
        plugin.ask(1, Transfer("5", "alice"))
        plugin.ask(2, b"")
        await trio.sleep(1)
        await plugin.aclose()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "the plugin ended before a transfer of 5 from account alice was answered; its handler was cancelled"
    ]


async def test_finished_money_handler_is_not_logged_as_cancelled(autojump_clock, caplog):
    """The operator would credit the transfer again."""

    async def wait_for_room(request_id, reply):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        plugin = await connected(nursery, money=slow_money)
        plugin.queue.requester = SimpleNamespace(reply=wait_for_room, describe=plugin.queue.requester.describe)
        plugin.ask(1, Transfer("5", "alice"))
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    assert caplog.records == []


async def test_slow_money_handler_does_not_delay_deadlines_of_data(nursery, autojump_clock):
    plugin = await connected(nursery, sleeping(math.inf), sleep_on, handler_timeout=3.0)
    plugin.ask(1, Transfer("5"))
    plugin.ask(2, b"")
    await trio.sleep(3.1)
    assert list(plugin.replies) == [2]


async def test_handler_that_raises_does_not_affect_others(nursery):
    async def handle(data):
        if data == b"bad":
            raise ExceptionGroup("many", [ValueError(), KeyError()])
        return data

    plugin = await connected(nursery, handle)
    for request_id, data in enumerate((b"good", b"bad", b"good")):
        plugin.ask(request_id, data)
    await wait_all_tasks_blocked()
    assert plugin.replies[0] == plugin.replies[2] == b"good"
    assert isinstance(plugin.replies[1], NotAcceptedError)


async def test_handlers_outlive_disconnect_and_tasks_end_with_the_last(nursery, autojump_clock):
    finished = []

    async def handle(data):
        await trio.sleep(5)
        finished.append(data)
        return b""

    before = all_tasks()
    plugin = await connected(nursery, handle)
    plugin.ask(1, b"")
    await trio.sleep(1)
    await plugin.disconnect()
    await trio.sleep(1)
    assert finished == []
    assert plugin.tasks.running
    await trio.sleep(5)
    assert finished == [b""]
    assert all_tasks() == before


async def test_deregistered_handler_finishes_its_requests(nursery, autojump_clock):
    async def handle(data):
        await trio.sleep(1)
        return b"old"

    plugin = await connected(nursery, handle)
    plugin.ask(1, b"")
    await trio.sleep(0.5)
    plugin.deregister_data_handler()
    plugin.ask(2, b"")
    await trio.sleep(1)
    assert plugin.replies[1] == b"old"
    assert isinstance(plugin.replies[2], UnreachableError)


@pytest.mark.parametrize("timeout", [3.0, math.inf])
@pytest.mark.parametrize("is_busy", [False, True])
async def test_idle_workers_end(timeout, is_busy, nursery, autojump_clock):
    """A burst must not cost its peak of tasks for ever, also where handlers have no deadline, and one of them runs."""

    async def handle(data):
        await trio.sleep(0.1 if data == b"" else math.inf)
        return b""

    plugin = await connected(nursery, handle, handler_timeout=timeout)
    for request_id in range(100):
        plugin.ask(request_id, b"")
    if is_busy:
        plugin.ask(1000, b"for ever")
    await trio.sleep(1)
    assert len(plugin.context.workers.idle) == 100
    await trio.sleep(100)
    assert plugin.context.workers.idle == []
    plugin.ask(100, b"")
    await trio.sleep(1)
    assert {*range(101)} <= plugin.replies.keys()


async def test_no_handler_counts_as_running_after_a_cancelled_nursery(autojump_clock):
    async with trio.open_nursery() as nursery:
        plugin = await connected(nursery, sleeping(math.inf), max_handlers=1)
        plugin.ask(1, b"")
        plugin.ask(2, b"")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert plugin.statistics().handlers_running == 0
    assert plugin.replies == {}


async def test_closing_waits_for_handlers_up_to_close_timeout(autojump_clock):
    async with trio.open_nursery() as nursery:
        for seconds, took in ((2, 2), (60, 5)):
            plugin = await connected(nursery, sleeping(seconds), close_timeout=5.0)
            plugin.ask(1, b"")
            await wait_all_tasks_blocked()
            start = trio.current_time()
            await plugin.aclose()
            assert trio.current_time() - start == pytest.approx(took)
            assert plugin.statistics().handlers_running == 0


async def test_a_handler_that_closes_the_plugin_does_not_hang_it(autojump_clock):
    """The plugin waits for the handler, but no longer than close_timeout."""
    async with trio.open_nursery() as nursery:
        plugin = scripted(nursery, close_timeout=2.0)

        async def handle(data):
            await plugin.aclose()
            return b""

        plugin.register_data_handler(handle)
        await plugin.connect()
        start = trio.current_time()
        plugin.ask(1, b"")
    assert trio.current_time() - start <= 3
    assert not plugin.is_connected()


async def test_a_handler_may_disconnect_and_connect_the_plugin(nursery, autojump_clock):
    plugin = scripted(nursery, after(0.1))
    done = []

    async def handle(data):
        await plugin.disconnect()
        assert not plugin.is_connected()
        await plugin.connect()
        done.append(plugin.is_connected())
        return b""

    plugin.register_data_handler(handle)
    await plugin.connect()
    plugin.ask(1, b"")
    await trio.sleep(1)
    assert done == [True]


async def test_running_handlers_hold_bounded_bytes(nursery):
    """Otherwise 256 handlers would hold 256 of the largest requests that a peer may send."""
    go_on = trio.Event()

    async def handle(data):
        await go_on.wait()
        return b""

    plugin = await connected(nursery, handle, max_handler_bytes=10_000, max_backlog_bytes=100_000)
    for request_id in range(20):
        assert plugin.ask(request_id, bytes(3000))
    await wait_all_tasks_blocked()
    assert plugin.statistics().handlers_running == 3
    go_on.set()
    await wait_all_tasks_blocked()
    assert sorted(plugin.replies) == list(range(20))
    assert set(plugin.context.budget.measure().values()) == {0}


async def test_finished_large_request_makes_room_for_many_small_ones(nursery):
    releases = {b"large": trio.Event(), b"small": trio.Event()}

    async def handle(data):
        await releases[data[:5]].wait()
        return b""

    plugin = await connected(nursery, handle, max_handler_bytes=10_000, max_backlog_bytes=100_000)
    assert plugin.ask(0, b"large" + bytes(9_995))
    for request_id in range(1, 50):
        assert plugin.ask(request_id, b"small")
    await wait_all_tasks_blocked()
    assert plugin.statistics().handlers_running == 1
    releases[b"large"].set()
    await wait_all_tasks_blocked()
    assert plugin.statistics().handlers_running == 49
    releases[b"small"].set()
    await wait_all_tasks_blocked()
    assert plugin.queue.budget.handler_bytes == 0


async def test_request_larger_than_the_limit_runs_alone(nursery):
    plugin = await connected(nursery, sleeping(0), max_handler_bytes=100)
    assert plugin.ask(0, bytes(5000))
    assert plugin.ask(1, bytes(5000))
    await wait_all_tasks_blocked(0.01)
    assert sorted(plugin.replies) == [0, 1]


async def test_a_reply_counts_while_it_waits_to_be_sent(nursery):
    """Otherwise a peer that requests large replies and reads none would have 256 of them kept."""

    async def handle(data):
        return bytes(6000)

    plugin = await connected(nursery, handle, max_handler_bytes=10_000, max_backlog_bytes=100_000)
    room = trio.Event()

    async def reply(request_id, reply):
        await room.wait()
        plugin.replies[request_id] = reply

    plugin.queue.requester = SimpleNamespace(reply=reply, describe=plugin.queue.requester.describe)
    for request_id in range(20):
        assert plugin.ask(request_id, b"?")
        await wait_all_tasks_blocked()
    assert plugin.statistics().handlers_running == 2
    room.set()
    await wait_all_tasks_blocked()
    assert len(plugin.replies) == 20
    assert plugin.queue.budget.handler_bytes == 0
