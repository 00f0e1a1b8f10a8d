"""A TCP relay inside the demo's process, which can stall and cut what goes through it."""

from __future__ import annotations

from contextlib import suppress

import trio

__all__ = ["Relay"]

CHUNK_BYTES = 64 * 1024


class Relay:
    """Passes connections of a port of its own on to another port of this machine.

    Args:
        target: The port to pass on to.

    Attributes:
        port: The relay's own port, once it runs.
    """

    def __init__(self, target: int) -> None:
        self.port: int = 0
        self._target = target
        self._passing = trio.Event()
        self._passing.set()
        self._broken = False
        self._pairs: set[trio.CancelScope] = set()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Relay until cancelled.

        Cancellation: Every connection is dropped.
        """
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = int(listeners[0].socket.getsockname()[1])
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._serve, listeners)
            task_status.started()

    def stall(self) -> None:
        """Hold back all bytes from now on, until ``mend()``."""
        self._passing = trio.Event()

    def cut(self) -> None:
        """Drop every connection, and each new one until ``mend()``."""
        self._broken = True
        for pair in self._pairs:
            pair.cancel()

    def mend(self) -> None:
        """Pass bytes and take connections again."""
        self._broken = False
        self._passing.set()

    async def _serve(self, near: trio.SocketStream) -> None:
        if self._broken:
            return
        with trio.CancelScope() as pair, suppress(OSError, trio.BrokenResourceError):
            self._pairs.add(pair)
            try:
                async with await trio.open_tcp_stream("127.0.0.1", self._target) as far, trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, nursery.cancel_scope)
                    nursery.start_soon(self._pump, far, near, nursery.cancel_scope)
            finally:
                self._pairs.discard(pair)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, both: trio.CancelScope) -> None:
        """Pass bytes one way; when one end closes, both are closed."""
        with suppress(trio.BrokenResourceError):
            while chunk := await source.receive_some(CHUNK_BYTES):
                await self._passing.wait()
                await sink.send_all(chunk)
        both.cancel()
