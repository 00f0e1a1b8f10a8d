"""Our side of a small ILP network: a server that routes, and packets to send and to receive."""

from __future__ import annotations

from contextlib import asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_ledger_plugin import LedgerPlugin

HOST = "test.host"
TOKEN = "secret"
PREIMAGE = bytes(range(32))
FULFILL = ilp.Fulfill(PREIMAGE, b"receipt 7")
REJECT = ilp.Reject("F99", "test.elsewhere", "sold out", b"details")


@asynccontextmanager
async def routing() -> AsyncIterator[LedgerPlugin]:
    """Serve accounts, and send what each of them asks for to the account that it is for."""

    async def forward(data: bytes) -> bytes:
        return await plugin.send_data(data)

    info = {"client_address": HOST, "asset_scale": 9, "asset_code": "XRP"}
    opts = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": info}
    async with open_plugin(opts, PluginServices(store=MemoryStore()), data_handler=forward) as plugin:
        yield plugin


def login(url: str, name: str, token: str = TOKEN) -> str:
    """Return a server's URL with the credentials of one account."""
    return url.replace("://", f"://{name}:{token}@")


def client(url: str, name: str, token: str = TOKEN) -> dict[str, object]:
    """Return the options of our client at one account of a server."""
    return {"plugin": "btp", "server": login(url, name, token)}


def offer(destination: str) -> ilp.Prepare:
    """Return a packet that ``FULFILL`` fulfills."""
    return ilp.make_prepare(1000, destination, sha256(PREIMAGE).digest(), 15, b"order 7")


async def send(plugin: LedgerPlugin, packet: ilp.Packet) -> ilp.Packet:
    """Send a packet and return the one that answers it."""
    return ilp.decode(await plugin.send_data(ilp.encode(packet)))


class Receiver:
    """A data handler that gives every packet the same answer, and keeps them."""

    def __init__(self, answer: ilp.Packet = FULFILL) -> None:
        self.answer = answer
        self.packets: list[ilp.Packet] = []

    async def handle(self, data: bytes) -> bytes:
        """Keep the packet."""
        self.packets.append(ilp.decode(data))
        return ilp.encode(self.answer)
