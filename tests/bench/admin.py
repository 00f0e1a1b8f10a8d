"""What the admin page costs a server: its rate without the page, with it, and while a browser looks at it.

    python tests/bench/admin.py [--quick] [--accounts 10000] [--save FILE]

The server is ``btp-accounts``, a process of its own. This process is all its clients, as in ``accounts.py``, and asks
for what the page asks for, every two seconds. The server opens and closes the page when it is told to, so that the
three ways alternate in slices with the same connections, every other time in reverse order. Besides the rate, the
processor time of the server for each call is compared: a busy machine changes it less.

A slice takes seconds, since the page times all requests until it has seen that they are frequent. In that time, the
machine may change by more than the page costs. So its parts are measured too: what watching the requests costs, in
hundreds of short slices with and without it; and at the end, without calls, which part of a core the server takes each
way. The latter is what the page looks at and answers.

The more accounts there are, the less often the page looks at them. A slice has to be longer than the page rests between
two looks, so it has more calls for many accounts.
"""

from __future__ import annotations

import argparse
import gc
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
from trio_ledger_plugin.admin.watched import Watched
from trio_ledger_plugin.cli.serving import COLLECT
from trio_ledger_plugin.codec import ilp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WITHOUT, WITH, LOOKED_AT = "without the page", "with the page", "looked at"
WAYS = (WITHOUT, WITH, LOOKED_AT)
# As with the page, but nothing else of it; requests are timed for a sixteenth of the time.
WATCHED, TIMED = "requests watched", "requests timed"
EVERY = 2.0
SHORT = 2000
FIGURES = ("rate", "server_us_a_call")
PATHS = ("api/overview", "api/accounts?sort=rate&order=desc&rows=25")


async def serve() -> None:
    """Be the server until stdin ends; each line says how to go on."""

    async def fulfill(data: bytes) -> bytes:
        ilp.decode(data)
        return FULFILL

    info = {"client_address": "example.bench", "asset_scale": 9, "asset_code": "XRP"}
    # As the guide for operators says, and as the program serve does.
    gc.set_threshold(*COLLECT)
    options = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": info, "ping_interval": 3600}
    async with open_plugin(options, data_handler=fulfill) as plugin:
        print(json.dumps({"port": int(plugin.address.rpartition(":")[2])}), flush=True)
        line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        while way := line.strip():
            async with AsyncExitStack() as stack:
                page = ""
                if way in (WATCHED, TIMED):
                    watched = Watched("", plugin)
                    stack.enter_context(watched.watching())
                    watched.set_timing(is_timing=way == TIMED)
                elif way != WITHOUT:
                    page = (await stack.enter_async_context(open_admin(plugin))).address
                print(json.dumps({"page": page}), flush=True)
                line = await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


def ask(process: subprocess.Popen[str], line: str = "") -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    if line:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
    return json.loads(process.stdout.readline())


@contextmanager
def running() -> Iterator[tuple[Server, Callable[[str], str]]]:
    """Run the server; yield it, and a function that has it go on in another way and returns the URL of its page."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(OURS, process.pid, ask(process)["port"]), lambda way: str(ask(process, way)["page"])
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


def measure(*, accounts: int, slices: int, calls: int, turns: int, idle: float) -> Iterator[dict[str, Any]]:
    """Yield what watching costs, the figures of each slice, the three ways in turn, and those of the idle server."""
    clients, in_flight = min(100, accounts), 10
    with running() as (server, go_on), connected(server, accounts) as everyone:
        busy = everyone[:clients]
        load(busy, in_flight, calls)
        yield from compare_watching(turns, lambda way: spend(server, go_on, way, lambda: load(busy, in_flight, SHORT)))
        for way in (way for turn in range(slices) for way in (WAYS if turn % 2 == 0 else WAYS[::-1])):
            seconds, cpu, answers = spend(server, go_on, way, lambda: load(busy, in_flight, calls))
            yield {"way": way, "rate": calls / seconds, "server_us_a_call": cpu / calls * 1e6, "answers": answers}
        time.sleep(5)
        for way in WAYS:
            seconds, cpu, _ = spend(server, go_on, way, lambda: time.sleep(idle))
            yield {"way": f"idle, {way}", "part_of_a_core": round(cpu / seconds, 4)}


def compare_watching(turns: int, work: Callable[[str], tuple[float, float, list[float]]]) -> Iterator[dict[str, Any]]:
    """Yield the median ratios over pairs of short slices: of watched requests, and of timed ones, to others."""
    found: dict[str, list[tuple[float, float]]] = {WATCHED: [], TIMED: []}
    ways = [WITHOUT, *found]
    for turn in range(turns):
        spent = {way: work(way) for way in (ways if turn % 2 == 0 else ways[::-1])}
        seconds, cpu, _ = spent[WITHOUT]
        for way, ratios in found.items():
            ratios.append((seconds / spent[way][0], spent[way][1] / cpu))
    for way, ratios in found.items():
        figures = {name: round(median(each), 4) for name, each in zip(FIGURES, zip(*ratios, strict=True), strict=True)}
        yield {"way": way, "turns": turns, **figures}


def spend(
    server: Server, go_on: Callable[[str], str], way: str, work: Callable[[], object]
) -> tuple[float, float, list[float]]:
    """Work in one of the ways.

    Returns:
        How long it took, the processor time of the server, and how long the answers to the browser took, in seconds.
    """
    page = go_on(way)
    browser = Browser(page) if way == LOOKED_AT else None
    if browser is not None:
        browser.start()
    cpu, began = server.cpu_seconds(), time.perf_counter()
    work()
    seconds, cpu = time.perf_counter() - began, server.cpu_seconds() - cpu
    if browser is None:
        return seconds, cpu, []
    browser.close()
    return seconds, cpu, browser.seconds


def summarise(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the slices of the ratios to the slice without the page before."""
    watched, found = found[:2], found[2:]
    rests = [each for each in found if "part_of_a_core" in each]
    found = found[: -len(rests)]
    turns = [
        sorted(found[start : start + len(WAYS)], key=lambda each: WAYS.index(each["way"]))
        for start in range(0, len(found), len(WAYS))
    ]
    summary: dict[str, Any] = {f"{figure}, {each['way']}": each[figure] for each in watched for figure in FIGURES}
    for index, way in enumerate(WAYS[1:], 1):
        for figure in FIGURES:
            ratios = [turn[index][figure] / turn[0][figure] for turn in turns]
            summary[f"{figure}, {way}"] = round(median(ratios), 4)
    answers = [seconds * 1000 for each in found for seconds in each["answers"]]
    summary |= {each["way"]: each["part_of_a_core"] for each in rests}
    return summary | {"answer_ms": round(median(answers), 1), "longest_ms": round(max(answers), 1)}


def main(*, accounts: int, slices: int, calls: int, turns: int, idle: float, save: Path | None) -> None:
    found = []
    for each in measure(accounts=accounts, slices=slices, calls=calls, turns=turns, idle=idle):
        found.append(each)
        print(json.dumps(each), flush=True)
    summary = {"accounts": accounts, **summarise(found)}
    print(json.dumps(summary))
    if save is not None:
        parts = {"watching": "turns", "slices": "answers", "idle": "part_of_a_core"}
        told = {part: [each for each in found if figure in each] for part, figure in parts.items()}
        save.write_text(json.dumps({**told, "summary": summary}, indent=1))


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and once: whether every call is answered")
    parser.add_argument("--accounts", type=int, default=100, help="how many accounts are connected")
    parser.add_argument("--slices", type=int, default=15)
    parser.add_argument("--turns", type=int, default=300, help="of short slices: with watched requests and without")
    parser.add_argument("--calls", type=int, help="in each slice; by default 60 for each account, and at least 300,000")
    parser.add_argument("--save", type=Path, help="where to write the JSON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
    elif arguments.quick:
        main(accounts=10, slices=1, calls=2000, turns=2, idle=1, save=arguments.save)
    else:
        calls = arguments.calls or max(300_000, 60 * arguments.accounts)
        main(
            accounts=arguments.accounts,
            slices=arguments.slices,
            calls=calls,
            turns=arguments.turns,
            idle=60,
            save=arguments.save,
        )
