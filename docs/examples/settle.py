"""Two programs that settle a debt. Either may be killed at any time; every payment counts once.

python settle.py receive DB [PORT]         receives money; DB is the file of its store
python settle.py pay DB COUNT [PORT]       pays COUNT bills of 10, then ends; run it again after a kill

The bills are named bill-1, bill-2 and so on. A bill that was paid before is not paid again.
"""

import sys
from contextlib import suppress

import trio

from trio_ledger_plugin import LedgerPlugin, NotConnectedError, PluginServices, TransferInDoubtError, open_plugin
from trio_ledger_plugin.stores import open_sqlite_store

TOKEN = "open-sesame"


async def receive(path: str, port: int) -> None:
    async def take_money(_amount: str) -> None:
        print("received in all:", (await plugin.transfers.totals()).received, flush=True)

    options = {"listener": {"port": port, "secret": TOKEN}, "money": "keyed"}
    async with open_sqlite_store(path) as store, open_plugin(options, PluginServices(store=store)) as plugin:
        plugin.register_money_handler(take_money)
        print("listening on", plugin.address, flush=True)
        await trio.sleep_forever()


async def pay(path: str, count: int, port: int) -> None:
    options = {"server": f"btp+ws://payer:{TOKEN}@127.0.0.1:{port}", "money": "keyed"}
    async with open_sqlite_store(path) as store, open_plugin(options, PluginServices(store=store)) as plugin:
        for number in range(1, count + 1):
            await pay_bill(plugin, f"bill-{number}")
        print("sent in all:", (await plugin.transfers.totals()).sent, flush=True)


async def pay_bill(plugin: LedgerPlugin, key: str) -> None:
    """Pay until it is acknowledged. The key keeps it from being paid twice."""
    while True:
        try:
            await plugin.send_money(10, idempotency_key=key)
        except NotConnectedError:
            await plugin.wait_connected()
        except TransferInDoubtError as error:
            print(error, flush=True)  # the journal keeps trying; ask again
        else:
            return


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        match sys.argv[1:]:
            case ["receive", path, *port]:
                trio.run(receive, path, int(port[0]) if port else 7768)
            case ["pay", path, count, *port]:
                trio.run(pay, path, int(count), int(port[0]) if port else 7768)
            case _:
                print(__doc__)
