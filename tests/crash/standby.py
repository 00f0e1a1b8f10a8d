"""Several processes with one ledger in PostgreSQL, and faults of each kind; both ends' books are compared afterwards.

    python tests/crash/standby.py [--faults 10] [--seed 1] [--processes 2]

The processes stand by for each other, and so do two servers of PostgreSQL, which replicate synchronously. The
processes are killed, stopped for longer than a lease, and cut off from the database; the primary is stopped without a
checkpoint, or killed for good, so that its standby is promoted and a new one is made. A payer with a store of its own
pays without a pause. In the end every payment must be in both books, once.

What is told besides: for how long no payment was acknowledged after the owner of the ledger, or the primary, was hit.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.failover import Cluster, open_cluster
from support.ports import free_port

from trio_ledger_plugin import LedgerPlugin, LedgerPluginError, PluginFailedError, PluginServices, open_plugin
from trio_ledger_plugin.money import lease
from trio_ledger_plugin.stores import open_postgres_store, open_sqlite_store

LEASE, BEAT = 1.0, 0.25
AT_ONCE = 8
PROCESS_FAULTS = ("kill", "stop")
FAULTS = (*PROCESS_FAULTS, "terminate", "restart the primary", "promote the standby")
# Seconds between two faults, once money flows again.
PAUSES = 0.2, 1.0
QUICK = {"pingInterval": 500, "pongTimeout": 500, "redialMaxDelay": 200, "connectTimeout": 60_000}
SETTLING = 40
# After how many faults a line is written to standard error.
PROGRESS = 50


async def receive(dsn: str, port: int) -> None:
    """Be one of the processes, until another takes the ledger; then stand by again."""
    setattr(lease, "LEASE_SECONDS", LEASE)  # noqa: B010 (they are constants to a type checker)
    setattr(lease, "BEAT_SECONDS", BEAT)  # noqa: B010
    listener = {"port": port, "secret": "secret"}
    options = {"plugin": "btp", "listener": listener, "standby": True, "acceptMoney": "journal", **QUICK}
    while True:
        with suppress(LedgerPluginError):
            async with open_postgres_store(dsn) as store:
                while True:
                    with suppress(PluginFailedError):
                        async with open_plugin(options, PluginServices(store=store)):
                            await trio.sleep_forever()
        await trio.sleep(BEAT)


class Processes:
    """The processes, of which one has the ledger.

    Args:
        dsn: Where the ledger is.
        number: How many there are.
    """

    def __init__(self, dsn: str, number: int) -> None:
        self.dsn = dsn
        self.ports = [free_port() for _ in range(number)]
        # To which of them a connection is carried first, in turn.
        self.orders = cycle([(*range(first, number), *range(first)) for first in range(number)])
        self.processes = [self.start(port) for port in self.ports]

    def start(self, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, __file__, "--receive", self.dsn, "--port", str(port)])

    def owner(self, cluster: Cluster) -> int:
        """Return which of them has the ledger, as far as is known."""
        owner = cluster.primary.execute("SELECT owner FROM lpi.lpi_owners", self.dsn)
        named = [f" {process.pid} " in str(owner) for process in self.processes]
        return named.index(True) if True in named else 0

    def kill(self, number: int) -> None:
        self.processes[number].kill()
        self.processes[number].wait()
        self.processes[number] = self.start(self.ports[number])

    def end(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


async def forward(processes: Processes, client: trio.SocketStream) -> None:
    """Carry one connection to one of the processes, to each in its turn, as a balancer does."""
    async with client:
        for number in next(processes.orders):
            with suppress(OSError):
                async with await trio.open_tcp_stream("127.0.0.1", processes.ports[number]) as server:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(copy, client, server, nursery.cancel_scope)
                        nursery.start_soon(copy, server, client, nursery.cancel_scope)
                    return


async def copy(source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for data in source:
            await target.send_all(data)
    scope.cancel()


class Payments:
    """Pays one unit after another; each goes on in the journal, also if a call fails.

    Args:
        plugin: Pays.
    """

    def __init__(self, plugin: LedgerPlugin) -> None:
        self._plugin = plugin
        self._over = trio.Event()
        self._acknowledged = trio.Event()
        # When payments were acknowledged since the last fault, which comes first.
        self._times = [time.monotonic()]

    def end(self) -> None:
        self._over.set()

    def pause(self) -> float:
        """Return for how long no payment was acknowledged since this was called last, in seconds."""
        times, self._times = self._times, [time.monotonic()]
        return max((after - before for before, after in pairwise(times)), default=0.0)

    async def wait_flowing(self) -> None:
        """Wait until more payments are acknowledged than were under way."""
        for _ in range(2 * AT_ONCE):
            await self._acknowledged.wait()

    async def pay(self, lane: int) -> None:
        number = 0
        while not self._over.is_set():
            number += 1
            await self._pay_once(f"{lane}-{number}")

    async def _pay_once(self, key: str) -> None:
        while True:
            try:
                await self._plugin.send_money(1, idempotency_key=key)
            except LedgerPluginError:
                await trio.sleep(0.1)
                if self._over.is_set():
                    return
            else:
                self._times.append(time.monotonic())
                self._acknowledged.set()
                self._acknowledged = trio.Event()
                return


async def fault(kind: str, number: int, processes: Processes, cluster: Cluster) -> None:
    primary = cluster.primary
    if kind == "kill":
        processes.kill(number)
    elif kind == "stop":
        processes.processes[number].send_signal(signal.SIGSTOP)
        await trio.sleep(2 * LEASE)
        processes.processes[number].send_signal(signal.SIGCONT)
    elif kind == "terminate":
        primary.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    elif kind == "promote the standby":
        await trio.to_thread.run_sync(cluster.fail_over)
    else:
        primary.stop(signal.SIGQUIT)
        await trio.to_thread.run_sync(primary.start)


async def inflict(
    faults: int, chance: random.Random, payments: Payments, processes: Processes, cluster: Cluster
) -> Any:
    """Inflict faults of each kind in turn; return for how long no money flowed if the owner was hit."""
    pauses: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(faults):
        await trio.sleep(chance.uniform(*PAUSES))
        kind, owner = FAULTS[number % len(FAULTS)], processes.owner(cluster)
        # Mostly the owner; every third time one that stands by.
        victim = (owner + 1) % len(processes.ports) if number % 3 == 2 else owner
        payments.pause()
        await fault(kind, victim, processes, cluster)
        await payments.wait_flowing()
        pause = payments.pause()
        if victim == owner or kind not in PROCESS_FAULTS:
            pauses[kind].append(pause)
        if (number + 1) % PROGRESS == 0:
            sys.stderr.write(f"{number + 1} of {faults} faults\n")
    return {
        kind: {"times": len(each), "median": round(median(each), 2), "longest": round(max(each), 2)}
        for kind, each in pauses.items()
    }


async def run(faults: int, seed: int, number: int, directory: Path, cluster: Cluster) -> dict[str, Any]:
    cluster.primary.execute("CREATE DATABASE ledger")
    processes = Processes(cluster.dsn("ledger"), number)
    try:
        async with trio.open_nursery() as nursery, open_sqlite_store(directory / "payer.db") as store:
            (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(partial(trio.serve_listeners, partial(forward, processes), [listening]))
            port = listening.socket.getsockname()[1]
            server = f"btp+ws://:secret@127.0.0.1:{port}"
            options = {"plugin": "btp", "server": server, "responseTimeout": 3000, **QUICK}
            async with open_plugin(options, PluginServices(store=store)) as plugin:
                payments = Payments(plugin)
                async with trio.open_nursery() as paying:
                    for lane in range(AT_ONCE):
                        paying.start_soon(payments.pay, lane)
                    await payments.wait_flowing()
                    pauses = await inflict(faults, random.Random(seed), payments, processes, cluster)
                    payments.end()
                deadline = time.monotonic() + SETTLING
                while time.monotonic() < deadline:
                    totals = await plugin.transfers.totals()
                    if not totals.in_doubt:
                        break
                    await trio.sleep(0.2)
                entered = {entry.key async for entry in plugin.transfers.walk()}
            nursery.cancel_scope.cancel()
    finally:
        processes.end()
    execute = partial(cluster.primary.execute, dsn=processes.dsn)
    theirs = Counter(str(key) for (key,) in execute("SELECT key FROM lpi.lpi_transfers WHERE state = 'applied'"))
    [(credited,)] = execute("SELECT received FROM lpi.lpi_accounts")
    [(epochs,)] = execute("SELECT epoch FROM lpi.lpi_owners")
    return {
        "faults": faults,
        "processes": number,
        "lease": LEASE,
        "without_money": pauses,
        "epochs": epochs,
        "sent": totals.sent,
        "in_doubt": totals.in_doubt,
        "credited": int(str(credited)),
        "lost": len(entered - set(theirs)),
        "unknown": len(set(theirs) - entered),
        "doubled": sum(number - 1 for number in theirs.values()),
    }


def main(faults: int, seed: int, processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory, open_cluster() as cluster:
        return trio.run(run, faults, seed, processes, Path(directory), cluster)


def is_right(found: dict[str, Any]) -> bool:
    """Whether both ends have every payment, once."""
    wrong = found["lost"], found["unknown"], found["doubled"], found["in_doubt"]
    return wrong == (0, 0, 0, 0) and found["sent"] == found["credited"] > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, choices=(2, 3))
    parser.add_argument("--receive", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.receive is not None:
        trio.run(receive, arguments.receive, arguments.port)
    else:
        result = main(arguments.faults, arguments.seed, arguments.processes)
        sys.stdout.write(f"{json.dumps(result)}\n")
        sys.exit(not is_right(result))
