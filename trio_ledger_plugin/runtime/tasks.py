"""The home of a plugin's tasks, and the one task that keeps its deadlines.

The law of this module: every task of a plugin is a child of one task in the caller's nursery, so that it ends with
it. Nothing but the plugin's own fatal error ever leaves that task. What is being committed when the end comes is given
a moment to be committed and told to the peer; everything else ends at once.
"""

from __future__ import annotations

import contextvars
import heapq
from contextlib import contextmanager
from itertools import count
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import trio

from ..errors import PluginClosedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

__all__ = ["TaskGroup", "Timer", "unwrap_group"]

# How long a commit under way holds up the end of the tasks, and how long what it has to say may take to leave.
COMMIT_SECONDS = 0.25
TELL_SECONDS = 0.05


ErrorT = TypeVar("ErrorT", bound=BaseException)


def unwrap_group(error: ErrorT) -> ErrorT:
    """Take a lone error out of the groups that nurseries have put it into."""
    inner: Any = error
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return cast("ErrorT", inner)


def _home_scope() -> trio.CancelScope:
    """Return the scope of a home: shielded for the commits' sake.

    Its deadline comes with the cancellation outside, which ``_pass_on_cancellation`` watches for.
    """
    return trio.CancelScope(shield=True, deadline=inf)


class Timer(Protocol):
    """Something whose deadlines the sweeper keeps, such as a link.

    The deadlines that it gains after a visit must not lie before the visit that it asked for.
    """

    def sweep(self, now: float) -> float:
        """Act on what is due at ``now`` and return the time of the next visit; ``inf`` ends the visits."""


class OnEnd(Protocol):
    """What a plugin does when its tasks have ended."""

    def __call__(self, crash: Exception | None, *, cancelled: bool) -> Exception | None:
        """Settle the plugin's state; ``crash`` left a task. What is returned is raised into the nursery."""


class TaskGroup:
    """Runs the tasks of one plugin inside a nursery of the caller's.

    Args:
        nursery: The caller's nursery.
        on_end: Called when the tasks have ended, whyever.
    """

    def __init__(self, nursery: trio.Nursery, on_end: OnEnd) -> None:
        self._caller = nursery
        self._on_end = on_end
        # Tasks start in a copy of this, never in the context of the request that happens to need them.
        self.context: contextvars.Context = contextvars.copy_context()
        self._nursery: trio.Nursery | None = None
        # Of the home itself: it can be cancelled before its first step.
        self._scope = _home_scope()
        self._commits: set[object] = set()
        self._ending = False
        self._one_committed = trio.lowlevel.ParkingLot()
        self._opened = trio.Event()
        self._opened.set()
        self._alarm = trio.CancelScope()
        self._order = count()
        self._visits: list[tuple[float, int, Timer]] = []
        # Visited from the start, each time the home is opened.
        self.residents: list[Timer] = []
        self._ended = trio.Event()
        self._ended.set()
        # While true, the tasks end by themselves as soon as ``busy`` is false.
        self.leaving: bool = False
        self.busy: Callable[[], bool] = bool

    @property
    def running(self) -> bool:
        """Whether tasks can be started."""
        return self._nursery is not None

    @property
    def ended(self) -> bool:
        """Whether no task is left, and none is about to begin."""
        return self._ended.is_set()

    async def start(self) -> None:
        """Open the home; does nothing when it is open. It can end at once, when the caller's nursery is cancelled.

        Raises:
            PluginClosedError: The caller's nursery has ended.

        Cancellation: Safe at any time; the home opens all the same, and whoever wants it next finds it open.
        """
        if self._nursery is None:
            if self._opened.is_set() and not self._ended.is_set():
                # The home before this one is on its way out, and must not settle the state of this one.
                await self._ended.wait()
            if self._ended.is_set():
                self._open()
            await self._opened.wait()

    def _open(self) -> None:
        try:
            self.context.run(self._caller.start_soon, self._root)
        except RuntimeError as error:
            raise PluginClosedError("the nursery that the plugin was made in has ended") from error
        self._scope = _home_scope()
        self._ending = self.leaving = False
        self._opened, self._ended = trio.Event(), trio.Event()

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that ends with the plugin; an exception that leaves it is fatal to the plugin.

        Raises:
            RuntimeError: The home is not open.
        """
        if self._nursery is None:
            raise RuntimeError("the plugin's tasks have ended")
        self.context.run(self._nursery.start_soon, function, *args)

    def cancel(self) -> None:
        """Cancel every task, after the commits under way if there are any; ``wait_ended()`` waits for them."""
        self._ending = True
        if self._commits:
            self._end_within(COMMIT_SECONDS)
        else:
            self._scope.cancel()

    def _end_within(self, seconds: float) -> None:
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + seconds)

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Hold up the end of the tasks around a commit and what the peer is told of it."""
        commit = object()
        self._commits.add(commit)
        try:
            yield
        finally:
            self._commits.remove(commit)
            self._one_committed.unpark_all()
            if self._ending and not self._commits:
                self._end_within(TELL_SECONDS)

    async def wait_committed(self) -> None:
        """Wait until what is being committed now has been; a busy server is never without commits.

        Cancellation: Safe at any time.
        """
        under_way = self._commits.copy()
        while not under_way.isdisjoint(self._commits):
            await self._one_committed.park()

    async def wait_ended(self) -> None:
        """Wait until no task of the plugin is left.

        Cancellation: Safe at any time.
        """
        await self._ended.wait()

    def watch(self, swept: Timer, when: float) -> None:
        """Have something visited at a time; see ``Timer``."""
        heapq.heappush(self._visits, (when, next(self._order), swept))
        self._alarm.deadline = min(self._alarm.deadline, when)

    def leave(self) -> None:
        """Have the tasks end by themselves as soon as the plugin is not busy."""
        self.leaving = True
        self.look_again()

    def look_again(self) -> None:
        """Have the sweeper look now whether it is still needed."""
        self._alarm.deadline = -inf

    async def _root(self) -> None:
        crash: Exception | None = None
        try:
            async with trio.open_nursery() as outside:
                outside.start_soon(self._pass_on_cancellation)
                try:
                    with self._scope:
                        async with trio.open_nursery() as nursery:
                            self._nursery = nursery
                            nursery.start_soon(self._sweep)
                            self._opened.set()
                except* Exception as group:  # noqa: BLE001 (whatever left a task, the plugin tells of it)
                    crash = group
                outside.cancel_scope.cancel()
        finally:
            # The sweeper closes the home when the tasks end by themselves.
            cancelled, self._nursery = self._nursery is not None, None
            self._visits.clear()
            self._ended.set()
            fatal = self._on_end(crash, cancelled=cancelled)
        if fatal is not None:
            raise fatal

    async def _pass_on_cancellation(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.cancel()

    async def _sweep(self) -> None:
        for swept in self.residents:
            self.watch(swept, trio.current_time())
        while not self.leaving or self.busy():
            now = trio.current_time()
            while self._visits and self._visits[0][0] <= now:
                _, _, swept = heapq.heappop(self._visits)
                again = swept.sweep(now)
                if again < inf:
                    heapq.heappush(self._visits, (again, next(self._order), swept))
            with trio.CancelScope(deadline=self._visits[0][0] if self._visits else inf) as self._alarm:
                await trio.sleep_forever()
        # What is left are workers without work and connections that are lost already.
        self._nursery = None
        self.cancel()
