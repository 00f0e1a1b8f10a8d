"""How many packets a second go over HTTP: this package and ilp-plugin-http 1.6.1, at both ends and crosswise.

    python tests/bench/http.py [--quick] [--rounds 5] [--seconds 2] [--save FILE]

Each end is a process of its own, with one token, on the loopback interface. The pairings take turns within a round, so
that a load of the machine meets all of them. Sizes vary by a sixth, as those of real packets do. A peer of
ilp-plugin-http takes at most 32,767 bytes, so the long case is a little shorter than 32 KiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import trio

from trio_ledger_plugin import open_plugin

HERE = Path(__file__).parent
ENDS = {"this": [sys.executable, __file__], "npm": ["node", str(HERE / "http_bench.js")]}
PAIRINGS = [("this", "this"), ("npm", "npm"), ("this", "npm"), ("npm", "this")]
CASES = [(300, 1), (300, 100), (300, 1000), (32_000, 1), (32_000, 100)]
TOKEN = "bench"
DEADLINE = 120.0
WARMUP_CALLS, WARMUP_BYTES = 3000, 20_000_000


def say(**told: Any) -> None:
    print(json.dumps(told), flush=True)


# The ends.


async def echo(data: bytes) -> bytes:
    return data


async def serve() -> None:
    """Be the server until stdin ends."""
    options = {"plugin": "http", "incoming": {"port": 0, "static_token": TOKEN}}
    async with open_plugin(options, data_handler=echo) as plugin:
        say(port=int(plugin.address.rpartition(":")[2]))
        await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)
        say(cpu_seconds=time.process_time())


async def load(url: str, calls: int, in_flight: int, size: int, warmup: int) -> None:
    """Be the client; tell the rate."""
    options = {"plugin": "http", "outgoing": {"url": url, "static_token": TOKEN}}
    requests = [b"Z" * (size - number) for number in range(-(-size // 6))]
    async with open_plugin(options) as plugin:
        number = 0

        async def lane(end: int) -> None:
            nonlocal number
            while number < end:
                number += 1
                request = requests[(number * 7919) % len(requests)]
                if await plugin.send_data(request) != request:
                    raise RuntimeError("an answer is not its request")

        async def run(count: int) -> None:
            end = number + count
            async with trio.open_nursery() as nursery:
                for _ in range(min(in_flight, count)):
                    nursery.start_soon(lane, end)

        await run(warmup)
        began, cpu = time.perf_counter(), time.process_time()
        await run(calls)
        say(rate=calls / (time.perf_counter() - began), cpu_seconds=time.process_time() - cpu)


# The measurement.


def measure(client: str, server: str, size: int, in_flight: int, seconds: float) -> dict[str, Any]:
    """Return the rate of one pairing; a short run before it tells how many calls fill the time."""
    with subprocess.Popen(
        [*ENDS[server], "server"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        command = [*ENDS[client], "client", "--url", f"http://127.0.0.1:{port}", "--size", str(size)]
        command += ["--in-flight", str(in_flight)]
        calls = max(200, in_flight)
        result: dict[str, Any] = {}
        # Node compiles while it runs: before that, its rate is a fraction of what it becomes.
        warmup = WARMUP_BYTES // (size + WARMUP_BYTES // WARMUP_CALLS)
        for _ in range(2):
            arguments = ["--calls", str(calls), "--warmup", str(warmup)]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=DEADLINE, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr)
            result = json.loads(done.stdout)
            result["client_cpu_us"] = result["cpu_seconds"] / calls * 1e6
            calls = max(calls, int(result["rate"] * seconds))
        process.stdin.close()
        process.stdout.read()
    return result


def run_rounds(
    rounds: int, seconds: float, cases: list[tuple[int, int]], pairings: list[tuple[str, str]], save: str | None
) -> None:
    results: list[dict[str, Any]] = []
    for number in range(rounds):
        for size, in_flight in cases:
            # Each pairing is first in turn.
            turn = (number + in_flight) % len(pairings)
            for client, server in pairings[turn:] + pairings[:turn]:
                found = measure(client, server, size, in_flight, seconds)
                results.append({"client": client, "server": server, "size": size, "in_flight": in_flight, **found})
                print(f"{number + 1}: {client}->{server} {size} B, {in_flight}: {found['rate']:,.0f}/s", flush=True)
    for size, in_flight in cases:
        rates = {}
        for client, server in pairings:
            wanted = (client, server, size, in_flight)
            own = [
                each["rate"]
                for each in results
                if (each["client"], each["server"], each["size"], each["in_flight"]) == wanted
            ]
            rates[f"{client}->{server}"] = median(own)
        ratios = {name: rate / rates["npm->npm"] for name, rate in rates.items()}
        shown = ", ".join(f"{name} {rate:,.0f}/s ({ratios[name]:.2f})" for name, rate in rates.items())
        print(f"{size} B, {in_flight} in flight: {shown}")
    if save:
        Path(save).write_text(json.dumps(results, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("end", nargs="?", choices=["server", "client"])
    parser.add_argument("--url", default="")
    for name, default in (("--calls", 20000), ("--in-flight", 100), ("--size", 300), ("--warmup", 0), ("--rounds", 5)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="one short round of 300 bytes")
    parser.add_argument("--same", action="store_true", help="only the pairings of an end with itself")
    parser.add_argument("--case", action="append", metavar="SIZE/IN_FLIGHT", help="only this case; may be repeated")
    parser.add_argument("--save")
    given = parser.parse_args()
    if given.end == "server":
        trio.run(serve)
    elif given.end == "client":
        trio.run(load, given.url, given.calls, given.in_flight, given.size, given.warmup)
    else:
        rounds, seconds, cases = (1, 0.5, CASES[:3]) if given.quick else (given.rounds, given.seconds, CASES)
        if given.case:
            cases = [(int(size), int(in_flight)) for size, in_flight in (case.split("/") for case in given.case)]
        run_rounds(rounds, seconds, cases, PAIRINGS[:2] if given.same else PAIRINGS, given.save)


if __name__ == "__main__":
    main()
