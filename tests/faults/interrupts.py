"""Ctrl-C at random moments of a program under load: many links and a store, each run interrupted once.

``python -m faults.interrupts --runs 200`` in ``tests/`` prints one line, and exits with 1 when a run ended in any other
way than as ``KeyboardInterrupt``. ``--at Call`` interrupts once, where a waiter of that class can be woken already and
its task does not sleep yet.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from trio_ledger_plugin import LedgerPluginError, PluginServices, open_plugin, parking
from trio_ledger_plugin.stores import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import Callable

# From so many clients on, one task reads for all of a server's sockets.
CLIENTS = 40
# After this a run has lost its interruption.
LONGEST_RUN = 5.0


async def echo(data: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return data


async def take(amount: str) -> None:
    await trio.lowlevel.checkpoint()


async def load(folder: str, started: threading.Event) -> None:
    """Ask, pay and store without a pause, until interrupted."""
    server_options = {
        "plugin": "btp-accounts",
        "port": 0,
        "debugHostIldcpInfo": {"clientAddress": "test.server", "assetScale": 9, "assetCode": "XRP"},
    }
    async with (
        open_sqlite_store(f"{folder}/server.db") as store,
        open_plugin(server_options, PluginServices(store=store), data_handler=echo, money_handler=take) as server,
        trio.open_nursery() as nursery,
    ):
        port = server.address.rpartition(":")[2]

        async def ask(number: int) -> None:
            url = f"btp+ws://:token-{number}@127.0.0.1:{port}"
            # The server may be the first to end; whether it was interrupted is the server's to tell.
            with suppress(LedgerPluginError):
                async with open_plugin({"server": url}) as client:
                    while True:
                        await client.send_data(b"?")
                        if number < 3:
                            await client.send_money("1")
                            await store.put(f"key {number}", "value")

        for number in range(CLIENTS):
            nursery.start_soon(ask, number)
        await trio.sleep(0.1)
        started.set()
        await trio.sleep(LONGEST_RUN)
        nursery.cancel_scope.cancel()


def interrupt_at(started: threading.Event, place: str) -> None:
    """Have the next task that is about to sleep in such a waiter meet the signal there."""
    sleep = trio.lowlevel.wait_task_rescheduled

    async def wait(abandon: Callable[[object], trio.lowlevel.Abort]) -> Any:
        if started.is_set() and type(getattr(abandon, "__self__", None)).__name__ == place:
            started.clear()
            signal.raise_signal(signal.SIGINT)
        return await sleep(abandon)

    vars(parking)["wait_task_rescheduled"] = wait


def interrupt(started: threading.Event, ended: threading.Event, seconds: float) -> None:
    """Send one SIGINT to this process, some time after the load has begun."""
    if started.wait(LONGEST_RUN) and not ended.wait(seconds):
        os.kill(os.getpid(), signal.SIGINT)


def run_once(seconds: float | None, place: str = "") -> str:
    """Return the name of the exception that the run ended with.

    Args:
        seconds: When the interruption comes, after the load has begun; None for one at ``place``.
        place: The class of a waiter.
    """
    # Python discards an interruption that comes while it collects an async generator, such as those of the run before.
    gc.collect()
    started, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=interrupt, args=(started, ended, seconds or 0.0))
    with tempfile.TemporaryDirectory() as folder:
        if seconds is None:
            interrupt_at(started, place)
        else:
            thread.start()
        try:
            trio.run(load, folder, started)
        except BaseException as error:  # noqa: BLE001 (its kind is the result)
            return name_of(error)
        finally:
            ended.set()
            if seconds is not None:
                thread.join()
    return "no interruption"


def name_of(error: BaseException) -> str:
    """Return the name of an exception; of a group, that of the exceptions in it, if they are all of one kind."""
    if isinstance(error, BaseExceptionGroup):
        return "+".join(sorted({name_of(each) for each in error.exceptions}))
    return type(error).__name__


def run_many(runs: int, seed: int) -> Counter[str]:
    """Return how often the runs ended with which exception."""
    random = Random(seed)
    ends: Counter[str] = Counter()
    for _ in range(runs):
        # Trio installs a handler of its own for a run only where this one is in place.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ends[run_once(random.uniform(0, 0.1))] += 1
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=Random().getrandbits(32))
    parser.add_argument("--at", help="the class of the waiter at which one run is interrupted")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    ends = Counter([run_once(None, arguments.at)]) if arguments.at else run_many(arguments.runs, arguments.seed)
    print(f"{ends.total()} runs, seed {arguments.seed}: {dict(ends)}")
    return int(set(ends) != {"KeyboardInterrupt"})


if __name__ == "__main__":
    sys.exit(main())
