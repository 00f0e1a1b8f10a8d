"""What a ledger in PostgreSQL costs and does, beside one in a file: rates, opening, and an outage.

    python tests/bench/postgres.py [--rounds 5] [--transfers 10000] [--rows 1000000] [--directory .] [--quick]

A server is made for it in the directory, which should be on the disk to measure. Measured are the rate of KEYED
transfers with 100 in flight, with SQLite and with one and two connections to PostgreSQL, in turns; how long it takes to
open a ledger with so many remembered transfers; and what happens while the database is away for some seconds, and how
soon after its return money is credited again.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from money import measure, say
from support.postgres import open_server

from trio_ledger_plugin import LedgerPlugin, PluginServices, RemoteError, open_plugin
from trio_ledger_plugin.stores import open_postgres_store, open_sqlite_store

if TYPE_CHECKING:
    from support.postgres import Server

CASE = "KEYED, no handler"
# For how many seconds the database is away: at least so long, and until money is refused. Where the database goes away
# within a commit of the receiver's own, its store tries for ten seconds to learn what became of that one.
AWAY, LONGEST_AWAY = 6.0, 20.0
# A transfer of the history: every second one was received.
HISTORY = """INSERT INTO lpi.lpi_transfers
    (ledger, account, direction, origin, key, amount, level, state, created, changed, keep_for, forget_at)
    SELECT 'main', '', CASE WHEN i % 2 = 0 THEN 'out' ELSE 'in' END, '', 'key ' || i, '5', 'keyed',
        CASE WHEN i % 2 = 0 THEN 'acked' ELSE 'delivered' END, i, i, 604800, 1e6 + i
    FROM generate_series(1, {rows}) AS i"""


def measure_rates(dsn: str, where: Path, transfers: int, rounds: int) -> dict[str, Any]:
    """Measure in turns; return the medians, and the median ratio to SQLite's rate in the same round."""
    rates: dict[str, list[float]] = {"sqlite": [], "1 connection": [], "2 connections": []}
    for _ in range(rounds):
        for connections, (name, measured) in enumerate(rates.items()):
            place = dsn if connections else None
            measured.append(measure(CASE, transfers, where, dsn=place, connections=max(connections, 1))["rate"])
            say(case=name, rate=round(measured[-1]))
    return {
        name: {
            "rate": round(median(measured)),
            "of_sqlite": round(median(a / b for a, b in zip(measured, rates["sqlite"], strict=True)), 2),
        }
        for name, measured in rates.items()
    }


async def open_ledger(dsn: str) -> float:
    """Return how many seconds it takes until a plugin with a ledger in the database is connected."""
    began = time.perf_counter()
    async with (
        open_postgres_store(dsn, replication="none") as store,
        open_plugin({"plugin": "loopback", "name": "bench"}, PluginServices(store=store)),
    ):
        return time.perf_counter() - began


async def measure_opening(server: Server, dsn: str, rows: int) -> dict[str, float]:
    """Measure the opening of a new ledger's second time, and that of one with a history."""
    await open_ledger(dsn)
    new = await open_ledger(dsn)
    server.execute(HISTORY.format(rows=rows), dsn)
    return {"new_ledger_seconds": round(new, 3), "rows": rows, "seconds": round(await open_ledger(dsn), 3)}


async def measure_outage(server: Server, dsn: str, directory: Path) -> dict[str, Any]:
    """Take the database away from a receiver whose peer goes on sending requests and money."""
    told: dict[str, Any] = {"requests_answered": 0}

    async def echo(data: bytes) -> bytes:
        return data

    async def ask(payer: LedgerPlugin) -> None:
        while True:
            assert await payer.send_data(b"request") == b"request"
            told["requests_answered"] += 1
            await trio.sleep(0.05)

    async with (
        open_postgres_store(dsn, replication="none") as store,
        open_sqlite_store(directory / "payer.db") as payers,
        open_plugin(
            {"listener": {"port": 0, "secret": "bench"}, "accept_money": "journal"},
            PluginServices(store=store),
            data_handler=echo,
        ) as payee,
        open_plugin({"server": payee.address.replace("//", "//:bench@")}, PluginServices(store=payers)) as payer,
    ):
        await payer.send_money(1)
        server.stop(signal.SIGQUIT)
        stopped = trio.current_time()
        with trio.move_on_after(LONGEST_AWAY):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, payer)
                try:
                    await payer.send_money(1)
                except RemoteError as error:
                    told["money"] = error.code
                    told["seconds_until_refusal"] = round(trio.current_time() - stopped, 3)
                await trio.sleep_until(stopped + AWAY)
                nursery.cancel_scope.cancel()
        told["away_seconds"] = round(trio.current_time() - stopped, 1)
        await trio.to_thread.run_sync(server.start)
        began = trio.current_time()
        # A new transfer, which does not wait for a pause between tries to end.
        await payer.send_money(1)
        told["seconds_until_money"] = round(trio.current_time() - began, 3)
        told["redials"] = payer.statistics().redials
        totals = await payer.transfers.totals(), await payee.transfers.totals()
        told["sent"], told["received"], told["in_doubt"] = totals[0].sent, totals[1].received, totals[0].in_doubt
    return told


def main(rounds: int, transfers: int, rows: int, where: Path) -> None:
    with open_server(where) as server, tempfile.TemporaryDirectory(dir=where, prefix=".bench-") as directory:
        result: dict[str, Any] = {"rates": measure_rates(server.new_database(), where, transfers, rounds)}
        result["opening"] = trio.run(measure_opening, server, server.new_database(), rows)
        result["outage"] = trio.run(measure_outage, server, server.new_database(), Path(directory))
    say(**result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transfers", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--directory", type=Path, default=Path.cwd())
    parser.add_argument("--quick", action="store_true", help="small, and once")
    arguments = parser.parse_args()
    if arguments.quick:
        main(1, 200, 1000, arguments.directory)
    else:
        main(arguments.rounds, arguments.transfers, arguments.rows, arguments.directory)
