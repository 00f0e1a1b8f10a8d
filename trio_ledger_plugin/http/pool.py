"""The connections of a client: one call at a time on each.

Invariants: a connection goes back into the pool only after a whole answer. An idle connection is used only if its
server has sent nothing meanwhile, such as the end of the connection, and has not had time to end it: a request on a
dead connection could not be sent again, since the peer may have acted on it.
"""

from __future__ import annotations

import select
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING, cast

import outcome
import trio

from ..errors import (
    ConnectionLostError,
    DecodeError,
    LedgerPluginError,
    NotConnectedError,
    ResponseTimeoutError,
    UnreachableError,
)
from ..net.dial import dial
from ..net.sockets import plain_socket, read_socket, write_socket
from ..parking import Waiter, park
from ..runtime.calls import Call
from .heads import UNTIL_CLOSE, BadMessageError, Heads, ResponseHead, read_response_head
from .messages import MessageReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..net.url import ServerUrl

__all__ = ["ALPN", "ClientConnection", "ConnectionPool"]

READ_BYTES = 65536
ALPN = ["http/1.1"]
# A server may end an idle connection so long before the time that it promises.
MARGIN_SECONDS = 1.0
# The most bytes of the text with which a server refuses a request.
MOST_EXPLANATION = 1024


class ClientConnection(Call):
    """One connection to the peer. While a call uses it, it stands in the table of calls.

    Args:
        stream: The stream.
        heads: Judges heads.
    """

    __slots__ = ("_poll", "_reader", "_sent", "_stream", "error", "idle_until", "is_broken", "is_new", "socket")

    def __init__(self, stream: trio.abc.Stream, heads: Heads[ResponseHead]) -> None:
        super().__init__(0.0)
        self._stream = stream
        self._reader = MessageReader(heads)
        #: The socket of a stream without TLS; None for any other.
        self.socket: trio.socket.SocketType | None = plain_socket(stream)
        # To look whether the server has sent something, or left.
        self._poll: select.poll | None = None
        number = _file_of(stream)
        if number >= 0 and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(number, select.POLLIN)
        self.idle_until: float = 0.0
        # How much of the request the system has taken.
        self._sent = 0
        self.is_broken: bool = False
        #: Whether no answer has come over it yet.
        self.is_new: bool = True
        #: Why the call fails, once something else than the network has ended it.
        self.error: Exception | None = None

    def fail(self, error: Exception) -> None:
        """Have the call on this connection raise an error, and end the connection."""
        self.error = self.error or error
        # After a pause of the process, what lies in the socket is read before a deadline counts.
        if not (isinstance(error, ResponseTimeoutError) and self._is_readable()):
            self.close()

    def close(self) -> None:
        """End the connection at once; a task that reads or writes it wakes up."""
        self.is_broken = True
        inner = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        assert isinstance(inner, trio.SocketStream)
        inner.socket.close()

    def has_news(self) -> bool:
        """Whether the server has sent something, such as the end of the connection."""
        return self._reader.buffered > 0 or self._is_readable()

    def _is_readable(self) -> bool:
        return self._poll is not None and not self.is_broken and bool(self._poll.poll(0))

    def send_now(self, data: bytes) -> bool:
        """Give a request to the system without waiting; returns whether the system took all of it."""
        socket = self.socket
        self._sent = 0 if socket is None else write_socket(socket, data)
        return self._sent == len(data)

    async def send_rest(self, data: bytes) -> None:
        """Send what ``send_now`` has left of a request.

        Raises:
            NotConnectedError: The connection has ended, and nothing was given to the system.

        Cancellation: A part may have been sent.
        """
        socket, sent = self.socket, self._sent
        try:
            if socket is None:
                # From here on, a part of the request may be in what TLS has sent.
                sent = 1
                await self._stream.send_all(data)
                return
            while sent < len(data):
                await trio.lowlevel.wait_writable(socket)
                sent += await socket.send(memoryview(data)[sent:])
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if self.error is not None:
                raise self.error from None
            if not sent:
                raise NotConnectedError("the connection has ended; nothing was sent") from error
            # The answer may have come before the server stopped to read.

    async def receive(self, limit: int) -> tuple[ResponseHead, bytes]:
        """Return the answer to the request that was sent: its head, and its body if that is wanted.

        Args:
            limit: The most bytes that a body may have.

        Raises:
            ConnectionLostError: The connection ended without a whole answer.
            DecodeError: The answer is not one of HTTP/1.1, or is too long.

        Cancellation: The connection cannot be used again.
        """
        try:
            return await self._read_answer(limit)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if self.error is not None:
                raise self.error from None
            raise ConnectionLostError("the connection was lost before the answer; the peer may have acted") from error
        except BadMessageError as error:
            raise DecodeError(f"the peer's answer is refused: {error}; the peer may have acted") from error

    async def _read_answer(self, limit: int) -> tuple[ResponseHead, bytes]:
        reader, socket, stream = self._reader, self.socket, self._stream
        head = None
        while True:
            data = await (stream.receive_some(READ_BYTES) if socket is None else read_socket(socket, READ_BYTES))
            if not data:
                if head is not None and head.length == UNTIL_CLOSE:
                    return head, reader.body_at_end()
                raise trio.BrokenResourceError("the connection ended")
            reader.receive(bytes(data))
            head = head or reader.next_head()
            if head is not None and not head.is_wanted:
                return head, self._take_explanation(head)
            body = None if head is None else reader.next_body(head.length, limit)
            if head is not None and body is not None:
                return head, body
            if self.error is not None:
                raise trio.BrokenResourceError("the deadline is past")

    def _take_explanation(self, head: ResponseHead) -> bytes:
        """Return the text of a refusal, if it is short and here already; otherwise nothing more is read."""
        if 0 <= head.length <= min(self._reader.buffered, MOST_EXPLANATION):
            return self._reader.next_body(head.length, head.length) or b""
        self.is_broken = True
        return b""


def _file_of(stream: trio.abc.Stream) -> int:
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    return inner.socket.fileno() if isinstance(inner, trio.SocketStream) else -1


class _Turn(Waiter):
    """A call that waits for a connection."""

    __slots__ = ("_pool",)

    def __init__(self, pool: ConnectionPool) -> None:
        super().__init__()
        self._pool = pool

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        # At once, however many others wait: all of them may be cancelled together.
        del self._pool.waiting[self]
        return super().abandon(raise_cancel)


class ConnectionPool:
    """The connections to one peer.

    Args:
        url: The peer's URL.
        ssl_context: The TLS context; None for the system's certificates.
        limit: The most connections.
        idle_seconds: For how long an idle connection is kept.
        dial_seconds: How long dialing may take.
    """

    def __init__(
        self,
        url: ServerUrl,
        ssl_context: ssl.SSLContext | None,
        *,
        limit: int,
        idle_seconds: float,
        dial_seconds: float,
    ) -> None:
        self._url = url
        self._ssl_context = ssl_context
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._dial_seconds = dial_seconds
        self._heads = Heads(read_response_head)
        # The youngest is last, and used first.
        self._idle: list[ClientConnection] = []
        self._open = 0
        # The call whose turn is next is first.
        self.waiting: OrderedDict[_Turn, None] = OrderedDict()
        self._make_error: Callable[[], LedgerPluginError] | None = None
        self._dialing: dict[trio.CancelScope, None] = {}

    async def take(self) -> ClientConnection:
        """Return a connection for one call; ``put`` takes it back.

        Raises:
            NotConnectedError: The peer cannot be reached. Nothing was sent.
            LedgerPluginError: The pool was closed.

        Cancellation: Safe at any time.
        """
        while True:
            connection = self.take_idle()
            if connection is not None:
                return connection
            if self._make_error is not None:
                raise self._make_error()
            if self._open < self._limit:
                return await self._dial()
            turn = _Turn(self)
            self.waiting[turn] = None
            connection = cast("ClientConnection | None", await park(turn))
            if connection is not None:
                if not connection.has_news():
                    return connection
                self.put(connection, None)

    def take_idle(self) -> ClientConnection | None:
        """Return the youngest idle connection that can be trusted; others are closed."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if trio.current_time() < connection.idle_until and not connection.has_news():
                return connection
            connection.close()
            self._open -= 1
        return None

    def put(self, connection: ClientConnection, head: ResponseHead | None) -> None:
        """Take a connection back after a call.

        Args:
            connection: The connection.
            head: The head of the whole answer; None if there was none.
        """
        if head is None or not head.keep_alive or connection.is_broken or self._make_error is not None:
            connection.close()
            self._open -= 1
            self._wake(None)
            return
        seconds = self._idle_seconds
        if head.timeout is not None:
            seconds = min(seconds, head.timeout - MARGIN_SECONDS)
        connection.is_new = False
        connection.idle_until = trio.current_time() + seconds
        if self.waiting and not connection.has_news():
            self._wake(connection)
        else:
            self._idle.append(connection)

    def _wake(self, connection: ClientConnection | None) -> None:
        """Wake the next call that waits: with a connection, or to dial one."""
        if self.waiting:
            turn, _ = self.waiting.popitem(last=False)
            turn.wake(outcome.Value(connection))

    async def _dial(self) -> ClientConnection:
        self._open += 1
        connection = None
        url = self._url
        context = self._ssl_context
        try:
            with trio.move_on_after(self._dial_seconds) as scope:
                self._dialing[scope] = None
                try:
                    if url.tls and context is None:
                        context = self._ssl_context = await trio.to_thread.run_sync(_default_context)
                    stream = await dial(url.host, url.port, url.address, ssl_context=context if url.tls else None)
                finally:
                    self._dialing.pop(scope, None)
                connection = ClientConnection(stream, self._heads)
                return connection
        except UnreachableError as error:
            raise NotConnectedError(f"{error}; nothing was sent") from error
        finally:
            if connection is None:
                self._open -= 1
                self._wake(None)
        # close() ends a dialing too.
        if self._make_error is not None:
            raise self._make_error()
        raise NotConnectedError(f"{url.address} did not answer within {self._dial_seconds:g} s; nothing was sent")

    def drop_idle(self, now: float) -> None:
        """Close the connections that have been idle for too long."""
        kept = []
        for connection in self._idle:
            if now < connection.idle_until:
                kept.append(connection)
            else:
                connection.close()
                self._open -= 1
        self._idle[:] = kept

    def close(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Close the idle connections, and fail every call that waits for one, each with an error of its own."""
        if self._make_error is not None:
            return
        self._make_error = make_error
        for connection in self._idle:
            connection.close()
        self._open -= len(self._idle)
        self._idle.clear()
        for turn in tuple(self.waiting):
            turn.wake(outcome.Error(make_error()))
        self.waiting.clear()
        for scope in tuple(self._dialing):
            scope.cancel()


def _default_context() -> ssl.SSLContext:
    """Return a context that verifies the peer with the system's certificates. Loading them reads files."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(ALPN)
    return context
