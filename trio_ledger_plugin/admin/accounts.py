"""The accounts of a server: searched, sorted and cut into pages here, so that a page of ten thousand stays small."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import frozen

from ..accounts.rates import AccountRates
from .pace import Cached

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..accounts.account import AccountSnapshot
    from ..accounts.server import AccountsServer

__all__ = ["MOST_ROWS", "AccountsView", "Query"]

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

    def __init__(self, plugin: AccountsServer) -> None:
        self._plugin = plugin
        self._rates = AccountRates()
        self._rows = Cached(self._look, LEAST_SECONDS)

    def _look(self) -> list[_Row]:
        accounts = self._plugin.accounts()
        rates = self._rates.update(accounts)
        return sorted((_Row(account, rates[account.name]) for account in accounts), key=SORTS["name"])

    def count(self) -> int:
        """Return how many accounts are connected."""
        return len(self._rows.get())

    def page(self, query: Query) -> dict[str, object]:
        """Return a page of the accounts as JSON: its rows, its number, and how many accounts there are and fit."""
        rows = self._rows.get()
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
            "age": round(now - self._rows.at, 1),
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
