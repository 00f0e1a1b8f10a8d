"""The message stream of a connection that the application accepted, where trio-websocket reads the bytes.

One task receives each message as soon as trio-websocket has read it, so trio-websocket's queue is never full for long
and pongs are not delayed. The writer's task sends one message at a time.

Invariant: only tasks of the plugin send messages and pings, never a caller that could be cancelled in the middle of a
frame. When reading ends or writing fails, the stream is closed.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio

from .connection import Accepted, ReaderTask
from .frame_stream import PAUSE_SECONDS
from .interface import closed_by_peer
from .writer import FrameWriter

if TYPE_CHECKING:
    from ..options.base import PluginOptions
    from ..runtime.tasks import TaskGroup
    from .interface import MessageReceiver, OnEnd

__all__ = ["MessageStream"]

# The size of the payload of trio-websocket's pings, and so of the pongs.
PONG_BYTES = 4


class MessageStream:
    """One accepted connection, as a link uses it.

    The counts of bytes do not include the headers of frames, which only trio-websocket sees.

    Args:
        accepted: The connection.
        tasks: Owns the reading and the writing task; trio-websocket's run in the application's nursery.
        options: The limits.
        peer: The peer's address, for logs.
    """

    __slots__ = (
        "_accepted",
        "_closing",
        "_max_message",
        "_options",
        "_pinging",
        "_pong",
        "_reader",
        "_receiver",
        "_tasks",
        "bytes_received",
        "peer",
        "writer",
    )

    def __init__(self, accepted: Accepted, tasks: TaskGroup, options: PluginOptions, peer: str) -> None:
        self._accepted = accepted
        self._tasks = tasks
        self._options = options
        self._max_message = options.max_unauthenticated_bytes
        self._reader = ReaderTask(tasks, accepted, lambda *_: None)
        self._receiver: MessageReceiver | None = None
        self._closing = False
        self._pong: trio.Event | None = None
        self._pinging = trio.CancelScope()
        self.peer: str = peer
        self.writer: FrameWriter = FrameWriter(accepted, tasks, options.send_timeout, piece_bytes=1)
        self.bytes_received: int = 0

    def open(self, receiver: MessageReceiver, on_end: OnEnd) -> None:
        """Start to receive messages; ``on_end`` is called after the last one."""

        def end(cancelled: bool, error: Exception | None) -> None:
            self._pinging.cancel()
            self.writer.stop()
            on_end(cancelled, error)

        self._receiver = receiver
        self._reader.call_at_end(end)
        self._reader.start_soon(self._read)

    def authenticated(self) -> None:
        """Allow messages of full size."""
        self._max_message = self._options.max_message_bytes

    @staticmethod
    def frame(message: bytes) -> bytes:
        """Return the message as it is: trio-websocket makes the frame."""
        return message

    async def ping(self) -> None:
        """Send a ping and wait for its pong; waits for ever if the connection ends first.

        Cancellation: Safe at any time. The ping stays in flight, and the next caller waits for its pong.
        """
        if self._pong is None:
            self._pong = trio.Event()
            # In a task of its own: the caller has a deadline, and could be cancelled in the middle of the frame.
            self._tasks.spawn(self._ping, self._pong)
        await self._pong.wait()

    async def _ping(self, pong: trio.Event) -> None:
        with self._pinging:
            if await self._accepted.ping():
                self.bytes_received += PONG_BYTES
                self._pong = None
                self._pinging = trio.CancelScope()
                pong.set()

    async def close(self, code: int, reason: str) -> None:
        """Close with a closing handshake, for at most a second, then close the stream.

        Cancellation: The stream is closed at once.
        """
        self._closing = True
        await self._reader.close(self._accepted.close(code, reason))

    def abort(self) -> None:
        """Close the stream without a closing handshake; ``on_end`` is called as usual."""
        self._reader.abort()

    async def wait_closed(self) -> None:
        """Wait until the stream is closed and the receiver gets no more calls.

        Cancellation: Safe at any time.
        """
        await self._reader.ended.wait()

    async def _read(self) -> None:
        receiver = self._receiver
        assert receiver is not None
        while (message := await self._accepted.receive()) is not None:
            self.bytes_received += len(message)
            await receiver.turns.rest()
            if receiver.turns.links > 1:
                async with receiver.turns.reading.lock:
                    pass
            if len(message) > self._max_message:
                receiver.too_big()
            elif isinstance(message, str):
                receiver.receive_text()
            else:
                receiver.receive(message)
            if receiver.replies_blocked:
                # As in a frame stream, and for the same reason. Pongs are delayed only briefly.
                with trio.move_on_after(PAUSE_SECONDS if receiver.is_open else inf):
                    await receiver.wait_ready()
        receiver.peer_left(closed_by_peer(*self._accepted.closed))
        if self._closing:
            # This side closes: close() still waits for the peer's Close. If this task ended now, the stream would be
            # closed with bytes unread, and the system could discard what was sent last.
            await trio.sleep_forever()
