"""One outgoing transfer, and the callers that wait for its outcome.

Invariants: each caller gets one outcome, before its deadline. If the transfer is not in the journal when the last
caller stops waiting, it is withdrawn, unless a caller got an error that says that it goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..errors import TransferInDoubtError
from ..transfer import MoneyLevel, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..transfer import Window

__all__ = ["PendingTransfer"]

# At PLAIN the link's own deadline applies. Callers wait this much longer, so that its outcome is recorded first.
RECORDING_SECONDS: Final = 1.0


class PendingTransfer:
    """One outgoing transfer, and the callers that wait for its outcome.

    Args:
        transfer: The transfer.
        window: The earliest and the latest time at which it may be sent, in seconds since the epoch; None at PLAIN.
        sent_before: Whether an earlier task, perhaps of an earlier process, may have sent it. If so, it is in the
            journal.
    """

    __slots__ = (
        "_make_error",
        "_settled",
        "_waiting",
        "begun",
        "entered",
        "promised",
        "sent_before",
        "transfer",
        "window",
        "withdrawn",
    )

    def __init__(self, transfer: Transfer, window: Window | None, *, sent_before: bool = False) -> None:
        self.transfer: Transfer = transfer
        self.window: Window | None = window
        self.sent_before: bool = sent_before
        # Set once it is decided whether the transfer enters the journal; until then it can be withdrawn.
        self.entered: trio.Event = trio.Event()
        self.withdrawn: bool = False
        # Whether it may be in the journal; true while it is being entered.
        self.begun: bool = sent_before
        # Whether a caller got an error that says that the transfer goes on; then it is never withdrawn.
        self.promised: bool = False
        self._settled = trio.Event()
        self._make_error: Callable[[], Exception] | None = None
        self._waiting = 0

    def settle(self, make_error: Callable[[], Exception] | None = None) -> None:
        """Set the outcome and wake the callers; only the first outcome counts.

        Args:
            make_error: Called once for each caller, which raises its result. None: the callers return.
        """
        if not self._settled.is_set():
            self._make_error = make_error
            self._settled.set()

    def doubt(self, reason: str) -> TransferInDoubtError:
        """Return the error of a transfer whose outcome is not known."""
        assert self.transfer.key is not None
        return TransferInDoubtError(self.transfer.key, self.transfer.amount, reason)

    @property
    def _is_keyed(self) -> bool:
        return self.transfer.level is MoneyLevel.KEYED

    async def wait(self, deadline: float, seconds: float) -> None:
        """Wait for the outcome. When the last caller stops waiting, a transfer that is not in the journal is withdrawn.

        Args:
            deadline: Until when to wait, on Trio's clock.
            seconds: The time from the beginning of the call to the deadline, for the error.

        Cancellation: Safe at any time; a transfer that is in the journal goes on.
        """
        self._waiting += 1
        try:
            with trio.move_on_at(deadline + (0.0 if self._is_keyed else RECORDING_SECONDS)):
                await self._settled.wait()
            # The level may have changed while waiting: the journal may hold the key from an earlier KEYED transfer.
            self.promised = self.promised or self._is_keyed
        finally:
            self._waiting -= 1
            if not (self._waiting or self.promised or self.entered.is_set()):
                self.withdrawn = True
        if not self._settled.is_set():
            retried = "goes on from the journal" if self.entered.is_set() else "goes on when the store has recorded it"
            next_step = retried if self._is_keyed else "is not sent again"
            raise self.doubt(f"no acknowledgement within {seconds:g} s; it {next_step}")
        if self._make_error is not None:
            raise self._make_error()
