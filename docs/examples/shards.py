"""Shards: servers of accounts that share one address, each with a prefix, a process and a store of its own.

python shards.py hub STORE [PORT]                   the hub above them, at example.hub; 7768 is its port by default
python shards.py shard NAME STORE PORT [HUB_PORT]   a shard, at example.hub.NAME; Ctrl-C ends either

A client connects to one shard, with a URL such as btp+ws://:TOKEN@localhost:PORT. It reaches clients of the same shard
through that shard alone, and clients of others through the hub. STORE is the file of a store.
"""

import sys
from contextlib import suppress

import trio

from trio_ledger_plugin import PluginServices, fetch_ildcp, open_plugin
from trio_ledger_plugin.ilp.routing import child_segment, forward, read_prepare, route
from trio_ledger_plugin.stores import open_sqlite_store

TOKEN = "open-sesame"
ADDRESS = "example.hub"
# How many seconds earlier a packet expires at the hub: the time to pass the answer on.
MARGIN = 1.0


async def serve_hub(path: str, port: int) -> None:
    async def handle(data: bytes) -> bytes:
        """Send a packet to the shard whose prefix its destination has."""
        return await route(data, server.send_data, ADDRESS)

    info = {"client_address": ADDRESS, "asset_scale": 9, "asset_code": "XRP"}
    # A shard's name is that of its account. The store keeps it for the token that came with it first.
    options = {"plugin": "btp-accounts", "port": port, "generate_account": False, "debug_host_ildcp_info": info}
    async with (
        open_sqlite_store(path) as store,
        open_plugin(options, PluginServices(store=store), data_handler=handle) as server,
    ):
        print("listening on", server.address, flush=True)
        await trio.sleep_forever()


async def serve_shard(name: str, path: str, port: int, hub_port: int) -> None:
    async def send(data: bytes) -> bytes:
        """Send a client's packet to another client of this shard, or to the hub."""
        prepare = read_prepare(data)
        if child_segment(prepare.destination, address) is not None:
            return await server.send_data(data)
        return await forward(prepare, hub.send_data, address, margin=MARGIN)

    async with open_plugin({"server": f"btp+ws://{name}:{TOKEN}@127.0.0.1:{hub_port}"}) as hub:
        # The hub says which prefix and asset this shard has.
        info = await fetch_ildcp(hub)
        address = info.client_address
        given = {"client_address": address, "asset_scale": info.asset_scale, "asset_code": info.asset_code}
        options = {"plugin": "btp-accounts", "port": port, "debug_host_ildcp_info": given}
        async with (
            open_sqlite_store(path) as store,
            open_plugin(
                options, PluginServices(store=store), data_handler=lambda data: route(data, send, address)
            ) as server,
        ):
            # What the hub sends is never sent back to it, even if this shard has no such account.
            hub.register_data_handler(lambda data: route(data, server.send_data, address))
            print(address, "listening on", server.address, flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        match sys.argv[1:]:
            case ["hub", path, *port]:
                trio.run(serve_hub, path, int(port[0]) if port else 7768)
            case ["shard", name, path, port, *hub_port]:
                trio.run(serve_shard, name, path, int(port), int(hub_port[0]) if hub_port else 7768)
            case _:
                print(__doc__)
