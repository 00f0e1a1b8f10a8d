"""How many connections the accounts of a server may have.

Invariant: an account that has no connection gets one, as long as others have more than one. An account never gets so
many that no descriptors are left for others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..accounts.server import RESERVE
from ..errors import UnreachableError
from ..net.descriptors import links_limit
from .link import CLOSE_NORMAL, Link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..accounts.account import Account
    from ..runtime.context import Context
    from ..runtime.exchange import Exchange
    from .options import AccountsOptions

__all__ = ["LinkLimits"]


class LinkLimits:
    """Makes room for new connections, or refuses them.

    Args:
        options: The limits.
        server: The server's context.
        accounts: The accounts that are connected, by name.
    """

    def __init__(self, options: AccountsOptions, server: Context, accounts: Mapping[str, Account]) -> None:
        self._options = options
        self._server = server
        self._accounts = accounts

    def make_room(self, name: str) -> None:
        """Make room for one more connection of an account, whose oldest idle one is closed if necessary.

        Raises:
            UnreachableError: There is no room.
        """
        account = self._accounts.get(name)
        most = self._options.max_links
        limit = links_limit() if most is None else most
        # Connections that are being closed count too.
        total = self._server.budget.links
        if account is not None and account.links:
            of_account = len(account.links) >= self._options.max_links_per_account
            if of_account or total >= limit * (1.0 - RESERVE):
                self._replace(account, account.find_idle_link(), "the account has too many connections")
        elif total >= limit:
            # There is none while all connections are being closed.
            crowded = max(self._accounts.values(), key=lambda account: len(account.links), default=None)
            idle = crowded.find_idle_link() if crowded is not None and len(crowded.links) > 1 else None
            self._replace(account, idle, "the server has too many connections")

    def _replace(self, account: Account | None, idle: Exchange | None, reason: str) -> None:
        """Close an idle connection.

        Raises:
            UnreachableError: There is none.
        """
        counters = self._server.counters if account is None else account.context.counters
        if idle is None:
            counters.links_refused += 1
            raise UnreachableError(f"{reason}; try again later")
        idle.counters.links_replaced += 1
        if not isinstance(idle, Link) or idle.context.budget.links > 2 * self._options.max_links_per_account:
            # So many are being closed already that this one gets no closing handshake.
            idle.abort(f"{reason}: replaced by a new one")
        else:
            idle.shut(CLOSE_NORMAL, f"{reason}: replaced by a new one")
