"""An SPSP endpoint: hands out credentials of a receiver over HTTP (RFC-0009), as an ASGI application or by itself."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final

import h11
import trio
from attrs import frozen

from ..errors import InvalidFieldsError
from ..net.sockets import abort_stream
from ..runtime.handlers import check_function
from .spsp import decode_base64

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from .receiver import Receiver

__all__ = ["SpspEndpoint"]

_TYPES: Final = ("application/spsp4+json", "application/spsp+json")
_MAX_HEAD: Final = 16 * 1024
_READ: Final = 16 * 1024
_SECONDS: Final = 10.0


@frozen
class _Response:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class SpspEndpoint:
    """Answers SPSP queries with new credentials each; an ASGI 3 application.

    Serve it over TLS: payers accept no credentials over plain HTTP, except on their own machine.

    Args:
        receiver: The receiver that the credentials are for.
        find_tag: Called with the path of a query, such as ``"/alice"``; returns the tag for the credentials, or None
            if there is no such receiver. If None, every path gets credentials without a tag.

    Raises:
        TypeError: ``find_tag`` cannot be called with a path, or is an async function.
    """

    def __init__(self, receiver: Receiver, find_tag: Callable[[str], str | None] | None = None) -> None:
        if find_tag is not None:
            check_function("find_tag", find_tag, "path")
        self._receiver = receiver
        self._find_tag = find_tag

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer a request of an ASGI server.

        Cancellation: Safe at any time.
        """
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            raise ValueError(f"an SPSP endpoint serves HTTP, not {scope['type']}")
        headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        response = self._answer(scope["method"], scope["path"], headers)
        await send({"type": "http.response.start", "status": response.status, "headers": list(response.headers)})
        await send({"type": "http.response.body", "body": response.body})

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Answer one request on a connection and close it; for ``trio.serve_tcp`` and ``trio.serve_ssl_over_tcp``.

        Cancellation: Closes the connection.
        """
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        try:
            with trio.move_on_after(_SECONDS):
                response = await self._read(connection, stream)
                head = h11.Response(status_code=response.status, headers=[*response.headers, (b"Connection", b"close")])
                events = (head, h11.Data(data=response.body), h11.EndOfMessage())
                await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
        except (trio.BrokenResourceError, h11.ProtocolError):
            return
        finally:
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)

    async def _read(self, connection: h11.Connection, stream: trio.abc.Stream) -> _Response:
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return _refuse(400, "BadRequestError", "not a request of HTTP/1.1")
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(_READ)))
            elif isinstance(event, h11.Request):
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                path = event.target.decode("latin-1").partition("?")[0]
                return self._answer(event.method.decode("latin-1"), path, headers)
            else:
                raise trio.BrokenResourceError("the client has gone")

    def _answer(self, method: str, path: str, headers: Mapping[str, str]) -> _Response:
        if method != "GET":
            return _refuse(405, "MethodNotAllowedError", "an SPSP query is a GET", (b"Allow", b"GET"))
        if not any(kind in headers.get("accept", "").lower() for kind in _TYPES):
            return _refuse(406, "NotAcceptableError", f"a query accepts {_TYPES[0]}")
        tag = None
        try:
            if self._find_tag is not None and (tag := self._find_tag(path)) is None:
                return _refuse(404, "InvalidReceiverError", "no such receiver")
        except Exception as error:  # noqa: BLE001 (an application may raise anything, and other payers go on)
            self._receiver.log.error("find_tag of an SPSP endpoint failed: %O", error)
            return _refuse(500, "InternalError", "the endpoint failed; try again later")
        nonce, secret = headers.get("receipt-nonce"), headers.get("receipt-secret")
        try:
            credentials = self._receiver.new_credentials(
                tag,
                receipt_nonce=None if nonce is None else decode_base64(nonce) or b"",
                receipt_secret=None if secret is None else decode_base64(secret) or b"",
            )
        except InvalidFieldsError:
            return _refuse(
                400, "BadRequestError", "give both Receipt-Nonce (16 bytes) and Receipt-Secret (32), or neither"
            )
        body = {
            "destination_account": credentials.destination_account,
            "shared_secret": base64.b64encode(credentials.shared_secret).decode(),
            "receipts_enabled": credentials.receipts_enabled,
        }
        return _respond(200, body)


def _respond(status: int, body: dict[str, object], *headers: tuple[bytes, bytes]) -> _Response:
    content = json.dumps(body).encode()
    kind = _TYPES[0].encode() if status == 200 else b"application/json"
    # Each query has credentials of its own, which no cache may give to another payer.
    fixed = (b"Content-Type", kind), (b"Content-Length", str(len(content)).encode()), (b"Cache-Control", b"no-store")
    return _Response(status, (*fixed, *headers), content)


def _refuse(status: int, name: str, message: str, *headers: tuple[bytes, bytes]) -> _Response:
    return _respond(status, {"id": name, "message": message}, *headers)
