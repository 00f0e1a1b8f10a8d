"""The end that accepts: it authenticates connections to its own port and external connections, and attaches them.

Invariant: a connection has no visible effect before its peer is authenticated, and an unauthenticated peer affects no
other peer. This holds for external connections too.
"""

from __future__ import annotations

import ssl
from abc import abstractmethod
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import trio

from ..errors import NotConnectedError
from ..net.admission import Admission
from ..net.descriptors import unauthenticated_limit
from ..net.forwarded import client_address, has_proxy_elsewhere, is_trusted
from ..net.listen import NAMELESS, Listener, peer_address
from ..net.proxy_protocol import BadProxyHeaderError, read_proxy_header
from ..net.shared_reader import SocketReaders, can_share
from ..net.sockets import abort_stream, explain_failure
from ..plugin import LedgerPlugin
from ..runtime.handlers import check_async
from ..websocket.connection import Accepted, accept_websocket
from ..websocket.messages import MessageStream
from ..websocket.requests import BadHandshakeError
from .auth import BadAuthError, auth_refused
from .link import Link
from .pending import PendingConnection
from .sub_protocols import checked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ..net.admission import PendingPeer
    from ..runtime.context import Context
    from ..websocket.connection import WebSocket, WebSocketConnection
    from ..websocket.interface import WebSocketTransport
    from ..websocket.requests import Handshake
    from .pending import Decisions
    from .sub_protocols import OnMessage

    Handshakes: TypeAlias = Callable[[PendingPeer], Awaitable[WebSocketTransport | None]]

__all__ = ["BtpServer", "Server"]


class Server:
    """Accepts connections and authenticates them.

    Args:
        context: What the parts of the plugin share.
        ids: Where request ids come from.
        host: The address to listen on; None for every address, IPv4 and IPv6.
        port: The TCP port; 0 chooses a free one, None opens no port.
        ssl_context: The TLS context of the port; None listens without TLS.
        proxy_protocol: Whether connections to the port begin with a header of the PROXY protocol.
        decisions: What the plugin decides about connections.
        refuse: Returns the HTTP status with which to refuse a handshake; None accepts it.
    """

    def __init__(
        self,
        context: Context,
        ids: Iterator[int],
        *,
        host: str | None,
        port: int | None,
        ssl_context: ssl.SSLContext | None,
        proxy_protocol: bool,
        decisions: Decisions,
        refuse: Callable[[Handshake], int | None],
    ) -> None:
        self._context = context
        self._ssl_context = ssl_context
        self._proxy_protocol = proxy_protocol
        self._ids = ids
        self._decisions = decisions
        self._refuse_handshake = refuse
        self._admission = Admission(context.options, context.counters, context.log)
        self._listener = Listener(
            context.log,
            host,
            port,
            self._serve_own,
            self._admission.make_room,
            is_clear=ssl_context is None and not has_proxy_elsewhere(context.options.trusted_proxies),
        )
        # For the sockets of the own port: the application cannot close them.
        self._readers = SocketReaders(context.tasks) if can_share() else None

    @property
    def address(self) -> str:
        """The URL to dial, without credentials; its port is the bound one while the plugin listens.

        Empty without a port.
        """
        location = self._listener.location
        return f"btp+ws{'s' if self._ssl_context else ''}://{location}" if location else ""

    async def run(self, listening: Callable[[], None]) -> None:
        """Listen and serve until cancelled.

        Args:
            listening: Called once the port is bound.

        Raises:
            OSError: The port cannot be opened.

        Cancellation: Stops listening, drops unauthenticated connections, and ends every external connection.
        """
        self._admission.limit = unauthenticated_limit()
        await self._listener.run(listening)

    async def _serve_own(self, stream: trio.SocketStream, peer: str) -> bool:
        """Authenticate one connection to the own port; returns False if it must be closed."""
        handshakes = partial(
            self._shake_hands, stream, self._ssl_context, self._readers, proxy_protocol=self._proxy_protocol
        )
        return await self._admit(peer, handshakes) is not None

    # External connections.

    async def serve_stream(self, stream: trio.abc.Stream, peer: str) -> None:
        """Serve a stream from its opening handshake to its end; see ``BtpServer.serve_stream``."""
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"stream is a trio.abc.Stream, not {type(stream).__name__}")
        # OSError: the peer has left already. The handshake will fail.
        with suppress(OSError):
            peer = peer or peer_address(stream)
        peer = peer or NAMELESS
        handshakes = partial(self._shake_hands, stream, None, None)
        await self._serve_external(peer, handshakes, partial(abort_stream, stream))

    async def serve_websocket(self, accepted: Accepted, peer: str) -> None:
        """Serve an accepted connection to its end; see ``BtpServer.serve_websocket``."""
        peer = peer or accepted.address or NAMELESS

        async def open_messages(pending: PendingPeer) -> MessageStream:
            await trio.lowlevel.checkpoint()
            pending.path = accepted.path
            return MessageStream(accepted, self._context.tasks, self._context.options, peer)

        await self._serve_external(peer, open_messages, accepted.finish)

    async def _serve_external(self, peer: str, handshakes: Handshakes, close: Callable[[], Awaitable[None]]) -> None:
        if not self._decisions.is_wanted():
            raise NotConnectedError("connect() the plugin first; the connection was not touched")
        with self._listener.external_connection():
            async with AsyncExitStack() as stack:
                stack.push_async_callback(close)
                connection = await self._admit(peer, handshakes)
                if connection is not None:
                    stack.callback(connection.link.abort, "the task that served the connection was cancelled")
                    await connection.transport.wait_closed()

    # Unauthenticated connections.

    async def _admit(self, peer: str, handshakes: Handshakes) -> PendingConnection | None:
        """Do the handshake and the authentication; None if the handshake failed, or the peer had to make way."""
        with self._admission.admit(peer) as pending:
            transport = await handshakes(pending)
            if transport is not None:
                pending.progress()
                return await self._authenticate(transport, pending)
        return None

    async def _shake_hands(
        self,
        stream: trio.abc.Stream,
        ssl_context: ssl.SSLContext | None,
        readers: SocketReaders | None,
        pending: PendingPeer,
        *,
        proxy_protocol: bool = False,
    ) -> WebSocket | None:
        options = self._context.options
        secured = stream
        websocket = None
        reason = ""

        def refuse(handshake: Handshake) -> int | None:
            pending.come_from(client_address(pending.address, handshake.forwarded_for, options.trusted_proxies))
            pending.path = handshake.path
            # A client that was disconnected dials again at once. Dropped later, it would suspect its token.
            return self._refuse_handshake(handshake) if self._decisions.is_wanted() else 503

        try:
            with trio.move_on_after(options.handshake_timeout) as scope:
                if proxy_protocol:
                    pending.come_from(await self._read_client_address(stream, pending.address))
                if ssl_context is not None:
                    secured = tls = trio.SSLStream(stream, ssl_context, server_side=True, https_compatible=True)
                    await tls.do_handshake()
                    pending.progress()
                websocket = await accept_websocket(
                    secured, self._context.tasks, options, peer=pending.address, refuse=refuse, readers=readers
                )
                websocket.peer = pending.address
            if scope.cancelled_caught:
                reason = f"it took longer than {options.handshake_timeout:g} s"
        except (BadHandshakeError, BadProxyHeaderError) as error:
            if error.is_check:
                self._context.log.debug("%s looked whether this server is there: %s", pending.address, error)
            else:
                reason = str(error)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError) as error:
            reason = explain_failure(error)
        finally:
            if websocket is None:
                await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
        if reason:
            self._context.log.info("the handshake with %s failed: %s", pending.address, reason)
        return websocket

    async def _read_client_address(self, stream: trio.abc.Stream, peer: str) -> str:
        """Read a header of the PROXY protocol, and return the client's address.

        Raises:
            BadProxyHeaderError: There is no such header, or it does not come from a trusted proxy.
        """
        if not is_trusted(peer, self._context.options.trusted_proxies):
            raise BadProxyHeaderError("it does not come from one of trusted_proxies, as proxy_protocol requires")
        return await read_proxy_header(stream) or peer

    async def _authenticate(self, transport: WebSocketTransport, pending: PendingPeer) -> PendingConnection:
        connection = PendingConnection(self._context, self._ids, self._decisions, transport, pending)
        link = connection.link
        timeout = self._context.options.auth_timeout
        try:
            with trio.move_on_after(timeout) as scope:
                link.begin(connection.receive)
                await connection.settle()
            if scope.cancelled_caught:
                connection.time_out(timeout)
            if connection.refusal is not None:
                await self._refuse(link, connection.refusal)
            elif link.is_lost:
                # The link may be sending a Close with the reason; its timer aborts that if it takes too long.
                await transport.wait_closed()
        finally:
            if not link.is_open:
                link.abort("not authenticated")
        return connection

    async def _refuse(self, link: Link, error: BadAuthError) -> None:
        if error.is_temporary:
            named = f" for account {error.account}" if error.account else ""
            self._context.log.info("refused a connection from %s%s for now: %s", link.peer, named, error)
        else:
            await trio.sleep(self._admission.refuse("a connection", link.peer, error.account, error))
        if error.request_id is not None:
            link.send_unauthenticated(auth_refused(error.request_id, str(error), is_temporary=error.is_temporary))
        with trio.move_on_after(self._context.options.auth_timeout):
            await link.finish()


class BtpServer(LedgerPlugin):
    """Serves external connections, for ``btp`` with a ``listener`` and for ``btp-accounts``.

    An external connection is treated like one to the plugin's port: the same authentication, limits and timeouts apply,
    and the plugin's tasks do the work. With ``port=None``, the plugin has external connections only.
    """

    @property
    @abstractmethod
    def server(self) -> Server:
        """The server that accepts connections.

        Raises:
            InvalidFieldsError: This plugin dials.
        """

    def register_message_handler(self, on_message: OnMessage) -> None:
        """Set the handler of messages whose first entry is not ``ilp`` (RFC-0023, sub-protocols).

        Without one, such a message gets an Error.

        Args:
            on_message: ``async (account, protocol_data) -> protocol_data``. It is called with the sender's account,
                which is empty for a plugin with one peer, and all entries of the message. It returns the entries of
                the response. The same limits apply as to a data handler.

        Raises:
            TypeError: ``on_message`` is not an async function, or cannot be called with two arguments.
            DataHandlerAlreadyRegisteredError: One is set already.
        """
        check_async("message", on_message, "account", "protocol_data")
        self.handlers.register_message(checked(on_message, self.options.max_message_bytes))

    def deregister_message_handler(self) -> None:
        """Remove the handler of messages, if one is set; running calls finish."""
        self.handlers.deregister_message()

    def drop_downgraded(self) -> None:
        """Drop the links that became PLAIN because this end's journal was not open; the clients connect again."""
        if self.money.offer() is not None:
            for link in self.exchanges():
                if isinstance(link, Link) and link.is_downgraded:
                    link.abort("the journal of transfers was not open; now it is")

    async def serve_stream(self, stream: trio.abc.Stream, *, peer: str = "") -> None:
        """Serve a stream that the application's own listener accepted, from the WebSocket handshake to its end.

        It is as fast as a connection to the plugin's port, and the same rules apply to an ``Origin`` header. Returns
        when the connection has ended, for any reason: it was refused, the peer left, a newer connection replaced it, or
        the plugin was disconnected or closed. The stream is closed then.

        Args:
            stream: The stream; with TLS, a ``trio.SSLStream``. Nothing else may use it after this call.
            peer: The peer's address, for logs and for the limits by address. If empty, it is taken from the stream.
                Limits by address do not apply to a stream without an IP address.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: This plugin dials, it has no ``listener``.
            NotConnectedError: The plugin is not connected. The stream is left as it was, as with every error here.
            PluginClosedError: The plugin was closed before.
            PluginFailedError: The plugin had failed before.

        Cancellation: Ends the connection at once; its calls fail with ``ConnectionLostError``. The plugin goes on.
        """
        _check_peer(peer)
        server = self.server
        self.check_usable()
        await server.serve_stream(stream, peer)

    async def serve_websocket(self, connection: WebSocketConnection, *, peer: str = "") -> None:
        """Serve a connection that the application accepted with trio-websocket.

        The application has checked the handshake: the path, the ``Origin`` header and the sub-protocol. trio-websocket
        continues to read the connection, which is slower than ``serve_stream``. Returns when the connection has ended
        and is closed, as ``serve_stream`` does.

        Args:
            connection: The result of ``request.accept()``. Nothing else may use it after this call. Its
                ``max_message_size`` bounds the memory that an unauthenticated peer's message can take, and should be
                this plugin's ``max_message_bytes``. A longer message ends the connection.
            peer: As for ``serve_stream``.

        Raises:
            TypeError: An argument has another type, or the connection is a client's.
            InvalidFieldsError: This plugin dials, it has no ``listener``.
            NotConnectedError: The plugin is not connected. The connection is left as it was, as with every error here.
            PluginClosedError: The plugin was closed before.
            PluginFailedError: The plugin had failed before.

        Cancellation: As with ``serve_stream``.
        """
        _check_peer(peer)
        server = self.server
        self.check_usable()
        await server.serve_websocket(Accepted(connection), peer)


def _check_peer(peer: object) -> None:
    if not isinstance(peer, str):
        raise TypeError(f"peer is text, not {type(peer).__name__}")
