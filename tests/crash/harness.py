"""Kills either end of an account at random moments, again and again, and then compares both ends.

    python tests/crash/harness.py [--kills 1000] [--seed 1] [--variant NAME ...]

Between the ends is a fault proxy, which cuts, resets, stalls and slices at random. A loss or a duplicate of a single
unit ends the run with an error, which names the folder with the files of the ends.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

import trio
from attrs import asdict, frozen
from book import read_lines
from end import Config, say
from sending import BASE, is_refused

from trio_ledger_plugin.testing import Direction, FaultKind, FaultProxy, RandomFaults, open_fault_proxy

__all__ = ["VARIANTS", "Result", "Variant", "run"]

PROGRAM = Path(__file__).with_name("end.py")
PACKAGE = PROGRAM.parents[2]
# How long anything that should happen may take.
PATIENCE = 60.0
KINDS = (FaultKind.CUT, FaultKind.RESET, FaultKind.STALL, FaultKind.SLICE)


@frozen
class Variant:
    """What the two ends are.

    Attributes:
        roles: Of the dialling end and of the listening one, as here and below.
        handlers: What receives.
        lanes: How many transfers each keeps under way, for each account.
        money: Their options ``money``.
        accounts: The accounts between them.
        keyed: Whether all is exactly once; otherwise at most once.
    """

    handlers: tuple[str, str]
    roles: tuple[str, str] = ("client", "listener")
    lanes: tuple[int, int] = (20, 0)
    money: tuple[str, str] = ("auto", "auto")
    accounts: tuple[str, ...] = ("only",)
    keyed: bool = True


MANY: dict[str, Any] = {"roles": ("clients", "server"), "accounts": ("alice", "bob", "carol")}
VARIANTS = {
    "outbox": Variant(("none", "outbox")),
    "transactional": Variant(("none", "transactional")),
    "no handler": Variant(("none", "none")),
    "both ways": Variant(("outbox", "transactional"), lanes=(10, 10)),
    "accounts": Variant(("none", "transactional"), lanes=(7, 0), **MANY),
    "accounts, both ways": Variant(("transactional", "outbox"), lanes=(4, 4), **MANY),
    "plain, no store": Variant(("none", "direct"), keyed=False),
    "plain, by option": Variant(("none", "transactional"), money=("plain", "auto"), keyed=False),
    "plain, accounts": Variant(("none", "outbox"), lanes=(4, 4), money=("auto", "plain"), keyed=False, **MANY),
}


@frozen
class Result:
    """What a run did; nothing was lost and nothing doubled.

    Attributes:
        kills: How many processes were killed.
        connections: How many there were, including those to an end that was not listening.
        transfers: How many came to an outcome.
        units: The sum of the acknowledged transfers.
        in_doubt: How many, at PLAIN, have an unknown outcome.
        seconds: How long it took.
    """

    kills: int
    connections: int
    transfers: int
    units: int
    in_doubt: int
    seconds: float


class Child:
    """One end: a process that is started again after each kill.

    Args:
        config: What it is to do.
        nursery: Where what it says is read.
    """

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        self.config = config
        self._nursery = nursery
        self._process: trio.Process | None = None
        self._said: trio.MemoryReceiveChannel[str] | None = None
        self.up = trio.Event()
        self._errors = Path(config.home) / "stderr"

    async def start(self) -> None:
        self.up = trio.Event()
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
        with self._errors.open("ab") as errors:
            self._process = await trio.lowlevel.open_process(
                [sys.executable, str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        await self.tell(json.dumps(asdict(self.config)))
        heard, self._said = trio.open_memory_channel[str](100)
        self._nursery.start_soon(self._listen, self._process, heard, self.up)

    async def _listen(self, process: trio.Process, heard: trio.MemorySendChannel[str], up: trio.Event) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        rest = b""
        try:
            async with heard, process.stdin, process.stdout:
                async for data in process.stdout:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        if line == b"up":
                            up.set()
                        else:
                            await heard.send(line.decode())
            if await process.wait() > 0:
                raise RuntimeError(f"the {self.config.role} ended by itself:\n{self._errors.read_text()[-4000:]}")
        finally:
            process.kill()
            with trio.move_on_after(5, shield=True):
                await process.wait()

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def tell(self, order: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        await self._process.stdin.send_all(f"{order}\n".encode())

    async def expect(self, line: str) -> None:
        assert self._said is not None
        said = await self._said.receive()
        assert said == line, said

    async def end(self) -> Counter[str]:
        """Let it end, and return the totals that its plugins tell, added up."""
        assert self._process is not None
        assert self._said is not None
        await self.tell("end")
        totals = Counter[str]()
        async for line in self._said:
            totals.update(json.loads(line))
        assert await self._process.wait() == 0
        return totals


async def run(variant: Variant, kills: int, seed: int, home: Path) -> Result:
    """Run both ends, kill them so many times, let them finish, and compare.

    Args:
        variant: What the ends are.
        kills: How many processes to kill.
        seed: Of the victims, the moments and the network's faults.
        home: A directory for the files of both; it is empty.

    Raises:
        AssertionError: Something was lost, doubled, or is told otherwise by the two ends.
        RuntimeError: An end ended by itself.
    """
    began = trio.current_time()
    faults = RandomFaults(seed=seed, mean_bytes=100_000, kinds=KINDS, max_seconds=0.05)
    port = free_port()
    async with open_fault_proxy(("127.0.0.1", port), faults=faults) as proxy, trio.open_nursery() as nursery:
        assert proxy.address is not None
        children = [
            Child(config, nursery) for config in configs(variant, home, dialled=proxy.address[1], listened=port)
        ]
        for child in children:
            await child.start()
        random = Random(seed)
        killed = 0
        while killed < kills:
            killed += await strike(random, children, proxy, kills - killed)
        with trio.fail_after(PATIENCE):
            for child in children:
                await child.up.wait()
                await child.tell("finish")
            for child in children:
                await child.expect("quiet")
            totals = [await child.end() for child in children]
        nursery.cancel_scope.cancel()
    records = [Records(home / name, variant) for name in ("dialling", "listening")]
    outcomes = Counter[str]()
    units = 0
    for number, ours in enumerate(records):
        theirs, handler = records[1 - number], variant.handlers[1 - number]
        sums = Counter[str]()
        for account in variant.accounts:
            mine = ours.of(account)
            compare(mine, theirs.of(account), handler, keyed=variant.keyed)
            outcomes.update(mine.outcomes.values())
            for amount, outcome in mine.outcomes.items():
                sums[outcome] += amount
        units += sums["done"]
        compare_totals(sums, totals[number], totals[1 - number])
    return Result(
        kills=killed,
        connections=proxy.opened,
        transfers=outcomes.total(),
        units=units,
        in_doubt=outcomes["doubt"],
        seconds=trio.current_time() - began,
    )


async def strike(random: Random, children: list[Child], proxy: FaultProxy, most: int) -> int:
    """Strike the network, then kill one end or both, each at a random moment; return how many were killed."""
    # Mostly when all is running, and sometimes while an end comes up and reads its journal.
    if random.random() < 0.85:
        with trio.fail_after(PATIENCE):
            for child in children:
                await child.up.wait()
    if random.random() < 0.5:
        await trio.sleep(random.uniform(0, 0.1))
        await strike_network(random, proxy)
    await trio.sleep(random.uniform(0, 0.2))
    sender, receiver = children
    victims = random.choices([[sender], [receiver], children], [4, 5, 1])[0][:most]
    for child in victims:
        await child.kill()
    # Together, or one after the other, so that each meets the other's absence.
    for child in random.sample(victims, len(victims)):
        await trio.sleep(random.choice([0, 0.1]))
        await child.start()
    return len(victims)


async def strike_network(random: Random, proxy: FaultProxy) -> None:
    """Let the links end, or answers alone be lost, or the links fall silent until they are given up."""
    how = random.choices(["end", "answers lost", "silence"], [5, 4, 1])[0]
    if how == "answers lost":
        # What was applied is sent again then, all of it.
        proxy.stall(random.choice([*Direction]))
        await trio.sleep(random.uniform(0, 0.1))
    if how == "silence":
        # The present links only: what they hold comes late, after it was sent again over another.
        for connection in proxy.connections:
            connection.stall()
        await trio.sleep(random.uniform(0, 1.5))
    else:
        random.choice([proxy.cut, proxy.reset])()
    proxy.resume()


def configs(variant: Variant, home: Path, *, dialled: int, listened: int) -> list[Config]:
    """Return the configurations of both ends, and make their directories."""
    made = []
    for number, (name, port) in enumerate((("dialling", dialled), ("listening", listened))):
        (home / name).mkdir()
        made.append(
            Config(
                role=variant.roles[number],
                home=str(home / name),
                port=port,
                accounts=list(variant.accounts),
                handler=variant.handlers[number],
                lanes=variant.lanes[number],
                first=BASE + number * 10**12,
                money=variant.money[number],
                keyed=variant.keyed,
            )
        )
    return made


# What is left on the disk.


@frozen
class Account:
    """What one end has on the disk about one account.

    Attributes:
        outcomes: The application's own outcome of each amount that it asked for: done, refused or doubt.
        sent: The journal's state of each sent transfer.
        received: The amounts and states of the received transfers in the journal.
        mine: What the transactional handler wrote.
        applied: What another handler wrote.
    """

    outcomes: dict[int, str]
    sent: dict[int, str]
    received: list[tuple[int, str]]
    mine: list[int]
    applied: list[int]

    def amounts(self, outcome: str) -> list[int]:
        return sorted(amount for amount, came in self.outcomes.items() if came == outcome)


class Records:
    """What one end has on the disk."""

    def __init__(self, home: Path, variant: Variant) -> None:
        self._home = home
        self._accounts = variant.accounts
        self._rows: list[tuple[str, str, str, str, int, str]] = []
        self._mine: list[tuple[str, int]] = []
        if (home / "store.sqlite3").exists():
            connection = sqlite3.connect(home / "store.sqlite3")
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = connection.execute("SELECT ledger, account, direction, key, amount, state FROM lpi_transfers")
            self._rows = [(*row[:4], int(row[4]), row[5]) for row in rows]
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'mine'").fetchone():
                rows = connection.execute("SELECT account, amount FROM mine")
                self._mine = [(account, int(amount)) for account, amount in rows]
            connection.close()

    def of(self, account: str) -> Account:
        outcomes: dict[int, str] = {}
        for word, amount in read_lines(self._home / f"asked-{account}"):
            known = outcomes.get(int(amount), "ask")
            assert known in ("ask", word), f"{amount} was {known}, and then {word}"
            outcomes[int(amount)] = word
        mine = [row for row in self._rows if self._name(*row[:2]) == account]
        return Account(
            outcomes=outcomes,
            sent={amount: state for _, _, direction, _, amount, state in mine if direction == "out"},
            received=sorted((amount, state) for _, _, direction, _, amount, state in mine if direction == "in"),
            mine=sorted(amount for name, amount in self._mine if self._owns(name, account, amount)),
            applied=sorted(
                int(amount) for _, amount in read_lines(self._home / "applied") if self._owns("", account, int(amount))
            ),
        )

    def _name(self, ledger: str, account: str) -> str:
        """Return the account that a row is of: a server's has its name, a client's is in a ledger of that name."""
        return account or (ledger if ledger in self._accounts else self._accounts[0])

    def _owns(self, name: str, account: str, amount: int) -> bool:
        """Whether an amount is one of an account's range, as its sender counts."""
        assert name in ("", account) or name in self._accounts
        return (amount - BASE) % 10**12 // 10**9 == self._accounts.index(account)


def compare(ours: Account, theirs: Account, handler: str, *, keyed: bool) -> None:
    """Compare one account's transfers, one way.

    Raises:
        AssertionError: They do not agree.
    """
    done, doubt = ours.amounts("done"), ours.amounts("doubt")
    assert ours.amounts("ask") == [], "the application does not know what became of these"
    refused = [amount for amount in ours.outcomes if is_refused(amount)] if handler == "transactional" else []
    credited = [amount for amount, state in theirs.received if state in ("applied", "delivered")]
    if handler == "direct":
        credited = theirs.applied
    elif not keyed and handler != "none":
        # At PLAIN, a transfer leaves the journal once a handler has finished with it; the handler may be called again.
        credited = theirs.mine if handler == "transactional" else sorted(set(theirs.applied))
    assert max(Counter(credited).values(), default=1) == 1, f"doubled: {Counter(credited).most_common(5)}"
    assert set(done) <= set(credited), f"lost: {sorted(set(done) - set(credited))[:5]}"
    assert set(credited) <= {*done, *doubt}, f"never acknowledged: {sorted(set(credited) - {*done, *doubt})[:5]}"
    if handler == "transactional":
        assert theirs.mine == credited, "the handler's own table is not what was credited"
    if handler == "outbox":
        assert set(theirs.applied) == set(credited), "the handler was not called for each"
        assert {state for _, state in theirs.received} <= {"delivered"}
    states = {"acked": done, "in_doubt": doubt, "rejected": ours.amounts("refused")}
    assert ours.sent == {amount: state for state, amounts in states.items() for amount in amounts}
    if keyed:
        assert doubt == []
        assert sorted(refused) == ours.amounts("refused")


def compare_totals(sums: Counter[str], sender: Counter[str], receiver: Counter[str]) -> None:
    """Compare the plugins' totals with the counts of the sending application.

    Raises:
        AssertionError: They do not agree.
    """
    assert sender["sent"] == sums["done"]
    assert sender["in_doubt"] == sums["doubt"]
    # There are none of a receiver without a store.
    if receiver:
        assert sums["done"] <= receiver["received"] <= sums["done"] + sums["doubt"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def main(kills: int, seed: int, names: list[str], home: Path | None) -> None:
    total = Counter[str]()
    for number, name in enumerate(names):
        share = kills * (number + 1) // len(names) - kills * number // len(names)
        directory = Path(tempfile.mkdtemp(prefix="crash-", dir=home))
        say(f"{name}: seed {seed + number}, in {directory}")
        result = trio.run(run, VARIANTS[name], share, seed + number, directory)
        rmtree(directory)
        say(f"  {result}")
        total.update(asdict(result))
    say(
        f"{total['kills']} kills, {total['connections']} connections, {total['transfers']} transfers,"
        f" {total['in_doubt']} of them in doubt at PLAIN, {total['seconds']:.0f} s: nothing lost, nothing doubled"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--directory", type=Path, help="where the stores are kept; on the disk that is to be tried")
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed, arguments.variant or list(VARIANTS), arguments.directory)
