"""Kills the receiver of STREAM payments at random moments, again and again, and then compares all books.

    python tests/crash/payments.py [--kills 1000] [--seed 1]

The payer pays without a pause, many packets at once. Between the two is a route that remembers each packet and each
Fulfill. When the receiver is killed, the route either loses the packets without an answer, or sends them again to the
receiver's next process. A packet that is fulfilled but not booked, or is booked twice, ends the run with an error.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sqlite3
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import payee
import trio
from attrs import define, field, frozen

from trio_ledger_plugin import (
    ConnectionLostError,
    LedgerPlugin,
    NotConnectedError,
    RemoteError,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.codec import ilp, stream
from trio_ledger_plugin.stream import Receiver, pay
from trio_ledger_plugin.stream.crypto import Keys

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

__all__ = ["Result", "run"]

# A packet of a payment: the connection's address and the packet's number.
Name = tuple[str, int]

UNITS = 200_000
MAX_PACKET = 997
# Packets that are lost keep their money from being sent again for so long.
EXPIRY = 1.0
# How long anything that should happen may take.
PATIENCE = 60.0


@frozen
class Result:
    """What a run did; nothing was lost and nothing doubled.

    Attributes:
        kills: How many processes were killed.
        payments: How many payments were made.
        fulfilled: How many packets were fulfilled.
        repeated: How many packets were sent to two processes.
        unfulfilled: How many packets were booked, but killed before their Fulfill left.
    """

    kills: int
    payments: int
    fulfilled: int
    repeated: int
    unfulfilled: int


@define
class Route:
    """What is between the payer and the receiver.

    Attributes:
        onward: The plugin of the link to the receiver.
        random: Decides what becomes of packets whose receiver was killed.
        secrets: The keys of each connection, which show the number of a packet.
        offered: The amount of each packet that was sent to the receiver.
        fulfilled: The amount of each packet that was fulfilled.
        repeated: The packets that were sent to two processes.
    """

    onward: LedgerPlugin
    random: Random
    secrets: dict[str, Keys] = field(factory=dict)
    offered: dict[Name, int] = field(factory=dict)
    fulfilled: dict[Name, int] = field(factory=dict)
    repeated: set[Name] = field(factory=set)
    progress: trio.Event = field(factory=trio.Event)

    async def carry(self, data: bytes) -> bytes:
        """Carry one packet to the receiver, over several links if one is lost with it."""
        prepare = ilp.decode(data)
        assert isinstance(prepare, ilp.Prepare)
        packet = stream.decode(self.secrets[prepare.destination].open(prepare.data))
        name = prepare.destination, packet.sequence
        if any(isinstance(frame, stream.StreamMoney) for frame in packet.frames):
            assert name not in self.offered
            self.offered[name] = prepare.amount
        while True:
            try:
                answer = await self.onward.send_data(data)
                break
            except (NotConnectedError, RemoteError):
                if name not in self.repeated:
                    return ilp.encode(ilp.Reject("T01", "example.route"))
            except ConnectionLostError:
                # The receiver may have booked it.
                if self.random.random() < 0.3:
                    # The payer hears nothing until the packet has expired, and then hears no more. It may be late
                    # itself, on a machine that does not keep up.
                    await trio.sleep(20 * EXPIRY)
                    return b""
                self.repeated.add(name)
            await self.onward.wait_connected()
            await trio.sleep(0.01)
        if isinstance(ilp.decode(answer), ilp.Fulfill) and prepare.amount:
            self.fulfilled[name] = prepare.amount
            self.progress.set()
        return answer


class Payee:
    """The receiver's process, which is started again after each kill.

    Args:
        port: Where it dials.
        path: Its store.
    """

    def __init__(self, port: int, path: Path) -> None:
        # The processes are forks of one that has loaded the package, so that they are up at once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["trio_ledger_plugin.btp.plugin", "trio_ledger_plugin.stream"])
        self._arguments = port, str(path)
        self._process = self._start()

    def _start(self) -> ForkServerProcess:
        process = self._context.Process(target=payee.receive, args=self._arguments, daemon=True)
        process.start()
        return process

    def kill(self) -> None:
        """Kill the process.

        Raises:
            AssertionError: It had ended by itself.
        """
        self._process.kill()
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL

    def restart(self) -> None:
        """Kill the process and start another."""
        self.kill()
        self._process = self._start()


async def run(kills: int, seed: int, home: Path) -> Result:
    """Pay, kill the receiver so many times, let the last payment end, and compare the books.

    Args:
        kills: How many processes to kill.
        seed: Of the moments, and of what becomes of packets without an answer.
        home: An empty directory for the receiver's store.

    Raises:
        AssertionError: The books do not agree.
        PaymentFailedError: The payer gave up.
    """
    random = Random(seed)
    listening = {"plugin": "btp", "listener": {"port": 0, "secret": payee.TOKEN}, "max_failures_per_minute": 10_000}
    ended = trio.Event()
    totals: dict[str, tuple[int, int]] = {}
    async with open_plugin(listening) as link, loopback_pair() as (payer, before):
        route = Route(link, random)
        before.register_data_handler(route.carry)
        end = Payee(int(link.address.rpartition(":")[2]), home / "payee.db")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pay_until, ended, payer, route, totals)
                for _ in range(kills):
                    await strike(random, route, end)
                ended.set()
        finally:
            end.kill()
    unfulfilled = compare(home / "payee.db", route, totals)
    return Result(kills, len(totals), len(route.fulfilled), len(route.repeated), unfulfilled)


async def strike(random: Random, route: Route, end: Payee) -> None:
    """Kill the receiver, mostly while packets are fulfilled and sometimes while it comes up, and start it again."""
    if random.random() < 0.9:
        route.progress = trio.Event()
        with trio.fail_after(PATIENCE):
            await route.progress.wait()
    await trio.sleep(random.uniform(0, 0.05))
    end.restart()


async def pay_until(ended: trio.Event, payer: LedgerPlugin, route: Route, totals: dict[str, tuple[int, int]]) -> None:
    """Pay again and again; add to ``totals`` what each connection was paid, and what got no answer."""
    maker = Receiver(secret=payee.SECRET, address=payee.ADDRESS)
    while not ended.is_set():
        credentials = maker.new_credentials()
        route.secrets[credentials.destination_account] = Keys(credentials.shared_secret)
        paid = await pay(payer, credentials, send=UNITS, max_packet=MAX_PACKET, expiry=EXPIRY)
        assert paid.sent == UNITS
        totals[credentials.destination_account] = paid.sent, paid.unanswered


def compare(store: Path, route: Route, totals: dict[str, tuple[int, int]]) -> int:
    """Compare the receiver's books with what was sent and fulfilled; return how many packets have no Fulfill.

    Raises:
        AssertionError: They do not agree.
    """
    with closing(sqlite3.connect(store)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT destination, sequence, amount FROM books").fetchall()
        packets = connection.execute("SELECT destination, sequence, amount FROM lpi_stream_packets").fetchall()
        kept = dict(connection.execute("SELECT destination, total FROM lpi_stream_totals").fetchall())
    booked = {(destination, sequence): amount for destination, sequence, amount in rows}
    assert len(booked) == len(rows), "booked twice"
    assert route.fulfilled.items() <= booked.items(), "fulfilled, but not booked"
    assert booked.items() <= route.offered.items(), "booked, but never sent"
    assert {(destination, int(sequence)): int(amount) for destination, sequence, amount in packets} == booked
    sums = Counter[str]()
    for (destination, _), amount in booked.items():
        sums[destination] += amount
    assert {destination: int(total) for destination, total in kept.items()} == sums
    for destination, (sent, unanswered) in totals.items():
        assert sent <= sums[destination] <= sent + unanswered
    return len(booked) - len(route.fulfilled)


def main(kills: int, seed: int) -> None:
    with tempfile.TemporaryDirectory(prefix="crash-") as home:
        result = trio.run(run, kills, seed, Path(home))
    os.write(1, f"{result}: nothing lost, nothing booked twice\n".encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed)
