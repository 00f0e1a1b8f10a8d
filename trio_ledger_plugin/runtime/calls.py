"""The calls of this end that wait for the peer's answer.

Invariant: a call has one outcome. It stands in its table until it is answered, failed or expired or its caller is
cancelled, whichever comes first, and no longer. Waiting costs no timer: the owner of the table calls ``expire`` when a
deadline is due.
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

__all__ = ["IN_DOUBT", "Call", "CallTable"]

# What ends a call that was handed to the link: the peer may have acted on it.
IN_DOUBT = (ConnectionLostError, ResponseTimeoutError, DecodeError, PluginClosedError, PluginFailedError)


class Call(Waiter):
    """One caller that waits for its answer.

    Args:
        deadline: When to give up on the peer, on Trio's clock.
    """

    __slots__ = ("deadline", "early")

    def __init__(self, deadline: float) -> None:
        # Not by super(): that would be a tenth of the cost of a call.
        self.task = None
        self.deadline: float = deadline
        #: The outcome, where it came before the caller began to wait: a link can be lost while it sends.
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
        ids: Where request ids come from; one source for all links of a plugin.
        limit: How many there may be; callers wait for a slot beyond it.
        timeout: Seconds until a call expires.
    """

    __slots__ = ("_drained", "_ids", "_slots", "_timeout", "limit", "make_error", "pending")

    def __init__(self, ids: Iterator[int], *, limit: int, timeout: float) -> None:
        self.pending: dict[int, Call] = {}
        self.limit: int = limit
        self._ids = ids
        #: Makes the error of each call once the table is closed; None before.
        self.make_error: Callable[[], LedgerPluginError] | None = None
        self._timeout = timeout
        # Made when first needed: an idle connection must cost little.
        self._slots: trio.lowlevel.ParkingLot | None = None
        self._drained: trio.Event | None = None

    @property
    def closed(self) -> bool:
        """Whether no more calls can be made."""
        return self.make_error is not None

    def open(self) -> tuple[int, Call]:
        """Return a new call and the fresh request id under which it stands; ``forget`` removes it."""
        request_id = next(self._ids)
        while request_id in self.pending:
            request_id = next(self._ids)
        call = self.pending[request_id] = Call(trio.current_time() + self._timeout)
        return request_id, call

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

        A caller that makes no call after all calls ``wake_next()``, or the slot would be lost.

        Cancellation: Safe at any time.
        """
        while len(self.pending) >= self.limit and not self.closed:
            if self._slots is None:
                self._slots = trio.lowlevel.ParkingLot()
            await self._slots.park()

    def wake_next(self) -> None:
        """Let the next caller look for a slot."""
        if self._slots:
            self._slots.unpark()

    def check_open(self) -> None:
        """Raise the error of a call that was not sent before the table was closed.

        Raises:
            NotConnectedError: The peer is gone.
            LedgerPluginError: The error of the calls in flight, where this side closed the table.
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

        Does nothing when the table is closed already: the first reason counts.
        """
        if self.closed:
            return
        self.make_error = make_error
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
