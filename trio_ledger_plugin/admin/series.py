"""The rates and durations of the last minutes, for plots."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from .meter import quantile

if TYPE_CHECKING:
    from ..statistics import Statistics

__all__ = ["Point", "Series"]

KEPT_POINTS: Final = 150


@frozen
class Point:
    """What happened between two looks.

    Attributes:
        at: When it ended, in seconds since 1970.
        received: Requests a second from peers.
        sent: Requests a second to peers.
        errors: Errors a second, of both directions.
        median: The median duration of handled requests in milliseconds; None if there were none.
        slow: The duration in milliseconds that 99 of 100 do not exceed; likewise.
    """

    at: float
    received: float
    sent: float
    errors: float
    median: float | None
    slow: float | None


class Series:
    """The points of one plugin, the newest last."""

    def __init__(self) -> None:
        self.points: deque[Point] = deque(maxlen=KEPT_POINTS)
        self._at = 0.0
        self._before: tuple[int, int, int] | None = None
        self._counts: list[int] = []

    def add(self, statistics: Statistics, counts: list[int], errors: int) -> None:
        """Add what happened since the last call; the first one only begins.

        Args:
            statistics: The plugin's statistics now.
            counts: The histogram of handled requests now.
            errors: How many requests have ended with an error, of both directions.
        """
        now = trio.current_time()
        sums = statistics.requests_received, statistics.requests_sent, errors
        if self._before is not None and now > self._at:
            seconds = now - self._at
            received, sent, failed = ((new - old) / seconds for new, old in zip(sums, self._before, strict=True))
            new_counts = [new - old for new, old in zip(counts, self._counts, strict=True)]
            median, slow = (_milliseconds(quantile(new_counts, share)) for share in (0.5, 0.99))
            self.points.append(Point(time.time(), max(received, 0.0), max(sent, 0.0), failed, median, slow))
        self._at, self._before, self._counts = now, sums, list(counts)


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
