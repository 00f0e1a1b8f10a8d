"""Calls the money handler for transfers that are credited: at least once for each, until it succeeds.

The law of this module: a transfer leaves the outbox when the handler has finished with it and that is recorded.
Whatever comes between, the handler is called again, if not by this process then by the next; it tells by the
transfer's key what it has seen before. Transfers are handed over in the order in which they came, several at once.
"""

from __future__ import annotations

import heapq
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import trio

from ..errors import StoreError
from .transfer import Transfer, enter_transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..services import Log
    from ..tasks import PluginTasks
    from .journal import Journal

    FindHandler: TypeAlias = Callable[[str], Callable[[str], Awaitable[None]] | None]

__all__ = ["FindHandler", "Outbox"]

# How many handlers run at once.
AT_ONCE: Final = 64
# How many transfers may wait for another try before new ones are left in the journal.
MAX_FAILED: Final = 1000
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0


class _Ledger(Protocol):
    """Where the transfers stand."""

    journal: Journal

    async def run(self, work: Callable[..., object], *args: object) -> object:
        """Work on the journal inside a transaction."""


class Outbox:
    """The transfers of one ledger that the money handler is still to be called for.

    Args:
        ledger: Where they stand.
        log: Told of what a handler raises.
        tasks: Owns the tasks.
        find_handler: Gives the money handler of an account, or None while there is none.
    """

    def __init__(self, ledger: _Ledger, log: Log, tasks: PluginTasks, find_handler: FindHandler) -> None:
        self._ledger = ledger
        self._log = log
        self._tasks = tasks
        self._find_handler = find_handler
        self._news = trio.Event()
        self._after = 0
        self._from_start = False
        # Those that are not to be read from the journal again: they run, or wait for another try.
        self._taken: set[int] = set()
        # Those that were finished with while a page was read, which may still hold them.
        self._finished: set[int] = set()
        self._failed: list[tuple[float, int, Transfer, float]] = []
        self._quiet = trio.Event()
        self._active = False
        self.running: int = 0

    def look(self) -> None:
        """Look for new transfers."""
        self._news.set()

    def look_again(self) -> None:
        """Look from the start: a handler was registered."""
        # Not at once: a page that is being read says how far it went when it comes.
        self._from_start = True
        self._news.set()

    def sweep(self, _now: float) -> float:
        """Begin, with the plugin's other tasks."""
        self._tasks.spawn(self._run)
        return inf

    async def wait_quiet(self) -> None:
        """Wait until every transfer has been tried, and no handler runs.

        Cancellation: Safe at any time.
        """
        if self._active:
            if self._quiet.is_set():
                self._quiet = trio.Event()
            self.look()
            await self._quiet.wait()

    async def _run(self) -> None:
        self._after = 0
        self._taken.clear()
        self._failed.clear()
        self._active = True
        try:
            await self._hand_over()
        finally:
            self._active = False
            self._quiet.set()

    async def _hand_over(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._news = trio.Event()
            due = self._retry()
            try:
                while self._has_room() and await self._take_page():
                    pass
            except StoreError as error:
                self._log.error("the money handler waits for the store: %s", error)
                due = min(due, trio.current_time() + pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
            if not self.running and not self._news.is_set():
                self._quiet.set()
            with trio.move_on_at(due):
                await self._news.wait()

    def _has_room(self) -> bool:
        return self.running < AT_ONCE and len(self._failed) < MAX_FAILED and not self._tasks.leaving

    def _retry(self) -> float:
        """Begin the tries that are due; return when the next one is."""
        if self._tasks.leaving:
            return inf
        now = trio.current_time()
        while self._failed and self._failed[0][0] <= now and self.running < AT_ONCE:
            _, number, transfer, pause = heapq.heappop(self._failed)
            self._begin(number, transfer, pause)
        # Those that are due and find no room are looked at when a handler has finished.
        return self._failed[0][0] if self._failed and self.running < AT_ONCE else inf

    async def _take_page(self) -> bool:
        """Begin with the next transfers in the journal; false when there are none."""
        self._finished.clear()
        if self._from_start:
            self._from_start, self._after = False, 0
        page = await self._ledger.run(self._ledger.journal.undelivered, self._after, AT_ONCE)
        assert isinstance(page, list)
        for number, transfer in page:
            if not self._has_room():
                return True
            self._after = number
            if number in self._taken or number in self._finished:
                continue
            if self._find_handler(transfer.account) is not None:
                self._begin(number, transfer, FIRST_PAUSE)
        return bool(page)

    def _begin(self, number: int, transfer: Transfer, pause: float) -> None:
        self._taken.add(number)
        self.running += 1
        self._tasks.spawn(self._deliver, number, transfer, pause)

    async def _deliver(self, number: int, transfer: Transfer, pause: float) -> None:
        """Call the handler once; its task and its context are its own."""
        try:
            handler = self._find_handler(transfer.account)
            if handler is not None:
                enter_transfer(transfer)
                await handler(transfer.amount)
                with self._tasks.committing():
                    await self._record(number)
            self._taken.discard(number)
            self._finished.add(number)
        except Exception as error:  # noqa: BLE001 (a handler may raise anything)
            self._log.error(
                "the money handler failed for transfer %s of %s and is called again in %d s: %o",
                *(transfer.key, transfer.amount, int(pause), error),
            )
            again = trio.current_time() + pause
            heapq.heappush(self._failed, (again, number, transfer, min(2 * pause, LONGEST_PAUSE)))
        finally:
            self.running -= 1
            if not self.running and self._tasks.leaving:
                self._tasks.look_again()
            self._news.set()

    async def _record(self, number: int) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._ledger.run(self._ledger.journal.delivered, number)
            except StoreError as error:
                self._log.error("cannot record that the money handler has finished: %s", error)
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return
