"""Runs the application's handlers in pooled tasks.

The law of this module: a request that was taken is served by exactly one task, in a fresh context, whatever becomes
of the link it came by. Whoever submits never waits. A data handler past its deadline is answered for at that moment
and cancelled; a money handler is left to finish, since nobody can say whether it has applied the transfer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from ..transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..services import Log
    from .handlers import Reply
    from .tasks import TaskGroup

__all__ = ["Answer", "RequestQueue", "WorkerPool"]

# What a waiting request takes beside its payload: many empty ones must not grow without bound either.
REQUEST_BYTES = 200


# A request's id, what it asks, and for how many bytes it counts.
_Job: TypeAlias = "tuple[int, bytes | Transfer, int]"
Answer: TypeAlias = "Callable[[bytes | Transfer], Awaitable[Reply]]"


class Requester(Protocol):
    """Where requests come from and their replies go."""

    async def reply(self, request_id: int, reply: Reply) -> None:
        """Send a reply, or drop it when the link is gone; may wait for room."""

    def expire(self, request_id: int) -> None:
        """Answer for a data handler that is past its deadline; its own reply is dropped."""


class RequestQueue:
    """The requests of one source: how many run, and those that wait for their turn.

    Transfers run on half of the places at the most: they may wait for a store, and while it hangs data goes on.

    Args:
        pool: The plugin's pool.
        requester: Where the requests come from.
        answer: Runs the application's handler and returns the reply; never raises for it.
    """

    __slots__ = (
        "answer",
        "pool",
        "requester",
        "running",
        "running_bytes",
        "running_transfers",
        "waiting",
        "waiting_bytes",
        "waiting_transfers",
    )

    def __init__(self, pool: WorkerPool, requester: Requester, answer: Answer) -> None:
        self.pool: WorkerPool = pool
        self.requester: Requester = requester
        self.answer: Answer = answer
        self.running: int = 0
        self.running_transfers: int = 0
        # Of the requests and replies that the running handlers hold.
        self.running_bytes: int = 0
        # Made when first needed: an idle connection must cost little.
        self.waiting: deque[_Job] | None = None
        self.waiting_transfers: deque[_Job] | None = None
        self.waiting_bytes: int = 0

    def submit(self, request_id: int, payload: bytes | Transfer, size: int) -> bool:
        """Have a request served; false when too many wait already and it was not taken."""
        if self._may_run(payload, size):
            self._count(payload, size)
            self.pool.run(self, request_id, payload, size)
            return True
        if self.waiting_bytes + size + REQUEST_BYTES > self.pool.waiting_limit:
            return False
        if payload.__class__ is Transfer:
            waiting = self.waiting_transfers = self.waiting_transfers or deque()
        else:
            waiting = self.waiting = self.waiting or deque()
        waiting.append((request_id, payload, size))
        self.waiting_bytes += size + REQUEST_BYTES
        return True

    def _may_run(self, payload: bytes | Transfer, size: int) -> bool:
        """Whether a request more may run; one alone always may."""
        if self.running >= self.pool.limit:
            return False
        if payload.__class__ is Transfer and self.running_transfers >= self.pool.transfer_limit:
            return False
        return self.running_bytes + size <= self.pool.running_limit or not self.running

    def _count(self, payload: bytes | Transfer, size: int) -> None:
        self.running += 1
        self.running_bytes += size
        if payload.__class__ is Transfer:
            self.running_transfers += 1

    def next_job(self, held: int, *, was_transfer: bool) -> _Job | None:
        """Take the request whose turn it is now that one has finished, which held so many bytes; or None."""
        self.running -= 1
        self.running_bytes -= held
        self.running_transfers -= was_transfer
        if not self.waiting and not self.waiting_transfers:
            return None
        job = self._take()
        if job is not None:
            while (further := self._take()) is not None:
                # A large one has made room for many small ones.
                self.pool.run(self, *further)
        return job

    def _take(self) -> _Job | None:
        """Count the next one that may run as running, and return it."""
        for waiting in (self.waiting_transfers, self.waiting):
            if waiting and self._may_run(*waiting[0][1:]):
                job = waiting.popleft()
                self.waiting_bytes -= job[2] + REQUEST_BYTES
                self._count(job[1], job[2])
                return job
        return None

    def abandon(self) -> None:
        """Forget the requests that wait: nobody is there to hear the replies."""
        self.waiting = self.waiting_transfers = None
        self.waiting_bytes = 0


class _Worker:
    """One pooled task and the request that it serves."""

    __slots__ = ("answered", "held", "is_transfer", "payload", "pool", "queue", "request_id", "scope", "task")

    def __init__(self, pool: WorkerPool) -> None:
        self.pool: WorkerPool = pool
        self.scope: trio.CancelScope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None
        self.queue: RequestQueue | None = None
        self.request_id: int = 0
        self.payload: bytes | Transfer = b""
        self.is_transfer: bool = False
        self.answered: bool = False
        self.held: int = 0

    def begin(self, queue: RequestQueue, request_id: int, payload: bytes | Transfer, size: int) -> None:
        self.queue, self.request_id, self.payload, self.held, self.answered = queue, request_id, payload, size, False
        self.is_transfer = payload.__class__ is Transfer

    def leave_pool(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self.pool.idle.remove(self)
        return trio.lowlevel.Abort.SUCCEEDED


class WorkerPool:
    """The handler tasks of one plugin; a source may have ``limit`` of them run at once.

    Args:
        tasks: Owns the tasks.
        log: Told of what a handler raises where no reply can carry it.
        limit: How many handlers may run for one source.
        running_limit: How many bytes the handlers that run for one source may hold; further requests wait.
        waiting_limit: How many bytes of requests may wait in one source.
        timeout: Seconds that a data handler may take.
    """

    def __init__(
        self, tasks: TaskGroup, log: Log, *, limit: int, running_limit: int, waiting_limit: int, timeout: float
    ) -> None:
        self._tasks = tasks
        self._log = log
        self.limit: int = limit
        self.transfer_limit: int = max(1, limit // 2)
        self.running_limit: int = running_limit
        self.waiting_limit: int = waiting_limit
        self._timeout = timeout
        self.idle: list[_Worker] = []
        self._least_idle = 0
        # Deadlines in the order in which the requests began: the first is the first to be due.
        self._deadlines: dict[_Worker, float] = {}
        self._quiet: trio.Event | None = None
        self.running: int = 0

    def run(self, queue: RequestQueue, request_id: int, payload: bytes | Transfer, size: int) -> None:
        """Serve one request in a task that is free, or in a new one."""
        self.running += 1
        if not self.idle:
            worker = _Worker(self)
            worker.begin(queue, request_id, payload, size)
            self._tasks.spawn(self._work, worker)
            return
        worker = self.idle.pop()
        if len(self.idle) < self._least_idle:
            self._least_idle = len(self.idle)
        worker.begin(queue, request_id, payload, size)
        task = worker.task
        assert task is not None
        task.context = self._tasks.context.copy()
        trio.lowlevel.reschedule(task)

    async def wait_quiet(self) -> None:
        """Wait until no handler runs.

        Cancellation: Safe at any time.
        """
        while self.running:
            if self._quiet is None:
                self._quiet = trio.Event()
            await self._quiet.wait()

    def sweep(self, now: float) -> float:
        """Answer for handlers past their deadline and let workers go that were not needed lately."""
        unneeded = self.idle[: self._least_idle]
        del self.idle[: self._least_idle]
        self._least_idle = len(self.idle)
        for worker in unneeded:
            worker.queue = None
            assert worker.task is not None
            trio.lowlevel.reschedule(worker.task)
        for worker, deadline in list(self._deadlines.items()):
            if deadline > now:
                return deadline
            del self._deadlines[worker]
            if worker.queue is not None and not isinstance(worker.payload, Transfer):
                worker.answered = True
                worker.queue.requester.expire(worker.request_id)
                worker.scope.cancel()
        return now + self._timeout

    async def _work(self, worker: _Worker) -> None:
        worker.task = trio.lowlevel.current_task()
        try:
            with worker.scope:
                while worker.queue is not None:
                    await self._serve(worker, worker.queue)
        except* Exception as group:  # noqa: BLE001 (a handler may raise anything)
            # A handler's task group can raise errors beside its cancellation; the request was answered before.
            self._log.error("a handler raised while it was cancelled: %s", group)
        finally:
            self._deadlines.pop(worker, None)
            if worker.queue is not None:
                self._count_end()
                self._tell_of_cancelled(worker.payload)
        if worker.queue is not None:
            self._pass_on(worker, worker.queue)

    async def _serve(self, worker: _Worker, queue: RequestQueue) -> None:
        requester = queue.requester
        self._deadlines[worker] = trio.current_time() + self._timeout
        reply = await queue.answer(worker.payload)
        # What ends from here on is no handler any more.
        worker.payload = b""
        self._deadlines.pop(worker, None)
        if reply.__class__ is bytes and len(reply) > worker.held:
            # A peer that does not read has it wait.
            queue.running_bytes += len(reply) - worker.held
            worker.held = len(reply)
        if not worker.answered:
            await requester.reply(worker.request_id, reply)
        if worker.scope.cancel_called:
            # This handler went on through its cancellation; the scope is spent.
            await trio.lowlevel.checkpoint()
        job = queue.next_job(worker.held, was_transfer=worker.is_transfer)
        if job is None:
            self._count_end()
            worker.queue = None
            self.idle.append(worker)
            await trio.lowlevel.wait_task_rescheduled(worker.leave_pool)
        else:
            worker.begin(queue, *job)
            assert worker.task is not None
            worker.task.context = self._tasks.context.copy()
            await trio.lowlevel.cancel_shielded_checkpoint()  # the new context counts from here

    def _tell_of_cancelled(self, payload: bytes | Transfer) -> None:
        if isinstance(payload, Transfer):
            self._log.error(
                "the plugin ended before a transfer of %s%s was answered; its handler was cancelled",
                payload.amount,
                f" from account {payload.account}" if payload.account else "",
            )

    def _pass_on(self, worker: _Worker, queue: RequestQueue) -> None:
        """Give the place of a cancelled worker to another; its own scope is spent, so its task ends."""
        job = queue.next_job(worker.held, was_transfer=worker.is_transfer)
        if job is not None:
            self.run(queue, *job)

    def _count_end(self) -> None:
        self.running -= 1
        if not self.running and self._quiet is not None:
            self._quiet.set()
            self._quiet = None
        if not self.running and self._tasks.leaving:
            self._tasks.look_again()
