"""The tasks of a plugin, inside one task in the caller's nursery.

Invariant: every task of a plugin is a descendant of that one task and ends with it. That task raises only the plugin's
fatal error. When the tasks are cancelled, a commit in progress has a moment to finish and to be acknowledged;
everything else ends at once.
"""

from __future__ import annotations

import contextvars
from math import inf
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from ..errors import PluginClosedError
from ..parking import Waiter, park, start_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from .timers import Timers

    OnEnd = Callable[[Exception | None, bool], Exception | None]
    Waits = Iterable[Callable[[], Awaitable[None]]]
    Work = Callable[[trio.CancelScope], Awaitable[None]]

__all__ = ["TaskGroup", "finish_within", "run_all", "run_to_end", "unwrap_group", "without_cancellation"]

# How long a commit in progress delays the end of the tasks, and how long its acknowledgement may take, in seconds.
COMMIT_SECONDS = 0.25
ANSWER_SECONDS = 0.05
# How many tasks wait for further work.
MOST_IDLE = 128
# How long before its deadline ``finish_within`` begins to finish, at the latest.
FINISH_SECONDS = 0.5


ErrorT = TypeVar("ErrorT", bound=BaseException)


def unwrap_group(error: ErrorT) -> ErrorT:
    """Return the error within nested groups of one error each; another error is returned as it is."""
    inner: Any = error
    while isinstance(inner, BaseExceptionGroup) and len(inner.exceptions) == 1:
        inner = inner.exceptions[0]
    return cast("ErrorT", inner)


def without_cancellation(error: BaseException) -> BaseException | None:
    """Return what an exception says besides a cancellation; None when it says nothing else."""
    if isinstance(error, BaseExceptionGroup):
        rest = error.split(trio.Cancelled)[1]
        return None if rest is None else unwrap_group(rest)
    return None if isinstance(error, trio.Cancelled) else error


async def run_all(functions: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Run functions at the same time. An error, such as Ctrl-C, is raised without a group.

    Cancellation: Cancels them.
    """
    try:
        async with trio.open_nursery() as nursery:
            for function in functions:
                start_task(nursery, function)
    except BaseExceptionGroup as group:
        error = without_cancellation(group)
        if error is None:
            raise
        raise error from error.__cause__


async def run_to_end(function: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Call a function; if the caller is cancelled, the function has some time to end by itself.

    Args:
        function: The function.
        seconds: For how many seconds it may go on.

    Cancellation: Is met when the function has ended; after that time, the function is cancelled.
    """
    # The deadline is set when the caller is cancelled.
    going_on, waiting = trio.CancelScope(shield=True, deadline=inf), trio.CancelScope()

    async def wait_cancelled() -> None:
        with waiting:
            try:
                await trio.sleep_forever()
            finally:
                going_on.deadline = trio.current_time() + seconds

    async def run() -> None:
        with going_on:
            await function()
        waiting.cancel()

    await run_all((wait_cancelled, run))


async def finish_within(seconds: float, handlers: Waits, calls: Waits, finish: Waits) -> None:
    """Wait for handlers and calls, and then finish, all within so many seconds.

    During a flood of requests, some handler runs at any moment. So calls are waited for at the same time, and shortly
    before the end what has to be done at the end begins, whether handlers still run or not.

    Args:
        seconds: The time for all.
        handlers: Functions that wait for handlers, called in turn.
        calls: Functions that wait for calls, called at the same time.
        finish: What is called then, in turn.

    Cancellation: Cancels them.
    """
    no_handlers = trio.Event()

    async def wait_for_handlers() -> None:
        await _run_in_turn(handlers)
        no_handlers.set()

    async def end() -> None:
        with trio.move_on_after(seconds - min(FINISH_SECONDS, seconds / 4)):
            await run_all((no_handlers.wait, *calls))
        await _run_in_turn(finish)

    with trio.move_on_after(seconds):
        await run_all((wait_for_handlers, end))


async def _run_in_turn(functions: Waits) -> None:
    for function in functions:
        await function()


def _new_scope() -> trio.CancelScope:
    """Return the scope of a task group's tasks, shielded so that commits can finish.

    Its deadline is set when the scope outside is cancelled, which ``_pass_on_cancellation`` waits for.
    """
    return trio.CancelScope(shield=True, deadline=inf)


class Commit:
    """One commit in progress, as a context manager; a class, because this costs half of what a generator does.

    Args:
        commits: The commits in progress.
        ended: Called when this one has ended.
    """

    __slots__ = ("_commits", "_ended")

    def __init__(self, commits: set[Commit], ended: Callable[[], None]) -> None:
        self._commits = commits
        self._ended = ended

    def __enter__(self) -> None:
        self._commits.add(self)

    def __exit__(self, *_exception: object) -> None:
        self._commits.remove(self)
        self._ended()


class _IdleTask(Waiter):
    """A task that waits for further work."""

    __slots__ = ("_idle", "work")

    def __init__(self, idle: list[_IdleTask]) -> None:
        super().__init__()
        self._idle = idle
        self.work: Work | None = None

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        if self in self._idle:
            self._idle.remove(self)
        return super().abandon(raise_cancel)


class TaskGroup:
    """Runs the tasks of one plugin in a task in the caller's nursery.

    Args:
        nursery: The caller's nursery.
        timers: The plugin's timers, which run in one of the tasks.
        on_end: Called when the tasks have ended, for any reason, with the exception of a task and whether they were
            cancelled. The exception that it returns is raised in the nursery.
        is_busy: Returns whether the tasks are still needed, after ``close_when_idle()``.
    """

    def __init__(self, nursery: trio.Nursery, timers: Timers, on_end: OnEnd, is_busy: Callable[[], bool]) -> None:
        self._caller = nursery
        self._timers = timers
        self._on_end = on_end
        self._is_busy = is_busy
        # Tasks start in a copy of this context, never in that of the request that happens to start them.
        self.context: contextvars.Context = contextvars.copy_context()
        self._nursery: trio.Nursery | None = None
        # The group's own scope: it can be cancelled before its first step.
        self._scope = _new_scope()
        self._idle: list[_IdleTask] = []
        self._commits: set[Commit] = set()
        self._ending = False
        self._commit_ended = trio.lowlevel.ParkingLot()
        self._opened = trio.Event()
        self._opened.set()
        self._ended = trio.Event()
        self._ended.set()
        #: While true, the tasks end by themselves as soon as the plugin is not busy.
        self.closing_when_idle: bool = False

    @property
    def running(self) -> bool:
        """Whether tasks can be started."""
        return self._nursery is not None

    @property
    def ended(self) -> bool:
        """Whether no task is left and none is about to start."""
        return self._ended.is_set()

    async def start(self) -> None:
        """Open the group; does nothing if it is open. It can end at once, if the caller's nursery is cancelled.

        Raises:
            PluginClosedError: The caller's nursery has ended.

        Cancellation: Safe at any time. The group opens anyway, and the next caller finds it open.
        """
        if self._nursery is None:
            if self._opened.is_set() and not self._ended.is_set():
                # The tasks of the previous opening are ending; their end must not change the new state.
                await self._ended.wait()
            if self._ended.is_set():
                self._open()
            await self._opened.wait()

    def _open(self) -> None:
        try:
            self.context.run(start_task, self._caller, self._root)
        except RuntimeError as error:
            raise PluginClosedError("the nursery that the plugin was made in has ended") from error
        self._scope = _new_scope()
        self._ending = self.closing_when_idle = False
        self._opened, self._ended = trio.Event(), trio.Event()

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task that ends with the plugin; an exception that it raises is fatal to the plugin.

        Raises:
            RuntimeError: The group is not open.
        """
        self.spawn_in(self.context, function, *args)

    def spawn_in(self, context: contextvars.Context, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task, as ``spawn`` does, in a copy of a context.

        Raises:
            RuntimeError: The group is not open.
        """
        if self._nursery is None:
            raise RuntimeError("the plugin's tasks have ended")
        context.run(start_task, self._nursery, function, *args)

    # Ctrl-C must not come between taking an idle task and waking it, nor between its entry and its sleep: work that is
    # given to a task that does not sleep would be lost.
    @trio.lowlevel.enable_ki_protection
    def spawn_again(self, work: Work) -> None:
        """Do what ``spawn`` does, in a task that has done other work before if one waits; that takes half the time.

        Args:
            work: It runs in a copy of the group's context. It is called with the task's scope, which can be cancelled
                while it runs; then the task ends with it.

        Raises:
            RuntimeError: The group is not open.
        """
        if self._idle and self._nursery is not None:
            idle = self._idle.pop()
            idle.work = work
            assert idle.task is not None
            idle.task.context = self.context.copy()
            idle.wake()
        else:
            self.spawn(self._do_work, work)

    async def _do_work(self, work: Work | None) -> None:
        idle = _IdleTask(self._idle)
        with trio.CancelScope() as scope:
            while work is not None:
                await work(scope)
                if scope.cancel_called or len(self._idle) == MOST_IDLE:
                    return
                await self._wait_for_work(idle)
                work = idle.work

    @trio.lowlevel.enable_ki_protection
    async def _wait_for_work(self, idle: _IdleTask) -> None:
        self._idle.append(idle)
        await park(idle)

    def cancel(self) -> None:
        """Cancel every task, once commits in progress have ended; ``wait_ended()`` waits for the tasks."""
        self._ending = True
        if self._commits:
            self._end_within(COMMIT_SECONDS)
        else:
            self._scope.cancel()

    def _end_within(self, seconds: float) -> None:
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + seconds)

    def committing(self) -> Commit:
        """Return a context manager that delays the end of the tasks during a commit and its acknowledgement."""
        return Commit(self._commits, self._end_commit)

    def _end_commit(self) -> None:
        if self._commit_ended:
            self._commit_ended.unpark_all()
        if self._ending and not self._commits:
            self._end_within(ANSWER_SECONDS)

    async def wait_committed(self) -> None:
        """Wait for the commits that are in progress now, but not for later ones: a busy server always has some.

        Cancellation: Safe at any time.
        """
        in_progress = self._commits.copy()
        while not in_progress.isdisjoint(self._commits):
            await self._commit_ended.park()

    async def wait_ended(self) -> None:
        """Wait until no task of the plugin is left.

        Cancellation: Safe at any time.
        """
        await self._ended.wait()

    def close_when_idle(self) -> None:
        """Make the tasks end by themselves as soon as the plugin is not busy."""
        self.closing_when_idle = True
        self._timers.wake()

    def wake(self) -> None:
        """Check now whether the tasks are still needed: the plugin may no longer be busy."""
        if self.closing_when_idle:
            self._timers.wake()

    def _is_needed(self) -> bool:
        return not self.closing_when_idle or self._is_busy()

    async def _root(self) -> None:
        crash: Exception | None = None
        try:
            async with trio.open_nursery() as outside:
                start_task(outside, self._pass_on_cancellation)
                try:
                    with self._scope:
                        async with trio.open_nursery() as nursery:
                            self._nursery = nursery
                            start_task(nursery, self._run_timers)
                            self._opened.set()
                except* Exception as group:  # noqa: BLE001 (any exception from a task fails the plugin)
                    crash = group
                outside.cancel_scope.cancel()
        finally:
            # The timers' task closes the group when it ends by itself.
            cancelled, self._nursery = self._nursery is not None, None
            self._timers.clear()
            self._ended.set()
            fatal = self._on_end(crash, cancelled)
        if fatal is not None:
            raise fatal

    async def _pass_on_cancellation(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.cancel()

    async def _run_timers(self) -> None:
        await self._timers.run(self._is_needed)
        # Only idle workers and lost connections are left.
        self._nursery = None
        self.cancel()
