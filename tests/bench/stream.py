"""Whole payments: 1,000 packets of 1,000 units, ours to ours, ours to Node and Node to Node, in alternating rounds.

All go over the same connector, a ``btp-accounts`` server in a process of its own that accepts no packet above 1,000.
Each end is a process as well. ``--memory N`` makes one payment of N packets within one process, and reports what an end
needs of the processor, and whether memory grows.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

import interop.node
from interop.network import HOST, client, login
from interop.node import install_packages, open_node
from interop.stream import StreamPeer

from trio_ledger_plugin import PluginServices, loopback_pair, open_plugin
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.stores import MemoryStore
from trio_ledger_plugin.stream import Asset, Credentials, open_receiver, pay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

UNITS = 1000
SECONDS = 120.0
GOALS = {"ours to Node": 1.5, "ours to ours": 5.0}


async def run_connector() -> None:
    """Forward packets of up to 1,000 units between accounts, until stdin ends."""

    async def forward(data: bytes) -> bytes:
        packet = ilp.decode(data)
        if isinstance(packet, ilp.Prepare) and packet.amount > UNITS:
            return ilp.encode(ilp.Reject("F08", HOST, "", packet.amount.to_bytes(8) + UNITS.to_bytes(8)))
        return await plugin.send_data(data)

    info = {"client_address": HOST, "asset_scale": 9, "asset_code": "XRP"}
    opts = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": info}
    async with open_plugin(opts, PluginServices(store=MemoryStore()), data_handler=forward) as plugin:
        print(json.dumps({"url": plugin.address}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def run_receiver(url: str) -> None:
    """Receive payments, until stdin ends."""
    async with open_plugin(client(url, "payee")) as plugin, open_receiver(plugin, secret=os.urandom(32)) as receiver:
        credentials = receiver.new_credentials()
        told = {"destination": credentials.destination_account, "secret": credentials.shared_secret.hex()}
        print(json.dumps(told), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


async def run_payer(url: str, destination: str, secret: str, packets: str) -> None:
    """Pay, and tell how long it took."""
    async with open_plugin(client(url, "payer")) as plugin:
        amount = int(packets) * UNITS
        began = time.perf_counter()
        paid = await pay(plugin, Credentials(destination, bytes.fromhex(secret)), send=amount)
        assert paid.sent == paid.delivered == amount
        print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


ROLES: dict[str, Callable[..., Awaitable[None]]] = {
    "connector": run_connector,
    "receiver": run_receiver,
    "payer": run_payer,
}


@asynccontextmanager
async def role(name: str, *args: str) -> AsyncIterator[Any]:
    """Run a role in a process of its own; yield what it says first."""
    command = [sys.executable, __file__, "--role", name, *args]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    said = b""
    try:
        with trio.fail_after(SECONDS):
            while not said.endswith(b"\n"):
                chunk = await process.stdout.receive_some()
                assert chunk, f"{name} ended"
                said += chunk
        yield json.loads(said)
    finally:
        with trio.move_on_after(5, shield=True):
            await process.stdin.aclose()
            await process.wait()
        process.kill()


async def measure(kind: str, url: str, packets: int) -> float:
    """Return how many packets a second one payment makes."""
    if kind == "ours to ours":
        async with (
            role("receiver", url) as to,
            role("payer", url, to["destination"], to["secret"], str(packets)) as paid,
        ):
            return packets / float(paid["seconds"])
    async with open_node(StreamPeer) as payee:
        to = await payee.do("receive", url=login(url, "payee"))
        where = {"destination": to["destination"], "secret": to["secret"]}
        if kind == "ours to Node":
            async with role("payer", url, *where.values(), str(packets)) as paid:
                return packets / float(paid["seconds"])
        async with open_node(StreamPeer) as payer:
            began = time.perf_counter()
            paid = await payer.do("pay", url=login(url, "payer"), amount=packets * UNITS, **where)
            assert int(paid["delivered"]) == packets * UNITS
            return packets / (time.perf_counter() - began)


async def compare(rounds: int, packets: int) -> None:
    """Measure in alternating rounds, and print medians and ratios."""
    install_packages()
    interop.node.REPLY_DEADLINE = interop.node.BLOCK_DEADLINE = SECONDS
    rates: dict[str, list[float]] = {"Node to Node": [], **{kind: [] for kind in GOALS}}
    for number in range(rounds):
        for kind, found in rates.items():
            async with role("connector") as connector:
                found.append(await measure(kind, connector["url"], packets))
            print(f"round {number + 1}: {kind:<13} {found[-1]:>8,.0f} packets/s")
    base = median(rates["Node to Node"])
    for kind, found in rates.items():
        goal = f", goal {GOALS[kind]}" if kind in GOALS else ""
        print(f"{kind:<13} {median(found):>8,.0f} packets/s, {median(found) / base:.2f} times Node to Node{goal}")


async def measure_memory(packets: int) -> None:
    """Make one payment within this process; print the processor's time of an end, and what memory does."""
    async with loopback_pair() as (payer, end):
        receiving = open_receiver(end, secret=os.urandom(32), address="example.b", asset=Asset("XRP", 9))
        async with receiving as receiver:
            before, objects, began = 0, 0, 0.0
            for part in range(2):
                # The first tenth fills every cache.
                count = packets // 10 if part == 0 else packets
                began = time.process_time()
                await pay(payer, receiver.new_credentials(), send=count * UNITS, max_packet=UNITS)
                took = time.process_time() - began
                gc.collect()
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                now = len(gc.get_objects())
                print(f"{count:,} packets: {took / count / 2 * 1e6:.0f} us an end, peak {peak:,} KiB, {now:,} objects")
                if part:
                    print(f"growth: {peak - before:,} KiB, {now - objects:,} objects")
                before, objects = peak, now


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packets", type=int, default=1000)
    parser.add_argument("--memory", type=int, metavar="N")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.role:
        trio.run(partial(ROLES[chosen.role[0]], *chosen.role[1:]))
    elif chosen.memory:
        trio.run(measure_memory, chosen.memory)
    else:
        trio.run(compare, chosen.rounds, chosen.packets)


if __name__ == "__main__":
    main()
