"""Waiting and starting tasks on Trio's low level, where Ctrl-C must not come between two steps.

Invariants: no ``KeyboardInterrupt`` is raised in a task between its assignment to a waiter and its sleep. Otherwise the
task could wait for something else, be rescheduled in the middle of that, and end Trio with ``TrioInternalError``. None
is raised while a task is started: the nursery could wait for ever for a task that it counts and that never runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import current_task, reschedule, wait_task_rescheduled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import outcome

__all__ = ["Waiter", "park", "start_task"]


class Waiter:
    """What one task waits for; ``park()`` waits and ``wake()`` ends the wait."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        #: The task that sleeps here; None while no task does.
        self.task: trio.lowlevel.Task | None = None

    def wake(self, result: outcome.Outcome[Any] | None = None) -> None:
        """Wake the task, with a value or an error; does nothing if no task sleeps here."""
        task, self.task = self.task, None
        if task is None:
            return
        if result is None:
            reschedule(task)
        else:
            reschedule(task, result)

    def abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Forget the task, because Trio cancels it. A subclass that overrides this must not raise."""
        self.task = None
        return trio.lowlevel.Abort.SUCCEEDED


@trio.lowlevel.enable_ki_protection
async def park(waiter: Waiter) -> Any:  # noqa: ANN401 (the waiter's owner knows what it wakes with)
    """Sleep until the waiter is woken, and return or raise what it is woken with.

    Cancellation: Wakes the task; ``Waiter.abandon`` is called first.
    """
    waiter.task = current_task()
    return await wait_task_rescheduled(waiter.abandon)


@trio.lowlevel.enable_ki_protection
def start_task(nursery: trio.Nursery, function: Callable[..., Awaitable[object]], *args: object) -> None:
    """Start a task in a nursery. The task itself is not protected from Ctrl-C.

    Raises:
        RuntimeError: The nursery is closed.
    """
    nursery.start_soon(function, *args)
