"""The deadlines of a plugin, kept by one task: a cancel scope for each would cost more than the rest of a call.

Invariant: a timer fires no earlier than the time for which it was scheduled, and never concurrently with another timer.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Timer", "Timers"]


class Timer(Protocol):
    """An object with deadlines, such as a link.

    A new deadline must not be earlier than the time that ``fire`` returned last.
    """

    def fire(self, now: float) -> float:
        """Handle the deadlines up to ``now``, and return when to be called next; ``inf`` for never. Must not wait."""


class Timers:
    """Fires timers at their times, on Trio's clock."""

    def __init__(self) -> None:
        #: Timers that fire each time the task starts, and then at the times that they return.
        self.periodic: list[Timer] = []
        self._order = count()
        self._due: list[tuple[float, int, Timer]] = []
        self._sleep = trio.CancelScope()

    def schedule(self, timer: Timer, when: float) -> None:
        """Schedule a timer for a time on Trio's clock, in addition to its other times."""
        heapq.heappush(self._due, (when, next(self._order), timer))
        self._sleep.deadline = min(self._sleep.deadline, when)

    def wake(self) -> None:
        """Make the task call ``is_needed`` now."""
        self._sleep.deadline = -inf

    def clear(self) -> None:
        """Remove every timer except the periodic ones."""
        self._due.clear()

    async def run(self, is_needed: Callable[[], bool]) -> None:
        """Fire timers for as long as ``is_needed`` returns True.

        Args:
            is_needed: Called before each round of timers, and after ``wake()``.

        Cancellation: No further timer fires.
        """
        for timer in self.periodic:
            self.schedule(timer, trio.current_time())
        while is_needed():
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                _, _, timer = heapq.heappop(self._due)
                again = timer.fire(now)
                if again < inf:
                    heapq.heappush(self._due, (again, next(self._order), timer))
            with trio.CancelScope(deadline=self._due[0][0] if self._due else inf) as self._sleep:
                await trio.sleep_forever()
