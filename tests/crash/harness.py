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
from clock import VARIABLE
from end import Config, say
from other_stores import OtherStores
from records import Records, compare, compare_totals
from sending import BASE

from trio_ledger_plugin.testing import Direction, FaultKind, FaultProxy, RandomFaults, open_fault_proxy

__all__ = ["VARIANTS", "Result", "Variant", "run"]

PROGRAM = Path(__file__).with_name("end.py")
PACKAGE = PROGRAM.parents[2]
# How long anything that should happen may take.
PATIENCE = 60.0
# How wrong the ends' system clocks are, in seconds: both ways, by more than keys are kept.
SHIFTS = (0, 0, -20 * 86400, -3 * 86400, 16 * 3600, 8 * 86400, 40 * 86400)
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
        others: Whether an end that is killed may get an older copy of its store, an empty one, or another ledger.
    """

    handlers: tuple[str, str]
    roles: tuple[str, str] = ("client", "listener")
    lanes: tuple[int, int] = (20, 0)
    money: tuple[str, str] = ("auto", "auto")
    accounts: tuple[str, ...] = ("only",)
    keyed: bool = True
    others: bool = False


MANY: dict[str, Any] = {"roles": ("clients", "server"), "accounts": ("alice", "bob", "carol")}
VARIANTS = {
    "outbox": Variant(("none", "outbox")),
    "transactional": Variant(("none", "transactional")),
    "no handler": Variant(("none", "none")),
    "both ways": Variant(("outbox", "transactional"), lanes=(10, 10)),
    "accounts": Variant(("none", "transactional"), lanes=(7, 0), **MANY),
    "accounts, both ways": Variant(("transactional", "outbox"), lanes=(4, 4), **MANY),
    "other stores": Variant(("none", "outbox"), lanes=(10, 0), others=True),
    "other stores, transactional": Variant(("none", "transactional"), lanes=(10, 0), others=True),
    "other stores, both ways": Variant(("outbox", "transactional"), lanes=(5, 5), others=True),
    "other stores, accounts": Variant(("transactional", "outbox"), lanes=(3, 3), others=True, **MANY),
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
        in_doubt: How many have an unknown outcome: at PLAIN, or because a store was replaced.
        replaced: How many stores were replaced.
        found: How many losses were found by both ends, which is each that they can know of.
        seconds: How long it took.
    """

    kills: int
    connections: int
    transfers: int
    units: int
    in_doubt: int
    replaced: int
    found: int
    seconds: float


class Child:
    """One end: a process that is started again after each kill.

    Args:
        config: What it is to do.
        nursery: Where what it says is read.
        random: Of its clock.
    """

    def __init__(self, config: Config, nursery: trio.Nursery, random: Random) -> None:
        self.config = config
        self.stores = OtherStores(config)
        self._nursery = nursery
        self._random = random
        self._process: trio.Process | None = None
        self._said: trio.MemoryReceiveChannel[str] | None = None
        self.up = trio.Event()
        self._errors = Path(config.home) / "stderr"

    async def start(self) -> None:
        self.up = trio.Event()
        clock = f"{self._random.choice(SHIFTS)} {self._random.choice(SHIFTS)}"
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE), VARIABLE: clock}
        with self._errors.open("ab") as errors:
            self._process = await trio.lowlevel.open_process(
                [sys.executable, str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        self.config = self.stores.config
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
        random = Random(seed)
        children = [
            Child(config, nursery, random) for config in configs(variant, home, dialled=proxy.address[1], listened=port)
        ]
        for child in children:
            await child.start()
        killed = found = 0
        while killed < kills:
            struck, losses = await strike(random, children, proxy, kills - killed)
            killed, found = killed + struck, found + losses
        with trio.fail_after(PATIENCE):
            for child in children:
                await child.up.wait()
                await child.tell("finish")
            for child in children:
                await child.expect("quiet")
            totals = [await child.end() for child in children]
        nursery.cancel_scope.cancel()
    records = [Records(child.config, child.stores) for child in children]
    outcomes = Counter[str]()
    units = 0
    for number, ours in enumerate(records):
        theirs, handler = records[1 - number], variant.handlers[1 - number]
        sums = Counter[str]()
        for account in variant.accounts:
            mine = ours.of(account)
            compare(mine, theirs.of(account), handler, keyed=variant.keyed, others=variant.others)
            outcomes.update(mine.outcomes.values())
            for amount, outcome in mine.outcomes.items():
                sums[outcome] += amount
        units += sums["done"]
        if not variant.others:
            compare_totals(sums, totals[number], totals[1 - number])
        ours.compare_with(totals[number])
    return Result(
        kills=killed,
        connections=proxy.opened,
        transfers=outcomes.total(),
        units=units,
        in_doubt=outcomes["doubt"],
        replaced=sum(child.stores.replaced for child in children),
        found=found,
        seconds=trio.current_time() - began,
    )


async def strike(random: Random, children: list[Child], proxy: FaultProxy, most: int) -> tuple[int, int]:
    """Strike the network, then kill one end or both, each at a random moment, and start them again.

    Returns:
        How many were killed, and how many losses both ends have found.
    """
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
    loss, victim = None, random.choice(victims)
    other = children[children[0] is victim]
    if victim.config.others:
        if random.random() < 0.3:
            loss = victim.stores.replace(random, other.stores)
        elif random.random() < 0.5:
            victim.stores.copy()
    # Together, or one after the other, so that each meets the other's absence.
    for child in random.sample(victims, len(victims)):
        await trio.sleep(random.choice([0, 0.1]))
        await child.start()
    if loss is None or not loss.must_be_found:
        return len(victims), 0
    with trio.move_on_after(PATIENCE):
        while not victim.stores.is_reported(loss, other.stores):  # noqa: ASYNC110 (a file sets no event)
            await trio.sleep(0.02)
        return len(victims), 1
    raise AssertionError(f"not found: {loss}")


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
                others=variant.others,
            )
        )
    return made


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
        f" {total['in_doubt']} of them in doubt, {total['replaced']} stores replaced, {total['found']} losses found,"
        f" {total['seconds']:.0f} s: nothing else lost, nothing doubled"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--variant", choices=VARIANTS, action="append")
    parser.add_argument("--directory", type=Path, help="where the stores are kept; on the disk that is to be tried")
    arguments = parser.parse_args()
    main(arguments.kills, arguments.seed, arguments.variant or list(VARIANTS), arguments.directory)
