"""The endpoint as an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import trio

from .gate import RefusedError
from .heads import BadMessageError, RequestHead, request_head
from .responder import Responder

if TYPE_CHECKING:
    from .link import HttpLink
    from .server import HttpServer

__all__ = ["AsgiApp"]

# Of any type: each server declares its own dictionaries.
Scope: TypeAlias = Any
Receive: TypeAlias = Callable[..., Awaitable[Any]]
Send: TypeAlias = Callable[..., Awaitable[None]]


class AsgiApp:
    """Serves the plugin's requests that the application's own server has received.

    Args:
        server: The plugin's server.
    """

    def __init__(self, server: HttpServer) -> None:
        self._server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3).

        Raises:
            RuntimeError: The scope is of a type that this application has no use for, such as ``websocket``.

        Cancellation: The handler goes on; its reply is dropped.
        """
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] != "http":
            raise RuntimeError(f"the plugin serves http, not {scope['type']}")
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        server = self._server
        client = scope.get("client")
        peer = str(client[0]) if client else ""
        try:
            head = request_head(scope["method"].encode(), scope["path"], scope["headers"])
            if server.gate.is_health_check(head):
                await _respond(send, 200, b"OK", (), is_packet=False)
                return
            reply = await self._exchange(head, receive)
        except BadMessageError as error:
            await _respond(send, error.status, str(error).encode(), (), is_packet=False)
        except RefusedError as error:
            if error.is_failure:
                await trio.sleep(server.admission.refuse("a request", peer, error.account, error))
            await _respond(send, error.status, str(error).encode(), error.headers, is_packet=False)
        else:
            if reply is not None:
                await _respond(send, *reply, (), is_packet=reply[0] == 200)

    async def _exchange(self, head: RequestHead, receive: Receive) -> tuple[int, bytes] | None:
        """Return the status and the body of the response; None if the client is gone."""
        server = self._server
        if not server.is_wanted():
            raise RefusedError(503, "not connected")
        gate = server.gate
        gate.check_target(head)
        claim = gate.claim(head)
        gate.check_body(head)
        if gate.needs_store:
            await gate.verify(claim)
        link = gate.link_of(claim)
        body = await _read_body(receive, gate.limit)
        if body is None:
            return None
        responder = _AsgiResponder()
        link.counters.bytes_received += len(body)
        link.serve(responder, body)
        try:
            return await responder.wait(link)
        finally:
            link.forget(responder)


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            raise RefusedError(413, f"the body is longer than {limit} bytes")
        if not message.get("more_body", False):
            return bytes(body)


class _AsgiResponder(Responder):
    """Waits for the reply to one request."""

    __slots__ = ("_came", "_reply")

    def __init__(self) -> None:
        super().__init__()
        self._came = trio.Event()
        self._reply: tuple[int, bytes] = (503, b"closing")

    async def respond(self, status: int, body: bytes) -> None:
        self.respond_soon(status, body)
        await trio.lowlevel.checkpoint()

    def respond_soon(self, status: int, body: bytes) -> None:
        self._reply = status, body
        self._came.set()

    def drop(self) -> None:
        self._came.set()

    async def wait(self, link: HttpLink) -> tuple[int, bytes]:
        """Wait for the reply; while the plugin disconnects, it is one of status 503."""
        await self._came.wait()
        link.counters.bytes_sent += len(self._reply[1])
        return self._reply


async def _respond(
    send: Send, status: int, body: bytes, headers: tuple[tuple[str, str], ...], *, is_packet: bool
) -> None:
    media_type = b"application/octet-stream" if is_packet else b"text/plain; charset=utf-8"
    lines = [(b"content-type", media_type), (b"content-length", str(len(body)).encode())]
    lines += [(name.lower().encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})


async def _live(receive: Receive, send: Send) -> None:
    """Take part in the lifespan of an application that has no other part."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
