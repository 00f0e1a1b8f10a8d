"""What a good peer keeps while another one floods the same process.

    python tests/bench/flood.py [--rounds 5] [--kind KIND]

One process serves two listeners; a good client measures one of them, first alone and then while a raw socket floods
the other with requests that it never reads the answers of, requests whose answers it reads, responses to nothing,
pings, pongs, requests in fragments, wrong tokens as fast as it can dial, and connections that stall in the middle.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING

import trio

from trio_ledger_plugin import LedgerPluginError, open_plugin
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing.conformance.assertions import echo

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("requests unread", "requests read", "responses", "pings", "pongs", "fragments", "guesses", "stalls")


def frame(payload: bytes, first: int = 0x82) -> bytes:
    """Return a masked frame whose mask changes nothing."""
    size = len(payload)
    head = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([first]) + head + bytes(4) + payload


async def serve() -> None:
    options = {"plugin": "btp", "listener": {"port": 0, "secret": "bench"}}
    async with open_plugin(options, data_handler=echo) as good, open_plugin(options, data_handler=echo) as flooded:
        ports = [int(plugin.address.rpartition(":")[2]) for plugin in (good, flooded)]
        print(json.dumps(ports), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)


def flood(port: int, kind: str, seconds: float) -> None:
    """Flood a listener, dialing again whenever it hangs up."""
    ends = time.monotonic() + seconds
    if kind in ("guesses", "stalls"):
        attack(port, kind, ends)
        return
    # Made beforehand: a flooder that works hard takes the good peer's processor, not its turn at the server.
    pieces = [piece(kind, number * 500) for number in range(40)]
    while time.monotonic() < ends:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
            sock.sendall(HANDSHAKE)
            sock.recv(4096)
            sock.sendall(frame(auth_message(1, "flooder", "bench", {})))
            sock.recv(4096)
            if kind == "requests read":
                threading.Thread(target=drain, args=(sock,), daemon=True).start()
            while time.monotonic() < ends:
                for data in pieces:
                    sock.sendall(data)


def attack(port: int, kind: str, ends: float) -> None:
    """Connect again and again without being authenticated: guess a token, or stop within the first frame."""
    held: list[socket.socket] = []
    number = 0
    while time.monotonic() < ends:
        number += 1
        with suppress(OSError):
            sock = socket.create_connection(("127.0.0.1", port), timeout=2)
            sock.sendall(HANDSHAKE)
            sock.recv(4096)
            guess = frame(auth_message(1, "flooder", f"guess {number}", {}))
            if kind == "guesses":
                sock.sendall(guess)
                sock.close()
            else:
                sock.sendall(guess[: len(guess) // 2])
                held.append(sock)
        if len(held) > 500:
            held.pop(0).close()


def piece(kind: str, first_id: int) -> bytes:
    """Return frames to flood with."""
    if kind in ("pings", "pongs"):
        return frame(b"x", 0x89 if kind == "pings" else 0x8A) * 2000
    if kind == "fragments":
        whole = btp.encode_ilp(btp.MESSAGE, first_id, b"Z" * 300)
        parts = [whole[at : at + 10] for at in range(0, len(whole), 10)]
        middle = b"".join(frame(part, 0x00) for part in parts[1:-1])
        return (frame(parts[0], 0x02) + middle + frame(parts[-1], 0x80)) * 50
    packet_type = btp.RESPONSE if kind == "responses" else btp.MESSAGE
    return b"".join(frame(btp.encode_ilp(packet_type, first_id + n, b"Z" * 300)) for n in range(500))


def drain(sock: socket.socket) -> None:
    with suppress(OSError):
        while sock.recv(65536):
            pass


async def offered(port: int, seconds: float) -> float:
    """Return the share that is answered in time of 500 calls a second."""
    answered = 0
    async with open_plugin({"plugin": "btp", "server": f"btp+ws://g:bench@127.0.0.1:{port}"}) as plugin:

        async def call() -> None:
            nonlocal answered
            with suppress(LedgerPluginError):
                await plugin.send_data(b"Z" * 300)
                answered += 1

        count = int(500 * seconds)
        began = trio.current_time()
        with trio.move_on_after(seconds + 0.5):
            async with trio.open_nursery() as nursery:
                for n in range(count):
                    await trio.sleep_until(began + n / 500)
                    nursery.start_soon(call)
    return answered / count


async def rate(port: int, seconds: float) -> float:
    """Return the calls a second with 100 in flight."""
    answered = 0
    async with open_plugin({"plugin": "btp", "server": f"btp+ws://g:bench@127.0.0.1:{port}"}) as plugin:

        async def lane() -> None:
            nonlocal answered
            while True:
                await plugin.send_data(b"Z" * 300)
                answered += 1

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(lane)
    return answered / seconds


def main(kinds: Sequence[str], rounds: int, seconds: float) -> None:
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    good, flooded = json.loads(server.stdout.readline())
    try:
        for kind in kinds:
            kept, shares = [], []
            for _ in range(rounds):
                alone = trio.run(rate, good, seconds)
                options = ["--flood", kind, "--port", str(flooded), "--seconds", str(2 * seconds + 3)]
                with subprocess.Popen([sys.executable, __file__, *options]) as flooder:
                    time.sleep(0.7)
                    kept.append(trio.run(offered, good, seconds))
                    shares.append(trio.run(rate, good, seconds) / alone)
                    flooder.kill()
            result = {"flood": kind, "of 500/s": round(median(kept), 3), "of the rate at 100": round(median(shares), 3)}
            print(json.dumps(result), flush=True)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--flood")
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve)
    elif arguments.flood:
        flood(arguments.port, arguments.flood, arguments.seconds)
    else:
        main(arguments.kind or KINDS, arguments.rounds, arguments.seconds)
