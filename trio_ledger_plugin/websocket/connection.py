"""WebSocket connections for links, by way of trio-websocket, which only this module imports.

trio-websocket does the opening handshake, pings and pongs, the closing handshake, and checks every frame that is not
plain; ``frame_stream.py`` handles the plain ones. For a connection that the application accepted, trio-websocket reads
all frames in the application's nursery; ``messages.py`` adapts its messages to a link.

Invariant: each connection has one task whose end closes the stream, and every wait for trio-websocket ends with a
deadline or with that task.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

import trio
import trio_websocket
from trio_websocket import WebSocketConnection

from ..net.sockets import abort_stream
from .frame_stream import CLOSE_SECONDS, FrameStream
from .frames import binary_frame, masked_binary_frame
from .requests import BadHandshakeError, receive_handshake
from .responses import handshake_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..net.shared_reader import SocketReaders
    from ..options.base import PluginOptions
    from ..runtime.tasks import TaskGroup
    from .interface import MessageReceiver, OnEnd
    from .requests import Handshake
    from .writer import FrameWriter

__all__ = [
    "Accepted",
    "ReaderTask",
    "WebSocket",
    "WebSocketConnection",
    "accept_websocket",
    "open_websocket",
]

# How long trio-websocket's reader in the application's nursery may take to notice that its stream was closed.
READER_END_SECONDS = 0.5
PING: Final = b"ping"
# What trio-websocket reports as codes when the peer sent none (RFC 6455, section 7.4.1).
NO_CLOSE: Final = frozenset({1005, 1006})


class ReaderTask:
    """Runs a connection's reader; stands in for the nursery that trio-websocket starts its own in.

    trio-websocket raises errors of the handshake in its reader's nursery. This class keeps the error, and reports the
    end of the reader to callers that would otherwise wait for ever.

    Args:
        tasks: Owns the task.
        stream: The stream that the reader reads; aborted when the reader ends.
        on_end: Called when the reader has ended.
    """

    __slots__ = ("_closing", "_end_reported", "_ended", "_on_end", "_scope", "_stream", "_tasks", "error")

    def __init__(self, tasks: TaskGroup, stream: trio.abc.AsyncResource, on_end: OnEnd) -> None:
        self._tasks = tasks
        self._stream = stream
        self._on_end = on_end
        self._scope = trio.CancelScope()
        self._end_reported = False
        self._closing = False
        self.error: Exception | None = None
        # Made when first needed: an idle connection must cost little.
        self._ended: trio.Event | None = None

    @property
    def ended(self) -> trio.Event:
        """Set once the reader has ended and the stream is closed."""
        if self._ended is None:
            self._ended = trio.Event()
        return self._ended

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Start the reader, as trio-websocket asks a nursery to."""
        self._tasks.spawn(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        cancelled = True
        try:
            with self._scope:
                await reader()
            cancelled = False
        except Exception as error:  # noqa: BLE001 (an error of one connection must not end the plugin)
            # Once a Close is sent, trio-websocket raises an error for each ping that it can no longer answer.
            self.error = None if self._closing else error
            cancelled = False
        finally:
            self._end_reported = True
            self._on_end(cancelled, self.error)
            try:
                await abort_stream(self._stream)  # noqa: ASYNC102 (it waits for nothing)
            finally:
                self._release()
                self.ended.set()

    def _release(self) -> None:
        """Let go of who has been called: each would keep the others in memory until the next collection of garbage."""
        self._on_end = _ignore
        if isinstance(self._stream, FrameStream):
            self._stream.release()

    def call_at_end(self, on_end: OnEnd) -> None:
        """Replace ``on_end``; the new function is called at once if the reader has ended already."""
        self._on_end = on_end
        if self._end_reported:
            on_end(False, self.error)

    def abort(self) -> None:
        """End the reader, which closes the stream without a closing handshake; ``on_end`` is called as usual."""
        self._scope.cancel()

    async def close(self, handshake: Awaitable[None]) -> None:
        """Do a closing handshake, for at most a second, then close the stream and wait for the reader's end.

        Args:
            handshake: The closing handshake, which is awaited here.

        Cancellation: The stream is closed at once.
        """
        self._closing = True
        try:
            with trio.move_on_after(CLOSE_SECONDS):
                await handshake
        except Exception as error:  # noqa: BLE001 (the application's stream may raise anything)
            self.error = self.error or error
        finally:
            self.abort()
        await self.ended.wait()


def _ignore(cancelled: bool, error: Exception | None) -> None:
    """Do nothing at the end of a reader."""


class WebSocket:
    """One open WebSocket connection, as a link uses it."""

    __slots__ = ("_connection", "_frame_stream", "_reader", "frame", "peer", "writer")

    def __init__(
        self,
        connection: WebSocketConnection,
        frame_stream: FrameStream,
        reader: ReaderTask,
        peer: str,
    ) -> None:
        self._connection = connection
        self._frame_stream = frame_stream
        self._reader = reader
        #: Sends frames.
        self.writer: FrameWriter = frame_stream.start_writing()
        #: Returns the frame of one binary message.
        self.frame: Callable[[bytes], bytes] = masked_binary_frame if connection.is_client else binary_frame
        self.peer: str = peer

    @property
    def bytes_received(self) -> int:
        """The number of bytes that arrived in frames."""
        return self._frame_stream.bytes_received

    def open(self, receiver: MessageReceiver, on_end: OnEnd) -> None:
        """Start to receive messages; ``on_end`` is called when the connection is closed and its reader has ended."""
        self._frame_stream.open(receiver, self._fetch, self._close_code)
        self._reader.call_at_end(on_end)

    def authenticated(self) -> None:
        """Allow messages of full size."""
        self._frame_stream.authenticated()

    async def ping(self) -> None:
        """Send a ping and wait for its pong; waits for ever if the connection ends first.

        At most one ping is in flight: trio-websocket remembers each until its pong arrives, and some peers send none.

        Cancellation: Safe at any time.
        """
        # trio-websocket raises ValueError while an earlier ping has no pong yet.
        with suppress(trio_websocket.ConnectionClosed, ValueError):
            await self._connection.ping(PING)
            return
        await trio.sleep_forever()

    async def close(self, code: int, reason: str) -> None:
        """Close with a closing handshake, for at most a second, then close the stream.

        Cancellation: The stream is closed at once.
        """
        await self._reader.close(self._connection.aclose(code, reason))

    def abort(self) -> None:
        """Close the stream without a closing handshake; ``on_end`` is called as usual."""
        self._reader.abort()

    async def wait_closed(self) -> None:
        """Wait until the stream is closed and the receiver gets no more calls.

        Cancellation: Safe at any time.
        """
        await self._reader.ended.wait()

    async def _fetch(self) -> bytes | str | None:
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            return None

    def _close_code(self) -> int | None:
        reason = self._connection.closed
        return None if reason is None else reason.code


async def open_websocket(
    stream: trio.abc.Stream,
    tasks: TaskGroup,
    options: PluginOptions,
    *,
    host: str,
    resource: str,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> WebSocket:
    """Do a client's opening handshake.

    Args:
        stream: The network's stream; closed when this raises.
        tasks: Owns the connection's tasks.
        options: The limits.
        host: The ``Host`` header.
        resource: The path and query of the URL.
        headers: Further headers.

    Returns:
        The open connection; its messages are not received before ``open()``.

    Raises:
        PermanentlyUnreachableError: The server redirects, or answers that there is nothing at this URL.
        UnreachableError: The handshake failed otherwise. A ``RetryLaterError`` has the pause that the server asks for.

    Cancellation: Closes the stream.
    """
    frame_stream = FrameStream(stream, tasks, options, server=False)
    waiting = trio.CancelScope()
    reader = ReaderTask(tasks, frame_stream, lambda *_: waiting.cancel())
    opened = None
    try:
        with waiting:
            opened = await trio_websocket.wrap_client_stream(
                cast("trio.Nursery", reader),
                cast("trio.SocketStream", frame_stream),
                host,
                resource,
                extra_headers=headers,
                message_queue_size=1,
                max_message_size=options.max_message_bytes,
            )
    finally:
        if opened is None:
            reader.abort()
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
    if opened is None:
        raise handshake_error(frame_stream.refusal, reader.error, tls=isinstance(stream, trio.SSLStream))
    return WebSocket(opened, frame_stream, reader, host)


async def accept_websocket(
    stream: trio.abc.Stream,
    tasks: TaskGroup,
    options: PluginOptions,
    *,
    peer: str,
    refuse: Callable[[Handshake], int | None],
    readers: SocketReaders | None = None,
) -> WebSocket:
    """Do a server's opening handshake; the caller sets the deadline.

    Args:
        stream: The accepted stream; closed when this raises.
        tasks: Owns the connection's tasks.
        options: The limits.
        peer: The peer's address, for logs.
        refuse: Returns the HTTP status with which to refuse a handshake; None accepts it.
        readers: The shared reader for the stream's socket; None if the application can close the socket.

    Returns:
        The open connection; its messages are not received before ``open()``.

    Raises:
        BadHandshakeError: The client's handshake failed or was refused.

    Cancellation: Closes the stream.
    """
    accepted = None
    try:
        handshake = await receive_handshake(stream, options)
        status = refuse(handshake)
        frame_stream = FrameStream(stream, tasks, options, server=True, readers=readers, received=handshake.received)
        waiting = trio.CancelScope()
        reader = ReaderTask(tasks, frame_stream, lambda *_: waiting.cancel())
        try:
            with waiting:
                request = await trio_websocket.wrap_server_stream(
                    cast("trio.Nursery", reader),
                    frame_stream,
                    message_queue_size=1,
                    max_message_size=options.max_message_bytes,
                )
                if status is None:
                    accepted = await request.accept()
                else:
                    await request.reject(status)
        finally:
            if accepted is None:
                reader.abort()
    except trio_websocket.ConnectionClosed as error:
        raise BadHandshakeError("the client left before it was answered") from error
    finally:
        if accepted is None:
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
    if accepted is None:
        raise BadHandshakeError(
            "the request is no WebSocket handshake" if status is None else f"refused with HTTP {status}"
        )
    return WebSocket(accepted, frame_stream, reader, peer)


class Accepted(trio.abc.SendStream):
    """A connection that the application accepted with trio-websocket; as a stream, it sends whole messages.

    Args:
        connection: The connection, its opening handshake done.

    Raises:
        TypeError: ``connection`` is not a ``WebSocketConnection``, or it is a client's.
    """

    def __init__(self, connection: WebSocketConnection) -> None:
        if not isinstance(connection, WebSocketConnection):
            raise TypeError(f"connection is a WebSocketConnection, not {type(connection).__name__}")
        if connection.is_client:
            raise TypeError("connection is one that this side dialed, not one that it accepted")
        self._connection = connection

    @property
    def address(self) -> str:
        """The peer's IP address; empty if there is none."""
        try:
            remote = self._connection.remote
        except (OSError, ValueError, AttributeError):
            # The peer is gone, or the stream is of a kind that trio-websocket does not know.
            return ""
        return str(remote.address) if isinstance(remote, trio_websocket.Endpoint) else ""

    @property
    def path(self) -> str:
        """The path and query that the client asked for."""
        return str(self._connection.path)

    @property
    def closed(self) -> tuple[int | None, str]:
        """The code and reason of the peer's Close; None and an empty text without one."""
        closed = self._connection.closed
        if closed is None or closed.code in NO_CLOSE:
            return None, ""
        return closed.code, closed.reason or ""

    async def receive(self) -> bytes | str | None:
        """Return the next message, or None once the connection is closed.

        Cancellation: No message is lost.
        """
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            return None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send one binary message.

        Raises:
            trio.BrokenResourceError: The connection was closed.

        Cancellation: The message may be sent in part; the connection must be closed then.
        """
        try:
            await self._connection.send_message(bytes(data))
        except Exception as error:
            # Besides ConnectionClosed, trio-websocket raises wsproto's errors if the peer has just broken the protocol.
            raise trio.BrokenResourceError("the connection was closed") from error

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once, since trio-websocket does not report this.

        Cancellation: Safe at any time.
        """
        await trio.lowlevel.checkpoint()

    async def ping(self) -> bool:
        """Send a ping, wait for its pong, and return whether it could be sent at all.

        Cancellation: As with ``send_all``.
        """
        try:
            await self._connection.ping()
        except Exception:  # noqa: BLE001 (as in send_all; the reader reports the end)
            return False
        return True

    async def close(self, code: int, reason: str) -> None:
        """Do the closing handshake, without a deadline, and close the stream.

        Cancellation: The stream is closed, unless a Close was sent or received before.
        """
        await self._connection.aclose(code, reason)

    async def aclose(self) -> None:
        """Close the stream without a closing handshake.

        Cancellation: The stream is closed.
        """
        # trio-websocket's own aclose() does nothing once a Close was sent or received. Its reader then waits as long as
        # the peer wants, and its sender waits for a peer that does not read. There is no public access to the stream.
        stream: trio.abc.AsyncResource = getattr(self._connection, "_stream", self._connection)
        await abort_stream(stream)

    async def finish(self) -> None:
        """Close the stream and wait, for at most half a second, until trio-websocket's reader has ended.

        The reader runs in the application's nursery. It would wait there for ever if no task took the messages that it
        has read already.

        Cancellation: Shielded, for at most half a second.
        """
        with trio.move_on_after(READER_END_SECONDS, shield=True):
            await self.aclose()
            while await self.receive() is not None:
                pass
