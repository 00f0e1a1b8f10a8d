"""Whole payments: 1,000 packets of 1,000 units between our ends and those of JavaScript, in alternating rounds.

All go over the same connector, a ``btp-accounts`` server in a process of its own that accepts no packet above 1,000.
Each end is a process as well. ``--memory N`` makes one payment of N packets within one process, and reports what an end
needs of the processor, and whether memory grows.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
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
from interop.stream import PaymentsPeer, StreamPeer

from trio_ledger_plugin import PluginServices, loopback_pair, open_plugin
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.stores import MemoryStore
from trio_ledger_plugin.stream import Asset, Credentials, ReceivedPacket, open_receiver, pay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from interop.node import NodeProcess

UNITS = 1000
SECONDS = 120.0
# Payer and payee: ours if None, else ilp-protocol-stream, or @interledger/pay.
PAIRS: dict[str, tuple[type[NodeProcess] | None, type[NodeProcess] | None]] = {
    "Node to Node": (StreamPeer, StreamPeer),
    "ours to Node": (None, StreamPeer),
    "ours to ours": (None, None),
    "Node to ours": (StreamPeer, None),
    "pay to Node": (PaymentsPeer, StreamPeer),
}
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


@asynccontextmanager
async def open_payee(kind: type[NodeProcess] | None, url: str) -> AsyncIterator[dict[str, str]]:
    """Run a payee; yield where to pay."""
    if kind is None:
        async with role("receiver", url) as to:
            yield to
        return
    async with open_node(kind) as payee:
        to = await payee.do("receive", url=login(url, "payee"))
        yield {"destination": to["destination"], "secret": to["secret"]}


async def measure(pair: str, url: str, packets: int) -> float:
    """Return how many packets a second one payment makes."""
    kind, payee = PAIRS[pair]
    async with open_payee(payee, url) as to:
        if kind is None:
            async with role("payer", url, to["destination"], to["secret"], str(packets)) as paid:
                return packets / float(paid["seconds"])
        async with open_node(kind) as payer:
            began = time.perf_counter()
            paid = await payer.do("pay", url=login(url, "payer"), amount=packets * UNITS, **to)
            assert int(paid["delivered"]) == packets * UNITS
            return packets / (time.perf_counter() - began)


async def compare(rounds: int, packets: int) -> None:
    """Measure in alternating rounds, and print medians and ratios."""
    install_packages()
    interop.node.REPLY_DEADLINE = interop.node.BLOCK_DEADLINE = SECONDS
    rates: dict[str, list[float]] = {pair: [] for pair in PAIRS}
    for number in range(rounds):
        for pair, found in rates.items():
            async with role("connector") as connector:
                found.append(await measure(pair, connector["url"], packets))
            print(f"round {number + 1}: {pair:<13} {found[-1]:>8,.0f} packets/s", flush=True)
    base = median(rates["Node to Node"])
    for pair, found in rates.items():
        goal = f", goal {GOALS[pair]}" if pair in GOALS else ""
        print(f"{pair:<13} {median(found):>8,.0f} packets/s, {median(found) / base:.2f} times Node to Node{goal}")


async def measure_memory(packets: int) -> None:
    """Make one payment within this process; print the processor's time of an end, and what memory does."""
    marks = [packets // 10, packets // 2, packets]
    received = 0

    def look(_: ReceivedPacket) -> None:
        nonlocal received
        received += 1
        if received not in marks:
            return
        used = (time.process_time() - began) / received / 2 * 1e6
        gc.collect()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
        objects = len(gc.get_objects())
        print(f"{received:,} packets: {used:.1f} us an end, {resident:,} KiB resident, {objects:,} objects", flush=True)

    async with loopback_pair() as (payer, end):
        receiving = open_receiver(
            end, secret=os.urandom(32), address="example.b", asset=Asset("XRP", 9), on_packet=look
        )
        async with receiving as receiver:
            began = time.process_time()
            await pay(payer, receiver.new_credentials(), send=packets * UNITS, max_packet=UNITS)


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
