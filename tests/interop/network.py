"""Our side of a small ILP network: a server that routes, and packets to send and to receive."""

from __future__ import annotations

from contextlib import asynccontextmanager
from fractions import Fraction
from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import evolve

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from trio_ledger_plugin import LedgerPlugin

HOST = "test.host"
TOKEN = "secret"
INFO = {"client_address": HOST, "asset_scale": 9, "asset_code": "XRP"}
BTP_ACCOUNTS = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": INFO}
PREIMAGE = bytes(range(32))
FULFILL = ilp.Fulfill(PREIMAGE, b"receipt 7")
REJECT = ilp.Reject("F99", "test.elsewhere", "sold out", b"details")


@asynccontextmanager
async def routing(
    options: Mapping[str, object] = BTP_ACCOUNTS, *, rate: Fraction = Fraction(1), max_packet: int | None = None
) -> AsyncIterator[LedgerPlugin]:
    """Serve accounts, and send what each of them asks for to the account that it is for.

    Args:
        options: The server's options.
        rate: What arrives of each unit.
        max_packet: The greatest amount of a packet.
    """

    async def forward(data: bytes) -> bytes:
        packet = ilp.decode(data)
        if isinstance(packet, ilp.Prepare) and (rate != 1 or max_packet is not None):
            if max_packet is not None and packet.amount > max_packet:
                limit = packet.amount.to_bytes(8) + max_packet.to_bytes(8)
                return ilp.encode(ilp.Reject("F08", HOST, "", limit))
            amount = int(packet.amount * rate)
            if packet.amount and not amount:
                return ilp.encode(ilp.Reject("R01", HOST))
            data = ilp.encode(evolve(packet, amount=amount))
        return await plugin.send_data(data)

    services = PluginServices(store=MemoryStore())
    async with open_plugin(options, services, data_handler=forward) as plugin:
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
