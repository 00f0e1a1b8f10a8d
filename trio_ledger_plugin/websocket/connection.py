"""WebSocket connections for links: the only module that knows trio-websocket.

trio-websocket does the opening handshake, pings and pongs, the closing handshake, and judges every frame that is
not plain; see ``lane.py``. Here its waits get their ways out: its reader runs in a task whose end is seen, and
nothing waits for it without a deadline. Of a connection that the application accepted, the reader is the application's
and only whole messages are to be had; ``slowlane.py`` makes of it what a link needs.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, cast

import trio
import trio_websocket
from attrs import frozen
from trio_websocket import WebSocketConnection

from ..errors import NotAcceptedError, UnreachableError
from ..net.dial import PermanentlyUnreachableError
from ..net.sockets import abort_stream
from .frame_stream import CLOSE_SECONDS, FrameStream
from .frames import binary_frame, masked_binary_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..net.shared_reader import SocketReaders
    from ..options.base import PluginOptions
    from ..runtime.tasks import TaskGroup
    from .interface import MessageReceiver, OnEnd
    from .writer import FrameWriter

__all__ = [
    "Accepted",
    "BadHandshakeError",
    "ReaderTask",
    "WebSocket",
    "WebSocketConnection",
    "accept_websocket",
    "open_websocket",
]

# How long a reader of the application's may take to see that its stream was closed.
NOTICE_SECONDS = 0.5
PING: Final = b"ping"


class BadHandshakeError(Exception):
    """A client's opening handshake failed or was refused."""


class ReaderTask:
    """Runs a connection's reader; stands in for the nursery that trio-websocket starts its own in.

    trio-websocket lets errors of the handshake leave through its reader's nursery. Here they are kept, and the end
    of the reader is seen by those who would otherwise wait for ever.

    Args:
        tasks: Owns the task.
        stream: What the reader reads from; closed in the end, without a word.
        on_end: Told of the reader's end.
    """

    __slots__ = ("_on_end", "_parting", "_scope", "_stream", "_tasks", "_told", "ended", "error")

    def __init__(self, tasks: TaskGroup, stream: trio.abc.AsyncResource, on_end: OnEnd) -> None:
        self._tasks = tasks
        self._stream = stream
        self._on_end = on_end
        self._scope = trio.CancelScope()
        self._told = False
        self._parting = False
        self.error: Exception | None = None
        self.ended: trio.Event = trio.Event()

    def start_soon(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Start the reader, as trio-websocket asks a nursery to."""
        self._tasks.spawn(self._run, reader)

    async def _run(self, reader: Callable[[], Awaitable[None]]) -> None:
        cancelled = True
        try:
            with self._scope:
                await reader()
            cancelled = False
        except Exception as error:  # noqa: BLE001 (one connection's trouble must not end the plugin)
            # With a Close on its way trio-websocket stumbles over pings that it may not answer any more.
            self.error = None if self._parting else error
            cancelled = False
        finally:
            self._told = True
            self._on_end(cancelled, self.error)
            try:
                await abort_stream(self._stream)  # noqa: ASYNC102 (it waits for nothing)
            finally:
                self.ended.set()

    def call_at_end(self, on_end: OnEnd) -> None:
        """Have another function told of the end, from now on."""
        self._on_end = on_end
        if self._told:
            on_end(False, self.error)

    def abort(self) -> None:
        """Close the stream without a word; the end is told as ever."""
        self._scope.cancel()

    async def part(self, goodbye: Awaitable[None]) -> None:
        """Do a closing handshake, for at most a second, then close the stream and wait for the reader's end.

        Cancellation: The stream is closed at once.
        """
        self._parting = True
        try:
            with trio.move_on_after(CLOSE_SECONDS):
                await goodbye
        except Exception as error:  # noqa: BLE001 (a stream of the application's may raise anything)
            self.error = self.error or error
        finally:
            self.abort()
        await self.ended.wait()


class WebSocket:
    """One open WebSocket connection, as a link uses it."""

    __slots__ = ("_connection", "_lane", "_reader", "frame", "peer", "writer")

    def __init__(
        self,
        connection: WebSocketConnection,
        lane: FrameStream,
        reader: ReaderTask,
        peer: str,
    ) -> None:
        self._connection = connection
        self._lane = lane
        self._reader = reader
        #: What is sent next goes here, in frames.
        self.writer: FrameWriter = lane.start_writing()
        #: Returns the frame of one binary message.
        self.frame: Callable[[bytes], bytes] = masked_binary_frame if connection.is_client else binary_frame
        self.peer: str = peer

    @property
    def bytes_received(self) -> int:
        """Bytes that came in frames."""
        return self._lane.bytes_received

    def open(self, receiver: MessageReceiver, on_end: OnEnd) -> None:
        """Let messages come; ``on_end`` is called when the connection is closed and its reader has ended."""
        self._lane.open(receiver, self._fetch, self._verdict)
        self._reader.call_at_end(on_end)

    def authenticated(self) -> None:
        """Allow messages of full size."""
        self._lane.authenticated()

    async def ping(self) -> None:
        """Send a ping and wait for its pong, for ever if the connection ends first.

        One is under way at a time: trio-websocket remembers each until its pong comes, and some peers send none.

        Cancellation: Safe at any time.
        """
        # Another that has no pong yet is told by its ValueError; its pong, when it comes, makes room for the next.
        with suppress(trio_websocket.ConnectionClosed, ValueError):
            await self._connection.ping(PING)
            return
        await trio.sleep_forever()

    async def close(self, code: int, reason: str) -> None:
        """Close with a closing handshake, for at most a second, then close the stream.

        Cancellation: The stream is closed at once.
        """
        await self._reader.part(self._connection.aclose(code, reason))

    def abort(self) -> None:
        """Close the stream without a word; the reader's end is told as ever."""
        self._reader.abort()

    async def wait_closed(self) -> None:
        """Wait until the stream is closed and nothing more will come.

        Cancellation: Safe at any time.
        """
        await self._reader.ended.wait()

    async def _fetch(self) -> bytes | str | None:
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            return None

    def _verdict(self) -> int | None:
        reason = self._connection.closed
        return None if reason is None else reason.code


async def open_websocket(
    stream: trio.abc.Stream, tasks: TaskGroup, options: PluginOptions, *, host: str, resource: str
) -> WebSocket:
    """Do a client's opening handshake.

    Args:
        stream: The network's stream; closed when this raises.
        tasks: Owns the connection's tasks.
        options: The limits.
        host: The ``Host`` header.
        resource: Path and query.

    Raises:
        NotAcceptedError: The server answered 401 or 403.
        PermanentlyUnreachableError: The server answered with another 4xx.
        UnreachableError: The handshake failed otherwise.

    Cancellation: Closes the stream.
    """
    lane = FrameStream(stream, tasks, options, server=False)
    waiting = trio.CancelScope()
    reader = ReaderTask(tasks, lane, lambda *_: waiting.cancel())
    opened = None
    try:
        with waiting:
            opened = await trio_websocket.wrap_client_stream(
                cast("trio.Nursery", reader),
                cast("trio.SocketStream", lane),
                host,
                resource,
                message_queue_size=1,
                max_message_size=options.max_message_bytes,
            )
    finally:
        if opened is None:
            reader.abort()
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
    if opened is None:
        raise _client_error(reader.error)
    return WebSocket(opened, lane, reader, host)


def _client_error(error: Exception | None) -> Exception:
    if not isinstance(error, trio_websocket.ConnectionRejected):
        return UnreachableError("the server closed the connection during the WebSocket handshake")
    status = error.status_code
    if status in (401, 403):
        return NotAcceptedError(f"the server refuses the credentials: HTTP {status}")
    if 400 <= status < 500:
        return PermanentlyUnreachableError(f"the server has no BTP endpoint at this URL: HTTP {status}")
    return UnreachableError(f"the server refused the WebSocket handshake: HTTP {status}")


@frozen
class Handshake:
    """What a client asked for in its opening handshake.

    Attributes:
        path: The path and query of its URL.
        origin: The ``Origin`` header, which browsers send, or None.
    """

    path: str
    origin: str | None


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
        refuse: Gives the HTTP status that a handshake is refused with, or None.
        readers: Read the stream's socket; None where others may close it.

    Raises:
        BadHandshakeError: The client's handshake failed or was refused.

    Cancellation: Closes the stream.
    """
    lane = FrameStream(stream, tasks, options, server=True, readers=readers)
    waiting = trio.CancelScope()
    reader = ReaderTask(tasks, lane, lambda *_: waiting.cancel())
    status = None
    accepted = None
    try:
        with waiting:
            request = await trio_websocket.wrap_server_stream(
                cast("trio.Nursery", reader),
                lane,
                message_queue_size=1,
                max_message_size=options.max_message_bytes,
            )
            origin = next(
                (value.decode("ascii", "replace") for name, value in request.headers if name == b"origin"), None
            )
            status = refuse(Handshake(request.path, origin))
            if status is None:
                accepted = await request.accept()
            else:
                await request.reject(status)
    except trio_websocket.ConnectionClosed as error:
        raise BadHandshakeError("the client left before it was answered") from error
    finally:
        if accepted is None:
            reader.abort()
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
    if accepted is None:
        raise BadHandshakeError("the handshake failed" if status is None else f"refused with HTTP {status}")
    return WebSocket(accepted, lane, reader, peer)


class Accepted(trio.abc.SendStream):
    """A connection that the application accepted with trio-websocket; what is sent are whole messages.

    Args:
        connection: The connection, its opening handshake done.

    Raises:
        TypeError: It is no such connection, or a client's.
    """

    def __init__(self, connection: WebSocketConnection) -> None:
        if not isinstance(connection, WebSocketConnection):
            raise TypeError(f"connection is a WebSocketConnection, not {type(connection).__name__}")
        if connection.is_client:
            raise TypeError("connection is one that this side dialed, not one that it accepted")
        self._connection = connection

    @property
    def address(self) -> str:
        """The IP address at the other end; empty where there is none to be had."""
        try:
            remote = self._connection.remote
        except (OSError, ValueError, AttributeError):
            # The peer is gone, or the stream is of a kind that trio-websocket does not know.
            return ""
        return str(remote.address) if isinstance(remote, trio_websocket.Endpoint) else ""

    async def receive(self) -> bytes | str | None:
        """Return the next message, or None when there will be none.

        Cancellation: Nothing is taken.
        """
        try:
            return await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            return None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send one binary message.

        Raises:
            trio.BrokenResourceError: The connection was closed.

        Cancellation: The message may be torn; the connection must be closed then.
        """
        try:
            await self._connection.send_message(bytes(data))
        except Exception as error:
            # Beside its own ConnectionClosed it lets out wsproto's, when the peer has just broken the protocol.
            raise trio.BrokenResourceError("the connection was closed") from error

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: trio-websocket cannot tell."""
        await trio.lowlevel.checkpoint()

    async def ping(self) -> bool:
        """Send a ping, wait for its pong, and return whether it could be sent at all.

        Cancellation: As with ``send_all``.
        """
        try:
            await self._connection.ping()
        except Exception:  # noqa: BLE001 (as in send_all; whoever reads sees the end)
            return False
        return True

    async def close(self, code: int, reason: str) -> None:
        """Do the closing handshake, however long that takes, and close the stream.

        Cancellation: The stream is closed, unless a Close had gone either way before.
        """
        await self._connection.aclose(code, reason)

    async def aclose(self) -> None:
        """Close the stream without a word."""
        # trio-websocket's own aclose() does nothing once a Close has gone either way, and its reader then waits for
        # as long as the peer likes, or its send for a peer that does not read. No public name leads to the stream.
        stream: trio.abc.AsyncResource = getattr(self._connection, "_stream", self._connection)
        await abort_stream(stream)

    async def finish(self) -> None:
        """Close the stream and wait, for half a second at most, until trio-websocket's reader has seen it.

        It runs in the application's nursery, and would wait there for ever for somebody to take the messages that it
        has read already.

        Cancellation: Does not end it.
        """
        with trio.move_on_after(NOTICE_SECONDS, shield=True):
            await self.aclose()
            while await self.receive() is not None:
                pass
