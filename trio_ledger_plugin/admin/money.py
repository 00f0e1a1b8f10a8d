"""The transfers of one plugin: sums, those in doubt, how many are in each state, and settling one by hand.

Invariants: all of it is read through ``plugin.transfers``, slowly enough to leave the store to the plugin. A store that
hangs delays whoever wants to know how it is, by some seconds, and the page gets what was seen last.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ..errors import InvalidServicesError, LedgerPluginError
from ..transfer import TransferState
from .pace import Looks, rest_after

if TYPE_CHECKING:
    from ..money.reconciliation import Transfers
    from ..plugin import LedgerPlugin
    from ..transfer import JournalEntry, Totals, TransferDirection

__all__ = ["Money", "MoneyView"]

# How many transfers in doubt the page can list; there may be more.
MOST_LISTED: Final = 1000
LEAST_SECONDS: Final = 1.0
# How long the store may take for one answer until it counts as failed. A look needs several, if much is in doubt.
STORE_SECONDS: Final = 5
# The whole journal is counted in slices, with a rest after each, and again after a while.
SLICE: Final = 200
SLICE_REST: Final = 0.05
COUNT_AGAIN_SECONDS: Final = 10.0


@frozen
class Money:
    """What the journal contains.

    Attributes:
        totals: The sums of amounts.
        count: How many transfers are in doubt.
        oldest: When the first of them was sent (aware); None if there is none.
        doubts: The first of them, in the order in which they were sent.
        store_seconds: How long the store took to answer one question, the wait for its turn included.
    """

    totals: Totals
    count: int
    oldest: datetime | None
    doubts: tuple[JournalEntry, ...]
    store_seconds: float

    @property
    def oldest_seconds(self) -> float:
        """The age of the oldest transfer in doubt; 0 if there is none."""
        return 0.0 if self.oldest is None else max(0.0, (datetime.now(UTC) - self.oldest).total_seconds())


class MoneyView:
    """The transfers of one plugin.

    Args:
        plugin: The plugin.
    """

    def __init__(self, plugin: LedgerPlugin) -> None:
        self._plugin = plugin
        #: When it is looked at.
        self.looks: Looks = Looks(self._look, LEAST_SECONDS, "the journal", plugin.log)
        #: What was seen last; None before the first look.
        self.seen: Money | None = None
        #: Whether the store failed, or did not answer in time, at the last look.
        self.has_failed: bool = False
        #: How many transfers are in each state, as the last whole count has it.
        self.states: Counter[tuple[TransferDirection, TransferState]] = Counter()

    @property
    def transfers(self) -> Transfers | None:
        """The journal; None if the plugin keeps none."""
        try:
            return self._plugin.transfers
        except InvalidServicesError:
            return None

    async def _look(self) -> float:
        transfers = self.transfers
        if transfers is None:
            return 0.0
        began = trio.current_time()
        has_failed = True
        try:
            with trio.move_on_after(STORE_SECONDS) as waiting:
                self.seen = await _read(transfers, waiting)
                has_failed = False
            if waiting.cancelled_caught:
                self._plugin.log.once().warn("the journal did not answer the admin page in %s s", STORE_SECONDS)
        except LedgerPluginError as error:
            # Not only the store: the plugin may be closed.
            self._plugin.log.once().warn("the admin page cannot read the journal: %s", error)
        finally:
            self.has_failed = has_failed
        return trio.current_time() - began

    async def count_states(self) -> None:
        """Count the transfers in each state, again and again, until cancelled.

        Cancellation: Safe at any time.
        """
        while (transfers := self.transfers) is not None:
            states: Counter[tuple[TransferDirection, TransferState]] = Counter()
            read, began = 0, trio.current_time()
            try:
                async for entry in transfers.walk():
                    states[entry.direction, entry.state] += 1
                    read += 1
                    if read % SLICE == 0:
                        await trio.sleep(rest_after(trio.current_time() - began, SLICE_REST))
                        began = trio.current_time()
                self.states = states
            except LedgerPluginError as error:
                # The plugin may be closed, or its store may fail.
                self._plugin.log.debug("the admin page cannot count the transfers: %s", error)
            except Exception as error:  # noqa: BLE001 (the server, which is only watched, goes on)
                self._plugin.log.once().error("the admin page cannot count the transfers: %O", error)
            await trio.sleep(COUNT_AGAIN_SECONDS)

    async def settle(self, account: str, key: str, *, is_applied: bool) -> None:
        """Settle a transfer in doubt, as ``Transfers.confirm`` and ``Transfers.reject`` do.

        Args:
            account: Its account; empty for a plugin with one peer.
            key: Its key.
            is_applied: Whether the peer has applied it.

        Raises:
            InvalidServicesError: There is no journal.
            LedgerPluginError: As these methods document.

        Cancellation: The transfer may be settled anyway.
        """
        transfers = self._plugin.transfers
        settle = transfers.confirm if is_applied else transfers.reject
        await settle(key, account=account if self._plugin.has_accounts else None)
        whose = f" of account {account}" if account else ""
        outcome = "applied" if is_applied else "not applied"
        self._plugin.log.info("the transfer %s%s was settled on the admin page as %s", key, whose, outcome)
        self.looks.expire()
        # The page asks next, and should not get what was seen before. But it is settled, which the answer must say in
        # time, however long that took and however the look goes.
        left = trio.current_effective_deadline() - trio.current_time()
        await self.looks.wait(min(STORE_SECONDS, max(0.0, left / 2)))


async def _read(transfers: Transfers, waiting: trio.CancelScope) -> Money:
    """Read it all; the deadline of ``waiting`` is moved with each answer of the store."""
    began = trio.current_time()
    store_seconds = None
    doubts: list[JournalEntry] = []
    count = 0
    async for entry in transfers.walk(state=TransferState.IN_DOUBT):
        if store_seconds is None:
            store_seconds = trio.current_time() - began
        count += 1
        if count % SLICE == 1:
            waiting.deadline = trio.current_time() + STORE_SECONDS
        if len(doubts) < MOST_LISTED:
            doubts.append(entry)
    if store_seconds is None:
        store_seconds = trio.current_time() - began
    waiting.deadline = trio.current_time() + STORE_SECONDS
    totals = await transfers.totals()
    return Money(totals, count, doubts[0].created if doubts else None, tuple(doubts), store_seconds)
