"""What the head of an HTTP/1.1 message says (RFC 9110, RFC 9112).

Invariant: h11 judges every head once, and a bounded dictionary keeps its verdicts on short heads. A head is refused if
two readers could take its body for different ones: two lengths, a length besides chunks, a folded line, a line that
ends without a carriage return.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import h11
from attrs import asdict, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "CHUNKED",
    "MAX_HEAD",
    "UNTIL_CLOSE",
    "BadMessageError",
    "HeadT",
    "Heads",
    "PageHead",
    "RequestHead",
    "ResponseHead",
    "read_page_head",
    "read_request_head",
    "read_response_head",
    "request_head",
    "start_h11",
]

MAX_HEAD: Final = 16 * 1024
# Longer heads are rare; to keep them would let a peer fill the memory.
LONGEST_KEPT: Final = 1024
KEPT_HEADS: Final = 1024
# What is no line break of HTTP/1.1, or a line that continues the one before.
BAD_BREAK: Final = re.compile(rb"(?<!\r)\n|\n[ \t]|\r(?!\n)")
TIMEOUT: Final = re.compile(rb"(?:^|[,; ])timeout=([0-9]{1,6})")

# What a head says about the body, besides a number of bytes.
CHUNKED: Final = -1
UNTIL_CLOSE: Final = -2


# h11 refuses two different lengths, and more than one Host, by itself.
ONCE: Final = frozenset({b"authorization", b"content-type", b"ilp-peer-name", b"transfer-encoding", b"expect"})


class BadMessageError(Exception):
    """The peer's bytes are not a message of HTTP/1.1, or one that is refused.

    Attributes:
        status: The status with which a server refuses it.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status: int = status


@frozen
class RequestHead:
    """What the head of a request says.

    Attributes:
        method: The method.
        path: The path of the target, without the query.
        length: The number of bytes of the body, or ``CHUNKED``.
        keep_alive: Whether the connection stays open after the response.
        expects_continue: Whether the client waits for ``100 Continue`` before it sends the body.
        authorization: The credentials; None if there are none.
        content_type: The media type, in lower case and without parameters; empty if there is none.
        peer_name: The header ``ILP-Peer-Name``; None if there is none.
        encoded: Whether the body has a ``Content-Encoding``.
    """

    method: bytes
    path: str
    length: int
    keep_alive: bool = True
    expects_continue: bool = False
    authorization: str | None = None
    content_type: str = ""
    peer_name: str | None = None
    encoded: bool = False


@frozen(kw_only=True)
class PageHead(RequestHead):
    """What the head of a request for a page says, which a browser may have sent.

    Attributes:
        query: The query of the target, without its question mark; empty if there is none.
        host: The header ``Host``; empty if there is none, as in HTTP/1.0.
        origin: The header ``Origin``; None if there is none.
        fetch_site: The header ``Sec-Fetch-Site``; empty if there is none.
    """

    query: str = ""
    host: str = ""
    origin: str | None = None
    fetch_site: str = ""


@frozen
class ResponseHead:
    """What the head of a response to a POST says.

    Attributes:
        status: The status.
        length: The number of bytes of the body, or ``CHUNKED``, or ``UNTIL_CLOSE``.
        keep_alive: Whether the connection stays open.
        timeout: For how many seconds the server promises to keep it open without a request; None if it does not say.
        encoded: Whether the body has a ``Content-Encoding``.
    """

    status: int
    length: int
    keep_alive: bool = True
    timeout: int | None = None
    encoded: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether the body is the answer to the request."""
        return self.status == 200 and not self.encoded


HeadT = TypeVar("HeadT", bound="RequestHead | ResponseHead")


def read_request_head(head: bytes) -> RequestHead:
    """Return what the head of a request says.

    Args:
        head: The bytes up to the empty line and with it.

    Raises:
        BadMessageError: It is not the head of a request, or its framing is ambiguous.
    """
    return _request_head(_judge_request(head))


def read_page_head(head: bytes) -> PageHead:
    """Return what the head of a request for a page says; ``read_request_head`` documents the rest."""
    event = _judge_request(head)
    headers = _headers(event.headers)
    origin = headers.get(b"origin")
    return PageHead(
        **asdict(_request_head(event)),
        query=event.target.partition(b"?")[2].decode("latin-1"),
        host=headers.get(b"host", b"").decode("latin-1"),
        origin=None if origin is None else origin.decode("latin-1"),
        fetch_site=headers.get(b"sec-fetch-site", b"").decode("latin-1"),
    )


def _judge_request(head: bytes) -> h11.Request:
    event = _judge(h11.SERVER, head)
    assert isinstance(event, h11.Request)
    return event


def _request_head(event: h11.Request) -> RequestHead:
    return request_head(event.method, _path(event.target), event.headers, is_old=event.http_version == b"1.0")


def request_head(
    method: bytes, path: str, pairs: Iterable[tuple[bytes, bytes]], *, is_old: bool = False
) -> RequestHead:
    """Return what the parts of a head say.

    Args:
        method: The method.
        path: The path.
        pairs: The headers, their names in lower case.
        is_old: Whether the version is HTTP/1.0.

    Raises:
        BadMessageError: The headers contradict each other.
    """
    headers = _headers(pairs)
    length = _length(headers, 0)
    if is_old and length == CHUNKED:
        raise BadMessageError(400, "HTTP/1.0 has no chunks")
    expectation = headers.get(b"expect", b"").lower()
    if expectation not in (b"", b"100-continue"):
        raise BadMessageError(417, "unknown expectation")
    authorization = headers.get(b"authorization")
    name = headers.get(b"ilp-peer-name")
    return RequestHead(
        method=method,
        path=path,
        length=length,
        keep_alive=not is_old and not _closes(headers),
        expects_continue=bool(expectation) and not is_old,
        authorization=None if authorization is None else authorization.decode("latin-1"),
        content_type=headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1"),
        peer_name=None if name is None else name.decode("latin-1"),
        encoded=_is_encoded(headers),
    )


def read_response_head(head: bytes) -> ResponseHead:
    """Return what the head of a response to a POST says.

    Args:
        head: The bytes up to the empty line and with it.

    Raises:
        BadMessageError: It is not the head of a response, or its framing is ambiguous.
    """
    event = _judge(h11.CLIENT, head)
    assert isinstance(event, h11.Response | h11.InformationalResponse)
    headers = _headers(event.headers)
    status = event.status_code
    length = 0 if status < 200 or status in (204, 304) else _length(headers, UNTIL_CLOSE)
    timeout = TIMEOUT.search(headers.get(b"keep-alive", b"").lower())
    return ResponseHead(
        status=status,
        length=length,
        keep_alive=event.http_version == b"1.1" and not _closes(headers) and length != UNTIL_CLOSE,
        timeout=None if timeout is None else int(timeout[1]),
        encoded=_is_encoded(headers),
    )


def _judge(role: type[h11.CLIENT | h11.SERVER], head: bytes) -> h11.Event:
    """Return h11's verdict on a head.

    Raises:
        BadMessageError: It is not a head.
    """
    if BAD_BREAK.search(head) is not None:
        raise BadMessageError(400, "a line of the head is folded, or does not end with CR LF")
    try:
        event = start_h11(role, head).next_event()
    except h11.RemoteProtocolError as error:
        raise BadMessageError(error.error_status_hint, "not a head of HTTP/1.1") from error
    if not isinstance(event, h11.Request | h11.Response | h11.InformationalResponse):
        raise BadMessageError(400, "not a head of HTTP/1.1")
    if event.http_version not in (b"1.1", b"1.0"):
        raise BadMessageError(505, "the version is neither HTTP/1.1 nor HTTP/1.0")
    return event


def start_h11(role: type[h11.CLIENT | h11.SERVER], head: bytes) -> h11.Connection:
    """Return h11's connection of our role, which has received a head."""
    connection = h11.Connection(role, max_incomplete_event_size=MAX_HEAD)
    if role is h11.CLIENT:
        connection.send(h11.Request(method="POST", target="/", headers=[("Host", "h"), ("Content-Length", "0")]))
        connection.send(h11.EndOfMessage())
    connection.receive_data(head)
    return connection


def _headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers by their names in lower case.

    Raises:
        BadMessageError: A header that decides what the message means stands there twice.
    """
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        if name in headers:
            if name in ONCE:
                raise BadMessageError(400, f"two headers {name.decode()}")
            value = headers[name] + b", " + value  # noqa: PLW2901 (RFC 9110, section 5.3)
        headers[name] = value
    return headers


def _length(headers: dict[bytes, bytes], otherwise: int) -> int:
    length = headers.get(b"content-length")
    if b"transfer-encoding" in headers:
        if length is not None:
            raise BadMessageError(400, "a length and chunks at once")
        return CHUNKED
    return otherwise if length is None else int(length)


def _closes(headers: dict[bytes, bytes]) -> bool:
    return b"close" in (word.strip().lower() for word in headers.get(b"connection", b"").split(b","))


def _is_encoded(headers: dict[bytes, bytes]) -> bool:
    return headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity")


def _path(target: bytes) -> str:
    """Return the path of a target: ``/ilp?x``, or ``http://host/ilp`` as a proxy is asked."""
    text = target.decode("latin-1")
    if not text.startswith("/"):
        _, mark, rest = text.partition("://")
        text = f"/{rest.partition('/')[2]}" if mark else text
    return text.partition("?")[0]


class Heads(Generic[HeadT]):
    """What heads say; each is judged once while it is remembered.

    Args:
        judge: ``read_request_head`` or ``read_response_head``.
    """

    __slots__ = ("_known", "judge")

    def __init__(self, judge: Callable[[bytes], HeadT]) -> None:
        self.judge: Callable[[bytes], HeadT] = judge
        self._known: dict[bytes, HeadT] = {}

    def read(self, head: bytes) -> HeadT:
        """Return what a head says.

        Raises:
            BadMessageError: It is no head.
        """
        known = self._known.get(head)
        if known is None:
            known = self.judge(head)
            if len(head) <= LONGEST_KEPT:
                if len(self._known) >= KEPT_HEADS:
                    del self._known[next(iter(self._known))]
                self._known[head] = known
        return known
