"""A WebSocket with a scripted peer, with the frame stream and without it."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
import trio_websocket

from support.peers import Peer, shake_hands, welcome
from support.tasks import open_tasks
from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.runtime.budget import Budget, Limits
from trio_ledger_plugin.websocket.connection import WebSocket, accept_websocket, open_websocket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["LIMIT", "OPTIONS", "Link", "connect", "open_frame_stream", "read_with_trio_websocket"]


LIMIT = 70_000


OPTIONS = PluginOptions(max_message_bytes=LIMIT, max_fragments=64)


class Link:
    """Receives from the frame stream; ``messages`` has what trio-websocket would have returned."""

    replies_blocked = 0
    is_open = True
    turns = Budget(Limits())

    async def wait_ready(self) -> None:
        """Return at once."""

    def __init__(self) -> None:
        self.messages: list[bytes | None] = []
        self.left: list[str] = []
        self.refused = 0
        self.error: Exception | None = None
        self.ended = trio.Event()

    def receive(self, message: bytes) -> None:
        assert not self.left
        self.messages.append(message)

    def receive_text(self) -> None:
        assert not self.left
        self.messages.append(None)

    def too_big(self) -> None:
        self.refused += 1

    def peer_left(self, reason: str) -> None:
        self.left.append(reason)

    def on_end(self, cancelled: bool, error: Exception | None) -> None:
        self.error = error
        self.ended.set()


async def connect(tasks: Any, near: trio.abc.Stream, far: trio.abc.Stream, *, server: bool) -> tuple[WebSocket, Peer]:
    """Perform the handshake between a WebSocket, as server or client, and a scripted peer."""
    opened: list[Any] = []

    async def ours() -> None:
        if server:
            opened.append(await accept_websocket(near, tasks, OPTIONS, peer="peer", refuse=lambda handshake: None))
        else:
            opened.append(await open_websocket(near, tasks, OPTIONS, host="host", resource="/"))

    async def theirs() -> None:
        opened.append(await (shake_hands(far) if server else welcome(far)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours)
        nursery.start_soon(theirs)
    websocket, peer = opened if isinstance(opened[0], WebSocket) else opened[::-1]
    return websocket, peer


@asynccontextmanager
async def open_frame_stream(
    *, server: bool = True, make_streams: Any = trio.testing.memory_stream_pair
) -> AsyncIterator[Any]:
    near, far = make_streams()
    async with open_tasks() as tasks:
        websocket, peer = await connect(tasks, near, far, server=server)
        link = Link()
        websocket.open(link, link.on_end)
        websocket.authenticated()
        yield link, websocket, peer


async def read_with_trio_websocket(data: bytes, *, server: bool) -> list[bytes | None]:
    """Return the messages that a plain trio-websocket connection reads from the bytes."""
    near, far = trio.testing.memory_stream_pair()
    messages: list[bytes | None] = []
    async with trio.open_nursery() as nursery:

        async def theirs() -> None:
            await (shake_hands(far) if server else welcome(far))
            await far.send_all(data)
            await far.send_eof()

        nursery.start_soon(theirs)
        if server:
            request = await trio_websocket.wrap_server_stream(nursery, near, max_message_size=LIMIT)
            connection = await request.accept()
        else:
            stream: Any = near
            connection = await trio_websocket.wrap_client_stream(nursery, stream, "host", "/", max_message_size=LIMIT)
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                message = await connection.get_message()
                messages.append(message if isinstance(message, bytes) else None)
        nursery.cancel_scope.cancel()
    return messages
