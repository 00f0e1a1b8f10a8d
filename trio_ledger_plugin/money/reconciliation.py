"""``plugin.transfers``: what has moved, and what to do about a transfer in doubt."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..errors import InvalidFieldsError
from ..transfer import JournalEntry, Totals, TransferDirection, TransferState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .ledger import Ledger

__all__ = ["Transfers"]


class Transfers:
    """The transfers of a plugin, from its journal; ``plugin.transfers`` gives it.

    Of a server of many accounts it shows all accounts; of ``account(name)``, that one.

    Args:
        ledger: The journal's keeper.
        account: The account; None for all.
    """

    def __init__(self, ledger: Ledger, account: str | None) -> None:
        self._ledger = ledger
        self._account = account

    async def totals(self) -> Totals:
        """Return what was sent, what was received, and what is in doubt.

        Raises:
            StoreError: The store failed.

        Cancellation: Safe at any time.
        """
        return await self._ledger.run(self._ledger.journal.totals, self._account)

    def walk(
        self, *, state: TransferState | None = None, direction: TransferDirection | None = None
    ) -> AsyncIterator[JournalEntry]:
        """Go through the journal, in the order in which the transfers were entered.

        What is entered meanwhile is seen as well. Finished transfers are forgotten after ``key_retention``.

        Args:
            state: Only those in this state.
            direction: Only those that go this way.

        Returns:
            What gives one transfer after the other. A loop over it may be left at any time.

        Raises:
            TypeError: An argument has another type.
            StoreError: In the loop: the store failed.

        Cancellation: Safe at any time.
        """
        _check("state", state, TransferState)
        _check("direction", direction, TransferDirection)
        return _Walk(self._ledger, self._account, direction, state)

    async def confirm(self, key: str, *, account: str | None = None) -> None:
        """Settle a transfer of ours in doubt: the peer has applied it. It counts as sent from here on.

        Does nothing when it is acknowledged already.

        Args:
            key: Its idempotency key.
            account: Its account, where this object shows all accounts of a server.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: It is not in doubt, or ``account`` is missing.
            TransferNotFoundError: No transfer was sent under this key.
            StoreError: The store failed; nothing has changed.

        Cancellation: It may be settled.
        """
        await self._settle(self._ledger.journal.confirm, key, account)

    async def reject(self, key: str, *, account: str | None = None) -> None:
        """Settle a transfer of ours in doubt: the peer has not applied it, and never will. It may be sent anew.

        Does nothing when it is rejected already. A new transfer needs a key of its own: who sends under this one
        again gets a ``NotAcceptedError``, which says that it was settled by hand.

        Args:
            key: Its idempotency key.
            account: Its account, where this object shows all accounts of a server.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: It is not in doubt, or ``account`` is missing.
            TransferNotFoundError: No transfer was sent under this key.
            StoreError: The store failed; nothing has changed.

        Cancellation: It may be settled.
        """
        await self._settle(self._ledger.journal.reject, key, account)

    async def reset_level(self, *, account: str | None = None) -> None:
        """Let money of an account that was at KEYED go over a link at PLAIN again.

        To be called once it is certain that the peer's journal is gone for good, or that the peer is another program
        now. Transfers that were to be sent again are in doubt from here on; reconcile them.

        Args:
            account: The account, where this object shows all accounts of a server.

        Raises:
            TypeError: ``account`` has another type.
            InvalidFieldsError: ``account`` is missing.
            StoreError: The store failed; nothing has changed.

        Cancellation: It may be reset.
        """
        await self._ledger.run(self._ledger.journal.reset_level, self._one(account))

    async def _settle(self, settle: Callable[..., None], key: str, account: str | None) -> None:
        if not isinstance(key, str):
            raise TypeError(f"key is text, not {type(key).__name__}")
        await self._ledger.run(settle, self._one(account), key)

    def _one(self, account: str | None) -> str:
        _check("account", account, str)
        if self._account is not None and account not in (None, self._account):
            raise InvalidFieldsError(f"account is {account!r}; this object shows {self._account!r}")
        if account is None and self._account is None:
            raise InvalidFieldsError("account is missing; this object shows all accounts of a server")
        return account if account is not None else str(self._account)


class _Walk:
    """The journal, page by page. No generator: one that is left in the middle would have to be closed."""

    def __init__(
        self, ledger: Ledger, account: str | None, direction: TransferDirection | None, state: TransferState | None
    ) -> None:
        self._ledger = ledger
        self._which = account, direction, state
        self._page: deque[JournalEntry] = deque()
        self._after = 0

    def __aiter__(self) -> _Walk:
        return self

    async def __anext__(self) -> JournalEntry:
        if not self._page:
            self._page.extend(await self._ledger.run(self._ledger.journal.page, *self._which, self._after))
            if not self._page:
                raise StopAsyncIteration
        entry = self._page.popleft()
        self._after = entry.number
        return entry


def _check(name: str, value: object, right: type) -> None:
    if value is not None and not isinstance(value, right):
        raise TypeError(f"{name} is a {right.__name__} or None, not {type(value).__name__}")
