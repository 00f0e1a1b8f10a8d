"""How often something is looked at.

Invariant: looking takes at most a small part of the time, however much there is to look at.
"""

from __future__ import annotations

from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Cached", "rest_after"]

T = TypeVar("T")

# Of what is spent on looking, how many times as much passes before the next look, and the longest rest in seconds.
REST: Final = 250
LONGEST_REST: Final = 60.0


def rest_after(seconds: float, least: float) -> float:
    """Return how long to rest after a look that took so many seconds, and ``least`` seconds at least."""
    return min(max(least, seconds * REST), max(least, LONGEST_REST))


class Cached(Generic[T]):
    """A value that is computed when it is asked for, but not too often.

    Args:
        compute: Computes it, without waiting for anything.
        least: For how many seconds it is kept at least.
    """

    def __init__(self, compute: Callable[[], T], least: float) -> None:
        self._compute = compute
        self._least = least
        self._value: T | None = None
        self._until = -inf
        #: When it was computed, on Trio's clock.
        self.at: float = -inf

    def get(self) -> T:
        """Return the value."""
        now = trio.current_time()
        if self._value is None or now >= self._until:
            began = perf_counter()
            self._value = self._compute()
            self.at = now
            self._until = now + rest_after(perf_counter() - began, self._least)
        return self._value
