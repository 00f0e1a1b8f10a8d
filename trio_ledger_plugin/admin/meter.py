"""How long requests take, and which errors they end with.

Invariant: counting costs little for each request. Every error is counted. Requests are timed all the time while they
are rare, and otherwise for a sixteenth of the time.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from ..codec.ilp import REJECT
from ..errors import LedgerPluginError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..runtime.handlers import AnyReply

__all__ = ["BOUNDS", "ReplyMeter", "quantile"]

#: The upper bounds of the histogram's buckets, in seconds; a last bucket has no bound.
BOUNDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# How long requests are timed, and not timed, while more than so many a second are.
TIMED_SECONDS: Final = 0.05
UNTIMED_SECONDS: Final = 0.75
RARE: Final = 200
# How often it is looked whether they are rare.
LOOK_SECONDS: Final = 0.25
CODE: Final = re.compile("[FTR][0-9]{2}")
# A peer may send any code; those past this number are counted together.
MOST_CODES: Final = 64
OTHER: Final = "other"


class ReplyMeter:
    """The replies of one direction.

    Attributes:
        counts: How many timed requests are in each bucket.
        seconds: How long they took together.
        is_timing: Whether requests that end now are timed.
        errors: How many requests ended with each error: a code of BTP or of an ILP Reject, or an error's name.
    """

    __slots__ = ("counts", "errors", "is_timing", "seconds")

    def __init__(self) -> None:
        self.counts: list[int] = [0] * (len(BOUNDS) + 1)
        self.seconds: float = 0.0
        self.errors: Counter[str] = Counter()
        self.is_timing: bool = True

    def count(self, began: float, reply: AnyReply) -> None:
        """Count a reply; ``LedgerPlugin.watch_requests`` calls this."""
        # This takes a share of every request's time, so that what is rare is elsewhere.
        if reply.__class__ is not bytes or not reply or reply[0] == REJECT:
            self._count_error(reply)
        if self.is_timing:
            seconds = trio.current_time() - began
            self.counts[bisect_left(BOUNDS, seconds)] += 1
            self.seconds += seconds

    def _count_error(self, reply: AnyReply) -> None:
        """Count the error that a reply is, if it is one."""
        if isinstance(reply, LedgerPluginError):
            code = reply.code or reply.name
        elif isinstance(reply, bytes) and reply:
            code = _code_of(reply)
        else:
            return
        known = code in self.errors or len(self.errors) < MOST_CODES
        self.errors[code if known and code.isascii() and code.isalnum() else OTHER] += 1


def _code_of(reject: bytes) -> str:
    """Return the code of an ILP Reject, behind its type and its length, without decoding it all."""
    size = reject[1] if len(reject) > 1 else 0
    start = 2 + (size & 0x7F if size & 0x80 else 0)
    code = reject[start : start + 3].decode("latin-1")
    return code if CODE.fullmatch(code) else OTHER


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return a quantile of a histogram, in seconds, from the bounds of its bucket; None if it is empty.

    Args:
        counts: How many are in each bucket.
        share: Which one, such as 0.5 for the median.
    """
    left = share * sum(counts)
    if not left:
        return None
    lower = 0.0
    for upper, count in zip(BOUNDS, counts, strict=False):
        if count >= left:
            return lower + (upper - lower) * left / count
        left -= count
        lower = upper
    return BOUNDS[-1]
