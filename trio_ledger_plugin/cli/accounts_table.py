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

from ..accounts.looking import Stopwatch, take_snapshots
from ..accounts.rates import AccountRates, per_second
from ..transfer import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from ..accounts.account import AccountSnapshot
    from ..accounts.server import AccountsServer
    from ..statistics import Statistics

__all__ = ["Meter", "View", "accounts_table", "busiest"]

MONEY = ("money in", "money out", "in doubt")
HEADINGS = ("account", "conns", "requests in", "out", "per s", "received", "sent", *MONEY, "connected")
# The columns that a narrow terminal leaves out, in this order. A number that is cut would be another number.
OPTIONAL = ("connected", "conns", "sent", "received", "out", "requests in", *MONEY)
NOTHING = Totals(0, 0, 0)
SHORTEST_NAME = 8
# How many times as long as a look takes passes before the next.
REST = 50
BETWEEN_COLUMNS = 2


@frozen(kw_only=True)
class View:
    """What a server does at one moment.

    Attributes:
        at: The moment, in seconds of Trio's clock.
        accounts: The connected accounts.
        totals: What the server has done since it started, including accounts that have disconnected.
        rates: Requests a second, both ways, of each account since the previous view, by name.
        rate: Requests a second of the whole server.
        money: What each account has received and sent and what is in doubt, by name; None if the server has no money.
        money_total: The same of all accounts.
    """

    at: float
    accounts: tuple[AccountSnapshot, ...]
    totals: Statistics
    rates: Mapping[str, float]
    rate: float
    money: Mapping[str, Totals] | None = None
    money_total: Totals = NOTHING

    @property
    def connections(self) -> int:
        """How many connections all accounts have."""
        return sum(account.connections for account in self.accounts)


class Meter:
    """Computes a server's rates between one look and the next.

    Args:
        plugin: The server.
    """

    def __init__(self, plugin: AccountsServer) -> None:
        self._plugin = plugin
        self._at = trio.current_time()
        self._total = _requests(plugin.statistics())
        self._rates = AccountRates()
        #: What the server does, as the last look has it; None before the first.
        self.view: View | None = None

    async def look(self) -> View:
        """Return what the server does now; other tasks run meanwhile.

        Cancellation: Safe at any time.
        """
        self.view = await self._look(Stopwatch())
        return self.view

    async def _look(self, stopwatch: Stopwatch) -> View:
        accounts = tuple(await take_snapshots(self._plugin, stopwatch))
        with stopwatch.running():
            totals, now = self._plugin.statistics(), trio.current_time()
            rate = per_second(_requests(totals) - self._total, now - self._at)
            self._at, self._total = now, _requests(totals)
        await trio.lowlevel.checkpoint()
        with stopwatch.running():
            rates = self._rates.update(accounts)
        return View(at=now, accounts=accounts, totals=totals, rates=rates, rate=rate)

    async def follow(self, seconds: float, see: Callable[[View], None]) -> None:
        """Look at intervals until cancelled; the intervals are longer if looking takes long.

        Args:
            seconds: The seconds between two looks, at least.
            see: Called with what each look has found.
        """
        while True:
            stopwatch = Stopwatch()
            self.view = await self._look(stopwatch)
            with stopwatch.running():
                see(self.view)
            await trio.sleep(max(seconds, REST * stopwatch.seconds))


def busiest(view: View, rows: int) -> tuple[AccountSnapshot, ...]:
    """Return the accounts to show: as many as fit, the busiest of them, the longest connected first."""
    shown = view.accounts
    if len(shown) > rows:
        shown = tuple(nlargest(rows, shown, key=lambda account: (view.rates[account.name], _requests(account))))
    return tuple(sorted(shown, key=lambda account: (account.connected_at, account.name)))


def accounts_table(view: View, rows: int, width: int) -> Table:
    """Return the table: a line for each account, the longest connected first, and one for the server.

    Args:
        view: What to show.
        rows: How many accounts fit; if there are more, the busiest are shown.
        width: How many characters fit in a line; columns that do not fit are left out.
    """
    shown, totals = busiest(view, rows), view.totals
    count = len(view.accounts)
    total = f"{count:,} connected" if len(shown) == count else f"{len(shown):,} of {count:,} shown"
    cells = [
        (
            account.name,
            f"{account.connections:,}",
            *_numbers(account, view.rates[account.name]),
            *_amounts((view.money or {}).get(account.name, NOTHING)),
            str(timedelta(seconds=int(view.at - account.connected_at))),
        )
        for account in shown
    ]
    footers = (total, f"{view.connections:,}", *_numbers(totals, view.rate), *_amounts(view.money_total), "")
    hidden = MONEY if view.money is None else ()
    fitting = _fitting([HEADINGS, *cells, footers], width, hidden)
    table = Table(show_footer=True, box=None, header_style="bold", footer_style="bold", pad_edge=False)
    # Rich shrinks only columns that may wrap, so names are cut and numbers are not.
    for at in fitting:
        table.add_column(HEADINGS[at], _cut(footers[at]), justify="right" if at else "left", no_wrap=at > 0)
    for row in cells:
        table.add_row(*(_cut(row[at]) for at in fitting))
    return table


def _fitting(lines: Sequence[Sequence[str]], width: int, hidden: Collection[str]) -> list[int]:
    """Return the numbers of the columns that fit in a width, without hidden ones."""
    # Names can be cut.
    widths = [SHORTEST_NAME, *(max(map(len, column)) for column in list(zip(*lines, strict=True))[1:])]
    left = [at for at, heading in enumerate(HEADINGS) if heading not in hidden]
    for heading in OPTIONAL:
        if heading in hidden:
            continue
        if sum(widths[at] + BETWEEN_COLUMNS for at in left) - BETWEEN_COLUMNS <= width:
            break
        left.remove(HEADINGS.index(heading))
    return left


def _cut(text: str) -> Text:
    """Return a text that is cut rather than wrapped."""
    return Text(text, no_wrap=True, overflow="ellipsis")


def _numbers(counted: AccountSnapshot | Statistics, rate: float) -> tuple[str, ...]:
    return (
        f"{counted.requests_received:,}",
        f"{counted.requests_sent:,}",
        f"{rate:,.0f}",
        decimal(counted.bytes_received),
        decimal(counted.bytes_sent),
    )


def _amounts(totals: Totals) -> tuple[str, ...]:
    return f"{totals.received:,}", f"{totals.sent:,}", f"{totals.in_doubt:,}"


def _requests(counted: AccountSnapshot | Statistics) -> int:
    return counted.requests_received + counted.requests_sent
