"""Runs the application's handlers in pooled tasks.

Invariant: exactly one task serves an accepted request, in a fresh context, even if its link is lost. ``submit`` never
waits. When a data handler exceeds its deadline, the peer gets an error at that moment and the handler is cancelled. A
money handler is not cancelled, since only it knows whether it has applied the transfer.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import trio

from ..errors import UnreachableError
from ..parking import Waiter, park
from ..request import IncomingRequest, enter_request
from ..transfer import Transfer
from .tasks import unwrap_group

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextvars import Context

    from ..services import Log
    from .budget import Budget
    from .handlers import AnyReply, Handlers, Payload
    from .tasks import TaskGroup

__all__ = ["OnReply", "RequestQueue", "WorkerPool"]

# What a waiting request costs besides its payload: many empty requests must not grow without bound either.
REQUEST_BYTES = 200
# How often workers that are not needed are ended, also without a deadline for handlers.
TIDY_SECONDS = 30.0
# How many accounts are looked at for a request that may run, each time that a handler ends.
LOOK_AT = 16


# A request's id, its payload, and the bytes for which it counts.
_Job: TypeAlias = "tuple[int, Payload, int]"
# Called with when a request began, on Trio's clock, and its reply.
OnReply: TypeAlias = "Callable[[float, AnyReply], None]"


class Requester(Protocol):
    """The source of requests, which sends their replies."""

    def describe(self) -> IncomingRequest:
        """Return what ``current_request()`` returns in the handlers of its requests."""

    async def reply(self, request_id: int, reply: AnyReply) -> None:
        """Send a reply, or drop it if the link is lost; may wait for room."""

    def expire(self, request_id: int) -> None:
        """Send an error for a data handler that is past its deadline; the handler's reply is dropped."""


class RequestQueue:
    """The requests of one source: running ones count in its account's budget, the others wait in order.

    Args:
        pool: The plugin's pool.
        budget: The account's budget.
        requester: The source of the requests.
        handlers: The application's handlers.
    """

    __slots__ = (
        "_context",
        "budget",
        "handlers",
        "pool",
        "requester",
        "waiting",
        "waiting_bytes",
        "waiting_transfers",
    )

    def __init__(self, pool: WorkerPool, budget: Budget, requester: Requester, handlers: Handlers) -> None:
        self.pool: WorkerPool = pool
        self.budget: Budget = budget
        self.requester: Requester = requester
        # Not their method answer(): a bound method for each link would be memory.
        self.handlers: Handlers = handlers
        # Made when first needed, as everything below: an idle connection must cost little.
        self._context: Context | None = None
        self.waiting: deque[_Job] | None = None
        self.waiting_transfers: deque[_Job] | None = None
        self.waiting_bytes: int = 0

    def submit(self, request_id: int, payload: Payload, size: int) -> bool:
        """Serve a request, now or later; returns False, and does nothing, if too many wait already."""
        is_transfer = payload.__class__ is Transfer
        if self.budget.take_handler(size, is_transfer=is_transfer):
            self.pool.run(self, request_id, payload, size)
            return True
        if not self.budget.may_wait(size + REQUEST_BYTES):
            return False
        if is_transfer:
            waiting = self.waiting_transfers = self.waiting_transfers or deque()
        else:
            waiting = self.waiting = self.waiting or deque()
        waiting.append((request_id, payload, size))
        self._count_waiting(size + REQUEST_BYTES)
        self.pool.add_waiting(self)
        return True

    def _count_waiting(self, size: int) -> None:
        self.waiting_bytes += size
        self.budget.count_waiting(size)

    def take(self) -> _Job | None:
        """Remove the next waiting request that may run, count it as running, and return it."""
        for waiting in (self.waiting_transfers, self.waiting):
            if waiting:
                job = waiting[0]
                if self.budget.take_handler(job[2], is_transfer=waiting is self.waiting_transfers):
                    waiting.popleft()
                    self._count_waiting(-job[2] - REQUEST_BYTES)
                    return job
        return None

    def new_context(self) -> Context:
        """Return a fresh context for one request, in which ``current_request()`` works."""
        if self._context is None:
            self._context = self.pool.new_context()
            self._context.run(enter_request, self.requester.describe())
        return self._context.copy()

    def abandon(self) -> None:
        """Drop the waiting requests: there is no link for their replies."""
        self.waiting = self.waiting_transfers = None
        self._count_waiting(-self.waiting_bytes)
        self.pool.remove_waiting(self)

    def successor(self) -> RequestQueue:
        """Return the queue that a link has after its end, when nothing can arrive over it.

        Without it, the link and this queue would wait for the next collection of garbage. The handlers that still run
        keep this queue, and so the link.
        """
        return RequestQueue(self.pool, self.budget, NOBODY, self.handlers)


class _Nobody:
    """The source of no requests."""

    def describe(self) -> IncomingRequest:
        """Return an empty description."""
        return IncomingRequest("", 0, "")

    async def reply(self, request_id: int, reply: AnyReply) -> None:
        """Drop a reply."""
        del request_id, reply
        await trio.lowlevel.checkpoint()

    def expire(self, request_id: int) -> None:
        """Do nothing."""


NOBODY: Final = _Nobody()


class _Worker(Waiter):
    """One pooled task, and the request that it serves; the task waits here for the next request."""

    __slots__ = ("answered", "held", "is_transfer", "payload", "pool", "queue", "request_id", "scope")

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__()
        self.pool: WorkerPool = pool
        self.scope: trio.CancelScope = trio.CancelScope()
        self.queue: RequestQueue | None = None
        self.request_id: int = 0
        self.payload: Payload = b""
        self.is_transfer: bool = False
        self.answered: bool = False
        self.held: int = 0

    def begin(self, queue: RequestQueue, request_id: int, payload: Payload, size: int) -> None:
        self.queue, self.request_id, self.payload, self.held, self.answered = queue, request_id, payload, size, False
        self.is_transfer = payload.__class__ is Transfer

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        if self in self.pool.idle:
            self.pool.idle.remove(self)
        return super().abandon(raise_cancel)


class WorkerPool:
    """The tasks of one plugin that run handlers.

    When a handler ends, the next request to run is one of the account whose turn it is, and within the account of
    the link whose turn it is. Accounts for which no handler runs come first.

    Args:
        tasks: Owns the tasks.
        log: Gets the errors of handlers whose reply was sent already.
        timeout: Seconds that a data handler may take.
    """

    def __init__(self, tasks: TaskGroup, log: Log, *, timeout: float) -> None:
        self._tasks = tasks
        self._log = log
        self._timeout = timeout
        #: Called with each reply of a handler, and with each that a call of this end got; None if they are not watched.
        self.on_handled: OnReply | None = None
        self.on_answered: OnReply | None = None
        #: How the replies begin that on_handled is called with, besides errors; None for any. Fewer cost less.
        self.passed_byte: int | None = None
        self.idle: list[_Worker] = []
        self._least_idle = 0
        # Deadlines in the order in which the requests began: the first is the first to be due.
        self._deadlines: dict[_Worker, float] = {}
        # The sources with requests that wait, by account. The one whose turn is next comes first, as in what follows.
        self._waiting: dict[Budget, dict[RequestQueue, None]] = {}
        # The accounts whose requests may be able to run: accounts without a running handler, and others.
        self._unserved: dict[Budget, None] = {}
        self._served: dict[Budget, None] = {}

    def new_context(self) -> Context:
        """Return a fresh copy of the context in which the plugin was made."""
        return self._tasks.context.copy()

    @contextmanager
    def watch(self, on_handled: OnReply, on_answered: OnReply) -> Iterator[None]:
        """Have two functions called with the replies within the block.

        Raises:
            RuntimeError: Others are called already.
        """
        if self.on_handled is not None:
            raise RuntimeError("the plugin's requests are watched already")
        self.on_handled, self.on_answered = on_handled, on_answered
        try:
            yield
        finally:
            self.on_handled = self.on_answered = None
            self.passed_byte = None

    def run(self, queue: RequestQueue, request_id: int, payload: Payload, size: int) -> None:
        """Serve one request, which counts as running already, in an idle task or in a new one."""
        worker = self.idle.pop() if self.idle else _Worker(self)
        worker.begin(queue, request_id, payload, size)
        if worker.task is None:
            self._tasks.spawn_in(queue.new_context(), self._work, worker)
            return
        if len(self.idle) < self._least_idle:
            self._least_idle = len(self.idle)
        worker.task.context = queue.new_context()
        worker.wake()

    # Turns.

    def add_waiting(self, queue: RequestQueue) -> None:
        """Give a source turns: it has requests that wait."""
        self._waiting.setdefault(queue.budget, {}).setdefault(queue)
        self._give_turns(queue.budget)

    def remove_waiting(self, queue: RequestQueue) -> None:
        """Give a source no more turns: no request of it waits."""
        queues = self._waiting.get(queue.budget)
        if queues is not None:
            queues.pop(queue, None)
            if not queues:
                del self._waiting[queue.budget]

    def _give_turns(self, budget: Budget) -> None:
        if budget.handlers:
            self._unserved.pop(budget, None)
            self._served.setdefault(budget)
        else:
            self._served.pop(budget, None)
            self._unserved.setdefault(budget)

    def _take_next(self) -> tuple[RequestQueue, _Job] | None:
        """Remove the waiting request whose turn it is, count it as running, and return it."""
        for ring in (self._unserved, self._served):
            for _ in range(min(len(ring), LOOK_AT)):
                budget = next(iter(ring))
                del ring[budget]
                found = self._take_of(budget)
                if budget in self._waiting and (found is not None or not _is_blocked_by_itself(budget)):
                    # Behind the others.
                    self._give_turns(budget)
                if found is not None:
                    return found
        return None

    def _take_of(self, budget: Budget) -> tuple[RequestQueue, _Job] | None:
        """Remove the waiting request of an account whose link has its turn."""
        for queue in list(self._waiting.get(budget, ())):
            job = queue.take()
            if job is not None:
                self.remove_waiting(queue)
                if queue.waiting or queue.waiting_transfers:
                    # Behind the account's other links.
                    self._waiting.setdefault(budget, {})[queue] = None
                return queue, job
        return None

    def _release(self, worker: _Worker, queue: RequestQueue) -> None:
        """Count a worker's request as ended."""
        budget = queue.budget
        budget.give_handler_back(worker.held, is_transfer=worker.is_transfer)
        if self._waiting and budget in self._waiting:
            self._give_turns(budget)

    def _next_request(self, worker: _Worker) -> tuple[RequestQueue, _Job] | None:
        """Return the request to serve after a worker's, which has ended; None if no request may run."""
        if not self._waiting:
            return None
        found = self._take_next()
        if found is not None and worker.held > found[1][2]:
            while (further := self._take_next()) is not None:
                # A large request may have made room for many small ones.
                self.run(further[0], *further[1])
        return found

    # The tasks.

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
                if self.on_handled is not None:
                    self.on_handled(deadline - self._timeout, UnreachableError("the handler took too long"))
        return again

    async def _work(self, worker: _Worker) -> None:
        try:
            with worker.scope:
                await self._serve(worker)
        except* Exception as group:  # noqa: BLE001 (a handler may raise anything)
            # A handler's nursery can raise errors beside its cancellation. The peer has a reply already.
            self._log.error("a handler raised while it was cancelled: %O", unwrap_group(group))
        finally:
            self._deadlines.pop(worker, None)
            if worker.queue is not None:
                self._release(worker, worker.queue)
                self._log_cancelled(worker.payload)
                self._wake_tasks()
        if worker.queue is not None:
            found = self._next_request(worker)
            if found is not None:
                # Another worker serves it: a cancelled worker's scope cannot be used again.
                self.run(found[0], *found[1])

    async def _serve(self, worker: _Worker) -> None:
        """Serve request after request, until this worker is not needed."""
        # trio.current_time() looks the clock up each time.
        clock = trio.lowlevel.current_clock()
        while (queue := worker.queue) is not None:
            began = clock.current_time()
            self._deadlines[worker] = began + self._timeout
            reply = await queue.handlers.answer(worker.payload)
            # The handler has ended; what follows is not part of its time.
            worker.payload = b""
            self._deadlines.pop(worker, None)
            if reply.__class__ is bytes and len(reply) > worker.held:
                # The reply waits if the peer does not read, and counts meanwhile.
                queue.budget.hold_more(len(reply) - worker.held)
                worker.held = len(reply)
            if worker.answered:
                # The handler ignored its cancellation. The scope cannot be used again, so this task ends here.
                await trio.lowlevel.checkpoint()
            else:
                on_handled = self.on_handled
                if on_handled is not None:
                    # This takes a share of every request's time.
                    try:
                        passed = self.passed_byte
                        is_passed = passed is None or reply[0] == passed  # type: ignore[index]  # or an error, below
                    except (TypeError, IndexError):
                        is_passed = True
                    if is_passed:
                        on_handled(began, reply)
                await queue.requester.reply(worker.request_id, reply)
            self._release(worker, queue)
            found = self._next_request(worker)
            if found is None:
                # An idle worker must not keep the link of its last request in memory.
                queue = worker.queue = None
                self._wake_tasks()
                self.idle.append(worker)
                await park(worker)
            else:
                queue, job = found
                worker.begin(queue, *job)
                trio.lowlevel.current_task().context = queue.new_context()
                await trio.lowlevel.cancel_shielded_checkpoint()  # the new context counts from here

    def _log_cancelled(self, payload: Payload) -> None:
        if isinstance(payload, Transfer):
            self._log.error(
                "the plugin ended before a transfer of %s%s was answered; its handler was cancelled",
                payload.amount,
                f" from account {payload.account}" if payload.account else "",
            )

    def _wake_tasks(self) -> None:
        """Let the plugin's tasks end, if they only wait for its handlers."""
        if self._tasks.closing_when_idle:
            self._tasks.wake()


def _is_blocked_by_itself(budget: Budget) -> bool:
    """Whether only the end of one of the account's own handlers can make room for its requests."""
    server = budget.parent
    return bool(budget.handlers) and (server is None or server.admits(0, is_transfer=False, uses_none=False))
