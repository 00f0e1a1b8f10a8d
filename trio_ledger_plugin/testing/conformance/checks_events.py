"""Checks of the events: the bounds of the channel, and how a failure ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ...errors import PluginClosedError, PluginFailedError
from ...events import Connected, Disconnected, Event, EventsDropped, Failed
from .assertions import call_unanswered, expect, raising, read_events
from .harness import Check, Level, Listed, Stage

if TYPE_CHECKING:
    from .pair import PluginPair

__all__ = ["CHECKS"]

_checks: Listed = Listed()
CHECKS: list[Check] = _checks.checks

MOST_EVENTS = 64
# Each is a Disconnected and a Connected: more than the channel keeps.
RECONNECTIONS = 40


@_checks("events", Level.RULE)
async def events_are_a_memory_channel(stage: Stage) -> None:
    """``events`` is the receiving end of a Trio memory channel, the same each time."""
    async with stage.open(connect=False) as pair:
        expect(isinstance(pair.plugin.events, trio.MemoryReceiveChannel), "events is not a trio.MemoryReceiveChannel")
        expect(pair.plugin.events is pair.plugin.events, "events is another channel each time")


@_checks("events", Level.RULE)
async def clones_of_events_compete(stage: Stage) -> None:
    """An event goes to one of the readers of ``events`` and its clones."""
    async with stage.open(connect=False) as pair:
        clone = pair.plugin.events.clone()
        await pair.connect()
        first = read_events(pair.plugin)
        with clone:
            try:
                second: list[Event] = [clone.receive_nowait()]
            except trio.WouldBlock:
                second = []
        expect(first + second == [Connected()], f"one Connected gave one reader {first} and the other {second}")


@_checks("events", Level.RULE)
async def unread_events_neither_block_nor_grow(stage: Stage) -> None:
    """An application that reads no events does not stop the plugin, which keeps at most 64 events for it."""
    async with stage.open() as pair:
        await _reconnect_often(stage, pair)
        kept = len(read_events(pair.plugin))
        expect(kept <= MOST_EVENTS, f"{kept} events are kept; {MOST_EVENTS} are the most")


@_checks("events", Level.RULE)
async def the_newest_events_are_kept(stage: Stage) -> None:
    """Of too many events the oldest are dropped."""
    async with stage.open() as pair:
        await _reconnect_often(stage, pair)
        events = read_events(pair.plugin)
        # The plugin keeps an even number of events: of the oldest ones, a Disconnected would be last.
        expect(events[-1] == Connected(), f"the last event was Connected; the last that was kept is {events[-1]}")


@_checks("events", Level.RULE)
async def dropped_events_are_counted(stage: Stage) -> None:
    """``EventsDropped`` comes before the events that were kept, and says how many were dropped."""
    async with stage.open() as pair:
        await _reconnect_often(stage, pair)
        events = read_events(pair.plugin)
        expect(isinstance(events[0], EventsDropped), f"events were dropped, and the first is {events[0]}")
        assert isinstance(events[0], EventsDropped)
        dropped, published = events[0].count, 2 * RECONNECTIONS + 1
        expect(
            dropped + len(events) - 1 == published,
            f"there were {published} events; {dropped} were reported as dropped, {len(events) - 1} were kept",
        )


@_checks("events", Level.RULE)
async def events_end_after_closing(stage: Stage) -> None:
    """After ``aclose()`` the loop over the events ends, ``Disconnected`` last."""
    async with stage.open() as pair:
        await pair.plugin.aclose()
        events = [event async for event in pair.plugin.events]
        expect(events, "there were no events before the end")
        expect(isinstance(events[-1], Disconnected), f"the last event is {events[-1]}, not Disconnected")


@_checks("Event: error", Level.RULE)
async def failed_is_the_last_event(stage: Stage) -> None:
    """A fatal error causes the event ``Failed``, which is the last."""
    async with stage.open() as pair:
        error = OSError("fatal")
        pair.plugin.fail(error)
        events = [event async for event in pair.plugin.events]
        expect(events, "a fatal error caused no event")
        expect(events[-1] == Failed(error), f"the last event is {events[-1]}, not Failed")
        expect(sum(isinstance(event, Failed) for event in events) == 1, f"there is more than one Failed: {events}")


@_checks("Event: error", Level.RULE)
async def failed_is_never_dropped(stage: Stage) -> None:
    """``Failed`` reaches an application that has read no event before."""
    async with stage.open() as pair:
        await _reconnect_often(stage, pair)
        pair.plugin.fail(OSError("fatal"))
        events = read_events(pair.plugin)
        expect(isinstance(events[-1], Failed), f"the last event is {events[-1]}, not Failed")


@_checks("Event: error", Level.RULE)
async def a_failed_plugin_is_disconnected(stage: Stage) -> None:
    """A plugin that has failed is not connected, and ``Disconnected`` comes before ``Failed``."""
    async with stage.open() as pair:
        pair.plugin.fail(OSError("fatal"))
        expect(not pair.plugin.is_connected(), "is_connected() is true after a failure")
        kinds = [type(event) for event in read_events(pair.plugin)]
        expect(kinds == [Connected, Disconnected, Failed], f"the events are {[kind.__name__ for kind in kinds]}")


@_checks("Event: error")
async def a_failed_plugin_refuses_calls(stage: Stage) -> None:
    """After a fatal error calls raise PluginFailedError, whose cause is the error."""
    async with stage.open() as pair:
        error = OSError("fatal")
        pair.plugin.fail(error)
        for name, call in (("connect", pair.plugin.connect), ("send_data", lambda: pair.plugin.send_data(b""))):
            with raising(PluginFailedError, f"{name}() after a failure") as caught:
                await call()
            expect(caught[0].__cause__ is error, f"the cause of {name}()'s error is {caught[0].__cause__!r}")


@_checks("Event: error", Level.RULE)
async def a_failure_fails_calls_in_flight(stage: Stage) -> None:
    """Calls that wait for the peer fail with PluginFailedError when the plugin fails."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        call = await call_unanswered(pair, nursery)
        pair.plugin.fail(OSError("fatal"))
        with raising(PluginFailedError, "the plugin failed during a call"):
            await call.value()


@_checks("aclose", Level.RULE)
async def closed_and_failed_are_different(stage: Stage) -> None:
    """A closed plugin says that it was closed, even if ``fail()`` is called afterwards."""
    async with stage.open() as pair:
        await pair.plugin.aclose()
        pair.plugin.fail(OSError("too late"))
        with raising(PluginClosedError, "send_data() on a closed plugin"):
            await pair.plugin.send_data(b"")
        expect(Failed not in map(type, read_events(pair.plugin)), "a closed plugin published Failed")


async def _reconnect_often(stage: Stage, pair: PluginPair) -> None:
    stage.need(pair.reconnects or None, "pair that can connect again")
    for _ in range(RECONNECTIONS):
        await pair.reconnect()
