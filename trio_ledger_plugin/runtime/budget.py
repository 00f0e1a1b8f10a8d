"""Counts the resources that an account uses, and with it its server.

Invariant: what a share counts, its parents count too. What a lost link still uses stays counted until it is given back.
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
        self.parent: Share | None = parent
        #: Set when nothing is in use. Made when first needed, since few accounts ever need it.
        self.unused: trio.Event | None = None

    def has_room(self, amount: int = 1) -> bool:
        """Whether this share and every parent allow ``amount`` more."""
        share: Share | None = self
        while share is not None:
            if share.used + amount > share.limit:
                return False
            share = share.parent
        return True

    def take(self, amount: int = 1) -> None:
        """Count ``amount`` as used, here and in every parent; ``has_room`` checks the limits."""
        self.used += amount
        if self.parent is not None:
            self.parent.take(amount)

    def give_back(self, amount: int = 1) -> None:
        """Count ``amount`` as no longer used, here and in every parent."""
        self.used -= amount
        if self.unused is not None:
            self.wake_waiters()
        if self.parent is not None:
            self.parent.give_back(amount)

    def wake_waiters(self) -> None:
        """Wake the tasks in ``wait_unused``, if nothing is in use."""
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
        handlers: Counts the application's handlers that run.

    Args:
        parent: The server's budget, for one of its accounts; None for a server and for a plugin with one peer.
    """

    __slots__ = ("handlers",)

    def __init__(self, parent: Budget | None = None) -> None:
        self.handlers: Share = Share(parent=None if parent is None else parent.handlers)
