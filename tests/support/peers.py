"""BTP peers that a test scripts frame by frame, and the plugins at the other end."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing.raw_frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    read_head,
    upgrade_request,
    upgrade_response,
)
from trio_ledger_plugin.testing.raw_frames import MASK as KEY
from trio_ledger_plugin.testing.raw_frames import write_frame as frame
from trio_ledger_plugin.testing.scripted_peer import ScriptedPeer, open_scripted_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


__all__ = [
    "BINARY",
    "CLOSE",
    "KEY",
    "PING",
    "PONG",
    "TEXT",
    "TOKEN",
    "Peer",
    "dial",
    "dial_in",
    "frame",
    "linked",
    "listening",
    "open_btp",
    "read_head",
    "serving",
    "shake_hands",
    "upgrade_request",
    "upgrade_response",
    "welcome",
]

TOKEN = "canary-7f3a9c"


class Peer(ScriptedPeer):
    """A scripted peer that knows the token, and whose packets a test takes for what they should be."""

    async def authenticate(self, token: str = TOKEN, **how: Any) -> Any:
        return await super().authenticate(token, **how)

    async def receive_packet(self) -> Any:
        return await super().receive_packet()

    async def let_in(self) -> Any:
        return await super().let_in()


shake_hands, welcome, dial = Peer.connect, Peer.accept, Peer.dial


async def dial_in(address: str, token: str = TOKEN) -> Peer:
    """Connect to a listener and authenticate."""
    peer = await dial(address)
    answer = await peer.authenticate(token)
    assert isinstance(answer, btp.Response), answer
    return peer


def listening(**options: Any) -> dict[str, Any]:
    """Options of a listener at a free port."""
    return {"listener": {"port": 0, "secret": TOKEN}, **options}


@asynccontextmanager
async def open_btp(opts: Any, services: PluginServices | None = None, **how: Any) -> AsyncIterator[BtpPlugin]:
    """Open a BTP plugin."""
    async with open_plugin(opts, services, **how) as plugin:
        assert isinstance(plugin, BtpPlugin)
        yield plugin


@asynccontextmanager
async def linked(*, data_handler: Any = None, **options: Any) -> AsyncIterator[tuple[BtpPlugin, Peer]]:
    """Give a listening plugin and the scripted peer that is connected to it."""
    async with open_btp(listening(**options), data_handler=data_handler) as plugin:
        peer = await dial_in(plugin.address)
        await plugin.wait_connected()
        try:
            yield plugin, peer
        finally:
            await peer.aclose()


# Runs a scripted server, once for each connection, and gives its URL with credentials.
serving = partial(open_scripted_server, credentials=f"alice:{TOKEN}")
