"""How many transfers a second survive a crash: two processes, each with a store on the disk, 100 transfers at once.

    python tests/bench/money.py [--quick] [--rounds 5] [--transfers 20000] [--directory .] [--save FILE]
        [--dsn DSN] [--connections 1]

Round after round, in turns: KEYED without a money handler, with one that is called from the outbox, and with one inside
the transaction; PLAIN with a journal at the sender alone. Before each the disk itself is measured: 4 KiB written and
synced, one after the other. With a DSN, each case also runs in PostgreSQL, in turns with SQLite. What is told
beside the rates is how many transfers shared a commit, at either end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.stores import open_postgres_store, open_sqlite_store, worker
from trio_ledger_plugin.stores.reader import open_reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from trio_ledger_plugin import Transfer

IN_FLIGHT = 100
SYNC_SECONDS = 0.5
CASES = {
    "KEYED, no handler": "none",
    "KEYED, outbox handler": "outbox",
    "KEYED, transactional handler": "transactional",
    "PLAIN, journal at the sender": "plain",
}


class Counted:
    """Counts commits."""

    commits = 0
    run = worker.Database.run


def run_counted(database: worker.Database, works: Sequence[Any]) -> list[Any]:
    Counted.commits += 1
    return Counted.run(database, works)


setattr(worker.Database, "run", run_counted)  # noqa: B010 (a type checker would object to the assignment)


def open_store(where: str, dsn: str | None, connections: int, end: str) -> AbstractAsyncContextManager[Any]:
    """Open the store of one end: in a new schema, or in a file."""
    if dsn is None:
        return open_sqlite_store(Path(where) / f"{end}.sqlite3")
    schema = f"{end} {Path(where).name}"
    return open_postgres_store(dsn, connections=connections, schema=schema, replication="none")


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


# The ends.


async def receive(directory: str, dsn: str | None, connections: int, case: str) -> None:
    """Be the receiver until stdin ends; tell the port, and then what was done."""
    handled = 0

    async def handle(amount: str) -> None:
        nonlocal handled
        handled += 1

    insert = "INSERT INTO mine VALUES (?, ?)" if dsn is None else "INSERT INTO mine VALUES (%s, %s)"

    def handle_within(connection: Any, transfer: Transfer) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS mine (key TEXT, amount TEXT)")
        connection.execute(insert, (transfer.key, transfer.amount))

    handlers: dict[str, Any] = {}
    if case in ("outbox", "plain"):
        handlers["money_handler"] = handle
    elif case == "transactional":
        handlers["transactional_money_handler"] = handle_within
    async with AsyncExitStack() as stack:
        store = None
        if case != "plain":
            store = await stack.enter_async_context(open_store(directory, dsn, connections, "receiver"))
        options: dict[str, Any] = {"plugin": "btp", "listener": {"port": 0, "secret": "bench"}}
        if case == "none":
            options["accept_money"] = "journal"
        plugin = await stack.enter_async_context(open_plugin(options, PluginServices(store=store), **handlers))
        say(port=int(plugin.address.rpartition(":")[2]))
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        received = None if store is None else (await plugin.transfers.totals()).received
    say(received=received, handled=handled, commits=Counted.commits, cpu=time.process_time())


async def send(directory: str, dsn: str | None, connections: int, port: int, transfers: int, in_flight: int) -> None:
    """Be the sender: so many transfers, and tell how it went."""
    async with open_store(directory, dsn, connections, "sender") as store:
        options = {"plugin": "btp", "server": f"btp+ws://bench:bench@127.0.0.1:{port}"}
        async with open_plugin(options, PluginServices(store=store)) as plugin:

            async def lane(number: int) -> None:
                for _ in range(number):
                    await plugin.send_money("1")

            async def load(number: int) -> None:
                async with trio.open_nursery() as nursery:
                    for _ in range(in_flight):
                        nursery.start_soon(lane, number // in_flight)

            await load(max(in_flight, transfers // 10))
            commits, cpu = Counted.commits, time.process_time()
            began = time.perf_counter()
            await load(transfers)
            seconds = time.perf_counter() - began
            commits, cpu = Counted.commits - commits, time.process_time() - cpu
            sent = (await plugin.transfers.totals()).sent
            say(seconds=seconds, sent=sent, commits=commits, cpu=cpu)


@contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    told: dict[str, Any] = json.loads(process.stdout.readline())
    return told


# The measurements.


def syncs_a_second(directory: str) -> float:
    """Return how often a second 4 KiB can be written and synced, one after the other."""
    page = os.urandom(4096)
    with tempfile.TemporaryFile(dir=directory) as file:
        began = time.perf_counter()
        number = 0
        while (elapsed := time.perf_counter() - began) < SYNC_SECONDS:
            os.pwrite(file.fileno(), page, number % 256 * 4096)
            os.fsync(file.fileno())
            number += 1
    return number / elapsed


def measure(
    case: str,
    transfers: int,
    where: Path,
    *,
    in_flight: int = IN_FLIGHT,
    stores: Path | None = None,
    dsn: str | None = None,
    connections: int = 1,
) -> dict[str, Any]:
    """Measure one case once.

    Args:
        case: One of ``CASES``.
        transfers: How many.
        where: A directory on the disk to measure.
        in_flight: How many are sent at once.
        stores: A directory with the stores to begin with, which are copied; None for new ones.
        dsn: Where PostgreSQL is; None for SQLite.
        connections: How many connections each store has to it.
    """
    with tempfile.TemporaryDirectory(dir=where, prefix=".bench-") as directory:
        before = 0
        if stores is not None:
            for name in ("sender.sqlite3", "receiver.sqlite3"):
                shutil.copy(stores / name, directory)
            with open_reader(Path(directory) / "sender.sqlite3") as connection:
                before = int(connection.execute("SELECT sent FROM lpi_accounts").fetchone()[0])
        syncs = syncs_a_second(directory)
        database = () if dsn is None else ("--dsn", dsn, "--connections", connections)
        with running("--receive", CASES[case], "--directory", directory, *database) as receiver:
            port = hear(receiver)["port"]
            options = ("--port", port, "--in-flight", in_flight, "--directory", directory, *database)
            with running("--send", transfers, *options) as sender:
                ours = hear(sender)
                sender.wait()
            assert receiver.stdin is not None
            receiver.stdin.close()
            theirs = hear(receiver)
    done = ours["sent"] - before
    assert theirs["received"] in (None, done + before)
    assert theirs["handled"] == done or CASES[case] in ("none", "transactional")
    return {
        "case": case if dsn is None else f"{case}, PostgreSQL, {connections} connections",
        "rate": transfers / ours["seconds"],
        "syncs_a_second": syncs,
        # The sender commits each transfer twice: before it leaves, and when it is answered.
        "sender_transfers_a_commit": transfers / ours["commits"],
        "receiver_transfers_a_commit": done / theirs["commits"] if theirs["commits"] else None,
        "sender_us_a_transfer": ours["cpu"] / transfers * 1e6,
        "receiver_us_a_transfer": theirs["cpu"] / done * 1e6,
    }


def main(
    rounds: int, transfers: int, where: Path, save: Path | None, dsn: str | None = None, connections: int = 1
) -> None:
    results = []
    for _ in range(rounds):
        for case in CASES:
            for place in (None, dsn) if dsn else (None,):
                results.append(measure(case, transfers, where, dsn=place, connections=connections))
                say(**results[-1])
    summary = {
        case: {
            name: round(median(result[name] for result in results if result["case"] == case))
            for name in ("rate", "syncs_a_second")
        }
        for case in dict.fromkeys(result["case"] for result in results)
    }
    print(json.dumps(summary, indent=1))
    if save is not None:
        save.write_text(json.dumps({"results": results, "summary": summary}, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and once: whether every transfer is applied")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--transfers", type=int, default=20000)
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="on the disk to measure; by default here")
    parser.add_argument("--save", type=Path, help="where to write the JSON")
    parser.add_argument("--receive", choices=CASES.values(), help=argparse.SUPPRESS)
    parser.add_argument("--send", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--in-flight", type=int, default=IN_FLIGHT, help="how many transfers are sent at once")
    parser.add_argument("--dsn", help="of a PostgreSQL database on the same disk")
    parser.add_argument("--connections", type=int, default=1, help="how many connections a store has to it")
    arguments = parser.parse_args()
    database = arguments.dsn, arguments.connections
    if arguments.receive is not None:
        trio.run(receive, arguments.directory, *database, arguments.receive)
    elif arguments.send is not None:
        trio.run(send, arguments.directory, *database, arguments.port, arguments.send, arguments.in_flight)
    elif arguments.quick:
        main(1, 2 * IN_FLIGHT, arguments.directory, arguments.save, *database)
    else:
        main(arguments.rounds, arguments.transfers, arguments.directory, arguments.save, *database)
