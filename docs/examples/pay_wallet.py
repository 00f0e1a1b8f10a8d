"""Pays a wallet over a BTP server, and shows what arrives.

python pay_wallet.py SERVER POINTER AMOUNT      as in: btp+ws://:token@localhost:7768 '$wallet.example/alice' 1000

Needs the extra stream. A server to try it with: trio-ledger-plugin serve --accounts; a wallet: be_paid.py
"""

import sys

import trio

from trio_ledger_plugin import LedgerPluginError, open_plugin
from trio_ledger_plugin.stream import PaymentFailedError, Progress, pay, quote


def show(progress: Progress) -> None:
    if progress.done:
        print(f"{progress.packets} packets", flush=True)


async def main(server: str, to: str, amount: int) -> int:
    async with open_plugin({"plugin": "btp", "server": server}) as plugin:
        try:
            quoted = await quote(plugin, to, send=amount)
            print(f"{amount} would deliver at least {quoted.deliver}", flush=True)
            paid = await pay(plugin, to, send=amount, min_rate=quoted.rate * 99 / 100, on_progress=show)
        except PaymentFailedError as error:
            print(f"failed: {error.reason}; {error.delivered} arrived for certain")
            return 1
        except LedgerPluginError as error:
            print(f"not paid: {error}")
            return 1
    print(f"sent {paid.sent}, delivered {paid.delivered}")
    return 0


if __name__ == "__main__":
    sys.exit(trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3])))
