"""How much a ledger may keep: received transfers whose keys are remembered, and accounts.

What is kept is counted in the database when the journal is opened and once an hour, and in between as it changes. A
change is counted within its transaction: works that share one must not all count on the same room. It is taken back
when the transaction is undone; in a store that the application provides, only the next count notices that. The count
limits how much is accepted from now on, so nothing depends on it that was promised.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from ..stores.undoing import when_undone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..options.base import PluginOptions
    from ..stores.dialect import Connection
    from .statements import Statements

__all__ = ["UNLIMITED", "Room", "drop_unused"]

#: A limit that nothing reaches.
UNLIMITED: Final = 2**53
# Greater than every age of a ledger.
NEVER: Final = 1e300


class Room:
    """The room in one ledger.

    Args:
        max_keys: How many received transfers are remembered for one account at most.
        max_ledger_keys: The same for all accounts together.
        max_accounts: How many accounts are kept at most.

    Attributes:
        keys: How many received transfers are remembered.
        accounts: How many accounts are kept.
    """

    def __init__(
        self, max_keys: int = UNLIMITED, max_ledger_keys: int = UNLIMITED, max_accounts: int = UNLIMITED
    ) -> None:
        self._max_keys = max_keys
        self._max_ledger_keys = max_ledger_keys
        self._max_accounts = max_accounts
        self.keys: int = 0
        self.accounts: int = 0
        # The count that is under way: up to which account, and what was found so far.
        self._counted: tuple[str, int, int] | None = None

    @classmethod
    def of(cls, options: PluginOptions) -> Room:
        """Return the room that a plugin's options allow."""
        return cls(options.max_transfer_keys, options.max_ledger_keys, options.max_accounts)

    @property
    def for_account(self) -> int:
        """How many received transfers may be remembered for one account now.

        At most as many as are free: so however many accounts take what they can get, some room is left for another one,
        and none can take it all.
        """
        return max(0, min(self._max_keys, self._max_ledger_keys - self.keys))

    def take_place(self, connection: Connection, account: str) -> bool:
        """Count one more account that is kept; return False if there are too many already."""
        if self.accounts >= self._max_accounts:
            return False
        self.add(connection, account, accounts=1)
        return True

    def add(self, connection: Connection, account: str, *, keys: int = 0, accounts: int = 0) -> None:
        """Count a change of what is kept for an account, unless the transaction is undone."""
        self._add(account, keys, accounts)
        when_undone(connection, partial(self._add, account, -keys, -accounts))

    def _add(self, account: str, keys: int, accounts: int) -> None:
        self.keys += keys
        self.accounts += accounts
        if self._counted is not None and account <= self._counted[0]:
            # Of the accounts behind, the count will find what they have then.
            upto, counted_keys, counted_accounts = self._counted
            self._counted = upto, counted_keys + keys, counted_accounts + accounts

    def count(self, connection: Connection, page: Sequence[tuple[str, int]], *, is_first: bool, is_last: bool) -> None:
        """Count what is in the database, page by page, while it changes.

        Args:
            connection: The connection, inside a transaction.
            page: Accounts in the order of their names, with the number of their remembered transfers.
            is_first: Whether a count begins.
            is_last: Whether it ends.
        """
        before = self._counted
        _, keys, accounts = ("", 0, 0) if is_first or before is None else before
        keys, accounts = keys + sum(number for _, number in page), accounts + len(page)
        if is_last:
            when_undone(connection, partial(self._count_back, before, self.keys - keys, self.accounts - accounts))
            self.keys, self.accounts, self._counted = keys, accounts, None
        else:
            when_undone(connection, partial(self._count_back, before, 0, 0))
            self._counted = page[-1][0], keys, accounts

    def _count_back(self, counted: tuple[str, int, int] | None, keys: int, accounts: int) -> None:
        """Take a page back, which is counted again."""
        self.keys, self.accounts, self._counted = self.keys + keys, self.accounts + accounts, counted


def drop_unused(connection: Connection, sql: Statements, place: tuple[str, str], room: Room) -> None:
    """Forget an account of which nothing is known any longer.

    Args:
        connection: The connection, inside a transaction.
        sql: The SQL.
        place: The ledger's name and the account's.
        room: The ledger's room.
    """
    if connection.execute(sql.DROP_UNUSED, place).rowcount:
        connection.execute(sql.DROP_OLD_PEERS, (*place, NEVER))
        room.add(connection, place[1], accounts=-1)
