"""The writer of a link: the order and size of what it sends, and the tasks that wait for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any

import pytest
import trio
import trio.testing
from support.peers import BINARY, CLOSE, PING, PONG, frame
from support.tasks import open_tasks
from trio.testing import MockClock

from trio_ledger_plugin.websocket.writer import FrameWriter

KIB = 1024


class Slow(trio.abc.SendStream):
    """Takes one piece for each call of take(), and keeps it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.taking = trio.Semaphore(0)
        self.broken = False
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.taking.acquire()
        if self.broken:
            raise trio.BrokenResourceError
        self.pieces.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed = True

    async def take(self, count: int = 1) -> None:
        for _ in range(count):
            self.taking.release()
            await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def writing(send_timeout: float = 10) -> AsyncIterator[Any]:
    stream = Slow()
    async with open_tasks() as tasks:
        yield FrameWriter(stream, tasks, send_timeout), stream, tasks


async def test_messages_leave_in_order_and_together() -> None:
    """A message out of order is a reply before its request."""
    async with writing() as (writer, stream, _):
        messages = [frame(bytes([i]) * i) for i in range(50)]
        for message in messages:
            writer.write(message)
        assert writer.queued == sum(map(len, messages))
        await stream.take()
        assert stream.pieces == [b"".join(messages)]
        assert writer.queued == 0
        assert writer.bytes_sent == sum(map(len, messages))
        writer.write(frame(b"later"))
        await stream.take()
        assert stream.pieces[1:] == [frame(b"later")]


async def test_pieces_are_of_64_kib_and_of_whole_frames() -> None:
    """A slow peer must read a piece within the timeout, and a control frame fits only between frames."""
    async with writing() as (writer, stream, _):
        messages = [frame(bytes([i]) * 10 * KIB) for i in range(30)]
        for message in messages:
            writer.write(message)
        await stream.take(40)
        assert b"".join(stream.pieces) == b"".join(messages)
        assert all(len(piece) <= 64 * KIB and len(piece) % len(messages[0]) == 0 for piece in stream.pieces)
        assert len(stream.pieces) == 5


async def test_a_frame_larger_than_a_piece_leaves_whole() -> None:
    async with writing() as (writer, stream, _):
        big = frame(bytes(64 * KIB))
        writer.write(frame(b"small"))
        writer.write(big)
        writer.write(frame(b"small"))
        await stream.take(5)
        assert stream.pieces == [frame(b"small"), big, frame(b"small")]


async def test_control_frames_are_sent_first_between_whole_frames() -> None:
    """A pong behind a megabyte of messages arrives too late: the peer has disconnected."""
    async with writing() as (writer, stream, _):
        messages = [frame(bytes([i]) * 60 * KIB) for i in range(3)]
        for message in messages:
            writer.write(message)
        await trio.testing.wait_all_tasks_blocked()
        writer.write_control(frame(b"now", PING))
        await stream.take(5)
        assert stream.pieces == [messages[0], frame(b"now", PING), *messages[1:]]


async def test_only_the_newest_pong_is_kept() -> None:
    """A peer that sends pings and does not read would fill the memory with pongs."""
    async with writing() as (writer, stream, _):
        writer.write(frame(b"first"))
        await trio.testing.wait_all_tasks_blocked()
        for i in range(10_000):
            writer.write_control(frame(b"%d" % i, PONG))
        await stream.take(5)
        assert stream.pieces == [frame(b"first"), frame(b"9999", PONG)]


async def test_close_is_sent_last() -> None:
    """RFC 6455, section 5.5.1: a frame after the Close is an error to the peer."""
    async with writing() as (writer, stream, _):
        messages = [frame(bytes([i]) * 60 * KIB) for i in range(3)]
        for message in messages:
            writer.write(message)
        writer.write_control(frame(b"\x03\xe8", CLOSE))
        writer.write(frame(b"late"))
        writer.write_control(frame(b"late", PONG))
        writer.write_control(frame(b"again", CLOSE))
        await stream.take(9)
        assert stream.pieces == [*messages, frame(b"\x03\xe8", CLOSE)]
        writer.write(frame(b"later still"))
        await stream.take()
        assert len(stream.pieces) == 4


async def test_messages_can_be_dropped_and_the_close_still_leaves() -> None:
    """A request that was reported lost must not be sent afterwards."""
    async with writing() as (writer, stream, _):
        writer.write(frame(b"on its way"))
        await trio.testing.wait_all_tasks_blocked()
        writer.write(frame(b"reported lost"))
        writer.drop_messages()
        assert writer.queued == 0
        writer.write_control(frame(b"\x03\xe8", CLOSE))
        await stream.take(4)
        assert stream.pieces == [frame(b"on its way"), frame(b"\x03\xe8", CLOSE)]


async def test_stop_drops_everything() -> None:
    async with writing() as (writer, stream, _):
        writer.write(frame(b"on its way"))
        await trio.testing.wait_all_tasks_blocked()
        writer.write(frame(b"queued"))
        writer.write_control(frame(b"", PING))
        writer.write_control(frame(b"", PONG))
        writer.stop()
        writer.write(frame(b"late"))
        await stream.take(4)
        assert stream.pieces == [frame(b"on its way")]
        assert writer.queued == 0


async def test_flush_waits_for_all_that_is_queued() -> None:
    """Otherwise the Close of a closing plugin would cut off its last replies."""
    async with writing() as (writer, stream, _), trio.open_nursery() as nursery:
        await writer.flush()
        for i in range(3):
            writer.write(frame(bytes([i]) * 60 * KIB))
        flushed = trio.Event()

        async def flush() -> None:
            await writer.flush()
            flushed.set()

        nursery.start_soon(flush)
        await stream.take(2)
        assert not flushed.is_set()
        await stream.take()
        assert flushed.is_set()
        await writer.flush()


@pytest.mark.parametrize("end", ["broken", "stopped and cancelled"])
async def test_flush_ends_when_the_stream_does(end: Any) -> None:
    """Closing must not wait for a stream that is gone."""
    async with writing() as (writer, stream, tasks), trio.open_nursery() as nursery:
        writer.write(frame(b"never sent"))
        nursery.start_soon(writer.flush)
        await trio.testing.wait_all_tasks_blocked()
        if end == "broken":
            stream.broken = True
            await stream.take()
        else:
            tasks.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks
        # A broken stream ends the link even if its other half works.
        assert (writer.deadline < inf) == (end == "broken")
        writer.write(frame(b"late"))
        assert writer.queued == 0


async def test_nothing_follows_a_torn_frame() -> None:
    """Bytes sent after the beginning of a frame would be read as its end."""
    async with writing() as (writer, stream, tasks):
        writer.write(frame(b"torn"))
        await trio.testing.wait_all_tasks_blocked()
        tasks.cancel()
        await tasks.wait_ended()
        writer.write(frame(b"behind"))
        writer.write_control(frame(b"behind", PING))
        await stream.take(3)
        assert stream.pieces == []


async def test_callers_waiting_for_room_continue_as_it_becomes_free() -> None:
    """A caller that is never woken hangs for ever, and one that continues too early grows the queue past its limit."""
    async with writing() as (writer, stream, _), trio.open_nursery() as nursery:
        size = 16 * KIB
        most = 0

        async def caller() -> None:
            nonlocal most
            await writer.wait_for_room(4 * size)
            writer.write(frame(bytes(size)))
            most = max(most, writer.queued)

        for _ in range(50):
            nursery.start_soon(caller)
        await trio.testing.wait_all_tasks_blocked()
        while nursery.child_tasks:
            await stream.take()
        while writer.queued:
            await stream.take()
        await stream.take()
        assert b"".join(stream.pieces) == frame(bytes(size)) * 50
        assert most < 5 * size + 50


@pytest.mark.parametrize("end", ["drop_messages", "stop"])
async def test_callers_waiting_for_room_return_when_the_link_is_lost(end: Any) -> None:
    async with writing() as (writer, _, _), trio.open_nursery() as nursery:
        writer.write(frame(b"on its way"))
        await trio.testing.wait_all_tasks_blocked()
        writer.write(frame(bytes(KIB)))
        for _ in range(3):
            nursery.start_soon(writer.wait_for_room, KIB)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 3
        getattr(writer, end)()
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_waiter_that_does_not_write_blocks_no_other() -> None:
    """The next waiter must find the room, even in a queue that holds only one frame."""
    async with writing() as (writer, stream, _), trio.open_nursery() as nursery:
        writer.write(frame(b"on its way"))
        await trio.testing.wait_all_tasks_blocked()
        writer.write(frame(b"x" * 100))
        sent = []

        async def leave() -> None:
            await writer.wait_for_room(50)

        async def caller(i: int) -> None:
            await writer.wait_for_room(50)
            writer.write(frame(b"%d" % i * 100))
            sent.append(i)

        nursery.start_soon(caller, 0)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        await stream.take(6)
        assert sent == [0]


async def test_cancelled_waiter_affects_no_other() -> None:
    async with writing() as (writer, stream, _):
        writer.write(frame(b"on its way"))
        await trio.testing.wait_all_tasks_blocked()
        writer.write(frame(bytes(KIB)))
        with trio.move_on_after(0) as scope:
            await writer.wait_for_room(10)
        assert scope.cancelled_caught
        with trio.move_on_after(0) as scope:
            await writer.flush()
        assert scope.cancelled_caught
        await stream.take(2)
        assert stream.pieces == [frame(b"on its way"), frame(bytes(KIB))]


async def test_deadline_is_that_of_the_piece_being_sent(mock_clock: MockClock) -> None:
    """It finds a reader that never reads, but not one that reads steadily, for a queue of any length."""
    async with writing(send_timeout=10) as (writer, stream, _):
        assert writer.deadline == inf
        for i in range(10):
            writer.write(frame(bytes([i]) * 60 * KIB))
        start = trio.current_time()
        for i in range(10):
            await trio.testing.wait_all_tasks_blocked()
            assert writer.deadline == start + 9 * i + 10
            mock_clock.jump(9)
            await stream.take()
        assert writer.deadline == inf
        assert len(stream.pieces) == 10


async def test_task_runs_only_while_there_is_something_to_write() -> None:
    """A task for every idle link would cost memory a thousandfold."""
    async with writing() as (writer, stream, _):

        def running() -> int:
            return trio.lowlevel.current_statistics().tasks_living

        before = running()
        writer.write(frame(b"a"))
        await stream.take()
        writer.retire()
        await trio.testing.wait_all_tasks_blocked()
        assert running() == before
        writer.retire()
        writer.write(frame(b"b"))
        writer.write_control(frame(b"c", PING))
        await stream.take(2)
        writer.retire()
        writer.write(frame(b"d"))
        await stream.take(2)
        assert b"".join(stream.pieces[1:]) in (
            frame(b"b") + frame(b"c", PING) + frame(b"d"),
            frame(b"c", PING) + frame(b"b") + frame(b"d"),
        )


@asynccontextmanager
async def over_a_socket() -> AsyncIterator[Any]:
    """Give a writer on a real socket, which may be written at once, and the stream of the other end."""
    async with open_tasks() as tasks:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        async with listener:
            near = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
            far = await listener.accept()
        async with near, far:
            yield FrameWriter(near, tasks, 10), far


async def read(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some()
        assert more
        data += more
    return data


async def test_single_message_is_sent_at_once_and_in_order() -> None:
    async with over_a_socket() as (writer, far):
        messages = [frame(b"%d" % i) for i in range(6)]
        writer.write_alone(messages[0])
        assert writer.queued == 0
        writer.write(messages[1])
        writer.write_alone(messages[2])
        await writer.flush()
        writer.write_alone(messages[3])
        writer.write_alone(messages[4])
        writer.write(messages[5])
        expected = b"".join(messages)
        assert await read(far, len(expected)) == expected


async def test_single_message_that_is_sent_in_part_is_not_torn() -> None:
    """A frame that begins inside another ends the connection."""
    async with over_a_socket() as (writer, far):
        messages: list[bytes] = []
        while not writer.queued:
            messages.append(frame(bytes([len(messages) % 256]) * 60_000))
            writer.write_alone(messages[-1])
        writer.write_control(frame(b"", PING))
        writer.write(frame(b"next"))
        writer.write_alone(frame(b"last"))
        expected = b"".join((*messages, frame(b"", PING), frame(b"next"), frame(b"last")))
        assert await read(far, len(expected)) == expected
        assert frame(b"next")[0] & 15 == BINARY


async def test_single_message_on_a_dead_socket_ends_the_link() -> None:
    async with over_a_socket() as (writer, far):
        await trio.aclose_forcefully(far)
        for _ in range(3):
            writer.write_alone(frame(bytes(1000)))
            await writer.flush()
        writer.write_alone(frame(b"late"))
        assert writer.queued == 0
