"""The end that listens for its one peer.

The law of this module: nothing of a connection is visible before its token is right. Then it takes the place of the
connection before it. Whatever a stranger does costs the stranger only.
"""

from __future__ import annotations

import errno
import ssl
from contextlib import AsyncExitStack
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Protocol

import trio

from .gate import Gate
from .link import Link, LinkHost
from .session import AuthRequest, BadAuthError, auth_accepted, auth_refused, read_auth
from .websocket import BadHandshakeError, Handshake, WebSocket, accept_websocket

if TYPE_CHECKING:
    from ..options import BtpOptions, ListenerOptions

__all__ = ["Listener", "ListenerHost"]

# What accept() says when there is no room for one more socket; it passes.
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
ACCEPT_PAUSE = 0.1


class ListenerHost(LinkHost, Protocol):
    """The plugin's side of a listener."""

    options: BtpOptions

    @property
    def is_parting(self) -> bool:
        """Whether no link is wanted any more."""

    def adopt(self, link: Link) -> None:
        """Take an authenticated link into use, in place of the one before."""

    def link_lost(self, link: Link, reason: str) -> None:
        """Take note that a link is lost."""


class Listener:
    """Accepts connections and authenticates them.

    Args:
        host: The plugin.
        options: Where to listen, and the secret.
    """

    def __init__(self, host: ListenerHost, options: ListenerOptions) -> None:
        self._host = host
        self._options = options
        self._gate = Gate(host.options)
        self._digest = sha256(options.secret.reveal().encode()).digest()
        self._bound: tuple[str, int] = (options.host, options.port)

    @property
    def address(self) -> str:
        """The URL to dial, without credentials; its port is the bound one while the plugin listens."""
        host, port = self._bound
        shown = f"[{host}]" if ":" in host else host
        return f"btp+ws{'s' if self._options.ssl_context else ''}://{shown}:{port}"

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen, report it, and serve.

        Raises:
            OSError: The address cannot be listened on.

        Cancellation: Stops listening and drops those who are not authenticated yet.
        """
        host, port = self._options.host, self._options.port
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
            task_status.started()
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
                if self._options.ssl_context is not None:
                    secured = trio.SSLStream(stream, self._options.ssl_context, server_side=True, https_compatible=True)
                    await secured.do_handshake()
                websocket = await accept_websocket(
                    secured, self._host.tasks, options, peer=peer, refuse=_refuse_browsers
                )
        except (BadHandshakeError, trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError) as error:
            self._host.log.debug("handshake with %s failed: %s", peer, error)
        finally:
            if websocket is None:
                await trio.aclose_forcefully(stream)
        return websocket

    async def _authenticate(self, websocket: WebSocket) -> None:
        options = self._host.options
        decided = trio.Event()
        refusal: list[BadAuthError] = []

        def on_message(message: bytes) -> None:
            if decided.is_set():
                return
            try:
                request = read_auth(message, max_entries=options.max_entries)
                self._check(request)
            except BadAuthError as error:
                refusal.append(error)
            else:
                if not self._host.is_parting:
                    link.send_unauthenticated(auth_accepted(request.request_id))
                    self._host.adopt(link)
            decided.set()

        def on_lost(lost: Link, reason: str) -> None:
            decided.set()
            self._host.link_lost(lost, reason)

        link = Link(self._host, websocket, on_lost)
        try:
            with trio.move_on_after(options.auth_timeout):
                link.begin(on_message)
                await decided.wait()
            if refusal:
                await self._refuse(link, refusal[0])
        finally:
            if not link.is_open:
                link.abort("not authenticated")

    def _check(self, request: AuthRequest) -> None:
        if not compare_digest(sha256(request.token).digest(), self._digest):
            raise BadAuthError("invalid auth_token", request.request_id)

    async def _refuse(self, link: Link, error: BadAuthError) -> None:
        self._host.log.info("refused a connection from %s: %s", link.peer, error)
        await trio.sleep(self._gate.failure_delay(link.peer))
        if error.request_id is not None:
            link.send_unauthenticated(auth_refused(error.request_id, str(error)))
        with trio.move_on_after(self._host.options.auth_timeout):
            await link.drain()
            await link.close()


def _refuse_browsers(handshake: Handshake) -> int | None:
    """Refuse a web page's script: it would speak with the rights of whoever looks at the page."""
    return 403 if handshake.origin is not None else None
