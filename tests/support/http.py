"""HTTP peers that a test scripts byte by byte, and the plugins at the other end."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.http.endpoint import HttpEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = [
    "FULFILL",
    "OWN_TOKEN",
    "PREPARE",
    "TOKEN",
    "dial",
    "ok",
    "open_http",
    "post",
    "raw_server",
    "read_response",
    "read_until",
    "sending",
    "serving",
    "status_of",
    "stay_silent",
    "take_request",
    "talk",
]

TOKEN = "canary-http-incoming"
OWN_TOKEN = "canary-http-outgoing"
PREIMAGE = bytes(range(32))
PREPARE = ilp.encode(ilp.make_prepare(10, "example.bob", sha256(PREIMAGE).digest(), 3600))
FULFILL = ilp.encode(ilp.Fulfill(PREIMAGE, b"done"))


@asynccontextmanager
async def open_http(opts: Any, *, log: Any = None, store: Any = None, **how: Any) -> AsyncIterator[Any]:
    async with open_plugin(opts, PluginServices(store=store, log=log), **how) as plugin:
        assert isinstance(plugin, HttpEndpoint)
        yield plugin


def serving(**more: Any) -> dict[str, Any]:
    """Options of a plugin that only serves, at a free port."""
    incoming = {"port": 0, "static_token": TOKEN, **more.pop("incoming", {})}
    return {"plugin": "http", "incoming": incoming, **more}


def sending(url: str, **more: Any) -> dict[str, Any]:
    """Options of a plugin that only sends."""
    outgoing = {"url": url, "static_token": OWN_TOKEN, **more.pop("outgoing", {})}
    return {"plugin": "http", "outgoing": outgoing, **more}


# A client of bytes.


async def dial(address: str) -> trio.SocketStream:
    url = urlsplit(address)
    return await trio.open_tcp_stream(url.hostname or "", url.port or 0)


def post(body: bytes = PREPARE, *lines: str, token: str | None = TOKEN, version: str = "1.1") -> bytes:
    """Return a POST; a line of the caller's replaces the usual one of its name."""
    usual = {"host": "Host: u", "content-type": "Content-Type: application/octet-stream"}
    usual["content-length"] = f"Content-Length: {len(body)}"
    if token is not None:
        usual["authorization"] = f"Authorization: Bearer {token}"
    usual |= {line.partition(":")[0].lower(): line for line in lines}
    head = "\r\n".join([f"POST /ilp HTTP/{version}", *(line for line in usual.values() if not line.endswith(": -"))])
    return f"{head}\r\n\r\n".encode() + body


async def read_until(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        more = await stream.receive_some(1)
        if not more:
            raise EOFError(data)
        data += more
    return data


async def read_response(stream: trio.abc.ReceiveStream) -> tuple[int, bytes, bytes]:
    """Return the status, the head and the body of a response."""
    head = await read_until(stream, b"\r\n\r\n")
    body = b""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
            while len(body) < length:
                more = await stream.receive_some(length - len(body))
                if not more:
                    raise EOFError(head)
                body += more
    return int(head.split()[1]), head, body


async def talk(address: str, data: bytes) -> tuple[int, bytes, bytes]:
    """Send bytes over a new connection and return the response."""
    async with await dial(address) as stream:
        await stream.send_all(data)
        return await read_response(stream)


async def status_of(address: str, data: bytes) -> int:
    return (await talk(address, data))[0]


# A server of bytes.


@asynccontextmanager
async def raw_server(script: Callable[[trio.SocketStream], Awaitable[object]]) -> AsyncIterator[str]:
    """Serve each connection with a script; give the URL."""

    async def serve(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            await script(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/ilp"
        nursery.cancel_scope.cancel()


async def stay_silent(stream: trio.SocketStream) -> None:
    """Accept a connection, and never answer."""
    async with stream:
        await trio.sleep_forever()


async def take_request(stream: trio.abc.ReceiveStream) -> tuple[bytes, bytes]:
    """Return the head and the body of a request."""
    head = await read_until(stream, b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
    body = b""
    while len(body) < length:
        body += await stream.receive_some(length - len(body))
    return head, body


def ok(body: bytes = FULFILL, *lines: str, status: str = "200 OK") -> bytes:
    head = "".join(f"{line}\r\n" for line in lines)
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode() + body
