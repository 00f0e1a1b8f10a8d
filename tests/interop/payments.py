"""Networks with an account for a payer and one for a payee, either of which may be ours or a JavaScript package's."""

from __future__ import annotations

from contextlib import asynccontextmanager
from math import log10
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from attrs import frozen
from support.ports import free_port

from trio_ledger_plugin import open_plugin

from .connector import account_at, running
from .network import INFO, TOKEN, login, routing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from fractions import Fraction

    from trio_ledger_plugin import LedgerPlugin

__all__ = ["MAX_PACKET", "Account", "Network", "over_btp", "over_connector", "over_http"]

# The greatest amount of a packet in each of these networks, which payers have to find out.
MAX_PACKET = 20_000


@frozen
class Account:
    """An account at a server.

    Attributes:
        url: The server's URL, with the account's name and token.
        port: Where the account's end listens if the server reaches it over HTTP; 0 if it is not reached.
    """

    url: str
    port: int = 0

    def open(self) -> AbstractAsyncContextManager[LedgerPlugin]:
        """Open our plugin at the account."""
        if self.url.startswith("btp"):
            return open_plugin({"plugin": "btp", "server": self.url})
        parts = urlsplit(self.url)
        outgoing = {"url": f"http://{parts.hostname}:{parts.port}", "static_token": TOKEN, "name": parts.username}
        incoming = {"incoming": {"port": self.port, "static_token": TOKEN}} if self.port else {}
        return open_plugin({"plugin": "http", "outgoing": outgoing, **incoming})

    @property
    def options(self) -> dict[str, object]:
        """What a JavaScript package needs to open its own plugin at the account."""
        return {"url": self.url, "port": self.port}


@frozen
class Network:
    """A connected network.

    Attributes:
        payers: The URL of the server that has the accounts of payers.
        payees: The URL of the server that has the payee's account.
        port: Where the payee listens over HTTP.
    """

    payers: str
    payees: str
    port: int = 0

    def payer(self, name: str) -> Account:
        return Account(login(self.payers, name))

    def payee(self) -> Account:
        return Account(login(self.payees, "payee"), self.port)


@asynccontextmanager
async def over_btp(rate: Fraction) -> AsyncIterator[Network]:
    """Connect both over our ``btp-accounts``."""
    async with routing(rate=rate, max_packet=MAX_PACKET) as server:
        yield Network(server.address, server.address)


@asynccontextmanager
async def over_http(rate: Fraction) -> AsyncIterator[Network]:
    """Connect both over our ``http-accounts``."""
    port = free_port()
    outgoing = {"url": f"http://127.0.0.1:{port}/%", "static_token": TOKEN}
    options = {"plugin": "http-accounts", "ildcp": INFO, "incoming": {"port": 0}, "outgoing": outgoing}
    async with routing(options, rate=rate, max_packet=MAX_PACKET) as server:
        yield Network(server.address, server.address, port)


@asynccontextmanager
async def over_connector(rate: Fraction) -> AsyncIterator[Network]:
    """Have payers at our ``btp-accounts``, and below it an ilp-connector whose child is the payee.

    The connector converts amounts to the scale of its children, so the rate is a power of ten.
    """
    async with routing() as server:
        above = account_at(server.address, "parent", maxPacketAmount=str(MAX_PACKET))
        children = {"assetScale": 9 + round(log10(rate))}
        async with running(accounts={"above": above}, children=children) as url:
            yield Network(server.address, url)
