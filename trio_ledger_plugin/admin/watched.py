"""One plugin as the admin page, the health check and the metrics see it."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ..codec.ilp import REJECT
from ..errors import LedgerPluginError
from ..event_text import event_text
from .accounts import AccountsView
from .meter import LOOK_SECONDS, RARE, TIMED_SECONDS, UNTIMED_SECONDS, ReplyMeter
from .money import MoneyView
from .pace import Cached, rest_after
from .series import Series

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..events import Event
    from ..plugin import LedgerPlugin
    from ..statistics import Statistics

__all__ = ["SeenEvent", "Watched"]

KEPT_EVENTS: Final = 100
POINT_SECONDS: Final = 2.0
STATISTICS_SECONDS: Final = 0.0


@frozen
class SeenEvent:
    """An event.

    Attributes:
        at: When it was seen, in seconds since 1970.
        kind: The name of its class.
        text: What it says, without secrets.
    """

    at: float
    kind: str
    text: str


class Watched:
    """One plugin that is watched.

    Args:
        name: Its name on the page and in metrics.
        plugin: The plugin.
    """

    def __init__(self, name: str, plugin: LedgerPlugin) -> None:
        self.name: str = name
        self.plugin: LedgerPlugin = plugin
        self._since = trio.current_time()
        self.handled: ReplyMeter = ReplyMeter()
        self.answered: ReplyMeter = ReplyMeter()
        self.series: Series = Series()
        self.events: deque[SeenEvent] = deque(maxlen=KEPT_EVENTS)
        self.statistics: Cached[Statistics] = Cached(plugin.statistics, STATISTICS_SECONDS)
        self.accounts: AccountsView | None = None
        if plugin.has_accounts and hasattr(plugin, "accounts"):
            self.accounts = AccountsView(plugin)
        self.money: MoneyView = MoneyView(plugin)

    @property
    def seconds(self) -> float:
        """For how long it has been watched."""
        return trio.current_time() - self._since

    @property
    def waits_for_client(self) -> bool:
        """Whether the plugin listens for its one client, so that it works also while it is not connected."""
        return getattr(self.plugin.options, "listener", None) is not None

    def find_end(self) -> str:
        """Return why the plugin cannot be used any longer; empty if it can."""
        try:
            self.plugin.check_usable()
        except LedgerPluginError as error:
            return self.plugin.log.redact(str(error))
        return ""

    @contextmanager
    def watching(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """Watch the plugin's requests and events within the block; yields the events.

        Raises:
            RuntimeError: The plugin's requests are watched already.
        """
        with ExitStack() as stack:
            stack.enter_context(self.plugin.watch_requests(self.handled.count, self.answered.count))
            yield stack.enter_context(self.plugin.watch_events())

    async def read_events(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        """Keep the newest events, until there are no more.

        Cancellation: Safe at any time.
        """
        async for event in events:
            text = self.plugin.log.redact(event_text(event))
            self.events.append(SeenEvent(time.time(), type(event).__name__, text))

    async def time_requests(self) -> None:
        """Have the requests timed: while they are rare all of them, and otherwise those of short times.

        Cancellation: Safe at any time.
        """
        are_rare = True
        while True:
            before = self._timed
            self.set_timing(is_timing=True)
            seconds = LOOK_SECONDS if are_rare else TIMED_SECONDS
            await trio.sleep(seconds)
            are_rare = self._timed - before <= RARE * seconds
            if not are_rare:
                self.set_timing(is_timing=False)
                await trio.sleep(UNTIMED_SECONDS)

    def set_timing(self, *, is_timing: bool) -> None:
        """Have the requests that end from now on timed, or not."""
        self.handled.is_timing = self.answered.is_timing = is_timing
        self.plugin.context.workers.passed_byte = None if is_timing else REJECT

    @property
    def _timed(self) -> int:
        return sum(self.handled.counts) + sum(self.answered.counts)

    async def add_points(self) -> None:
        """Add points to the series until cancelled.

        Cancellation: Safe at any time.
        """
        while True:
            began = perf_counter()
            errors = self.handled.errors.total() + self.answered.errors.total()
            try:
                self.series.add(self.statistics.get(), self.handled.counts, errors)
            except Exception as error:  # noqa: BLE001 (the server, which is only watched, goes on)
                self.plugin.log.once().error("the admin page cannot read the statistics: %O", error)
            await trio.sleep(rest_after(perf_counter() - began, POINT_SECONDS))
