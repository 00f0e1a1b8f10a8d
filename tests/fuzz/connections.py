"""Whole connections that are sent any bytes: the frame stream, and a plugin on it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio
import trio.testing
from support.frame_streams import LIMIT, Link, connect, read_with_trio_websocket
from support.peers import shake_hands
from support.tasks import open_tasks

from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing.conformance.assertions import echo

if TYPE_CHECKING:
    from random import Random

    from trio_ledger_plugin.btp.plugin import BtpPlugin

__all__ = ["check_connection", "check_plugin", "echo"]

# In real seconds; an end that does not come is a connection that hangs.
PATIENCE = 10.0


async def check_connection(data: bytes, random: Random) -> None:
    """Check that the frame stream reads the same messages in any chunks, and bytes end only their own connection."""
    for server in (True, False):
        with trio.fail_after(PATIENCE):
            expected = await read_with_trio_websocket(data, server=server)
            whole, refused = await read_with_frame_stream([data], server=server)
            size = random.choice((1, 3, 50)) if len(data) < 400 else 199
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            assert await read_with_frame_stream(pieces, server=server) == (whole, refused)
        # trio-websocket knows no limit on fragments, and continues where the frame stream ends.
        assert whole == (expected[: len(whole)] if refused else expected)


async def read_with_frame_stream(pieces: list[bytes], *, server: bool) -> tuple[list[bytes | None], int]:
    """Return the messages that the frame stream gives, and whether it refused something as too big."""
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        websocket, peer = await connect(tasks, near, far, server=server)
        link = Link()
        websocket.open(link, link.on_end)
        websocket.authenticated()
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for piece in pieces:
                await peer.send(piece)
                if len(pieces) > 1:
                    await trio.lowlevel.checkpoint()
            await far.send_eof()
        await link.ended.wait()
    assert link.error is None
    assert len(link.left) + link.refused >= 1
    assert max((len(message or b"") for message in link.messages), default=0) <= LIMIT
    return link.messages, link.refused


async def check_plugin(plugin: BtpPlugin, data: bytes, *, let_in: bool) -> None:
    """Check that a connection that sends any bytes ends, that the plugin lives on, and that the next one is served."""
    near, far = trio.testing.memory_stream_pair()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, near)
            peer = await shake_hands(far)
            if let_in:
                await peer.authenticate()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await peer.send(data)
                await far.send_eof()
            await peer.wait_eof()
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, near)
            peer = await shake_hands(far)
            assert await peer.authenticate() == btp.Response(1)
            await peer.send_request(7, b"still there?")
            assert await peer.receive_packet() == btp.Response(7, (btp.ProtocolData("ilp", 0, b"still there?"),))
            await peer.aclose()
