"""A wait on Trio's low level: a task sleeps until another part of the program reschedules it.

Invariant: no ``KeyboardInterrupt`` is raised in a task between its assignment to a waiter and its sleep. Otherwise the
task could wait for something else, be rescheduled in the middle of that, and end Trio with ``TrioInternalError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from trio.lowlevel import current_task, reschedule, wait_task_rescheduled

if TYPE_CHECKING:
    import outcome

__all__ = ["Waiter", "park"]


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
