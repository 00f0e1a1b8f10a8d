"""An application that sends money correctly: it records a key for each transfer before it uses the key.

After a restart it asks again for every key without a recorded outcome, and then continues with new ones. The amounts
identify the transfers, at PLAIN too, where no key is sent; and the sum of any two exceeds 64 bits.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio
from book import Book, read_lines

from trio_ledger_plugin import (
    NotConnectedError,
    PluginClosedError,
    RemoteError,
    StoreInDoubtError,
    TransferInDoubtError,
)
from trio_ledger_plugin.money.doubts import SETTLE_BY_HAND

if TYPE_CHECKING:
    from pathlib import Path

    from trio_ledger_plugin import LedgerPlugin

__all__ = ["BASE", "Sending", "is_refused"]

BASE = 2**63
# Transfers whose amount is a multiple of it are refused by handlers that can refuse.
REFUSED = 17


def is_refused(amount: int) -> bool:
    return amount % REFUSED == 0


class Sending:
    """Sends transfers of one account, several at a time, until it is asked to finish.

    Args:
        plugin: What sends.
        path: Where the application writes down what it has asked for and what came of it.
        first: The first amount; each application has a range of its own.
        keyed: Whether to ask again when a transfer is in doubt.
        others: Whether a transfer at KEYED may be in doubt for good, because a store was replaced.
    """

    def __init__(self, plugin: LedgerPlugin, path: Path, first: int, *, keyed: bool, others: bool) -> None:
        self._plugin = plugin
        self._keyed = keyed
        self._others = others
        lines = read_lines(path)
        settled = {amount for word, amount in lines if word != "ask"}
        self._unsure = deque(amount for word, amount in lines if word == "ask" and amount not in settled)
        self._next = max([first, *(int(amount) + 1 for word, amount in lines if word == "ask")])
        self._book = Book(path)
        self.finishing = False

    async def run(self, lanes: int) -> None:
        """Keep a number of transfers in flight; return when asked to finish and every transfer is settled.

        Cancellation: Like a program that stops: the next run asks again.
        """
        async with trio.open_nursery() as nursery:
            for _ in range(lanes):
                nursery.start_soon(self._lane)

    async def _lane(self) -> None:
        while amount := self._pick():
            await self._settle(amount)

    def _pick(self) -> str | None:
        if self._unsure:
            return self._unsure.popleft()
        if self.finishing:
            return None
        amount, self._next = str(self._next), self._next + 1
        self._book.write("ask", amount)
        return amount

    async def _settle(self, amount: str) -> None:
        """Ask under the same key until there is an outcome, and write it down."""
        while True:
            try:
                await self._plugin.send_money(amount, idempotency_key=f"key-{amount}")
            except (TransferInDoubtError, StoreInDoubtError) as error:
                if not self._keyed or (self._others and SETTLE_BY_HAND in str(error)):
                    self._book.write("doubt", amount)
                    return
            except (NotConnectedError, PluginClosedError):
                await trio.sleep(0.01)
            except RemoteError as error:
                if not error.code.startswith("T"):
                    self._book.write("refused", amount)
                    return
                await trio.sleep(0.01)
            else:
                self._book.write("done", amount)
                return
