"""What a server of many accounts does for many clients at once: how many it holds, and how many calls a second.

    python tests/bench/accounts.py [--quick] [--node] [--save FILE]
    python tests/bench/accounts.py --logins [--rounds 5]

The server is ``btp-accounts``, and with ``--node`` ilp-plugin-mini-accounts beside it, each a process of its own. This
process is all the clients of either: bare sockets whose frames are made beforehand, each an account of its own, so that
the servers are what is measured. The requests are ILP Prepares, which the data handler of either server answers with
one and the same Fulfill. mini-accounts decodes every Prepare before its handler sees it, so this package's handler
does too.

First so many clients connect, stay, and send one request each. Then, round after round, the calls a second are measured
with a total of a thousand in flight, from ten clients, from a hundred and from a thousand.

With ``--logins``, what is measured is how many clients a second log in, sixteen at a time: without a store, with names
that the store of the server knows, and with names that are new.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import select
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from secrets import token_hex
from statistics import median
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, frozen

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.btp.auth import auth_accepted, auth_message
from trio_ledger_plugin.cli.serving import COLLECT
from trio_ledger_plugin.codec import btp, ilp
from trio_ledger_plugin.stores import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS, THEIRS = "this package", "ilp-plugin-mini-accounts"
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
DEADLINE = 60.0
# How many clients connect at the same time.
KNOCKING = 16
PREIMAGE = bytes(range(32))
FULFILL = ilp.encode(ilp.Fulfill(PREIMAGE, bytes(60)))
PREPARE = ilp.encode(ilp.make_prepare(1000, "example.bench.shop.order7", sha256(PREIMAGE).digest(), 3600, bytes(200)))
# Behind a packet's type stands its id.
ID_FROM, ID_TO = 1, 5


def frame(payload: bytes, *, masked: bool) -> bytes:
    """Return a message's frame; its mask, if it has one, changes nothing."""
    bit, size = 0x80 * masked, len(payload)
    head = bytes([bit | size]) if size < 126 else bytes([bit | 126]) + size.to_bytes(2, "big")
    return b"\x82" + head + bytes(4 * masked) + payload


def around_id(packet_type: int, data: bytes, *, masked: bool) -> tuple[bytes, bytes]:
    """Return what stands in a frame before the packet's id and behind it."""
    packet = btp.encode_ilp(packet_type, 0, data)
    whole = frame(packet, masked=masked)
    start = len(whole) - len(packet)
    return whole[: start + ID_FROM], whole[start + ID_TO :]


REQUEST_HEAD, REQUEST_TAIL = around_id(btp.MESSAGE, PREPARE, masked=True)
ANSWER_HEAD, ANSWER_TAIL = around_id(btp.RESPONSE, FULFILL, masked=False)
ANSWER_BYTES = len(ANSWER_HEAD) + 4 + len(ANSWER_TAIL)
ACCEPTED = frame(auth_accepted(1), masked=False)


# The servers.


async def serve(database: str | None) -> None:
    """Be our server until stdin ends, with a store if there is a file for it."""

    async def fulfill(data: bytes) -> bytes:
        ilp.decode(data)
        return FULFILL

    info = {"client_address": "example.bench", "asset_scale": 9, "asset_code": "XRP"}
    options = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": info, "ping_interval": 3600}
    # As the guide for operators says, and as the program serve does.
    gc.set_threshold(*COLLECT)
    async with AsyncExitStack() as stack:
        store = None if database is None else await stack.enter_async_context(open_sqlite_store(database))
        plugin = await stack.enter_async_context(
            open_plugin(options, PluginServices(store=store), data_handler=fulfill)
        )
        print(json.dumps({"port": int(plugin.address.rpartition(":")[2])}), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)


COMMANDS = {
    OURS: [sys.executable, __file__, "--serve"],
    THEIRS: ["node", str(Path(__file__).with_name("mini_accounts_bench.js")), FULFILL.hex()],
}


@frozen
class Server:
    """A server's process."""

    name: str
    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Return the processor time that it has taken, all threads together."""
        # As clock_getcpuclockid(3) makes it. /proc has hundredths of a second only.
        return time.clock_gettime(~self.pid << 3 | 2)

    def resident(self) -> int:
        """Return its resident memory in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * resource.getpagesize()

    def settle(self) -> None:
        """Wait until it does nothing."""
        before = -1.0
        while before != (before := self.cpu_seconds()):
            time.sleep(0.2)


@contextmanager
def running(name: str, *options: str) -> Iterator[Server]:
    with subprocess.Popen(
        [*COMMANDS[name], *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Server(name, process.pid, json.loads(process.stdout.readline())["port"])
        finally:
            process.kill()


# The clients.


@define(eq=False)
class Client:
    """One authenticated connection and the ids that it waits for."""

    sock: socket.socket
    waiting: set[int]
    ids: Iterator[int]
    rest: bytes = b""

    def send(self, calls: int) -> None:
        """Send so many requests in one piece."""
        pieces: list[bytes] = []
        for _ in range(calls):
            number = next(self.ids)
            self.waiting.add(number)
            pieces += REQUEST_HEAD, number.to_bytes(4, "big"), REQUEST_TAIL
        self.sock.sendall(b"".join(pieces))

    def receive(self) -> int:
        """Read what has come and return how many answers it was.

        Raises:
            RuntimeError: The server hung up, or answered with anything but the Fulfill.
        """
        came = self.sock.recv(65536)
        data = self.rest + came
        answers, rest = divmod(len(data), ANSWER_BYTES)
        for number in range(answers):
            answer = data[number * ANSWER_BYTES : (number + 1) * ANSWER_BYTES]
            request_id = int.from_bytes(answer[len(ANSWER_HEAD) : -len(ANSWER_TAIL)], "big")
            right = answer.startswith(ANSWER_HEAD) and answer.endswith(ANSWER_TAIL)
            if not right or request_id not in self.waiting:
                raise RuntimeError(f"not the answer: {answer.hex()}")
            self.waiting.remove(request_id)
        if not came:
            raise RuntimeError("the server hung up")
        self.rest = data[len(data) - rest :]
        return answers


@contextmanager
def connected(server: Server, clients: int) -> Iterator[list[Client]]:
    """Connect so many clients, each with a token of its own and so an account of its own."""
    found: list[Client] = []
    try:
        while len(found) < clients:
            knocking = []
            for _ in range(min(KNOCKING, clients - len(found))):
                sock = socket.create_connection(("127.0.0.1", server.port), DEADLINE)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.sendall(HANDSHAKE)
                knocking.append(Client(sock, set(), count(2)))
            found += knocking
            for client in knocking:
                _read_until(client.sock, b"\r\n\r\n")
                client.sock.sendall(frame(auth_message(1, "", token_hex(16), {}), masked=True))
            for client in knocking:
                _read_until(client.sock, ACCEPTED)
                client.sock.setblocking(True)
        yield found
    finally:
        for client in found:
            client.sock.close()


def _read_until(sock: socket.socket, end: bytes) -> None:
    seen = b""
    while not seen.endswith(end):
        came = sock.recv(4096)
        if not came:
            raise RuntimeError(f"the server hung up after {seen!r}")
        seen += came


def load(clients: list[Client], in_flight: int, calls: int) -> int:
    """Make so many calls, ``in_flight`` of them at a time from each client, and return how many were answered: all.

    Raises:
        RuntimeError: One was not answered in time, or wrongly.
    """
    by_number = {client.sock.fileno(): client for client in clients}
    answered, left = 0, calls
    with select.epoll() as poll:
        for number, client in by_number.items():
            poll.register(number, select.EPOLLIN)
            now = min(in_flight, left)
            client.send(now)
            left -= now
        while answered < calls:
            ready = poll.poll(DEADLINE, len(clients))
            if not ready:
                raise RuntimeError(f"only {answered} of {calls} calls were answered in {DEADLINE:g} s")
            for number, _ in ready:
                client = by_number[number]
                got = client.receive()
                answered += got
                now = min(got, left)
                if now:
                    client.send(now)
                    left -= now
    return answered


# The measurements.


def hold(server: Server, clients: int) -> dict[str, Any]:
    """Have so many clients at once, each with one request."""
    with connected(server, min(100, clients)) as first:
        load(first, 1, len(first))
        server.settle()
        before = server.resident()
        began = time.perf_counter()
        with connected(server, clients) as held:
            connecting = time.perf_counter() - began
            began = time.perf_counter()
            answered = load(held, 1, clients)
            answering = time.perf_counter() - began
            each = (server.resident() - before) / clients
    return {
        "server": server.name,
        "clients": clients,
        "answered": answered,
        "seconds_to_connect": connecting,
        "seconds_to_answer": answering,
        "kib_a_client": each / 1024,
    }


def measure(server: Server, clients: int, in_flight: int, calls: int) -> dict[str, Any]:
    """Measure one load once, with a server that is warm."""
    with connected(server, clients) as those:
        each = in_flight // clients
        load(those, each, max(calls // 4, in_flight))
        theirs, ours = server.cpu_seconds(), time.process_time()
        began = time.perf_counter()
        answered = load(those, each, calls)
        seconds = time.perf_counter() - began
        theirs, ours = server.cpu_seconds() - theirs, time.process_time() - ours
    return {
        "server": server.name,
        "clients": clients,
        "in_flight": in_flight,
        "answered": answered,
        "rate": calls / seconds,
        "server_us_a_call": theirs / calls * 1e6,
        "clients_us_a_call": ours / calls * 1e6,
        "server_busy": theirs / seconds,
        "clients_busy": ours / seconds,
    }


def measure_logins(clients: int, directory: Path) -> dict[str, float]:
    """Return how many clients a second log in, and the processor time that each takes the server, by kind of name."""
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".bench-") as folder:
        for kind in ("no store", "new", "known"):
            options = () if kind == "no store" else ("--database", f"{folder}/accounts.db")
            with running(OURS, *options) as server:
                log_in(server, kind, clients // 10, "warm")
                # All servers have served as many clients before. The second login of a name is recorded in the store,
                # and later ones are not.
                log_in(server, kind, clients, "name" if kind == "known" else "earlier")
                cpu, began = server.cpu_seconds(), time.perf_counter()
                log_in(server, kind, clients, "name")
                rates[kind] = clients / (time.perf_counter() - began)
                rates[f"{kind}, server us"] = (server.cpu_seconds() - cpu) / clients * 1e6
    return rates


def log_in(server: Server, kind: str, clients: int, name: str) -> None:
    """Connect so many clients, each for a moment."""
    for first in range(0, clients, KNOCKING):
        names = ["" if kind == "no store" else f"{name}-{number}" for number in range(first, first + KNOCKING)]
        for client in knock(server, names):
            client.close()


def knock(server: Server, names: list[str]) -> list[socket.socket]:
    """Connect and authenticate a client for each name, all at the same time."""
    found = []
    for _ in names:
        found.append(socket.create_connection(("127.0.0.1", server.port), DEADLINE))
        found[-1].sendall(HANDSHAKE)
    for number, (sock, name) in enumerate(zip(found, names, strict=True)):
        _read_until(sock, b"\r\n\r\n")
        token = name or token_hex(16)
        sock.sendall(frame(auth_message(1, name, f"{token} {number}", {}), masked=True))
    for sock in found:
        _read_until(sock, ACCEPTED)
    return found


def compare_logins(rounds: int, clients: int, directory: Path) -> None:
    told = []
    for _ in range(rounds):
        told.append(measure_logins(clients, directory))
        print(json.dumps({key: round(value) for key, value in told[-1].items()}), flush=True)
    for kind in ("known", "new"):
        share = median(each[kind] / each["no store"] for each in told)
        print(json.dumps({f"logins with {kind} names, of those without a store": round(share, 2)}))


def ratio(results: list[dict[str, Any]], ours: tuple[str, int], other: tuple[str, int]) -> float:
    """Return the median over the rounds of one rate to another, each of a server and its number of clients."""
    rates: dict[tuple[str, int], list[float]] = {
        key: [result["rate"] for result in results if (result["server"], result["clients"]) == key]
        for key in (ours, other)
    }
    return median(a / b for a, b in zip(rates[ours], rates[other], strict=True))


def summarise(results: list[dict[str, Any]], names: list[str], crowds: list[int]) -> list[dict[str, Any]]:
    """Return the medians of the rounds, then the ratios of the rates."""
    lines: list[dict[str, Any]] = []
    for crowd in crowds:
        for name in names:
            those = [result for result in results if (result["server"], result["clients"]) == (name, crowd)]
            numbers = {key: round(median(result[key] for result in those), 2) for key in those[0] if key != "server"}
            lines.append({"median of": name, **numbers})
    few, some, _ = crowds
    lines += [
        {f"rate from {few} clients to {some}": round(ratio(results, (name, few), (name, some)), 2), "server": name}
        for name in names
    ]
    lines += [
        {f"rate to {THEIRS}": round(ratio(results, (OURS, crowd), (THEIRS, crowd)), 2), "clients": crowd}
        for crowd in crowds
        if THEIRS in names
    ]
    return lines


def main(*, quick: bool, node: bool, rounds: int, calls: int, save: Path | None) -> None:
    held, crowds, in_flight = 5000, [10, 100, 1000], 1000
    if quick:
        held, crowds, in_flight, rounds, calls = 50, [5, 10, 50], 50, 1, 500
    names = [OURS, THEIRS] if node else [OURS]
    told: dict[str, Any] = {"held": [], "rounds": []}
    for name in names:
        with running(name) as server:
            told["held"].append(hold(server, held))
            print(json.dumps(told["held"][-1]), flush=True)
    for _ in range(rounds):
        for crowd in crowds:
            for name in names:
                with running(name) as server:
                    told["rounds"].append(measure(server, crowd, in_flight, calls))
                print(json.dumps(told["rounds"][-1]), flush=True)
    told["summary"] = summarise(told["rounds"], names, crowds)
    for line in told["summary"]:
        print(json.dumps(line))
    if save is not None:
        save.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and once: whether every call is answered")
    parser.add_argument("--node", action="store_true", help=f"measure {THEIRS} too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=40000)
    parser.add_argument("--save", type=Path, help="where to write the JSON")
    parser.add_argument("--logins", action="store_true", help="measure how fast clients log in")
    parser.add_argument("--clients", type=int, default=4000, help="how many log in")
    parser.add_argument("--directory", type=Path, default=Path.cwd(), help="on the disk for the store; by default here")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--database", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve, arguments.database)
    elif arguments.logins:
        compare_logins(arguments.rounds, arguments.clients, arguments.directory)
    else:
        main(
            quick=arguments.quick,
            node=arguments.node,
            rounds=arguments.rounds,
            calls=arguments.calls,
            save=arguments.save,
        )
