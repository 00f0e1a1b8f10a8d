"""Turns at the store: each account's jobs take turns with those of others.

Invariants: at most ``limit`` jobs are in the store at once, so that a job of another account, or a lookup that does not
come through here, waits for no more than these. While several accounts use the store, at most ``share`` of them are one
account's, so that a job of another one finds room, and few before it.
"""

from __future__ import annotations

from math import inf
from typing import Final

import trio

from ..parking import Waiter, park

__all__ = ["BACKGROUND", "Turns"]

# The turn of jobs that no account waits for. An account's name has no space.
BACKGROUND: Final = " background"
# For how many seconds after the last job of another account an account is not alone.
SHARED_SECONDS: Final = 10.0


class _Turn(Waiter):
    """One job that waits for its turn.

    Args:
        account: Its account.
        waiting: The jobs that wait, by account; a cancelled one must leave nothing there while the store hangs.
    """

    __slots__ = ("_account", "_waiting")

    def __init__(self, account: str, waiting: dict[str, dict[_Turn, None]]) -> None:
        super().__init__()
        self._account = account
        self._waiting = waiting
        waiting.setdefault(account, {})[self] = None

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        others = self._waiting[self._account]
        del others[self]
        if not others:
            del self._waiting[self._account]
        return super().abandon(raise_cancel)


class Turns:
    """Admits a limited number of jobs at once.

    Args:
        limit: How many.
        share: How many of one account, while it is not alone.
    """

    def __init__(self, limit: int, share: int) -> None:
        self._limit = limit
        self._share = share
        self._running = 0
        self._running_of: dict[str, int] = {}
        # The jobs that wait, by account; the account whose turn is next comes first.
        self._waiting: dict[str, dict[_Turn, None]] = {}
        # The account of the last job, and until when the store counts as shared.
        self._newest = BACKGROUND
        self._shared_until = -inf

    def take_now(self, account: str) -> bool:
        """Take a turn of an account if there is one now; the caller, which is protected from Ctrl-C, gives it back."""
        if account != self._newest and account != BACKGROUND:
            if self._newest != BACKGROUND:
                self._shared_until = trio.current_time() + SHARED_SECONDS
            self._newest = account
        if account in self._waiting or not self._may_run(account):
            return False
        self._begin(account)
        return True

    async def wait(self, account: str) -> None:
        """Wait for a turn of an account that could not be taken at once; the caller gives it back in the same way.

        Cancellation: Takes no turn.
        """
        await park(_Turn(account, self._waiting))

    def give_back(self, account: str) -> None:
        """Give a turn of an account back, and with it to the next account with a job that waits."""
        self._running -= 1
        left = self._running_of[account] - 1
        if left:
            self._running_of[account] = left
        else:
            del self._running_of[account]
        # Usually one; more when an account is alone again.
        while self._waiting and (following := self._next()) is not None:
            following.wake()

    def _next(self) -> _Turn | None:
        """Return the job that may run now, with its turn taken; None if there is none."""
        for account in tuple(self._waiting):
            if self._running >= self._limit:
                return None
            if self._may_run(account):
                waiting = self._waiting.pop(account)
                turn = next(iter(waiting))
                del waiting[turn]
                self._begin(account)
                if waiting:
                    # Behind the others.
                    self._waiting[account] = waiting
                return turn
        return None

    def _may_run(self, account: str) -> bool:
        if self._running >= self._limit:
            return False
        running = self._running_of.get(account, 0)
        return running < self._share or (running < self._limit and not self._is_shared())

    def _is_shared(self) -> bool:
        if self._shared_until > -inf and trio.current_time() >= self._shared_until:
            self._shared_until = -inf
        return self._shared_until > -inf

    def _begin(self, account: str) -> None:
        self._running += 1
        self._running_of[account] = self._running_of.get(account, 0) + 1
