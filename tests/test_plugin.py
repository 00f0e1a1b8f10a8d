"""The interface of RFC-0024 and the plugin's life cycle, for any transport."""
# ruff: noqa: PT012 (whole blocks are what raises here)

import math
from contextlib import suppress
from typing import Any

import pytest
import trio
from support.calls import sleeping, start
from support.events import names
from support.leftovers import all_tasks
from support.scripted import ScriptedOptions, after, broken_after, hang, refused, scripted, stay
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    Connected,
    ConnectOptions,
    ConnectTimeoutError,
    Disconnected,
    Failed,
    InvalidFieldsError,
    LedgerPlugin,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    ResponseTimeoutError,
    TransferInDoubtError,
    UnreachableError,
)
from trio_ledger_plugin.testing.conformance.assertions import outcome_of, read_events


def test_the_version_is_2():
    assert LedgerPlugin.version == 2


# Connecting.


async def test_connect_twice_is_one_connection(nursery):
    plugin = scripted(nursery)
    assert not plugin.is_connected()
    await plugin.connect()
    await plugin.connect()
    assert plugin.is_connected()
    assert plugin.attempts == 1
    assert read_events(plugin) == [Connected()]


@pytest.mark.parametrize("callers", [2, 5])
async def test_callers_at_once_share_one_attempt(nursery, autojump_clock, callers):
    plugin = scripted(nursery, after(1))
    outcomes = [await start(nursery, plugin.connect) for _ in range(callers)]
    await trio.sleep(2)
    assert outcomes == [[None]] * callers
    assert plugin.attempts == 1


async def test_callers_at_once_all_get_the_error(nursery):
    plugin = scripted(nursery, refused(NotAcceptedError("no")))
    async with trio.open_nursery() as callers:
        outcomes: list[list[Any]] = [[] for _ in range(3)]
        for outcome in outcomes:

            async def run(outcome=outcome):
                outcome.append(await outcome_of(plugin.connect))

            callers.start_soon(run)
    assert [type(outcome[0]) for outcome in outcomes] == [NotAcceptedError] * 3
    assert plugin.attempts == 1


async def test_last_caller_at_its_deadline_ends_the_attempt(nursery, autojump_clock):
    plugin = scripted(nursery, hang)
    begun = trio.current_time()
    early = await start(nursery, plugin.connect, ConnectOptions(timeout=1000))
    late = await start(nursery, plugin.connect, ConnectOptions(timeout=3000))
    await trio.sleep(1.1)
    assert isinstance(early[0], ConnectTimeoutError)
    assert not late
    await trio.sleep(2)
    assert isinstance(late[0], ConnectTimeoutError)
    assert plugin.attempts == 1
    assert trio.current_time() - begun < 3.2
    await wait_all_tasks_blocked()
    assert not plugin.tasks.running


async def test_short_deadline_does_not_end_the_attempt_of_another_caller(nursery, autojump_clock):
    plugin = scripted(nursery, after(2))
    early = await start(nursery, plugin.connect, ConnectOptions(timeout=1000))
    late = await start(nursery, plugin.connect, ConnectOptions(timeout=math.inf))
    await trio.sleep(3)
    assert isinstance(early[0], ConnectTimeoutError)
    assert late == [None]


async def test_connect_timeout_is_a_timeout_and_unreachable_error(nursery, autojump_clock):
    async def script(plugin, task_status):
        plugin.connect_error = OSError("no route")
        await trio.sleep_forever()

    plugin = scripted(nursery, script)
    begun = trio.current_time()
    with pytest.raises(ConnectTimeoutError, match=r"within 2\.5 s: no route") as caught:
        await plugin.connect(ConnectOptions(timeout=2500))
    assert trio.current_time() - begun == pytest.approx(2.5)
    assert isinstance(caught.value, UnreachableError)
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("timeout", [None, 0, 0.0, math.nan])
async def test_falsy_timeout_is_the_default_of_the_plugin(nursery, autojump_clock, timeout):
    plugin = scripted(nursery, hang, connect_timeout=7.0)
    begun = trio.current_time()
    with pytest.raises(ConnectTimeoutError):
        await plugin.connect(ConnectOptions(timeout=timeout))
    assert trio.current_time() - begun == pytest.approx(7)


async def test_the_default_timeout_is_30_seconds(nursery, autojump_clock):
    plugin = scripted(nursery, hang)
    begun = trio.current_time()
    with pytest.raises(ConnectTimeoutError):
        await plugin.connect()
    assert trio.current_time() - begun == pytest.approx(30)


async def test_infinite_timeout_waits_for_the_connection(nursery, autojump_clock):
    plugin = scripted(nursery, after(1_000_000))
    await plugin.connect(ConnectOptions(timeout=math.inf))
    assert plugin.is_connected()


@pytest.mark.parametrize("options", [5000, {"timeout": 5000}, "5000", object()])
async def test_connect_takes_connect_options_only(nursery, options):
    with pytest.raises(TypeError, match="options is a ConnectOptions"):
        await scripted(nursery).connect(options)


async def test_connect_may_be_retried_after_a_failure(nursery, autojump_clock):
    scripts = [refused(UnreachableError("down")), hang, stay]

    async def script(plugin, task_status):
        await scripts[plugin.attempts - 1](plugin, task_status)

    plugin = scripted(nursery, script)
    with pytest.raises(UnreachableError, match="down"):
        await plugin.connect()
    with pytest.raises(ConnectTimeoutError) as caught:
        await plugin.connect()
    assert caught.value.__cause__ is None, "an error of an earlier attempt is not this one's cause"
    await plugin.connect()
    assert names(read_events(plugin)) == ["Connected"]


@pytest.mark.parametrize(
    "error", [OSError("in use"), InvalidFieldsError("no credentials"), ExceptionGroup("g", [OSError()])]
)
async def test_connect_raises_the_attempts_error_and_its_tasks_end(nursery, error):
    before = all_tasks()
    plugin = scripted(nursery, refused(error))
    with pytest.raises(OSError if not isinstance(error, InvalidFieldsError) else InvalidFieldsError):
        await plugin.connect()
    await wait_all_tasks_blocked()
    assert all_tasks() == before
    assert read_events(plugin) == []


async def test_disconnect_during_an_attempt_fails_connect_as_closed(nursery):
    plugin = scripted(nursery, hang)
    outcome = await start(nursery, plugin.connect)
    await plugin.disconnect()
    await wait_all_tasks_blocked()
    assert isinstance(outcome[0], PluginClosedError)
    assert read_events(plugin) == []


async def test_closing_during_an_attempt_fails_connect_as_closed(nursery):
    plugin = scripted(nursery, hang)
    outcome = await start(nursery, plugin.connect)
    await plugin.aclose()
    await wait_all_tasks_blocked()
    assert isinstance(outcome[0], PluginClosedError)


@pytest.mark.parametrize("_again", range(8))
async def test_closing_at_the_moment_of_connecting_leaves_nothing(nursery, _again):
    before = all_tasks()
    plugin = scripted(nursery)
    async with trio.open_nursery() as callers:
        outcomes = []

        async def connect():
            outcomes.append(await outcome_of(plugin.connect))

        callers.start_soon(connect)
        callers.start_soon(plugin.aclose)
    await wait_all_tasks_blocked()
    assert all_tasks() == before
    assert outcomes == [None] or isinstance(outcomes[0], PluginClosedError)
    assert not plugin.is_connected()


# Disconnecting.


async def test_disconnect_and_connect_again(nursery):
    plugin = scripted(nursery)
    for _ in range(3):
        await plugin.connect()
        await plugin.disconnect()
        await plugin.disconnect()
        assert not plugin.is_connected()
    assert names(read_events(plugin)) == ["Connected", "Disconnected"] * 3


async def test_disconnect_leaves_no_task(nursery):
    before = all_tasks()
    plugin = scripted(nursery)
    plugin.register_data_handler(sleeping(0))
    await plugin.connect()
    plugin.ask(1, b"")
    await wait_all_tasks_blocked()
    await plugin.disconnect()
    await wait_all_tasks_blocked()
    assert all_tasks() == before


@pytest.mark.parametrize("limit", [1, 10])
async def test_disconnect_fails_pending_calls_as_closed(nursery, limit):
    """Calls in flight and calls that wait for a slot; none may be sent after disconnect() began."""
    plugin = scripted(nursery, max_in_flight=limit)
    await plugin.connect()
    outcomes = [await start(nursery, plugin.send_data, b"%d" % number) for number in range(3)]
    await plugin.disconnect()
    await wait_all_tasks_blocked()
    assert [type(outcome[0]) for outcome in outcomes] == [PluginClosedError] * 3
    assert len(plugin.sent) == min(limit, 3)
    with pytest.raises(NotConnectedError, match="nothing was sent"):
        await plugin.send_data(b"")


async def test_two_disconnects_at_once_both_return(nursery):
    plugin = scripted(nursery)
    await plugin.connect()
    async with trio.open_nursery() as callers:
        callers.start_soon(plugin.disconnect)
        callers.start_soon(plugin.disconnect)
    assert names(read_events(plugin)) == ["Connected", "Disconnected"]
    await plugin.connect()


class SlowEnd:
    """A script that is slow to end."""

    async def __call__(self, plugin, task_status):
        plugin.link_up()
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 0.3):
                await trio.sleep_forever()


async def test_connect_during_a_disconnect_waits_and_connects_again(nursery, autojump_clock):
    """Otherwise it reports success for a link that is gone a moment later."""
    plugin = scripted(nursery, SlowEnd())
    await plugin.connect()
    nursery.start_soon(plugin.disconnect)
    await trio.sleep(0.1)
    await plugin.connect()
    await trio.sleep(5)
    assert plugin.is_connected()
    assert plugin.attempts == 2


async def test_connect_during_the_closing_handshake_waits_too(nursery, autojump_clock):
    plugin = scripted(nursery, disconnect_seconds=0.5)
    await plugin.connect()
    nursery.start_soon(plugin.disconnect)
    await trio.sleep(0.1)
    await plugin.connect()
    await trio.sleep(5)
    assert plugin.is_connected()
    assert plugin.attempts == 2
    assert names(read_events(plugin)) == ["Connected", "Disconnected", "Connected"]


async def test_closing_handshake_takes_a_second_at_most(nursery, autojump_clock):
    plugin = scripted(nursery, disconnect_seconds=100)
    await plugin.connect()
    begun = trio.current_time()
    await plugin.disconnect()
    assert trio.current_time() - begun == pytest.approx(1)


async def test_disconnect_returns_when_the_nursery_is_cancelled(autojump_clock):
    async with trio.open_nursery() as callers:
        outcomes = []

        async def disconnect(plugin):
            with trio.fail_after(5):
                outcomes.append(await outcome_of(plugin.disconnect))

        async with trio.open_nursery() as nursery:
            plugin = scripted(nursery, SlowEnd())
            await plugin.connect()
            callers.start_soon(disconnect, plugin)
            await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
    assert outcomes == [None]
    with pytest.raises(PluginClosedError):
        await plugin.connect()


# Closing, and the end of the nursery.


async def test_a_closed_plugin_refuses_everything_and_ends_its_events(nursery):
    plugin = scripted(nursery)
    await plugin.connect()
    await plugin.aclose()
    await plugin.aclose()
    await plugin.disconnect()
    for function, args in (
        (plugin.connect, ()),
        (plugin.wait_connected, ()),
        (plugin.send_data, (b"",)),
        (plugin.send_money, ("1",)),
    ):
        with pytest.raises(PluginClosedError):
            await function(*args)
    assert names([event async for event in plugin.events]) == ["Connected", "Disconnected"]


async def test_closing_an_unconnected_plugin_ends_its_events(nursery):
    plugin = scripted(nursery)
    await plugin.aclose()
    assert [event async for event in plugin.events] == []


async def test_closing_lets_calls_in_flight_finish(nursery, autojump_clock):
    plugin = scripted(nursery)
    await plugin.connect()
    outcome = await start(nursery, plugin.send_data, b"")
    nursery.start_soon(plugin.aclose)
    await trio.sleep(1)
    with pytest.raises(PluginClosedError):
        await plugin.send_data(b"too late")
    plugin.calls.pending.popitem()[1].answer(b"answer")
    await trio.sleep(1)
    assert outcome == [b"answer"]
    assert not plugin.tasks.running


@pytest.mark.parametrize("seconds", [0.5, 5.0])
async def test_closing_is_bounded_by_close_timeout(nursery, autojump_clock, seconds):
    plugin = scripted(nursery, close_timeout=seconds)
    await plugin.connect()
    outcome = await start(nursery, plugin.send_data, b"")
    begun = trio.current_time()
    await plugin.aclose()
    assert trio.current_time() - begun == pytest.approx(seconds)
    await wait_all_tasks_blocked()
    assert isinstance(outcome[0], PluginClosedError)
    assert plugin.statistics().calls_in_flight == 0


async def test_two_closes_at_once_both_return(nursery):
    before = all_tasks()
    plugin = scripted(nursery)
    await plugin.connect()
    async with trio.open_nursery() as callers:
        callers.start_soon(plugin.aclose)
        callers.start_soon(plugin.aclose)
        callers.start_soon(plugin.disconnect)
    await wait_all_tasks_blocked()
    assert all_tasks() == before
    assert names([event async for event in plugin.events]) == ["Connected", "Disconnected"]


async def test_cancelled_closing_drains_nothing_in_half_a_second(autojump_clock):
    async with trio.open_nursery() as nursery:
        plugin = scripted(nursery, SlowEnd())
        await plugin.connect()
        calls = await start(nursery, plugin.send_data, b"")
        begun = trio.current_time()
        with trio.CancelScope() as scope:
            scope.cancel()
            await plugin.aclose()
        assert trio.current_time() - begun <= 0.5
        await trio.sleep(1)
        assert isinstance(calls[0], PluginClosedError)


@pytest.mark.parametrize("limit", [1, 10])
async def test_cancelled_nursery_closes_its_plugin(nursery, limit):
    """Tasks that wait for the plugin must not wait for ever."""
    outcomes = []
    async with trio.open_nursery() as inner:
        plugin = scripted(inner, max_in_flight=limit)
        await plugin.connect()
        outcomes += [await start(nursery, plugin.send_data, b"") for _ in range(3)]
        outcomes.append(await start(nursery, plugin.send_money, "1"))
        inner.cancel_scope.cancel()
    await wait_all_tasks_blocked()
    # The peer may have applied the transfer that had a slot.
    money = PluginClosedError if limit == 1 else TransferInDoubtError
    assert [type(outcome[0]) for outcome in outcomes] == [PluginClosedError] * 3 + [money]
    assert plugin.statistics().calls_in_flight == 0
    assert names([event async for event in plugin.events]) == ["Connected", "Disconnected"]
    with pytest.raises(PluginClosedError):
        await plugin.connect()
    await plugin.aclose()


async def test_cancelled_nursery_ends_an_attempt(nursery):
    async with trio.open_nursery() as inner:
        plugin = scripted(inner, hang)
        connecting = await start(nursery, plugin.connect)
        waiting = await start(nursery, plugin.wait_connected)
        inner.cancel_scope.cancel()
    await wait_all_tasks_blocked()
    assert isinstance(connecting[0], PluginClosedError)
    assert isinstance(waiting[0], PluginClosedError)


async def test_ended_nursery_accepts_no_plugin():
    async with trio.open_nursery() as nursery:
        plugin = scripted(nursery)
    with pytest.raises(PluginClosedError):
        await plugin.connect()


# A fatal failure.


async def test_fatal_failure_reaches_every_caller_once(autojump_clock):
    caught = []

    async def use(plugin, nursery):
        for function, args in (
            (plugin.send_data, (b"1",)),
            (plugin.send_data, (b"2",)),
            (plugin.send_money, ("1",)),
        ):
            nursery.start_soon(lambda function=function, args=args: collect(function, args))

    async def collect(function, args):
        caught.append(await outcome_of(function, *args))

    cause = NotAcceptedError("not any more")
    async with trio.open_nursery() as users:
        with pytest.raises(ExceptionGroup) as group:
            async with trio.open_nursery() as nursery:
                plugin = scripted(nursery, broken_after(1, cause), max_in_flight=2)
                await plugin.connect()
                await use(plugin, users)
                await trio.sleep_forever()
        assert [type(error) for error in group.value.exceptions] == [PluginFailedError]
        assert group.value.exceptions[0].__cause__ is cause
    # The peer may have applied a transfer that had a slot.
    causes = [error.__cause__ if isinstance(error, TransferInDoubtError) else error for error in caught]
    assert [type(error) for error in causes] == [PluginFailedError] * 3
    assert len({id(error) for error in caught}) == 3
    assert all(getattr(error, "__cause__", None) is cause for error in causes)
    events = [event async for event in plugin.events]
    assert names(events) == ["Connected", "Disconnected", "Failed"]
    assert events[-1] == Failed(cause)
    assert not plugin.is_connected()
    for function, args in (
        (plugin.connect, ()),
        (plugin.wait_connected, ()),
        (plugin.send_data, (b"",)),
        (plugin.send_money, ("1",)),
    ):
        with pytest.raises(PluginFailedError) as again:
            await function(*args)
        assert again.value.__cause__ is cause
    await plugin.disconnect()
    await plugin.aclose()
    with pytest.raises(PluginFailedError):
        await plugin.send_data(b"closing changes nothing")


async def test_a_crashed_task_of_the_plugin_is_fatal():
    async def crash():
        raise LookupError("a bug")

    with pytest.raises(ExceptionGroup) as group:
        async with trio.open_nursery() as nursery:
            plugin = scripted(nursery)
            await plugin.connect()
            plugin.tasks.spawn(crash)
    failure = group.value.exceptions[0]
    assert isinstance(failure, PluginFailedError)
    assert isinstance(failure.__cause__, LookupError)


RETURNED = "it has to run until it is cancelled: let it end with 'await trio.sleep_forever()', or raise the error "
RETURNED += "that ends the connection"


async def test_run_connection_that_returns_before_started_is_told(nursery):
    """Its author would read that the plugin was disconnected, and search for who did that."""

    async def forget(plugin, task_status):
        await trio.lowlevel.checkpoint()

    plugin = scripted(nursery, forget)
    with pytest.raises(RuntimeError) as caught:
        await plugin.connect()
    without = "ScriptedPlugin.run_connection() returned, without task_status.started(); "
    assert str(caught.value) == f"{without}{RETURNED}"
    await plugin.aclose()


async def test_run_connection_that_returns_after_started_is_fatal():
    """A plugin that looked disconnected would stay so for ever."""

    async def return_early(plugin, task_status):
        plugin.link_up()
        task_status.started()
        await trio.lowlevel.checkpoint()

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            plugin = scripted(nursery, return_early)
            await plugin.connect()
            await trio.sleep_forever()
    (failure,) = caught.value.exceptions
    assert isinstance(failure, PluginFailedError)
    assert str(failure.__cause__) == f"ScriptedPlugin.run_connection() returned; {RETURNED}"


async def test_run_connection_may_return_when_it_is_cancelled(nursery):
    async def return_late(plugin, task_status):
        plugin.link_up()
        task_status.started()
        with suppress(trio.Cancelled):
            await trio.sleep_forever()

    plugin = scripted(nursery, return_late)
    for _ in range(2):
        await plugin.connect()
        await plugin.disconnect()
    await plugin.connect()
    await plugin.aclose()


async def test_run_connection_without_started_is_named_at_the_timeout(nursery, autojump_clock):
    """Connected, and yet not: nothing said what was missing."""

    async def forget(plugin, task_status):
        plugin.link_up()
        await trio.sleep_forever()

    plugin = scripted(nursery, forget)
    with pytest.raises(ConnectTimeoutError) as caught:
        await plugin.connect(ConnectOptions(timeout=100))
    missing = "ScriptedPlugin.run_connection() has not called task_status.started()"
    assert str(caught.value) == f"not connected within 0.1 s: {missing}"
    await plugin.aclose()


async def test_disconnecting_a_failing_plugin_hides_no_failure():
    with pytest.raises(ExceptionGroup):
        async with trio.open_nursery() as nursery:
            plugin = scripted(nursery)
            await plugin.connect()
            plugin.fail(OSError("broken"))
            await outcome_of(plugin.disconnect)
    with pytest.raises(PluginFailedError):
        await plugin.connect()
    assert names([event async for event in plugin.events]) == ["Connected", "Disconnected", "Failed"]


# Waiting for a peer, events, statistics.


async def test_waiting_for_a_peer(nursery, autojump_clock):
    async def script(plugin, task_status):
        task_status.started()
        await trio.sleep(5)
        plugin.link_up()
        await trio.sleep(1)
        plugin.link_down("gone")
        await trio.sleep_forever()

    plugin = scripted(nursery, script)
    waiting = [await start(nursery, plugin.wait_connected) for _ in range(2)]
    await plugin.connect()
    assert not plugin.is_connected()
    await trio.sleep(4.9)
    assert waiting == [[], []]
    await trio.sleep(0.2)
    assert waiting == [[None], [None]]
    await plugin.wait_connected()
    await trio.sleep(2)
    assert not plugin.is_connected()
    assert read_events(plugin) == [Connected(), Disconnected("gone")]
    again = await start(nursery, plugin.wait_connected)
    assert again == []


async def test_plugin_is_connected_when_the_event_says_so(nursery):
    plugin = scripted(nursery)
    states = []

    async def read():
        async for event in plugin.events:
            states.append((type(event).__name__, plugin.is_connected()))  # noqa: PERF401 (the state at that moment)

    nursery.start_soon(read)
    await plugin.connect()
    await wait_all_tasks_blocked()
    await plugin.disconnect()
    await wait_all_tasks_blocked()
    assert states == [("Connected", True), ("Disconnected", False)]


async def test_loss_is_reported_once(nursery):
    plugin = scripted(nursery)
    await plugin.connect()
    plugin.link_down("lost")
    plugin.link_down("lost again")
    await plugin.disconnect()
    await plugin.aclose()
    assert [event async for event in plugin.events] == [Connected(), Disconnected("lost")]


async def test_unread_events_block_nothing(nursery):
    plugin = scripted(nursery)
    for _ in range(100):
        await plugin.connect()
        await plugin.disconnect()
    assert plugin.statistics().events_dropped >= 136
    await plugin.aclose()
    assert len([event async for event in plugin.events]) <= 64


async def test_statistics_are_a_snapshot(nursery):
    plugin = scripted(nursery)
    before = plugin.statistics()
    await plugin.connect()
    await start(nursery, plugin.send_data, b"")
    assert before.calls_in_flight == 0
    assert plugin.statistics().calls_in_flight == 1
    with pytest.raises(AttributeError):
        setattr(before, "calls_in_flight", 5)  # noqa: B010 (a type checker refuses it as well)


# Sending.


@pytest.mark.parametrize("data", ["text", None, 5, [1]])
async def test_data_is_bytes_like_connected_or_not(nursery, data):
    plugin = scripted(nursery)
    with pytest.raises(TypeError, match="bytes-like"):
        await plugin.send_data(data)


@pytest.mark.parametrize("data", [b"x", bytearray(b"x"), memoryview(b"x")])
async def test_bytes_like_data_is_sent_as_bytes(nursery, data):
    plugin = scripted(nursery)
    await plugin.connect()
    await start(nursery, plugin.send_data, data)
    assert plugin.sent == [b"x"]
    assert type(plugin.sent[0]) is bytes


async def test_data_past_the_limit_is_refused_before_it_is_sent(nursery):
    plugin = scripted(nursery, max_message_bytes=1000)
    await plugin.connect()
    await start(nursery, plugin.send_data, bytes(936))
    assert len(plugin.sent) == 1
    with pytest.raises(InvalidFieldsError, match="937 bytes; one message holds at most 936"):
        await plugin.send_data(bytes(937))


async def test_sending_while_not_connected_fails_at_once(nursery):
    plugin = scripted(nursery)
    for function, args in ((plugin.send_data, (b"",)), (plugin.send_money, ("1",))):
        with pytest.raises(NotConnectedError, match="nothing was sent"):
            await function(*args)


@pytest.mark.parametrize(("amount", "sent"), [("1", "1"), (1, "1"), ("007", "7"), (2**64 - 1, str(2**64 - 1))])
async def test_amounts_in_range_travel_exactly(nursery, amount, sent):
    plugin = scripted(nursery)
    await plugin.connect()
    await start(nursery, plugin.send_money, amount)
    assert plugin.sent[0].amount == sent


@pytest.mark.parametrize(
    "amount",
    [
        "0",
        0,
        -1,
        "-1",
        2**64,
        str(2**64),
        "",
        " 1",
        "1 ",
        "+1",
        "1.0",
        "1e3",
        "0x1",
        "\u0661",
        "²",
        "1_000",
        pytest.param(10**5000, id="huge"),
        "1" * 5000,
    ],
)
async def test_amounts_out_of_range_are_refused(nursery, amount):
    plugin = scripted(nursery)
    await plugin.connect()
    with pytest.raises(InvalidFieldsError, match="amount"):
        await plugin.send_money(amount)
    assert plugin.sent == []


@pytest.mark.parametrize("amount", [1.0, None, True, b"1", [1]])
async def test_amounts_of_another_type_are_type_errors(nursery, amount):
    with pytest.raises(TypeError, match="amount"):
        await scripted(nursery).send_money(amount)


async def test_idempotency_keys(nursery):
    plugin = scripted(nursery, money="plain")
    await plugin.connect()
    for key in ("k", "k" * 64, "a\n\x01"):
        nursery.start_soon(lambda key=key: outcome_of(lambda: plugin.send_money("1", idempotency_key=key)))
        await wait_all_tasks_blocked()
        assert plugin.sent[-1].key == key
    for key in ("", "k" * 65, "ключ", "a\x80", "\x00"):
        with pytest.raises(InvalidFieldsError, match="idempotency_key"):
            await plugin.send_money("1", idempotency_key=key)
    wrong: Any
    for wrong in (5, b"k"):
        with pytest.raises(TypeError, match="idempotency_key"):
            await plugin.send_money("1", idempotency_key=wrong)


async def test_missing_response_is_a_timeout(nursery, autojump_clock):
    plugin = scripted(nursery, response_timeout=4.0)
    await plugin.connect()

    begun = trio.current_time()
    with pytest.raises(ResponseTimeoutError, match="the peer may have acted"):
        await plugin.send_data(b"")
    assert trio.current_time() - begun == pytest.approx(4)


async def test_money_of_a_cancelled_caller_is_not_sent(nursery):
    plugin = scripted(nursery)
    await plugin.connect()
    with trio.CancelScope() as scope:
        scope.cancel()
        await plugin.send_money("5")
    assert scope.cancelled_caught
    assert plugin.sent == []


def test_each_kind_of_plugin_has_its_own_options():
    assert ScriptedOptions().response_timeout == 35
