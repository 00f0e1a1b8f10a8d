"""A real ilp-plugin-mini-accounts in a Node process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from trio_ledger_plugin.codec import ilp

from .network import FULFILL, HOST
from .node import NodeProcess, open_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class MiniAccounts(NodeProcess):
    """The server; its data handler gives every client's request one and the same answer."""

    script = "mini_accounts_peer.js"

    async def listen(self, answer: ilp.Packet, port: int = 0) -> int:
        """Open the server; returns its port once it is bound."""
        info = {"clientAddress": HOST, "assetScale": 6, "assetCode": "USD"}
        reply = await self.do("listen", port=port, info=info, answer=ilp.encode(answer).hex())
        return int(reply["port"])

    async def send_data(self, packet: ilp.Packet) -> ilp.Packet:
        """Send to the client that the destination names."""
        reply = await self.do("sendData", hex=ilp.encode(packet).hex())
        return ilp.decode(bytes.fromhex(reply["hex"]))

    async def handled(self) -> list[ilp.Packet]:
        """Tell the clients' requests that reached the data handler."""
        reply = await self.do("handled")
        return [ilp.decode(bytes.fromhex(request)) for request in reply["requests"]]


def url_of(port: int) -> str:
    return f"btp+ws://127.0.0.1:{port}"


@asynccontextmanager
async def serving(answer: ilp.Packet = FULFILL) -> AsyncIterator[tuple[MiniAccounts, str]]:
    async with open_node(MiniAccounts) as server:
        yield server, url_of(await server.listen(answer))
