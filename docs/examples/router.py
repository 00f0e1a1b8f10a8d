"""A server of many accounts that forwards packets between them.

python router.py [PORT]    waits for clients at PORT, 7768 unless given; Ctrl-C ends it

A client connects with a URL such as btp+ws://:TOKEN@localhost:7768 and a token that it makes up. It asks for its
address by ILDCP and gives it to whoever shall pay it.
"""

import sys
from contextlib import suppress

import trio

from trio_ledger_plugin import AccountConnected, AccountDisconnected, LedgerPluginError, open_plugin
from trio_ledger_plugin.codec import ilp

ADDRESS = "example.router"


async def main(port: int) -> None:
    async def route(data: bytes) -> bytes:
        """Send a packet to the account that its destination names, and its answer back."""
        try:
            return await server.send_data(data)
        except LedgerPluginError as error:
            return ilp.encode(ilp.reject_from(error, ADDRESS))

    options = {
        "plugin": "btp-accounts",
        "port": port,
        "debug_host_ildcp_info": {"client_address": ADDRESS, "asset_scale": 9, "asset_code": "XRP"},
    }
    async with open_plugin(options, data_handler=route) as server:
        print("listening on", server.address, flush=True)
        async for event in server.events:
            match event:
                case AccountConnected(name):
                    print(f"{ADDRESS}.{name} has come", flush=True)
                case AccountDisconnected(name):
                    print(f"{ADDRESS}.{name} has gone", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 7768)
