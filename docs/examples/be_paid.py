"""Receives payments for invoices, and books each packet once, even if it is killed in between.

python be_paid.py SERVER FILE PORT      as in: btp+ws://:token@localhost:7768 shop.db 8080

The invoice 17 is paid at http://127.0.0.1:PORT/17. Needs the extra stream. Ctrl-C ends it.
"""

import hashlib
import sqlite3
import sys

import trio

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stream import ReceivedPacket, SpspEndpoint, open_receiver

INVOICES = {"17": 1000, "18": 250}
# A real program reads a random secret from where it keeps its others: with it, credentials survive a restart.
SECRET = hashlib.sha256(b"not so secret").digest()


def create_books(connection: sqlite3.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS books (invoice TEXT, amount INTEGER)")


def book(connection: sqlite3.Connection, packet: ReceivedPacket) -> None:
    connection.execute("INSERT INTO books VALUES (?, ?)", (packet.tag, packet.amount))


def find_invoice(path: str) -> str | None:
    number = path.removeprefix("/")
    return number if number in INVOICES else None


def decide(packet: ReceivedPacket) -> bool | None:
    print(f"{packet.amount} for invoice {packet.tag}", flush=True)
    return None if packet.tag in INVOICES else False


async def main(server: str, file: str, port: int) -> None:
    async with open_sqlite_store(file) as store, open_plugin({"plugin": "btp", "server": server}) as plugin:
        await store.transaction(create_books)
        async with open_receiver(plugin, secret=SECRET, on_packet=decide, store=store, book=book) as receiver:
            endpoint = SpspEndpoint(receiver, find_invoice)
            (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
            print(f"receiving at http://127.0.0.1:{listener.socket.getsockname()[1]}/", flush=True)
            await trio.serve_listeners(endpoint.serve_stream, [listener])


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
    except* KeyboardInterrupt:
        pass
