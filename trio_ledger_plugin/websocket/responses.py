"""The HTTP responses that refuse a handshake, as a client reads them: each says whether another try can help."""

from __future__ import annotations

from typing import Final

from ..errors import UnreachableError
from ..log import escape
from ..net.http_head import HeadTooLongError, parse_head, read_pause
from ..net.unreachable import PermanentlyUnreachableError, RetryLaterError

__all__ = ["handshake_error"]

# Refusals that say nothing about the next try. 401 and 403 come from a proxy: the token travels in BTP, not in HTTP.
TEMPORARY: Final = frozenset({401, 403, 408, 425, 429})
# Redirects that say that they are for good.
MOVED: Final = frozenset({301, 308})
# The longest text of a server that an error repeats.
LONGEST_TARGET: Final = 200


def handshake_error(response: bytes, error: Exception | None, *, tls: bool) -> UnreachableError:
    """Return the error for an opening handshake that failed.

    Args:
        response: The head of the server's response; empty if the connection ended first.
        error: What broke the connection, if it is known.
        tls: Whether the connection is encrypted.
    """
    if isinstance(error, HeadTooLongError):
        return UnreachableError(f"the WebSocket handshake failed: {error}")
    if error is not None:
        return UnreachableError("the WebSocket handshake failed: the server switched to another protocol")
    if not response:
        hint = "" if tls else "; if it expects TLS, its URL begins with btp+wss://"
        return UnreachableError(f"the server closed the connection during the WebSocket handshake{hint}")
    return _refusal(response)


def _refusal(response: bytes) -> UnreachableError:
    head = parse_head(response)
    status = head.status
    if not status:
        return UnreachableError(
            "the WebSocket handshake was not answered in HTTP; does the URL name a server of another protocol?"
        )
    if 400 <= status < 500 and status not in TEMPORARY:
        return PermanentlyUnreachableError(
            f"the WebSocket handshake was refused, there is no BTP endpoint at this URL: HTTP {status}; check its "
            "host, port and path"
        )
    pause = read_pause(head)
    if 200 <= status < 300:
        # A proxy may show a page while its server restarts.
        return RetryLaterError(
            f"the WebSocket handshake was answered with a page, HTTP {status}: a web server is there, and no BTP "
            "endpoint at this URL; check its host, port and path",
            pause,
        )
    until = f", to be tried again in {pause:g} s" if pause else ""
    if not 300 <= status < 400:
        return RetryLaterError(f"the WebSocket handshake was refused for now: HTTP {status}{until}", pause)
    target = escape(head.headers.get("location", "no URL")[:LONGEST_TARGET])
    text = (
        f"the WebSocket handshake was redirected to {target}: HTTP {status}; redirects are not followed, the URL must "
        "name the server"
    )
    return PermanentlyUnreachableError(text) if status in MOVED else RetryLaterError(f"{text}{until}", pause)
