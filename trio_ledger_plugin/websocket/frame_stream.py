"""The stream between the network and trio-websocket, which reads plain frames itself.

trio-websocket's reader task asks this stream for bytes. While the task waits, the stream takes plain frames out of
what arrives and hands their messages to the link. trio-websocket gets only the other frames.

Invariant: messages reach the link in the order in which they arrived. After the stream has passed the last frame of a
message to trio-websocket, it fetches that message before it takes another plain frame. After a Close or an illegal
frame, it takes no more.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, ClassVar

import trio

from ..net.http_head import receive_head
from ..net.shared_reader import READ_BYTES
from ..net.sockets import abort_stream, plain_socket, read_socket
from .frames import FrameKind, FrameReader, close_frame, read_close
from .interface import closed_by_peer
from .writer import FrameWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..net.shared_reader import SocketReaders
    from ..options.base import PluginOptions
    from ..runtime.budget import ReadingTurn
    from ..runtime.tasks import TaskGroup
    from .interface import MessageReceiver

__all__ = ["FrameStream"]

# How many frames a stream takes in one batch, before other tasks run.
BATCH_FRAMES = 16
# A stream with a full read to process takes smaller batches, and waits longer, while other streams have data too.
BUSY_BATCH_FRAMES = 2
BUSY_TURNS = 8
# How long reading pauses while replies wait for room in the send queue, in seconds.
PAUSE_SECONDS = 0.05
CLOSE_SECONDS = 1.0
# The close codes for what a peer may not send: protocol error, invalid UTF-8, too big (RFC 6455, section 7.4.1).
REJECTION_CODES = frozenset({1002, 1007, 1009})


class FrameStream(trio.abc.Stream):
    """A stream that takes plain frames out of what trio-websocket reads.

    Args:
        stream: The network's stream, which this one owns.
        tasks: Owns the task that writes.
        options: The limits.
        server: Whether this end is the WebSocket server.
        readers: The shared reader, which may read the socket while frames are plain; None if the application can close
            the socket.
        received: The HTTP head and the bytes after it; None if they are still to be read.
    """

    # Batches that all streams of the process have read. A stream sees by its growth that other streams have data.
    batches_read: ClassVar[int] = 0

    __slots__ = (
        "_close_code",
        "_closed",
        "_fetch",
        "_fetch_due",
        "_frames",
        "_opened",
        "_options",
        "_phase",
        "_readers",
        "_received",
        "_receiver",
        "_server",
        "_shares",
        "_socket",
        "_stream",
        "_tasks",
        "bytes_received",
        "refusal",
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
        received: tuple[bytes, bytes] | None = None,
    ) -> None:
        self._stream = stream
        self._socket = plain_socket(stream)
        self._tasks = tasks
        self._readers = readers if self._socket is not None else None
        self._options = options
        self._server = server
        self._phase: Callable[[], Awaitable[bytes]] = self._receive_head
        self._received = received
        self._frames = FrameReader(
            masked=server, max_message=options.max_unauthenticated_bytes, max_fragments=options.max_fragments
        )
        self._opened: trio.Event | None = trio.Event()
        self._receiver: MessageReceiver | None = None
        self._fetch: Callable[[], Awaitable[bytes | str | None]] | None = None
        self._close_code: Callable[[], int | None] | None = None
        self._fetch_due = False
        self._closed = False
        self._shares = False
        self.writer: FrameWriter | None = None
        self.bytes_received: int = 0
        #: The head of a response that refuses a client's handshake, or what else the server sent instead.
        self.refusal: bytes = b""

    def start_writing(self) -> FrameWriter:
        """Return the writer of this stream; what trio-websocket sends after this call is a frame, and is queued."""
        self.writer = FrameWriter(self._stream, self._tasks, self._options.send_timeout)
        return self.writer

    def open(
        self,
        receiver: MessageReceiver,
        fetch: Callable[[], Awaitable[bytes | str | None]],
        close_code: Callable[[], int | None],
    ) -> None:
        """Start to receive messages.

        Args:
            receiver: Gets the messages.
            fetch: Returns the message whose last frame was passed to trio-websocket; None if the connection was closed
                instead.
            close_code: Returns the code with which trio-websocket closed the connection; None while it is open.
        """
        self._receiver = receiver
        self._fetch = fetch
        self._close_code = close_code
        assert self._opened is not None
        self._opened.set()
        self._opened = None
        if self._readers is not None and not self._closed:
            self._readers.streams += 1

    def authenticated(self) -> None:
        """Allow messages of full size."""
        self._frames.max_message = self._options.max_message_bytes
        # Only from here on is it known whose turn it is to be read.
        self._shares = True

    # The methods of trio.abc.Stream, which trio-websocket calls.

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 (Trio's signature)
        """Return the next bytes for trio-websocket; the messages before them go to the receiver.

        Args:
            max_bytes: Ignored.

        Raises:
            trio.BrokenResourceError: The connection broke.
            HeadTooLongError: The HTTP head exceeds ``max_head_bytes``.
            trio.ClosedResourceError: The stream was closed.

        Cancellation: A message may be lost; the stream must be closed then.
        """
        self._send_rejection()
        try:
            data = await self._phase()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._report_end("the connection broke")
            raise
        if not data:
            self._report_end("the peer closed the connection")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes of the handshake at once; after it, queue a control frame and return.

        Raises:
            trio.BrokenResourceError: The connection broke during the handshake.
            trio.ClosedResourceError: The stream was closed during the handshake.

        Cancellation: The handshake may be sent in part. A control frame stays queued.
        """
        if self.writer is None:
            await self._stream.send_all(data)
        else:
            self.writer.write_control(bytes(data))
            await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: the queue accepts every control frame.

        Cancellation: Safe at any time.
        """
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Give the writer at most a second to send what is queued, then close the network's stream.

        Cancellation: The stream is closed at once.
        """
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        try:
            self._send_rejection()
            if self.writer is not None:
                with trio.move_on_after(CLOSE_SECONDS):
                    await self.writer.flush()
        finally:
            self._report_end("the connection was closed")
            if self.writer is not None:
                self.writer.stop()
            if self._readers is not None and self._socket is not None and self._opened is None:
                self._readers.streams -= 1
                self._readers.closing(self._socket)
            await abort_stream(self._stream)  # noqa: ASYNC102 (it waits for nothing)

    def release(self) -> None:
        """Let go of who has been called: the stream is closed, and its reader has ended."""
        self._receiver = self._fetch = self._close_code = None
        self._phase = _receive_after_end

    def _report_end(self, reason: str) -> None:
        if self._receiver is not None:
            self._receiver.peer_left(reason)

    def _send_rejection(self) -> None:
        """Send the Close that trio-websocket omits when it rejects what the peer sent.

        As a server, trio-websocket only closes the stream. As a client, it waits until the server does.
        """
        code = self._close_code() if self._close_code is not None else None
        if code in REJECTION_CODES and self.writer is not None and not self.writer.is_stopped:
            self.writer.write_control(close_frame(code, masked=not self._server))
            self._phase = self._receive_raw
            self._report_end("the peer sent an illegal message")

    # The phases of reading: each is a method that returns the next bytes for trio-websocket.

    async def _receive_head(self) -> bytes:
        """Return the HTTP head, and keep the bytes after it."""
        received, self._received = self._received, None
        if received is None:
            received = await receive_head(self._stream, self._options.max_head_bytes)
        head, rest = received
        if not self._server and head[8:12] != b" 101":
            # The caller reads the refusal itself. Its body is not read: it has no limit and says little.
            self.refusal = head or rest
            return b""
        self._phase = self._receive_frames
        self._frames.feed(rest)
        return head

    async def _receive_raw(self) -> bytes:
        return bytes(await self._stream.receive_some(READ_BYTES))

    async def _receive_nothing(self) -> bytes:
        """Read and discard, so that the end of the connection is noticed, until the link closes."""
        while await self._stream.receive_some(READ_BYTES):
            pass
        return b""

    async def _receive_frames(self) -> bytes:
        if self._opened is not None:
            await self._opened.wait()
        receiver, frames = self._receiver, self._frames
        assert receiver is not None
        if self._fetch_due:
            await self._fetch_message()
            if self._phase != self._receive_frames:
                return await self._phase()
            if receiver.replies_blocked and not receiver.is_open:
                await receiver.wait_ready()
        backlog = False
        last_batch = FrameStream.batches_read
        while True:
            if receiver.turns.rest_until:
                await receiver.turns.rest()
            # A peer that floods this end must not delay the others: after a full read, it yields to them more often.
            others_busy = backlog and FrameStream.batches_read != last_batch
            most = BUSY_BATCH_FRAMES if others_busy else BATCH_FRAMES
            if receiver.turns.links > 1 and not frames.is_empty:
                full = await self._take_in_turn(receiver, receiver.turns.reading, backlog)
            else:
                full = self._take(receiver, most) == most
                last_batch = FrameStream.batches_read
                if full:
                    await self._yield_to_others(BUSY_TURNS if others_busy else 1)
            if full:
                if receiver.replies_blocked and not receiver.is_open:
                    # Nothing more is held than one batch.
                    await receiver.wait_ready()
                continue
            other = frames.take_other()
            if other is not None:
                # trio-websocket may ask for more bytes without waiting: a flood of its frames must not delay others.
                await trio.lowlevel.checkpoint()
                return await self._forward(receiver, other.kind, other.raw)
            if receiver.replies_blocked:
                # The peer sends requests faster than it reads replies. Not reading makes TCP slow the peer down before
                # requests have to be refused. The pause is short: two peers that both wait for the other to read would
                # wait for ever. While a token is looked up, nobody waits for this end.
                with trio.move_on_after(PAUSE_SECONDS if receiver.is_open else inf):
                    await receiver.wait_ready()
            socket = self._socket
            if self._shares and self._readers is not None and socket is not None and self._readers.reads_for_all:
                data = await self._readers.read(socket, self._handle_read, receiver.turns)
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

    def _take(self, receiver: MessageReceiver, most: int) -> int:
        """Hand at most so many messages to the receiver, and return how many there were."""
        messages = self._frames.lift(most)
        for message in messages:
            receiver.receive(message)
        FrameStream.batches_read += 1
        return len(messages)

    def _handle_read(self, data: bytes) -> bool:
        """Handle bytes in the shared reader's task; return False if this stream's own task has to continue."""
        frames, receiver = self._frames, self._receiver
        self.bytes_received += len(data)
        frames.feed(data)
        if len(data) == READ_BYTES:
            return False
        assert receiver is not None
        assert self._readers is not None
        turns = receiver.turns
        if turns.rest_until:
            return False
        self._readers.messages += self._take(receiver, BATCH_FRAMES)
        return frames.is_empty and not receiver.replies_blocked and not turns.rest_until

    async def _take_in_turn(self, receiver: MessageReceiver, turn: ReadingTurn, backlog: bool) -> bool:
        """Take a batch of messages when no other link of the account does; return whether there may be more.

        So all links of an account together take as much in one scheduler turn as one link does.
        """
        unread = self._frames.unread
        turn.unread += unread
        try:
            async with turn.lock:
                if receiver.turns.rest_until:
                    await receiver.turns.rest()
                # Many links that have each read a little are a flood as well.
                others_busy = turn.others_busy and (backlog or turn.unread >= READ_BYTES)
                most = BUSY_BATCH_FRAMES if others_busy else BATCH_FRAMES
                full = self._take(receiver, most) == most
                if full:
                    turn.others_busy = await self._yield_to_others(BUSY_TURNS if others_busy else 1)
        finally:
            turn.unread -= unread
        return full

    async def _yield_to_others(self, turns: int) -> bool:
        """Wait for a number of scheduler turns, or until a turn in which no other stream has read anything.

        Returns:
            Whether another stream has read anything in the last turn.
        """
        seen = FrameStream.batches_read
        for _ in range(turns):
            seen = FrameStream.batches_read
            await trio.lowlevel.checkpoint()
            if FrameStream.batches_read == seen:
                return False
        return True

    async def _forward(self, receiver: MessageReceiver, kind: FrameKind, raw: bytes) -> bytes:
        """Return a frame that is not plain for trio-websocket, and choose the phase that follows it."""
        if kind is FrameKind.MESSAGE_END:
            self._fetch_due = True
        elif kind is FrameKind.CLOSE:
            self._phase = self._receive_raw
            receiver.peer_left(closed_by_peer(*read_close(raw)))
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


async def _receive_after_end() -> bytes:
    """Stand for the phase of a stream that is closed."""
    await trio.lowlevel.checkpoint()
    raise trio.ClosedResourceError("the stream is closed")
