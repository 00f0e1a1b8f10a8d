"""A real ilp-plugin-http in a Node process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .node import NodeProcess, open_node

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

__all__ = ["HttpPeer", "open_http_peer"]


class HttpPeer(NodeProcess):
    """One ilp-plugin-http."""

    script = "http_peer.js"

    async def open(self, **options: Any) -> str:
        """Open the plugin on the loopback interface; give the URL of its server."""
        reply = await self.do("open", options={"incoming": {"staticToken": "unused"}, **options})
        return f"http://127.0.0.1:{reply['port']}"

    async def handle_data(self, kind: str, **options: str) -> None:
        """Set the data handler: reverse, fulfill (with ``hex``), throw (with ``message``), or silent."""
        await self.do("handleData", kind=kind, **options)

    async def send_data(self, data: bytes) -> bytes:
        reply = await self.do("sendData", hex=data.hex())
        return bytes.fromhex(reply["hex"])

    async def send_many(self, count: int, size: int) -> int:
        """Send so many different requests at once; returns how many came back reversed."""
        return int((await self.do("sendMany", count=count, size=size))["matched"])

    async def stats(self) -> dict[str, Any]:
        return await self.do("stats")


def open_http_peer() -> AbstractAsyncContextManager[HttpPeer]:
    """Start a Node process with an ilp-plugin-http."""
    return open_node(HttpPeer)
