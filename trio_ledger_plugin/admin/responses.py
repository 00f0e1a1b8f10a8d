"""What the admin page's server answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from attrs import frozen

from ..http.messages import write_response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..http.gate import RefusedError

__all__ = ["Response", "json_response", "refusal_response"]

# For each response: nothing of it is kept, framed, guessed at or read by other sites.
HEADERS: Final = (
    "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\nX-Frame-Options: DENY\r\n"
)
NOTHING: Final = "default-src 'none'; frame-ancestors 'none'"
TEXT: Final = "text/plain; charset=utf-8"


@frozen
class Response:
    """One response.

    Attributes:
        status: The status.
        body: The body.
        media_type: The body's.
        policy: The Content-Security-Policy.
        headers: Further headers, as pairs.
    """

    status: int
    body: bytes
    media_type: str = TEXT
    policy: str = NOTHING
    headers: tuple[tuple[str, str], ...] = ()

    def write(self, *, keep_alive: bool, with_body: bool) -> bytes:
        """Return the response as bytes; ``with_body`` is False for HEAD."""
        pairs: Iterable[tuple[str, str]] = (("Content-Security-Policy", self.policy), *self.headers)
        extra = HEADERS + "".join(f"{name}: {value}\r\n" for name, value in pairs)
        message = write_response(self.status, self.body, keep_alive=keep_alive, media_type=self.media_type, extra=extra)
        return message if with_body else message[: len(message) - len(self.body)]


def json_response(value: object, status: int = 200) -> Response:
    """Return a response with JSON."""
    return Response(status, json.dumps(value, separators=(",", ":")).encode(), "application/json")


def refusal_response(refusal: RefusedError) -> Response:
    """Return the response to a request that is refused."""
    return Response(refusal.status, str(refusal).encode(), headers=refusal.headers)
