"""One end of a measurement, which runs as its own process.

``server`` prints ``{"port"}`` and echoes requests; at the end of its stdin it prints ``{"cpu_seconds"}`` and exits.
``client`` keeps a number of calls in flight until all calls are answered, and prints one line of JSON. ``floor-server``
and ``floor-client`` do the same with a bare Trio echo, one call at a time: the limit of what a plugin can reach.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from functools import partial

import trio

from ..opening import open_plugin

__all__ = ["main"]

TOKEN = "bench"  # noqa: S105 (both ends run on this machine)
FLOOR_OVERHEAD = 26


async def _wait_for_stdin_to_end() -> None:
    await trio.to_thread.run_sync(sys.stdin.buffer.read, abandon_on_cancel=True)


def _print(**result: object) -> None:
    try:
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The process that measures has ended. A normal exit would report the broken pipe again.
        os._exit(1)


async def _echo(data: bytes) -> bytes:
    return data


async def _serve() -> None:
    options = {"plugin": "btp", "listener": {"port": 0, "secret": TOKEN}}
    async with open_plugin(options, data_handler=_echo) as plugin:
        _print(port=int(str(getattr(plugin, "address", "")).rpartition(":")[2]))
        await _wait_for_stdin_to_end()
    _print(cpu_seconds=time.process_time())


async def _load(url: str, calls: int, in_flight: int, size: int, warmup: int) -> None:
    async with open_plugin({"plugin": "btp", "server": url}) as plugin:
        request = b"Z" * size
        latencies: list[float] = []
        left = 0

        async def caller() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                sent = time.perf_counter()
                if await plugin.send_data(request) != request:
                    raise RuntimeError("an answer is not its request")
                latencies.append(time.perf_counter() - sent)

        async def run(count: int) -> None:
            nonlocal left
            left = count
            async with trio.open_nursery() as nursery:
                for _ in range(min(in_flight, count)):
                    nursery.start_soon(caller)

        await run(warmup)
        latencies.clear()
        sent_before = plugin.statistics().bytes_sent
        began, cpu = time.perf_counter(), time.process_time()
        await run(calls)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        bytes_sent = plugin.statistics().bytes_sent - sent_before
    _report(calls, seconds, cpu, latencies, bytes_sent=bytes_sent)


def _report(calls: int, seconds: float, cpu: float, latencies: list[float], **more: object) -> None:
    latencies.sort()

    def percentile(share: float) -> float:
        return latencies[max(0, math.ceil(share * len(latencies)) - 1)] * 1000

    _print(
        rate=calls / seconds,
        calls=calls,
        seconds=seconds,
        cpu_seconds=cpu,
        latency_ms={"p50": percentile(0.5), "p90": percentile(0.9), "p99": percentile(0.99), "max": percentile(1)},
        **more,
    )


async def _serve_floor() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        _print(port=(await nursery.start(trio.serve_listeners, echo, listeners))[0].socket.getsockname()[1])
        await _wait_for_stdin_to_end()
        nursery.cancel_scope.cancel()
    _print(cpu_seconds=time.process_time())


async def _load_floor(port: int, calls: int, size: int, warmup: int) -> None:
    message = b"Z" * (size + FLOOR_OVERHEAD)
    latencies: list[float] = []
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:

        async def run(count: int) -> None:
            for _ in range(count):
                sent = time.perf_counter()
                await stream.send_all(message)
                missing = len(message)
                while missing:
                    missing -= len(await stream.receive_some(65536))
                latencies.append(time.perf_counter() - sent)

        await run(warmup)
        latencies.clear()
        began, cpu = time.perf_counter(), time.process_time()
        await run(calls)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    _report(calls, seconds, cpu, latencies)


def main() -> None:
    """Run the end that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("end", choices=["server", "client", "floor-server", "floor-client"])
    parser.add_argument("--url", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--calls", type=int, default=20000)
    parser.add_argument("--in-flight", type=int, default=100)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--token", default=TOKEN)
    arguments = parser.parse_args()
    if arguments.end == "server":
        trio.run(_serve)
    elif arguments.end == "client":
        trio.run(_load, arguments.url, arguments.calls, arguments.in_flight, arguments.size, arguments.warmup)
    elif arguments.end == "floor-server":
        trio.run(_serve_floor)
    else:
        trio.run(partial(_load_floor, arguments.port, arguments.calls, arguments.size, arguments.warmup))


if __name__ == "__main__":
    # Ctrl-C reaches all processes of a terminal; the process that started this one reports it. A KeyboardInterrupt
    # would come out of a nursery in a group, and be shown with its traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    main()
