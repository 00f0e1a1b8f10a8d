"""Finds the rate and the greatest packet before money moves, with packets that cannot be fulfilled.

Invariant: no probe is larger than the payment needs. Connectors recognise large round probes, and some quote a better
rate for them than for payments; and a rate that was measured with the packets of the payment is the rate of those.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ..codec.oer import MAX_UINT64
from ..runtime.tasks import run_all
from .connection import Kind
from .rates import Rate, lower_maximum

if TYPE_CHECKING:
    from .connection import Answer, Connection
    from .order import Order

__all__ = ["Probed", "StoppedError", "find_rate"]

# A connector that refuses each amount in a new way must not keep a payment forever.
_MOST_TRIES: Final = 40
# A probe that is lost holds everything up, and moves no money: it need not live as long as other packets.
_EXPIRY: Final = 5.0
_ROUNDED_TRIES: Final = 3
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
# A packet that timed out or was refused on its way; the next may pass.
_PASSING: Final = ("R00", "F99")
_SMALLER: Final = tuple(10**digits for digits in (3, 6, 9, 12))
_STEP: Final = 1000


class StoppedError(Exception):
    """The payment cannot go on; the text says why."""


@frozen
class Probed:
    """What the probes found.

    Attributes:
        rate: The rate.
        max_packet: The greatest amount that arrived.
    """

    rate: Rate
    max_packet: int


async def find_rate(connection: Connection, order: Order, patience: float) -> Probed:
    """Return the rate and the greatest packet.

    Args:
        connection: Where to send probes.
        order: What the payment has to do.
        patience: Seconds without news after which to give up.

    Raises:
        StoppedError: No packet arrives.
        LedgerPluginError: The plugin cannot be used.

    Cancellation: Safe; no money has moved.
    """
    probe = _Probe(connection, order, patience)
    return await probe.run()


class _Probe:
    def __init__(self, connection: Connection, order: Order, patience: float) -> None:
        self._connection = connection
        self._order = order
        self._patience = patience
        self._deadline = trio.current_time() + patience
        self._ceiling = min(order.max_packet, MAX_UINT64)
        self._best: tuple[int, int] | None = None
        self._pause = _FIRST_PAUSE
        self._rounded = 0
        self._last = "no answer came"

    async def run(self) -> Probed:
        while not self._connection.is_greeted:
            self._check_time()
            await self._greet()
        first = min(self._order.amount, self._ceiling)
        # All at once: if the largest is too large, the others have said something already.
        await run_all(partial(self._try, size) for size in {first, *(size for size in _SMALLER if size < first)})
        for _ in range(_MOST_TRIES):
            size = self._wanted()
            if self._best is not None and self._best[0] >= size:
                break
            self._check_time()
            await self._try(size)
        if self._best is None:
            raise StoppedError(f"no packet reached the receiver: {self._last}")
        sent, got = self._best
        if got == 0:
            raise StoppedError(f"nothing would arrive: a packet of {sent} is rounded down to 0 on its way")
        return Probed(Rate(sent, got), sent)

    def _check_time(self) -> None:
        if trio.current_time() >= self._deadline:
            raise StoppedError(f"no packet reached the receiver: {self._last}")

    async def _greet(self) -> None:
        """Begin the connection with a packet without money, which tells the receiver's asset."""
        answer = await self._send(0)
        self._last = answer.reason
        if self._connection.closed is not None:
            raise StoppedError(self._connection.closed)
        if answer.kind is not Kind.REJECTED or answer.reply is not None:
            return
        if answer.code[:1] == "T" or answer.code in _PASSING:
            await self._wait()
        elif answer.code == "F02" or not self._connection.greet_otherwise():
            raise StoppedError(answer.reason)

    async def _send(self, size: int) -> Answer:
        seconds = min(self._order.expiry, _EXPIRY)
        return await self._connection.send(size, 0, fulfillable=False, expiry=seconds)

    async def _wait(self) -> None:
        await trio.sleep(self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _wanted(self) -> int:
        """Return the amount of the largest packet that the payment needs and that may pass."""
        if self._order.send is not None:
            return min(self._order.send, self._ceiling)
        if self._best is None:
            return min(self._order.amount, self._ceiling)
        sent, got = self._best
        needed = Rate(sent, got).source_for(self._order.amount) if got else sent * _STEP
        return min(needed, self._ceiling)

    async def _try(self, size: int) -> None:
        answer = await self._send(size)
        self._last = answer.reason
        if answer.reply is not None or answer.code == "F08":
            self._deadline = trio.current_time() + self._patience
        if answer.reply is not None:
            self._pause = _FIRST_PAUSE
            if self._connection.closed is not None:
                raise StoppedError(self._connection.closed)
            if self._best is None or size > self._best[0]:
                self._best = size, answer.reply.amount
            return
        if answer.kind is Kind.UNANSWERED:
            return
        await self._lower(size, answer)

    async def _lower(self, size: int, answer: Answer) -> None:
        known = 0 if self._best is None else self._best[0]
        if answer.code == "F08":
            self._ceiling = min(self._ceiling, lower_maximum(size, answer.data, known))
            if self._ceiling < 1:
                raise StoppedError(f"every packet is too large: {answer.reason}")
        elif answer.code == "R01":
            # The amount is rounded down to 0 on its way; unless it was chance, nothing arrives.
            self._rounded += 1
            if self._rounded >= _ROUNDED_TRIES:
                self._best = self._best or (size, 0)
            await self._wait()
        elif answer.code[:1] == "T" or answer.code in _PASSING:
            if answer.code == "T04":
                self._ceiling = max(known, 1, min(self._ceiling, size * 2 // 3))
            await self._wait()
        else:
            raise StoppedError(answer.reason)
