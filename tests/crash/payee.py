"""The end that is paid: a receiver with books of its own in its store. Its process may be killed at any moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stream import ReceivedPacket, open_receiver

if TYPE_CHECKING:
    import sqlite3

__all__ = ["ADDRESS", "SECRET", "TOKEN", "receive"]

SECRET = bytes(range(32))
ADDRESS = "example.payee"
TOKEN = "payee"
# Links are lost several times a second here.
LINK = {"redial_max_delay": 0.05}


def receive(port: int, path: str) -> None:
    """Dial a port of this machine and receive payments until the process ends."""
    trio.run(_receive, port, path)


async def _receive(port: int, path: str) -> None:
    options = {"plugin": "btp", "server": f"btp+ws://payee:{TOKEN}@127.0.0.1:{port}", **LINK}
    async with open_sqlite_store(path) as store:
        await store.transaction(_open_books)
        async with (
            open_plugin(options) as plugin,
            open_receiver(plugin, secret=SECRET, address=ADDRESS, store=store, book=_book),
        ):
            await trio.sleep_forever()


def _open_books(connection: sqlite3.Connection) -> None:
    # Nothing here forbids that a packet is booked twice.
    connection.execute("CREATE TABLE IF NOT EXISTS books (destination TEXT, sequence INTEGER, amount INTEGER)")


def _book(connection: sqlite3.Connection, packet: ReceivedPacket) -> None:
    connection.execute("INSERT INTO books VALUES (?, ?, ?)", (packet.destination, packet.sequence, packet.amount))
