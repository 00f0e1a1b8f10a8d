"""How often something may happen: at first at once, and then at a rate.

A connection costs a server about as much as twenty requests. So an account that connects as fast as the server accepts
would take its time from others, although it has few connections at any moment; and so would peers that connect and do
not authenticate.
"""

from __future__ import annotations

from math import inf
from typing import Final

import trio

__all__ = ["Pace"]

# How many names are remembered; the one that was used longest ago is forgotten first.
REMEMBERED: Final = 4096


class Pace:
    """How often something has happened in the last seconds, by name.

    Args:
        burst: How often it may happen at once.
        rate: How often a second it may happen after that.
        longest: The longest wait, in seconds.
    """

    def __init__(self, burst: int, rate: float, longest: float) -> None:
        self._burst_seconds = burst / rate
        self._step = 1 / rate
        self._longest = longest
        # When each name would be due if it were used at the rate.
        self._due: dict[str, float] = {}

    def delay(self, name: str) -> float:
        """Count one time under a name, and return for how many seconds it has to wait."""
        now = trio.current_time()
        due = max(self._due.pop(name, -inf), now - self._burst_seconds)
        due = min(due + self._step, now + self._longest)
        self._due[name] = due
        if len(self._due) > REMEMBERED:
            del self._due[next(iter(self._due))]
        return max(0.0, due - now)
