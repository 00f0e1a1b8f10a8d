"""Calls both ways at once over a network that fails all the time, and what becomes of each.

    python -m faults.outcomes --calls 1000000 --faults 25000 [--seed 1]        (in tests/)

Every request carries a number of its own, and its answer is made from that number: an answer that reached another
call would be seen.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING

import trio
from attrs import field, frozen
from support.peers import TOKEN, listening, open_btp

from trio_ledger_plugin import ConnectionLostError, ConnectOptions, NotConnectedError, ResponseTimeoutError
from trio_ledger_plugin.testing import FaultKind, ProxiedConnection, RandomFaults, open_fault_proxy

if TYPE_CHECKING:
    from trio_ledger_plugin.btp.plugin import BtpPlugin

__all__ = ["Result", "run"]

TIMEOUT = 2.0
# How long after its deadline a call may still be under way.
GRACE = 1.0
IN_FLIGHT = 16
# Sent and received for a call, its part of the opening of connections included; faults are counted in bytes.
BYTES_A_CALL = 48
LINK = {
    "response_timeout": TIMEOUT,
    "redial_max_delay": 0.002,
    "max_failures_per_minute": 10**6,
}
KINDS = (FaultKind.CUT, FaultKind.RESET, FaultKind.STALL, FaultKind.STALL, FaultKind.DELAY, FaultKind.SLICE)
LATE = 50
# From this number on a handler takes longer than its caller waits.
HANGS = 2**63


@frozen
class Result:
    """What became of a run's calls; each had one outcome, and the right one.

    Attributes:
        outcomes: How many calls had which: ``answered``, or an error's name.
        faults: How many faults there were, by kind.
        links: How many connections there were.
        slowest: Seconds that the slowest call took.
        handled: How many requests reached a handler.
        unexpected: Answers that came to no call, at both ends.
    """

    outcomes: Counter[str]
    faults: Counter[str]
    links: int
    slowest: float
    handled: int
    unexpected: int
    seconds: float = field(default=0.0)


def answer_to(request: bytes) -> bytes:
    """Return the one right answer: from the number, by a function that no other number shares."""
    number = int.from_bytes(request[:8], "big")
    return (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") + request[8:][::-1]


class Side:
    """One end: what it asks and what it is asked."""

    def __init__(self, first: int, calls: int, random: Random) -> None:
        self._next, self._end = first, first + calls
        self._random = random
        self.outcomes: dict[int, str] = {}
        self.handled: Counter[int] = Counter()
        self.slowest = 0.0
        # How many calls have been made that are answered too late.
        self.hanging = 0

    async def handle(self, data: bytes) -> bytes:
        number = int.from_bytes(data[:8], "big")
        self.handled[number] += 1
        if number >= HANGS:
            await trio.sleep(TIMEOUT + 0.3)
        elif number % LATE == 0:
            # Overtaken by others, and now and then by the end of its link.
            await trio.sleep(self._random.random() * 0.02)
        return answer_to(data)

    async def ask(self, plugin: BtpPlugin) -> None:
        while self._next < self._end:
            number, self._next = self._next, self._next + 1
            await self._call(plugin, number)
            if not plugin.is_connected() and number % 4:
                await plugin.wait_connected()
            elif self.outcomes[number] == "NotConnectedError":
                # It costs nothing, not even a turn of the loop.
                await trio.lowlevel.checkpoint()

    async def ask_too_much(self, plugin: BtpPlugin) -> None:
        """Make a call whose answer comes too late."""
        self.hanging += 1
        number = HANGS + self.hanging
        await plugin.wait_connected()
        await self._call(plugin, number)

    async def _call(self, plugin: BtpPlugin, number: int) -> None:
        request = number.to_bytes(8, "big") + self._random.randbytes(number % 13)
        began = trio.current_time()
        try:
            with trio.fail_after(TIMEOUT + GRACE):
                answer = await plugin.send_data(request)
            assert answer == answer_to(request), f"call {number} got another call's answer"
            outcome = "answered"
        except (ConnectionLostError, ResponseTimeoutError, NotConnectedError) as error:
            outcome = error.name
        assert number not in self.outcomes
        self.outcomes[number] = outcome
        self.slowest = max(self.slowest, trio.current_time() - began)


async def run(calls: int, faults: int, seed: int) -> Result:
    """Make so many calls, half of them each way, with about so many faults; at least so many calls at any rate.

    Raises:
        AssertionError: A call got another's answer, a request came twice, or something was left behind.
        trio.TooSlowError: A call was still pending a second after its deadline.
    """
    began = trio.current_time()
    sides = [Side(number * 2**40, calls // 2, Random(f"{seed}/{number}")) for number in range(2)]
    seen: dict[int, ProxiedConnection] = {}
    weather = RandomFaults(seed=seed, mean_bytes=max(1, calls * BYTES_A_CALL // faults), kinds=KINDS, max_seconds=0.002)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(open_btp(listening(**LINK), data_handler=sides[0].handle))
        port = int(server.address.rpartition(":")[2])

        async def connect() -> trio.SocketStream:
            seen.update({connection.number: connection for connection in proxy.connections})
            return await trio.open_tcp_stream("127.0.0.1", port)

        proxy = await stack.enter_async_context(open_fault_proxy(connect, faults=weather))
        assert proxy.address is not None
        url = f"btp+ws://alice:{TOKEN}@127.0.0.1:{proxy.address[1]}"
        client = await stack.enter_async_context(
            open_btp({"server": url, **LINK}, data_handler=sides[1].handle, connect=ConnectOptions(timeout=math.inf))
        )
        await server.wait_connected()
        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(sides[0].ask, client)
                nursery.start_soon(sides[1].ask, server)
        # A link lives for milliseconds under load. Now it may live long enough for calls to meet their deadline.
        while not any("ResponseTimeoutError" in side.outcomes.values() for side in sides):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(sides[0].ask_too_much, client)
                    nursery.start_soon(sides[1].ask_too_much, server)
        # Handlers whose link is lost, or whose caller has gone, still run.
        await trio.sleep(0.5)
        for plugin in (client, server):
            counted = plugin.statistics()
            assert (counted.calls_in_flight, counted.handlers_running) == (0, 0)
            assert plugin._link is None or not plugin._link.session.pending
            assert plugin._link is None or not plugin._link.session.serving
        unexpected = client.statistics().unexpected_responses + server.statistics().unexpected_responses
    for side in sides:
        assert len(side.outcomes) == calls // 2 + side.hanging, "a call was lost"
        assert max(side.handled.values(), default=0) <= 1, "a request was handled twice"
        answered = {number for number, outcome in side.outcomes.items() if outcome == "answered"}
        assert answered <= side.handled.keys()
        refused = {number for number, outcome in side.outcomes.items() if outcome == "NotConnectedError"}
        assert not refused & side.handled.keys(), "one that was not sent was handled"
    return Result(
        outcomes=Counter(outcome for side in sides for outcome in side.outcomes.values()),
        faults=Counter(fault.kind.value for connection in seen.values() for fault in connection.happened),
        links=len(seen),
        slowest=max(side.slowest for side in sides),
        handled=sum(len(side.handled) for side in sides),
        unexpected=unexpected,
        seconds=trio.current_time() - began,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--faults", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    result = trio.run(run, arguments.calls, arguments.faults, arguments.seed)
    print(result)
    print(f"{result.outcomes.total()} calls, {result.faults.total()} faults: one outcome each, and the right one")
