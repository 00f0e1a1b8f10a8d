"""A task group as a plugin has one, for the tests of what runs in it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trio_ledger_plugin.runtime.tasks import TaskGroup
from trio_ledger_plugin.runtime.timers import Timers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["make_tasks", "open_tasks"]


def make_tasks(nursery: trio.Nursery) -> TaskGroup:
    """Return a task group that is not open; a crash in it leaves through the nursery."""
    return TaskGroup(nursery, Timers(), lambda crash, cancelled: crash, lambda: False)


@asynccontextmanager
async def open_tasks() -> AsyncIterator[TaskGroup]:
    """Open a task group; none of its tasks is left after the block."""
    async with trio.open_nursery() as nursery:
        tasks = make_tasks(nursery)
        await tasks.start()
        try:
            yield tasks
        finally:
            tasks.cancel()
