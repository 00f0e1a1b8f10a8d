"""What the admin page costs a server: its rate without the page, with it, and while a browser looks at it.

    python tests/bench/admin.py [--quick] [--accounts 10000] [--save FILE]

The server is ``btp-accounts``, a process of its own. This process is all its clients, as in ``accounts.py``, and asks
for what the page asks for, every two seconds. The three ways alternate, round after round, each with a new server.
Besides the rate, the processor time of the server for each call is compared: it is the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import trio
from accounts import FULFILL, OURS, Server, connected, load

# Beside this file there is an http.py, which would hide that of the standard library.
sys.path.pop(0)

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.admin import open_admin
from trio_ledger_plugin.codec import ilp

if TYPE_CHECKING:
    from collections.abc import Iterator

WITHOUT, WITH, LOOKED_AT = "without the page", "with the page", "looked at"
WAYS = (WITHOUT, WITH, LOOKED_AT)
EVERY = 2.0
PATHS = ("api/overview", "api/accounts?sort=rate&order=desc&rows=25")


async def serve(way: str) -> None:
    """Be the server until stdin ends."""

    async def fulfill(data: bytes) -> bytes:
        ilp.decode(data)
        return FULFILL

    info = {"client_address": "example.bench", "asset_scale": 9, "asset_code": "XRP"}
    options = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": info, "ping_interval": 3600}
    async with AsyncExitStack() as stack:
        plugin = await stack.enter_async_context(open_plugin(options, data_handler=fulfill))
        page = "" if way == WITHOUT else (await stack.enter_async_context(open_admin(plugin))).address
        print(json.dumps({"port": int(plugin.address.rpartition(":")[2]), "page": page}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


@contextmanager
def running(way: str) -> Iterator[tuple[Server, str]]:
    command = [sys.executable, __file__, "--serve", way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            started = json.loads(process.stdout.readline())
            yield Server(OURS, process.pid, started["port"]), started["page"]
        finally:
            process.kill()


def get(page: str, path: str) -> None:
    """Ask for something below the page, and read the answer."""
    url = urlsplit(page)
    with socket.create_connection((url.hostname, url.port)) as sock:
        sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n\r\n".encode())
        data = sock.recv(65536)
        if not data.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"no answer: {data!r}")
        while sock.recv(65536):
            pass


class Browser(threading.Thread):
    """Asks as the page does, and keeps how long each answer took."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self._page = page
        self._done = threading.Event()
        self.seconds: list[float] = []

    def run(self) -> None:
        while not self._done.is_set():
            for path in PATHS:
                began = time.perf_counter()
                get(self._page, path)
                self.seconds.append(time.perf_counter() - began)
            self._done.wait(EVERY)

    def close(self) -> None:
        self._done.set()
        self.join()


def measure(way: str, *, accounts: int, clients: int, in_flight: int, calls: int) -> dict[str, Any]:
    """Measure one way once."""
    with running(way) as (server, page), connected(server, accounts) as everyone:
        busy = everyone[:clients]
        load(busy, in_flight // clients, calls // 8)
        browser = Browser(page) if way == LOOKED_AT else None
        if browser is not None:
            browser.start()
        cpu = server.cpu_seconds()
        began = time.perf_counter()
        load(busy, in_flight // clients, calls)
        seconds = time.perf_counter() - began
        cpu = server.cpu_seconds() - cpu
        if browser is not None:
            browser.close()
    found: dict[str, Any] = {"way": way, "rate": calls / seconds, "server_us_a_call": cpu / calls * 1e6}
    if browser is not None:
        found["answer_ms"] = median(browser.seconds) * 1000
        found["longest_ms"] = max(browser.seconds) * 1000
    return found


def summarise(rounds: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the medians over the rounds of the ratios to the server without the page."""
    summary: dict[str, Any] = {}
    for index, way in enumerate(WAYS[1:], 1):
        summary[f"rate, {way}"] = round(median(each[index]["rate"] / each[0]["rate"] for each in rounds), 4)
        summary[f"processor time a call, {way}"] = round(
            median(each[index]["server_us_a_call"] / each[0]["server_us_a_call"] for each in rounds), 4
        )
    summary["answer_ms"] = round(median(each[2]["answer_ms"] for each in rounds), 1)
    summary["longest_ms"] = round(max(each[2]["longest_ms"] for each in rounds), 1)
    return summary


def main(*, accounts: int, rounds: int, calls: int, save: Path | None) -> None:
    clients, in_flight = min(100, accounts), min(1000, 10 * accounts)
    found = []
    for _ in range(rounds):
        found.append(
            [measure(way, accounts=accounts, clients=clients, in_flight=in_flight, calls=calls) for way in WAYS]
        )
        for each in found[-1]:
            print(json.dumps(each), flush=True)
    summary = {"accounts": accounts, **summarise(found)}
    print(json.dumps(summary))
    if save is not None:
        save.write_text(json.dumps({"rounds": found, "summary": summary}, indent=1))


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and once: whether every call is answered")
    parser.add_argument("--accounts", type=int, default=100, help="how many accounts are connected")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--save", type=Path, help="where to write the JSON")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve, arguments.serve)
    elif arguments.quick:
        main(accounts=10, rounds=1, calls=2000, save=arguments.save)
    else:
        main(accounts=arguments.accounts, rounds=arguments.rounds, calls=arguments.calls, save=arguments.save)
