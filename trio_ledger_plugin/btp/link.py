"""One live BTP connection: what is sent, what is received, and every deadline of it.

The law of this module: a link goes from AUTHENTICATING to OPEN to LOST and never back. When it is lost, each of its
calls fails at that moment, what is queued is forgotten, and its socket is closed soon after. Nothing here waits for
user code; nothing but requests and replies waits at all.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Any

import trio

from ..codec import btp
from ..errors import (
    ConnectionLostError,
    InvalidFieldsError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    TransferInDoubtError,
    UnreachableError,
)
from ..parking import park
from ..runtime.calls import IN_DOUBT, Call, CallTable
from ..runtime.workers import RequestQueue
from ..transfer import MoneyLevel
from ..websocket.frame_stream import CLOSE_SECONDS
from .session import Session, Verdict, error_reply
from .transfers import read_transfer, transfer_packet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..runtime.context import Context
    from ..runtime.handlers import Reply
    from ..runtime.workers import Answer
    from ..transfer import Transfer
    from ..websocket.interface import WebSocketTransport

__all__ = ["Link"]

ANSWER, REQUEST = Verdict.ANSWER, Verdict.REQUEST
# What a transfer counts for while it waits for a handler.
TRANSFER_BYTES = 64
# What a message that is held takes beside its bytes: many empty ones must not grow without bound either.
HELD_BYTES = 32
CLOSE_POLICY, CLOSE_TOO_BIG, CLOSE_NORMAL = 1008, 1009, 1000
MINUTE = 60.0


class _State(Enum):
    AUTHENTICATING = "not authenticated yet"
    OPEN = "open"
    LOST = "lost"


class Link:
    """One connection to a peer, from its WebSocket handshake to its end.

    Args:
        context: What the parts of the plugin share.
        ids: Where request ids come from.
        websocket: The connection, its opening handshake done.
        on_lost: Called once, when the link is lost, with the reason.
    """

    __slots__ = (
        "_abort_at",
        "_context",
        "_first_message",
        "_held",
        "_malformed_since",
        "_malformed_times",
        "_max_asked",
        "_max_queued",
        "_next_ping",
        "_on_lost",
        "_pinging",
        "_queue",
        "_state",
        "_websocket",
        "account",
        "calls",
        "peer_retention",
        "replies_blocked",
        "session",
    )

    def __init__(
        self,
        context: Context,
        ids: Iterator[int],
        websocket: WebSocketTransport,
        on_lost: Callable[[Link, str], None],
    ) -> None:
        self._context = context
        options = context.options
        self._websocket = websocket
        self._on_lost = on_lost
        self.account: str = ""  # at the other end; empty for a plugin with one peer
        # For how many seconds the peer keeps transfer keys; None while the link is at PLAIN.
        self.peer_retention: int | None = None
        self.calls: CallTable = CallTable(ids, limit=options.max_in_flight, timeout=options.response_timeout)
        self.session: Session[Call] = Session(self.calls.pending, max_entries=options.max_entries)
        self._queue = RequestQueue(context.workers, context.budget, self, context.handlers.answer)
        self._state = _State.AUTHENTICATING
        self._max_queued = options.max_send_queue_bytes
        # Half of the queue is for replies: were it full of requests at both ends, neither could answer.
        self._max_asked = max(1, self._max_queued // 2)
        self.replies_blocked: int = 0
        self._first_message: Callable[[bytes], None] = self.hold
        self._held: list[bytes] = []
        self._malformed_times = 0
        self._malformed_since = -inf
        self._pinging: trio.CancelScope | None = None
        self._next_ping = inf
        self._abort_at = inf

    @property
    def is_open(self) -> bool:
        """Whether the peer is authenticated and the link alive."""
        return self._state is _State.OPEN

    @property
    def peer(self) -> str:
        """The peer's address, for logs."""
        return self._websocket.peer

    @property
    def bytes_sent(self) -> int:
        """Bytes that left in frames."""
        return self._websocket.writer.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes that came in frames."""
        return self._websocket.bytes_received

    # Authentication; how it goes is the client's and the listener's matter.

    def begin(self, first_message: Callable[[bytes], None]) -> None:
        """Let messages come; each goes to ``first_message`` until ``authenticated`` is called."""
        self._first_message = first_message
        self._websocket.open(self, self._reader_ended)

    def hold(self, message: bytes) -> None:
        """Keep a message that came before the link is authenticated; it is served afterwards."""
        held = sum(map(len, self._held)) + HELD_BYTES * len(self._held)
        if held + len(message) > self._context.options.max_unauthenticated_bytes:
            self.too_big()
        else:
            self._held.append(message)

    def answer_with(self, answer: Answer) -> None:
        """Have the peer's requests answered by this instead of the plugin's handlers; before ``authenticated``."""
        self._queue.answer = answer

    def send_unauthenticated(self, packet: bytes) -> None:
        """Send a packet of the authentication itself."""
        self._websocket.write(packet)

    def authenticated(self) -> None:
        """Open the link, and serve what came before the verdict."""
        if self._state is not _State.AUTHENTICATING:
            return
        self._state = _State.OPEN
        self._websocket.authenticated()
        now = trio.current_time()
        self._next_ping = now + self._context.options.ping_interval
        self._context.timers.schedule(self, self._next_visit(now, self.calls.expire(now)))
        held, self._held = self._held, []
        for message in held:
            self.receive(message)

    # Calls of ours.

    # Ctrl-C between the call and its wait would leave a call behind whose caller waits for something else by then.
    @trio.lowlevel.enable_ki_protection
    async def request(self, data: bytes) -> bytes:
        """Send ILP data and return the response's; ``LedgerPlugin.send_data`` documents the errors.

        Cancellation: The request may have left; its answer is ignored.
        """
        if len(self.calls.pending) >= self.calls.limit or self._websocket.writer.queued >= self._max_asked:
            await self.wait_for_turn()
        self.calls.check_open()
        alone = not self.calls.pending
        request_id, call = self.calls.open()
        packet = btp.encode_ilp(btp.MESSAGE, request_id, data)
        if alone:
            self._websocket.write_alone(packet)
        else:
            self._websocket.write(packet)
        self._context.counters.requests_sent += 1
        try:
            response: bytes = await park(call) if call.early is None else call.early.unwrap()
            return response
        finally:
            self.calls.forget(request_id)

    @trio.lowlevel.enable_ki_protection  # as for a request
    async def transfer(self, transfer: Transfer) -> None:
        """Send a transfer, once, and return when it is acknowledged; ``carry_money`` documents the errors.

        Cancellation: The transfer may have left and may be applied.
        """
        assert transfer.key is not None
        if transfer.level is MoneyLevel.KEYED and self.peer_retention is None:
            raise NotConnectedError("the peer does not keep transfer keys on this link; nothing was sent")
        await self.wait_for_turn()
        request_id, call = self.calls.open()
        self._websocket.write(transfer_packet(request_id, transfer))
        self._context.counters.requests_sent += 1
        try:
            await park(call) if call.early is None else call.early.unwrap()
        except IN_DOUBT as error:
            raise TransferInDoubtError(transfer.key, transfer.amount, str(error)) from error
        finally:
            self.calls.forget(request_id)

    async def drain(self) -> None:
        """Wait until no call is in flight and all that is queued was sent, or the link is lost.

        Cancellation: Safe at any time.
        """
        await self.calls.drain()
        await self._websocket.writer.flush()

    async def wait_for_turn(self) -> None:
        """Wait until a call more may be made; it must be made before anything else is awaited.

        Raises:
            NotConnectedError: The link was lost. Nothing was sent.
            LedgerPluginError: The plugin was closed, or has failed. Nothing was sent.

        Cancellation: Safe at any time.
        """
        calls, writer = self.calls, self._websocket.writer
        try:
            while not calls.closed and (len(calls.pending) >= calls.limit or writer.queued >= self._max_asked):
                await calls.wait_for_slot()
                await writer.wait_for_room(self._max_asked)
        except trio.Cancelled:
            calls.wake_next()
            raise
        calls.check_open()

    # What the lane calls, from trio-websocket's reader.

    def receive(self, message: bytes) -> None:
        """Take one binary message."""
        if self._state is _State.OPEN:
            verdict, key, value = self.session.receive(message)
            if verdict is ANSWER:
                self._context.counters.responses_received += 1
                key.answer(value)
            elif verdict is REQUEST:
                self._context.counters.requests_received += 1
                if not self._queue.submit(key, value, len(value)):
                    self._refuse(key, UnreachableError("too many requests wait already"))
            else:
                self._receive_other(verdict, key, value)
        elif self._state is _State.AUTHENTICATING:
            self._first_message(message)

    def receive_text(self) -> None:
        """Take note of a text message."""
        if self._state is _State.OPEN:
            self._receive_other(*self.session.reject_text())
        else:
            self.shut(CLOSE_POLICY, "a text message before authentication")

    def too_big(self) -> None:
        """Take note of a message past the limits."""
        self.shut(CLOSE_TOO_BIG, "a message past the limits")

    def peer_left(self, reason: str) -> None:
        """Take note that nothing more will be received."""
        self.lost(reason)

    def _receive_other(self, verdict: Verdict, key: Any, value: Any) -> None:  # noqa: ANN401 (the verdict tells)
        counters = self._context.counters
        if verdict is Verdict.FAILURE:
            counters.errors_received += 1
            key.fail(value)
        elif verdict is Verdict.TRANSFER:
            counters.requests_received += 1
            self._receive_transfer(key, value)
        elif verdict is Verdict.REPLY:
            counters.requests_received += 1
            self._write_bounded(value)
        elif verdict is Verdict.UNEXPECTED:
            counters.unexpected_responses += 1
        elif verdict is Verdict.MALFORMED:
            counters.malformed_packets += 1
            self._count_malformed(value)

    def _receive_transfer(self, request_id: int, packet: btp.Transfer) -> None:
        try:
            transfer = read_transfer(packet, self.account, keyed=self.peer_retention is not None)
        except InvalidFieldsError as error:
            self._refuse(request_id, error)
            return
        if not self._queue.submit(request_id, transfer, TRANSFER_BYTES):
            self._refuse(request_id, UnreachableError("too many requests wait already"))

    def _count_malformed(self, error: Exception) -> None:
        now = trio.current_time()
        if now - self._malformed_since > MINUTE:
            self._malformed_since, self._malformed_times = now, 0
        self._malformed_times += 1
        self._context.log.warn("unreadable message from %s: %s", self.peer, error)
        if self._malformed_times > self._context.options.max_malformed_per_minute:
            self.shut(CLOSE_POLICY, "too many unreadable messages")

    # Requests of the peer's; the handler pool calls these.

    async def reply(self, request_id: int, reply: Reply) -> None:
        """Send a handler's reply; dropped when the link is lost.

        Cancellation: The reply is dropped.
        """
        if self._websocket.writer.queued >= self._max_queued:
            self.replies_blocked += 1
            try:
                await self._websocket.writer.wait_for_room(self._max_queued)
            finally:
                self.replies_blocked -= 1
        if self._state is not _State.OPEN:
            return
        self.session.serving.discard(request_id)
        if isinstance(reply, LedgerPluginError):
            self._context.counters.errors_sent += 1
            self._websocket.write(error_reply(request_id, reply))
        else:
            self._context.counters.responses_sent += 1
            if isinstance(reply, bytes):
                packet = btp.encode_ilp(btp.RESPONSE, request_id, reply)
            else:
                packet = btp.encode(btp.Response(request_id))
            if self._queue.running == 1:
                self._websocket.write_alone(packet)
            else:
                self._websocket.write(packet)

    def expire(self, request_id: int) -> None:
        """Answer for a data handler that is past its deadline."""
        self._refuse(request_id, UnreachableError("the handler took too long"))

    def _refuse(self, request_id: int, error: LedgerPluginError) -> None:
        if self._state is _State.OPEN:
            self.session.serving.discard(request_id)
            self._write_bounded(error_reply(request_id, error))
            self._context.counters.errors_sent += 1

    def _write_bounded(self, packet: bytes) -> None:
        """Write for the reader, which cannot wait: what it may queue past the limit is little."""
        self._websocket.write(packet)
        if self._websocket.writer.queued > self._max_queued + self._context.options.max_error_reply_bytes:
            self.lost("the peer asks and does not read")
            self._websocket.abort()

    # Deadlines and the end.

    def fire(self, now: float) -> float:
        """Act on the deadlines that have passed."""
        if self._state is _State.LOST:
            # An earlier visit was asked for while the link was open: its goodbye may still be on the way.
            if now >= self._abort_at:
                self._websocket.abort()
            return inf
        due = self.calls.expire(now)
        writer = self._websocket.writer
        if writer.deadline <= now:
            self.lost("nothing more can be sent" if writer.is_stopped else "the peer does not read")
            self._websocket.abort()
            return inf
        writer.retire()
        if self._next_ping <= now:
            self._next_ping = now + self._context.options.ping_interval
            if self._pinging is None:
                self._context.tasks.spawn(self._ping)
        return self._next_visit(now, due)

    def _next_visit(self, now: float, due: float) -> float:
        return min(due, self._websocket.writer.deadline, self._next_ping, now + self._context.options.send_timeout)

    async def _ping(self) -> None:
        """Ask for a sign of life until a pong comes; whatever else comes is one too, and is asked for again."""
        answered = False
        while self._state is _State.OPEN and not answered:
            heard = self._websocket.bytes_received
            with trio.CancelScope(deadline=trio.current_time() + self._context.options.pong_timeout) as self._pinging:
                await self._websocket.ping()
                answered = True
            # A program that kept the loop busy meanwhile may find the pong unread: the reader goes first.
            await trio.lowlevel.checkpoint()
            if self._state is _State.OPEN and self._websocket.bytes_received == heard:
                self.lost(f"no sign of life for {self._context.options.pong_timeout:g} s after a ping")
                self._websocket.abort()
        self._pinging = None

    def shut(self, code: int, reason: str) -> None:
        """Lose the link and close the connection with a closing handshake."""
        if self._state is not _State.LOST:
            self.lost(reason)
            self._context.tasks.spawn(self._websocket.close, code, reason)

    async def close(self) -> None:
        """Part from the peer with a closing handshake, for at most a second.

        Cancellation: The connection is closed at once.
        """
        self.lost("closed from this side", closed=True)
        await self._websocket.close(CLOSE_NORMAL, "")

    def abort(self, reason: str, *, closed: bool = False) -> None:
        """Lose the link and drop the connection without a word; ``closed`` when the plugin is what ends."""
        self.lost(reason, closed=closed)
        self._websocket.abort()

    def lost(self, reason: str, *, closed: bool = False) -> None:
        """Fail what waits on the link; ``closed`` when this side ended it."""
        if self._state is _State.LOST:
            return
        was_open, self._state = self.is_open, _State.LOST
        if closed:
            self.calls.close(lambda: PluginClosedError("the plugin was closed; the peer may have acted"))
        else:
            self.calls.close(lambda: ConnectionLostError(f"the link was lost: {reason}; the peer may have acted"))
        self._websocket.writer.drop_messages()
        self._queue.abandon()
        self.session.serving.clear()
        if self._pinging is not None:
            self._pinging.cancel()
        if was_open:
            # Nothing of a stranger is visible, not even its bytes.
            self._context.counters.bytes_sent += self.bytes_sent
            self._context.counters.bytes_received += self.bytes_received
        self._abort_at = trio.current_time() + 2 * CLOSE_SECONDS
        self._context.timers.schedule(self, self._abort_at)
        self._on_lost(self, reason)

    def _reader_ended(self, cancelled: bool, error: Exception | None) -> None:
        if error is not None:
            self._context.log.error("reading from %s failed: %o", self.peer, error)
        self.lost("the plugin was closed" if cancelled else "the connection ended", closed=cancelled)
