"""What an account holds of its server, and a server of its machine.

A share counts one resource and is part of its parent's: what an account takes, its server has given out. Links take
from the share of their account, and what they hold goes on counting when they are lost.
"""

from __future__ import annotations

from math import inf

import trio

__all__ = ["Budget", "Share"]


class Share:
    """How much of one resource is in use.

    Args:
        limit: The most that may be in use.
        parent: The share that this one is part of; None for the widest.
    """

    __slots__ = ("limit", "parent", "unused", "used")

    def __init__(self, limit: float = inf, parent: Share | None = None) -> None:
        self.limit: float = limit
        self.used: int = 0
        self.parent = parent
        #: Set when nothing is in use; made when first needed, for most accounts are never waited for.
        self.unused: trio.Event | None = None

    def has_room(self, amount: int = 1) -> bool:
        """Whether so much more may be taken, here and of every parent."""
        share: Share | None = self
        while share is not None:
            if share.used + amount > share.limit:
                return False
            share = share.parent
        return True

    def take(self, amount: int = 1) -> None:
        """Count so much as used, here and of every parent; ``has_room`` says whether that is allowed."""
        self.used += amount
        if self.parent is not None:
            self.parent.take(amount)

    def give_back(self, amount: int = 1) -> None:
        """Count so much as used no longer."""
        self.used -= amount
        if self.unused is not None:
            self.wake_waiters()
        if self.parent is not None:
            self.parent.give_back(amount)

    def wake_waiters(self) -> None:
        """Wake the tasks that wait until nothing is in use, if that is so."""
        if self.unused is not None and not self.used:
            self.unused.set()
            self.unused = None

    async def wait_unused(self) -> None:
        """Wait until nothing is in use.

        Cancellation: Safe at any time.
        """
        while self.used:
            if self.unused is None:
                self.unused = trio.Event()
            await self.unused.wait()


class Budget:
    """The shares of one account, or of one server.

    Attributes:
        handlers: Handlers of the application that run.

    Args:
        parent: The server's budget, for one of its accounts; None for a server and for a plugin with one peer.
    """

    __slots__ = ("handlers",)

    def __init__(self, parent: Budget | None = None) -> None:
        self.handlers: Share = Share(parent=None if parent is None else parent.handlers)
