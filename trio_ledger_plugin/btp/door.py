"""The door of a server: who knocks, who is let in, and what the others get.

The law of this module: nothing of a connection is visible before its token is right. Whatever a stranger does costs
the stranger only.
"""

from __future__ import annotations

import errno
import ssl
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from .gate import Gate
from .link import Link, LinkHost
from .session import AuthRequest, BadAuthError, auth_accepted, auth_refused, read_auth
from .websocket import BadHandshakeError, Handshake, WebSocket, accept_websocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Identify: TypeAlias = Callable[[AuthRequest], str]
    Verify: TypeAlias = Callable[[AuthRequest, str], Awaitable[None]]

__all__ = ["Door", "DoorHost", "Place"]

# What accept() says when there is no room for one more socket; it passes.
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
ACCEPT_PAUSE = 0.1


class Place(Protocol):
    """Where to listen: the part of a plugin's options that says so."""

    @property
    def port(self) -> int:
        """The TCP port; 0 takes a free one."""

    @property
    def host(self) -> str:
        """The address to listen on."""

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """A server's TLS context; None listens without TLS."""


class DoorHost(LinkHost, Protocol):
    """The plugin's side of its door."""

    @property
    def is_parting(self) -> bool:
        """Whether no link is wanted any more."""

    def adopt(self, link: Link) -> None:
        """Take a link into use whose peer's token is right; ``link.account`` is set."""

    def link_lost(self, link: Link, reason: str) -> None:
        """Take note that a link is lost, whether it was adopted or not."""


class Door:
    """Accepts connections and authenticates them.

    Args:
        host: The plugin.
        place: Where to listen.
        identify: Gives the account that an auth packet speaks for, or raises ``BadAuthError``; decides all that can
            be decided without waiting.
        verify: Looks up whether the token is the account's and raises ``BadAuthError`` if it is not; None when
            ``identify`` decides alone. What the peer sends meanwhile is held.
        refuse: Gives the HTTP status that a handshake is refused with, or None.
    """

    def __init__(
        self,
        host: DoorHost,
        place: Place,
        identify: Identify,
        verify: Verify | None,
        refuse: Callable[[Handshake], int | None],
    ) -> None:
        self._host = host
        self._place = place
        self._identify = identify
        self._verify = verify
        self._refuse_handshake = refuse
        self._gate = Gate(host.options)
        self._bound: tuple[str, int] = (place.host, place.port)

    @property
    def address(self) -> str:
        """The URL to dial, without credentials; its port is the bound one while the plugin listens."""
        host, port = self._bound
        shown = f"[{host}]" if ":" in host else host
        return f"btp+ws{'s' if self._place.ssl_context else ''}://{shown}:{port}"

    async def run(self, listening: Callable[[], None]) -> None:
        """Listen, report it, and serve.

        Raises:
            OSError: The address cannot be listened on.

        Cancellation: Stops listening and drops those who are not authenticated yet.
        """
        host, port = self._place.host, self._place.port
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        bound = listeners[0].socket.getsockname()
        self._bound = (host, bound[1])
        async with AsyncExitStack() as stack:
            strangers = await stack.enter_async_context(trio.open_nursery())
            for listener in listeners:
                await stack.enter_async_context(listener)
                strangers.start_soon(self._accept, listener, strangers)
            listening()
            await trio.sleep_forever()

    async def _accept(self, listener: trio.SocketListener, strangers: trio.Nursery) -> None:
        """Accept for ever; unlike Trio's own loop this one leaves a stream open when its task ends."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                self._host.log.error("cannot accept connections for now: %s", error)
                await trio.sleep(ACCEPT_PAUSE)
            else:
                strangers.start_soon(self._admit, stream)

    async def _admit(self, stream: trio.SocketStream) -> None:
        """Bring one connection through the handshake and the authentication, or drop it."""
        try:
            peer = str(stream.socket.getpeername()[0])
        except OSError:
            # It came and went.
            await trio.aclose_forcefully(stream)
            return
        with self._gate.visit(peer) as welcome:
            if not welcome:
                await trio.aclose_forcefully(stream)
                return
            websocket = await self._shake_hands(stream, peer)
            if websocket is not None:
                await self._authenticate(websocket)

    async def _shake_hands(self, stream: trio.SocketStream, peer: str) -> WebSocket | None:
        options = self._host.options
        secured: trio.abc.Stream = stream
        websocket = None
        try:
            with trio.move_on_after(options.handshake_timeout):
                if self._place.ssl_context is not None:
                    secured = trio.SSLStream(stream, self._place.ssl_context, server_side=True, https_compatible=True)
                    await secured.do_handshake()
                websocket = await accept_websocket(
                    secured, self._host.tasks, options, peer=peer, refuse=self._refuse_handshake
                )
        except (BadHandshakeError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError) as error:
            self._host.log.debug("handshake with %s failed: %s", peer, error)
        finally:
            if websocket is None:
                await trio.aclose_forcefully(stream)
        return websocket

    async def _authenticate(self, websocket: WebSocket) -> None:
        visitor = _Visitor(self._host, self._identify, self._verify, websocket)
        link = visitor.link
        try:
            with trio.move_on_after(self._host.options.auth_timeout):
                link.begin(visitor.receive)
                await visitor.settle()
            if visitor.refusal is not None:
                await self._refuse(link, visitor.refusal)
        finally:
            if not link.is_open:
                link.abort("not authenticated")

    async def _refuse(self, link: Link, error: BadAuthError) -> None:
        self._host.log.info("refused a connection from %s: %s", link.peer, error)
        await trio.sleep(self._gate.failure_delay(link.peer))
        if error.request_id is not None:
            link.send_unauthenticated(auth_refused(error.request_id, str(error)))
        with trio.move_on_after(self._host.options.auth_timeout):
            await link.drain()
            await link.close()


class _Visitor:
    """One connection until it is let in or turned away."""

    __slots__ = ("_claim", "_gone", "_heard", "_host", "_identify", "_verify", "link", "refusal")

    def __init__(self, host: DoorHost, identify: Identify, verify: Verify | None, websocket: WebSocket) -> None:
        self._host = host
        self._identify = identify
        self._verify = verify
        # Set by the first packet, or by the loss of the link.
        self._heard = trio.Event()
        self._gone = False
        self._claim: tuple[AuthRequest, str] | None = None
        self.refusal: BadAuthError | None = None
        self.link: Link = Link(host, websocket, self._lost)

    def receive(self, message: bytes) -> None:
        """Take the first packet, and hold what comes behind it while its claim is looked up."""
        if self._heard.is_set():
            # What a refusal is followed by is nobody's.
            if self._claim is not None:
                self.link.hold(message)
            return
        self._heard.set()
        try:
            request = read_auth(message, max_entries=self._host.options.max_entries)
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
        if not self._gone and not self._host.is_parting:
            self.link.account = account
            self.link.send_unauthenticated(auth_accepted(request.request_id))
            self._host.adopt(self.link)

    def _lost(self, link: Link, reason: str) -> None:
        self._gone = True
        self._heard.set()
        self._host.link_lost(link, reason)
