"""Looks at all accounts of a server, in turns with its work.

Invariant: a look holds up the server for no longer than a slice of the accounts takes.
"""

from __future__ import annotations

from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .account import AccountSnapshot
    from .server import AccountsServer

__all__ = ["Stopwatch", "take_snapshots"]

# How many accounts are looked at in one turn of the scheduler.
SLICE: Final = 200


class Stopwatch:
    """Adds up what a look takes, without what other tasks do meanwhile.

    Attributes:
        seconds: How long it took so far.
    """

    def __init__(self) -> None:
        self.seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block, in which nothing is waited for."""
        began = perf_counter()
        yield
        self.seconds += perf_counter() - began


async def take_snapshots(server: AccountsServer, stopwatch: Stopwatch) -> list[AccountSnapshot]:
    """Return a snapshot of each connected account.

    Args:
        server: The server.
        stopwatch: Counts the time that it takes.

    Cancellation: Safe at any time.
    """
    accounts: list[AccountSnapshot] = []
    everyone = tuple(server.table.values())
    for start in range(0, len(everyone), SLICE):
        with stopwatch.running():
            accounts += [each.snapshot() for each in everyone[start : start + SLICE] if each.links]
        await trio.lowlevel.checkpoint()
    return accounts
