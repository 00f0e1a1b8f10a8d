"""A server of many accounts that forwards packets between them.

python router.py [PORT]    listens for clients on PORT, 7768 by default; Ctrl-C ends it

A client connects with a URL such as btp+ws://:TOKEN@localhost:7768 and a token of its choice. It asks for its
address by ILDCP, and gives the address to other clients, which pay it.
"""

import sys
from contextlib import suppress

import trio

from trio_ledger_plugin import AccountConnected, AccountDisconnected, open_plugin
from trio_ledger_plugin.ilp.routing import route

ADDRESS = "example.router"


async def main(port: int) -> None:
    async def forward(data: bytes) -> bytes:
        """Send a packet to the account that its destination names, and return the answer."""
        return await route(data, server.send_data, ADDRESS)

    options = {
        "plugin": "btp-accounts",
        "port": port,
        "debug_host_ildcp_info": {"client_address": ADDRESS, "asset_scale": 9, "asset_code": "XRP"},
    }
    async with open_plugin(options, data_handler=forward) as server:
        print("listening on", server.address, flush=True)
        async for event in server.events:
            match event:
                case AccountConnected(name):
                    print(f"{ADDRESS}.{name} connected", flush=True)
                case AccountDisconnected(name):
                    print(f"{ADDRESS}.{name} disconnected", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 7768)
