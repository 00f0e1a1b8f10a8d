"""How much a ledger may keep: received transfers whose keys are remembered, and accounts.

What is kept is counted in the database when the journal is opened and once an hour, and in between as it changes. The
count is not exact in between: a change may be counted twice whose transaction had to run again. It only limits how much
is accepted from now on, so nothing depends on it that was promised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..options.base import PluginOptions
    from ..stores.dialect import Connection
    from .statements import Statements

__all__ = ["UNLIMITED", "Room", "drop_unused"]

#: A limit that nothing reaches.
UNLIMITED: Final = 2**53


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

    def take_place(self) -> bool:
        """Count one more account that is kept; return False if there are too many already."""
        if self.accounts >= self._max_accounts:
            return False
        self.accounts += 1
        return True


def drop_unused(connection: Connection, sql: Statements, place: tuple[str, str], room: Room) -> None:
    """Forget an account of which nothing is known any longer.

    Args:
        connection: The connection, inside a transaction.
        sql: The SQL.
        place: The ledger's name and the account's.
        room: The ledger's room.
    """
    if connection.execute(sql.DROP_UNUSED, (*place, *place)).rowcount:
        room.accounts -= 1
