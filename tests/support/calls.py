"""Calls that run in a task, and handlers that do not return at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin.testing.conformance.assertions import outcome_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["sleep_on", "sleeping", "start"]


def sleeping(seconds: float) -> Callable[[bytes], Awaitable[bytes]]:
    """Return a data handler that sleeps before it answers."""

    async def handle(data: bytes) -> bytes:
        await trio.sleep(seconds)
        return data

    return handle


async def sleep_on(amount: str) -> None:
    """Never acknowledge a transfer."""
    await trio.sleep_forever()


async def start(nursery, function, *args):
    """Run a call in a task; return a list that gets its outcome."""
    outcomes = []

    async def run():
        outcomes.append(await outcome_of(function, *args))

    nursery.start_soon(run)
    await wait_all_tasks_blocked()
    return outcomes
