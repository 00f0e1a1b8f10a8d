"""What a plugin or a call leaves behind: tasks, and open files."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["FORMS", "Baseline", "all_tasks", "nursery_of", "open_files"]


FORMS = ("own nursery", "given nursery")


@asynccontextmanager
async def nursery_of(form: str) -> AsyncIterator[trio.Nursery | None]:
    """Give a nursery, or None for the form without; no task may be left in it."""
    if form == "own nursery":
        yield None
        return
    async with trio.open_nursery() as nursery:
        yield nursery
        await wait_all_tasks_blocked()
        left = [task.name for task in nursery.child_tasks]
        nursery.cancel_scope.cancel()
        assert left == []


def all_tasks() -> set[trio.lowlevel.Task]:
    """Return every task of this Trio run."""
    found: set[trio.lowlevel.Task] = set()
    root = trio.lowlevel.current_root_task()
    rising = [] if root is None else [root]
    while rising:
        task = rising.pop()
        found.add(task)
        rising += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Baseline:
    """The tasks and files before a call; after it there may be no more, except the peer's idle workers."""

    def __init__(self, peer=None):
        self._peer = peer
        self._tasks, self.files = all_tasks(), open_files()

    def left(self):
        idle = set() if self._peer is None else {worker.task for worker in self._peer.context.workers.idle}
        return [task.name for task in all_tasks() - self._tasks - idle]

    async def settle(self):
        with trio.move_on_after(2):
            while self.left() or open_files() > self.files:  # noqa: ASYNC110 (closing a file sets no event)
                await trio.sleep(0.001)
        assert self.left() == []
        assert open_files() <= self.files
