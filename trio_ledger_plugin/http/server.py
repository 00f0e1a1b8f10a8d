"""The end that accepts: it reads requests from its own port and from external connections, and answers them.

Invariants: a connection is unauthenticated until a head with the right credentials has come over it. It has one request
at a time; what a peer sends ahead waits, within a bound.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from ..errors import NotConnectedError
from ..net.admission import Admission
from ..net.descriptors import unauthenticated_limit
from ..net.forwarded import has_proxy_elsewhere
from ..net.listen import NAMELESS, Listener, peer_address
from ..net.shared_reader import SocketReaders, can_share
from ..net.sockets import abort_stream, accept_tls, explain_failure
from .connection import ServerConnection, Serving
from .heads import Heads, read_request_head
from .pool import ALPN

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.context import Context
    from ..runtime.timers import Scheduled
    from .gate import Gate
    from .options import IncomingOptions

__all__ = ["HttpServer"]

# How often connections are looked at for their deadlines.
LOOK_SECONDS = 1.0
# How long a newcomer waits for room before others make way.
ROOM_SECONDS = 1.0


class HttpServer:
    """Accepts connections and serves their requests.

    Args:
        context: What the parts of the plugin share.
        incoming: Where to listen.
        gate: Judges requests.
        is_wanted: Returns whether connections are still wanted: False while the plugin disconnects or closes.
    """

    def __init__(
        self, context: Context, incoming: IncomingOptions, gate: Gate, *, is_wanted: Callable[[], bool]
    ) -> None:
        self.context: Context = context
        self.gate: Gate = gate
        self.is_wanted: Callable[[], bool] = is_wanted
        self._ssl_context = incoming.ssl_context
        if incoming.ssl_context is not None:
            incoming.ssl_context.set_alpn_protocols(ALPN)
        self.admission: Admission = Admission(context.options, context.counters, context.log)
        self._left = trio.lowlevel.ParkingLot()
        self._listener = Listener(
            context.log,
            incoming.host,
            incoming.port,
            self._serve_own,
            self.admission.make_room,
            is_clear=incoming.ssl_context is None and not has_proxy_elsewhere(context.options.trusted_proxies),
        )
        self._readers = SocketReaders(context.tasks) if can_share() else None
        heads = Heads(read_request_head)
        self._serving = Serving(context, gate, heads, self.admission, self._readers, is_wanted)
        self._connections: dict[ServerConnection, None] = {}
        # Looks at the connections, while there are some.
        self._watch: Scheduled | None = None

    @property
    def address(self) -> str:
        """The URL of the endpoint, without its path; its port is the bound one while the plugin listens."""
        location = self._listener.location
        return f"http{'s' if self._ssl_context else ''}://{location}" if location else ""

    async def run(self, listening: Callable[[], None]) -> None:
        """Listen and serve until cancelled.

        Args:
            listening: Called once the port is bound.

        Raises:
            OSError: The port cannot be opened.

        Cancellation: Stops listening, and drops every connection.
        """
        self.admission.limit = unauthenticated_limit()
        await self._listener.run(listening)

    async def serve_stream(self, stream: trio.abc.Stream, peer: str) -> None:
        """Serve a stream to its end; see ``HttpEndpoint.serve_stream``."""
        if not isinstance(stream, trio.abc.Stream):
            raise TypeError(f"stream is a trio.abc.Stream, not {type(stream).__name__}")
        if not self.is_wanted():
            raise NotConnectedError("connect() the plugin first; the connection was not touched")
        # OSError: the peer has left already.
        with suppress(OSError):
            peer = peer or peer_address(stream)
        with self._listener.external_connection():
            try:
                await self._serve(stream, peer or NAMELESS, None)
            finally:
                await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)

    async def _serve_own(self, stream: trio.SocketStream, peer: str) -> bool:
        return await self._serve(stream, peer, self._ssl_context)

    async def _serve(self, stream: trio.abc.Stream, peer: str, context: ssl.SSLContext | None) -> bool:
        """Serve a connection to its end, and return whether it was authenticated; if it was, it is closed."""
        is_authenticated = False
        # A burst of a good peer's soon makes room. Otherwise the connection that has waited longest makes way.
        with trio.move_on_after(ROOM_SECONDS):
            while not self.admission.has_room(peer):
                await self._left.park()
        with self.admission.admit(peer) as pending:

            def leave() -> None:
                pending.leave()
                self._left.unpark_all()

            def authenticated() -> None:
                nonlocal is_authenticated
                is_authenticated = True
                leave()

            try:
                seconds = self.context.options.handshake_timeout
                secured = stream if context is None else await accept_tls(stream, context, seconds)
                if secured is not None:
                    pending.progress()
                    await self._run(ServerConnection(self._serving, secured, peer, authenticated))
            except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError, OSError) as error:
                self.context.log.debug("a connection from %s ended: %s", peer, explain_failure(error))
            finally:
                leave()
        return is_authenticated

    async def _run(self, connection: ServerConnection) -> None:
        self._connections[connection] = None
        if self._readers is not None:
            self._readers.streams += 1
        if self._watch is None:
            self._watch = self.context.timers.schedule(self, trio.current_time() + LOOK_SECONDS)
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            if not self._connections and self._watch is not None:
                # The plugin's tasks may end now, and their timers with them.
                self.context.timers.cancel(self._watch)
                self._watch = None
            if self._readers is not None:
                self._readers.streams -= 1
            connection.close()

    def fire(self, now: float) -> float:
        """Close the connections that are past their deadline, and return when to look again."""
        for connection in tuple(self._connections):
            if connection.deadline <= now:
                connection.close()
        return now + LOOK_SECONDS
