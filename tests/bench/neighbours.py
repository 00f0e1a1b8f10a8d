"""What a good account keeps while another account of the same server takes all that it can get.

    python tests/bench/neighbours.py [--rounds 3] [--seconds 1.5] [--kind KIND]

One process is a server of many accounts with a store. A good account is measured beside the other account: the share
of 500 calls a second that is answered, its rate with 100 calls in flight, and the median latency of its transfers.
These are compared with the same beside a process that takes as much processor time as the other account's did and does
not connect: on a machine with few processors, the process of the other account slows down the server and the good
account even if the server refuses all that it sends. The rate is compared with that of the good account alone as well.
Where other programs run on the machine, one more number is steadier: which part of the server's own processor time
the calls of the good account take, if each takes as much as beside the process that does not connect.

The kinds are the resources that an account could take from others:

sockets        300 connections that stay, and then 20 new ones a second
handlers       16 connections with 1,000 requests each whose handlers hang, lost and made again all the time
bytes          the same with requests of 32 KiB
turns          150 connections that send requests as fast as they can, and read the answers
money          4 connections with 128 transfers of one unit each under way, all the time
strangers      2,000 connections that say nothing, made again as soon as they are closed
forwarding     packets to the account's own address, one at a time, which it sends back to the server
getters        the server's application asks for 2,000 accounts by name each second
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import trio
from flood import HANDSHAKE, frame, offered, rate

from trio_ledger_plugin import LedgerPluginError, PluginServices, fetch_ildcp, open_plugin
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.codec import btp, ilp
from trio_ledger_plugin.stores import open_sqlite_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

INFO = {"client_address": "example.bench", "asset_scale": 9, "asset_code": "XRP"}
HANG = b"hang"
# The length of the pieces in which a process takes a part of a processor's time, in seconds.
SLICE = 0.01


# The server.


async def serve() -> None:
    """Be the server until stdin ends. Its descriptors are few, as those of a process usually are."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    async def handle(data: bytes) -> bytes:
        if data.startswith(HANG):
            await trio.sleep_forever()
        if data[:1] == b"\x0c":
            return await server.send_data(data)
        return data

    async def take(amount: str) -> None:
        pass

    options = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": INFO}
    with TemporaryDirectory() as folder:
        async with open_sqlite_store(f"{folder}/ledger.db") as store, trio.open_nursery() as nursery:
            services = PluginServices(store=store)
            async with open_plugin(options, services, data_handler=handle, money_handler=take) as server:
                assert isinstance(server, AccountsPlugin)
                print(json.dumps({"port": int(server.address.rpartition(":")[2])}), flush=True)
                # A number of seconds makes the application look accounts up; an empty line asks for what is open.
                while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
                    if line.strip():
                        nursery.start_soon(look_up, server, float(line))
                    else:
                        print(max([0, *(each.connections for each in server.accounts())]), flush=True)
            nursery.cancel_scope.cancel()


async def look_up(server: AccountsPlugin, seconds: float) -> None:
    numbers = count()
    with trio.move_on_after(seconds):
        while True:
            for _ in range(20):
                server.account(f"customer-{next(numbers)}").is_connected()
            await trio.sleep(0.01)


# The other account, a process of its own.


def connect(port: int, patience: float = 2.0) -> socket.socket:
    """Return an authenticated connection of the other account, or raise OSError."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=patience)
    try:
        sock.sendall(HANDSHAKE)
        while not sock.recv(4096).endswith(b"\r\n\r\n"):
            pass
        sock.sendall(frame(auth_message(1, "mallory", "m", {})))
        if b"T00" in sock.recv(4096):
            raise ConnectionRefusedError("too many connections")
    except OSError:
        sock.close()
        raise
    return sock


def take_sockets(port: int, ends: float) -> None:
    held = []
    while time.monotonic() < ends:
        with suppress(OSError):
            held.append(connect(port))
        if len(held) > 300:
            time.sleep(0.05)


def take_handlers(port: int, ends: float, size: int = 4) -> None:
    request = HANG.ljust(size, b"Z")
    requests = b"".join(frame(btp.encode_ilp(btp.MESSAGE, number, request)) for number in range(2, 1002))
    while time.monotonic() < ends:
        held: list[socket.socket] = []
        for _ in range(16):
            with suppress(OSError):
                held.append(connect(port))
                held[-1].sendall(requests)
        time.sleep(0.2)
        for sock in held:
            sock.close()


def take_turns(port: int, ends: float) -> None:
    block = b"".join(frame(btp.encode_ilp(btp.MESSAGE, number, b"x")) for number in range(2, 2002))
    selector = selectors.DefaultSelector()
    sockets = 0
    while time.monotonic() < ends:
        if sockets < 150:
            sockets += 1
            try:
                sock = connect(port, 0.1)
            except OSError:
                # The server makes it wait: it floods over the connections that it has.
                sockets = 150
            else:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE, [block])
                continue
        for key, events in selector.select(0.1):
            assert isinstance(key.fileobj, socket.socket)
            try:
                if events & selectors.EVENT_READ and not key.fileobj.recv(262144):
                    raise ConnectionError
                if events & selectors.EVENT_WRITE:
                    # A frame that is sent in part goes on where it stopped.
                    rest = key.data.pop()
                    key.data.append(rest[key.fileobj.send(rest) :] or block)
            except OSError:
                selector.unregister(key.fileobj)
                key.fileobj.close()


def be_strangers(port: int, ends: float) -> None:
    selector = selectors.DefaultSelector()
    while time.monotonic() < ends:
        while len(selector.get_map()) < 2000:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            selector.register(sock, selectors.EVENT_READ)
        for key, _ in selector.select(0.01):
            assert isinstance(key.fileobj, socket.socket)
            selector.unregister(key.fileobj)
            key.fileobj.close()


async def _pay_all(port: int) -> None:
    async def link() -> None:
        async with (
            open_plugin({"server": f"btp+ws://mallory:m@127.0.0.1:{port}"}) as plugin,
            trio.open_nursery() as lanes,
        ):
            for _ in range(128):
                lanes.start_soon(pay, plugin)

    async def pay(plugin: Any) -> None:
        while True:
            with suppress(LedgerPluginError):
                await plugin.send_money(1)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(link)


async def _send_round(port: int) -> None:
    async def to_parent(data: bytes) -> bytes:
        return await plugin.send_data(data)

    url = f"btp+ws://mallory:m@127.0.0.1:{port}"
    async with open_plugin({"server": url}, data_handler=to_parent) as plugin:
        address = (await fetch_ildcp(plugin)).client_address
        packet = ilp.encode(ilp.make_prepare(0, f"{address}.nobody", sha256(bytes(32)).digest(), lifetime=3600))

        while True:
            with suppress(LedgerPluginError):
                await plugin.send_data(packet)


def within(function: Callable[[int], Any]) -> Callable[[int, float], None]:
    async def run(port: int, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await function(port)

    return lambda port, ends: trio.run(run, port, ends - time.monotonic())


ATTACKS: dict[str, Callable[[int, float], None]] = {
    "sockets": take_sockets,
    "handlers": take_handlers,
    "bytes": lambda port, ends: take_handlers(port, ends, 32 * 1024),
    "turns": take_turns,
    "money": within(_pay_all),
    "strangers": be_strangers,
    "forwarding": within(_send_round),
    "getters": lambda _, ends: time.sleep(ends - time.monotonic()),
}


def burn(share: float, ends: float) -> None:
    """Take so much of a processor's time, in small pieces, and do nothing else."""
    while time.monotonic() < ends:
        until = time.process_time() + share * SLICE
        began = time.monotonic()
        while time.process_time() < until:
            pass
        time.sleep(max(0.0, began + SLICE - time.monotonic()))


# The good account, and the measurements.


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def money(port: int, seconds: float) -> float:
    """Return the median latency in milliseconds of transfers, one at a time and at most 30 a second."""
    times = []
    async with open_plugin({"server": f"btp+ws://g:bench@127.0.0.1:{port}"}) as plugin:
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            began = trio.current_time()
            await plugin.send_money(1)
            times.append(trio.current_time() - began)
            await trio.sleep(0.03)
    return median(times) * 1000


@contextmanager
def beside(*options: str) -> Iterator[int]:
    """Run another process, and yield its id once it has begun."""
    with subprocess.Popen([sys.executable, __file__, *options], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


def timed_rate(server: subprocess.Popen[str], port: int, seconds: float) -> tuple[float, float]:
    """Return the calls a second with 100 in flight, and the server's processor time divided by them."""
    taken = cpu_seconds(server.pid)
    calls = trio.run(rate, port, seconds)
    return calls, (cpu_seconds(server.pid) - taken) / (calls * seconds)


def measure(server: subprocess.Popen[str], port: int, kind: str, seconds: float) -> dict[str, float]:
    """Measure a good account once beside another one of a kind, and without it."""
    assert server.stdin is not None
    assert server.stdout is not None
    alone = trio.run(rate, port, seconds)
    lasts = str(3 * seconds + 4)
    if kind == "getters":
        server.stdin.write(f"{lasts}\n")
        server.stdin.flush()
    with beside("--attack", kind, "--port", str(port), "--seconds", lasts) as other:
        time.sleep(1.5)
        began, taken = time.monotonic(), cpu_seconds(other)
        answered = trio.run(offered, port, seconds)
        server.stdin.write("\n")
        server.stdin.flush()
        connections = int(server.stdout.readline())
        attacked = *timed_rate(server, port, seconds), trio.run(money, port, seconds)
        busy = (cpu_seconds(other) - taken) / (time.monotonic() - began)
    # What was under way for the other account ends first.
    time.sleep(1.0)
    with beside("--burn", str(busy), "--seconds", lasts):
        time.sleep(0.3)
        left = *timed_rate(server, port, seconds), trio.run(money, port, seconds)
    return {
        "of 500/s": answered,
        "of the rate at 100": attacked[0] / left[0],
        "of the rate at 100 alone": attacked[0] / alone,
        "of the server's time": left[1] / attacked[1],
        "times the latency of money": attacked[2] / left[2],
        "milliseconds of money": attacked[2],
        "processor time of the other": busy,
        "connections of the other": connections,
    }


def main(kinds: Sequence[str], rounds: int, seconds: float) -> None:
    command = [sys.executable, __file__, "--serve"]
    for kind in kinds:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            port = int(json.loads(server.stdout.readline())["port"])
            try:
                found = [measure(server, port, kind, seconds) for _ in range(rounds)]
            finally:
                server.kill()
        told = {name: round(median(each[name] for each in found), 3) for name in found[0]}
        print(json.dumps({"kind": kind, **told}), flush=True)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--kind", choices=ATTACKS, action="append")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--attack")
    parser.add_argument("--burn", type=float)
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
    elif arguments.attack:
        print("begun", flush=True)
        ATTACKS[arguments.attack](arguments.port, time.monotonic() + arguments.seconds)
    elif arguments.burn is not None:
        print("begun", flush=True)
        burn(arguments.burn, time.monotonic() + arguments.seconds)
    else:
        main(arguments.kind or tuple(ATTACKS), arguments.rounds, arguments.seconds)
