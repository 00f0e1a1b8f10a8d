"""How often something is looked at.

Invariant: looking takes at most a small part of the time, however much there is to look at.
"""

from __future__ import annotations

from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..runtime.plugin_log import PluginLog

__all__ = ["PAGE_SECONDS", "PATIENCE", "Cached", "Looks", "rest_after"]

T = TypeVar("T")

# Of what is spent on looking, how many times as much passes before the next look, and the longest rest in seconds.
REST: Final = 250
LONGEST_REST: Final = 60.0
#: How long an answer to the page waits for a look, in seconds; the page soon asks again.
PAGE_SECONDS: Final = 0.03
#: How long other answers wait for looks: longer than a store may take for one answer, and less than an answer may take.
PATIENCE: Final = 7.0


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


class Looks:
    """Looks at something in a task of its own, when it is asked for, but not too often.

    Args:
        look: Looks once, and returns how long that took, in seconds.
        least: For how many seconds a look is good enough at least.
        subject: What is looked at, for the log.
        log: Where it is logged that a look failed.
    """

    def __init__(self, look: Callable[[], Awaitable[float]], least: float, subject: str, log: PluginLog) -> None:
        self._look = look
        self._least = least
        self._subject = subject
        self._log = log
        self._wanted = trio.Event()
        self._looked = trio.Event()
        # Until when the last look is good enough, and whether that has been taken back since it began.
        self._until = -inf
        self._is_stale = False
        #: Whether the last look that is over failed.
        self.has_failed: bool = False

    async def run(self) -> None:
        """Look whenever it is asked for, until cancelled.

        Cancellation: Safe at any time.
        """
        while True:
            await self._wanted.wait()
            self._is_stale = False
            began = trio.current_time()
            try:
                seconds = await self._look()
                self.has_failed = False
            except Exception as error:  # noqa: BLE001 (the server, which is only watched, goes on)
                self._log.once(self._subject).error("the admin page cannot look at %s: %O", self._subject, error)
                seconds = trio.current_time() - began
                self.has_failed = True
            if not self._is_stale:
                self._until = trio.current_time() + rest_after(seconds, self._least)
            # Who has asked since the look began gets what it saw. Otherwise another look would follow at once.
            self._wanted = trio.Event()
            self._looked.set()
            self._looked = trio.Event()

    def ask(self) -> None:
        """Have it looked at, if it is time, without waiting for that."""
        if trio.current_time() >= self._until:
            self._wanted.set()

    async def wait(self, at_most: float = inf) -> bool:
        """Wait until the last look is good enough.

        Args:
            at_most: For how many seconds; what was seen last may then be old, or nothing at all.

        Returns:
            Whether the last look that is over succeeded; the log says why if not. True before the first one is over.

        Cancellation: Safe at any time; the look goes on.
        """
        with trio.move_on_after(at_most):
            is_due = trio.current_time() >= self._until
            while is_due:
                self._wanted.set()
                await self._looked.wait()
                # Only if it was taken back: what one has waited for is good enough, however late this task runs.
                is_due = self._until == -inf
        return not self.has_failed

    def expire(self) -> None:
        """Have it looked at again before the next answer, because it has changed."""
        self._is_stale = True
        self._until = -inf
