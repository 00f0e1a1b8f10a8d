"""A peer that answers every request with the same bytes, and shows when clients connect and disconnect.

python echo_peer.py [PORT]      listens for a client on PORT, 7768 by default; Ctrl-C ends it

A client to try it with: trio-ledger-plugin ping 'btp+ws://:open-sesame@localhost:7768'
"""

import sys
from contextlib import suppress

import trio

from trio_ledger_plugin import current_transfer, open_plugin


async def echo(data: bytes) -> bytes:
    return data


async def take_money(amount: str) -> None:
    print(f"received {amount} at level {current_transfer().level.value}", flush=True)


async def main(port: int) -> None:
    options = {"plugin": "btp", "listener": {"port": port, "secret": "open-sesame"}}
    async with open_plugin(options, data_handler=echo, money_handler=take_money) as plugin:
        print("listening on", plugin.address, flush=True)
        async for event in plugin.events:
            print(event, flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 7768)
