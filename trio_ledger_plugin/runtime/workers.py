"""Runs the application's handlers in pooled tasks.

Invariant: exactly one task serves an accepted request, in a fresh context, even if its link is lost. ``submit`` never
waits. When a data handler exceeds its deadline, the peer gets an error at that moment and the handler is cancelled. A
money handler is not cancelled, since only it knows whether it has applied the transfer.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, TypeAlias

import trio

from ..parking import Waiter, park
from ..transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..services import Log
    from .budget import Share
    from .handlers import Reply
    from .tasks import TaskGroup

__all__ = ["Answer", "RequestQueue", "WorkerPool"]

# What a waiting request costs besides its payload: many empty requests must not grow without bound either.
REQUEST_BYTES = 200
# How often workers that are not needed are ended, also without a deadline for handlers.
TIDY_SECONDS = 30.0


# A request's id, its payload, and the bytes for which it counts.
_Job: TypeAlias = "tuple[int, bytes | Transfer, int]"
Answer: TypeAlias = "Callable[[bytes | Transfer], Awaitable[Reply]]"


class Requester(Protocol):
    """The source of requests, which sends their replies."""

    async def reply(self, request_id: int, reply: Reply) -> None:
        """Send a reply, or drop it if the link is lost; may wait for room."""

    def expire(self, request_id: int) -> None:
        """Send an error for a data handler that is past its deadline; the handler's reply is dropped."""


class RequestQueue:
    """The requests of one source: the running ones are counted, the others wait in order.

    Transfers use at most half of the source's handlers, so that data requests continue while a store hangs.

    Args:
        pool: The plugin's pool.
        share: The account's share of handlers; each running handler takes one.
        requester: The source of the requests.
        answer: Runs the application's handler and returns the reply; a handler's exception becomes a reply.
    """

    __slots__ = (
        "answer",
        "pool",
        "requester",
        "running",
        "running_bytes",
        "running_transfers",
        "share",
        "waiting",
        "waiting_bytes",
        "waiting_transfers",
    )

    def __init__(self, pool: WorkerPool, share: Share, requester: Requester, answer: Answer) -> None:
        self.pool: WorkerPool = pool
        self.share: Share = share
        self.requester: Requester = requester
        self.answer: Answer = answer
        self.running: int = 0
        self.running_transfers: int = 0
        # The bytes of requests and replies that the running handlers hold.
        self.running_bytes: int = 0
        # Made when first needed: an idle connection must cost little.
        self.waiting: deque[_Job] | None = None
        self.waiting_transfers: deque[_Job] | None = None
        self.waiting_bytes: int = 0

    def submit(self, request_id: int, payload: bytes | Transfer, size: int) -> bool:
        """Serve a request, now or later; returns False, and does nothing, if too many wait already."""
        if self._may_run(payload, size):
            self._count(payload, size)
            self.pool.run(self, request_id, payload, size)
            return True
        if self.waiting_bytes + size + REQUEST_BYTES > self.pool.backlog_limit:
            return False
        if payload.__class__ is Transfer:
            waiting = self.waiting_transfers = self.waiting_transfers or deque()
        else:
            waiting = self.waiting = self.waiting or deque()
        waiting.append((request_id, payload, size))
        self.waiting_bytes += size + REQUEST_BYTES
        return True

    def _may_run(self, payload: bytes | Transfer, size: int) -> bool:
        """Whether another request may run; a single request may exceed the limit of bytes."""
        if self.running >= self.pool.limit:
            return False
        if payload.__class__ is Transfer and self.running_transfers >= self.pool.transfer_limit:
            return False
        return self.running_bytes + size <= self.pool.handler_bytes_limit or not self.running

    def _count(self, payload: bytes | Transfer, size: int) -> None:
        self.running += 1
        self.running_bytes += size
        if payload.__class__ is Transfer:
            self.running_transfers += 1

    def next_job(self, held: int, *, was_transfer: bool) -> _Job | None:
        """Count a request as finished, and return the next one to serve, or None.

        Args:
            held: The bytes that the finished request held.
            was_transfer: Whether it was a transfer.
        """
        self.running -= 1
        self.running_bytes -= held
        self.running_transfers -= was_transfer
        if not self.waiting and not self.waiting_transfers:
            return None
        job = self._take()
        if job is not None:
            while (further := self._take()) is not None:
                # A large request may have made room for many small ones.
                self.pool.run(self, *further)
        return job

    def _take(self) -> _Job | None:
        """Remove the next waiting request that may run, count it as running, and return it."""
        for waiting in (self.waiting_transfers, self.waiting):
            if waiting and self._may_run(*waiting[0][1:]):
                job = waiting.popleft()
                self.waiting_bytes -= job[2] + REQUEST_BYTES
                self._count(job[1], job[2])
                return job
        return None

    def abandon(self) -> None:
        """Drop the waiting requests: there is no link for their replies."""
        self.waiting = self.waiting_transfers = None
        self.waiting_bytes = 0


class _Worker(Waiter):
    """One pooled task, and the request that it serves; the task waits here for the next request."""

    __slots__ = ("answered", "held", "is_transfer", "payload", "pool", "queue", "request_id", "scope", "share")

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__()
        self.pool: WorkerPool = pool
        self.scope: trio.CancelScope = trio.CancelScope()
        self.queue: RequestQueue | None = None
        # The queue's share when the request began: the queue's own may be replaced before the request ends.
        self.share: Share | None = None
        self.request_id: int = 0
        self.payload: bytes | Transfer = b""
        self.is_transfer: bool = False
        self.answered: bool = False
        self.held: int = 0

    def begin(self, queue: RequestQueue, request_id: int, payload: bytes | Transfer, size: int) -> None:
        self.queue, self.request_id, self.payload, self.held, self.answered = queue, request_id, payload, size, False
        self.is_transfer = payload.__class__ is Transfer

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        if self in self.pool.idle:
            self.pool.idle.remove(self)
        return super().abandon(raise_cancel)


class WorkerPool:
    """The tasks of one plugin that run handlers; a source may have ``limit`` of them run at once.

    Args:
        tasks: Owns the tasks.
        log: Gets the errors of handlers whose reply was sent already.
        limit: How many handlers may run for one source.
        handler_bytes_limit: How many bytes the running handlers of one source may hold; further requests wait.
        backlog_limit: How many bytes of requests may wait in one source.
        timeout: Seconds that a data handler may take.
    """

    def __init__(
        self,
        tasks: TaskGroup,
        log: Log,
        *,
        limit: int,
        handler_bytes_limit: int,
        backlog_limit: int,
        timeout: float,
    ) -> None:
        self._tasks = tasks
        self._log = log
        self.limit: int = limit
        self.transfer_limit: int = max(1, limit // 2)
        self.handler_bytes_limit: int = handler_bytes_limit
        self.backlog_limit: int = backlog_limit
        self._timeout = timeout
        self.idle: list[_Worker] = []
        self._least_idle = 0
        # Deadlines in the order in which the requests began: the first is the first to be due.
        self._deadlines: dict[_Worker, float] = {}

    def run(self, queue: RequestQueue, request_id: int, payload: bytes | Transfer, size: int) -> None:
        """Serve one request in an idle task, or in a new one."""
        worker = self.idle.pop() if self.idle else _Worker(self)
        share = worker.share = queue.share
        # share.take() inlined, as give_back() is in _release(), to save a call for each request.
        share.used += 1
        if share.parent is not None:
            share.parent.take()
        worker.begin(queue, request_id, payload, size)
        if worker.task is None:
            self._tasks.spawn(self._work, worker)
            return
        if len(self.idle) < self._least_idle:
            self._least_idle = len(self.idle)
        worker.task.context = self._tasks.context.copy()
        worker.wake()

    def fire(self, now: float) -> float:
        """Expire data handlers past their deadline, and end workers that have been idle since the last call."""
        unneeded = self.idle[: self._least_idle]
        del self.idle[: self._least_idle]
        self._least_idle = len(self.idle)
        for worker in unneeded:
            worker.queue = None
            worker.wake()
        again = now + min(self._timeout, TIDY_SECONDS)
        for worker, deadline in list(self._deadlines.items()):
            if deadline > now:
                return min(deadline, again)
            del self._deadlines[worker]
            if worker.queue is not None and not isinstance(worker.payload, Transfer):
                worker.answered = True
                worker.queue.requester.expire(worker.request_id)
                worker.scope.cancel()
        return again

    async def _work(self, worker: _Worker) -> None:
        try:
            with worker.scope:
                while worker.queue is not None:
                    await self._serve(worker, worker.queue)
        except* Exception as group:  # noqa: BLE001 (a handler may raise anything)
            # A handler's nursery can raise errors beside its cancellation. The peer has a reply already.
            self._log.error("a handler raised while it was cancelled: %s", group)
        finally:
            self._deadlines.pop(worker, None)
            if worker.queue is not None:
                self._release(worker)
                self._log_cancelled(worker.payload)
        if worker.queue is not None:
            self._pass_on(worker, worker.queue)

    async def _serve(self, worker: _Worker, queue: RequestQueue) -> None:
        requester = queue.requester
        self._deadlines[worker] = trio.current_time() + self._timeout
        reply = await queue.answer(worker.payload)
        # The handler has ended; what follows is not part of its time.
        worker.payload = b""
        self._deadlines.pop(worker, None)
        if reply.__class__ is bytes and len(reply) > worker.held:
            # The reply waits if the peer does not read, and counts meanwhile.
            queue.running_bytes += len(reply) - worker.held
            worker.held = len(reply)
        if not worker.answered:
            await requester.reply(worker.request_id, reply)
        if worker.scope.cancel_called:
            # The handler ignored its cancellation. The scope cannot be used again, so this task ends here.
            await trio.lowlevel.checkpoint()
        job = queue.next_job(worker.held, was_transfer=worker.is_transfer)
        if job is None:
            self._release(worker)
            worker.queue = None
            self.idle.append(worker)
            await park(worker)
        else:
            worker.begin(queue, *job)
            trio.lowlevel.current_task().context = self._tasks.context.copy()
            await trio.lowlevel.cancel_shielded_checkpoint()  # the new context counts from here

    def _log_cancelled(self, payload: bytes | Transfer) -> None:
        if isinstance(payload, Transfer):
            self._log.error(
                "the plugin ended before a transfer of %s%s was answered; its handler was cancelled",
                payload.amount,
                f" from account {payload.account}" if payload.account else "",
            )

    def _pass_on(self, worker: _Worker, queue: RequestQueue) -> None:
        """Let another worker serve the next request: a cancelled worker's scope cannot be used again."""
        job = queue.next_job(worker.held, was_transfer=worker.is_transfer)
        if job is not None:
            self.run(queue, *job)

    def _release(self, worker: _Worker) -> None:
        share = worker.share
        assert share is not None
        share.used -= 1
        if share.unused is not None:
            share.wake_waiters()
        if share.parent is not None:
            share.parent.give_back()
        if self._tasks.closing_when_idle:
            self._tasks.wake()
