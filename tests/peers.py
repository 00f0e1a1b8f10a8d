"""The other end of a BTP connection, scripted frame by frame, and WebSocket frames written out by hand."""

from __future__ import annotations

import base64
import hashlib
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import trio

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.btp.session import auth_message
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.tasks import PluginTasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_ledger_plugin.events import Event

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KEY = bytes.fromhex("a1b2c3d4")
TOKEN = "canary-7f3a9c"
ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(
    payload: bytes = b"",
    opcode: int = BINARY,
    *,
    mask: bytes | None = None,
    fin: bool = True,
    rsv: int = 0,
    form: int | None = None,
) -> bytes:
    """Write a frame (RFC 6455, section 5.2); ``form`` forces a length of 1, 2 or 8 bytes."""
    size = len(payload)
    form = form or (1 if size < 126 else 2 if size < 65536 else 8)
    first = fin << 7 | rsv << 4 | opcode
    masked = 0 if mask is None else 0x80
    length = bytes([masked | size]) if form == 1 else bytes([masked | 126 + (form == 8)]) + size.to_bytes(form, "big")
    if mask is not None:
        payload = mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([first]) + length + payload


class Received(NamedTuple):
    opcode: int
    payload: bytes

    @property
    def close_code(self) -> int:
        assert self.opcode == CLOSE
        return int.from_bytes(self.payload[:2], "big")


class Peer:
    """One end of a WebSocket connection that does nothing by itself: no pong, no closing, no answer."""

    def __init__(self, stream: trio.abc.Stream, *, client: bool) -> None:
        self.stream = stream
        self.mask = KEY if client else None
        self._client = client
        self._buffer = b""

    def frame(self, payload: bytes = b"", opcode: int = BINARY, **how: Any) -> bytes:
        return frame(payload, opcode, mask=self.mask, **how)

    async def send(self, *frames: bytes) -> None:
        """Send raw bytes."""
        await self.stream.send_all(b"".join(frames))

    async def send_packet(self, packet: btp.Packet) -> None:
        await self.send(self.frame(btp.encode(packet)))

    async def send_request(self, request_id: int, data: bytes) -> None:
        await self.send(self.frame(btp.encode_ilp(btp.MESSAGE, request_id, data)))

    async def respond(self, request_id: int, data: bytes) -> None:
        await self.send(self.frame(btp.encode_ilp(btp.RESPONSE, request_id, data)))

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    async def receive(self) -> Received:
        """Receive one frame, and check that it is one that RFC 6455 allows this end to be sent."""
        first, second = await self._take(2)
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(await self._take(2 if size == 126 else 8), "big")
        assert bool(second & 0x80) is not self._client
        key = await self._take(4) if second & 0x80 else bytes(4)
        payload = bytes(byte ^ key[i % 4] for i, byte in enumerate(await self._take(size)))
        assert first & 0xF0 == 0x80
        return Received(first & 0x0F, payload)

    async def receive_packet(self) -> Any:
        """Receive the next BTP packet, ignoring pings and pongs."""
        while True:
            opcode, payload = await self.receive()
            if opcode not in (PING, PONG):
                assert opcode == BINARY
                return btp.decode(payload)

    async def receive_close(self) -> int:
        """Receive until the Close and return its code."""
        while True:
            received = await self.receive()
            if received.opcode == CLOSE:
                return received.close_code

    async def wait_eof(self) -> None:
        """Wait until the other end has closed the connection, and close this end."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
        await self.aclose()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)

    async def authenticate(self, token: str = TOKEN, *, account: str = "") -> Any:
        """Send the auth packet and return the answer."""
        await self.send(self.frame(auth_message(1, account, token, {})))
        return await self.receive_packet()

    async def let_in(self) -> Any:
        """Accept the other end's auth packet and return it."""
        packet = await self.receive_packet()
        await self.send_packet(btp.Response(packet.request_id))
        return packet


async def read_head(stream: trio.abc.ReceiveStream) -> bytes:
    """Read an HTTP head byte by byte, so that what follows stays."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = await stream.receive_some(1)
        if not data:
            raise EOFError
        head += data
    return head


def upgrade_request(*, origin: str | None = None) -> bytes:
    lines = [
        "GET / HTTP/1.1",
        "Host: listener",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *([f"Origin: {origin}"] if origin else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade_response(request: bytes, *, status_line: str = "HTTP/1.1 101 Switching Protocols") -> bytes:
    key = next(line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID).digest()).decode()  # noqa: S324 (as RFC 6455 has it)
    lines = [status_line, "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def dial_stream(address: str) -> trio.SocketStream:
    url = urlsplit(address)
    return await trio.open_tcp_stream(url.hostname or "", url.port or 0)


async def shake_hands(stream: trio.abc.Stream) -> Peer:
    """Do a client's opening handshake."""
    await stream.send_all(upgrade_request())
    head = await read_head(stream)
    assert head.startswith(b"HTTP/1.1 101 "), head
    return Peer(stream, client=True)


async def dial(address: str) -> Peer:
    """Connect to a listener without authenticating."""
    return await shake_hands(await dial_stream(address))


async def dial_in(address: str, token: str = TOKEN) -> Peer:
    """Connect to a listener and authenticate."""
    peer = await dial(address)
    answer = await peer.authenticate(token)
    assert isinstance(answer, btp.Response), answer
    return peer


async def welcome(stream: trio.abc.Stream) -> Peer:
    """Do a server's opening handshake."""
    await stream.send_all(upgrade_response(await read_head(stream)))
    return Peer(stream, client=False)


@asynccontextmanager
async def home() -> AsyncIterator[PluginTasks]:
    """Give a home for the tasks of a connection; nothing of them is left afterwards."""
    async with trio.open_nursery() as nursery:
        tasks = PluginTasks(nursery, lambda crash, *, cancelled: crash)
        await tasks.start()
        try:
            yield tasks
        finally:
            tasks.cancel()


class Recorder:
    """A log that keeps all that it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def debug(self, message: str, *params: object) -> None:
        self.lines.append(message)

    info = warn = error = debug


def listening(**options: Any) -> dict[str, Any]:
    """Options of a listener at a free port."""
    return {"listener": {"port": 0, "secret": TOKEN}, **options}


@asynccontextmanager
async def open_btp(opts: Any, services: PluginServices | None = None, **how: Any) -> AsyncIterator[BtpPlugin]:
    """Open a BTP plugin."""
    async with open_plugin(opts, services, **how) as plugin:
        assert isinstance(plugin, BtpPlugin)
        yield plugin


@asynccontextmanager
async def linked(*, data_handler: Any = None, **options: Any) -> AsyncIterator[tuple[BtpPlugin, Peer]]:
    """Give a listening plugin and the scripted peer that is connected to it."""
    async with open_btp(listening(**options), data_handler=data_handler) as plugin:
        peer = await dial_in(plugin.address)
        await plugin.wait_connected()
        try:
            yield plugin, peer
        finally:
            await peer.aclose()


@asynccontextmanager
async def serving(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Run a scripted server, once for each connection, and give its URL with credentials."""

    async def run(stream: trio.SocketStream) -> None:
        try:
            await serve(stream)
        except (EOFError, trio.BrokenResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listener = (await nursery.start(partial(trio.serve_tcp, run, 0, host="127.0.0.1")))[0]
        try:
            yield f"btp+ws://alice:{TOKEN}@127.0.0.1:{listener.socket.getsockname()[1]}"
        finally:
            nursery.cancel_scope.cancel()


async def next_event(events: trio.MemoryReceiveChannel[Event], kind: type[Event]) -> Any:
    """Return the next event, which must be of a kind."""
    event = await events.receive()
    assert isinstance(event, kind), event
    return event
