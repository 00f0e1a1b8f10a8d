"""The heads of HTTP messages (RFC 9112), which come before the frames of a WebSocket and the bytes of a tunnel.

Invariant: a head is complete or refused, by its size alone, however the network has cut it into pieces.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import trio

__all__ = ["HeadTooLongError", "HttpHead", "parse_head", "read_pause", "receive_head"]

# The end of a head, as h11 recognises it.
_HEAD_END: Final = re.compile(rb"\n\r?\n")
READ_BYTES: Final = 4096
# The longest pause that a server can ask for.
LONGEST_PAUSE: Final = 3600.0


class HeadTooLongError(Exception):
    """A head exceeds the limit."""


@frozen
class HttpHead:
    """A parsed head.

    Attributes:
        first_line: The request line or the status line.
        headers: The values by their names in lower case; repeated ones are joined with commas.
    """

    first_line: str
    headers: Mapping[str, str]

    @property
    def status(self) -> int:
        """The status of a response; 0 if the first line is no status line."""
        match = re.match(r"HTTP/1\.[01] ([1-5]\d\d)\b", self.first_line)
        return int(match[1]) if match else 0


def parse_head(head: bytes) -> HttpHead:
    """Parse a complete head, leniently: a WebSocket implementation judges requests and responses it is given."""
    first, *lines = head.decode("latin-1").lstrip("\r\n").split("\n")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return HttpHead(first.rstrip("\r"), headers)


async def receive_head(
    stream: trio.abc.ReceiveStream, limit: int, check: Callable[[bytes], None] | None = None
) -> tuple[bytes, bytes]:
    """Read a head.

    Args:
        stream: The stream.
        limit: The most bytes that the head may have.
        check: Called with what has arrived each time that more has; what it raises is raised here.

    Returns:
        The head and the bytes after it. Without a head, if the stream ended first, what came before its end.

    Raises:
        HeadTooLongError: It exceeds the limit.
        trio.BrokenResourceError: The connection broke.

    Cancellation: The stream must be closed then.
    """
    data = b""
    end = None
    while end is None:
        if len(data) > limit:
            raise HeadTooLongError(f"the HTTP head exceeds {limit:,} bytes (max_head_bytes)")
        known = len(data)
        piece = await stream.receive_some(READ_BYTES)
        if not piece:
            return b"", data
        data += piece
        if check is not None:
            check(data)
        end = _HEAD_END.search(data, max(0, known - 2))
    if end.end() > limit:
        raise HeadTooLongError(f"the HTTP head exceeds {limit:,} bytes (max_head_bytes)")
    return data[: end.end()], data[end.end() :]


def read_pause(head: HttpHead) -> float:
    """Return the seconds that ``Retry-After`` asks for (RFC 9110, section 10.2.3); 0 without a readable one."""
    from datetime import UTC, datetime  # noqa: PLC0415 (for refusals only)
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 (the same, and it is slow to import)

    text = head.headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), LONGEST_PAUSE)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    aware = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return min(max((aware - datetime.now(UTC)).total_seconds(), 0.0), LONGEST_PAUSE)
