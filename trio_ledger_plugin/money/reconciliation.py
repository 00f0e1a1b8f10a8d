"""``plugin.transfers``: the totals and the journal, and how to settle transfers in doubt."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeAlias

from ..errors import InvalidFieldsError
from ..transfer import JournalEntry, Totals, TransferDirection, TransferState
from .turns import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from .journal import Journal

    Holding: TypeAlias = Callable[[str, str], AbstractAsyncContextManager[None] | None]

__all__ = ["Transfers"]


class Transfers:
    """The transfers in a plugin's journal, as ``plugin.transfers`` returns them.

    For a server of many accounts, it shows all accounts; for ``account(name)``, only that one.

    Args:
        journal: The journal.
        account: The account; None for all.
        holding: Returns a context in which the transfer of an account and a key is not sent; None if nothing sends it.
    """

    def __init__(self, journal: Journal, account: str | None, holding: Holding | None = None) -> None:
        self._journal = journal
        self._account = account
        self._holding = holding

    async def totals(self, *, account: str | None = None) -> Totals:
        """Return the sums of what was sent, received and is in doubt.

        Args:
            account: Only this account's, if this object shows all accounts of a server.

        Raises:
            TypeError: ``account`` has another type.
            InvalidFieldsError: This object shows another account.
            StoreError: The store failed.

        Cancellation: Safe at any time.
        """
        return await self._journal.totals(self._account if account is None else self._one_account(account))

    def walk(
        self, *, state: TransferState | None = None, direction: TransferDirection | None = None
    ) -> AsyncIterator[JournalEntry]:
        """Iterate over the journal, in the order in which the transfers were entered.

        Transfers that are entered meanwhile are included. Finished transfers are removed after ``key_retention``, and
        incoming ones at PLAIN once a money handler has finished with them.

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
        return _Walk(self._journal, self._account, direction, state)

    async def confirm(self, key: str, *, account: str | None = None) -> None:
        """Settle an outgoing transfer that the peer has applied; it then counts as sent.

        A transfer that is in doubt can be settled, and one that is still being sent again: a try in progress ends
        first, and there is no other.

        Args:
            key: Its idempotency key.
            account: Its account; required if this object shows all accounts of a server.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: It is settled already, or ``account`` is missing; nothing has changed.
            TransferNotFoundError: No transfer was sent under this key; nothing has changed.
            StoreError: The store failed; nothing has changed.

        Cancellation: The transfer may be settled anyway.
        """
        await self._settle(TransferState.ACKED, key, account)

    async def reject(self, key: str, *, account: str | None = None) -> None:
        """Settle an outgoing transfer that the peer has not applied and never will apply.

        A transfer that is in doubt can be settled, and one that is still being sent again: a try in progress ends
        first, and there is no other. To pay again, send a new transfer under a new key: sending under this key raises a
        ``NotAcceptedError``, which says that the transfer was settled by hand.

        Args:
            key: Its idempotency key.
            account: Its account; required if this object shows all accounts of a server.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: It is settled already, or ``account`` is missing; nothing has changed.
            TransferNotFoundError: No transfer was sent under this key; nothing has changed.
            StoreError: The store failed; nothing has changed.

        Cancellation: The transfer may be settled anyway.
        """
        await self._settle(TransferState.REJECTED, key, account)

    async def reset_level(self, *, account: str | None = None) -> None:
        """Allow an account that was at KEYED to use links at PLAIN again.

        Call this only once it is certain that the peer has lost its journal for good, or is another program now.
        Transfers that were waiting to be sent again are in doubt afterwards; reconcile them.

        Args:
            account: The account; required if this object shows all accounts of a server.

        Raises:
            TypeError: ``account`` has another type.
            InvalidFieldsError: ``account`` is missing, not known, or not at KEYED; nothing has changed.
            StoreError: The store failed; nothing has changed.

        Cancellation: The level may be reset anyway.
        """
        name = self._one_account(account)
        self._journal.check_owner()
        await self._journal.run(name, self._journal.sql.reset_level, name)

    async def _settle(self, state: TransferState, key: str, account: str | None) -> None:
        if not isinstance(key, str):
            raise TypeError(f"key is text, not {type(key).__name__}")
        name = self._one_account(account)
        self._journal.check_owner()
        holding = None if self._holding is None else self._holding(name, key)
        async with holding or nullcontext():
            await self._journal.run(name, self._journal.sql.history.settle, name, key, state)

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
        self, journal: Journal, account: str | None, direction: TransferDirection | None, state: TransferState | None
    ) -> None:
        self._journal = journal
        self._filter = account, direction, state
        self._entries: deque[JournalEntry] = deque()
        self._after: int | None = 0

    def __aiter__(self) -> _Walk:
        return self

    async def __anext__(self) -> JournalEntry:
        while not self._entries:
            if self._after is None:
                raise StopAsyncIteration
            page = await self._journal.read(BACKGROUND, self._journal.sql.history.page, *self._filter, self._after)
            self._entries.extend(page.entries)
            self._after = page.after
        return self._entries.popleft()


def _check(name: str, value: object, expected: type) -> None:
    if value is not None and not isinstance(value, expected):
        raise TypeError(f"{name} is a {expected.__name__} or None, not {type(value).__name__}")
