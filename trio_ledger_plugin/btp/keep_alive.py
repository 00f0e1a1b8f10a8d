"""Finds out whether a silent peer is still there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..websocket.interface import WebSocketTransport

__all__ = ["ping_peer"]


async def ping_peer(
    transport: WebSocketTransport, seconds: float, is_open: Callable[[], bool], give_up: Callable[[str], None]
) -> None:
    """Send pings until a pong arrives; if only other bytes arrive, the peer is alive and gets another ping.

    Args:
        transport: The connection.
        seconds: How long each ping waits for an answer.
        is_open: Returns whether the connection is still in use.
        give_up: Called with the reason if nothing arrives in time.

    Cancellation: Safe at any time.
    """
    answered = False
    while is_open() and not answered:
        heard = transport.bytes_received
        with trio.move_on_after(seconds):
            await transport.ping()
            answered = True
        # If the program kept the loop busy, the pong may be unread: the reader runs first.
        await trio.lowlevel.checkpoint()
        if is_open() and transport.bytes_received == heard:
            give_up(f"no sign of life for {seconds:g} s after a ping")
