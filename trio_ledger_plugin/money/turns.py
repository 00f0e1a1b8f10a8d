"""Turns at the store: each account's jobs take turns with those of others.

Invariant: at most ``limit`` jobs are in the store at once, so that a job of another account, or a lookup that does not
come through here, waits for no more than these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..parking import Waiter, park

if TYPE_CHECKING:
    import trio

__all__ = ["BACKGROUND", "Turns"]

# The turn of jobs that no account waits for. An account's name has no space.
BACKGROUND: Final = " background"


class _Turn(Waiter):
    """One job that waits for its turn.

    Args:
        waiting: The jobs of its account that wait; a cancelled one must not stay there while the store hangs.
    """

    __slots__ = ("_waiting",)

    def __init__(self, waiting: dict[_Turn, None]) -> None:
        super().__init__()
        self._waiting = waiting
        waiting[self] = None

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting.pop(self, None)
        return super().abandon(raise_cancel)


class Turns:
    """Admits a limited number of jobs at once.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        # The jobs that wait, by account; the account whose turn is next comes first.
        self._waiting: dict[str, dict[_Turn, None]] = {}

    async def take(self, account: str) -> None:
        """Wait for a turn of an account; the caller, which is protected from Ctrl-C, gives it back in any case.

        Cancellation: Takes no turn.
        """
        if self._running < self._limit:
            self._running += 1
            return
        await park(_Turn(self._waiting.setdefault(account, {})))

    def give_back(self) -> None:
        """Give the turn to the next account with a job that waits."""
        while self._waiting:
            account = next(iter(self._waiting))
            waiting = self._waiting.pop(account)
            turn = next(iter(waiting), None)
            if turn is None:
                # Its jobs were cancelled.
                continue
            del waiting[turn]
            if waiting:
                # Behind the others.
                self._waiting[account] = waiting
            turn.wake()
            return
        self._running -= 1
