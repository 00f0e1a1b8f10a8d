"""The one task that writes to a link's stream.

Invariant: after part of a frame, only the rest of that frame is sent. A caller appends a frame and never waits for the
stream, so a cancelled caller cannot leave half a frame behind. Control frames go out ahead of queued messages, between
whole frames. A Close goes out last, and nothing is queued after it.

The task runs while there is something to write, then sleeps until it is woken or retired. A single message may skip
the task: to wake the task takes two scheduler turns, more than all the rest of a request. The socket then gets as many
of the bytes as it accepts without waiting, and the rest goes out before anything else.
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
        stream: The stream to write to; nothing else may write to it.
        tasks: Owns the writing task.
        send_timeout: Seconds that one piece may take. The link compares ``deadline`` with the clock and aborts.
        piece_bytes: The size up to which frames are sent together; with 1, each is sent by itself.
    """

    __slots__ = (
        "_closing_frame",
        "_drained",
        "_frames",
        "_limit",
        "_piece_bytes",
        "_pong",
        "_retire",
        "_room",
        "_running",
        "_send_timeout",
        "_sleep",
        "_socket",
        "_stopped",
        "_stream",
        "_tasks",
        "_unsent",
        "_urgent",
        "bytes_sent",
        "deadline",
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
        # The unsent end of what the socket has accepted in part: it must be sent next.
        self._unsent = b""
        self._frames: list[bytes] = []
        # The control frames other than the newest pong and the Close.
        self._urgent = b""
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
        self._drained: trio.Event | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether further frames are ignored: a Close was queued, or the stream has ended."""
        return self._stopped

    def write(self, frame: bytes) -> None:
        """Queue one message's frame; it is ignored after a Close."""
        if self._stopped:
            return
        self._frames.append(frame)
        self.queued += len(frame)
        self._wake_task()

    def write_alone(self, frame: bytes) -> None:
        """Send one message's frame at once if nothing is queued before it and the socket accepts it; else queue it."""
        writing = self._running and self._sleep.task is None
        if self._socket is None or writing or self._stopped:
            self.write(frame)
            return
        sent = write_socket(self._socket, frame)
        self.bytes_sent += sent
        if not sent:
            self.write(frame)
        elif sent < len(frame):
            self._unsent = frame[sent:]
            self.queued += len(self._unsent)
            self._wake_task()

    def write_control(self, frame: bytes) -> None:
        """Queue a control frame ahead of the messages; only the newest pong is kept, and a Close goes last."""
        if self._stopped:
            return
        opcode = frame[0] & 0x0F
        if opcode == PONG:
            self._pong = frame
        elif opcode == CLOSE:
            self._closing_frame = frame
            self._stopped = True
        else:
            self._urgent += frame
        self._wake_task()

    def drop_messages(self) -> None:
        """Drop the queued messages; a frame sent in part is still completed, and control frames are still sent."""
        self._frames.clear()
        self.queued = len(self._unsent)
        if self._room:
            self._room.unpark_all()

    def stop(self) -> None:
        """Drop all that is queued and ignore further frames: the link is lost."""
        self._stopped = True
        self.drop_messages()
        self._unsent = self._urgent = self._pong = self._closing_frame = b""
        self.queued = 0
        self.retire()

    def retire(self) -> None:
        """End the task if it has nothing to do; the next frame starts it again."""
        if self._sleep.task is not None:
            self._retire = True
            self._sleep.wake()

    async def wait_for_room(self, limit: int) -> None:
        """Wait until fewer than ``limit`` bytes are queued, or the link is lost.

        Cancellation: Safe at any time.
        """
        while self.queued >= limit:
            if self._room is None:
                self._room = trio.lowlevel.ParkingLot()
            self._limit = limit
            await self._room.park()

    def _wake_waiters(self) -> None:
        """Wake about as many waiting tasks as there is room for; a task that finds no room waits again."""
        if self._room:
            self._room.unpark(count=max(1, (self._limit - self.queued) // 4096))

    async def flush(self) -> None:
        """Wait until all that is queued has been sent, or the stream is broken.

        Cancellation: Safe at any time.
        """
        while self._running and self._sleep.task is None:
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()

    def _wake_task(self) -> None:
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
            # What is queued can never be sent. The reader usually notices the same break, and may get messages before.
            self.stop()
            broken_until = trio.current_time() + self._send_timeout
        except Exception:  # noqa: BLE001 (the application's stream may raise anything, and must not end the plugin)
            self.stop()
            await abort_stream(self._stream)
        except trio.Cancelled:
            # A frame may be sent in part: nothing may follow it.
            self.stop()
            raise
        finally:
            self.deadline = broken_until
            self._running = self._retire = False
            self._signal_empty()

    def _signal_empty(self) -> None:
        if self._drained is not None:
            self._drained.set()
            self._drained = None
        if self._room:
            # Wakes all: the tasks woken before may have queued nothing, and nothing else would wake the others.
            self._room.unpark_all()

    async def _drain(self) -> None:
        if self._socket is not None and (piece := self._next_piece()):
            # The socket usually accepts all of it; sending with Trio would take one more scheduler turn.
            sent = write_socket(self._socket, piece)
            self.bytes_sent += sent
            self._unsent = piece[sent:]
            self.queued += len(self._unsent)
            if self._room:
                self._wake_waiters()
        while piece := self._next_piece():
            self.deadline = trio.current_time() + self._send_timeout
            await self._stream.send_all(piece)
            self.deadline = inf
            self.bytes_sent += len(piece)
            if self._room:
                self._wake_waiters()

    def _next_piece(self) -> bytes:
        if self._unsent:
            piece, self._unsent = self._unsent, b""
            self.queued -= len(piece)
            return piece
        if self._urgent or self._pong:
            piece = self._urgent + self._pong
            self._urgent = self._pong = b""
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
