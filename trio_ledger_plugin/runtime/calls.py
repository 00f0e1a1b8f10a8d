"""Calls of ours that wait for the peer's answer.

The law of this module: a call has one outcome. It stands in its table until it is answered, failed, expired or its
caller was cancelled, whichever comes first, and no later than that. Waiting costs no timer: whoever owns the table
visits it when a deadline is due.
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

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IN_DOUBT", "Call", "CallTable"]

# What ends a call that was handed to the link: the peer may have acted on it.
IN_DOUBT = (ConnectionLostError, ResponseTimeoutError, DecodeError, PluginClosedError, PluginFailedError)


class Call:
    """One caller that waits for its answer; made by the caller's own task.

    Args:
        deadline: When to give up on the peer, on Trio's clock.
    """

    __slots__ = ("_task", "deadline")

    def __init__(self, deadline: float) -> None:
        self._task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self.deadline: float = deadline

    async def wait(self) -> bytes:
        """Wait for the answer and return it.

        Raises:
            LedgerPluginError: What the call was failed with.

        Cancellation: The call counts as resolved; an answer to it does nothing.
        """
        response: bytes = await trio.lowlevel.wait_task_rescheduled(self.abandon)
        return response

    def answer(self, response: bytes) -> None:
        """Wake the caller with its response."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Value(response))

    def fail(self, error: Exception) -> None:
        """Wake the caller with an error of its own; no two calls share one."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task, outcome.Error(error))

    def abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        """Let the caller go, when Trio cancels it."""
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class CallTable:
    """The calls to one peer that are in flight, by request id, in the order of their deadlines.

    Args:
        limit: How many there may be; callers wait for a slot beyond it.
        timeout: Seconds until a call expires.
    """

    __slots__ = ("_drained", "_make_error", "_slots", "_timeout", "limit", "pending")

    def __init__(self, *, limit: int, timeout: float) -> None:
        self.pending: dict[int, Call] = {}
        self.limit: int = limit
        self._make_error: Callable[[], LedgerPluginError] | None = None
        self._timeout = timeout
        # Made when first needed: an idle connection must cost little.
        self._slots: trio.lowlevel.ParkingLot | None = None
        self._drained: trio.Event | None = None

    @property
    def closed(self) -> bool:
        """Whether no more calls can be made."""
        return self._make_error is not None

    def new_call(self) -> Call:
        """Return a call of the current task, which its owner puts into ``pending`` under a fresh id."""
        return Call(trio.current_time() + self._timeout)

    async def outcome(self, request_id: int, call: Call) -> bytes:
        """Wait for a call's answer, and forget the call whatever comes.

        Raises:
            LedgerPluginError: What the call was failed with.

        Cancellation: The answer is ignored when it comes.
        """
        try:
            return await call.wait()
        finally:
            self.forget(request_id)

    def forget(self, request_id: int) -> None:
        """Forget a call whose caller goes on."""
        self.pending.pop(request_id, None)
        if self._slots:
            self._slots.unpark()
        if self._drained is not None and not self.pending:
            self._drained.set()
            self._drained = None

    async def wait_for_slot(self) -> None:
        """Wait until fewer calls are in flight than may be, or the table is closed.

        Whoever is let in and makes no call after all calls ``wake_next()``, or the slot would be forgotten.

        Cancellation: Safe at any time.
        """
        while len(self.pending) >= self.limit and not self.closed:
            if self._slots is None:
                self._slots = trio.lowlevel.ParkingLot()
            await self._slots.park()

    def wake_next(self) -> None:
        """Let the next one look for a slot."""
        if self._slots:
            self._slots.unpark()

    def check_open(self) -> None:
        """Raise what a call meets that was not sent before the table was closed.

        Raises:
            NotConnectedError: The peer is gone.
            LedgerPluginError: What the calls in flight were failed with, where this side ended it.
        """
        if self._make_error is not None:
            error = self._make_error()
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
        """Fail every call in flight, each with an error of its own, and turn away those that wait for a slot.

        Does nothing when the table is closed already: the first reason counts.
        """
        if self.closed:
            return
        self._make_error = make_error
        if self._slots:
            self._slots.unpark_all()
        calls = list(self.pending.values())
        self.pending.clear()
        for call in calls:
            call.fail(make_error())

    def expire(self, now: float) -> float:
        """Fail the calls that are past their deadline; return when the next one may be."""
        due = []
        for request_id, call in self.pending.items():
            if call.deadline > now:
                break
            due.append(request_id)
        for request_id in due:
            error = ResponseTimeoutError(f"no answer within {self._timeout:g} s; the peer may have acted")
            self.pending.pop(request_id).fail(error)
        first = next(iter(self.pending.values()), None)
        return min(now + self._timeout, inf if first is None else first.deadline)
