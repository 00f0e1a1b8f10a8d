"""The engine of calls and requests over one link, for every plugin whose link carries messages.

Invariants: a call belongs to one link, and so does a request from the peer. Closing the exchange fails its calls. Later
replies of its handlers are dropped; they never go over the next link. A transfer that was handed to the link and has no
readable reply may have been applied: it is in doubt.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import count
from math import inf
from typing import TYPE_CHECKING

import trio

from ..errors import (
    ConnectionLostError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    TransferInDoubtError,
    UnreachableError,
)
from ..parking import park
from ..request import IncomingRequest
from ..transfer import MoneyLevel, Transfer, read_number
from .calls import IN_DOUBT, Call, CallTable
from .workers import RequestQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..negotiation import PeerJournal
    from ..statistics import Counters
    from .context import Context
    from .handlers import AnyReply, Payload, Reply
    from .timers import Scheduled
    from .workers import OnReply

__all__ = ["Exchange", "measure_links"]

# For how many bytes a transfer counts while it waits for a handler.
TRANSFER_BYTES = 64
# For how long the links of an account read nothing after a request that had to be refused, in seconds: to read what is
# refused costs as much as to read what is served.
REST_SECONDS = 0.05
_links = count(1)


class Exchange(ABC):
    """Requests, replies and transfers over one link, each answered once.

    A subclass implements ``send_request`` and ``send_reply``. It calls ``receive_request`` and ``receive_reply`` when a
    message arrives over the link, and ``close`` when the link is lost.

    Args:
        context: What the parts of the plugin share.
        ids: Yields the ids of requests. All links of a plugin share it, so that a late reply never matches a call of
            another link.
    """

    __slots__ = ("_timer", "calls", "context", "counters", "requests")

    def __init__(self, context: Context, ids: Iterator[int]) -> None:
        options = context.options
        self.context: Context = context
        self.counters: Counters = context.counters
        self.calls: CallTable = CallTable(
            ids, context.budget, limit=options.max_in_flight, timeout=options.response_timeout
        )
        self.requests: RequestQueue = RequestQueue(context.workers, context.budget, self, context.handlers)
        self._timer: Scheduled | None = None

    # What a subclass implements.

    @abstractmethod
    def send_request(self, request_id: int, request: bytes | Transfer) -> None:
        """Send a request or a transfer to the peer, or queue it.

        Raises:
            LedgerPluginError: Nothing was sent; the caller gets the error.
        """

    @abstractmethod
    def send_reply(self, request_id: int, reply: AnyReply) -> None:
        """Send the reply to a request from the peer, or queue it."""

    def send_refusal(self, request_id: int, error: LedgerPluginError) -> None:
        """Send an error for a request that no handler answers. The reading task calls this, so it must not wait."""
        self.send_reply(request_id, error)

    @property
    def peer_journal(self) -> PeerJournal | None:
        """The peer's journal, as both ends agreed on this link; None at PLAIN."""
        return None

    @property
    def account(self) -> str:
        """The peer's account; empty for a plugin with one peer."""
        return ""

    @property
    def peer(self) -> str:
        """The peer's address, for logs; empty if it has none."""
        return ""

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self.calls.pending

    @property
    def connections(self) -> int:
        """The number of connections over which the peer reaches this end."""
        return 1

    @property
    def bytes_sent(self) -> int:
        """The number of bytes sent over the link; 0 for a link without a network."""
        return 0

    @property
    def bytes_received(self) -> int:
        """The number of bytes received over the link; 0 for a link without a network."""
        return 0

    @property
    def is_open(self) -> bool:
        """Whether calls can be made."""
        return not self.calls.closed

    def is_full(self) -> bool:
        """Whether a further request has to wait for room."""
        return False

    async def wait_for_room(self) -> None:
        """Wait while ``is_full``, or until the exchange is closed.

        Cancellation: Safe at any time.
        """
        await trio.lowlevel.checkpoint()

    # What a plugin calls.

    # Ctrl-C must not interrupt between open() and forget(): the call would stay in the table without its caller.
    @trio.lowlevel.enable_ki_protection
    async def request(self, request: bytes | Transfer) -> bytes:
        """Send a request and return its response; ``LedgerPlugin.send_data`` documents the errors.

        Cancellation: The request may have been sent; its response is ignored.
        """
        calls = self.calls
        if calls.budget.calls >= calls.limit or self.is_full():
            await self._wait_for_turn()
        if calls.make_error is not None:
            calls.check_open()
        request_id, call = calls.open()
        try:
            self.send_request(request_id, request)
            self.counters.requests_sent += 1
            if self.context.workers.on_answered is not None:
                return await self._wait_watched(call, self.context.workers.on_answered)
            if call.early is not None:
                await trio.lowlevel.checkpoint()
                return call.early.unwrap()
            response: bytes = await park(call)
            return response
        finally:
            calls.forget(request_id)

    async def _wait_watched(self, call: Call, on_answered: OnReply) -> bytes:
        """Wait for the reply to a call, and report it.

        Cancellation: The response is ignored.
        """
        began = trio.current_time()
        try:
            if call.early is not None:
                await trio.lowlevel.checkpoint()
                response: bytes = call.early.unwrap()
            else:
                response = await park(call)
        except LedgerPluginError as error:
            on_answered(began, error)
            raise
        on_answered(began, response)
        return response

    async def transfer(self, transfer: Transfer) -> int:
        """Send a transfer, once; ``LedgerPlugin.carry_money`` documents the errors.

        Returns:
            The number of the receipt; 0 if it has none, as at PLAIN.

        Cancellation: The transfer may have been sent and applied.
        """
        assert transfer.key is not None
        if transfer.level is MoneyLevel.KEYED and self.peer_journal is None:
            raise NotConnectedError("the peer does not keep transfer keys on this link; nothing was sent")
        calls = self.calls
        if calls.closed or calls.budget.calls >= calls.limit or self.is_full():
            await self._wait_for_turn()
        # request() sends before it awaits anything, so an error from here on is that of a call in flight.
        try:
            return read_number(await self.request(transfer))
        except IN_DOUBT as error:
            raise TransferInDoubtError(transfer.key, transfer.amount, str(error)) from error

    async def _wait_for_turn(self) -> None:
        """Wait until another call may be made; the caller must make it before it awaits anything else."""
        calls = self.calls
        try:
            while not calls.closed and (calls.budget.calls >= calls.limit or self.is_full()):
                await calls.wait_for_slot()
                await self.wait_for_room()
        except trio.Cancelled:
            calls.wake_next()
            raise
        calls.check_open()

    # What a subclass calls.

    def receive_request(self, request_id: int, request: Payload) -> None:
        """Serve a request or a transfer from the peer; the reply is sent later, unless the link is lost."""
        self.counters.requests_received += 1
        if isinstance(request, tuple):
            size = sum(len(entry.data) for entry in request)
        else:
            size = TRANSFER_BYTES if isinstance(request, Transfer) else len(request)
        if not self.requests.submit(request_id, request, size):
            self.refuse_one_too_many(request_id)

    def describe(self) -> IncomingRequest:
        """Return what ``current_request()`` returns in the handlers of the peer's requests."""
        return IncomingRequest(self.account, next(_links), self.peer, self.context.budget)

    def receive_reply(self, request_id: int, reply: Reply) -> None:
        """Give a reply to its call; a reply without a call is counted and ignored.

        Args:
            request_id: The id of the request.
            reply: A response; None for an empty response; or the error with which the call fails, a ``DecodeError`` if
                the peer's reply cannot be read.
        """
        call = self.calls.pending.pop(request_id, None)
        if call is None:
            self.counters.unexpected_responses += 1
        else:
            self.resolve(call, reply)

    def resolve(self, call: Call, reply: Reply) -> None:
        """Give a reply to a call that has been removed from the table."""
        if isinstance(reply, LedgerPluginError):
            self.counters.errors_received += 1
            call.fail(reply)
        else:
            self.counters.responses_received += 1
            call.answer(reply or b"")

    async def reply(self, request_id: int, reply: AnyReply) -> None:
        """Send a handler's reply; the reply is dropped if the link is lost.

        Cancellation: The reply is dropped.
        """
        if self.is_open:
            self.answer(request_id, reply)

    def answer(self, request_id: int, reply: AnyReply) -> None:
        """Count a reply and send it over the link, which is open."""
        if reply.__class__ is bytes or not isinstance(reply, LedgerPluginError):
            self.counters.responses_sent += 1
        else:
            self.counters.errors_sent += 1
        self.send_reply(request_id, reply)

    def expire(self, request_id: int) -> None:
        """Answer for a data handler that is past its deadline."""
        self.refuse(request_id, UnreachableError("the handler took too long"))

    def refuse(self, request_id: int, error: LedgerPluginError) -> None:
        """Answer a request with an error, without waiting."""
        if self.is_open:
            self.counters.errors_sent += 1
            self.send_refusal(request_id, error)

    def refuse_one_too_many(self, request_id: int) -> None:
        """Answer a request for which there is no room."""
        self.counters.requests_refused += 1
        self.context.budget.rest_until = trio.current_time() + REST_SECONDS
        self.refuse(request_id, UnreachableError("too many requests wait already"))

    def serve_as(self, context: Context) -> None:
        """Use another context for the peer's requests and the counters: that of its account."""
        self.context = context
        self.counters = context.counters
        self.calls.budget = self.requests.budget = context.budget
        self.requests.handlers = context.handlers

    # Deadlines and the end.

    def start_timers(self) -> None:
        """Keep the deadlines of calls from now on; ``LedgerPlugin.attach`` calls this."""
        self.keep_time(self.calls.expire(trio.current_time()))

    def keep_time(self, when: float) -> None:
        """Have ``fire`` called at a time on Trio's clock, then at each time that it returns, until ``stop_timer``."""
        self._timer = self.context.timers.schedule(self, when)

    def stop_timer(self) -> None:
        """Keep no more time: otherwise a lost link would stay in memory until its next deadline."""
        if self._timer is not None:
            self.context.timers.cancel(self._timer)

    def fire(self, now: float) -> float:
        """Fail the calls that are past their deadline."""
        return inf if self.calls.closed else self.calls.expire(now)

    def close(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call, each with an error of its own, and drop waiting requests; the first reason counts."""
        self.calls.close(make_error)
        self.requests.abandon()
        self.stop_timer()

    def replace_queue(self) -> None:
        """Replace the queue of requests, since nothing can arrive now: each would keep the other in memory."""
        self.requests = self.requests.successor()

    def abort(self, reason: str, *, closed: bool = False) -> None:
        """Drop the link at once.

        Args:
            reason: Why.
            closed: Whether this side has closed the plugin, so that calls fail with ``PluginClosedError``.
        """
        if closed:
            self.close(lambda: PluginClosedError("the plugin was closed; the peer may have acted"))
        else:
            self.close(lambda: ConnectionLostError(f"the link was lost: {reason}; the peer may have acted"))

    async def drain(self) -> None:
        """Wait until no call is in flight, or the exchange is closed.

        Cancellation: Safe at any time.
        """
        await self.calls.drain()

    async def finish(self) -> None:
        """Drain; a subclass may then do a closing handshake.

        Cancellation: If the closing handshake has begun, the link is closed at once.
        """
        await self.drain()


def measure_links(exchanges: Sequence[Exchange]) -> dict[str, int]:
    """Return what the exchanges of a plugin's links have in use now, and have sent and received, for ``Statistics``."""
    return {
        "links": len(exchanges),
        "calls_in_flight": sum(len(exchange.calls.pending) for exchange in exchanges),
        "bytes_sent": sum(exchange.bytes_sent for exchange in exchanges),
        "bytes_received": sum(exchange.bytes_received for exchange in exchanges),
    }
