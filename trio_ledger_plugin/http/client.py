"""The end that sends requests: each is one POST, which is never sent again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..codec import ilp
from ..errors import DecodeError, NotConnectedError
from .credentials import Authorization
from .pool import ALPN, ConnectionPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import LedgerPluginError
    from ..options.base import PluginOptions
    from ..runtime.calls import CallTable
    from ..statistics import Counters
    from .heads import ResponseHead
    from .options import IncomingOptions, OutgoingOptions

__all__ = ["Client", "peer_name"]

MEDIA_TYPE = "application/octet-stream"
# Accounts whose heads are kept.
KEPT_HEADS = 1024


class Client:
    """Sends requests to one URL.

    Args:
        options: The plugin's options.
        outgoing: Where to send requests, and what to show.
        name: The value of ``ILP-Peer-Name``; empty for none.
        mark: The text of the URL that stands for the account's name; empty if the URL is the same for all.
    """

    def __init__(self, options: PluginOptions, outgoing: OutgoingOptions, *, name: str, mark: str = "") -> None:
        url = outgoing.parsed
        if outgoing.ssl_context is not None:
            outgoing.ssl_context.set_alpn_protocols(ALPN)
        self._pool = ConnectionPool(
            url,
            outgoing.ssl_context,
            limit=min(outgoing.max_connections, options.max_in_flight),
            idle_seconds=outgoing.idle_timeout,
            dial_seconds=min(options.connect_timeout, options.response_timeout),
        )
        self._idle_seconds = outgoing.idle_timeout
        self._limit = options.max_data_bytes
        self._authorization = Authorization(outgoing)
        self._resource = url.resource
        self._mark = mark
        self._sends_destination = outgoing.send_ilp_destination
        name_line = f"ILP-Peer-Name: {name}\r\n" if name else ""
        self._lines = (
            f" HTTP/1.1\r\nHost: {url.host_header}\r\nAccept: {MEDIA_TYPE}\r\nContent-Type: {MEDIA_TYPE}\r\n{name_line}"
        )
        # The lines before the length: for the last value of Authorization, by the account's name.
        self._value = ""
        self._heads: dict[str, bytes] = {}

    async def exchange(
        self, calls: CallTable, counters: Counters, name: str, body: bytes
    ) -> tuple[ResponseHead, bytes]:
        """Send a request and return its answer.

        Args:
            calls: The table that the call belongs to.
            counters: Counts it.
            name: The account's name, for the URL; empty for a plugin with one peer.
            body: The request.

        Raises:
            LedgerPluginError: As ``LedgerPlugin.send_data`` documents.

        Cancellation: The request may have been sent; its connection is closed.
        """
        message = b"%bContent-Length: %d\r\n\r\n%b" % (self._head(name, body), len(body), body)
        pool = self._pool
        while True:
            # Without a coroutine in the usual case: an idle connection, and a socket with room.
            connection = pool.take_idle() or await pool.take()
            head = None
            call = None
            try:
                if calls.make_error is not None:
                    calls.check_open()
                call = calls.add(connection)
                try:
                    if not connection.send_now(message):
                        await connection.send_rest(message)
                except NotConnectedError:
                    # Nothing was sent, so another connection may be tried.
                    if connection.is_new:
                        raise
                    continue
                counters.requests_sent += 1
                counters.bytes_sent += len(message)
                try:
                    head, answer = await connection.receive(self._limit)
                except DecodeError:
                    counters.malformed_packets += 1
                    raise
                counters.bytes_received += len(answer)
                return head, answer
            finally:
                if call is not None:
                    calls.forget(call)
                pool.put(connection, head)

    def _head(self, name: str, body: bytes) -> bytes:
        """Return the head of a request, up to its length."""
        value = self._authorization.value()
        if value != self._value:
            self._value = value
            self._heads.clear()
        head = self._heads.get(name)
        if head is None:
            resource = self._resource.replace(self._mark, name, 1) if self._mark else self._resource
            head = f"POST {resource}{self._lines}Authorization: {value}\r\n".encode()
            if len(self._heads) >= KEPT_HEADS:
                self._heads.clear()
            self._heads[name] = head
        if self._sends_destination and (destination := _destination(body)):
            return head + b"ILP-Destination: %b\r\n" % destination.encode()
        return head

    def tidy(self, now: float) -> float:
        """Close connections that have been idle for too long, and return when to do that again."""
        self._pool.drop_idle(now)
        return now + self._idle_seconds

    def close(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Close the idle connections, and fail the calls that wait for one."""
        self._pool.close(make_error)


def peer_name(incoming: IncomingOptions | None, outgoing: OutgoingOptions) -> str:
    """Return what this end calls itself; ilp-plugin-http has the same default. Empty for nothing."""
    if outgoing.name is not None:
        return outgoing.name
    return "" if incoming is None or incoming.port is None else str(incoming.port)


def _destination(body: bytes) -> str:
    try:
        packet = ilp.decode(body)
    except DecodeError:
        return ""
    return packet.destination if isinstance(packet, ilp.Prepare) else ""
