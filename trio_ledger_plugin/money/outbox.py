"""Calls the money handler for transfers that are credited: at least once for each, until it succeeds.

The law of this module: a transfer leaves the outbox when the handler has finished with it and that is recorded.
Whatever comes between, the handler is called again, if not by this process then by the next; it tells by the
transfer's key what it has seen before. Transfers are handed over in the order in which they came, several at once; one
whose handler fails or hangs holds up no other.
"""

from __future__ import annotations

import heapq
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import trio

from ..errors import StoreError
from ..transfer import NotAsyncError, Transfer, begin_handling, enter_transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..runtime.tasks import TaskGroup
    from ..services import Log
    from .journal import Journal

    Handler: TypeAlias = Callable[[str], Awaitable[None]]
    FindHandler: TypeAlias = Callable[[str], Handler | None]

__all__ = ["FindHandler", "Outbox"]

# How many handlers run at once, in all and for one of many accounts; those that are late do not count.
AT_ONCE: Final = 64
OF_AN_ACCOUNT: Final = 16
# How many transfers of an account may have failed, or be late, before its others are left in the journal.
MAX_IN_TROUBLE: Final = 100
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
        patience: After so many seconds a handler that runs is late, and others run in its place.
    """

    def __init__(self, ledger: _Ledger, log: Log, tasks: TaskGroup, find_handler: FindHandler, patience: float) -> None:
        self._ledger = ledger
        self._log = log
        self._tasks = tasks
        self._find_any = find_handler
        # Those that turned out to be no async functions.
        self._not_async: list[Handler] = []
        self._patience = patience
        self._news = trio.Event()
        self._after = 0
        self._from_start = False
        # Those that are not to be read from the journal again: they run, or wait for another try.
        self._taken: set[int] = set()
        # Those that were finished with while a page was read, which may still hold them.
        self._finished: set[int] = set()
        self._failed: list[tuple[float, int, Transfer, float]] = []
        # Those whose handlers run: in the order in which they become late, and late.
        self._in_time: dict[int, tuple[float, str]] = {}
        self._late: set[int] = set()
        self._of_account: Counter[str] = Counter()
        # Those that have failed or are late, until they are finished with, and how many that are of each account.
        self._in_trouble: dict[int, str] = {}
        self._troubles: Counter[str] = Counter()
        # The accounts of which transfers were left in the journal, for one reason or the other.
        self._left: set[str] = set()
        self._quiet = trio.Event()
        self._active = False

    @property
    def running(self) -> int:
        """How many handlers run."""
        return len(self._in_time) + len(self._late)

    def look(self) -> None:
        """Look for new transfers."""
        self._news.set()

    def look_again(self) -> None:
        """Look from the start: a handler was registered."""
        # Not at once: a page that is being read says how far it went when it comes.
        self._from_start = True
        self._news.set()

    def fire(self, _now: float) -> float:
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
        self._in_trouble.clear()
        self._troubles.clear()
        self._left.clear()
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
            self._set_late_aside()
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
            late_at, _ = next(iter(self._in_time.values()), (inf, ""))
            with trio.move_on_at(min(due, late_at)):
                await self._news.wait()

    def _find_handler(self, account: str) -> Handler | None:
        handler = self._find_any(account)
        return None if any(handler is each for each in self._not_async) else handler

    def _has_room(self) -> bool:
        return len(self._in_time) < AT_ONCE and not self._tasks.closing_when_idle

    def _set_late_aside(self) -> None:
        """Let those that hang take no room from the others."""
        now = trio.current_time()
        late = [(number, account) for number, (late_at, account) in self._in_time.items() if late_at <= now]
        for number, account in late:
            self._note_trouble(number, account)
            self._late.add(number)
            self._no_longer_in_time(number)
            self._log.warn("a money handler has been running for %d s; others run beside it", int(self._patience))

    def _note_trouble(self, number: int, account: str) -> None:
        if number not in self._in_trouble:
            self._in_trouble[number] = account
            self._troubles[account] += 1

    def _end_trouble(self, number: int) -> None:
        account = self._in_trouble.pop(number, None)
        if account is not None:
            self._one_less(self._troubles, account)

    def _no_longer_in_time(self, number: int) -> None:
        _, account = self._in_time.pop(number, (0.0, None))
        if account is not None:
            self._one_less(self._of_account, account)

    def _one_less(self, counts: Counter[str], account: str) -> None:
        """Count one less; look again for what was left of the account, when it is worth the reading."""
        counts[account] -= 1
        if not counts[account]:
            del counts[account]
        if account in self._left and not self._is_held(account) and self._of_account[account] <= _share(account) // 2:
            self._left.remove(account)
            self._from_start = True

    def _is_held(self, account: str) -> bool:
        """Whether an account has as many handlers, or transfers in trouble, as leave the others theirs."""
        return self._of_account[account] >= _share(account) or self._troubles[account] >= MAX_IN_TROUBLE

    def _retry(self) -> float:
        """Begin the tries that are due; return when the next one is."""
        now = trio.current_time()
        while self._failed and self._failed[0][0] <= now and self._has_room():
            _, number, transfer, pause = heapq.heappop(self._failed)
            self._begin(number, transfer, pause)
        # Those that are due and find no room are looked at when a handler has finished, or is late.
        return self._failed[0][0] if self._failed and self._has_room() else inf

    async def _take_page(self) -> bool:
        """Begin with the next transfers in the journal; false when there are none."""
        self._finished.clear()
        if self._from_start:
            self._from_start, self._after = False, 0
        held = [account for account in {*self._troubles, *self._of_account} if self._is_held(account)]
        self._left.update(held)
        page = await self._ledger.run(self._ledger.journal.undelivered, self._after, AT_ONCE, held)
        assert isinstance(page, list)
        for number, transfer in page:
            if not self._has_room():
                return True
            self._after = number
            if number in self._taken or number in self._finished:
                continue
            if self._is_held(transfer.account):
                self._left.add(transfer.account)
                continue
            if self._find_handler(transfer.account) is not None:
                self._begin(number, transfer, FIRST_PAUSE)
        return bool(page)

    def _begin(self, number: int, transfer: Transfer, pause: float) -> None:
        self._taken.add(number)
        self._in_time[number] = trio.current_time() + self._patience, transfer.account
        self._of_account[transfer.account] += 1
        self._tasks.spawn(self._deliver, number, transfer, pause)

    async def _deliver(self, number: int, transfer: Transfer, pause: float) -> None:
        """Call the handler once; its task and its context are its own."""
        handler = self._find_handler(transfer.account)
        try:
            if handler is not None:
                enter_transfer(transfer)
                await begin_handling(handler, transfer.amount)
                with self._tasks.committing():
                    await self._record(number)
            self._end_trouble(number)
            self._taken.discard(number)
            self._finished.add(number)
        except NotAsyncError as error:
            # It may have done its work, and would do it at each try.
            assert handler is not None
            self._not_async.append(handler)
            self._end_trouble(number)
            self._taken.discard(number)
            self._log.error(
                "the money handler is not called again until another is registered: %s; it was called for %s of %s",
                *(error, transfer.key, transfer.amount),
            )
        except Exception as error:  # noqa: BLE001 (a handler may raise anything)
            self._log.error(
                "the money handler failed for transfer %s of %s and is called again in %d s: %o",
                *(transfer.key, transfer.amount, int(pause), error),
            )
            self._note_trouble(number, transfer.account)
            again = trio.current_time() + pause
            heapq.heappush(self._failed, (again, number, transfer, min(2 * pause, LONGEST_PAUSE)))
        finally:
            self._no_longer_in_time(number)
            self._late.discard(number)
            if not self.running:
                self._tasks.wake()
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


def _share(account: str) -> int:
    """Return how many handlers may run for an account; a plugin with one peer has no name for its own."""
    return OF_AN_ACCOUNT if account else AT_ONCE
