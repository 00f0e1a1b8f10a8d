"""``plugin.transfers``: the totals and the journal, and how to settle transfers in doubt."""

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
    """The transfers in a plugin's journal, as ``plugin.transfers`` returns them.

    For a server of many accounts, it shows all accounts; for ``account(name)``, only that one.

    Args:
        ledger: The ledger with the journal.
        account: The account; None for all.
    """

    def __init__(self, ledger: Ledger, account: str | None) -> None:
        self._ledger = ledger
        self._account = account

    async def totals(self) -> Totals:
        """Return the sums of what was sent, received and is in doubt.

        Raises:
            StoreError: The store failed.

        Cancellation: Safe at any time.
        """
        return await self._ledger.run(self._ledger.journal.totals, self._account)

    def walk(
        self, *, state: TransferState | None = None, direction: TransferDirection | None = None
    ) -> AsyncIterator[JournalEntry]:
        """Iterate over the journal, in the order in which the transfers were entered.

        Transfers that are entered meanwhile are included. Finished transfers are removed after ``key_retention``.

        Args:
            state: Only transfers in this state.
            direction: Only transfers in this direction.

        Returns:
            An asynchronous iterator over the entries. A loop over it may be left at any time.

        Raises:
            TypeError: An argument has another type.
            StoreError: In the loop: the store failed.

        Cancellation: Safe at any time.
        """
        _check("state", state, TransferState)
        _check("direction", direction, TransferDirection)
        return _Walk(self._ledger, self._account, direction, state)

    async def confirm(self, key: str, *, account: str | None = None) -> None:
        """Settle an outgoing transfer in doubt that the peer has applied; it then counts as sent.

        Does nothing if it is acknowledged already.

        Args:
            key: Its idempotency key.
            account: Its account; required if this object shows all accounts of a server.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: It is not in doubt, or ``account`` is missing.
            TransferNotFoundError: No transfer was sent under this key.
            StoreError: The store failed; nothing has changed.

        Cancellation: The transfer may be settled anyway.
        """
        await self._settle(self._ledger.journal.confirm, key, account)

    async def reject(self, key: str, *, account: str | None = None) -> None:
        """Settle an outgoing transfer in doubt that the peer has not applied and never will apply.

        Does nothing if it is rejected already. To pay again, send a new transfer under a new key: sending under this
        key raises a ``NotAcceptedError``, which says that the transfer was settled by hand.

        Args:
            key: Its idempotency key.
            account: Its account; required if this object shows all accounts of a server.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: It is not in doubt, or ``account`` is missing.
            TransferNotFoundError: No transfer was sent under this key.
            StoreError: The store failed; nothing has changed.

        Cancellation: The transfer may be settled anyway.
        """
        await self._settle(self._ledger.journal.reject, key, account)

    async def reset_level(self, *, account: str | None = None) -> None:
        """Allow an account that was at KEYED to use links at PLAIN again.

        Call this only once it is certain that the peer has lost its journal for good, or is another program now.
        Transfers that were waiting to be sent again are in doubt afterwards; reconcile them.

        Args:
            account: The account; required if this object shows all accounts of a server.

        Raises:
            TypeError: ``account`` has another type.
            InvalidFieldsError: ``account`` is missing.
            StoreError: The store failed; nothing has changed.

        Cancellation: The level may be reset anyway.
        """
        await self._ledger.run(self._ledger.journal.reset_level, self._one_account(account))

    async def _settle(self, settle: Callable[..., None], key: str, account: str | None) -> None:
        if not isinstance(key, str):
            raise TypeError(f"key is text, not {type(key).__name__}")
        await self._ledger.run(settle, self._one_account(account), key)

    def _one_account(self, account: str | None) -> str:
        _check("account", account, str)
        if self._account is not None and account not in (None, self._account):
            raise InvalidFieldsError(f"account is {account!r}; this object shows {self._account!r}")
        if account is None and self._account is None:
            raise InvalidFieldsError("account is missing; this object shows all accounts of a server")
        return account if account is not None else str(self._account)


class _Walk:
    """Iterates over the journal, page by page. Not a generator, which would have to be closed if a loop is left."""

    def __init__(
        self, ledger: Ledger, account: str | None, direction: TransferDirection | None, state: TransferState | None
    ) -> None:
        self._ledger = ledger
        self._filter = account, direction, state
        self._page: deque[JournalEntry] = deque()
        self._after = 0

    def __aiter__(self) -> _Walk:
        return self

    async def __anext__(self) -> JournalEntry:
        if not self._page:
            self._page.extend(await self._ledger.run(self._ledger.journal.page, *self._filter, self._after))
            if not self._page:
                raise StopAsyncIteration
        entry = self._page.popleft()
        self._after = entry.number
        return entry


def _check(name: str, value: object, expected: type) -> None:
    if value is not None and not isinstance(value, expected):
        raise TypeError(f"{name} is a {expected.__name__} or None, not {type(value).__name__}")
