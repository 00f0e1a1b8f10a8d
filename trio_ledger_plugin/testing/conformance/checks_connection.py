"""Checks of connecting, disconnecting, and calls in flight when the connection ends."""

from __future__ import annotations

from math import inf, nan
from typing import TYPE_CHECKING, Any

import trio

from ...errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    InvalidFieldsError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    UnreachableError,
)
from ...events import Connected, Disconnected
from ...options.base import ConnectOptions
from .assertions import (
    Pending,
    call_held,
    call_unanswered,
    echo,
    expect,
    in_turn,
    outcome_of,
    raising,
    read_events,
    wait_for_event,
)
from .harness import Check, Level, Listed, Stage

if TYPE_CHECKING:
    from .pair import PluginPair

__all__ = ["CHECKS"]

_checks: Listed = Listed()
CHECKS: list[Check] = _checks.checks

# The timeout in milliseconds of an attempt that must fail; and how long the check watches one that must not.
BRIEFLY = 100.0
WATCHED_SECONDS = 0.3
LASTING = "lasting connection, whose end the plugin would notice"


@_checks("LedgerPlugin#connect")
async def connect_connects(stage: Stage) -> None:
    """After ``connect()`` a plugin and its peer are connected."""
    async with stage.open() as pair:
        expect(pair.plugin.is_connected(), "is_connected() is false after connect()")
        pair.peer.register_data_handler(echo)
        expect(await pair.plugin.send_data(b"x") == b"x", "connected, but a request got a wrong answer")


@_checks("LedgerPlugin#connect", Level.SHOULD)
async def connecting_emits_one_connected(stage: Stage) -> None:
    """Once the connection is established there is the event ``Connected``, and only one."""
    async with stage.open() as pair:
        events = await wait_for_event(pair.plugin, Connected)
        events += read_events(pair.plugin)
        expect(events == [Connected()], f"the events after connect() are {events}, not one Connected")


@_checks("LedgerPlugin#isConnected", Level.RULE)
async def is_connected_before_connected_is_delivered(stage: Stage) -> None:
    """When ``Connected`` is delivered, ``is_connected()`` is true."""
    async with stage.open(connect=False) as pair, trio.open_nursery() as nursery:

        async def watch() -> bool:
            await wait_for_event(pair.plugin, Connected)
            return pair.plugin.is_connected()

        found = Pending(nursery, watch)
        await pair.connect()
        expect(await found.value(), "is_connected() is false when Connected is delivered")


@_checks("LedgerPlugin#connect", Level.RULE)
async def connect_when_connected_does_nothing(stage: Stage) -> None:
    """A second ``connect()`` returns, changes nothing and causes no event."""
    async with stage.open() as pair:
        await pair.plugin.connect()
        expect(pair.plugin.is_connected(), "a second connect() disconnected it")
        expect(read_events(pair.plugin) == [Connected()], "a second connect() caused an event")


@_checks("LedgerPlugin#connect", Level.RULE)
async def connecting_twice_at_once_is_one_attempt(stage: Stage) -> None:
    """Callers of ``connect()`` at the same time share one attempt, and all of them return."""
    async with stage.open(connect=False) as pair:

        async def twice() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.plugin.connect)
                nursery.start_soon(pair.plugin.connect)

        await pair.connect(twice)
        expect(pair.plugin.is_connected(), "two connect() at once did not connect it")
        expect(read_events(pair.plugin) == [Connected()], "two connect() at once connected it more than once")


@_checks("LedgerPlugin#connect", Level.RULE)
async def connect_is_allowed_again_after_disconnect(stage: Stage) -> None:
    """A plugin that was disconnected can be connected again, and works."""
    async with stage.open() as pair:
        stage.need(pair.reconnects or None, "pair that can connect again")
        await pair.plugin.disconnect()
        await pair.connect()
        pair.peer.register_data_handler(echo)
        expect(await pair.plugin.send_data(b"again") == b"again", "connected again, but a request got a wrong answer")


@_checks("LedgerPlugin#connect")
async def connect_options_of_another_type_are_a_type_error(stage: Stage) -> None:
    """``connect()`` raises TypeError for options, or a timeout, of a wrong type."""
    wrong: Any
    async with stage.open(connect=False) as pair:
        for wrong in (7, "1000", {"timeout": 1000}):
            with raising(TypeError, f"the options of connect() are {wrong!r}"):
                await pair.plugin.connect(wrong)
        for wrong in ("1000", True):
            with raising(TypeError, f"the timeout is {wrong!r}"):
                await pair.plugin.connect(ConnectOptions(timeout=wrong))


@_checks("ConnectOptions#timeout")
async def connect_gives_up_after_its_timeout(stage: Stage) -> None:
    """``connect()`` tries for its timeout in milliseconds, and then raises an error that says so."""
    async with stage.open(connect=False) as pair:
        plugin = stage.need(pair.unreachable, "unreachable")()
        began = trio.current_time()
        with raising(ConnectTimeoutError, "the peer cannot be reached") as caught:
            await plugin.connect(ConnectOptions(timeout=BRIEFLY))
        took = (trio.current_time() - began) * 1000
        expect(BRIEFLY - 1 <= took < BRIEFLY + 2000, f"the timeout was {BRIEFLY:g} ms; it took {took:.0f}")
        expect(isinstance(caught[0], UnreachableError | TimeoutError), "the error is not an UnreachableError")
        expect(not plugin.is_connected(), "it is connected after connect() failed")


@_checks("ConnectOptions#timeout")
async def a_falsy_timeout_is_the_plugins_default(stage: Stage) -> None:
    """A timeout of 0, NaN or None means the plugin's default."""
    async with stage.open(connect=False, connect_timeout=BRIEFLY / 1000) as pair:
        plugin = stage.need(pair.unreachable, "unreachable")()
        for timeout in (None, 0, nan):
            began = trio.current_time()
            with raising(ConnectTimeoutError, f"the timeout is {timeout} and the peer cannot be reached"):
                await plugin.connect(ConnectOptions(timeout=timeout))
            took = (trio.current_time() - began) * 1000
            expect(took >= BRIEFLY - 1, f"the default is {BRIEFLY:g} ms; with {timeout} it took {took:.0f}")


@_checks("ConnectOptions#timeout")
async def an_infinite_timeout_never_gives_up(stage: Stage) -> None:
    """With a timeout of infinity ``connect()`` goes on until it is cancelled."""
    async with stage.open(connect=False, connect_timeout=BRIEFLY / 1000) as pair:
        plugin = stage.need(pair.unreachable, "unreachable")()
        with trio.move_on_after(WATCHED_SECONDS) as watch:
            await outcome_of(plugin.connect, ConnectOptions(timeout=inf))
        expect(watch.cancelled_caught, "with an infinite timeout connect() ended, though the peer cannot be reached")


@_checks("ConnectOptions#timeout", Level.RULE)
async def each_caller_of_connect_has_its_own_timeout(stage: Stage) -> None:
    """Of two callers of ``connect()`` at once, one gives up after its time, and the other goes on."""
    async with stage.open(connect=False) as pair, trio.open_nursery() as nursery:
        plugin = stage.need(pair.unreachable, "unreachable")()
        brief = Pending(nursery, plugin.connect, ConnectOptions(timeout=BRIEFLY))
        await _a_few_steps()
        patient = Pending(nursery, plugin.connect, ConnectOptions(timeout=inf))
        with raising(ConnectTimeoutError, "the peer cannot be reached"):
            await brief.value()
        await trio.sleep(WATCHED_SECONDS - BRIEFLY / 1000)
        expect(not patient.done, "a caller of connect() gave up at the timeout of another one")
        nursery.cancel_scope.cancel()


@_checks("LedgerPlugin#connect")
async def missing_credentials_are_an_invalid_fields_error(stage: Stage) -> None:
    """``connect()`` raises InvalidFieldsError when credentials are missing."""
    async with stage.open(connect=False) as pair:
        plugin = stage.need(pair.without_credentials, "without_credentials")()
        with raising(InvalidFieldsError, "credentials are missing"):
            await plugin.connect()


@_checks("LedgerPlugin#connect")
async def refused_credentials_are_a_not_accepted_error(stage: Stage) -> None:
    """``connect()`` raises NotAcceptedError when credentials are rejected, at once."""
    async with stage.open() as pair:
        plugin = stage.need(pair.with_wrong_credentials, "with_wrong_credentials")()
        with raising(NotAcceptedError, "the credentials are wrong"):
            await plugin.connect(ConnectOptions(timeout=5000))
        expect(not plugin.is_connected(), "it is connected with wrong credentials")


@_checks("wait_connected", Level.RULE)
async def wait_connected_waits_for_the_peer(stage: Stage) -> None:
    """``wait_connected()`` returns when a peer is connected, and not earlier."""
    async with stage.open(connect=False) as pair, trio.open_nursery() as nursery:
        waiting = Pending(nursery, pair.plugin.wait_connected)
        await _a_few_steps()
        expect(not waiting.done, "wait_connected() returned before connect()")
        await pair.connect()
        await waiting.value()


@_checks("wait_connected", Level.RULE)
async def wait_connected_ends_when_the_plugin_is_closed(stage: Stage) -> None:
    """``wait_connected()`` raises PluginClosedError when the plugin is closed first."""
    async with stage.open(connect=False) as pair, trio.open_nursery() as nursery:
        waiting = Pending(nursery, pair.plugin.wait_connected)
        await _a_few_steps()
        await pair.plugin.aclose()
        with raising(PluginClosedError, "the plugin was closed during wait_connected()"):
            await waiting.value()


# Disconnecting.


@_checks("LedgerPlugin#disconnect")
async def disconnect_disconnects(stage: Stage) -> None:
    """After ``disconnect()`` the plugin is not connected, and sends nothing."""
    async with stage.open() as pair:
        stage.need(pair.stays_disconnected or None, "plugin that stays disconnected")
        await pair.plugin.disconnect()
        expect(not pair.plugin.is_connected(), "is_connected() is true after disconnect()")
        with raising(NotConnectedError, "send_data() after disconnect()"):
            await pair.plugin.send_data(b"")


@_checks("Event: disconnect")
async def disconnecting_emits_one_disconnected(stage: Stage) -> None:
    """``disconnect()`` causes one event ``Disconnected``."""
    async with stage.open() as pair:
        await pair.plugin.disconnect()
        _expect_one_loss(pair)


@_checks("LedgerPlugin#disconnect", Level.RULE)
async def disconnect_is_safe_twice(stage: Stage) -> None:
    """``disconnect()`` of a plugin that is not connected does nothing and causes no event."""
    async with stage.open(connect=False) as pair:
        await pair.plugin.disconnect()
        expect(read_events(pair.plugin) == [], "a disconnect() before connect() caused an event")
        await pair.connect()
        await pair.plugin.disconnect()
        await pair.plugin.disconnect()
        if pair.stays_disconnected:
            _expect_one_loss(pair)


@_checks("LedgerPlugin#connect", Level.SHOULD)
async def a_peer_that_leaves_is_told_once(stage: Stage) -> None:
    """When the peer disconnects, there is one event ``Disconnected``."""
    async with stage.open() as pair:
        stage.need(pair.notices_losses or None, LASTING)
        await pair.peer.disconnect()
        events = await wait_for_event(pair.plugin, Disconnected)
        events += read_events(pair.plugin)
        expect(in_turn(events), f"Connected and Disconnected do not alternate: {events}")


@_checks("LedgerPlugin#connect", Level.SHOULD)
async def a_connection_that_is_cut_is_told_once(stage: Stage) -> None:
    """When the network breaks the connection, there is one event ``Disconnected``."""
    async with stage.open() as pair:
        stage.need(pair.notices_losses or None, LASTING)
        stage.need(pair.cut, "cut")()
        events = await wait_for_event(pair.plugin, Disconnected)
        events += read_events(pair.plugin)
        expect(in_turn(events), f"Connected and Disconnected do not alternate: {events}")


@_checks("LedgerPlugin#isConnected", Level.RULE)
async def is_not_connected_when_disconnected_is_delivered(stage: Stage) -> None:
    """When ``Disconnected`` is delivered, ``is_connected()`` is false, unless ``Connected`` has followed."""
    async with stage.open() as pair, trio.open_nursery() as nursery:

        async def watch() -> bool:
            await wait_for_event(pair.plugin, Disconnected)
            return pair.plugin.is_connected() and Connected() not in read_events(pair.plugin)

        found = Pending(nursery, watch)
        await _a_few_steps()
        await pair.plugin.disconnect()
        expect(not await found.value(), "is_connected() is true when Disconnected is delivered")


# Calls in flight.


@_checks("LedgerPlugin#disconnect", Level.RULE)
async def disconnecting_fails_calls_with_plugin_closed(stage: Stage) -> None:
    """Calls in flight fail with PluginClosedError: this side ended the connection."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        call = await call_unanswered(pair, nursery)
        await pair.plugin.disconnect()
        with raising(PluginClosedError, "disconnect() during a call"):
            await call.value()


@_checks("sendData", Level.RULE)
async def a_lost_connection_fails_calls_with_connection_lost(stage: Stage) -> None:
    """Calls in flight fail with ConnectionLostError when the peer disconnects: it may have acted on them."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        call = await call_unanswered(pair, nursery)
        await pair.peer.disconnect()
        with raising(ConnectionLostError, "the peer disconnected during a call"):
            await call.value()


# Closing.


@_checks("aclose", Level.RULE)
async def a_closed_plugin_refuses_calls(stage: Stage) -> None:
    """After ``aclose()``, which is safe twice, every call raises PluginClosedError."""
    async with stage.open() as pair:
        await pair.plugin.aclose()
        await pair.plugin.aclose()
        expect(not pair.plugin.is_connected(), "a closed plugin is connected")
        for name, call in (
            ("connect", pair.plugin.connect),
            ("send_data", lambda: pair.plugin.send_data(b"")),
            ("send_money", lambda: pair.plugin.send_money("1")),
        ):
            with raising(PluginClosedError, f"{name}() after aclose()"):
                await call()


@_checks("aclose", Level.RULE)
async def closing_waits_for_calls_in_flight(stage: Stage) -> None:
    """``aclose()`` lets calls in flight have their answers, within ``close_timeout``."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        call, go_on = await call_held(nursery, pair.plugin, pair.peer)
        closing = Pending(nursery, pair.plugin.aclose)
        await _a_few_steps()
        go_on.set()
        outcome = await call.outcome()
        expect(outcome == b"x", f"a call in flight did not get its answer when the plugin was closed: {outcome!r}")
        await closing.value()


@_checks("aclose", Level.RULE)
async def closing_leaves_no_task(stage: Stage) -> None:
    """After ``aclose()`` has returned, no task of the plugin is left."""
    async with stage.open() as pair:
        pair.plugin.register_data_handler(echo)
        await pair.peer.send_data(b"")
        await pair.plugin.aclose()
        await pair.peer.aclose()
        left = stage.tasks_left()
        expect(not left, f"tasks are left in the nursery: {left}")


async def _a_few_steps() -> None:
    """Let other tasks run, without waiting for the network."""
    for _ in range(10):
        await trio.lowlevel.checkpoint()


def _expect_one_loss(pair: PluginPair) -> None:
    events = read_events(pair.plugin)
    losses = sum(isinstance(event, Disconnected) for event in events)
    expect(losses == 1, f"there was one loss, but {losses} Disconnected: {events}")
    expect(in_turn(events), f"Connected and Disconnected do not alternate: {events}")
