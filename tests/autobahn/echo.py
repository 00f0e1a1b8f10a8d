"""Ends that echo what they are sent, over the frame stream and trio-websocket together, for the Autobahn test suite.

BTP has no use for text. Here what the frame stream forwards and fetches back is echoed as well, so that every case goes
the way that it goes in a plugin: plain binary messages past trio-websocket, all else through it.

    python echo.py server PORT            until it is killed
    python echo.py client PORT            through all cases of a fuzzing server
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING

import trio
from support.tasks import open_tasks

from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.runtime.budget import Budget, Limits
from trio_ledger_plugin.websocket.connection import WebSocket, accept_websocket, open_websocket
from trio_ledger_plugin.websocket.requests import BadHandshakeError

if TYPE_CHECKING:
    from trio_ledger_plugin.runtime.tasks import TaskGroup


__all__ = ["Echo"]

# The suite's largest message has 16 MiB, and its most fragments are of 64 bytes.
MIB = 1024 * 1024
OPTIONS = PluginOptions(max_message_bytes=20 * MIB, max_fragments=300_000)
AGENT = "trio-ledger-plugin"


class Echo:
    """Takes the messages of a connection and sends them back.

    Attributes:
        texts: The text messages that came, newest last.
        ended: Set when the connection is closed.
    """

    replies_blocked = 0
    is_open = True
    turns = Budget(Limits())

    async def wait_ready(self) -> None:
        """Return at once."""

    def __init__(self, websocket: WebSocket, *, echoes: bool = True) -> None:
        self._websocket = websocket
        self._frame = websocket.frame
        self._echoes = echoes
        self.texts: list[str] = []
        self.ended = trio.Event()
        fetch = websocket._fetch

        async def fetch_and_keep() -> bytes | str | None:
            message = await fetch()
            if isinstance(message, str):
                self.texts.append(message)
            return message

        # As WebSocket.open does, but that texts are kept.
        websocket._frame_stream.open(self, fetch_and_keep, websocket._close_code)
        websocket._reader.call_at_end(lambda _cancelled, _error: self.ended.set())
        websocket.authenticated()

    def receive(self, message: bytes) -> None:
        self._websocket.writer.write(self._frame(message))

    def receive_text(self) -> None:
        if self._echoes:
            # A text's frame is a binary one's but for its first byte.
            frame = self._frame(self.texts.pop().encode())
            self._websocket.writer.write(b"\x81" + frame[1:])

    def too_big(self) -> None:
        self._websocket.abort()

    def peer_left(self, reason: str) -> None:
        pass


async def serve(tasks: TaskGroup, stream: trio.SocketStream) -> None:
    try:
        websocket = await accept_websocket(stream, tasks, OPTIONS, peer="tester", refuse=lambda handshake: None)
    except BadHandshakeError:
        return
    await Echo(websocket).ended.wait()


async def run_server(port: int) -> None:
    async with open_tasks() as tasks:
        await trio.serve_tcp(partial(serve, tasks), port, host="127.0.0.1")


async def visit(tasks: TaskGroup, port: int, resource: str, *, echoes: bool) -> list[str]:
    """Connect to a resource of the fuzzing server; return the texts that came, unless they are echoed."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    host = f"127.0.0.1:{port}"
    websocket = await open_websocket(stream, tasks, OPTIONS, host=host, resource=resource)
    echo = Echo(websocket, echoes=echoes)
    with trio.fail_after(120):
        await echo.ended.wait()
    return echo.texts


async def run_client(port: int) -> None:
    async with open_tasks() as tasks:
        (count,) = await visit(tasks, port, "/getCaseCount", echoes=False)
        for number in range(1, json.loads(count) + 1):
            await visit(tasks, port, f"/runCase?case={number}&agent={AGENT}", echoes=True)
        await visit(tasks, port, f"/updateReports?agent={AGENT}", echoes=False)


if __name__ == "__main__":
    trio.run({"server": run_server, "client": run_client}[sys.argv[1]], int(sys.argv[2]))
