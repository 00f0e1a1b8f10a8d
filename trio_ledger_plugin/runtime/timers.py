"""The deadlines of a plugin, kept by one task: a cancel scope for each would cost more than the rest of a call."""

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
    """Something with deadlines, such as a link.

    A deadline that it gains later must not lie before the time that ``fire`` returned last.
    """

    def fire(self, now: float) -> float:
        """Act on what is due at ``now``, and return the next time to be called; ``inf`` for never. Must not wait."""


class Timers:
    """Calls timers at their times, on Trio's clock."""

    def __init__(self) -> None:
        #: Fired when the task begins, each time it does, and from then on when they ask for it.
        self.periodic: list[Timer] = []
        self._order = count()
        self._due: list[tuple[float, int, Timer]] = []
        self._sleep = trio.CancelScope()

    def schedule(self, timer: Timer, when: float) -> None:
        """Have a timer fire at a time on Trio's clock, besides the times that it has asked for."""
        heapq.heappush(self._due, (when, next(self._order), timer))
        self._sleep.deadline = min(self._sleep.deadline, when)

    def wake(self) -> None:
        """Have the task ask now whether it is still needed."""
        self._sleep.deadline = -inf

    def clear(self) -> None:
        """Forget every timer but the periodic ones."""
        self._due.clear()

    async def run(self, is_needed: Callable[[], bool]) -> None:
        """Fire timers for as long as that is needed.

        Args:
            is_needed: Asked after each round of timers, and after ``wake()``.

        Cancellation: No timer fires any more.
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
