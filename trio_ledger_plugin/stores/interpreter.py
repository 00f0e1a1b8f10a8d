"""The interpreter's lock, which a busy loop hardly ever leaves to a store's threads.

A thread that comes back from the database needs the lock. Trio's thread gives it up with each system call, but only for
some microseconds, which is less than it takes to wake the other thread. Each time the other thread wakes in vain, the
time begins anew after which it could demand the lock. So each statement of a transaction may wait for milliseconds.

Invariants: Trio's thread pauses only while a job has waited for longer than it usually takes, and for a sixth of its
time at most (on Linux), however many stores there are. A loop that has nothing to do does not run for this.
"""

from __future__ import annotations

import time
from typing import Final

import trio

__all__ = ["Pauses", "StoreJobs", "current_pauses"]

# How long a thread may take, in seconds, before Trio's thread pauses for it.
PATIENCE: Final = 0.001
# How long Trio's thread works between two pauses, at least, and, between two for the same store, as a share of the time
# that its thread has taken: a database that does not answer must not slow down everything else.
WORK: Final = 0.0004
SHARE: Final = 0.1
# How long it pauses, at least. Linux takes some 50 us longer to wake it, in which another thread gets the lock.
PAUSE: Final = 0.00001
# After so many turns of the loop without a job it is not called in each turn any longer, which takes 1 us.
IDLE_TURNS: Final = 1000


class Pauses(trio.abc.Instrument):
    """The pauses of a thread of Trio for the threads of all stores; used in Trio's thread only.

    Whoever waits for the lock can get it in any of them, so there are not more of them if there are more stores.
    """

    def __init__(self) -> None:
        self._waiting: set[StoreJobs] = set()
        self._due = 0.0
        self._idle_turns = 0
        self._is_called = False

    def add(self, jobs: StoreJobs) -> None:
        """Pause for a store from now on, when its jobs take long."""
        self._waiting.add(jobs)
        self._idle_turns = 0
        if not self._is_called:
            self._is_called = True
            trio.lowlevel.add_instrument(self)

    def discard(self, jobs: StoreJobs) -> None:
        """Pause for a store no longer."""
        self._waiting.discard(jobs)

    def before_io_wait(self, timeout: float) -> None:  # noqa: ARG002 (sockets may be ready, whatever the timeout is)
        """Pause if it is time to; Trio calls this in each turn of its loop."""
        if not self._waiting:
            self._idle_turns += 1
            if self._idle_turns >= IDLE_TURNS:
                self._is_called = False
                trio.lowlevel.remove_instrument(self)
        elif (now := time.monotonic()) >= self._due:
            if any(now >= jobs.due for jobs in self._waiting):
                time.sleep(PAUSE)
                # Others may have kept the lock for long.
                now = time.monotonic()
                for jobs in self._waiting:
                    jobs.handle_pause(now)
            # Looking through the stores takes time as well.
            self._due = now + WORK


_pauses: trio.lowlevel.RunVar[Pauses] = trio.lowlevel.RunVar("pauses for stores")


def current_pauses() -> Pauses:
    """Return the pauses of this Trio run."""
    try:
        return _pauses.get()
    except LookupError:
        pauses = Pauses()
        _pauses.set(pauses)
        return pauses


class StoreJobs:
    """The jobs that the threads of one store have; used in Trio's thread only.

    Args:
        pauses: The pauses of Trio's thread.

    Attributes:
        due: When to pause for them, in monotonic time.
    """

    def __init__(self, pauses: Pauses) -> None:
        self._pauses = pauses
        self._count = 0
        self._since = 0.0
        self.due: float = 0.0

    def begin(self) -> None:
        """Handle that a job was given to the threads."""
        self._count += 1
        if self._count == 1:
            self._restart()
            self._pauses.add(self)

    def end(self, count: int) -> None:
        """Handle that a thread is done with so many jobs."""
        self._count -= count
        if self._count:
            self._restart()
        else:
            self.leave()

    def leave(self) -> None:
        """Wait for the threads no longer, whether they are done or not."""
        self._pauses.discard(self)

    def handle_pause(self, now: float) -> None:
        """Handle that Trio's thread has paused, for these jobs as well."""
        self.due = max(self.due, now + max(WORK, (now - self._since) * SHARE))

    def _restart(self) -> None:
        self._since = time.monotonic()
        self.due = self._since + PATIENCE
