"""Calls the money handler for credited transfers: at least once for each, until it succeeds.

Invariants: what is to be delivered is in the journal; what is kept here is only which handlers run now, and which
accounts to look at. A transfer leaves the journal's queue only when the handler has finished with it and that is
recorded. An account's transfers are handed over in the order in which they are due, several at once. A handler that
fails or hangs delays neither other transfers nor other accounts.
"""

from __future__ import annotations

import heapq
import weakref
from collections import Counter
from functools import partial
from itertools import takewhile
from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import trio

from ..errors import StoreError
from ..runtime.handlers import NotAsyncError, begin_handling
from ..runtime.tasks import unwrap_group
from ..transfer import enter_transfer
from .transactional import HandlerCall
from .turns import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.context import Context
    from ..runtime.handlers import Handlers
    from .incoming import Credited
    from .journal import Journal

    FindHandlers: TypeAlias = Callable[[str], Handlers]

__all__ = ["FindHandlers", "Outbox"]

T = TypeVar("T")

# How many handlers may run at once, for all accounts together and for one of many; late ones are not counted. An
# account of which none is running may always start one.
AT_ONCE: Final = 64
OF_AN_ACCOUNT: Final = 16
# How many handlers of an account may be late before its other transfers stay in the journal.
MAX_LATE: Final = 100
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0


class Outbox:
    """Hands the credited transfers of one ledger to the money handlers.

    Args:
        context: What the parts of the plugin share. A handler that runs longer than ``handler_timeout`` is late, and
            other handlers run in its place.
        journal: The journal.
        find_handlers: Returns the handlers of an account.
    """

    def __init__(self, context: Context, journal: Journal, find_handlers: FindHandlers) -> None:
        self._context = context
        self._journal = journal
        self._sql = journal.sql
        self._find_handlers = find_handlers
        self._patience = context.options.handler_timeout
        # Each returns a handler that turned out not to be an async function, or None once the program has dropped it.
        self._not_async: list[Callable[[], object]] = []
        self._wake_up = trio.Event()
        # Whether to look which accounts have something to deliver.
        self._look_at_all = True
        # The accounts to look at next, the first of them first.
        self._ready: dict[str, None] = {}
        # The account whose page is being read from the journal.
        self._read: str | None = None
        # When to look at an account again, and a heap of these times, on Trio's clock: once for each account, however
        # many of its transfers wait. What is earlier than a time in the heap leaves that there.
        self._due_at: dict[str, float] = {}
        self._due: list[tuple[float, str]] = []
        # Running handlers that are not late, in the order in which they become late, and running ones that are.
        self._in_time: dict[int, tuple[float, str]] = {}
        self._late: dict[int, str] = {}
        self._running_of: Counter[str] = Counter()
        self._late_of: Counter[str] = Counter()
        # Transfers that were finished while a page was read, and may still be in that page; and those of the last page,
        # which may be handed over once more when their commit is known here.
        self._finished: set[int] = set()
        self._idle = trio.Event()
        self._active = False

    @property
    def running(self) -> int:
        """How many handlers are running."""
        return len(self._in_time) + len(self._late)

    def look_again(self) -> None:
        """Look at all accounts again: the journal was opened, or a handler was registered."""
        self._look_at_all = True
        self._wake_up.set()

    def look_at(self, account: str) -> None:
        """Look at an account again: one of its transfers may have been credited."""
        self._ready[account] = None
        self._wake_up.set()

    def deliver(self, credited: Credited) -> None:
        """Call the handler for a transfer that was just credited, unless others of the account come first."""
        account = credited.transfer.account
        if self._is_begun(credited):
            # A page that was read since the commit had it.
            return
        first = account in self._ready or account == self._read or self._look_at_all
        if first or not self._active or not self._may_run(account):
            self.look_at(account)
        elif self._has_handler(account):
            self._begin(credited)

    def fire(self, _now: float) -> float:
        """Start the outbox's task, together with the plugin's other tasks; called once."""
        self._context.tasks.spawn(self._run)
        return inf

    async def wait_quiet(self) -> None:
        """Wait until every transfer that is due has been tried and no handler is running.

        Cancellation: Safe at any time.
        """
        if self._active:
            if self._idle.is_set():
                self._idle = trio.Event()
            self._wake_up.set()
            await self._idle.wait()

    async def _run(self) -> None:
        # What another process has credited is for its handlers.
        await self._journal.wait_owned()
        self._look_at_all = True
        self._ready.clear()
        self._due_at.clear()
        self._due.clear()
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
            now = trio.current_time()
            while self._due and self._due[0][0] <= now:
                at, account = heapq.heappop(self._due)
                if self._due_at.get(account) == at:
                    del self._due_at[account]
                    self._ready[account] = None
            retry_at = inf
            try:
                progress = await self._look()
            except StoreError as error:
                self._context.log.error("the money handler waits for the store: %s", error)
                progress, retry_at = False, trio.current_time() + pause
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
            if progress:
                continue
            if not self.running and not self._wake_up.is_set():
                self._idle.set()
            late_at, _ = next(iter(self._in_time.values()), (inf, ""))
            next_due = self._due[0][0] if self._due else inf
            with trio.move_on_at(min(retry_at, late_at, next_due)):
                await self._wake_up.wait()

    async def _look(self) -> bool:
        """Start handlers for what is due; return whether there may be more to start now.

        Raises:
            StoreError: The store failed.
        """
        if self._look_at_all:
            accounts = await self._journal.run(BACKGROUND, self._sql.accounts_to_deliver)
            self._look_at_all = False
            self._ready.update(dict.fromkeys(accounts))
        progress = False
        for account in list(self._ready):
            if self._may_run(account):
                progress = await self._look_at(account) or progress
        return progress

    async def _look_at(self, account: str) -> bool:
        """Start an account's handlers for what is due; return whether there may be more to start now."""
        if not self._has_handler(account):
            # Registering one makes the outbox look at all accounts.
            del self._ready[account]
            return False
        self._finished.clear()
        known = self._running_of[account] + self._late_of[account]
        limit = _max_running(account) - self._running_of[account] + known
        # What is credited from here on may be missing in the page, and makes the account ready again.
        del self._ready[account]
        self._read = account
        try:
            due, next_age = await self._journal.run(account, self._sql.incoming.due_to_deliver, account, limit)
        except StoreError:
            self._ready[account] = None
            raise
        finally:
            self._read = None
        if next_age is not None:
            self._look_at_later(account, next_age - self._sql.age())
        started = 0
        for credited in due:
            if self._is_begun(credited):
                continue
            if not self._may_run(account):
                self._ready[account] = None
                return False
            self._begin(credited, from_page=True)
            started += 1
        if len(due) == limit:
            self._ready[account] = None
        return started > 0 and len(due) == limit

    def _is_begun(self, credited: Credited) -> bool:
        """Whether a transfer is with a handler now, or was since the last page was asked for."""
        number = credited.number
        return number in self._in_time or number in self._late or number in self._finished

    def _look_at_later(self, account: str, seconds: float) -> None:
        at = trio.current_time() + max(0.0, seconds)
        # The look at the earlier time finds what is due next.
        if at < self._due_at.get(account, inf):
            self._due_at[account] = at
            heapq.heappush(self._due, (at, account))

    def _may_run(self, account: str) -> bool:
        """Whether another handler of an account may be started."""
        running = self._running_of[account]
        return (
            not self._context.tasks.closing_when_idle
            and running < _max_running(account)
            and self._late_of[account] < MAX_LATE
            and (len(self._in_time) < AT_ONCE or not running)
        )

    def _handler_of(self, account: str) -> object:
        handlers = self._find_handlers(account)
        handler: object = handlers.money or handlers.transactional
        return None if any(handler is each() for each in self._not_async) else handler

    def _refuse_handler(self, handler: object) -> None:
        """Call a handler no more, without keeping it in memory."""
        self._not_async = [each for each in self._not_async if each() is not None]
        try:
            self._not_async.append(weakref.ref(handler))
        except TypeError:
            # The application's own class has slots. A weak reference to its object is not possible.
            self._not_async.append(lambda: handler)

    def _has_handler(self, account: str) -> bool:
        return self._handler_of(account) is not None

    def _mark_late(self) -> None:
        """Stop counting handlers that have become late, so that others can run in their place."""
        now = trio.current_time()
        # In the order in which they began.
        late = takewhile(lambda each: each[1][0] <= now, self._in_time.items())
        for number, (_, account) in tuple(late):
            self._end_in_time(number)
            self._late[number] = account
            self._late_of[account] += 1
            self._context.log.warn(
                "a money handler has been running for %d s; others run in its place", int(self._patience)
            )

    def _end_in_time(self, number: int) -> None:
        _, account = self._in_time.pop(number)
        _decrement(self._running_of, account)

    def _begin(self, credited: Credited, *, from_page: bool = False) -> None:
        account = credited.transfer.account
        self._in_time[credited.number] = trio.current_time() + self._patience, account
        self._running_of[account] += 1
        if len(self._in_time) == 1:
            # The task has to know when it becomes late.
            self._wake_up.set()
        self._context.tasks.spawn_again(partial(self._deliver, credited, from_page))

    async def _deliver(self, credited: Credited, from_page: bool, _scope: trio.CancelScope) -> None:
        """Call the handler once, in a context of its own."""
        account = credited.transfer.account
        handler = self._handler_of(account)
        try:
            if handler is not None:
                await self._call(credited)
        except NotAsyncError as error:
            # The call may have done the handler's work, and another call would do it again.
            self._refuse_handler(handler)
            self._context.log.error(
                "the money handler is not called again until another is registered: %s; it was called for %s of %s",
                *(error, credited.transfer.key, credited.transfer.amount),
            )
        except Exception as error:  # noqa: BLE001 (a handler may raise anything)
            await self._try_later(credited, error)
        except BaseExceptionGroup as group:
            # A handler's nursery can raise errors beside its cancellation, which goes on.
            beside, rest = group.split(Exception)
            if beside is not None:
                self._context.log.error("a handler raised while it was cancelled: %O", unwrap_group(beside))
            raise (group if rest is None else rest) from None
        finally:
            if credited.number in self._in_time:
                self._end_in_time(credited.number)
            else:
                _decrement(self._late_of, self._late.pop(credited.number))
            if from_page or self._read == account:
                self._finished.add(credited.number)
            if not self.running:
                self._context.tasks.wake()
            if self._ready or not self.running:
                self._wake_up.set()

    async def _call(self, credited: Credited) -> None:
        account = credited.transfer.account
        handlers = self._find_handlers(account)
        if handlers.money is not None:
            enter_transfer(credited.transfer)
            await begin_handling(handlers.money, credited.transfer.amount)
            await self._record(account, "the money handler has finished", self._sql.incoming.delivered, credited)
        elif handlers.transactional is not None:
            call = HandlerCall(handlers.transactional, self._journal.dialect)
            deliver = partial(self._sql.incoming.deliver_within, credited=credited, apply=call)
            refusal = await self._record(account, "the money handler has finished", deliver)
            if refusal is not None:
                call.log_failure(handlers)
                raise refusal

    async def _try_later(self, credited: Credited, error: Exception) -> None:
        pause = min(FIRST_PAUSE * 2 ** min(credited.tries, 10), LONGEST_PAUSE)
        self._context.log.error(
            "the money handler failed for transfer %s of %s and is called again in %d s: %O",
            *(credited.transfer.key, credited.transfer.amount, int(pause), error),
        )
        account = credited.transfer.account
        postpone = self._sql.incoming.postpone_delivery
        await self._record(account, "the money handler has failed", postpone, credited, pause)
        self._look_at_later(account, pause)
        # The outbox's task may wait for something later, such as a handler that hangs.
        self._wake_up.set()

    async def _record(self, account: str, what: str, work: Callable[..., T], *args: object) -> T:
        pause = FIRST_PAUSE
        with self._context.tasks.committing():
            while True:
                try:
                    return await self._journal.run(account, work, *args)
                except StoreError as error:
                    self._context.log.once(what).error("cannot record that %s: %s", what, error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)


def _decrement(counts: Counter[str], account: str) -> None:
    counts[account] -= 1
    if not counts[account]:
        del counts[account]


def _max_running(account: str) -> int:
    """Return how many handlers may run for an account; the account of a plugin with one peer has no name."""
    return OF_AN_ACCOUNT if account else AT_ONCE
