"""The money of a server's accounts, for the table of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from attrs import evolve

from ..errors import StoreError
from ..transfer import Totals

if TYPE_CHECKING:
    from ..money.reconciliation import Transfers
    from ..transfer import Transfer

__all__ = ["MoneyMeter"]

LOOK_SECONDS = 1.0
# How many accounts are remembered without a journal.
MOST_COUNTED = 10_000
# How many looks pass until all accounts are added up, which reads every account's sums.
LOOKS_A_TOTAL = 5


class MoneyMeter:
    """What accounts have received and sent, and what is in doubt.

    Args:
        transfers: The journal; None if the server keeps none. Then only what arrives while the server runs is counted.
    """

    def __init__(self, transfers: Transfers | None) -> None:
        self._transfers = transfers
        self.accounts: dict[str, Totals] = {}
        self.total: Totals = Totals(0, 0, 0)
        #: The accounts that the table shows: only theirs are read.
        self.shown: tuple[str, ...] = ()

    def count(self, transfer: Transfer) -> None:
        """Count a transfer from an account, if there is no journal that does."""
        if self._transfers is None:
            known = self.accounts.get(transfer.account, Totals(0, 0, 0))
            amount = int(transfer.amount)
            self.accounts[transfer.account] = evolve(known, received=known.received + amount)
            if len(self.accounts) > MOST_COUNTED:
                del self.accounts[next(iter(self.accounts))]
            self.total = evolve(self.total, received=self.total.received + amount)

    async def follow(self) -> None:
        """Read the journal at intervals until cancelled.

        While the store fails, the last sums stay: the plugin's log has its error.
        """
        looks = 0
        while self._transfers is not None:
            try:
                for name in self.shown:
                    self.accounts[name] = await self._transfers.totals(account=name)
                if looks % LOOKS_A_TOTAL == 0:
                    self.total = await self._transfers.totals()
                looks += 1
            except StoreError:
                looks = 0
            for gone in self.accounts.keys() - set(self.shown):
                del self.accounts[gone]
            await trio.sleep(LOOK_SECONDS)
