"""A system clock that is wrong, and that steps while the program runs; it is set before anything else is imported.

The environment variable has two numbers of seconds: how wrong the clock is at first, and after a short while.
"""

from __future__ import annotations

import os
import time
from typing import Final

__all__ = ["VARIABLE", "set_wrong"]

VARIABLE: Final = "CRASH_CLOCK"
# When it steps, in seconds after the start: while transfers are under way.
STEP_AFTER: Final = 0.2


def set_wrong() -> None:
    """Replace ``time.time``, as long as nothing has imported it."""
    first, then = (float(shift) for shift in os.environ.get(VARIABLE, "0 0").split())
    real, began = time.time, time.monotonic()

    def wrong() -> float:
        return real() + (first if time.monotonic() - began < STEP_AFTER else then)

    time.time = wrong


set_wrong()
