"""Tells the application and the operator about transfers in doubt: many at once are one warning and one event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..errors import StoreError
from ..events import TransfersInDoubt
from .turns import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..events import Event
    from ..negotiation import PeerJournal
    from ..runtime.context import Context
    from .journal import Journal

__all__ = ["SETTLE_BY_HAND", "Doubts", "describe_doubts"]

# What an operator can do, for errors and the log.
SETTLE_BY_HAND: Final = (
    "find out what the peer has applied, and settle it with transfers.confirm() or transfers.reject()"
)
# How long further doubts are waited for. The loss of a link puts all transfers in flight in doubt at once.
COLLECT_SECONDS: Final = 0.1


class Doubts:
    """Reports transfers in doubt.

    Args:
        context: What the parts of the plugin share.
        publish: Publishes an event of the plugin.
    """

    def __init__(self, context: Context, publish: Callable[[Event], None]) -> None:
        self._context = context
        self._publish = publish
        self._count = 0
        self._amount = 0

    def add(self, amount: int, count: int = 1) -> None:
        """Report transfers that are in doubt from now on.

        Args:
            amount: Their sum.
            count: Their number.
        """
        if not count:
            return
        first = not self._count
        self._count, self._amount = self._count + count, self._amount + amount
        if first:
            try:
                self._context.tasks.spawn(self._report_soon)
            except RuntimeError:
                self._report()

    async def _report_soon(self) -> None:
        try:
            await trio.sleep(COLLECT_SECONDS)
        finally:
            self._report()

    def _report(self) -> None:
        count, amount, self._count, self._amount = self._count, self._amount, 0, 0
        event = TransfersInDoubt(count, amount)
        self._context.log.warn("%s now: %s", describe_doubts(event), SETTLE_BY_HAND)
        self._publish(event)

    async def report_earlier(self, journal: Journal) -> None:
        """Report the transfers that are in doubt since an earlier run.

        Cancellation: Safe at any time.
        """
        count = amount = 0
        after: int | None = 0
        try:
            while after is not None:
                more, sum_of, after = await journal.run(BACKGROUND, journal.sql.history.in_doubt, after)
                count, amount = count + more, amount + sum_of
        except StoreError as error:
            self._context.log.warn("cannot look for transfers in doubt: %s", error)
            return
        if count:
            event = TransfersInDoubt(count, amount)
            self._context.log.warn("%s: %s", describe_doubts(event), SETTLE_BY_HAND)
            self._publish(event)

    async def meet(self, journal: Journal, account: str, peer: PeerJournal) -> int:
        """Compare the peer's journal of a new link with what is known of it, and report what is wrong.

        If the peer's journal or this one was replaced or restored from a copy, the account's open transfers are in
        doubt: sending them again could apply them twice.

        Args:
            journal: This end's journal.
            account: The account.
            peer: The peer's journal.

        Returns:
            How many transfers are in doubt because of it.

        Raises:
            StoreError: The store failed.

        Cancellation: The comparison may be recorded.
        """
        meeting = await journal.run(account, journal.sql.peers.meet, account, peer)
        if meeting.trouble:
            peers = journal.sql.peers
            credited = await journal.run(BACKGROUND, peers.credits_lost, account, peer.id, meeting.lost_credits)
            sent = await journal.run(BACKGROUND, peers.sendings_lost, account, peer.id, meeting.lost_sendings)
            doubts = TransfersInDoubt(meeting.doubts, meeting.amount)
            self._context.log.error(
                "the peer%s: %s.%s%s%s",
                f" of account {account}" if account else "",
                meeting.trouble,
                f" Because of this, {describe_doubts(doubts)} and not sent again." if meeting.doubts else "",
                f" The last transfers that it acknowledged and has lost: {_name(credited)}." if credited else "",
                f" The last transfers that it sent and has lost: {_name(sent)}." if sent else "",
            )
            self.add(meeting.amount, meeting.doubts)
        return meeting.doubts


def _name(transfers: list[tuple[str, str]]) -> str:
    return ", ".join(f"{key!r} of {amount}" for key, amount in transfers)


def describe_doubts(event: TransfersInDoubt) -> str:
    """Return what an event says, as the beginning of a sentence."""
    if event.count == 1:
        return f"1 transfer of {event.amount} is in doubt"
    return f"{event.count} transfers of {event.amount} in all are in doubt"
