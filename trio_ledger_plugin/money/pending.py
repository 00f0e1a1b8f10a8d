"""One transfer of ours on its way, and those who wait for it.

The law of this module: each who waits gets one verdict, in time. What is not in the journal when the last of them
leaves is withdrawn, unless somebody was told that it goes on.
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

# At PLAIN the link's own deadline decides; how much longer its callers wait, so that its verdict is recorded first.
RECORDING_SECONDS: Final = 1.0


class PendingTransfer:
    """One transfer of ours on its way, and those who wait for it.

    Args:
        transfer: The transfer.
        window: From when until when it may be sent, in seconds since the epoch; None at PLAIN.
        sent_before: Whether an earlier task, perhaps of an earlier process, may have sent it: it is in the journal.
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
        # Whether it is decided if it enters the journal; until then it can be withdrawn.
        self.entered: trio.Event = trio.Event()
        self.withdrawn: bool = False
        # Whether it may be in the journal, as it is while it is being entered.
        self.begun: bool = sent_before
        # Whether somebody was told that it goes on, so that nobody who leaves later withdraws it.
        self.promised: bool = False
        self._settled = trio.Event()
        self._make_error: Callable[[], Exception] | None = None
        self._waiting = 0

    def settle(self, make_error: Callable[[], Exception] | None = None) -> None:
        """Let the callers go, each with an error of its own, or without one; the first verdict counts."""
        if not self._settled.is_set():
            self._make_error = make_error
            self._settled.set()

    def doubt(self, reason: str) -> TransferInDoubtError:
        """Return the error of a transfer whose fate is not known."""
        assert self.transfer.key is not None
        return TransferInDoubtError(self.transfer.key, self.transfer.amount, reason)

    @property
    def _is_keyed(self) -> bool:
        return self.transfer.level is MoneyLevel.KEYED

    async def wait(self, deadline: float, seconds: float) -> None:
        """Wait for the verdict; the last caller to leave withdraws what is not in the journal yet.

        Args:
            deadline: Until when, on Trio's clock.
            seconds: How long that is from the beginning of the call, for the error.
        """
        self._waiting += 1
        try:
            with trio.move_on_at(deadline + (0.0 if self._is_keyed else RECORDING_SECONDS)):
                await self._settled.wait()
            # Asked again: what is known of its key may be that it was sent at KEYED before.
            self.promised = self.promised or self._is_keyed
        finally:
            self._waiting -= 1
            if not (self._waiting or self.promised or self.entered.is_set()):
                self.withdrawn = True
        if not self._settled.is_set():
            goes_on = "goes on from the journal" if self.entered.is_set() else "goes on when the store has recorded it"
            fate = goes_on if self._is_keyed else "is not sent again"
            raise self.doubt(f"no acknowledgement within {seconds:g} s; it {fate}")
        if self._make_error is not None:
            raise self._make_error()
