"""Listening: the plugin's own port, and external connections, which the application accepts and hands over.

Invariant: a connection to the plugin's own port outlives the task that authenticated it. An external connection ends
with the call of the application that serves it.
"""

from __future__ import annotations

import errno
from contextlib import AsyncExitStack, contextmanager, suppress
from ipaddress import ip_address
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

from ..errors import NotConnectedError
from ..parking import start_task
from .pace import Pace
from .sockets import abort_stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ..runtime.plugin_log import PluginLog

__all__ = ["NAMELESS", "Listener", "peer_address"]

# Temporary errors of accept(): the process or the system has no room for another socket.
OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
ACCEPT_PAUSE = 0.1
# How many scheduler turns pass between two connections while each takes longer than the seconds below.
BUSY_TURNS = 24
IDLE_SECONDS = 0.0002
# So many connections may end without authentication, and then so many a second, before accepting pauses.
FAILURES: Final = 2048
FAILURES_A_SECOND: Final = 200.0
LONGEST_PAUSE: Final = 1.0
# How many connections wait in the system's queue. At the rate above they are accepted within five seconds, which is
# sooner than clients give up; in a longer queue, a flood would make all others wait in vain.
BACKLOG: Final = 1024
# How often a port is chosen that has to be free at several addresses.
PORT_TRIES = 8
# The name in logs of a peer that has no address.
NAMELESS = "a peer without an address"


class Listener:
    """Accepts connections.

    Args:
        log: Where failures to accept are logged.
        host: The address to listen on; None for every address, IPv4 and IPv6, with one port.
        port: The TCP port; 0 chooses a free one, None opens no port.
        serve: Called with each stream and its peer's IP address, in a task of its own. Returns whether the stream is in
            use; if it is not, the listener closes it.
        make_room: Called when no connection can be accepted because the process has too many open; may close one.
        is_clear: Whether nothing encrypts connections from other machines: neither this end, nor a trusted proxy there.
    """

    def __init__(
        self,
        log: PluginLog,
        host: str | None,
        port: int | None,
        serve: Callable[[trio.SocketStream, str], Awaitable[bool]],
        make_room: Callable[[], None],
        *,
        is_clear: bool,
    ) -> None:
        self._is_clear = is_clear
        self._log = log
        self._host = host
        self._port = port
        self._serve = serve
        self._make_room = make_room
        self._bound_port: int | None = port
        self._failures = Pace(FAILURES, FAILURES_A_SECOND, LONGEST_PAUSE)
        self._accept_at = -inf
        # The scopes of external connections; None while nothing listens.
        self._external: set[trio.CancelScope] | None = None

    @property
    def location(self) -> str:
        """Host and port as in a URL; the port is the bound one once it listens. Empty without a port.

        For a listener at every address, the host is ``localhost``.
        """
        if self._bound_port is None:
            return ""
        host = self._host or "localhost"
        return f"[{host}]:{self._bound_port}" if ":" in host else f"{host}:{self._bound_port}"

    async def run(self, listening: Callable[[], None]) -> None:
        """Listen and accept until cancelled.

        Args:
            listening: Called once the port is bound.

        Raises:
            OSError: The port cannot be opened.

        Cancellation: Stops listening, cancels the tasks of ``serve``, and ends every external connection.
        """
        listeners = await self._open_port()
        external: set[trio.CancelScope] = set()
        self._external = external
        try:
            async with AsyncExitStack() as stack:
                serving = await stack.enter_async_context(trio.open_nursery())
                for listener in listeners:
                    await stack.enter_async_context(listener)
                    start_task(serving, self._accept, listener, serving)
                listening()
                await trio.sleep_forever()
        finally:
            self._external = None
            for scope in external:
                scope.cancel()

    @contextmanager
    def external_connection(self) -> Iterator[None]:
        """Count an external connection within the block, which is cancelled when the listener ends.

        Raises:
            NotConnectedError: The listener does not run.
        """
        external = self._external
        if external is None:
            raise NotConnectedError("connect() the plugin first; the connection was not touched")
        with trio.CancelScope() as scope:
            external.add(scope)
            try:
                yield
            finally:
                external.discard(scope)

    async def _open_port(self) -> list[trio.SocketListener]:
        if self._port is None:
            return []
        try:
            listeners = await self._open_listeners(self._port)
        except OSError as error:
            text = f"cannot listen on {self._host or 'every address'} port {self._port}: {error.strerror or error}"
            raise OSError(error.errno, text) from error
        names = [listener.socket.getsockname() for listener in listeners]
        self._bound_port = names[0][1]
        if self._is_clear and not all(ip_address(name[0].partition("%")[0]).is_loopback for name in names):
            self._log.warn(
                "listening on %s without TLS: whoever is on the way to a client can read its token; give the server a "
                "certificate, or listen on 127.0.0.1 behind a proxy that has one",
                self.location,
            )
        return listeners

    async def _open_listeners(self, port: int) -> list[trio.SocketListener]:
        """Bind the port at every address that the host stands for, with one number even if the port is 0.

        Raises:
            OSError: The port cannot be opened.
        """
        for tries_left in reversed(range(PORT_TRIES)):
            listeners = await trio.open_tcp_listeners(port, host=self._host, backlog=BACKLOG)
            if port or len(listeners) == 1:
                return listeners
            # The system has chosen a port for each address. Keep the first one's, if it is free at the others.
            chosen: int = listeners[0].socket.getsockname()[1]
            for listener in listeners:
                await abort_stream(listener)
            try:
                return await trio.open_tcp_listeners(chosen, host=self._host, backlog=BACKLOG)
            except OSError:
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _accept(self, listener: trio.SocketListener, serving: trio.Nursery) -> None:
        """Accept for ever; unlike Trio's own loop, this one leaves a stream open when its task ends."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in OUT_OF_RESOURCES:
                    raise
                self._log.once().error("cannot accept connections for now: %s", error)
                self._make_room()
                await trio.sleep(ACCEPT_PAUSE)
            else:
                start_task(serving, self._receive, stream)
                await _yield_while_busy()
                if self._accept_at > trio.current_time():
                    # What peers cost that connect and do not authenticate is limited; others wait with them meanwhile.
                    await trio.sleep_until(self._accept_at)

    async def _receive(self, stream: trio.SocketStream) -> None:
        in_use, peer = False, NAMELESS
        try:
            # OSError: the peer has left already.
            with suppress(OSError):
                peer = peer_address(stream)
                in_use = await self._serve(stream, peer)
        except Exception as error:  # noqa: BLE001 (an error of one connection must not end the others)
            self._log.error("serving %s failed: %O", peer, error)
        if not in_use:
            self._accept_at = trio.current_time() + self._failures.delay("")
            await abort_stream(stream)


async def _yield_while_busy() -> None:
    """Let other tasks run, for some scheduler turns or until one in which they have little to do.

    So strangers who dial as fast as they can take little from the peers that are connected.
    """
    for _ in range(BUSY_TURNS):
        began = perf_counter()
        await trio.lowlevel.checkpoint()
        if perf_counter() - began < IDLE_SECONDS:
            return


def peer_address(stream: trio.abc.Stream) -> str:
    """Return the IP address of a stream's peer; empty if it has none.

    Raises:
        OSError: The peer is gone.
    """
    inner: object = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(inner, trio.SocketStream):
        return ""
    name = inner.socket.getpeername()
    return str(name[0]) if isinstance(name, tuple) else ""
