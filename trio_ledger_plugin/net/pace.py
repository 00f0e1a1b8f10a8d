"""How often an account may connect: one that does so all the time waits before each further connection.

A connection costs the server about as much as twenty requests. So an account that connects as fast as the server
accepts would take its time from others, although it has few connections at any moment.
"""

from __future__ import annotations

from math import inf
from typing import Final

import trio

__all__ = ["Pace"]

# So many connections at once, and then so many a second.
BURST: Final = 64
RATE: Final = 8.0
# The longest wait, in seconds; it must be shorter than an authentication may take.
LONGEST: Final = 3.0
# Accounts whose connections are remembered; those that connected longest ago are forgotten first.
REMEMBERED: Final = 4096


class Pace:
    """The connections of a server's accounts in the last seconds."""

    def __init__(self) -> None:
        # When each account would be due to connect if it did so at the permitted rate.
        self._due: dict[str, float] = {}

    def delay(self, account: str) -> float:
        """Count a connection of an account, and return for how many seconds it has to wait."""
        now = trio.current_time()
        due = max(self._due.pop(account, -inf), now - BURST / RATE)
        due = min(due + 1 / RATE, now + LONGEST)
        self._due[account] = due
        if len(self._due) > REMEMBERED:
            del self._due[next(iter(self._due))]
        return max(0.0, due - now)
