"""The exchange with one peer: its requests come over connections of a server, those of this end go over a client's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio

from ..codec import ilp
from ..errors import (
    DecodeError,
    LedgerPluginError,
    NotAcceptedError,
    NotConnectedError,
    RemoteError,
    UnreachableError,
)
from ..runtime.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from ..runtime.context import Context
    from ..runtime.handlers import AnyReply
    from ..transfer import Transfer
    from .client import Client
    from .heads import ResponseHead
    from .responder import Responder

__all__ = ["HttpLink"]

BAD_REQUEST, BAD_GATEWAY, UNAVAILABLE = 400, 502, 503
# The names that RFC-0023 has for the codes.
NAMES: Final = {"F00": NotAcceptedError.name, "T00": UnreachableError.name}
# Statuses of web servers, and of BTP servers, which have no endpoint for POST at this URL.
NO_ENDPOINT: Final = frozenset({404, 405, 501})


def looks_like_ilp(data: bytes) -> bool:
    """Whether data has the type and the length of an ILP packet; its fields are not checked."""
    if len(data) < 2 or not ilp.PREPARE <= data[0] <= ilp.REJECT:
        return False
    size = data[1]
    if size < 0x80:
        return size + 2 <= len(data)
    count = size & 0x7F
    return 0 < count <= 4 and int.from_bytes(data[2 : 2 + count]) + 2 + count <= len(data)


class HttpLink(Exchange):
    """Requests and replies of one peer.

    Args:
        context: What the parts of the plugin share, or the account's.
        ids: Yields the ids of requests.
        client: Sends requests; None if this end only serves.
        address: Returns this end's ILP address for its own Rejects; empty if it is not known.
        account: The account's name; empty for a plugin with one peer.
    """

    __slots__ = ("_active", "_address", "_client", "_ids", "_quiet", "_responders", "account")

    def __init__(
        self,
        context: Context,
        ids: Iterator[int],
        client: Client | None,
        *,
        address: Callable[[], str],
        account: str = "",
    ) -> None:
        super().__init__(context, ids)
        self._ids = ids
        self._client = client
        self._address = address
        self.account: str = account
        # The requests of the peer without a reply.
        self._responders: dict[int, Responder] = {}
        # The calls that wait, for a connection or for their answer.
        self._active = 0
        self._quiet: trio.Event | None = None

    # This end's requests.

    def request(self, request: bytes | Transfer) -> Coroutine[Any, Any, bytes]:
        """Send a request and return the body of its answer; ``LedgerPlugin.send_data`` documents the errors.

        Cancellation: The request may have been sent; its connection is closed.
        """
        assert isinstance(request, bytes)
        return self.send_to(self.account, request)

    # Ctrl-C must not interrupt the bookkeeping of the pool.
    @trio.lowlevel.enable_ki_protection
    async def send_to(self, name: str, request: bytes) -> bytes:
        """Send a request to an account; ``request`` documents the rest."""
        if self.calls.make_error is not None:
            await trio.lowlevel.checkpoint()
            self.calls.check_open()
        if self._client is None:
            await trio.lowlevel.checkpoint()
            raise NotConnectedError("there is no outgoing.url to send requests to; nothing was sent")
        on_answered = self.context.workers.on_answered
        began = 0.0 if on_answered is None else trio.current_time()
        self._active += 1
        try:
            body = await self._exchange(self._client, name, request)
        except LedgerPluginError as error:
            if on_answered is not None:
                on_answered(began, error)
            raise
        finally:
            self._active -= 1
            if self._quiet is not None and not self._active:
                self._quiet.set()
        if on_answered is not None:
            on_answered(began, body)
        return body

    async def _exchange(self, client: Client, name: str, request: bytes) -> bytes:
        head, body = await client.exchange(self.calls, self.counters, name, request)
        if not head.is_wanted:
            self.counters.errors_received += 1
            raise _error_of(head, body)
        if looks_like_ilp(request) and not looks_like_ilp(body):
            raise DecodeError("the answer to an ILP packet is none; the peer may have acted")
        self.counters.responses_received += 1
        return body

    def send_request(self, request_id: int, request: bytes | Transfer) -> None:
        """Not used: ``request`` sends and receives."""
        raise NotImplementedError

    # The peer's requests.

    def serve(self, responder: Responder, body: bytes) -> None:
        """Serve a request of the peer; the responder gets the reply."""
        request_id = responder.request_id = next(self._ids)
        self._responders[request_id] = responder
        responder.is_ilp = looks_like_ilp(body)
        self.counters.requests_received += 1
        if not self.requests.submit(request_id, body, len(body)):
            del self._responders[request_id]
            self.counters.requests_refused += 1
            self.counters.errors_sent += 1
            responder.respond_soon(UNAVAILABLE, b"too many requests wait already")

    async def reply(self, request_id: int, reply: AnyReply) -> None:
        """Send a handler's reply; it is dropped if the connection is lost.

        Cancellation: The reply is dropped.
        """
        responder = self._responders.pop(request_id, None)
        if responder is None or not self.is_open:
            return
        self._count(reply)
        await responder.respond(*self._response(responder, reply))

    def send_reply(self, request_id: int, reply: AnyReply) -> None:
        """Send a reply without waiting, as for a handler that is past its deadline."""
        responder = self._responders.pop(request_id, None)
        if responder is not None:
            responder.respond_soon(*self._response(responder, reply))

    def _count(self, reply: AnyReply) -> None:
        if isinstance(reply, bytes):
            self.counters.responses_sent += 1
        else:
            self.counters.errors_sent += 1

    def _response(self, responder: Responder, reply: AnyReply) -> tuple[int, bytes]:
        """Return the status and the body of a reply.

        Peers make one and the same error of every status, so the reply to a Prepare is a Reject where it can be.
        """
        if isinstance(reply, bytes):
            return 200, reply
        error = reply if isinstance(reply, LedgerPluginError) else UnreachableError("no reply")
        handlers = self.context.handlers
        if handlers.data is None and isinstance(error, UnreachableError):
            return BAD_GATEWAY, b"no data handler is registered"
        if handlers.is_stopped and isinstance(error, UnreachableError):
            return UNAVAILABLE, b"closing"
        if responder.is_ilp:
            return 200, ilp.encode(ilp.reject_from(error, self._address()))
        return (UNAVAILABLE if error.code.startswith("T") else BAD_REQUEST), str(error).encode("utf-8", "replace")

    def connection_opened(self, connection: object) -> None:
        """Count a connection of the peer; the link of an account does."""

    def connection_closed(self, connection: object) -> None:
        """Count a connection of the peer as closed."""

    def forget(self, responder: Responder) -> None:
        """Drop the reply of a lost connection; the handler goes on."""
        # At once, however many others there are: all of them may be lost at the same time.
        if self._responders.get(responder.request_id) is responder:
            del self._responders[responder.request_id]

    # Deadlines and the end.

    def start_timers(self) -> None:
        """Keep the deadlines of calls and of idle connections from now on."""
        self.keep_time(self.fire(trio.current_time()))

    def fire(self, now: float) -> float:
        """Fail the calls that are past their deadline, and close old connections."""
        again = super().fire(now)
        return min(again, self._client.tidy(now)) if self._client is not None and self.is_open else again

    def close(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call, each with an error of its own, and drop the replies to the peer's requests."""
        super().close(make_error)
        for responder in tuple(self._responders.values()):
            responder.drop()
        self._responders.clear()

    async def drain(self) -> None:
        """Wait until no call is in flight.

        Cancellation: Safe at any time.
        """
        while self._active:
            if self._quiet is None:
                self._quiet = trio.Event()
            await self._quiet.wait()
            self._quiet = None


def _error_of(head: ResponseHead, body: bytes) -> LedgerPluginError:
    """Return the error of a call whose answer is not 200, or is encoded."""
    status = head.status
    if status in (401, 403):
        return NotAcceptedError(f"the peer refuses the credentials: HTTP {status}")
    if status < 300:
        what = "a Content-Encoding" if head.encoded else f"HTTP {status}"
        return DecodeError(f"the peer answered with {what}, which holds no answer; the peer may have acted")
    code = "T00" if status == 429 or status >= 500 else "F00"
    said = body.strip()
    if said.startswith(b"<"):
        # From a web server or a proxy; it says no more than the status.
        said = b"a page"
    hint = "; is ILP over HTTP served at this URL?" if status in NO_ENDPOINT else ""
    data = f"HTTP {status}".encode() + (b": " + said if said else b"") + hint.encode()
    return RemoteError(code, NAMES[code], data=data)
