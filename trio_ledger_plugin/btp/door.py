"""The door of a server: who knocks, who is let in, and what the others get.

The law of this module: nothing of a connection is visible before its token is right. Whatever a stranger does costs
the stranger only. It is the same for a connection of the door's own port and for a guest, one that the application
handed over; only that a guest's end is awaited by whoever brought it, and comes with their cancellation.
"""

from __future__ import annotations

import errno
import ssl
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from ..errors import NotConnectedError
from ..net.admission import Admission
from ..net.shared_reader import SocketReaders, can_share
from ..net.sockets import abort_stream
from ..websocket.connection import Accepted, BadHandshakeError, Handshake, WebSocket, accept_websocket
from ..websocket.messages import MessageStream
from .auth import AuthRequest, BadAuthError, auth_accepted, auth_refused, read_auth
from .link import Link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ..runtime.context import Context
    from ..websocket.interface import WebSocketTransport

    Identify: TypeAlias = Callable[[AuthRequest], str]
    Verify: TypeAlias = Callable[[AuthRequest, str], Awaitable[None]]

__all__ = ["Door", "Place"]

# What accept() says when there is no room for one more socket; it passes.
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
ACCEPT_PAUSE = 0.1
# What logs call a peer that has no address.
NAMELESS = "a peer without an address"


class Place(Protocol):
    """Where to listen: the part of a plugin's options that says so."""

    @property
    def port(self) -> int | None:
        """The TCP port; 0 takes a free one, None opens none."""

    @property
    def host(self) -> str:
        """The address to listen on."""

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """A server's TLS context; None listens without TLS."""


class Door:
    """Accepts connections and authenticates them.

    Args:
        context: What the parts of the plugin share.
        place: Where to listen.
        ids: Where request ids come from.
        offered_retention: For how many seconds this end keeps transfer keys; None where it offers PLAIN only.
        attach: Called with each link whose peer's token is right; ``link.account`` is set.
        detach: Called with each link that is lost, attached or not, and the reason.
        is_wanted: Whether links are still wanted: not while the plugin disconnects or closes.
        identify: Gives the account that an auth packet speaks for, or raises ``BadAuthError``; decides all that can
            be decided without waiting.
        verify: Looks up whether the token is the account's and raises ``BadAuthError`` if it is not; None when
            ``identify`` decides alone. What the peer sends meanwhile is held.
        refuse: Gives the HTTP status that a handshake is refused with, or None.
    """

    def __init__(
        self,
        context: Context,
        place: Place,
        ids: Iterator[int],
        *,
        offered_retention: int | None,
        attach: Callable[[Link], None],
        detach: Callable[[Link, str], None],
        is_wanted: Callable[[], bool],
        identify: Identify,
        verify: Verify | None,
        refuse: Callable[[Handshake], int | None],
    ) -> None:
        self._context = context
        self._place = place
        self.ids: Iterator[int] = ids
        self.offered_retention: int | None = offered_retention
        self.attach: Callable[[Link], None] = attach
        self.detach: Callable[[Link, str], None] = detach
        self.is_wanted: Callable[[], bool] = is_wanted
        self._identify = identify
        self._verify = verify
        self._refuse_handshake = refuse
        self._gate = Admission(context.options)
        # For connections that nobody else can close.
        self._readers = SocketReaders(context.tasks) if can_share() else None
        self._bound_port: int | None = place.port
        # Of those who wait for the end of a guest; None while the door is shut.
        self._guests: set[trio.CancelScope] | None = None

    @property
    def address(self) -> str:
        """The URL to dial, without credentials; its port is the bound one while the plugin listens.

        Empty where there is no port.
        """
        if self._bound_port is None:
            return ""
        host = self._place.host
        shown = f"[{host}]" if ":" in host else host
        return f"btp+ws{'s' if self._place.ssl_context else ''}://{shown}:{self._bound_port}"

    async def run(self, listening: Callable[[], None]) -> None:
        """Listen, report it, and serve.

        Raises:
            OSError: The address cannot be listened on.

        Cancellation: Stops listening, drops those who are not authenticated yet, and parts from every guest.
        """
        listeners = await self._open_port()
        guests: set[trio.CancelScope] = set()
        self._guests = guests
        try:
            async with AsyncExitStack() as stack:
                strangers = await stack.enter_async_context(trio.open_nursery())
                for listener in listeners:
                    await stack.enter_async_context(listener)
                    strangers.start_soon(self._accept, listener, strangers)
                listening()
                await trio.sleep_forever()
        finally:
            self._guests = None
            for scope in guests:
                scope.cancel()

    async def _open_port(self) -> list[trio.SocketListener]:
        host, port = self._place.host, self._place.port
        if port is None:
            return []
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        self._bound_port = listeners[0].socket.getsockname()[1]
        return listeners

    async def _accept(self, listener: trio.SocketListener, strangers: trio.Nursery) -> None:
        """Accept for ever; unlike Trio's own loop this one leaves a stream open when its task ends."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                self._context.log.error("cannot accept connections for now: %s", error)
                await trio.sleep(ACCEPT_PAUSE)
            else:
                strangers.start_soon(self._receive, stream)

    async def _receive(self, stream: trio.SocketStream) -> None:
        """Let one connection of the door's own port in, or drop it."""
        visitor = None
        try:
            peer = _address_of(stream)
        except OSError:
            # It came and went.
            pass
        else:
            visitor = await self._admit(
                peer, partial(self._shake_hands, stream, peer, self._place.ssl_context, self._readers)
            )
        if visitor is None:
            await abort_stream(stream)

    # Guests.

    async def serve_stream(self, stream: trio.abc.Stream, peer: str) -> None:
        """Serve a stream from its opening handshake to its end; see ``BtpServer.serve_stream``."""
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"stream is a trio.abc.Stream, not {type(stream).__name__}")
        # An error: it came and went. The handshake finds out.
        with suppress(OSError):
            peer = peer or _address_of(stream)
        peer = peer or NAMELESS
        await self._serve(peer, partial(self._shake_hands, stream, peer, None, None), partial(abort_stream, stream))

    async def serve_websocket(self, accepted: Accepted, peer: str) -> None:
        """Serve an accepted connection to its end; see ``BtpServer.serve_websocket``."""
        peer = peer or accepted.address or NAMELESS

        async def open_lane() -> MessageStream:
            await trio.lowlevel.checkpoint()
            return MessageStream(accepted, self._context.tasks, self._context.options, peer)

        await self._serve(peer, open_lane, accepted.finish)

    async def _serve(
        self,
        peer: str,
        shake_hands: Callable[[], Awaitable[WebSocketTransport | None]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        guests = self._guests
        if guests is None or not self.is_wanted():
            raise NotConnectedError("connect() the plugin first; the connection was not touched")
        with trio.CancelScope() as scope:
            guests.add(scope)
            async with AsyncExitStack() as stack:
                stack.push_async_callback(close)
                stack.callback(guests.discard, scope)
                visitor = await self._admit(peer, shake_hands)
                if visitor is not None:
                    stack.callback(visitor.link.abort, "the task that served the connection was cancelled")
                    await visitor.carrier.wait_closed()

    # Strangers.

    async def _admit(
        self, peer: str, shake_hands: Callable[[], Awaitable[WebSocketTransport | None]]
    ) -> _Visitor | None:
        """Bring one connection through handshake and authentication; None when it did not come to the latter."""
        with self._gate.visit(peer) as welcome:
            if welcome:
                carrier = await shake_hands()
                if carrier is not None:
                    return await self._authenticate(carrier)
        return None

    async def _shake_hands(
        self,
        stream: trio.abc.Stream,
        peer: str,
        ssl_context: ssl.SSLContext | None,
        readers: SocketReaders | None,
    ) -> WebSocket | None:
        options = self._context.options
        secured = stream
        websocket = None
        try:
            with trio.move_on_after(options.handshake_timeout):
                if ssl_context is not None:
                    secured = tls = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
                    await tls.do_handshake()
                websocket = await accept_websocket(
                    secured, self._context.tasks, options, peer=peer, refuse=self._refuse_handshake, readers=readers
                )
        except (BadHandshakeError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError) as error:
            self._context.log.debug("handshake with %s failed: %s", peer, error)
        finally:
            if websocket is None:
                await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
        return websocket

    async def _authenticate(self, carrier: WebSocketTransport) -> _Visitor:
        visitor = _Visitor(self._context, self, self._identify, self._verify, carrier)
        link = visitor.link
        try:
            with trio.move_on_after(self._context.options.auth_timeout):
                link.begin(visitor.receive)
                await visitor.settle()
            if visitor.refusal is not None:
                await self._refuse(link, visitor.refusal)
            elif visitor.is_gone:
                # It may be told just now why it has to go; the sweep ends that where it takes too long.
                await carrier.wait_closed()
        finally:
            if not link.is_open:
                link.abort("not authenticated")
        return visitor

    async def _refuse(self, link: Link, error: BadAuthError) -> None:
        self._context.log.info("refused a connection from %s: %s", link.peer, error)
        await trio.sleep(self._gate.failure_delay(link.peer))
        if error.request_id is not None:
            link.send_unauthenticated(auth_refused(error.request_id, str(error)))
        with trio.move_on_after(self._context.options.auth_timeout):
            await link.drain()
            await link.say_goodbye()


class _Visitor:
    """One connection until it is let in or turned away."""

    __slots__ = (
        "_claim",
        "_context",
        "_door",
        "_heard",
        "_identify",
        "_verify",
        "carrier",
        "is_gone",
        "link",
        "refusal",
    )

    def __init__(
        self, context: Context, door: Door, identify: Identify, verify: Verify | None, carrier: WebSocketTransport
    ) -> None:
        self._context = context
        self._door = door
        self._identify = identify
        self._verify = verify
        # Set by the first packet, or by the loss of the link.
        self._heard = trio.Event()
        self._claim: tuple[AuthRequest, str] | None = None
        self.is_gone: bool = False
        self.refusal: BadAuthError | None = None
        self.carrier: WebSocketTransport = carrier
        self.link: Link = Link(context, door.ids, carrier, self._lost)

    def receive(self, message: bytes) -> None:
        """Take the first packet, and hold what comes behind it while its claim is looked up."""
        if self._heard.is_set():
            # What a refusal is followed by is nobody's.
            if self._claim is not None:
                self.link.hold(message)
            return
        self._heard.set()
        try:
            request = read_auth(message, max_entries=self._context.options.max_entries)
            account = self._identify(request)
        except BadAuthError as error:
            self.refusal = error
            return
        if self._verify is None:
            # At once: what came in the same read behind the packet may be more than can be held.
            self._let_in(request, account)
        else:
            self._claim = request, account

    async def settle(self) -> None:
        """Wait until the visitor is let in, turned away, or has left.

        Cancellation: The visitor stays a stranger.
        """
        await self._heard.wait()
        if self._claim is None or self._verify is None:
            return
        request, account = self._claim
        try:
            await self._verify(request, account)
        except BadAuthError as error:
            self.refusal = error
        else:
            self._let_in(request, account)
        finally:
            self._claim = None

    def _let_in(self, request: AuthRequest, account: str) -> None:
        if not self.is_gone and self._door.is_wanted():
            self.link.account = account
            # Both have to offer it.
            offered = self._door.offered_retention if request.peer_retention is not None else None
            self.link.peer_retention = request.peer_retention if offered is not None else None
            self.link.send_unauthenticated(auth_accepted(request.request_id, offered))
            self._door.attach(self.link)

    def _lost(self, link: Link, reason: str) -> None:
        self.is_gone = True
        self._heard.set()
        self._door.detach(link, reason)


def _address_of(stream: trio.abc.Stream) -> str:
    """Return the IP address at the other end of a stream; empty where there is none.

    Raises:
        OSError: The peer is gone.
    """
    inner: object = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(inner, trio.SocketStream):
        return ""
    name = inner.socket.getpeername()
    return str(name[0]) if isinstance(name, tuple) else ""
