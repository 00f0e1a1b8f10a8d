"""An application that reads its events gets every change in order; one that never reads costs no extra memory."""

import pytest
import trio
from support.events import names

from trio_ledger_plugin import AccountConnected, Connected, Disconnected, EventsDropped, Failed
from trio_ledger_plugin.events import BUFFERED_EVENTS, EventStream


def publish(stream, first, last):
    for number in range(first, last):
        stream.publish(Disconnected(str(number)))


def take_all(stream):
    taken = []
    while True:
        try:
            taken.append(stream.receiver.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return taken


def numbers(events):
    return [int(event.reason) for event in events if isinstance(event, Disconnected)]


async def test_events_are_values():
    assert Connected() == Connected()
    assert Disconnected("a") != Disconnected("b")
    with pytest.raises(AttributeError):
        setattr(Disconnected("a"), "reason", "b")  # noqa: B010 (a type checker refuses it as well)
    assert AccountConnected("alice").name == "alice"


async def test_buffer_holds_64_events_without_loss():
    assert BUFFERED_EVENTS == 64
    stream = EventStream()
    publish(stream, 0, 64)
    assert numbers(take_all(stream)) == list(range(64))
    assert stream.dropped == 0


@pytest.mark.parametrize("published", [65, 66, 100, 127, 128, 129, 1000])
async def test_newest_events_are_kept_after_a_count_of_lost_ones(published):
    stream = EventStream()
    publish(stream, 0, published)
    events = take_all(stream)
    assert len(events) <= BUFFERED_EVENTS
    assert isinstance(events[0], EventsDropped)
    assert names(events).count("EventsDropped") == 1
    kept = numbers(events)
    assert kept == list(range(published - len(kept), published))
    assert events[0].count == published - len(kept) == stream.dropped
    assert len(kept) >= BUFFERED_EVENTS - 2


@pytest.mark.parametrize("read", [1, 2, 3, 10, 63, 64])
async def test_read_and_dropped_events_add_up_for_a_slow_reader(read):
    stream = EventStream()
    seen = 0
    for start in range(0, 600, 60):
        publish(stream, start, start + 60)
        for _ in range(min(read, stream.receiver.statistics().current_buffer_used)):
            event = stream.receiver.receive_nowait()
            seen += event.count if isinstance(event, EventsDropped) else 1
    rest = take_all(stream)
    seen += sum(event.count if isinstance(event, EventsDropped) else 1 for event in rest)
    assert seen == 600
    assert numbers(rest)[-1:] in ([], [599])


@pytest.mark.parametrize("published", [0, 1, 63, 64, 65, 200])
async def test_failed_is_never_dropped_and_always_last(published):
    stream = EventStream()
    publish(stream, 0, published)
    error = OSError("gone")
    stream.close(Failed(error))
    stream.publish(Connected())
    events = [event async for event in stream.receiver]
    assert events[-1] == Failed(error)
    assert names(events).count("Failed") == 1
    assert len(events) <= BUFFERED_EVENTS


async def test_buffered_events_can_be_read_after_close():
    stream = EventStream()
    publish(stream, 0, 3)
    stream.close()
    assert numbers([event async for event in stream.receiver]) == [0, 1, 2]


async def test_second_close_publishes_nothing():
    stream = EventStream()
    stream.close(Failed(OSError()))
    stream.close(Failed(ValueError()))
    stream.close()
    assert len([event async for event in stream.receiver]) == 1


async def test_publishing_works_after_the_reader_closed_its_end():
    stream = EventStream()
    stream.receiver.close()
    publish(stream, 0, 500)
    stream.close(Failed(OSError()))


async def test_each_event_reaches_one_clone():
    stream = EventStream()
    other = stream.receiver.clone()
    publish(stream, 0, 2)
    assert stream.receiver.receive_nowait() == Disconnected("0")
    assert other.receive_nowait() == Disconnected("1")
    stream.close()
    with pytest.raises(trio.EndOfChannel):
        await other.receive()


async def test_waiting_reader_gets_the_event_and_the_end(autojump_clock):
    stream = EventStream()
    seen = []

    async def read():
        seen.extend([event async for event in stream.receiver])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(1)
        stream.publish(Connected())
        await trio.sleep(1)
        assert seen == [] or seen == [Connected()]
        stream.close(Failed(OSError()))
    assert names(seen) == ["Connected", "Failed"]
