"""One BTP connection to a peer: its exchange, its keep-alive, and its end.

Invariant: a link goes from AUTHENTICATING to OPEN to LOST and never back. Only ``end`` makes it LOST: its calls fail
and queued messages are dropped at that moment, and its socket is closed soon after. Nothing here waits for the
application's code.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from ..codec import btp
from ..errors import InvalidFieldsError, LedgerPluginError
from ..runtime.exchange import Exchange
from ..runtime.timers import round_up
from ..websocket.frame_stream import CLOSE_SECONDS
from .keep_alive import ping_peer
from .session import Session, SessionEvent, error_reply, read_transfer, response_packet, transfer_packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..negotiation import PeerJournal
    from ..runtime.budget import Budget
    from ..runtime.calls import Call
    from ..runtime.context import Context
    from ..runtime.handlers import AnyReply
    from ..transfer import Transfer
    from ..websocket.interface import WebSocketTransport
    from ..websocket.writer import FrameWriter

__all__ = ["Link"]

ANSWER, REQUEST = SessionEvent.ANSWER, SessionEvent.REQUEST
# What a held message costs besides its bytes: many empty messages must not grow without bound either.
HELD_BYTES = 32
CLOSE_POLICY, CLOSE_TOO_BIG, CLOSE_NORMAL = 1008, 1009, 1000
MINUTE = 60.0
TIDY_SECONDS = 10.0  # How often an idle link ends its writing task, also without a deadline for sends.


class _State(Enum):
    AUTHENTICATING = "not authenticated yet"
    OPEN = "open"
    LOST = "lost"


class Link(Exchange):
    """One connection to a peer, from its WebSocket handshake to its end.

    Args:
        context: What the parts of the plugin share.
        ids: Yields the ids of requests.
        transport: The connection, its opening handshake done.
        on_lost: Called once, when the link is lost, with the reason. May be replaced later.
    """

    __slots__ = (
        "_abort_at",
        "_counts",
        "_first_message",
        "_frame",
        "_held",
        "_malformed_since",
        "_malformed_times",
        "_max_asked",
        "_max_queued",
        "_next_ping",
        "_pinging",
        "_state",
        "_transport",
        "_verdict",
        "_writer",
        "account",
        "is_downgraded",
        "on_lost",
        "peer_journal",
        "replies_blocked",
        "session",
    )

    def __init__(
        self,
        context: Context,
        ids: Iterator[int],
        transport: WebSocketTransport,
        on_lost: Callable[[Link, str], None],
    ) -> None:
        super().__init__(context, ids)
        options = context.options
        self._transport = transport
        self._writer: FrameWriter = transport.writer
        self._frame = transport.frame
        self.on_lost: Callable[[Link, str], None] = on_lost
        #: The peer's account; empty for a plugin with one peer.
        self.account: str = ""
        self.peer_journal: PeerJournal | None = None
        #: Whether the link is PLAIN only because this end's journal was not open yet.
        self.is_downgraded: bool = False
        self.session: Session[Call] = Session(self.calls.pending, max_entries=options.max_entries)
        self._state = _State.AUTHENTICATING
        # Whether the budget counts this link: from authentication until the socket is closed.
        self._counts = False
        self._max_queued = options.max_send_queue_bytes
        # Half of the queue is for replies: if requests filled it at both ends, neither end could reply.
        self._max_asked = max(1, self._max_queued // 2)
        self.replies_blocked: int = 0
        # Set from begin() until the link is authenticated or lost.
        self._first_message: Callable[[bytes], None] | None = None
        self._held: tuple[bytes, ...] = ()
        self._verdict: trio.Event | None = None  # While the peer's token is looked up; set when it is judged.
        self._malformed_times, self._malformed_since = 0, -inf
        self._pinging: trio.CancelScope | None = None
        self._next_ping = inf
        self._abort_at = inf

    @property
    def is_open(self) -> bool:
        """Whether the peer is authenticated and the link is not lost."""
        return self._state is _State.OPEN

    @property
    def is_lost(self) -> bool:
        """Whether the link has ended."""
        return self._state is _State.LOST

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: no call, no request and nothing to send."""
        return not (self.calls.pending or self.session.serving or self._writer.queued)

    @property
    def turns(self) -> Budget:
        """The budget whose links take turns in reading: the account's, or the server's before authentication."""
        return self.context.budget

    @property
    def peer(self) -> str:
        """The peer's address, for logs."""
        return self._transport.peer

    @property
    def bytes_sent(self) -> int:
        """The number of bytes sent in frames."""
        return self._writer.bytes_sent

    @property
    def bytes_received(self) -> int:
        """The number of bytes received in frames."""
        return self._transport.bytes_received

    # Authentication, which the client or the server does.

    def begin(self, first_message: Callable[[bytes], None]) -> None:
        """Start to receive messages; ``first_message`` gets them until ``authenticated`` is called."""
        self._first_message = first_message
        self._transport.open(self, self._transport_ended)

    def hold(self, message: bytes) -> None:
        """Keep a message that arrives before the link is authenticated; ``authenticated`` serves it."""
        self._held += (message,)
        if sum(map(len, self._held)) + HELD_BYTES * len(self._held) > self.context.options.max_unauthenticated_bytes:
            if self._verdict is None:
                self.too_big()
            else:
                self.replies_blocked = 1  # Reading pauses; what has been read already is held.

    def await_verdict(self) -> None:
        """Allow messages of full size, and a backlog behind the auth packet, while the peer's token is looked up."""
        self._transport.authenticated()
        self._verdict = trio.Event()

    async def wait_ready(self) -> None:
        """Wait until messages can be handled: the peer's token is judged, and half of the send queue is free.

        Cancellation: Safe at any time.
        """
        if self._verdict is not None:
            await self._verdict.wait()
        await self._writer.wait_for_room(self._max_queued // 2)

    def _end_authentication(self) -> None:
        self._first_message = None
        if self._verdict is not None:
            self._verdict.set()
            self._verdict, self.replies_blocked = None, 0

    def send_unauthenticated(self, packet: bytes) -> None:
        """Send a packet of the authentication, at once if possible: a task that writes would linger."""
        self._writer.write_alone(self._frame(packet))

    def authenticated(self) -> None:
        """Open the link, and serve the messages that were held."""
        if self._state is not _State.AUTHENTICATING:
            return
        self._state = _State.OPEN
        self._counts = True
        self.context.budget.count_link(1)
        self._end_authentication()
        self._transport.authenticated()
        now = trio.current_time()
        self._next_ping = round_up(now + self.context.options.ping_interval)
        self.keep_time(self._next_time(now, self.calls.expire(now)))
        held, self._held = self._held, ()
        for message in held:
            self.receive(message)

    def start_timers(self) -> None:
        """Do nothing: ``authenticated`` schedules the deadlines of calls and pings together."""

    # Sending.

    def _write(self, packet: bytes) -> None:
        self._writer.write(self._frame(packet))

    def send_request(self, request_id: int, request: bytes | Transfer) -> None:
        """Queue a request, or send it at once if it is the only one."""
        if request.__class__ is not bytes:
            self._write(transfer_packet(request_id, request, self.peer_journal))  # type: ignore[arg-type]  # a transfer, by its class
        else:
            write = self._writer.write_alone if len(self.calls.pending) == 1 else self._writer.write
            write(self._frame(btp.encode_ilp(btp.MESSAGE, request_id, request)))

    def is_full(self) -> bool:
        """Whether a further request has to wait for room in the queue."""
        return self._writer.queued >= self._max_asked

    async def wait_for_room(self) -> None:
        """Wait for room in the queue."""
        await self._writer.wait_for_room(self._max_asked)

    async def drain(self) -> None:
        """Wait until no call is in flight and the queue is empty, or the link is lost."""
        await self.calls.drain()
        await self._writer.flush()

    async def reply(self, request_id: int, reply: AnyReply) -> None:
        """Send a handler's reply once the queue has room; the reply is dropped if the link is lost.

        Cancellation: The reply is dropped.
        """
        if self._writer.queued >= self._max_queued:
            self.replies_blocked += 1
            try:
                await self._writer.wait_for_room(self._max_queued)
            finally:
                self.replies_blocked -= 1
        if self._state is not _State.OPEN:
            return
        if reply.__class__ is bytes:
            # Nearly all replies are bytes: this is answer() and send_reply() without two method calls.
            self.counters.responses_sent += 1
            self._send_response(request_id, btp.encode_ilp(btp.RESPONSE, request_id, reply))
        else:
            self.answer(request_id, reply)

    def send_reply(self, request_id: int, reply: AnyReply) -> None:
        """Queue a reply, or send it at once if no other request is being served."""
        if isinstance(reply, LedgerPluginError):
            self.session.serving.pop(request_id, None)
            self._write(error_reply(request_id, reply))
        else:
            self._send_response(request_id, response_packet(request_id, reply))

    def _send_response(self, request_id: int, packet: bytes) -> None:
        self.session.serving.pop(request_id, None)
        if not self.session.serving:
            self._writer.write_alone(self._frame(packet))
        else:
            self._write(packet)

    def send_refusal(self, request_id: int, error: LedgerPluginError) -> None:
        """Queue an error in the room that is reserved for the reader, which cannot wait."""
        self.session.serving.pop(request_id, None)
        self._write_bounded(error_reply(request_id, error))

    def _write_bounded(self, packet: bytes) -> None:
        """Queue a packet for the reader, which cannot wait; abort once ``max_error_reply_bytes`` are past the limit."""
        self._write(packet)
        if self._writer.queued > self._max_queued + self.context.options.max_error_reply_bytes:
            self.abort("the peer asks and does not read")

    # What the transport calls, from the task that reads.

    def receive(self, message: bytes) -> None:
        """Handle one binary message."""
        if self._state is _State.OPEN:
            event, key, value = self.session.receive(message)
            # Nearly all messages are of these two kinds. This is resolve() and receive_request() inlined: a method call
            # costs a fiftieth of a request.
            if event is ANSWER:
                self.counters.responses_received += 1
                key.answer(value)
            elif event is REQUEST:
                self.counters.requests_received += 1
                if not self.requests.submit(key, value, len(value)):
                    self.refuse_one_too_many(key)
            else:
                self._receive_other(event, key, value)
        elif self._first_message is not None:
            self._first_message(message)

    def receive_text(self) -> None:
        """Handle a text message: BTP has none."""
        if self._state is _State.OPEN:
            self._receive_other(*self.session.reject_text())
        else:
            self.shut(CLOSE_POLICY, "a text message before authentication")

    def too_big(self) -> None:
        """Handle a message that exceeds the limits."""
        self.shut(CLOSE_TOO_BIG, "a message past the limits")

    def peer_left(self, reason: str) -> None:
        """Handle the end of the connection."""
        # The peer may repeat the token in its reason.
        self.end(self.context.log.redact(reason))

    def _receive_other(self, event: SessionEvent, key: Any, value: Any) -> None:  # noqa: ANN401 (their types depend on the event)
        if event is SessionEvent.FAILURE:
            if value.__cause__ is not None:
                log = self.context.log.once(self.account or self.peer)
                log.warn("an Error from %s was read in part: %s", self.peer, value.__cause__)
            self.resolve(key, value)
        elif event is SessionEvent.TRANSFER:
            self._receive_transfer(key, value)
        elif event is SessionEvent.OTHER:
            self.receive_request(key, value)
        elif event is SessionEvent.REPLY:
            self.counters.requests_received += 1
            self._write_bounded(value)
        elif event is SessionEvent.UNEXPECTED:
            self.counters.unexpected_responses += 1
        elif event is SessionEvent.MALFORMED:
            self.counters.malformed_packets += 1
            self._count_malformed(value)

    def _receive_transfer(self, request_id: int, packet: btp.Transfer) -> None:
        try:
            transfer = read_transfer(packet, self.account, self.peer_journal)
        except InvalidFieldsError as error:
            self.counters.requests_received += 1
            self.refuse(request_id, error)
        else:
            self.receive_request(request_id, transfer)

    def _count_malformed(self, error: Exception) -> None:
        if (now := trio.current_time()) - self._malformed_since > MINUTE:
            self._malformed_since, self._malformed_times = now, 0
        self._malformed_times += 1
        self.context.log.once(self.account or self.peer).warn("unreadable message from %s: %s", self.peer, error)
        if self._malformed_times > self.context.options.max_malformed_per_minute:
            self.shut(CLOSE_POLICY, "too many unreadable messages")

    # Deadlines.

    def fire(self, now: float) -> float:
        """Act on the deadlines that have passed."""
        if self._state is _State.LOST:
            # The timer was scheduled while the link was open. The closing handshake may not have ended yet.
            if now >= self._abort_at:
                self._transport.abort()
            return inf
        due = self.calls.expire(now)
        writer = self._writer
        if writer.deadline <= now:
            self.abort("nothing more can be sent" if writer.is_stopped else "the peer does not read")
            return inf
        writer.retire()
        if self._next_ping <= now:
            self._next_ping = round_up(now + self.context.options.ping_interval)
            if self._pinging is None:
                self.context.tasks.spawn(self._ping)
        return self._next_time(now, due)

    def _next_time(self, now: float, due: float) -> float:
        tidy = round_up(now + min(self.context.options.send_timeout, TIDY_SECONDS))
        return min(due, self._writer.deadline, self._next_ping, tidy)

    async def _ping(self) -> None:
        with trio.CancelScope() as self._pinging:
            seconds = self.context.options.pong_timeout
            await ping_peer(self._transport, seconds, lambda: self._state is _State.OPEN, self.abort)
        self._pinging = None

    # The end.

    def shut(self, code: int, reason: str) -> None:
        """End the link and close the connection with a closing handshake, without waiting for it."""
        if self._state is not _State.LOST:
            self.end(reason)
            self.context.tasks.spawn(self._transport.close, code, reason)

    async def finish(self) -> None:
        """Drain, then close with a closing handshake of at most a second, for which some of the caller's time is kept.

        Cancellation: Once the handshake has begun, the connection is closed at once.
        """
        left = trio.current_effective_deadline() - trio.current_time()
        with trio.move_on_after(max(left - CLOSE_SECONDS, left / 2, 0)):
            await self.drain()
        if self._state is not _State.LOST:
            self.end("closed from this side", closed=True)
            await self._transport.close(CLOSE_NORMAL, "")

    def abort(self, reason: str, *, closed: bool = False) -> None:
        """End the link and drop the connection without a closing handshake."""
        self.end(reason, closed=closed)
        self._transport.abort()

    def end(self, reason: str, *, closed: bool = False) -> None:
        """Lose the link: fail its calls, and drop queued messages; the first reason counts.

        Args:
            reason: Why, for calls, events and logs.
            closed: Whether this side has closed the plugin, so that calls fail with ``PluginClosedError``.
        """
        if self._state is _State.LOST:
            return
        was_open = self._state is _State.OPEN
        self._state = _State.LOST
        self._end_authentication()
        super().abort(reason, closed=closed)
        self._writer.drop_messages()
        self.session.serving.clear()
        if self._pinging is not None:
            self._pinging.cancel()
        if was_open:  # An unauthenticated connection is not visible, so its bytes do not count.
            self.counters.bytes_sent += self.bytes_sent
            self.counters.bytes_received += self.bytes_received
        self._abort_at = trio.current_time() + 2 * CLOSE_SECONDS
        self.on_lost(self, reason)
        # Last: on_lost may close the exchange again, and that stops its timer.
        self.keep_time(self._abort_at)

    def _transport_ended(self, cancelled: bool, error: Exception | None) -> None:
        if error is not None:
            self.context.log.error("reading from %s failed: %O", self.peer, error)
        self.end("the plugin was closed" if cancelled else "the connection ended", closed=cancelled)
        self.stop_timer()
        self.replace_queue()
        if self._counts:
            self._counts = False
            self.context.budget.count_link(-1)
