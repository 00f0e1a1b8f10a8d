"""One outgoing transfer, and the callers that wait for its outcome.

Invariants: each caller gets one outcome, before its deadline. If the transfer is not in the journal when the last
caller stops waiting, it is withdrawn, unless a caller got an error that says that it goes on.
"""

from __future__ import annotations

import threading
from enum import Enum
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from ..errors import TransferInDoubtError
from ..parking import Waiter
from ..transfer import MoneyLevel, Transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..errors import RemoteError
    from ..negotiation import PeerJournal
    from ..runtime.timers import Timers
    from .outgoing import BeingSent

__all__ = ["PendingTransfer", "Phase"]

# At PLAIN the link's own deadline applies. Callers wait this much longer, so that its outcome is recorded first.
RECORDING_SECONDS: Final = 1.0
# How long callers wait after the first temporary refusal, in which the transfer is tried again.
REFUSED_SECONDS: Final = 5.0


class Phase(Enum):
    """Where an outgoing transfer is.

    Attributes:
        NEW: Nothing has been done.
        ENTERING: It is being entered in the journal, and can still be withdrawn.
        WAITING: It is in the journal, and waits for a link or for its next try.
        SENT: It has been handed to a link, and the peer has not replied.
        SETTLED: Its outcome is known.
        WITHDRAWN: Its callers stopped waiting before it was in the journal.
    """

    NEW = "new"
    ENTERING = "entering"
    WAITING = "waiting"
    SENT = "sent"
    SETTLED = "settled"
    WITHDRAWN = "withdrawn"


class PendingTransfer:
    """One outgoing transfer that a task works on or a caller waits for.

    Args:
        transfer: The transfer.
        timers: The plugin's timers.
        give_up: Withdraws a transfer that was refused for now, when a caller's time is over.
        abandoned: Called when the last caller of a transfer that waits in the journal has stopped waiting.
    """

    __slots__ = (
        "_abandoned",
        "_callers",
        "_claimed",
        "_give_up",
        "_is_settled",
        "_make_error",
        "_patience_ends",
        "_prevented",
        "_timers",
        "_waiting",
        "_working",
        "begun",
        "entering",
        "gone",
        "idle",
        "may_be_applied",
        "peer",
        "phase",
        "promised",
        "refusal",
        "sent",
        "stopped",
        "transfer",
        "withdrawn",
    )

    def __init__(
        self,
        transfer: Transfer,
        timers: Timers,
        give_up: Callable[[PendingTransfer], Awaitable[None]],
        abandoned: Callable[[PendingTransfer], None],
    ) -> None:
        self.transfer: Transfer = transfer
        self._timers = timers
        self._give_up = give_up
        self._abandoned = abandoned
        self.phase: Phase = Phase.NEW
        #: The scope of the task that enters it in the journal, while it does so.
        self.entering: trio.CancelScope | None = None
        #: Whether it must not be entered any more.
        self.stopped: bool = False
        #: Whether the store has begun to enter it. Set on the store's thread.
        self.begun: bool = False
        # Acquired by the store's thread when it begins, or by the one of Trio to prevent that.
        self._claimed = threading.Lock()
        self._prevented = False
        #: Whether it is certain that the journal does not have it, after its callers stopped waiting.
        self.gone: bool = False
        #: The peer's journal, if the link at the beginning of the call was KEYED.
        self.peer: PeerJournal | None = None
        #: The transfer in the journal; None before it is entered.
        self.sent: BeingSent | None = None
        #: Whether the peer may have applied it, in a try without a reply.
        self.may_be_applied: bool = False
        #: The peer's last reply, if it has only refused the transfer for now.
        self.refusal: RemoteError | None = None
        # Until when callers wait for another reply then, on Trio's clock.
        self._patience_ends = inf
        # The callers, which are woken when the outcome is known, or when the patience begins.
        self._callers: list[Waiter] = []
        #: Whether a caller got an error that says that the transfer goes on; then it is never withdrawn.
        self.promised: bool = False
        #: Set once the store has answered whether it is withdrawn after temporary refusals; None before it is asked.
        self.withdrawn: trio.Event | None = None
        #: Set while no task works on it.
        self.idle: trio.Event = trio.Event()
        self._working = 0
        self._is_settled = False
        self._make_error: Callable[[], Exception] | None = None
        self._waiting = 0

    @property
    def is_keyed(self) -> bool:
        """Whether it is sent again until the peer replies."""
        return self.transfer.level is MoneyLevel.KEYED

    @property
    def is_entering(self) -> bool:
        """Whether it is not in the journal yet, as far as is known."""
        return self.phase in (Phase.NEW, Phase.ENTERING)

    @property
    def is_being_withdrawn(self) -> bool:
        """Whether the store has not answered yet whether it is withdrawn."""
        return self.withdrawn is not None and not self.withdrawn.is_set()

    @property
    def has_callers(self) -> bool:
        """Whether a caller waits for the outcome."""
        return self._waiting > 0

    def begin_work(self) -> None:
        """Note that one more task works on it."""
        if self.idle.is_set():
            self.idle = trio.Event()
        self._working += 1

    def end_work(self) -> bool:
        """Note that a task no longer works on it; return whether it was the last one."""
        self._working -= 1
        if not self._working:
            self.idle.set()
        return not self._working

    def begin_entering(self) -> bool:
        """Note that the store begins to enter it; return False if it must not. Called on the store's thread.

        The store may begin again, after it has undone the first try.
        """
        self.begun = self.begun or self._claimed.acquire(blocking=False)
        return self.begun

    def prevent_entering(self) -> bool:
        """Keep the store from entering it; return False if the store has begun, so that it may be in the journal.

        A cancelled call of the store may still do its work: a thread may have taken it, and do other work first.
        """
        self._prevented = self._prevented or self._claimed.acquire(blocking=False)
        return self._prevented

    def stop_entering(self) -> None:
        """Do not enter it in the journal, unless the store has begun to; its task then withdraws it."""
        self.stopped = True
        if self.entering is not None:
            self.entering.cancel()

    def settle(self, make_error: Callable[[], Exception] | None = None) -> None:
        """Set the outcome and wake the callers; only the first outcome counts.

        Args:
            make_error: Called once for each caller, which raises its result. None: the callers return.
        """
        if not self._is_settled:
            self._make_error = make_error
            self._is_settled = True
            self._wake_callers()
            if self.phase is not Phase.WITHDRAWN:
                self.phase = Phase.SETTLED

    def refuse_for_now(self, refusal: RemoteError) -> None:
        """Note a temporary refusal; the transfer is tried again, and its callers wait for a limited time."""
        self.refusal = refusal
        if self._patience_ends == inf and not self.may_be_applied:
            self._patience_ends = trio.current_time() + REFUSED_SECONDS
            self._wake_callers()

    def _wake_callers(self) -> None:
        for caller in self._callers:
            caller.wake()

    def doubt(self, reason: str) -> TransferInDoubtError:
        """Return the error of a transfer whose outcome is not known."""
        assert self.transfer.key is not None
        return TransferInDoubtError(self.transfer.key, self.transfer.amount, reason)

    async def wait(self, deadline: float, seconds: float) -> None:
        """Wait for the outcome. When the last caller stops waiting, a transfer that is not in the journal is withdrawn.

        Args:
            deadline: Until when to wait, on Trio's clock.
            seconds: The time from the beginning of the call to the deadline, for the error.

        Cancellation: Safe at any time; a transfer that is in the journal goes on.
        """
        self._waiting += 1
        try:
            await self._wait_for_change(deadline)
            if not self._is_settled and self.refusal is not None and not self.may_be_applied:
                await self._give_up(self)
            self.promised = self.promised or self.is_keyed
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._leave()
        if not self._is_settled and self.is_being_withdrawn:
            reason = "the store did not answer in time, so it is withdrawn or being sent again"
            raise self.doubt(f"the peer has refused it for now; {reason}: {self.refusal}")
        if not self._is_settled and self.refusal is not None and trio.current_time() < deadline:
            raise self.doubt(f"the peer has refused it for now, and it is being sent again: {self.refusal}")
        if not self._is_settled:
            in_journal = self.phase in (Phase.WAITING, Phase.SENT)
            retried = "goes on from the journal" if in_journal else "goes on when the store has recorded it"
            next_step = retried if self.is_keyed else "is not sent again"
            raise self.doubt(f"no acknowledgement within {seconds:g} s; it {next_step}")
        if self._make_error is not None:
            raise self._make_error()

    async def _wait_for_change(self, deadline: float) -> None:
        """Wait for the outcome until the deadline, or until the patience with a peer that refuses for now ends."""
        caller = Waiter()
        self._callers.append(caller)
        try:
            while not self._is_settled:
                limit = min(deadline + (0.0 if self.is_keyed else RECORDING_SECONDS), self._patience_ends)
                if trio.current_time() >= limit:
                    return
                await self._timers.wait(caller, limit)
        finally:
            self._callers.remove(caller)

    def _leave(self) -> None:
        if self.is_entering and not self.promised:
            self.phase = Phase.WITHDRAWN
            self.stop_entering()
        elif self.phase is Phase.WAITING:
            self._abandoned(self)
