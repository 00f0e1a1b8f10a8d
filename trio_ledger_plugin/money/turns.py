"""Turns at the store: each account's jobs take turns with those of others.

Invariant: at most ``limit`` jobs are in the store at once, so that a job of another account, or a lookup that does not
come through here, waits for no more than these.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from ..parking import Waiter, park

__all__ = ["BACKGROUND", "Turns"]

# The turn of jobs that no account waits for. An account's name has no space.
BACKGROUND: Final = " background"


class Turns:
    """Admits a limited number of jobs at once.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        # The jobs that wait, by account; the account whose turn is next comes first.
        self._waiting: dict[str, deque[Waiter]] = {}

    async def take(self, account: str) -> None:
        """Wait for a turn of an account; the caller, which is protected from Ctrl-C, gives it back in any case.

        Cancellation: Takes no turn.
        """
        if self._running < self._limit:
            self._running += 1
            return
        waiter = Waiter()
        self._waiting.setdefault(account, deque()).append(waiter)
        await park(waiter)

    def give_back(self) -> None:
        """Give the turn to the next account with a job that waits."""
        while self._waiting:
            account = next(iter(self._waiting))
            waiters = self._waiting.pop(account)
            waiter = waiters.popleft()
            if waiters:
                # Behind the others.
                self._waiting[account] = waiters
            if waiter.task is not None:
                waiter.wake()
                return
        self._running -= 1
