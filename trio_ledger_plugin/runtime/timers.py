"""The deadlines of a plugin, kept by one task: a cancel scope for each would cost more than the rest of a call.

Invariant: a timer fires no earlier than the time for which it was scheduled, and never concurrently with another timer.
After a pause of the whole process, the other tasks run first: what lies in the sockets is read before a deadline
counts.
"""

from __future__ import annotations

import heapq
from itertools import count
from math import ceil, inf
from typing import TYPE_CHECKING, Protocol

import trio

from ..parking import Waiter, park

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Scheduled", "Timer", "Timers", "round_up"]

# A wake-up that is so late shows that the process stood still, for a blocking call or while its machine was suspended.
LATE_SECONDS = 0.05
# For how many turns the other tasks then run before timers fire.
LATE_TURNS = 64
# How far the times that are rounded lie apart.
STEP_SECONDS = 0.05
# How many entries there are at least before the cancelled ones are removed all at once.
MANY = 64


def round_up(when: float) -> float:
    """Return a time up to 50 ms later at which other timers fire as well: waking the loop costs more than a timer.

    Args:
        when: A time on Trio's clock; ``inf`` stays as it is.
    """
    return when if when == inf else ceil(when / STEP_SECONDS) * STEP_SECONDS


class Timer(Protocol):
    """An object with deadlines, such as a link.

    A new deadline must not be earlier than the time that ``fire`` returned last.
    """

    def fire(self, now: float) -> float:
        """Handle the deadlines up to ``now``, and return when to be called next; ``inf`` for never. Must not wait.

        With a time up to ``now``, the other tasks run for one turn first.
        """


class Scheduled:
    """One entry of a timer; ``Timers.cancel`` ends it."""

    __slots__ = ("timer",)

    def __init__(self, timer: Timer) -> None:
        #: The timer; None once this entry is over.
        self.timer: Timer | None = timer


class _Waits:
    """The timer of tasks that wait, each until a deadline of its own, which come in order."""

    def __init__(self) -> None:
        self.deadlines: dict[Waiter, float] = {}
        self.latest: float = -inf
        self.is_scheduled: bool = False

    def fire(self, now: float) -> float:
        for waiter, deadline in self.deadlines.items():
            if deadline > now:
                return deadline
            # Its task removes it when it runs.
            waiter.wake()
        self.is_scheduled = False
        return inf


class Timers:
    """Fires timers at their times, on Trio's clock."""

    def __init__(self) -> None:
        #: Timers that fire each time the task starts, and then at the times that they return.
        self.periodic: list[Timer] = []
        #: Whether the task runs.
        self.is_running: bool = False
        self._waits = _Waits()
        self._order = count()
        self._due: list[tuple[float, int, Scheduled]] = []
        # About how many of these are cancelled.
        self._cancelled = 0
        self._sleep = trio.CancelScope()

    def schedule(self, timer: Timer, when: float) -> Scheduled:
        """Schedule a timer for a time on Trio's clock, in addition to its other times; ``cancel`` ends this one."""
        scheduled = Scheduled(timer)
        heapq.heappush(self._due, (when, next(self._order), scheduled))
        self._sleep.deadline = min(self._sleep.deadline, when)
        return scheduled

    def cancel(self, scheduled: Scheduled) -> None:
        """Let a timer no longer fire, nor stay in memory; does nothing if it would not fire again."""
        if scheduled.timer is not None:
            scheduled.timer = None
            self._cancelled += 1
            if self._cancelled > len(self._due) // 2 > MANY:
                self._due = [entry for entry in self._due if entry[2].timer is not None]
                heapq.heapify(self._due)
                self._cancelled = 0

    # Ctrl-C must not leave a waiter in the table without its task.
    @trio.lowlevel.enable_ki_protection
    async def wait(self, waiter: Waiter, deadline: float) -> None:
        """Wait until a waiter is woken, until a deadline on Trio's clock, or until the task ends.

        The caller checks what it waits for, and the time, and waits again.

        Cancellation: Safe at any time.
        """
        waits = self._waits
        if not self.is_running or deadline < waits.latest or deadline == inf:
            with trio.move_on_at(deadline):
                await park(waiter)
            return
        waits.latest = waits.deadlines[waiter] = deadline
        if not waits.is_scheduled:
            waits.is_scheduled = True
            self.schedule(waits, deadline)
        try:
            await park(waiter)
        finally:
            del waits.deadlines[waiter]

    def wake(self) -> None:
        """Make the task call ``is_needed`` now."""
        self._sleep.deadline = -inf

    def clear(self) -> None:
        """Remove every timer except the periodic ones."""
        self._due.clear()
        self._cancelled = 0

    async def run(self, is_needed: Callable[[], bool]) -> None:
        """Fire timers for as long as ``is_needed`` returns True.

        Args:
            is_needed: Called before each round of timers, and after ``wake()``.

        Cancellation: No further timer fires.
        """
        self.is_running = True
        try:
            await self._run(is_needed)
        finally:
            self.is_running = False
            self._waits.fire(inf)

    async def _run(self, is_needed: Callable[[], bool]) -> None:
        for timer in self.periodic:
            self.schedule(timer, trio.current_time())
        while is_needed():
            self._fire(trio.current_time())
            with trio.CancelScope(deadline=self._due[0][0] if self._due else inf) as self._sleep:
                await trio.sleep_forever()
            if self._due:
                late = trio.current_time() - self._due[0][0] > LATE_SECONDS
                for _ in range(LATE_TURNS if late else 1):
                    await trio.lowlevel.checkpoint()

    def _fire(self, now: float) -> None:
        """Fire each timer that is due, once."""
        again: list[tuple[float, int, Scheduled]] = []
        while self._due and self._due[0][0] <= now:
            scheduled = heapq.heappop(self._due)[2]
            when = inf if scheduled.timer is None else scheduled.timer.fire(now)
            if scheduled.timer is None:
                # Cancelled before, or as it fired.
                self._cancelled = max(self._cancelled - 1, 0)
            elif when < inf:
                again.append((when, next(self._order), scheduled))
            else:
                scheduled.timer = None
        for entry in again:
            heapq.heappush(self._due, entry)
