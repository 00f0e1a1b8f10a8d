"""The calls that wait for the peer's reply.

Invariant: a call has one outcome. It leaves its table when it is answered, fails or expires, or when its caller is
cancelled, whichever happens first. Calls have no timers: the owner of the table calls ``expire`` when one is due. A
call that is due expires only after its peer's answers have been read as far as they have arrived.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import outcome
import trio

from ..errors import (
    ConnectionLostError,
    DecodeError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    ResponseTimeoutError,
)
from ..parking import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .budget import Budget

__all__ = ["IN_DOUBT", "Call", "CallTable"]

# What ends a call that was handed to the link: the peer may have acted on it.
IN_DOUBT = (ConnectionLostError, ResponseTimeoutError, DecodeError, PluginClosedError, PluginFailedError)

# Calls that are due expire after so many turns in which none of them was answered. A link with many messages to read
# pauses for up to eight turns between two batches.
QUIET_TURNS = 16


class Call(Waiter):
    """One caller that waits for its reply.

    Args:
        deadline: When the call expires, on Trio's clock.
    """

    __slots__ = ("deadline", "early")

    def __init__(self, deadline: float) -> None:
        # Not by super(): that would be a tenth of the cost of a call.
        self.task: trio.lowlevel.Task | None = None
        self.deadline: float = deadline
        #: The outcome, if there is one before the caller waits: a link can be lost while it sends.
        self.early: outcome.Outcome[bytes] | None = None

    def answer(self, response: bytes) -> None:
        """Wake the caller with its response."""
        self._resolve(outcome.Value(response))

    def fail(self, error: Exception) -> None:
        """Wake the caller with an error of its own; no two calls share one."""
        self._resolve(outcome.Error(error))

    def _resolve(self, result: outcome.Outcome[bytes]) -> None:
        task, self.task = self.task, None
        if task is None:
            self.early = result
        else:
            trio.lowlevel.reschedule(task, result)


class CallTable:
    """The calls to one peer that are in flight, by request id, in the order of their deadlines.

    Args:
        ids: Yields request ids; all links of a plugin share it.
        budget: Counts the calls of the account over all its links.
        limit: The most calls of the account in flight; further callers wait for a slot.
        timeout: Seconds until a call expires.
    """

    __slots__ = ("_drained", "_due", "_ids", "_quiet_turns", "_timeout", "budget", "limit", "make_error", "pending")

    def __init__(self, ids: Iterator[int], budget: Budget, *, limit: int, timeout: float) -> None:
        self.pending: dict[int, Call] = {}
        self.budget: Budget = budget
        self.limit: int = limit
        self._ids = ids
        #: Makes the error of each call once the table is closed; None before.
        self.make_error: Callable[[], LedgerPluginError] | None = None
        self._timeout = timeout
        # Made when first needed: an idle connection must cost little.
        self._drained: trio.Event | None = None
        # The calls that are due, and for how many turns none of them was answered.
        self._due: tuple[int, ...] = ()
        self._quiet_turns = 0

    @property
    def closed(self) -> bool:
        """Whether no more calls can be made."""
        return self.make_error is not None

    def open(self) -> tuple[int, Call]:
        """Add a call, and return it with its new request id; the caller removes it with ``forget``, once."""
        request_id = next(self._ids)
        while request_id in self.pending:
            request_id = next(self._ids)
        self.budget.calls += 1
        call = self.pending[request_id] = Call(trio.current_time() + self._timeout)
        return request_id, call

    def add(self, call: Call) -> int:
        """Add a call of the caller's own class, set its deadline, and return its id; ``forget`` removes it, once."""
        request_id = next(self._ids)
        self.budget.calls += 1
        call.deadline = trio.current_time() + self._timeout
        self.pending[request_id] = call
        return request_id

    def forget(self, request_id: int) -> None:
        """Remove a call, if it is still there, and give its slot to the next caller."""
        self.pending.pop(request_id, None)
        budget = self.budget
        budget.calls -= 1
        if budget.call_waiters:
            budget.call_waiters.unpark()
        if self._drained is not None and not self.pending:
            self._drained.set()
            self._drained = None

    async def wait_for_slot(self) -> None:
        """Wait until fewer calls of the account than ``limit`` are in flight, or the table is closed.

        A caller that then makes no call must call ``wake_next()``, or its slot is lost.

        Cancellation: Safe at any time.
        """
        budget = self.budget
        while budget.calls >= self.limit and not self.closed:
            if budget.call_waiters is None:
                budget.call_waiters = trio.lowlevel.ParkingLot()
            await budget.call_waiters.park()

    def wake_next(self) -> None:
        """Wake the next caller that waits for a slot."""
        if self.budget.call_waiters:
            self.budget.call_waiters.unpark()

    def check_open(self) -> None:
        """Raise the error of a call that was not sent before the table was closed.

        Raises:
            NotConnectedError: The link was lost.
            LedgerPluginError: The error of the calls in flight, if this side closed the table.
        """
        if self.make_error is not None:
            error = self.make_error()
            if isinstance(error, ConnectionLostError):
                error = NotConnectedError("the connection was lost before the request was sent")
            raise error

    async def drain(self) -> None:
        """Wait until no call is in flight.

        Cancellation: Safe at any time.
        """
        while self.pending:
            if self._drained is None:
                self._drained = trio.Event()
            await self._drained.wait()

    def close(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call in flight, each with an error of its own, and every caller that waits for a slot.

        Does nothing if the table is closed already: the first reason counts.
        """
        if self.closed:
            return
        self.make_error = make_error
        if self.budget.call_waiters:
            # Those of the account's other links wait again.
            self.budget.call_waiters.unpark_all()
        calls = list(self.pending.values())
        self.pending.clear()
        for call in calls:
            call.fail(make_error())

    def expire(self, now: float) -> float:
        """Fail the calls that are past their deadline, and return when to be called next, on Trio's clock.

        At first it returns ``now``, until the answers that have arrived are read.
        """
        pending = self.pending
        if self._due:
            unanswered = tuple(request_id for request_id in self._due if request_id in pending)
            self._quiet_turns = self._quiet_turns + 1 if len(unanswered) == len(self._due) else 0
            self._due = unanswered
            if self._quiet_turns == QUIET_TURNS:
                self._fail_due()
        if not self._due:
            self._due, self._quiet_turns = tuple(self._find_due(now)), 0
        if self._due:
            return now
        first = next(iter(pending.values()), None)
        return min(now + self._timeout, inf if first is None else first.deadline)

    def _find_due(self, now: float) -> Iterator[int]:
        for request_id, call in self.pending.items():
            if call.deadline > now:
                return
            yield request_id

    def _fail_due(self) -> None:
        due, self._due = self._due, ()
        for request_id in due:
            error = ResponseTimeoutError(f"no answer within {self._timeout:g} s; the peer may have acted")
            self.pending.pop(request_id).fail(error)
