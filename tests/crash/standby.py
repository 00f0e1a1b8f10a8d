"""Two processes with one ledger in PostgreSQL, and faults of each kind; both ends' books are compared afterwards.

    python tests/crash/standby.py [--faults 8]

The processes stand by for each other. They are killed, stopped for longer than a lease, cut off from the database, and
the database itself is stopped without a checkpoint. A payer with a store of its own pays without a pause. In the end
every payment must be in both books, once.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.postgres import Server, open_server

from trio_ledger_plugin import LedgerPluginError, PluginFailedError, PluginServices, open_plugin
from trio_ledger_plugin.money import lease
from trio_ledger_plugin.stores import open_postgres_store, open_sqlite_store

LEASE, BEAT = 1.5, 0.3
AT_ONCE = 8
FAULTS = ("kill", "stop", "terminate", "restart the database")
QUICK = {"pingInterval": 500, "pongTimeout": 500, "redialMaxDelay": 200, "connectTimeout": 60_000}
SETTLING = 40


async def receive(dsn: str, port: int) -> None:
    """Be one of the two processes, until another takes the ledger; then stand by again."""
    setattr(lease, "LEASE_SECONDS", LEASE)  # noqa: B010 (they are constants to a type checker)
    setattr(lease, "BEAT_SECONDS", BEAT)  # noqa: B010
    listener = {"port": port, "secret": "secret"}
    options = {"plugin": "btp", "listener": listener, "standby": True, "acceptMoney": "journal", **QUICK}
    while True:
        with suppress(LedgerPluginError):
            async with open_postgres_store(dsn, replication="none") as store:
                while True:
                    with suppress(PluginFailedError):
                        async with open_plugin(options, PluginServices(store=store)):
                            await trio.sleep_forever()
        await trio.sleep(BEAT)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Pair:
    """The two processes."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.ports = [free_port(), free_port()]
        self.processes = [self.start(port) for port in self.ports]

    def start(self, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--receive", self.dsn, "--port", str(port)])

    def owner(self, server: Server) -> int:
        """Return which of the two has the ledger, as far as is known."""
        owner = server.execute("SELECT owner FROM lpi.lpi_owners", self.dsn)
        return int(bool(owner) and f" {self.processes[1].pid} " in str(owner[0][0]))

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()
        self.processes[number] = self.start(self.ports[number])

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


async def forward(pair: Pair, client: trio.SocketStream) -> None:
    """Carry one connection to one of the two, to each in its turn, as a balancer does."""
    async with client:
        for port in next(ORDERS):
            with suppress(OSError):
                async with await trio.open_tcp_stream("127.0.0.1", pair.ports[port]) as server:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(copy, client, server, nursery.cancel_scope)
                        nursery.start_soon(copy, server, client, nursery.cancel_scope)
                    return


ORDERS = cycle(((0, 1), (1, 0)))


async def copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await target.send_all(data)
    scope.cancel()


async def pay(plugin: Any, lane: int, keys: list[str], over: trio.Event) -> None:
    """Pay one unit after another; each goes on in the journal, also if this call fails."""
    number = 0
    while not over.is_set():
        number += 1
        key = f"{lane}-{number}"
        keys.append(key)
        while True:
            try:
                await plugin.send_money(1, idempotency_key=key)
            except LedgerPluginError:
                await trio.sleep(0.2)
                if over.is_set():
                    break
            else:
                break


async def fault(kind: str, number: int, pair: Pair, server: Server) -> None:
    if kind == "kill":
        pair.kill(number)
    elif kind == "stop":
        pair.processes[number].send_signal(signal.SIGSTOP)
        await trio.sleep(2 * LEASE)
        pair.processes[number].send_signal(signal.SIGCONT)
    elif kind == "terminate":
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    else:
        server.stop(signal.SIGQUIT)
        server.start()


async def run(faults: int, directory: Path, server: Server) -> dict[str, Any]:
    pair = Pair(server.new_database())
    keys: list[str] = []
    counts: Counter[str] = Counter()
    try:
        async with trio.open_nursery() as nursery, open_sqlite_store(directory / "payer.db") as store:
            (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(partial(trio.serve_listeners, partial(forward, pair), [listening]))
            port = listening.socket.getsockname()[1]
            options = {
                "plugin": "btp",
                "server": f"btp+ws://:secret@127.0.0.1:{port}",
                "responseTimeout": 3000,
                **QUICK,
            }
            async with open_plugin(options, PluginServices(store=store)) as plugin:
                over = trio.Event()
                async with trio.open_nursery() as paying:
                    for lane in range(AT_ONCE):
                        paying.start_soon(pay, plugin, lane, keys, over)
                    for number in range(faults):
                        await trio.sleep(2)
                        kind = FAULTS[number % len(FAULTS)]
                        counts[kind] += 1
                        # Mostly the owner; every third time the one that stands by.
                        owner = pair.owner(server)
                        await fault(kind, 1 - owner if number % 3 == 2 else owner, pair, server)
                    await trio.sleep(2 * LEASE)
                    over.set()
                deadline = time.monotonic() + SETTLING
                while time.monotonic() < deadline:
                    totals = await plugin.transfers.totals()
                    if not totals.in_doubt:
                        break
                    await trio.sleep(0.2)
                entered = {entry.key async for entry in plugin.transfers.walk()}
            nursery.cancel_scope.cancel()
    finally:
        pair.end()
    received = server.execute("SELECT key FROM lpi.lpi_transfers WHERE state = 'applied'", pair.dsn)
    [(credited,)] = server.execute("SELECT received FROM lpi.lpi_accounts", pair.dsn)
    [(epochs,)] = server.execute("SELECT epoch FROM lpi.lpi_owners", pair.dsn)
    theirs = Counter(str(key) for (key,) in received)
    return {
        "faults": dict(counts),
        "epochs": epochs,
        "sent": totals.sent,
        "in_doubt": totals.in_doubt,
        "credited": int(str(credited)),
        "lost": len(entered - set(theirs)),
        "unknown": len(set(theirs) - entered),
        "doubled": sum(number - 1 for number in theirs.values()),
    }


def main(faults: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, open_server() as server:
        return trio.run(run, faults, Path(directory), server)


def is_right(found: dict[str, Any]) -> bool:
    """Whether both ends have every payment, once."""
    wrong = found["lost"], found["unknown"], found["doubled"], found["in_doubt"]
    return wrong == (0, 0, 0, 0) and found["sent"] == found["credited"] > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=8)
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive is not None:
        trio.run(receive, arguments.receive, arguments.port)
    else:
        result = main(arguments.faults)
        sys.stdout.write(f"{json.dumps(result)}\n")
        sys.exit(not is_right(result))
