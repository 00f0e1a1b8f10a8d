"""Moves the money of a payment: many packets in flight, as many and as large as the path takes.

Invariant: every packet in flight belongs to one task, which alone counts its amount as sent, as free again, or as
unanswered. So the amounts sent, in flight and free add up at any time, and a payment never sends more than it may.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from ..codec import stream
from ..errors import LedgerPluginError
from ..parking import start_task
from .connection import STREAM_ID, Answer, Flight, Kind
from .order import MAX_IN_FLIGHT
from .probe import StoppedError
from .rates import ceil_divide, lower_maximum

if TYPE_CHECKING:
    from collections.abc import Callable
    from fractions import Fraction

    from .connection import Connection
    from .credentials import Credentials
    from .order import Order
    from .probe import Probed

__all__ = ["Payment", "Progress"]

_FRAMES: Final = (stream.StreamMoney(STREAM_ID, 1),)
_FIRST_WINDOW: Final = 10.0
# How many packets are in flight after a refusal, until one is fulfilled. If it were one, its loss would stop the
# payment until it expires.
_PROBES: Final = 2
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
# Seconds for which every packet may find a rate that is too low.
_LOW_RATE_SECONDS: Final = 2.0
# Codes of packets that may pass later: rounded to 0, timed out on the way, refused by the receiver.
_PASSING: Final = ("R00", "R01", "F99")


@frozen
class Progress:
    """How far a payment is.

    Attributes:
        sent: What was sent for certain, in smallest units of this account.
        delivered: What arrived for certain, at least, in smallest units of the receiver's account.
        in_flight: What is in packets without an answer yet.
        unanswered: What was in packets that got no answer before they expired.
        packets: How many packets were fulfilled.
        at_once: How many packets may be in flight now.
        done: Whether the payment has ended, for any reason.
    """

    sent: int
    delivered: int
    in_flight: int
    unanswered: int
    packets: int
    at_once: int
    done: bool


@define(eq=False)
class _InFlight(Flight):
    """The packet that a worker has in flight: its amount, what is expected to arrive, and what has to.

    Attributes:
        sent_at: When it was sent, on Trio's clock.
        scope: What ends the wait for an answer; not used for another packet then.
        is_over: Whether that has happened.
    """

    amount: int = 0
    expected: int = 0
    minimum: int = 0
    sent_at: float = 0.0
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    is_over: bool = False


class Payment:
    """One payment, after its rate is known.

    Args:
        connection: Where to send packets.
        credentials: Where their numbers come from.
        order: What to do.
        on_progress: Called after each fulfilled packet, and at the end.
        patience: Seconds without a fulfilled packet after which the payment ends.
    """

    def __init__(
        self,
        connection: Connection,
        credentials: Credentials,
        order: Order,
        on_progress: Callable[[Progress], object] | None,
        patience: float,
    ) -> None:
        self._connection = connection
        self._credentials = credentials
        self._order = order
        self._on_progress = on_progress
        self._patience = patience
        self.sent: int = 0
        self.delivered: int = 0
        self.unanswered: int = 0
        # The packets without an answer, in the order in which they expire; and the sums of them.
        self._in_flight: dict[_InFlight, None] = {}
        self._flying = 0
        self._expected = 0
        self._packets = 0
        self._workers = 0
        # How many packets may be in flight; at least 1.
        self._window = _FIRST_WINDOW
        self._is_starting = True
        # When the window was halved last, and whether no packet that was sent since has been fulfilled: then few are
        # tried.
        self._cut_at = -inf
        self._is_probing = False
        # When it was halved last for a refusal, and how many packets have been in flight since before that. They do not
        # count: those that are lost would take the places of all that are to be tried, until they expire.
        self._refused_at = -inf
        self._old = 0
        self._pause = _FIRST_PAUSE
        self._paused_until = 0.0
        self._last_success = 0.0
        self._low_since: float | None = None
        self._stopped: str | None = None
        self._cause: LedgerPluginError | None = None
        self._watching = trio.CancelScope()
        self._nursery: trio.Nursery

    @property
    def possibly_sent(self) -> int:
        """What is in packets whose answer is not known."""
        return self.unanswered + self._flying

    async def run(self, probed: Probed, min_rate: Fraction) -> None:
        """Send until the order is done.

        Args:
            probed: The rate and the greatest packet.
            min_rate: The least rate, in smallest units.

        Raises:
            StoppedError: It cannot be done; its cause is the plugin's error, if there is one.

        Cancellation: Ends the payment; packets in flight may still be fulfilled.
        """
        self._rate = probed.rate
        self._greatest = self._passed = self._packet = probed.max_packet
        floor = probed.rate.lower * (1 - self._order.slippage)
        # Pairs of integers: fractions take much longer.
        self._probed = probed.rate.lower.as_integer_ratio()
        self._floor = floor.as_integer_ratio()
        self._min_rate = min_rate.as_integer_ratio()
        self._budget = self._order.send or ceil_divide(self._order.amount * floor.denominator, floor.numerator)
        self._last_success = trio.current_time()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            start_task(nursery, self._watch)
            self._spawn()
            if not self._workers:
                self._watching.cancel()
        if not self._is_done():
            reason = self._stopped or "the rate has fallen: what may be sent does not deliver enough"
            raise StoppedError(reason) from self._cause

    def report(self, *, done: bool = False) -> None:
        """Tell the application how far the payment is."""
        if self._on_progress is not None:
            values = self.sent, self.delivered, self._flying, self.unanswered, self._packets, int(self._window)
            self._on_progress(Progress(*values, done))

    def _is_done(self) -> bool:
        if self._order.deliver is not None:
            return self.delivered >= self._order.deliver
        # What is left may be dust: so little that it cannot deliver one unit.
        left = self._budget - self.sent
        return left == 0 or (self.sent > 0 and self._stopped is None and self._rate.arriving(left) == 0)

    def _spawn(self) -> None:
        """Start workers, while there is money for them and room for their packets."""
        while self._workers - self._old < self._limit_now() and self._next_amount() > 0:
            self._workers += 1
            start_task(self._nursery, self._work)
            if self._workers * self._packet >= self._budget:
                return

    def _limit_now(self) -> int:
        """Return how many packets may be in flight now, without the old ones."""
        return min(_PROBES, int(self._window)) if self._is_probing else int(self._window)

    async def _watch(self) -> None:
        """Give up each packet that expires without an answer, as long as there are workers."""
        with self._watching:
            while True:
                now = trio.current_time()
                due = now + self._order.expiry
                for packet in self._in_flight:
                    if packet.deadline > now:
                        due = packet.deadline
                        break
                    packet.is_over = True
                    packet.scope.cancel()
                await trio.sleep_until(due)

    async def _work(self) -> None:
        """Send one packet after the other, until there is nothing left or too many are in flight."""
        is_done = False
        while not is_done:
            packet = _InFlight()
            with packet.scope:
                is_done = await self._send_many(packet)
            if packet.scope.cancelled_caught:
                self._land(packet)
                self._settle(packet, Answer(Kind.UNANSWERED, reason=packet.reason))
        self._workers -= 1
        if not self._workers:
            self._watching.cancel()

    async def _send_many(self, packet: _InFlight) -> bool:
        """Send packets until one gets no answer, for which its scope is cancelled; return whether there are no more."""
        while self._stopped is None and self._workers - self._old <= self._limit_now():
            if packet.is_over:
                # The last answer came in the moment in which its packet expired.
                return False
            if self._paused_until:
                wait = self._paused_until - trio.current_time()
                if wait > 0:
                    await trio.sleep(wait)
                    continue
                self._paused_until = 0.0
            packet.amount = self._next_amount()
            if packet.amount <= 0:
                return True
            packet.expected = self._rate.arriving(packet.amount)
            packet.minimum = self._minimum(packet.amount)
            packet.sent_at = trio.current_time()
            self._in_flight[packet] = None
            self._flying += packet.amount
            self._expected += packet.expected
            try:
                answer = await self._connection.send(packet.amount, packet.minimum, _FRAMES, flight=packet)
            except LedgerPluginError as error:
                # What became of this packet is not known. Those in flight may still be answered.
                del self._in_flight[packet]
                self._stop(str(error), error)
                return True
            self._land(packet)
            self._settle(packet, answer)
        return True

    def _land(self, packet: _InFlight) -> None:
        del self._in_flight[packet]
        if packet.sent_at <= self._refused_at:
            self._old -= 1
        self._flying -= packet.amount
        self._expected -= packet.expected

    def _next_amount(self) -> int:
        """Return the amount of the next packet; 0 if none is needed now.

        All packets get about the same amount: with the greatest first, the last could be too small to deliver anything.
        """
        rate = self._rate
        left = self._budget - self.sent - self._flying
        if self._order.deliver is not None:
            need = self._order.deliver - self.delivered - self._expected
            left = min(left, rate.source_for(need)) if need > 0 else 0
        least = rate.least
        if left < least:
            return 0
        amount = ceil_divide(left, ceil_divide(left, self._packet))
        return min(max(amount, least), left)

    def _minimum(self, amount: int) -> int:
        """Return the least that a packet has to deliver.

        Rounding on the way may cost one unit, which can be more than the slippage of a small packet.
        """
        (probed, units), (floor, floor_units), (least, least_units) = self._probed, self._floor, self._min_rate
        slipped = ceil_divide(amount * floor, floor_units)
        return max(1, min(amount * probed // units, slipped), amount * least // least_units)

    def _settle(self, packet: _InFlight, answer: Answer) -> None:
        amount = packet.amount
        if answer.kind is Kind.FULFILLED:
            self._fulfilled(packet, answer)
        elif answer.kind is Kind.UNANSWERED:
            self.unanswered += amount
            self._slow_down(packet, answer)
        elif answer.reply is not None:
            self._refused_by_receiver(packet, answer)
        elif answer.code == "F08":
            self._too_large(amount, answer)
        elif answer.code[:1] == "T" or answer.code in _PASSING:
            if answer.code == "T04" and self._window < 2:
                # One packet is too much: there is less liquidity than its amount.
                self._packet = max(self._rate.least, min(self._packet, amount * 2 // 3))
            self._slow_down(packet, answer)
        else:
            self._stop(answer.reason)
        if self._connection.closed is not None:
            self._stop(self._connection.closed)

    def _fulfilled(self, packet: _InFlight, answer: Answer) -> None:
        amount, got = packet.amount, packet.minimum
        if answer.reply is not None and answer.reply.amount >= packet.minimum:
            # A receiver that claims less than the minimum has accepted the minimum anyway.
            got = answer.reply.amount
            self._rate.add(amount, got)
        self.sent += amount
        self.delivered += got
        self._packets += 1
        self._passed = max(self._passed, amount)
        self._last_success = trio.current_time()
        self._low_since = None
        if packet.sent_at > self._cut_at:
            self._is_probing = False
            self._pause = _FIRST_PAUSE
        if self._packet < self._greatest:
            self._packet = min(self._greatest, self._packet + self._packet // 10 + 1)
        if self._window < MAX_IN_FLIGHT:
            self._window += 1 if self._is_starting else 1 / self._window
        self.report()
        self._spawn()

    def _refused_by_receiver(self, packet: _InFlight, answer: Answer) -> None:
        assert answer.reply is not None
        amount, minimum, got = packet.amount, packet.minimum, answer.reply.amount
        if answer.reply.packet_type == stream.FULFILL:
            # The receiver has the money; a connector lost the Fulfill.
            self.delivered += got
        elif got < minimum:
            if got:
                self._rate.add(amount, got)
            self._low_since = self._low_since or trio.current_time()
            if trio.current_time() - self._low_since >= _LOW_RATE_SECONDS:
                self._stop(f"the rate has fallen: of {amount} only {got} arrive, and at least {minimum} must")
        self._slow_down(packet, answer)

    def _too_large(self, amount: int, answer: Answer) -> None:
        if self._passed >= amount:
            self._passed = 0
        self._greatest = min(self._greatest, lower_maximum(amount, answer.data, self._passed))
        self._packet = min(self._packet, self._greatest)
        if self._greatest < self._rate.least:
            self._stop(f"every packet is too large: {answer.reason}")

    def _slow_down(self, packet: _InFlight, answer: Answer) -> None:
        """Halve the window, once for all packets that were in flight together; pause, and then try a few."""
        if trio.current_time() - self._last_success >= self._patience:
            self._stop(f"no packet was fulfilled for {self._patience:g} seconds: {answer.reason}{self._limit()}")
        if packet.sent_at <= self._cut_at:
            return
        self._is_starting = False
        self._cut_at = trio.current_time()
        self._is_probing = answer.kind is not Kind.UNANSWERED
        if self._is_probing:
            self._refused_at, self._old = self._cut_at, len(self._in_flight)
        self._window = max(1.0, self._window / 2)
        self._paused_until = trio.current_time() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _limit(self) -> str:
        limit = self._connection.receive_max
        return f"; the receiver accepts {limit} in total" if limit is not None and limit <= self.delivered else ""

    def _stop(self, reason: str, cause: LedgerPluginError | None = None) -> None:
        if self._stopped is None:
            self._stopped, self._cause = reason, cause
