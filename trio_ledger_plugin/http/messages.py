"""HTTP/1.1 messages to bytes and back, without I/O (RFC 9112).

Invariant: no head is longer than ``MAX_HEAD``, no body longer than its reader's limit, and what is refused is refused
before more of it is kept.
"""

from __future__ import annotations

import re
from typing import Final, Generic

import h11

from .heads import MAX_HEAD, UNTIL_CLOSE, BadMessageError, Heads, HeadT, RequestHead, read_response_head, start_h11

__all__ = ["MessageReader", "write_response"]

# A peer may send a 100 Continue or Early Hints before its answer; more than a few are an attack.
MOST_INTERIM: Final = 8

END: Final = b"\r\n\r\n"
# The end of a head that has no carriage returns.
BARE_END: Final = re.compile(rb"\n\n|\n\r\n")
# The characters with which a method or a version may begin.
TEXT: Final = range(0x21, 0x7F)
CLOSE: Final = "Connection: close\r\n"

REASONS: Final = {
    100: "Continue",
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    421: "Misdirected Request",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class MessageReader(Generic[HeadT]):
    """Reads one message after the other from a connection's bytes.

    ``receive`` takes bytes. Then ``next_head`` returns the head of the next message, and after it ``next_body`` its
    body; both return None while bytes are missing.

    Args:
        heads: Judges heads.
    """

    __slots__ = ("_chunks", "_data", "_head", "_heads", "_interim", "_searched", "_skipped")

    def __init__(self, heads: Heads[HeadT]) -> None:
        self._heads: Heads[HeadT] = heads
        self._data: bytes | bytearray = b""
        # How many of the bytes hold no end of a head.
        self._searched = 0
        self._skipped = False
        self._head: bytes = b""
        self._interim = 0
        self._chunks: _Chunks | None = None

    @property
    def buffered(self) -> int:
        """The number of bytes that were received and not read yet."""
        return len(self._data)

    def receive(self, data: bytes) -> None:
        """Add bytes."""
        if not self._data:
            self._data = data
        elif isinstance(self._data, bytearray):
            self._data += data
        else:
            # Joining bytes for each piece would take time by the square of their number.
            self._data = bytearray(self._data + data)

    def _take(self, size: int) -> bytes:
        data = self._data
        if size == len(data):
            self._data = b""
            return bytes(data)
        taken = bytes(data[:size])
        self._data = data[size:]
        return taken

    def next_head(self) -> HeadT | None:
        """Return what the next head says; interim responses are passed over.

        Raises:
            BadMessageError: It is no head, or is too long.
        """
        while True:
            head = self._next_head()
            if head is None or isinstance(head, RequestHead) or head.status >= 200:
                return head
            if head.status == 101 or self._interim == MOST_INTERIM:
                raise BadMessageError(400, "an interim response that nobody asked for")
            self._interim += 1

    def _next_head(self) -> HeadT | None:
        if self._data[:1] in (b"\r", b"\n") and not self._skip_empty_line():
            return None
        if self._data and self._data[0] not in TEXT:
            # Such as TLS: to wait for the end of a head would be in vain.
            raise BadMessageError(400, "not a head of HTTP/1.1")
        end = self._data.find(END, self._searched)
        if end < 0 or end > MAX_HEAD - len(END):
            if len(self._data) >= MAX_HEAD:
                raise BadMessageError(431, f"the head is longer than {MAX_HEAD} bytes")
            if BARE_END.search(self._data, self._searched) is not None:
                raise BadMessageError(400, "a line of the head does not end with CR LF")
            self._searched = max(0, len(self._data) - len(END) + 1)
            return None
        self._searched = 0
        self._skipped = False
        self._head = self._take(end + len(END))
        return self._heads.read(self._head)

    def _skip_empty_line(self) -> bool:
        """Skip one empty line before a message (RFC 9112, section 2.2); returns False if its end is missing."""
        if not self._skipped:
            if self._data == b"\r":
                return False
            if self._data[:2] == b"\r\n":
                self._skipped = True
                self._take(2)
                return self._data[:1] not in (b"", b"\r", b"\n") or self._skip_empty_line()
        elif not self._data:
            return False
        raise BadMessageError(400, "a message begins with an empty line")

    def next_body(self, length: int, limit: int) -> bytes | None:
        """Return the body of the message whose head was returned last.

        Args:
            length: What its head says.
            limit: The most bytes that it may have.

        Raises:
            BadMessageError: It is longer, or its chunks are not right.
        """
        if length >= 0:
            if length > limit:
                raise BadMessageError(413, f"the body is longer than {limit} bytes")
            if len(self._data) < length:
                return None
            self._interim = 0
            return self._take(length)
        if length == UNTIL_CLOSE:
            if len(self._data) > limit:
                raise BadMessageError(413, f"the body is longer than {limit} bytes")
            return None
        if self._chunks is None:
            role = h11.CLIENT if self._heads.judge is read_response_head else h11.SERVER
            self._chunks = _Chunks(start_h11(role, self._head))
        body, rest = self._chunks.receive(self._take(len(self._data)), limit)
        if body is not None:
            self._chunks = None
            self._interim = 0
            self._data = rest
        return body

    def body_at_end(self) -> bytes:
        """Return a body that goes on until the connection ends, which it has."""
        return self._take(len(self._data))


class _Chunks:
    """A body in chunks, as h11 reads it.

    Args:
        connection: h11's connection, which has received the head.
    """

    def __init__(self, connection: h11.Connection) -> None:
        self._connection = connection
        connection.next_event()
        self._body = bytearray()

    def receive(self, data: bytes, limit: int) -> tuple[bytes | None, bytes]:
        """Take bytes; return the body, or None while bytes are missing, and the bytes after it."""
        connection = self._connection
        if data:
            connection.receive_data(data)
        try:
            while True:
                event = connection.next_event()
                if isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > limit:
                        raise BadMessageError(413, f"the body is longer than {limit} bytes")
                elif isinstance(event, h11.EndOfMessage):
                    return bytes(self._body), connection.trailing_data[0]
                else:
                    return None, b""
        except h11.RemoteProtocolError as error:
            raise BadMessageError(400, "the chunks of the body are not right") from error


def write_response(
    status: int, body: str | bytes, *, keep_alive: bool, media_type: str = "text/plain; charset=utf-8", extra: str = ""
) -> bytes:
    """Return a response.

    Args:
        status: The status.
        body: The body; text is sent as UTF-8.
        keep_alive: Whether the connection stays open.
        media_type: The body's.
        extra: Further header lines, each with its line break.
    """
    data = body.encode() if isinstance(body, str) else body
    return (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: {media_type}\r\n{extra}"
        f"{'' if keep_alive else CLOSE}Content-Length: {len(data)}\r\n\r\n"
    ).encode() + data
