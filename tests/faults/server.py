"""A server of many accounts as a process of its own, whose memory can be looked at from outside.

    python server.py echo|slow|large

It prints its address, and then its figures in JSON whenever a line comes in.
"""

from __future__ import annotations

import gc
import json
import os
import sys

import trio

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.testing.conformance.assertions import echo

__all__ = ["HANDLERS"]

INFO = {"client_address": "test.hostile", "asset_scale": 9, "asset_code": "XRP"}
OPTIONS = {"plugin": "btp-accounts", "port": 0, "generate_account": True, "debug_host_ildcp_info": INFO}


async def slow(_data: bytes) -> bytes:
    await trio.sleep_forever()


async def large(_data: bytes) -> bytes:
    return bytes(32 * 1024)


HANDLERS = {"echo": echo, "slow": slow, "large": large}


def resident_bytes() -> int:
    """Return how much memory the process has, once all garbage is gone."""
    gc.collect()
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def main(handler: str) -> None:
    async with open_plugin(OPTIONS, data_handler=HANDLERS[handler]) as plugin:
        print(plugin.address, flush=True)
        async with trio.lowlevel.FdStream(os.dup(0)) as orders:
            while await orders.receive_some():
                assert isinstance(plugin, AccountsPlugin)
                counted = plugin.statistics()
                figures = {
                    "resident": resident_bytes(),
                    "connected": len(plugin.accounts()),
                    "requests": counted.requests_received,
                    "tasks": trio.lowlevel.current_statistics().tasks_living,
                    "files": len(os.listdir("/proc/self/fd")),
                }
                print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
