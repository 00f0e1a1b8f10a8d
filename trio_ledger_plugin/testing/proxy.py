"""A proxy that passes bytes between the two ends of a connection, and injects faults.

Invariants: it adds, loses and reorders bytes only as a requested fault; and nothing of it outlives its block. When one
end closes, the proxy closes the other side; when one end breaks, it breaks the other side.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from math import inf
from typing import Final, TypeAlias

import trio

from ..net.sockets import abort_stream
from .faults import Direction, Fault, FaultKind, Faults, RandomFaults

__all__ = ["FaultProxy", "ProxiedConnection", "open_fault_proxy"]

CHUNK: Final = 64 * 1024
# A socket with this option sends a reset when it is closed.
LINGER_ZERO: Final = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)

Target: TypeAlias = tuple[str, int] | Callable[[], Awaitable[trio.abc.Stream]]


class _Flow:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.passed = 0
        self._flowing = trio.Event()
        self._flowing.set()
        self._stalled_until = -inf
        self._delay = 0.0
        self._piece = CHUNK
        self._to_drop = 0
        self._to_repeat = 0
        self._repeated = b""

    def stall(self, seconds: float = inf) -> None:
        if self._flowing.is_set():
            self._flowing = trio.Event()
            self._stalled_until = -inf
        self._stalled_until = max(self._stalled_until, trio.current_time() + seconds)

    def resume(self) -> None:
        self._flowing.set()

    def apply(self, fault: Fault) -> None:
        """Apply a fault that does not end the connection to the next bytes."""
        if fault.kind is FaultKind.STALL:
            self.stall(fault.seconds)
        elif fault.kind is FaultKind.DELAY:
            self._delay = fault.seconds
        elif fault.kind is FaultKind.SLICE:
            self._piece = fault.size
        elif fault.kind is FaultKind.DROP:
            self._to_drop += fault.size
        else:
            self._to_repeat += fault.size

    async def run(
        self,
        source: trio.abc.Stream,
        sink: trio.abc.Stream,
        due: Iterator[Fault],
        apply: Callable[[Fault], None],
    ) -> None:
        """Pass bytes until the source ends; apply each fault after its number of bytes."""
        at_end = False
        for fault in due:
            assert fault.at_byte is not None
            at_end = await self._pass(source, sink, fault.at_byte)
            if at_end:
                break
            apply(fault)
        if not at_end:
            await self._pass(source, sink, inf)
        await self._hold()
        if isinstance(sink, trio.abc.HalfCloseableStream):
            await sink.send_eof()
        else:
            await sink.aclose()

    async def _pass(self, source: trio.abc.Stream, sink: trio.abc.Stream, end: float) -> bool:
        """Pass bytes up to a total count; return whether the source ended first."""
        while self.passed < end:
            data = await source.receive_some(int(min(CHUNK, end - self.passed)))
            if not data:
                return True
            self.passed += len(data)
            await self._hold()
            for changed in self._changed(bytes(data)):
                rest = changed
                while rest:
                    # The size of pieces may change during the send.
                    piece, rest = rest[: self._piece], rest[self._piece :]
                    await sink.send_all(piece)
        return False

    async def _hold(self) -> None:
        await trio.sleep(self._delay)
        # It may be stalled again while it waits.
        while not self._flowing.is_set():
            with trio.move_on_at(self._stalled_until):
                await self._flowing.wait()
            if trio.current_time() >= self._stalled_until:
                self._flowing.set()

    def _changed(self, data: bytes) -> list[bytes]:
        """Return the pieces that replace some bytes."""
        dropped = min(self._to_drop, len(data))
        self._to_drop -= dropped
        data = data[dropped:]
        if not self._to_repeat:
            return [data]
        again, data = data[: self._to_repeat], data[self._to_repeat :]
        self._to_repeat -= len(again)
        self._repeated += again
        if self._to_repeat:
            return [again]
        repeated, self._repeated = self._repeated, b""
        return [again, repeated, data]


class ProxiedConnection:
    """One connection through the proxy.

    Attributes:
        number: Its number, counted from 0.
        happened: The faults of the schedule that have taken effect, in order.
    """

    def __init__(self, number: int) -> None:
        self.number: int = number
        self.happened: list[Fault] = []
        self._flows = {direction: _Flow() for direction in Direction}
        self._scope = trio.CancelScope()
        self._reset = False

    def bytes_passed(self, direction: Direction) -> int:
        """Return how many bytes came in one direction, including dropped ones."""
        return self._flows[direction].passed

    def cut(self) -> None:
        """Close both sides; bytes in transit are lost."""
        self._scope.cancel()

    def reset(self) -> None:
        """Close both sides, with a TCP reset if they are sockets."""
        self._reset = True
        self._scope.cancel()

    def stall(self, direction: Direction | None = None) -> None:
        """Stop passing bytes, and the end of the stream, in one direction or both until ``resume()``."""
        for flow in self._chosen(direction):
            flow.stall()

    def resume(self, direction: Direction | None = None) -> None:
        """End a stall in one direction or both, and pass the held bytes."""
        for flow in self._chosen(direction):
            flow.resume()

    def _chosen(self, direction: Direction | None) -> list[_Flow]:
        return list(self._flows.values()) if direction is None else [self._flows[direction]]

    def _apply(self, fault: Fault) -> None:
        self.happened.append(fault)
        if fault.kind is FaultKind.CUT:
            self.cut()
        elif fault.kind is FaultKind.RESET:
            self.reset()
        else:
            self._flows[fault.direction].apply(fault)

    async def _run(
        self,
        client: trio.abc.Stream,
        connect: Callable[[], Awaitable[trio.abc.Stream]],
        faults: tuple[Fault, ...] | RandomFaults,
    ) -> None:
        """Pass bytes until both ends have ended, one breaks, or a fault ends the connection; then close both."""
        async with AsyncExitStack() as ends:
            ends.push_async_callback(abort_stream, client)
            target: trio.abc.Stream | None = None
            try:
                with self._scope:
                    target = await connect()
                    ends.push_async_callback(abort_stream, target)
                    await self._relay(client, target, faults)
            except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                self._reset = True
            if self._reset:
                _reset_when_closed(client)
                _reset_when_closed(target)

    async def _relay(
        self, client: trio.abc.Stream, target: trio.abc.Stream, faults: tuple[Fault, ...] | RandomFaults
    ) -> None:
        ways = {Direction.TO_TARGET: (client, target), Direction.FROM_TARGET: (target, client)}
        async with trio.open_nursery() as timers:
            for fault in () if isinstance(faults, RandomFaults) else faults:
                if fault.after is not None and fault.connection in (None, self.number):
                    timers.start_soon(self._apply_later, fault, fault.after)
            async with trio.open_nursery() as nursery:
                for direction, (source, sink) in ways.items():
                    due = _due(faults, self.number, direction)
                    nursery.start_soon(self._flows[direction].run, source, sink, due, self._apply)
            timers.cancel_scope.cancel()

    async def _apply_later(self, fault: Fault, seconds: float) -> None:
        await trio.sleep(seconds)
        self._apply(fault)


class FaultProxy:
    """A proxy, opened by ``open_fault_proxy()``.

    Its methods act at once on every open connection.

    Attributes:
        address: The host and port to connect to; None if the proxy has no port.
        seed: The seed of the random faults; None if there are none.
    """

    def __init__(self, target: Target, faults: Faults) -> None:
        self._target = target
        self._faults = faults if isinstance(faults, RandomFaults) else tuple(faults)
        self._connections: dict[int, ProxiedConnection] = {}
        self._stalled: set[Direction] = set()
        self._opened = 0
        self.address: tuple[str, int] | None = None
        self.seed: int | None = faults.seed if isinstance(faults, RandomFaults) else None

    @property
    def connections(self) -> tuple[ProxiedConnection, ...]:
        """The open connections, oldest first."""
        return tuple(self._connections.values())

    @property
    def opened(self) -> int:
        """How many connections there have been."""
        return self._opened

    def cut(self) -> None:
        """Close both sides of every connection; bytes in transit are lost."""
        for connection in self.connections:
            connection.cut()

    def reset(self) -> None:
        """Close both sides of every connection, with a TCP reset if they are sockets."""
        for connection in self.connections:
            connection.reset()

    def stall(self, direction: Direction | None = None) -> None:
        """Stop passing bytes in one direction or both until ``resume()``, on new connections too."""
        self._stalled |= set(Direction) if direction is None else {direction}
        for connection in self.connections:
            connection.stall(direction)

    def resume(self, direction: Direction | None = None) -> None:
        """End every stall in one direction or both, and pass the held bytes."""
        self._stalled -= set(Direction) if direction is None else {direction}
        for connection in self.connections:
            connection.resume(direction)

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve a client's stream, such as one end of a memory stream, until the connection has ended.

        Args:
            stream: The client's connection, which is closed on return.

        Cancellation: Both sides are closed at once.
        """
        number = self._opened
        self._opened += 1
        connection = self._connections[number] = ProxiedConnection(number)
        for direction in self._stalled:
            connection.stall(direction)
        try:
            await connection._run(stream, self._connect, self._faults)
        finally:
            del self._connections[number]

    async def _connect(self) -> trio.abc.Stream:
        if callable(self._target):
            return await self._target()
        host, port = self._target
        return await trio.open_tcp_stream(host, port)


@asynccontextmanager
async def open_fault_proxy(
    target: Target,
    *,
    faults: Faults = (),
    host: str = "127.0.0.1",
    port: int | None = 0,
) -> AsyncIterator[FaultProxy]:
    """Open a proxy to a target for the length of a block, with faults in what passes through it.

    Args:
        target: The host and port to connect to; or an async function that returns a stream to the target, such as one
            end of a memory stream. If the target cannot be reached, the client's connection is reset.
        faults: A schedule, or ``RandomFaults``. An error that leaves the block has the seed in a note.
        host: The address to listen on.
        port: The TCP port; 0 takes a free one, which is in ``proxy.address``. None opens no port: pass connections to
            ``serve_stream()``. Without sockets a ``MockClock`` works.

    Yields:
        The proxy. At the end of the block its connections are closed at once.

    Raises:
        OSError: The proxy cannot listen on the port.

    Cancellation: Closes everything at once.
    """
    proxy = FaultProxy(target, faults)
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            if port is not None:
                listeners = await nursery.start(partial(trio.serve_tcp, proxy.serve_stream, port, host=host))
                proxy.address = host, listeners[0].socket.getsockname()[1]
            yield proxy
        except Exception as raised:  # noqa: BLE001 (raised again below, outside the nursery, which would make a group of it)
            error = raised
        nursery.cancel_scope.cancel()
    if error is not None:
        if proxy.seed is not None:
            error.add_note(f"fault proxy: RandomFaults(seed={proxy.seed})")
        raise error


def _due(faults: tuple[Fault, ...] | RandomFaults, connection: int, direction: Direction) -> Iterator[Fault]:
    """Return the faults of one direction of a connection that happen at a byte, in order."""
    if isinstance(faults, RandomFaults):
        return faults.draw(connection, direction)
    own = [
        (fault.at_byte, number, fault)
        for number, fault in enumerate(faults)
        if fault.at_byte is not None and fault.direction is direction and fault.connection in (None, connection)
    ]
    return (fault for _, _, fault in sorted(own, key=lambda entry: entry[:2]))


def _reset_when_closed(stream: trio.abc.Stream | None) -> None:
    if isinstance(stream, trio.SocketStream):
        with suppress(OSError):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
