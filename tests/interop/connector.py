"""A real ilp-connector in a Node process."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from .network import login
from .node import NodeProcess, open_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CONNECTOR = "test.connector"


class Connector(NodeProcess):
    """An ilp-connector."""

    script = "connector.js"


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[str]:
    """Run a connector; gives the URL for its children."""
    async with open_node(Connector) as connector:
        reply = await connector.do("start", settings=settings)
        yield f"btp+ws://127.0.0.1:{reply['port']}"


def account_at(url: str, relation: str, **settings: object) -> dict[str, object]:
    """Return an account that the connector has at one of our servers."""
    plugin = {"plugin": "ilp-plugin-btp", "options": {"server": login(url, "connector")}}
    return {"relation": relation, "assetCode": "XRP", "assetScale": 9, **plugin, **settings}
