"""The table of a many-account server's accounts, and the rates in it."""

from __future__ import annotations

from datetime import timedelta
from heapq import nlargest
from typing import TYPE_CHECKING

import trio
from attrs import frozen
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..btp.account import AccountSnapshot
    from ..btp.accounts import AccountsPlugin
    from ..statistics import Statistics

__all__ = ["Meter", "View", "accounts_table"]

HEADINGS = ("account", "conns", "requests in", "out", "per s", "received", "sent", "connected")


@frozen(kw_only=True)
class View:
    """What a server does, at one moment.

    Attributes:
        at: When it was, in seconds of Trio's clock.
        accounts: The connected accounts.
        totals: What the server has done since it began, accounts that are gone included.
        rates: Requests a second, both ways, of each account since the view before, by name.
        rate: The server's.
    """

    at: float
    accounts: tuple[AccountSnapshot, ...]
    totals: Statistics
    rates: Mapping[str, float]
    rate: float

    @property
    def connections(self) -> int:
        """How many connections the accounts have together."""
        return sum(account.connections for account in self.accounts)


class Meter:
    """Looks at a server now and then, and tells how fast it was between.

    Args:
        plugin: The server.
    """

    def __init__(self, plugin: AccountsPlugin) -> None:
        self._plugin = plugin
        self._at = trio.current_time()
        self._total = _requests(plugin.statistics())
        self._seen: dict[str, tuple[float, int]] = {}

    def look(self) -> View:
        """Return what the server does now."""
        accounts, totals, now = self._plugin.accounts(), self._plugin.statistics(), trio.current_time()
        elapsed = now - self._at
        rates = {}
        for account in accounts:
            connected_at, before = self._seen.get(account.name, (account.connected_at, 0))
            # One that went and came back counts from zero again.
            done = _requests(account) - (before if connected_at == account.connected_at else 0)
            rates[account.name] = _per_second(done, elapsed)
        rate = _per_second(_requests(totals) - self._total, elapsed)
        self._at, self._total = now, _requests(totals)
        self._seen = {account.name: (account.connected_at, _requests(account)) for account in accounts}
        return View(at=now, accounts=accounts, totals=totals, rates=rates, rate=rate)


def accounts_table(view: View, rows: int) -> Table:
    """Return the table: a line for each account, the longest connected first, and a line for the server.

    Args:
        view: What to show.
        rows: How many accounts there is room for; of more, the busiest are shown.
    """
    shown, totals = view.accounts, view.totals
    if len(shown) > rows:
        shown = tuple(nlargest(rows, shown, key=lambda account: (view.rates[account.name], _requests(account))))
    count = len(view.accounts)
    total = f"{count:,} connected" if len(shown) == count else f"{len(shown):,} of {count:,} shown"
    footers = (total, f"{view.connections:,}", *_numbers(totals, view.rate), "")
    table = Table(show_footer=True, box=None, header_style="bold", footer_style="bold", pad_edge=False)
    # Rich makes those columns narrower that may wrap: names are cut, and no number.
    for heading, footer in zip(HEADINGS, footers, strict=True):
        name = heading == HEADINGS[0]
        table.add_column(heading, _cut(footer), justify="left" if name else "right", no_wrap=not name)
    for account in sorted(shown, key=lambda account: (account.connected_at, account.name)):
        table.add_row(
            _cut(account.name),
            f"{account.connections:,}",
            *_numbers(account, view.rates[account.name]),
            str(timedelta(seconds=int(view.at - account.connected_at))),
        )
    return table


def _cut(text: str) -> Text:
    """Return a text that stays in its line."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _numbers(counted: AccountSnapshot | Statistics, rate: float) -> tuple[str, ...]:
    return (
        f"{counted.requests_received:,}",
        f"{counted.requests_sent:,}",
        f"{rate:,.0f}",
        decimal(counted.bytes_received),
        decimal(counted.bytes_sent),
    )


def _requests(counted: AccountSnapshot | Statistics) -> int:
    return counted.requests_received + counted.requests_sent


def _per_second(count: int, elapsed: float) -> float:
    return count / elapsed if elapsed > 0 else 0.0
