"""The interpreter's lock, which a busy loop hardly ever leaves to a store's threads.

A thread that comes back from the database needs the lock. Trio's thread gives it up with each system call, but only for
some microseconds, which is less than it takes to wake the other thread. Each time the other thread wakes in vain, the
time begins anew after which it could demand the lock. So each statement of a transaction may wait for milliseconds.

Invariants: Trio's thread pauses only while a job has waited for longer than it usually takes, and only for a small part
of its time, however many stores there are. A loop that has nothing to do does not run for this.
"""

from __future__ import annotations

import time
from typing import Final

import trio

__all__ = ["LockSharing", "Pauses", "current_pauses"]

# How long a thread may take, in seconds, before Trio's thread pauses for it.
PATIENCE: Final = 0.001
# How long Trio's thread works between two pauses, at least, and, between two for the same store, as a share of the time
# that its thread has taken: a database that does not answer must not slow down everything else.
WORK: Final = 0.0004
SHARE: Final = 0.1
# How long it pauses, at least. Waking takes some 50 us longer, in which the other thread gets the lock.
PAUSE: Final = 0.00001


class Pauses:
    """The pauses of a thread of Trio; whoever waits for the lock can get it in any of them."""

    def __init__(self) -> None:
        self._due = 0.0

    def pause(self, now: float) -> None:
        """Pause, unless it has just been done for another store.

        Args:
            now: The monotonic time.
        """
        if now >= self._due:
            time.sleep(PAUSE)
            # Others may have kept the lock for long.
            self._due = time.monotonic() + WORK


_pauses: trio.lowlevel.RunVar[Pauses] = trio.lowlevel.RunVar("pauses for stores")


def current_pauses() -> Pauses:
    """Return the pauses of this Trio run, which its stores share."""
    try:
        return _pauses.get()
    except LookupError:
        pauses = Pauses()
        _pauses.set(pauses)
        return pauses


class LockSharing(trio.abc.Instrument):
    """Has Trio's thread pause for the threads of a store that have jobs; used in Trio's thread only.

    Args:
        pauses: The thread's pauses.
    """

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._jobs = 0
        self._since = 0.0
        self._due = 0.0

    def begin_job(self) -> None:
        """Handle that a job was given to the threads."""
        self._jobs += 1
        if self._jobs == 1:
            self._begin_waiting()

    def end_jobs(self, count: int) -> None:
        """Handle that a thread is done with so many jobs."""
        self._jobs -= count
        if self._jobs:
            self._begin_waiting()

    def _begin_waiting(self) -> None:
        self._since = time.monotonic()
        self._due = self._since + PATIENCE

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 (sockets may be ready, whatever the timeout is)
        """Pause if it is time to; Trio calls this in each turn of its loop."""
        if self._jobs and (now := time.monotonic()) >= self._due:
            self._pauses.pause(now)
            self._due = now + max(WORK, (now - self._since) * SHARE)
