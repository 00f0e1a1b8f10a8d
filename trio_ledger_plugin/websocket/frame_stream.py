"""The stream of ours between the network and trio-websocket: the fast lane.

The law of this module: the task that reads is trio-websocket's own reader. It asks this stream for bytes; while it
waits, plain frames are lifted out and handed to the link, in order, and it sees only the others. Once the last frame
of a message was passed up, that message is fetched back before anything further is lifted, so that messages reach
the link in the order of the wire whichever way they took. Nothing is lifted after a Close or an illegal frame.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

import trio

from ..net.shared_reader import READ_BYTES
from ..net.sockets import abort_stream, plain_socket, read_socket
from .frames import FrameKind, FrameReader, close_frame
from .writer import FrameWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..net.shared_reader import SocketReaders
    from ..options.base import PluginOptions
    from ..runtime.tasks import TaskGroup
    from .interface import MessageReceiver

__all__ = ["FrameStream"]

FRAMES_A_PASS = 16
# While more than one read of a peer's bytes has piled up and other peers are read too, it gets less and waits longer.
FRAMES_A_PASS_CROWDED = 2
TURNS_CROWDED = 8
# How long reading pauses at a time while replies wait for room in the out-queue.
PAUSE_SECONDS = 0.05
CLOSE_SECONDS = 1.0
# What the other end is told when trio-websocket has ended a connection over what it was sent: protocol error, text that
# is none, too big (RFC 6455, section 7.4.1).
VERDICTS = frozenset({1002, 1007, 1009})
# Where h11 sees the end of a head.
_HEAD_END = re.compile(rb"\n\r?\n")


class FrameStream(trio.abc.Stream):
    """A stream that lifts BTP's frames past trio-websocket.

    Args:
        stream: The network's stream, which this one owns.
        tasks: Owns the task that writes.
        options: The limits.
        server: Whether this end is the WebSocket server.
        readers: May read the socket for this lane's task while frames are plain; None where others may close it.
    """

    # Passes over all lanes of the process: whether others read is seen by its growth.
    passes: ClassVar[int] = 0

    __slots__ = (
        "_closed",
        "_fetch",
        "_fetch_due",
        "_frames",
        "_head",
        "_opened",
        "_options",
        "_phase",
        "_readers",
        "_receiver",
        "_server",
        "_socket",
        "_stream",
        "_tasks",
        "_verdict",
        "bytes_received",
        "writer",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        tasks: TaskGroup,
        options: PluginOptions,
        *,
        server: bool,
        readers: SocketReaders | None = None,
    ) -> None:
        self._stream = stream
        self._socket = plain_socket(stream)
        self._tasks = tasks
        self._readers = readers if self._socket is not None else None
        self._options = options
        self._server = server
        self._phase: Callable[[], Awaitable[bytes]] = self._receive_head
        self._head = b""
        self._frames = FrameReader(
            masked=server, max_message=options.max_unauthenticated_bytes, max_fragments=options.max_fragments
        )
        self._opened: trio.Event | None = trio.Event()
        self._receiver: MessageReceiver | None = None
        self._fetch: Callable[[], Awaitable[bytes | str | None]] | None = None
        self._verdict: Callable[[], int | None] | None = None
        self._fetch_due = False
        self._closed = False
        self.writer: FrameWriter | None = None
        self.bytes_received: int = 0

    def start_writing(self) -> FrameWriter:
        """Return the writer of this stream; from now on what trio-websocket sends is a frame, and queued."""
        self.writer = FrameWriter(self._stream, self._tasks, self._options.send_timeout)
        return self.writer

    def open(
        self,
        receiver: MessageReceiver,
        fetch: Callable[[], Awaitable[bytes | str | None]],
        verdict: Callable[[], int | None],
    ) -> None:
        """Let messages come, in frames.

        Args:
            receiver: Where the messages go.
            fetch: Gets the message that was passed up last, or None when there is none after all.
            verdict: Gives the code that trio-websocket has ended the connection with, or None while it has not.
        """
        self._receiver = receiver
        self._fetch = fetch
        self._verdict = verdict
        assert self._opened is not None
        self._opened.set()
        self._opened = None
        if self._readers is not None and not self._closed:
            self._readers.lanes += 1

    def authenticated(self) -> None:
        """Allow messages of full size."""
        self._frames.max_message = self._options.max_message_bytes

    # What trio-websocket calls.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 (Trio's signature)
        """Return the next bytes that are trio-websocket's to read; lift the messages before them."""
        self._tell_verdict()
        try:
            data = await self._phase()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._left("the connection broke")
            raise
        if not data:
            self._left("the peer closed the connection")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send a handshake at once; queue a control frame and return."""
        if self.writer is None:
            await self._stream.send_all(data)
        else:
            self.writer.write_control(bytes(data))
            await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: the queue takes all that trio-websocket sends."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Let the writer finish, for a moment, then close the network's stream."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            self._tell_verdict()
            if self.writer is not None:
                with trio.move_on_after(CLOSE_SECONDS):
                    await self.writer.flush()
        finally:
            self._left("the connection was closed")
            if self.writer is not None:
                self.writer.stop()
            if self._readers is not None and self._socket is not None and self._opened is None:
                self._readers.lanes -= 1
                self._readers.closing(self._socket)
            await abort_stream(self._stream)  # noqa: ASYNC102 (it waits for nothing)

    def _left(self, reason: str) -> None:
        if self._receiver is not None:
            self._receiver.peer_left(reason)

    def _tell_verdict(self) -> None:
        """Send the Close that trio-websocket leaves out where it ends a connection over what it was sent.

        As a server it only closes the stream, and as a client it waits until the server does.
        """
        code = self._verdict() if self._verdict is not None else None
        if code in VERDICTS and self.writer is not None and not self.writer.is_stopped:
            self.writer.write_control(close_frame(code, masked=not self._server))
            self._phase = self._receive_raw
            self._left("the peer sent an illegal message")

    # The phases of reading.

    async def _receive_head(self) -> bytes:
        """Pass the HTTP head up and keep what follows it."""
        data = bytes(await self._stream.receive_some(4096))
        before = len(self._head)
        self._head += data
        end = _HEAD_END.search(self._head, max(0, before - 2))
        if end is None:
            if len(self._head) > self._options.max_unauthenticated_bytes:
                raise trio.BrokenResourceError("the HTTP head is too long")
            return data
        upgraded = self._server or self._head[8:12] == b" 101"
        self._head = b""
        if not upgraded:
            self._phase = self._receive_raw
            return data
        self._phase = self._receive_frames
        self._frames.feed(data[end.end() - before :])
        return data[: end.end() - before]

    async def _receive_raw(self) -> bytes:
        return bytes(await self._stream.receive_some(READ_BYTES))

    async def _receive_nothing(self) -> bytes:
        """Read on without a word, so that the end is seen, until the link closes."""
        while await self._stream.receive_some(READ_BYTES):
            pass
        return b""

    async def _receive_frames(self) -> bytes:
        if self._opened is not None:
            await self._opened.wait()
        if self._fetch_due:
            await self._fetch_message()
            if self._phase != self._receive_frames:
                return await self._phase()
        receiver, frames, writer = self._receiver, self._frames, self.writer
        assert receiver is not None
        assert writer is not None
        backlog = False
        last_pass = FrameStream.passes
        while True:
            # One peer that floods must not keep the others waiting: with a full read behind it, it gives way to them.
            crowded = backlog and FrameStream.passes != last_pass
            most = FRAMES_A_PASS_CROWDED if crowded else FRAMES_A_PASS
            messages = frames.lift(most)
            for message in messages:
                receiver.receive(message)
            FrameStream.passes = last_pass = FrameStream.passes + 1
            if len(messages) == most:
                await self._let_others_read(TURNS_CROWDED if crowded else 1)
                continue
            other = frames.take_other()
            if other is not None:
                # trio-websocket may come back at once: a peer that floods it must not keep the others waiting either.
                await trio.lowlevel.checkpoint()
                return await self._pass_up(receiver, other.kind, other.raw)
            if receiver.replies_blocked:
                # The peer asks faster than it reads: let TCP slow it down before requests have to be refused. Only
                # for a moment, since two peers that both waited for the other to read would wait for ever.
                with trio.move_on_after(PAUSE_SECONDS):
                    await writer.wait_for_room(self._options.max_send_queue_bytes // 2)
            socket = self._socket
            if socket is not None and self._readers is not None and self._readers.crowded:
                data = await self._readers.read(socket, self._take)
            elif socket is not None:
                data = await read_socket(socket, READ_BYTES)
                self._feed(data)
            else:
                data = bytes(await self._stream.receive_some(READ_BYTES))
                self._feed(data)
            if not data:
                return b""
            backlog = len(data) == READ_BYTES

    def _feed(self, data: bytes) -> None:
        self.bytes_received += len(data)
        self._frames.feed(data)

    def _take(self, data: bytes) -> bool:
        """Serve bytes without waking the lane's task; false when there is more to them than a few plain frames."""
        self._feed(data)
        if len(data) == READ_BYTES:
            return False
        receiver = self._receiver
        assert receiver is not None
        for message in self._frames.lift(FRAMES_A_PASS):
            receiver.receive(message)
        FrameStream.passes += 1
        return self._frames.is_empty and not receiver.replies_blocked

    async def _let_others_read(self, turns: int) -> None:
        """Wait for so many turns of the loop, or until none of the other lanes has had anything to read."""
        for _ in range(turns):
            seen = FrameStream.passes
            await trio.lowlevel.checkpoint()
            if FrameStream.passes == seen:
                return

    async def _pass_up(self, receiver: MessageReceiver, kind: FrameKind, raw: bytes) -> bytes:
        if kind is FrameKind.MESSAGE_END:
            self._fetch_due = True
        elif kind is FrameKind.CLOSE:
            self._phase = self._receive_raw
            receiver.peer_left("the peer closed the connection")
            return raw + self._frames.take_rest()
        elif kind is FrameKind.ILLEGAL:
            self._phase = self._receive_raw
            receiver.peer_left("the peer sent an illegal frame")
        elif kind is FrameKind.TOO_BIG:
            self._phase = self._receive_nothing
            receiver.too_big()
            return await self._receive_nothing()
        return raw

    async def _fetch_message(self) -> None:
        self._fetch_due = False
        assert self._fetch is not None
        assert self._receiver is not None
        message = await self._fetch()
        if message is None:
            self._phase = self._receive_raw
            self._receiver.peer_left("the connection was closed over an illegal message")
        elif isinstance(message, str):
            self._receiver.receive_text()
        else:
            self._receiver.receive(message)
