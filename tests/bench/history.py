"""What a long history costs: money and everything else, with an empty journal and with 1,000,000 remembered transfers.

    python tests/bench/history.py [--rows 1000000] [--rounds 5] [--directory .]

Measured are the rate of transfers, how long the store takes to open, how long a whole walk takes, and how long another
transaction waits for the store beside what reads or changes all of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from money import measure, say
from support.old_store import OWN, PEER, make_old_store

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.money.history import START
from trio_ledger_plugin.money.journaled import SLICE_PAUSE
from trio_ledger_plugin.money.turns import BACKGROUND
from trio_ledger_plugin.stores import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_ledger_plugin.plugin import LedgerPlugin
    from trio_ledger_plugin.stores import SqliteStore

__all__ = ["listing", "make_stores", "measure_opening", "measure_rates", "measure_waits"]

CASE = "KEYED, outbox handler"
# So many transfers of the history may be forgotten.
OVER = 200_000
# How often another transaction is tried, in seconds.
PROBE = 0.002


def make_stores(directory: Path, rows: int) -> None:
    """Make the stores of both ends with a history, in a directory."""
    trio.run(partial(make_old_store, directory / "sender.sqlite3", rows))
    trio.run(partial(make_old_store, directory / "receiver.sqlite3", rows, own=PEER, peer=OWN))


def measure_rates(stores: Path, where: Path, in_flight: int, transfers: int, rounds: int) -> dict[str, float]:
    """Measure the rate with an empty journal and with a history, in turns; return the medians and their ratio."""
    rates: dict[str, list[float]] = {"empty": [], "old": []}
    for number in range(rounds):
        for name in sorted(rates, reverse=number % 2 == 1):
            result = measure(CASE, transfers, where, in_flight=in_flight, stores=stores if name == "old" else None)
            rates[name].append(result["rate"])
    empty, old = median(rates["empty"]), median(rates["old"])
    return {"in_flight": in_flight, "empty": round(empty), "old": round(old), "ratio": round(old / empty, 3)}


@asynccontextmanager
async def open_old(path: Path) -> AsyncIterator[tuple[SqliteStore, LedgerPlugin, float]]:
    """Open a store and a plugin on it; give both, and how long that took."""
    began = time.perf_counter()
    async with open_sqlite_store(path) as store:
        options = {"plugin": "btp", "listener": {"port": 0, "secret": "bench"}}
        async with open_plugin(options, PluginServices(store=store)) as plugin:
            yield store, plugin, time.perf_counter() - began


async def measure_opening(path: Path) -> float:
    """Return how long it takes to open a store and a plugin, in seconds."""
    async with open_old(path) as (_, _, seconds):
        return seconds


async def walk(plugin: LedgerPlugin) -> None:
    """Read all transfers."""
    async for _ in plugin.transfers.walk():
        pass


async def totals(plugin: LedgerPlugin) -> None:
    """Read the totals again and again, for a second: they are read at once."""
    with trio.move_on_after(1):
        while True:
            await plugin.transfers.totals()


async def forget(plugin: LedgerPlugin) -> None:
    """Remove what may be forgotten, as the plugin does every hour."""
    journal = plugin.money.journal  # type: ignore[attr-defined]
    after: tuple[float, int] | None = START
    while after is not None:
        after = await journal.run(BACKGROUND, journal.sql.history.forget, after)
        await trio.sleep(SLICE_PAUSE)


async def listing(path: Path) -> None:
    """List the transfers as an operator does, in another process."""
    command = [sys.executable, "-m", "trio_ledger_plugin", "transfers", str(path)]
    with tempfile.TemporaryFile() as output:
        await trio.run_process(command, stdout=output)


async def measure_waits(path: Path) -> dict[str, dict[str, float]]:
    """Return how long other transactions wait beside each, and how long it takes, in seconds."""
    results: dict[str, dict[str, float]] = {}
    async with open_old(path) as (store, plugin, _):
        beside: dict[str, Callable[[], Awaitable[None]]] = {
            # First, and twice at once: a plugin that opens begins with it.
            "forgetting": partial(forget, plugin),
            "nothing": partial(trio.sleep, 2),
            "totals": partial(totals, plugin),
            "walk": partial(walk, plugin),
            "listing": partial(listing, path),
        }
        for name, function in beside.items():
            waits: list[float] = []
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(probe, store, waits)
                await function()
                nursery.cancel_scope.cancel()
            seconds = time.perf_counter() - began
            waits.sort()
            longest = {"longest_ms": waits[-1] * 1e3, "99.9 %_ms": waits[int(len(waits) * 0.999)] * 1e3}
            results[name] = {"seconds": round(seconds, 2), "transactions": len(waits)}
            results[name] |= {key: round(value, 1) for key, value in longest.items()}
    return results


async def probe(store: SqliteStore, waits: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await store.get("token")
        waits.append(time.perf_counter() - began)
        await trio.sleep(PROBE)


def main(rows: int, rounds: int, where: Path) -> None:
    with tempfile.TemporaryDirectory(dir=where, prefix=".bench-") as directory:
        stores = Path(directory)
        began = time.perf_counter()
        make_stores(stores, rows)
        say(rows=rows, made_in_seconds=round(time.perf_counter() - began, 1))
        say(opening_seconds=[round(trio.run(measure_opening, stores / "receiver.sqlite3"), 3) for _ in range(3)])
        for in_flight, transfers in ((1, 500), (50, 4000)):
            say(**measure_rates(stores, where, in_flight, transfers, rounds))
        trio.run(partial(make_old_store, stores / "over.sqlite3", rows, over=min(rows, OVER)))
        for name, told in trio.run(measure_waits, stores / "over.sqlite3").items():
            print(json.dumps({"beside": name, **told}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="on the disk to measure; by default here")
    arguments: Any = parser.parse_args()
    main(arguments.rows, arguments.rounds, arguments.directory)
