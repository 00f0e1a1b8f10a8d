"""Load and faults for hours: does anything grow?

    python -m soak.soak --minutes 60        (in tests/)

One process holds all: a client and a listener with stores, that exchange data and KEYED transfers over a network that
fails; a server of many accounts, whose clients are killed and come again; floods, unauthenticated clients and
garbage. Each minute it prints what happened and what the process holds. It fails when memory, open files or tasks
grew from the first third to the last, the first minute apart, or when the books of the two ends do not agree.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import tempfile
from collections import Counter
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, Any

import trio
from attrs import fields, frozen
from support.peers import CLOSE, Peer, dial

from trio_ledger_plugin import ConnectOptions, LedgerPlugin, LedgerPluginError, PluginServices, open_plugin
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing import FaultKind, FaultProxy, RandomFaults, open_fault_proxy

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Sample", "grown", "soak"]

TOKEN = "soak"
LINK = {"redial_max_delay": 0.1, "response_timeout": 5, "ping_interval": 2, "pong_timeout": 2}
INFO = {"client_address": "test.soak", "asset_scale": 9, "asset_code": "XRP"}
KINDS = (FaultKind.CUT, FaultKind.RESET, FaultKind.STALL, FaultKind.DELAY, FaultKind.SLICE)
SAMPLE_SECONDS = 2.0
# Not counted, of a minute and more; of a shorter run a quarter.
WARM_SECONDS = 60.0
CLIENTS = 12
# What the median of the last third may have more than that of the first: of memory, what the allocator keeps; of files
# and tasks, what happens to be open when they are counted. A flood is served by up to 256 tasks.
MORE_BYTES, MORE_SHARE, MORE_FILES, MORE_TASKS = 6 * 1024 * 1024, 0.08, 6.0, 64.0


@frozen
class Sample:
    """What the process held at one moment: bytes of memory, open files, tasks, and objects that can hold others."""

    memory: float
    files: float
    tasks: float
    objects: float


def take_sample() -> Sample:
    gc.collect()
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    tasks = trio.lowlevel.current_statistics().tasks_living
    return Sample(memory, len(os.listdir("/proc/self/fd")), tasks, len(gc.get_objects()))


NAMES = [each.name for each in fields(Sample)]


def middle(samples: Sequence[Sample]) -> Sample:
    return Sample(*(median(getattr(sample, name) for sample in samples) for name in NAMES))


def grown(samples: Sequence[Sample]) -> list[str]:
    """Return what grew from the first third of the samples to the last."""
    third = max(1, len(samples) // 3)
    first, last = middle(samples[:third]), middle(samples[-third:])
    limits = Sample(
        first.memory * (1 + MORE_SHARE) + MORE_BYTES,
        first.files + MORE_FILES,
        first.tasks + MORE_TASKS,
        first.objects * (1 + MORE_SHARE),
    )
    return [
        f"{name}: {getattr(first, name):.0f} in the first third, {getattr(last, name):.0f} in the last"
        for name in NAMES
        if getattr(last, name) > getattr(limits, name)
    ]


class Soak:
    """One run.

    Attributes:
        counts: What happened since they were printed last.
    """

    def __init__(self, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self._random = Random(seed)
        self._received = 0

    async def run(self, seconds: float, directory: Path, seed: int) -> list[str]:
        async with AsyncExitStack() as stack:
            ours, theirs = [
                await stack.enter_async_context(open_sqlite_store(directory / f"{name}.sqlite3"))
                for name in ("client", "server")
            ]
            options = {"plugin": "btp", "listener": {"port": 0, "secret": TOKEN}, **LINK}
            server = await self._open(stack, options, theirs, money_handler=self._take)
            faults = RandomFaults(seed=seed, mean_bytes=200_000, kinds=KINDS, max_seconds=0.05)
            proxy = await stack.enter_async_context(open_fault_proxy(target(server), faults=faults))
            assert proxy.address is not None
            url = f"btp+ws://a:{TOKEN}@127.0.0.1:{proxy.address[1]}"
            client = await self._open(stack, {"plugin": "btp", "server": url, **LINK}, ours, money_handler=self._take)
            many: Any = await self._open(
                stack,
                {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": INFO, **LINK},
                None,
            )
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(self._ask, client)
                        nursery.start_soon(self._ask, server)
                    nursery.start_soon(self._pay, client)
                    nursery.start_soon(self._strike, proxy)
                    for number in range(CLIENTS):
                        nursery.start_soon(self._come_and_go, many.address, number)
                    nursery.start_soon(self._flood, many.address)
                    nursery.start_soon(self._be_strange, many.address, server.address)
                    nursery.start_soon(self._watch, min(WARM_SECONDS, seconds / 4))
            return [*grown(self.samples), *await self._settle(client, server)]

    async def _open(self, stack: AsyncExitStack, options: Any, store: Any, **handlers: Any) -> LedgerPlugin:
        opening = open_plugin(
            options,
            PluginServices(store=store, log=Silent()),
            connect=ConnectOptions(timeout=math.inf),
            data_handler=self._serve,
            **handlers,
        )
        return await stack.enter_async_context(opening)

    async def _serve(self, data: bytes) -> bytes:
        if data[:1] == b"s":
            await trio.sleep(0.01)
        elif data[:1] == b"x":
            raise ValueError("what handlers raise")
        return data

    async def _take(self, amount: str) -> None:
        await trio.lowlevel.checkpoint()
        self._received += 1

    async def _ask(self, plugin: LedgerPlugin) -> None:
        while True:
            data = self._random.choice(b"sxaaaaaa").to_bytes() + self._random.randbytes(self._random.randrange(2000))
            try:
                assert await plugin.send_data(data) == data
                self.counts["answered"] += 1
            except LedgerPluginError as error:
                self.counts[error.name] += 1
                with trio.move_on_after(1):
                    await plugin.wait_connected()
            if self._random.random() < 0.02:
                await trio.sleep(0.05)

    async def _pay(self, plugin: LedgerPlugin) -> None:
        while True:
            try:
                await plugin.send_money(self._random.randrange(1, 1000))
                self.counts["paid"] += 1
            except LedgerPluginError as error:
                self.counts[f"unpaid: {error.name}"] += 1
            await trio.sleep(0.02)

    async def _strike(self, proxy: FaultProxy) -> None:
        while True:
            await trio.sleep(self._random.uniform(0.2, 2))
            self._random.choice([proxy.cut, proxy.reset, proxy.stall])()
            await trio.sleep(self._random.uniform(0, 0.1))
            proxy.resume()
            self.counts["struck"] += 1

    async def _come_and_go(self, address: str, number: int) -> None:
        """Be clients that are killed: by the cancellation of all that they do, or by the end of their stream."""
        url = address.replace("://", f"://:client-{number}@")
        while True:
            with trio.move_on_after(self._random.uniform(0.2, 4)), suppress(LedgerPluginError):
                async with (
                    open_plugin(
                        {"plugin": "btp", "server": url, **LINK}, PluginServices(log=Silent()), data_handler=self._serve
                    ) as plugin,
                    trio.open_nursery() as nursery,
                ):
                    for _ in range(4):
                        nursery.start_soon(self._ask, plugin)
            self.counts["killed"] += 1

    async def _flood(self, address: str) -> None:
        while True:
            await trio.sleep(self._random.uniform(1, 5))
            with trio.move_on_after(2), suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError, OSError):
                peer = await dial(address)
                try:
                    await peer.send(peer.frame(auth_message(1, "", "flooder", {})))
                    data = b"".join(peer.frame(btp.encode_ilp(btp.MESSAGE, i, b"s" * 300)) for i in range(2, 300))
                    while True:
                        await peer.send(data)
                        self.counts["flooded"] += 300
                finally:
                    await peer.aclose()

    async def _be_strange(self, *addresses: str) -> None:
        while True:
            with trio.move_on_after(1), suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError, OSError):
                peer: Peer = await dial(self._random.choice(addresses))
                try:
                    if self._random.random() < 0.5:
                        await peer.send(peer.frame(auth_message(1, "nobody", "guess", {})))
                    else:
                        await peer.send(self._random.randbytes(500), peer.frame(b"\x03\xe8", CLOSE))
                    await peer.wait_eof()
                finally:
                    await peer.aclose()
            self.counts["unauthenticated"] += 1
            await trio.sleep(0.2)

    async def _watch(self, warm: float) -> None:
        began = trio.current_time()
        minute = 0
        while True:
            await trio.sleep(SAMPLE_SECONDS)
            sample, now = take_sample(), trio.current_time() - began
            if now > warm:
                self.samples.append(sample)
            if now // 60 > minute:
                minute = int(now // 60)
                errors = sum(count for name, count in self.counts.items() if name.endswith("Error"))
                print(
                    f"minute {minute}: {self.counts['answered'] / 60:.0f} answers/s, {errors} errors,"
                    f" {sample.memory / 2**20:.1f} MiB, {sample.files:.0f} files, {sample.tasks:.0f} tasks,"
                    f" {sample.objects:.0f} objects;"
                    f" {dict(self.counts)}",
                    flush=True,
                )
                self.counts.clear()

    async def _settle(self, client: LedgerPlugin, server: LedgerPlugin) -> list[str]:
        """Wait until no transfer is under way, and compare the books."""
        with trio.move_on_after(30):
            while True:
                sent, received = await client.transfers.totals(), await server.transfers.totals()
                if not sent.in_doubt and sent.sent == received.received:
                    return []
                await trio.sleep(0.2)
        return [f"the books differ: {sent} and {received}"]


class Silent:
    """A log that discards its messages."""

    def debug(self, message: str, *params: object) -> None:
        pass

    trace = info = warn = error = debug


def target(plugin: LedgerPlugin) -> tuple[str, int]:
    return "127.0.0.1", int(str(getattr(plugin, "address")).rpartition(":")[2])  # noqa: B009 (not of every plugin)


def soak(minutes: float, seed: int) -> list[str]:
    """Run; return what grew, and what else is wrong."""
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        return trio.run(Soak(seed).run, minutes * 60, Path(directory), seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    wrong = soak(arguments.minutes, arguments.seed)
    print("\n".join(wrong) or "nothing grew, and the books agree")
    sys.exit(bool(wrong))
