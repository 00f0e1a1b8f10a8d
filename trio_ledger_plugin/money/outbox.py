"""Calls the money handler for credited transfers: at least once for each, until it succeeds.

Invariant: a transfer leaves the outbox only when the handler has finished with it and the journal has recorded that.
Until then the handler is called again, by this process or by the next one; it can recognise a transfer by its key.
Transfers are handed over in the order in which they arrived, several at once. A handler that fails or hangs does not
delay other transfers.
"""

from __future__ import annotations

import heapq
from collections import Counter
from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

import trio

from ..errors import StoreError
from ..transfer import NotAsyncError, Transfer, begin_handling, enter_transfer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..runtime.context import Context
    from .journal import Journal

    Handler: TypeAlias = Callable[[str], Awaitable[None]]
    FindHandler: TypeAlias = Callable[[str], Handler | None]

__all__ = ["FindHandler", "Outbox"]

# How many handlers may run at once, for all accounts together and for one of many; late ones are not counted.
AT_ONCE: Final = 64
OF_AN_ACCOUNT: Final = 16
# How many transfers of an account may have failed or be late before its other transfers stay in the journal.
MAX_IN_TROUBLE: Final = 100
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0


class Outbox:
    """The transfers of one ledger whose money handler has not finished yet.

    Args:
        context: What the parts of the plugin share. A handler that runs longer than ``handler_timeout`` is late, and
            other handlers run in its place.
        journal: The journal.
        run: Runs ``work(connection, ...)`` on the journal, inside a transaction.
        find_handler: Returns the money handler of an account, or None while there is none.
    """

    def __init__(
        self, context: Context, journal: Journal, run: Callable[..., Awaitable[object]], find_handler: FindHandler
    ) -> None:
        self._journal = journal
        self._run_work = run
        self._log = context.log
        self._tasks = context.tasks
        self._find_registered = find_handler
        # Handlers that turned out not to be async functions.
        self._not_async: list[Handler] = []
        self._patience = context.options.handler_timeout
        self._wake_up = trio.Event()
        # Transfers are named by their numbers in the journal. The number to read the next page after:
        self._after = 0
        self._from_start = False
        # Transfers that are running or wait for another try, and must be skipped when a page is read.
        self._taken: set[int] = set()
        # Transfers that were finished while a page was read, and may still be in that page.
        self._finished: set[int] = set()
        # A heap of failed transfers: when to try again, the number, the transfer, and the pause after the next failure.
        self._failed: list[tuple[float, int, Transfer, float]] = []
        # Running handlers that are not late, in the order in which they become late, and running ones that are.
        self._in_time: dict[int, tuple[float, str]] = {}
        self._late: set[int] = set()
        self._running_of: Counter[str] = Counter()
        # Transfers that have failed or are late and are not finished, and their number for each account.
        self._in_trouble: dict[int, str] = {}
        self._trouble_of: Counter[str] = Counter()
        # The accounts at a limit, whose transfers were skipped and are still in the journal.
        self._skipped: set[str] = set()
        self._idle = trio.Event()
        self._active = False

    @property
    def running(self) -> int:
        """How many handlers are running."""
        return len(self._in_time) + len(self._late)

    def look(self) -> None:
        """Wake the outbox, to look for new transfers."""
        self._wake_up.set()

    def look_again(self) -> None:
        """Wake the outbox, to look at all transfers in the journal again after a handler was registered."""
        # Only a flag: a page that is being read sets the number to go on after when it arrives.
        self._from_start = True
        self._wake_up.set()

    def fire(self, _now: float) -> float:
        """Start the outbox's task, together with the plugin's other tasks; called once."""
        self._tasks.spawn(self._run)
        return inf

    async def wait_quiet(self) -> None:
        """Wait until every transfer has been tried and no handler is running.

        Cancellation: Safe at any time.
        """
        if self._active:
            if self._idle.is_set():
                self._idle = trio.Event()
            self.look()
            await self._idle.wait()

    async def _run(self) -> None:
        self._after = 0
        self._taken.clear()
        self._failed.clear()
        self._in_trouble.clear()
        self._trouble_of.clear()
        self._skipped.clear()
        self._active = True
        try:
            await self._hand_over()
        finally:
            self._active = False
            self._idle.set()

    async def _hand_over(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._wake_up = trio.Event()
            self._mark_late()
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
            if not self.running and not self._wake_up.is_set():
                self._idle.set()
            late_at, _ = next(iter(self._in_time.values()), (inf, ""))
            with trio.move_on_at(min(due, late_at)):
                await self._wake_up.wait()

    def _find_handler(self, account: str) -> Handler | None:
        handler = self._find_registered(account)
        return None if any(handler is each for each in self._not_async) else handler

    def _has_room(self) -> bool:
        return len(self._in_time) < AT_ONCE and not self._tasks.closing_when_idle

    def _mark_late(self) -> None:
        """Stop counting handlers that have become late, so that others can run in their place."""
        now = trio.current_time()
        late = [(number, account) for number, (late_at, account) in self._in_time.items() if late_at <= now]
        for number, account in late:
            self._note_trouble(number, account)
            self._late.add(number)
            self._remove_in_time(number)
            self._log.warn("a money handler has been running for %d s; others run in its place", int(self._patience))

    def _note_trouble(self, number: int, account: str) -> None:
        if number not in self._in_trouble:
            self._in_trouble[number] = account
            self._trouble_of[account] += 1

    def _end_trouble(self, number: int) -> None:
        account = self._in_trouble.pop(number, None)
        if account is not None:
            self._decrement(self._trouble_of, account)

    def _remove_in_time(self, number: int) -> None:
        _, account = self._in_time.pop(number, (0.0, None))
        if account is not None:
            self._decrement(self._running_of, account)

    def _decrement(self, counts: Counter[str], account: str) -> None:
        """Decrement a count; read the journal from the start once enough skipped transfers of the account may run."""
        counts[account] -= 1
        if not counts[account]:
            del counts[account]
        limit = _max_running(account)
        if account in self._skipped and not self._is_at_limit(account) and self._running_of[account] <= limit // 2:
            self._skipped.remove(account)
            self._from_start = True

    def _is_at_limit(self, account: str) -> bool:
        """Whether an account has as many running handlers, or transfers in trouble, as it may have."""
        return self._running_of[account] >= _max_running(account) or self._trouble_of[account] >= MAX_IN_TROUBLE

    def _retry(self) -> float:
        """Start the tries that are due; return when the next one is due."""
        now = trio.current_time()
        while self._failed and self._failed[0][0] <= now and self._has_room():
            _, number, transfer, pause = heapq.heappop(self._failed)
            self._begin(number, transfer, pause)
        # If there is no room, the end of a handler or a late handler wakes the outbox.
        return self._failed[0][0] if self._failed and self._has_room() else inf

    async def _take_page(self) -> bool:
        """Read the next page of the journal and start its transfers; return False if there are none."""
        self._finished.clear()
        if self._from_start:
            self._from_start, self._after = False, 0
        at_limit = [account for account in {*self._trouble_of, *self._running_of} if self._is_at_limit(account)]
        self._skipped.update(at_limit)
        page = await self._run_work(self._journal.undelivered, self._after, AT_ONCE, at_limit)
        assert isinstance(page, list)
        for number, transfer in page:
            if not self._has_room():
                return True
            self._after = number
            if number in self._taken or number in self._finished:
                continue
            if self._is_at_limit(transfer.account):
                self._skipped.add(transfer.account)
                continue
            if self._find_handler(transfer.account) is not None:
                self._begin(number, transfer, FIRST_PAUSE)
        return bool(page)

    def _begin(self, number: int, transfer: Transfer, pause: float) -> None:
        self._taken.add(number)
        self._in_time[number] = trio.current_time() + self._patience, transfer.account
        self._running_of[transfer.account] += 1
        self._tasks.spawn(self._deliver, number, transfer, pause)

    async def _deliver(self, number: int, transfer: Transfer, pause: float) -> None:
        """Call the handler once; each call has its own task and context."""
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
            # The call may have done the handler's work, and another call would do it again.
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
            retry_at = trio.current_time() + pause
            heapq.heappush(self._failed, (retry_at, number, transfer, min(2 * pause, LONGEST_PAUSE)))
        finally:
            self._remove_in_time(number)
            self._late.discard(number)
            if not self.running:
                self._tasks.wake()
            self._wake_up.set()

    async def _record(self, number: int) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._run_work(self._journal.delivered, number)
            except StoreError as error:
                self._log.error("cannot record that the money handler has finished: %s", error)
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return


def _max_running(account: str) -> int:
    """Return how many handlers may run for an account; the account of a plugin with one peer has no name."""
    return OF_AN_ACCOUNT if account else AT_ONCE
