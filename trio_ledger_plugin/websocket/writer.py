"""The one task that writes to a link's stream.

The law of this module: whoever has something to send appends it and never waits for the stream, so a cancelled
caller cannot tear a frame. Control frames go out ahead of queued messages, between whole frames; a Close goes out
last and nothing is taken after it. The task lives while there is something to write and a little longer.

A message that is alone may skip the task: waking it costs two turns of the loop, more than all else of a request.
Its bytes are then given to the socket at once, as many as it takes without waiting, and the rest is queued first.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio

from ..net.sockets import abort_stream, plain_socket, write_socket
from ..parking import Waiter, park
from .frames import CLOSE, PONG

if TYPE_CHECKING:
    from ..runtime.tasks import TaskGroup

__all__ = ["FrameWriter"]

SEND_BYTES = 65536


class FrameWriter:
    """Queues frames for one stream and sends them in pieces of about 64 KiB.

    Args:
        stream: The stream to write to; nobody else may write to it.
        tasks: Owns the writing task.
        send_timeout: Seconds that one piece may take, kept by whoever watches ``deadline``.
        piece_bytes: Frames leave together up to this size; with 1 each leaves by itself.
    """

    __slots__ = (
        "_closing_frame",
        "_frames",
        "_limit",
        "_piece_bytes",
        "_pong",
        "_rest",
        "_retire",
        "_room",
        "_running",
        "_send_timeout",
        "_sleep",
        "_socket",
        "_stopped",
        "_stream",
        "_tasks",
        "_urgent",
        "bytes_sent",
        "deadline",
        "emptied",
        "queued",
    )

    def __init__(
        self, stream: trio.abc.SendStream, tasks: TaskGroup, send_timeout: float, *, piece_bytes: int = SEND_BYTES
    ) -> None:
        self._stream = stream
        self._piece_bytes = piece_bytes
        self._tasks = tasks
        self._send_timeout = send_timeout
        self._socket = plain_socket(stream)
        # The end of a frame whose beginning has left: nothing may come in between.
        self._rest = b""
        self._frames: list[bytes] = []
        self._urgent: list[bytes] = []
        self._pong = b""
        self._closing_frame = b""
        self._stopped = False
        self._running = False
        self._sleep = Waiter()
        self._retire = False
        # Made when first needed: an idle connection must cost little.
        self._room: trio.lowlevel.ParkingLot | None = None
        self._limit = 0
        self.queued: int = 0
        self.bytes_sent: int = 0
        self.deadline: float = inf
        self.emptied: trio.Event | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is taken: a Close was queued, or the stream has ended."""
        return self._stopped

    def write(self, frame: bytes) -> None:
        """Queue one message's frame; after a Close it vanishes."""
        if self._stopped:
            return
        self._frames.append(frame)
        self.queued += len(frame)
        self._rouse()

    def write_alone(self, frame: bytes) -> None:
        """Send one message's frame at once when nothing is before it and the socket takes it, or else queue it."""
        at_work = self._running and self._sleep.task is None
        if self._socket is None or at_work or self._stopped:
            self.write(frame)
            return
        sent = write_socket(self._socket, frame)
        self.bytes_sent += sent
        if not sent:
            self.write(frame)
        elif sent < len(frame):
            self._rest = frame[sent:]
            self.queued += len(self._rest)
            self._rouse()

    def write_control(self, frame: bytes) -> None:
        """Queue a control frame ahead of the messages; of pongs only the newest is kept, a Close goes last."""
        if self._stopped:
            return
        opcode = frame[0] & 0x0F
        if opcode == PONG:
            self._pong = frame
        elif opcode == CLOSE:
            self._closing_frame = frame
            self._stopped = True
        else:
            self._urgent.append(frame)
        self._rouse()

    def drop_messages(self) -> None:
        """Forget the messages that are queued; what has begun to leave and control frames still go out."""
        self._frames.clear()
        self.queued = len(self._rest)
        if self._room:
            self._room.unpark_all()

    def stop(self) -> None:
        """Forget what is queued and take nothing more: the link is lost."""
        self._stopped = True
        self.drop_messages()
        self._urgent.clear()
        self._rest = self._pong = self._closing_frame = b""
        self.queued = 0
        self.retire()

    def retire(self) -> None:
        """Let the task go if it has nothing to do."""
        if self._sleep.task is not None:
            self._retire = True
            self._sleep.wake()

    async def wait_for_room(self, limit: int) -> None:
        """Wait until fewer bytes than ``limit`` are queued, or the link is lost.

        Cancellation: Safe at any time.
        """
        while self.queued >= limit:
            if self._room is None:
                self._room = trio.lowlevel.ParkingLot()
            self._limit = limit
            await self._room.park()

    def _let_in(self) -> None:
        """Wake about as many as fill the room; those who find none left wait on."""
        if self._room:
            self._room.unpark(count=max(1, (self._limit - self.queued) // 4096))

    async def flush(self) -> None:
        """Wait until all that is queued has been sent, or the stream broke.

        Cancellation: Safe at any time.
        """
        while self._running and self._sleep.task is None:
            if self.emptied is None:
                self.emptied = trio.Event()
            await self.emptied.wait()

    def _rouse(self) -> None:
        if self._sleep.task is not None:
            self._sleep.wake()
        elif not self._running:
            self._running = True
            self._tasks.spawn(self._run)

    async def _run(self) -> None:
        broken_until = inf
        try:
            while True:
                await self._drain()
                self._signal_empty()
                if self._stopped or self._retire:
                    return
                await park(self._sleep)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # What is queued can never be sent. The reading side, which mostly meets the same break, may find more.
            self.stop()
            broken_until = trio.current_time() + self._send_timeout
        except Exception:  # noqa: BLE001 (a stream of the application's may raise anything, and the plugin outlives it)
            self.stop()
            await abort_stream(self._stream)
        except trio.Cancelled:
            # A frame may be torn: nothing may follow it.
            self.stop()
            raise
        finally:
            self.deadline = broken_until
            self._running = self._retire = False
            self._signal_empty()

    def _signal_empty(self) -> None:
        if self.emptied is not None:
            self.emptied.set()
            self.emptied = None
        if self._room:
            # Nothing more will leave, and so wake anybody, if those woken last write nothing after all.
            self._room.unpark_all()

    async def _drain(self) -> None:
        if self._socket is not None and (piece := self._next_piece()):
            # Mostly the socket takes all of it; Trio's own sending costs a turn of the loop more.
            sent = write_socket(self._socket, piece)
            self.bytes_sent += sent
            self._rest = piece[sent:]
            self.queued += len(self._rest)
            if self._room:
                self._let_in()
        while piece := self._next_piece():
            self.deadline = trio.current_time() + self._send_timeout
            await self._stream.send_all(piece)
            self.deadline = inf
            self.bytes_sent += len(piece)
            if self._room:
                self._let_in()

    def _next_piece(self) -> bytes:
        if self._rest:
            piece, self._rest = self._rest, b""
            self.queued -= len(piece)
            return piece
        if self._urgent or self._pong:
            piece = b"".join((*self._urgent, self._pong))
            self._urgent.clear()
            self._pong = b""
            return piece
        if self._frames:
            if self.queued <= self._piece_bytes:
                piece = b"".join(self._frames)
                self._frames.clear()
            else:
                size = count = 0
                for frame in self._frames:
                    if count and size + len(frame) > self._piece_bytes:
                        break
                    size += len(frame)
                    count += 1
                piece = b"".join(self._frames[:count])
                del self._frames[:count]
            self.queued -= len(piece)
            return piece
        piece, self._closing_frame = self._closing_frame, b""
        return piece
