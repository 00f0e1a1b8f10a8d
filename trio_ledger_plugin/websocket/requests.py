"""The HTTP requests that arrive at a WebSocket server: handshakes, health checks, and mistakes.

Invariant: each request that is no handshake is answered, with a status that says what was wrong, and the log has the
reason. Only a peer that does not speak HTTP gets no answer.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ..net.http_head import HeadTooLongError, HttpHead, parse_head, receive_head
from ..net.proxy_protocol import SIGNATURE_V1, SIGNATURE_V2

if TYPE_CHECKING:
    from ..options.base import PluginOptions

__all__ = ["BadHandshakeError", "Handshake", "receive_handshake"]

# How long, and how many bytes, are read after an answer: bytes that are left would make the system discard it.
LINGER_SECONDS: Final = 1.0
LINGER_BYTES: Final = 256 * 1024
# The methods of health checks; HAProxy asks for OPTIONS.
CHECKS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
TLS_HANDSHAKE: Final = b"\x16"
# How a request begins (RFC 9112, section 3), as far as it has arrived.
_BEGINS = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}( |\Z)")


class BadHandshakeError(Exception):
    """A client's opening handshake failed or was refused.

    Attributes:
        is_check: Whether the peer only looked whether the server is there.
    """

    def __init__(self, reason: str, *, is_check: bool = False) -> None:
        super().__init__(reason)
        self.is_check: bool = is_check


@frozen
class Handshake:
    """What a client asks for in its opening handshake.

    Attributes:
        head: The parsed head.
        received: The bytes of the head, and those after it.
    """

    head: HttpHead
    received: tuple[bytes, bytes]

    @property
    def path(self) -> str:
        """The path and query of its URL."""
        return self.head.first_line.split(" ")[1]

    @property
    def forwarded_for(self) -> str:
        """The ``X-Forwarded-For`` header, which proxies write; empty if there is none."""
        return self.head.headers.get("x-forwarded-for", "")

    @property
    def origin(self) -> str | None:
        """The ``Origin`` header, which browsers send, or None."""
        return self.head.headers.get("origin")


async def receive_handshake(stream: trio.abc.Stream, options: PluginOptions) -> Handshake:
    """Read the head of a request, and answer it here unless it is a WebSocket handshake.

    Args:
        stream: The stream.
        options: The limits.

    Raises:
        BadHandshakeError: It is no handshake. The answer was sent.
        trio.BrokenResourceError: The connection broke.

    Cancellation: The stream must be closed then.
    """
    received = await _receive_head(stream, options.max_head_bytes)
    if not received[0]:
        begun = f"the client left after {len(received[1])} bytes of its request"
        raise BadHandshakeError(begun if received[1] else "the client left without a request", is_check=not received[1])
    head = parse_head(received[0])
    await _refuse_others(stream, head)
    return Handshake(head, received)


async def _receive_head(stream: trio.abc.Stream, limit: int) -> tuple[bytes, bytes]:
    """Read a head as ``receive_head`` does; answer one that is too long, and what is not HTTP, with an error."""
    problem, answer = "", None
    try:
        return await receive_head(stream, limit, _check_beginning)
    except HeadTooLongError as error:
        problem, answer = str(error), ("431 Request Header Fields Too Large", "the head of the request is too large\n")
    except _NotHttpError as error:
        problem = str(error)
        if error.is_answered:
            answer = "400 Bad Request", "this is an HTTP server for WebSocket handshakes\n"
    if answer is not None:
        await _answer(stream, *answer)
    raise BadHandshakeError(problem)


class _NotHttpError(Exception):
    def __init__(self, reason: str, *, is_answered: bool) -> None:
        super().__init__(reason)
        self.is_answered = is_answered


def _check_beginning(data: bytes) -> None:
    if data.startswith(TLS_HANDSHAKE):
        raise _NotHttpError("the client speaks TLS, and this port does not (ssl_context)", is_answered=False)
    if data.startswith((SIGNATURE_V1, SIGNATURE_V2)):
        text = "it begins with a PROXY protocol header, which this port does not expect (proxy_protocol)"
        raise _NotHttpError(text, is_answered=True)
    begun = data.lstrip(b"\r\n")
    if begun and _BEGINS.match(begun) is None:
        raise _NotHttpError("the client does not speak HTTP", is_answered=True)


async def _refuse_others(stream: trio.abc.Stream, head: HttpHead) -> None:
    """Answer a request that is no handshake, and raise ``BadHandshakeError``."""
    method = head.first_line.lstrip().partition(" ")[0]
    headers = head.headers
    if "upgrade" not in headers:
        if any(name.startswith("sec-websocket-") for name in headers):
            hint = "the Upgrade header is missing: a proxy in front of the server must pass it on"
            await _answer(stream, "426 Upgrade Required", f"{hint}\n", "Upgrade: websocket\r\nConnection: Upgrade\r\n")
            raise BadHandshakeError(hint)
        if method in CHECKS:
            await _answer(stream, "200 OK", "OK\n", with_body=method != "HEAD")
            raise BadHandshakeError("a health check, answered with HTTP 200", is_check=True)
        await _answer(stream, "405 Method Not Allowed", "GET and HEAD only\n", "Allow: GET, HEAD, OPTIONS\r\n")
        raise BadHandshakeError(f"a {method} request; only handshakes and health checks are expected")
    problem = _find_problem(method, head)
    if problem:
        await _answer(stream, "400 Bad Request", f"{problem}\n", "Sec-WebSocket-Version: 13\r\n")
        raise BadHandshakeError(problem)


def _find_problem(method: str, head: HttpHead) -> str:
    """Return what is wrong with a handshake (RFC 6455, section 4.2.1), or an empty text."""
    headers = head.headers
    if method != "GET":
        return f"a handshake is a GET request, not {method}"
    if not head.first_line.endswith("HTTP/1.1"):
        return "a handshake needs HTTP/1.1; a proxy in front of the server may speak HTTP/1.0 to it"
    if headers["upgrade"].lower() != "websocket":
        return "the Upgrade header must be websocket"
    if "upgrade" not in headers.get("connection", "").lower():
        return "the Connection header must be Upgrade: a proxy in front of the server must set it"
    if "sec-websocket-key" not in headers:
        return "the Sec-WebSocket-Key header is missing"
    if headers.get("sec-websocket-version") != "13":
        return "the Sec-WebSocket-Version header must be 13"
    return ""


async def _answer(
    stream: trio.abc.Stream, status: str, body: str, headers: str = "", *, with_body: bool = True
) -> None:
    """Send a response, and read on for a moment, so that the client can read it before the connection is closed."""
    described = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(f"HTTP/1.1 {status}\r\n{headers}{described}\r\n{body if with_body else ''}".encode())
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        with trio.move_on_after(LINGER_SECONDS):
            left = LINGER_BYTES
            while left > 0 and (piece := await stream.receive_some(4096)):
                left -= len(piece)
