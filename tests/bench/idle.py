"""How much resident memory an idle authenticated connection takes at a server: one process listens, another dials.

    python tests/bench/idle.py [--connections 5000]

The server is ``btp-accounts``, each connection an account of its own.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
from functools import partial
from secrets import token_hex

import trio

from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.btp.options import AccountsOptions, HostInfo
from trio_ledger_plugin.events import AccountConnected
from trio_ledger_plugin.services import PluginServices

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


async def serve(connections: int) -> None:
    info = HostInfo(client_address="example.bench", asset_scale=9, asset_code="XRP")
    options = AccountsOptions(
        port=0, debug_host_ildcp_info=info, max_unauthenticated=connections + 1, ping_interval=3600
    )
    async with trio.open_nursery() as nursery:
        plugin = AccountsPlugin(options, PluginServices(), nursery)
        await plugin.connect()
        accounts = 0

        async def admit(count: int) -> None:
            print(json.dumps({"port": int(plugin.address.rpartition(":")[2]), "connect": count}), flush=True)
            nonlocal accounts
            while accounts < count:
                accounts += isinstance(await plugin.events.receive(), AccountConnected)
            # Workers and writers go when the sweeper has been round.
            await trio.sleep(1)
            gc.collect()

        await admit(100)
        before = resident()
        began = trio.current_time()
        await admit(100 + connections)
        seconds = trio.current_time() - began - 1
        each = (resident() - before) / connections
        print(
            json.dumps({"bytes_each": each, "kib_each": each / 1024, "connections_per_second": connections / seconds})
        )
        await plugin.aclose()


async def dial(port: int, connections: int) -> None:
    limit = trio.CapacityLimiter(16)
    done = 0

    async def one() -> None:
        nonlocal done
        frame = auth_message(1, "", token_hex(16), {})
        payload = b"\x82" + bytes([0x80 | len(frame)]) + bytes(4) + frame
        async with limit:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(HANDSHAKE)
            seen = b""
            while b"\r\n\r\n" not in seen:
                seen += await stream.receive_some(4096)
            await stream.send_all(payload)
            await stream.receive_some(4096)
            done += 1
            if done == connections:
                print("ready", flush=True)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(one)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


def measure(connections: int) -> dict[str, float]:
    """Run both ends and return what the server told."""
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(connections)], stdout=subprocess.PIPE, text=True
    )
    clients = []
    assert server.stdout is not None
    already = 0
    for line in server.stdout:
        told: dict[str, float] = json.loads(line)
        if "connect" not in told:
            break
        wanted = int(told["connect"]) - already
        already += wanted
        command = [sys.executable, __file__, "--dial", str(int(told["port"])), "--connections", str(wanted)]
        clients.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for client in clients:
        client.kill()
        client.wait()
    server.wait()
    return told


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--serve", type=int)
    parser.add_argument("--dial", type=int)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serve, arguments.serve)
    elif arguments.dial:
        trio.run(partial(dial, arguments.dial, arguments.connections))
    else:
        print(json.dumps(measure(arguments.connections), indent=1))
