"""One end of the crash tests, a process that can be killed at any moment: the sender, the receiver, or both in one.

Its configuration is the first line of its standard input, JSON; then come orders. ``finish``: settle what is under
way, begin nothing new, and say ``quiet``. ``end``: close, say the totals, and leave. It says ``up`` once connected.
"""

from __future__ import annotations

import json
import math
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import clock  # noqa: F401 (first: it sets the system clock wrong)
import trio
from attrs import frozen
from book import Book
from sending import Sending, is_refused

from trio_ledger_plugin import (
    ConnectOptions,
    InsufficientBalanceError,
    LedgerPlugin,
    PluginServices,
    Transfer,
    current_transfer,
    open_plugin,
)
from trio_ledger_plugin.stores import SqliteStore, open_sqlite_store

if TYPE_CHECKING:
    import sqlite3

    from trio_ledger_plugin.btp.accounts import AccountsPlugin

__all__ = ["Config", "say"]

# Links are lost several times a second here.
LINK = {"redial_max_delay": 0.05, "ping_interval": 0.5, "pong_timeout": 0.5, "max_failures_per_minute": 1000}
LINK |= {"max_unauthenticated_per_address": 1000, "response_timeout": 20}
TOKEN = "secret"
INFO = {"client_address": "test.crash", "asset_scale": 9, "asset_code": "XRP"}


@frozen
class Config:
    """What an end is to do.

    Attributes:
        role: ``client``, ``listener``, ``clients`` (of a server of many accounts) or ``server``.
        home: The directory of its store and its books.
        port: To dial or to listen at.
        accounts: Their names.
        handler: ``outbox``, ``transactional``, ``none``, or ``direct``: a money handler, and no store.
        lanes: How many transfers it keeps under way for each account; 0 for one that only receives.
        first: The amount of its first transfer.
        money: The option ``money``.
        keyed: Whether transfers are KEYED.
        others: Whether stores may be replaced, so that transfers at KEYED may be in doubt as well.
        ledger: The ledger's name; empty for the first one.
    """

    role: str
    home: str
    port: int
    accounts: list[str]
    handler: str
    lanes: int
    first: int
    money: str
    keyed: bool
    others: bool = False
    ledger: str = ""

    def ledger_of(self, account: str) -> str:
        """Return the name of the ledger that an account's transfers are in."""
        return f"{account}{self.ledger}" if self.role in ("client", "clients") else self.ledger or "main"


class End:
    """One run of an end."""

    def __init__(self, config: Config, store: SqliteStore | None) -> None:
        self._config = config
        self._home = Path(config.home)
        self._services = PluginServices(store=store)
        self._store = store
        # On the disk: at PLAIN it is the only witness of what was applied.
        self._applied = Book(self._home / "applied", sync=config.handler == "direct")

    async def run(self, orders: trio.MemoryReceiveChannel[str]) -> None:
        config = self._config
        async with AsyncExitStack() as stack:
            plugins, senders = await self._open(stack)
            say("up")
            sendings = [
                Sending(
                    plugin,
                    self._home / f"asked-{name}",
                    config.first + number * 10**9,
                    keyed=config.keyed,
                    others=config.others,
                )
                for number, (name, plugin) in enumerate(senders.items())
            ]
            async with trio.open_nursery() as nursery:
                for sending in sendings:
                    nursery.start_soon(sending.run, config.lanes)
                await expect(orders, "finish")
                for sending in sendings:
                    sending.finishing = True
            say("quiet")
            await expect(orders, "end")
            for plugin in plugins if self._store is not None else ():
                totals = await plugin.transfers.totals()
                say(json.dumps({"sent": totals.sent, "received": totals.received, "in_doubt": totals.in_doubt}))

    async def _open(self, stack: AsyncExitStack) -> tuple[list[LedgerPlugin], dict[str, LedgerPlugin]]:
        """Open the plugins; return them, and what sends for each account."""
        config, port = self._config, self._config.port
        if config.role == "listener":
            listener = {"port": port, "secret": TOKEN}
            ledger = config.ledger_of(config.accounts[0])
            plugin = await self._plugin(stack, {"plugin": "btp", "listener": listener, "ledger_id": ledger})
            return [plugin], {config.accounts[0]: plugin}
        if config.role == "server":
            options = {"plugin": "btp-accounts", "port": port, "generate_account": False, "debug_host_ildcp_info": INFO}
            options["ledger_id"] = config.ledger_of("")
            server = cast("AccountsPlugin", await self._plugin(stack, options))
            return [server], {name: server.account(name) for name in config.accounts}
        dialled = {}
        for name in config.accounts:
            url = f"btp+ws://{name}:{TOKEN}-{name}@127.0.0.1:{port}" if config.role == "clients" else dial(name, port)
            dialled[name] = await self._plugin(
                stack, {"plugin": "btp", "server": url, "ledger_id": config.ledger_of(name)}
            )
        return list(dialled.values()), dialled

    async def _plugin(self, stack: AsyncExitStack, options: dict[str, Any]) -> LedgerPlugin:
        handlers: dict[str, Any] = {}
        if self._config.handler in ("outbox", "direct"):
            handlers["money_handler"] = self._apply
        elif self._config.handler == "transactional":
            handlers["transactional_money_handler"] = self._apply_within
        # Without a handler, this end reads the totals only.
        accepted = "journal" if self._config.handler == "none" else "handler"
        opening = open_plugin(
            {**LINK, "money": self._config.money, "accept_money": accepted, **options},
            self._services,
            connect=ConnectOptions(timeout=math.inf),
            **handlers,
        )
        return await stack.enter_async_context(opening)

    async def _apply(self, amount: str) -> None:
        # Work that a kill may interrupt before it counts, or after.
        await trio.lowlevel.checkpoint()
        self._applied.write(str(current_transfer().key), amount)
        await trio.lowlevel.checkpoint()

    def _apply_within(self, connection: sqlite3.Connection, transfer: Transfer) -> None:
        connection.execute("CREATE TABLE IF NOT EXISTS mine (key TEXT, account TEXT, amount TEXT)")
        connection.execute("INSERT INTO mine VALUES (?, ?, ?)", (transfer.key, transfer.account, transfer.amount))
        if is_refused(int(transfer.amount)):
            raise InsufficientBalanceError("refused")


def dial(name: str, port: int) -> str:
    return f"btp+ws://{name}:{TOKEN}@127.0.0.1:{port}"


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def expect(orders: trio.MemoryReceiveChannel[str], order: str) -> None:
    assert await orders.receive() == order


async def read_orders(orders: trio.MemorySendChannel[str]) -> None:
    async with orders:
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            await orders.send(line.strip())


async def main(config: Config) -> None:
    send, receive = trio.open_memory_channel[str](10)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        nursery.start_soon(read_orders, send)
        store = None
        if config.handler != "direct":
            store = await stack.enter_async_context(open_sqlite_store(Path(config.home) / "store.sqlite3"))
        await End(config, store).run(receive)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, Config(**json.loads(sys.stdin.readline())))
