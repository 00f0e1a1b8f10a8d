"""One connection of the server: its requests, one at a time, and their responses."""

from __future__ import annotations

import time
from contextlib import suppress
from email.utils import formatdate
from math import inf
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ..net.sockets import abort_stream, plain_socket, read_socket, write_socket
from ..parking import Waiter, park
from .gate import Claim, RefusedError
from .heads import BadMessageError
from .messages import MessageReader, write_response
from .responder import Responder

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..net.admission import Admission
    from ..net.shared_reader import SocketReaders
    from ..runtime.context import Context
    from .gate import Gate
    from .heads import Heads, RequestHead
    from .link import HttpLink

__all__ = ["IDLE_SECONDS", "ServerConnection", "Serving"]

READ_BYTES: Final = 65536
# Before the credentials; enough for a head and a packet of the usual size.
FIRST_READ_BYTES: Final = 16384
# Longer than any client keeps a connection: otherwise a request could meet its end.
IDLE_SECONDS: Final = 75
# How long one request may take to arrive, and how long a client may take to read why it was refused.
MESSAGE_SECONDS: Final = 30.0
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 1024 * 1024
# What a peer may send ahead of a response.
MOST_AHEAD: Final = READ_BYTES
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
HEALTHY: Final = "OK"


@frozen(eq=False)
class Serving:
    """What the connections of a server share.

    Attributes:
        context: What the parts of the plugin share.
        gate: Judges requests.
        heads: Judges heads.
        admission: Counts failed authentications.
        readers: Reads many sockets in one task; None if the system cannot.
        is_wanted: Returns whether connections are still wanted: False while the plugin disconnects or closes.
    """

    context: Context
    gate: Gate
    heads: Heads[RequestHead]
    admission: Admission
    readers: SocketReaders | None
    is_wanted: Callable[[], bool]


class ServerConnection(Responder):
    """Reads the requests of one connection.

    Args:
        server: What it shares with the others.
        stream: The stream.
        peer: The peer's address.
        authenticated: Called when the first head with the right credentials has come.
    """

    __slots__ = (
        "_authenticated",
        "_busy",
        "_claim",
        "_early_bytes",
        "_head",
        "_keep_alive",
        "_link",
        "_reader",
        "_refusal",
        "_response_waiter",
        "_server",
        "_socket",
        "_stream",
        "_unverified",
        "deadline",
        "is_closed",
        "peer",
    )

    def __init__(self, server: Serving, stream: trio.abc.Stream, peer: str, authenticated: Callable[[], None]) -> None:
        super().__init__()
        self._server = server
        self._stream = stream
        self._socket = plain_socket(stream)
        self.peer: str = peer
        self._authenticated: Callable[[], None] | None = authenticated
        self._reader = MessageReader(server.heads)
        #: When the connection is closed, on Trio's clock.
        self.deadline: float = trio.current_time() + server.context.options.auth_timeout
        self.is_closed: bool = False
        # What the requests so far have shown, and the link that it stands for.
        self._claim: Claim | None = None
        self._link: HttpLink | None = None
        self._early_bytes = 0
        # The request that arrives now; a claim that the store must confirm first.
        self._head: RequestHead | None = None
        self._unverified: Claim | None = None
        self._keep_alive = True
        # Whether a handler works for this connection.
        self._busy = False
        self._response_waiter: Waiter | None = None
        # Why the connection is refused; nothing more is read then.
        self._refusal: RefusedError | None = None

    async def run(self) -> None:
        """Serve requests until the connection ends.

        Raises:
            trio.BrokenResourceError: The connection broke.
            trio.ClosedResourceError: It was closed from this side.

        Cancellation: Handlers go on; their replies are dropped.
        """
        try:
            while await self._read():
                if self._unverified is not None:
                    await self._verify(self._unverified)
                while self._busy and self._reader.buffered > MOST_AHEAD:
                    await self._wait_for_response()
                if self._refusal is not None:
                    await self._refuse(self._refusal)
                    return
                if not self._keep_alive and not self._busy:
                    break
            # A client may close its side before it reads the responses.
            while self._busy:
                await self._wait_for_response()
            await self._linger()
        finally:
            if self._link is not None and self._busy:
                self._link.forget(self)

    async def _read(self) -> bool:
        """Handle what arrives next; returns False at the end of the connection."""
        socket, readers = self._socket, self._server.readers
        if socket is None:
            data = bytes(await self._stream.receive_some(READ_BYTES if self._link else FIRST_READ_BYTES))
        elif readers is not None and readers.reads_for_all:
            turns = self._server.context if self._link is None else self._link.context
            return bool(await readers.read(socket, self.take, turns.budget))
        else:
            data = await read_socket(socket, READ_BYTES if self._link else FIRST_READ_BYTES)
        if data:
            self.take(data)
        return bool(data)

    def take(self, data: bytes) -> bool:
        """Handle bytes; returns False if the task must do something before more are read."""
        if self._link is None:
            self._early_bytes += len(data)
        else:
            self._link.counters.bytes_received += len(data)
        if self._refusal is None:
            self._reader.receive(data)
            self._advance()
        return not (
            self._refusal is not None
            or self._unverified is not None
            or not self._keep_alive
            or (self._busy and self._reader.buffered > MOST_AHEAD)
        )

    def _advance(self) -> None:
        """Serve the next request, if it is here and the one before has its response."""
        if self._busy or self._refusal is not None or self._unverified is not None or not self._keep_alive:
            return
        try:
            self._read_request()
        except BadMessageError as error:
            if self._link is not None:
                self._link.counters.malformed_packets += 1
            self._refusal = RefusedError(error.status, str(error))
        except RefusedError as error:
            self._refusal = error
        if self._refusal is not None:
            self._reader = MessageReader(self._server.heads)

    def _read_request(self) -> None:
        reader = self._reader
        head = self._head
        if head is None:
            head = reader.next_head()
            if head is None:
                if reader.buffered and self._link is not None and self.deadline > trio.current_time() + MESSAGE_SECONDS:
                    self.deadline = trio.current_time() + MESSAGE_SECONDS
                return
            self._accept_head(head)
            if self._head is None:
                return
        link = self._link
        if link is None or self._unverified is not None:
            return
        body = reader.next_body(head.length, self._server.gate.limit)
        if body is None:
            if head.expects_continue and not reader.buffered:
                self._write_soon(CONTINUE)
            return
        self._head = None
        self._busy = True
        self._keep_alive = head.keep_alive
        self.deadline = inf
        link.serve(self, body)

    def _accept_head(self, head: RequestHead) -> None:
        """Judge a head.

        Raises:
            RefusedError: The request is refused.
        """
        server = self._server
        gate = server.gate
        if gate.is_health_check(head):
            self._keep_alive = False
            text = "" if head.method == b"HEAD" else HEALTHY
            self._write_soon(write_response(200, text, keep_alive=False))
            return
        gate.check_target(head)
        claim = self._claim
        self._head = head
        if claim is None or not claim.covers(head):
            claim = gate.claim(head)
            if gate.needs_store:
                gate.check_body(head)
                self._unverified = claim
                return
            self._use(claim)
        elif self._link is None or not self._link.is_open:
            self._use(claim)
        gate.check_body(head)
        self.deadline = trio.current_time() + MESSAGE_SECONDS

    async def _verify(self, claim: Claim) -> None:
        """Look up the token of a claim, and go on with the request."""
        self.deadline = trio.current_time() + MESSAGE_SECONDS
        try:
            await self._server.gate.verify(claim)
            if not self.is_closed:
                self._use(claim)
        except RefusedError as error:
            self._refusal = error
        finally:
            self._unverified = None
        self._advance()

    def _use(self, claim: Claim) -> None:
        """Use the account of a claim that is confirmed."""
        link = self._server.gate.link_of(claim)
        if self._link is not None and self._link is not link:
            self._link.connection_closed(self)
        if self._link is not link:
            link.connection_opened(self)
        self._claim, self._link = claim, link
        link.counters.bytes_received += self._early_bytes
        self._early_bytes = 0
        if self._authenticated is not None:
            self._authenticated()
            self._authenticated = None

    # Responses.

    async def respond(self, status: int, body: bytes) -> None:
        """Send the response; it is dropped if the connection is lost.

        Cancellation: The connection is lost.
        """
        message = self._message(status, body)
        socket = self._socket
        sent = 0 if socket is None or self.is_closed else write_socket(socket, message)
        if sent < len(message):
            await self._send_rest(message, sent)
        if self._link is not None:
            self._link.counters.bytes_sent += len(message)
        self._responded()

    def respond_soon(self, status: int, body: bytes) -> None:
        """Send the response without waiting."""
        message = self._message(status, body)
        self._write_soon(message)
        self._responded()

    def drop(self) -> None:
        """Close the connection: there will be no response."""
        self.close()

    def _message(self, status: int, body: bytes) -> bytes:
        keep_alive = self._keep_alive and self._server.is_wanted()
        if not keep_alive:
            self._keep_alive = False
        if status == 200:
            return b"%bContent-Length: %d\r\n\r\n%b" % (_start_of_response(keep_alive), len(body), body)
        return write_response(status, body.decode("utf-8", "replace"), keep_alive=keep_alive)

    def _responded(self) -> None:
        self._busy = False
        self.deadline = trio.current_time() + (IDLE_SECONDS if self._keep_alive else LINGER_SECONDS)
        if self._response_waiter is not None:
            self._response_waiter.wake()
            self._response_waiter = None
        if self.is_closed:
            return
        if not self._keep_alive:
            # The client closes now, and the task that reads waits for that. TLS cannot be closed in one direction.
            if self._socket is None:
                self.close()
            else:
                self._half_close()
        elif self._reader.buffered:
            self._advance()
            if self._unverified is not None or self._refusal is not None:
                self._end_ahead(self._refusal)

    def _end_ahead(self, refusal: RefusedError | None) -> None:
        """End the connection because of a request that was sent ahead; the task that reads does not know of it.

        Args:
            refusal: Why it is refused; None if its credentials are other ones, which cannot be looked up here.
        """
        if refusal is None or refusal.is_failure or self._socket is None:
            self.close()
            return
        self._keep_alive = False
        self._write_soon(write_response(refusal.status, str(refusal), keep_alive=False))
        self.deadline = trio.current_time() + LINGER_SECONDS
        self._half_close()

    def _write_soon(self, message: bytes) -> None:
        """Send bytes without waiting; a task sends what the socket does not take."""
        if self.is_closed:
            return
        sent = 0 if self._socket is None else write_socket(self._socket, message)
        if sent < len(message):
            self._server.context.tasks.spawn(self._send_rest, message, sent)
        elif self._link is not None:
            self._link.counters.bytes_sent += len(message)

    async def _send_rest(self, message: bytes, sent: int) -> None:
        """Send the rest of a message; the connection is closed if that takes too long.

        Cancellation: The connection is closed.
        """
        done = False
        try:
            with trio.move_on_after(self._server.context.options.send_timeout):
                # The peer may be gone; and the application's own stream may raise anything.
                with suppress(Exception):
                    await self._stream.send_all(memoryview(message)[sent:])
                    done = True
        finally:
            if not done:
                self.close()

    async def _wait_for_response(self) -> None:
        """Wait until the request that is being served has its response; the next one may be served by then."""
        self._response_waiter = Waiter()
        await park(self._response_waiter)

    # The end.

    async def _refuse(self, refusal: RefusedError) -> None:
        """Send why the connection is refused, and wait until the client has read it."""
        server = self._server
        if refusal.is_failure:
            self.deadline = inf
            await trio.sleep(server.admission.refuse("a request", self.peer, refusal.account, refusal))
        self._keep_alive = False
        extra = "".join(f"{name}: {value}\r\n" for name, value in refusal.headers)
        self.deadline = trio.current_time() + server.context.options.send_timeout + LINGER_SECONDS
        await self._send_rest(write_response(refusal.status, str(refusal), keep_alive=False, extra=extra), 0)
        await self._linger()

    def _half_close(self) -> None:
        if self._socket is not None and not self.is_closed:
            # OSError: the peer has left already.
            with suppress(OSError):
                self._socket.shutdown(trio.socket.SHUT_WR)

    async def _linger(self) -> None:
        """Read until the client closes: to close first would reset the connection, and could lose the response."""
        if self.is_closed or self._keep_alive:
            return
        left = LINGER_BYTES
        self._half_close()
        with trio.move_on_after(LINGER_SECONDS), suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            if self._socket is None:
                await self._stream.aclose()
            while left > 0 and (data := await self._stream.receive_some(READ_BYTES)):
                left -= len(data)

    def close(self) -> None:
        """Close the connection at once; a task that reads or writes it wakes up."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._link is not None:
            self._link.connection_closed(self)
        stream = self._stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if isinstance(stream, trio.SocketStream):
            if self._server.readers is not None:
                self._server.readers.closing(stream.socket)
            stream.socket.close()
        elif self._server.context.tasks.running:
            self._server.context.tasks.spawn(abort_stream, stream)


_started: tuple[int, tuple[bytes, bytes]] = (0, (b"", b""))


def _start_of_response(keep_alive: bool) -> bytes:
    """Return the start of a response with a packet; its date is that of this second."""
    global _started  # noqa: PLW0603 (a cache: the text is made once a second)
    second = int(time.time())
    if second != _started[0]:
        date = formatdate(second, usegmt=True)
        start = f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/octet-stream\r\n"
        kept, closed = f"{start}Keep-Alive: timeout={IDLE_SECONDS}\r\n", f"{start}Connection: close\r\n"
        _started = second, (closed.encode(), kept.encode())
    return _started[1][keep_alive]
