"""Records what became of outgoing transfers, and tells their callers.

Invariant: callers are told an outcome once it is in the journal.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import evolve

from ..errors import DuplicateIdError, NotAcceptedError, StoreError, copy_error
from ..transfer import MoneyLevel, TransferState
from .doubts import SETTLE_BY_HAND

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..errors import LedgerPluginError, RemoteError
    from ..transfer import JournalEntry
    from .outgoing import BeingSent
    from .pending import PendingTransfer
    from .sending_account import SendingAccount

__all__ = ["Outcomes", "key_conflict"]

T = TypeVar("T")

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0


class Outcomes:
    """Records what became of one account's outgoing transfers.

    Args:
        account: The account.
    """

    def __init__(self, account: SendingAccount) -> None:
        self._account = account
        self._context = account.context
        self._sql = account.journal.sql.outgoing

    async def goes_on(self, pending: PendingTransfer, known: JournalEntry) -> bool:
        """Settle a transfer from its entry in the journal; return True if it is going to be sent again instead."""
        if known.amount != int(pending.transfer.amount):
            pending.settle(partial(key_conflict, known.key, str(known.amount)))
        elif known.state is TransferState.ACKED:
            pending.settle()
        elif known.state is TransferState.REJECTED:
            by_hand = "the transfer was settled by hand as not applied; use a new key for a new transfer"
            pending.settle(partial(copy_error, known.error or NotAcceptedError(by_hand)))
        elif not self._account.journal.may_write:
            pending.settle(partial(pending.doubt, "it was sent before, and the journal has no outcome yet"))
        elif known.state is TransferState.SENT and known.level is MoneyLevel.KEYED:
            pending.transfer = evolve(pending.transfer, level=MoneyLevel.KEYED)
            pending.may_be_applied = True
            return True
        else:
            reason = f"it was sent before and not acknowledged; {SETTLE_BY_HAND}"
            await self.leave_in_doubt(pending, known.number, reason)
        return False

    async def leave_in_doubt(self, pending: PendingTransfer, number: int, reason: str) -> None:
        """Record that it is not known whether the peer has applied a transfer; it is not sent again."""
        if await self.record(self._sql.doubt, number):
            self._account.doubts.add(int(pending.transfer.amount))
        pending.settle(partial(pending.doubt, reason))

    async def forget_unsent(self, pending: PendingTransfer, sent: BeingSent, error: LedgerPluginError) -> None:
        """Remove a transfer that was not sent from the journal."""
        await self.record(self._sql.withdraw, sent)
        pending.settle(partial(copy_error, error))

    async def withdraw_waiting(self, pending: PendingTransfer, sent: BeingSent, refusal: RemoteError) -> None:
        """Withdraw a transfer that the peer has only refused for now, unless it is being sent again."""
        assert pending.withdrawn is not None
        if await self.record(self._sql.withdraw_waiting, sent):
            pending.settle(partial(copy_error, refusal))
        pending.withdrawn.set()

    async def record_acknowledgement(self, pending: PendingTransfer, sent: BeingSent, receipt: int = 0) -> None:
        """Record that the peer has applied a transfer; the number of its receipt is 0 if it has none."""
        state = await self.record(self._sql.answered, sent, None, receipt)
        if state is TransferState.REJECTED:
            self._context.log.error(
                "transfer %s of %s was settled by hand as not applied, but the peer has acknowledged it",
                *(sent.transfer.key, sent.transfer.amount),
            )
        pending.settle()

    async def record_refusal(self, pending: PendingTransfer, sent: BeingSent, error: RemoteError) -> None:
        """Record a refusal; after a temporary one, the key may be used again."""
        if error.code.startswith("T"):
            await self.record(self._sql.withdraw, sent)
        else:
            await self.record(self._sql.answered, sent, error)
        pending.settle(partial(copy_error, error))

    async def record(self, work: Callable[..., T], *args: object) -> T:
        """Run ``work`` on the journal, and retry until the store works: the outcome of a transfer must be recorded.

        Cancellation: The work may be done anyway.
        """
        with self._context.tasks.committing():
            return await self.persist("record the outcome of a transfer", self._account.run, work, *args)

    async def persist(self, what: str, function: Callable[..., Awaitable[T]], *args: object) -> T:
        """Call a function that needs the store until it succeeds, and log its failures: "cannot <what>".

        Cancellation: Safe at any time.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                return await function(*args)
            except StoreError as error:
                self._context.log.once(what).error("cannot %s: %s", what, error)
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)


def key_conflict(key: str, amount: str) -> DuplicateIdError:
    """Return the error for a key that belongs to another transfer."""
    return DuplicateIdError(f"the key {key!r} belongs to a transfer of {amount}")
