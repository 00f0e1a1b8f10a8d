"""The accounts of a server: searched, sorted and cut into pages here, so that a page of ten thousand stays small.

Invariants: looking at the accounts never holds up the server for more than some milliseconds, and the page does not
wait for it: until a look is over, it gets what the one before saw.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import frozen

from ..accounts.looking import Stopwatch, take_snapshots
from ..accounts.rates import AccountRates
from ..accounts.server import AccountsServer
from .pace import Looks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..accounts.account import AccountSnapshot

__all__ = ["AccountsView", "Query"]

MOST_ROWS: Final = 200
LEAST_SECONDS: Final = 1.0

#: How accounts can be sorted, by the names of the columns.
SORTS: Final[Mapping[str, Callable[[_Row], Any]]] = {
    "name": lambda row: row.account.name,
    "connected": lambda row: -row.account.connected_at,
    "connections": lambda row: row.account.connections,
    "rate": lambda row: row.rate,
    "requests_received": lambda row: row.account.requests_received,
    "requests_sent": lambda row: row.account.requests_sent,
    "bytes_received": lambda row: row.account.bytes_received,
    "bytes_sent": lambda row: row.account.bytes_sent,
    "in_use": lambda row: row.in_use,
    "refused": lambda row: row.refused,
}


@frozen
class _Row:
    """One account.

    Attributes:
        account: Its snapshot.
        rate: Its requests a second, both ways.
    """

    account: AccountSnapshot
    rate: float

    @property
    def in_use(self) -> int:
        """How many requests of both directions are under way."""
        return self.account.handlers_running + self.account.calls_in_flight

    @property
    def refused(self) -> int:
        """How many requests and connections were refused, because the account had too many."""
        return self.account.requests_refused + self.account.links_refused


@frozen
class Query:
    """Which accounts are wanted.

    Attributes:
        search: A part of the name, in any case; empty for all.
        sort: The column to sort by; a name that is not known sorts by ``name``.
        descending: Whether the greatest comes first.
        page: The number of the page, from 0.
        rows: How many accounts a page has, at most ``MOST_ROWS``.
    """

    search: str = ""
    sort: str = "name"
    descending: bool = False
    page: int = 0
    rows: int = 50


class AccountsView:
    """The connected accounts of one server.

    Args:
        plugin: The server.
    """

    def __init__(self, plugin: Any) -> None:  # noqa: ANN401 (an AccountsServer, or another plugin with accounts())
        self._plugin = plugin
        self._rates = AccountRates()
        self._rows: list[_Row] = []
        # When they were looked at; None before the first look is over.
        self._at: float | None = None
        #: When they are looked at.
        self.looks: Looks = Looks(self._look, LEAST_SECONDS, "the accounts", plugin.log)

    async def _look(self) -> float:
        stopwatch = Stopwatch()
        accounts = await self._take(stopwatch)
        with stopwatch.running():
            rates = self._rates.update(accounts)
        await trio.lowlevel.checkpoint()
        with stopwatch.running():
            self._rows = sorted((_Row(each, rates[each.name]) for each in accounts), key=SORTS["name"])
        self._at = trio.current_time()
        return stopwatch.seconds

    async def _take(self, stopwatch: Stopwatch) -> list[AccountSnapshot]:
        """Return a snapshot of each connected account.

        Cancellation: Safe at any time.
        """
        if isinstance(self._plugin, AccountsServer):
            return await take_snapshots(self._plugin, stopwatch)
        # A server of another package.
        with stopwatch.running():
            accounts = list(self._plugin.accounts())
        await trio.lowlevel.checkpoint()
        return accounts

    def count(self) -> int:
        """Return how many accounts were connected at the last look."""
        return len(self._rows)

    def page(self, query: Query) -> dict[str, object]:
        """Return a page of the accounts as JSON: its rows, its number, and how many accounts there are and fit.

        The age is that of what was seen, in seconds; None before the first look is over.
        """
        rows = self._rows
        total = len(rows)
        search = query.search.casefold()
        if search:
            rows = [row for row in rows if search in row.account.name.casefold()]
        size = min(max(query.rows, 1), MOST_ROWS)
        pages = max(1, ceil(len(rows) / size))
        page = min(max(query.page, 0), pages - 1)
        if query.sort != "name" or query.descending:
            # Among equals the order by name stays, so that rows do not jump.
            rows = sorted(rows, key=SORTS.get(query.sort, SORTS["name"]), reverse=query.descending)
        shown = rows[page * size : (page + 1) * size]
        now = trio.current_time()
        return {
            "total": total,
            "found": len(rows),
            "page": page,
            "pages": pages,
            "age": None if self._at is None else round(now - self._at, 1),
            "rows": [_as_json(row, now) for row in shown],
        }


def _as_json(row: _Row, now: float) -> dict[str, object]:
    account = row.account
    return {
        "name": account.name,
        "connected": int(now - account.connected_at),
        "connections": account.connections,
        "rate": round(row.rate, 1),
        "requests_received": account.requests_received,
        "requests_sent": account.requests_sent,
        "bytes_received": account.bytes_received,
        "bytes_sent": account.bytes_sent,
        "in_use": row.in_use,
        "refused": row.refused,
    }
