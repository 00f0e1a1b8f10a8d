"""A path from a payer to a receiver: two loopback links, and a connector between them with the faults of a network.

Everything waits on Trio's clock, so with a mock clock a slow path takes no time.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from fractions import Fraction
from random import Random
from typing import TYPE_CHECKING

import trio
from attrs import Factory, define, evolve

from trio_ledger_plugin import loopback_pair
from trio_ledger_plugin.codec import ildcp, ilp
from trio_ledger_plugin.stream import Asset, open_receiver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_ledger_plugin import LedgerPlugin
    from trio_ledger_plugin.stream import ReceivedPacket, Receiver

SECRET = bytes(range(32))
ADDRESS = "example.receiver"
CONNECTOR = "example.connector"


@define
class Path:
    """What the connector does, and what it has seen.

    Attributes:
        rate: What it forwards of each unit.
        latency: Seconds each way; with ``jitter`` more, at random, so that packets overtake each other.
        lose: The fraction of packets that are lost.
        lose_replies: The fraction of answers that are lost.
        max_packet: The greatest amount; more is F08, with data if ``f08_data`` gives it.
        liquidity: The most that may be in flight; more is T04.
        per_second: How many packets pass in a second; more is T05.
        intercept: Returns a Reject in place of forwarding, or None.
        rewrite: Changes a packet before it is forwarded.
        answers: Changes an answer.
        scale: The scale of the payer's account, which it may ask for (ILDCP).
    """

    rate: Fraction = Fraction(1)
    latency: float = 0.05
    jitter: float = 0.0
    lose: float = 0.0
    lose_replies: float = 0.0
    max_packet: int | None = None
    f08_data: Callable[[int, int], bytes] = lambda received, maximum: received.to_bytes(8) + maximum.to_bytes(8)
    liquidity: int | None = None
    per_second: int | None = None
    intercept: Callable[[ilp.Prepare], ilp.Reject | None] = lambda prepare: None
    rewrite: Callable[[ilp.Prepare], ilp.Prepare] = lambda prepare: prepare
    answers: Callable[[ilp.Prepare, bytes], bytes] = lambda prepare, answer: answer
    seen: list[ilp.Prepare] = Factory(list)
    fulfilled: list[ilp.Prepare] = Factory(list)
    rejected: list[str] = Factory(list)
    scale: int = 2
    in_flight: int = 0
    at_once: int = 0
    most_at_once: int = 0
    random: Random = Factory(lambda: Random(7))
    passed_at: deque[float] = Factory(deque)

    def reject(self, code: str, data: bytes = b"") -> bytes:
        self.rejected.append(code)
        return ilp.encode(ilp.Reject(code, CONNECTOR, "simulated", data))

    async def carry(self, data: bytes, onward: LedgerPlugin) -> bytes:
        prepare = ilp.decode(data)
        assert isinstance(prepare, ilp.Prepare)
        if prepare.destination == ildcp.DESTINATION:
            return ildcp.encode(ildcp.IldcpResponse("example.payer", self.scale, "USD"))
        self.seen.append(prepare)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.wait()
            if self.random.random() < self.lose:
                await trio.sleep_forever()
            answer = await self.forward(prepare, onward)
            await self.wait()
            if self.random.random() < self.lose_replies:
                await trio.sleep_forever()
            return self.answers(prepare, answer)
        finally:
            self.at_once -= 1

    async def wait(self) -> None:
        await trio.sleep(self.latency + self.random.random() * self.jitter)

    async def forward(self, prepare: ilp.Prepare, onward: LedgerPlugin) -> bytes:
        refusal = self.intercept(prepare)
        if refusal is not None:
            self.rejected.append(refusal.code)
            return ilp.encode(refusal)
        if self.max_packet is not None and prepare.amount > self.max_packet:
            return self.reject("F08", self.f08_data(prepare.amount, self.max_packet))
        if self.per_second is not None:
            now = trio.current_time()
            while self.passed_at and self.passed_at[0] <= now - 1:
                self.passed_at.popleft()
            if len(self.passed_at) >= self.per_second:
                return self.reject("T05")
            self.passed_at.append(now)
        if self.liquidity is not None and self.in_flight + prepare.amount > self.liquidity:
            return self.reject("T04")
        self.in_flight += prepare.amount
        try:
            amount = prepare.amount * self.rate.numerator // self.rate.denominator
            if prepare.amount and not amount:
                return self.reject("R01")
            answer = await onward.send_data(ilp.encode(evolve(self.rewrite(prepare), amount=amount)))
        finally:
            self.in_flight -= prepare.amount
        packet = ilp.decode(answer)
        if isinstance(packet, ilp.Fulfill):
            self.fulfilled.append(prepare)
        elif isinstance(packet, ilp.Reject):
            self.rejected.append(packet.code)
        return answer


@define
class Ends:
    """The payer's plugin, its peer's, the connector's towards the receiver, the receiver, and what it accepted."""

    payer: LedgerPlugin
    peer: LedgerPlugin
    onward: LedgerPlugin
    receiver: Receiver
    path: Path
    accepted: list[ReceivedPacket]

    @property
    def received(self) -> int:
        return sum(packet.amount for packet in self.accepted)

    @property
    def sent(self) -> int:
        return sum(prepare.amount for prepare in self.path.fulfilled)


@asynccontextmanager
async def open_path(path: Path, decide: Callable[[ReceivedPacket], object] | None = None) -> AsyncIterator[Ends]:
    """Open both links and the receiver; a lost packet waits until the payer gives it up."""
    accepted: list[ReceivedPacket] = []

    def on_packet(packet: ReceivedPacket) -> object:
        decision = None if decide is None else decide(packet)
        if decision is None:
            accepted.append(packet)
        return decision

    async with (
        loopback_pair() as (after, receiving),
        open_payer(path, after) as (payer, before),
        open_receiver(
            receiving, secret=SECRET, address=ADDRESS, asset=Asset("EUR", 2), on_packet=on_packet
        ) as receiver,
    ):
        yield Ends(payer, before, after, receiver, path, accepted)


@asynccontextmanager
async def open_payer(path: Path, onward: LedgerPlugin) -> AsyncIterator[tuple[LedgerPlugin, LedgerPlugin]]:
    """Open the link of a payer, which may share the path with others; yield the payer's plugin and its peer's."""

    async def carry(data: bytes) -> bytes:
        return await path.carry(data, onward)

    async with loopback_pair() as (payer, before):
        before.register_data_handler(carry)
        yield payer, before
