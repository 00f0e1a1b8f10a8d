"""A plugin over a connected socket, such as one end of a socketpair. Each line is a JSON array."""

import json
import socket
from contextlib import suppress

import trio
from attrs import field, frozen

from trio_ledger_plugin import LedgerPluginError, RemoteError, Transfer, UnreachableError
from trio_ledger_plugin.errors import wire_error
from trio_ledger_plugin.exchange import ExchangePlugin
from trio_ledger_plugin.options import PluginOptions
from trio_ledger_plugin.options.fields import COUNT


@frozen(kw_only=True)
class PairOptions(PluginOptions):
    fd: int = field(metadata=COUNT)  # the socket's number; the plugin owns the socket from connect() on


class PairPlugin(ExchangePlugin):
    options_class = PairOptions
    options: PairOptions
    _lines: trio.MemorySendChannel[bytes]

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        if hasattr(self, "_lines"):
            raise UnreachableError("its socket is closed, and a socketpair cannot be dialed again")
        # Room for every call in flight and every reply, so that sending never waits.
        self._lines, lines = trio.open_memory_channel[bytes](2 * self.options.max_in_flight)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=self.options.fd)))
        async with stream, trio.open_nursery() as nursery:
            nursery.start_soon(_write, stream, lines)
            task_status.started()
            self.link_up()
            try:
                await self._read(stream)
                self.peer_left("the peer closed its end")
            except (trio.BrokenResourceError, LookupError, TypeError, ValueError) as error:
                self.peer_left(f"the connection broke: {error}")
            await trio.sleep_forever()

    async def _read(self, stream: trio.SocketStream) -> None:
        rest = b""
        async for chunk in stream:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > 3 * self.options.max_message_bytes:
                raise ValueError("a line is too long")
            for line in lines:
                self._receive(*json.loads(line))

    def _receive(self, kind: str, number: int, text: str, *more: str) -> None:
        if kind == "answer":
            self.receive_reply(number, bytes.fromhex(text))
        elif kind == "error":
            self.receive_reply(number, RemoteError(text, more[0], data=more[1].encode()))
        else:
            self.receive_request(number, Transfer(str(int(text))) if kind == "money" else bytes.fromhex(text))

    def send_request(self, number: int, request: bytes | Transfer) -> None:
        kind, text = ("money", request.amount) if isinstance(request, Transfer) else ("data", request.hex())
        self._send(kind, number, text)

    def send_reply(self, number: int, reply: bytes | LedgerPluginError | None) -> None:
        if isinstance(reply, LedgerPluginError):
            code, name, data = wire_error(reply)
            return self._send("error", number, code, name, data.decode())
        return self._send("answer", number, (reply or b"").hex())

    def _send(self, *line: str | int) -> None:
        self._lines.send_nowait(json.dumps(line).encode() + b"\n")


async def _write(stream: trio.SocketStream, lines: trio.MemoryReceiveChannel[bytes]) -> None:
    """Write whole lines in one task, so that a cancelled caller cannot write half a line."""
    with suppress(trio.BrokenResourceError):  # the reader notices too
        async for line in lines:
            await stream.send_all(line)
