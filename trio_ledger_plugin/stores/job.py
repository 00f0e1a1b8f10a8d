"""One caller's work for a store's thread.

Invariant: either a thread runs it or its caller withdraws it, whichever claims it first.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..parking import Waiter, park

if TYPE_CHECKING:
    from collections.abc import Callable

    import outcome
    import trio

__all__ = ["Job"]


class Job(Waiter):
    """One caller's work."""

    __slots__ = ("_claimed", "_result", "over", "withdrawn", "work")

    def __init__(self, work: Callable[[Any], Any]) -> None:
        super().__init__()
        self.work: Callable[[Any], Any] = work
        self._claimed = threading.Lock()
        self._result: outcome.Outcome[Any] | None = None
        self.withdrawn: bool = False
        #: Whether its transaction has ended; its result may be on its way.
        self.over: bool = False

    def claim(self) -> bool:
        """Claim the job, to run it or to withdraw it; return False if it has been claimed already."""
        return self._claimed.acquire(blocking=False)

    async def wait(self) -> Any:  # noqa: ANN401 (what the work returns)
        """Wait for the result.

        Cancellation: Withdraws the job, unless the thread has begun it.
        """
        return await park(self) if self._result is None else self._result.unwrap()

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        """Withdraw the job, because its caller is cancelled."""
        self.withdrawn = self.claim()
        return super().abandon(raise_cancel)

    def deliver(self, result: outcome.Outcome[Any]) -> None:
        """Give the caller its result, if it is still waiting."""
        if self.task is None:
            self._result = result
        self.wake(result)
