"""The claim of a ledger in a database that several processes use: one of them owns the ledger, others stand by.

Invariants: a ledger has an epoch in the database, which grows whenever a process takes the ledger. Every transaction of
the owner locks the epoch and compares it, so that a process that was stopped and goes on later changes nothing. Time is
only used to decide when to take a ledger, never whether its owner may write: the owner shows that it is alive by a
number that it changes, and whoever waits takes the ledger once it has seen the same number for ``LEASE_SECONDS``.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from uuid import uuid4

import trio

from ..errors import InvalidServicesError, LedgerLostError, StoreError
from ..negotiation import clock
from ..stores.steps import Work

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..runtime.plugin_log import PluginLog
    from ..stores.dialect import Claims, Connection
    from ..stores.steps import Steps

__all__ = ["BEAT_SECONDS", "HOW_TO_SHARE", "LEASE_SECONDS", "Lease"]

T = TypeVar("T")

#: For how long the owner may show no sign of life before another process takes the ledger.
LEASE_SECONDS: Final = 10.0
#: How often the owner shows that it is alive, and how often those who wait look.
BEAT_SECONDS: Final = 2.0
# How long the release of a ledger may delay the end of its plugin.
RELEASE_SECONDS: Final = 0.5
# The advice for programs in the error of a ledger that another process has.
HOW_TO_SHARE: Final = "; give each its own ledger_id, or have one wait for the other with the option standby"


class Lease:
    """One plugin's claim of its ledger.

    Args:
        claims: How the database keeps claims.
        ledger: The ledger's name.
        transaction: Runs ``work(connection)`` in a transaction of the store.
        log: Gets the failures of the store.
    """

    def __init__(
        self,
        claims: Claims,
        ledger: str,
        transaction: Callable[[Callable[[Connection], Any]], Awaitable[Any]],
        log: PluginLog,
    ) -> None:
        self._claims = claims
        self._ledger = ledger
        self._transaction = transaction
        self._log = log
        # Random, because a process id is used again. The rest is for people who look into the table.
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid4().hex}"
        self._epoch: int | None = None
        self._known_at = 0.0
        self._held = trio.Event()
        self._lost = trio.Event()

    @property
    def is_held(self) -> bool:
        """Whether this plugin has taken the ledger and does not know that it has lost it."""
        return self._epoch is not None

    async def wait_held(self) -> None:
        """Wait until this plugin has taken the ledger.

        Cancellation: Safe at any time.
        """
        await self._held.wait()

    @property
    def is_fresh(self) -> bool:
        """Whether no other process can have taken the ledger yet."""
        return clock() - self._known_at < LEASE_SECONDS

    async def take(self, *, standby: bool) -> None:
        """Take the ledger.

        Args:
            standby: Whether to wait until its owner has gone.

        Raises:
            InvalidServicesError: Another process owns the ledger and is alive, and ``standby`` is False.
            StoreError: The store failed, and ``standby`` is False.

        Cancellation: The ledger may have been taken; the next call then takes it at once.
        """
        seen: tuple[int, str, int] | None = None
        since = 0.0
        self._lost = trio.Event()
        while True:
            began = trio.current_time()
            try:
                found = await self._transaction(partial(self._claims.find, ledger=self._ledger))
                now = trio.current_time()
                is_over = found == seen and now - since >= LEASE_SECONDS
                # While the database hangs, its owner cannot show that it is alive either.
                if now - began > BEAT_SECONDS:
                    seen = None
                elif found[1] in ("", self._owner) or is_over:
                    if await self._try_to_take(found):
                        return
                    seen = None
                elif found != seen:
                    if seen is not None and not standby:
                        raise InvalidServicesError(
                            f"store: another process ({found[1]}) keeps ledger {self._ledger!r} in this database"
                            f"{HOW_TO_SHARE}"
                        )
                    if seen is None and standby:
                        self._log.info("waiting for ledger %o, which another process has: %o", self._ledger, found[1])
                    seen, since = found, now
            except StoreError as error:
                if not standby:
                    raise
                self._log.once().warn("cannot look whether ledger %o is free: %s", self._ledger, error)
                seen = None
            await trio.sleep(BEAT_SECONDS)

    async def _try_to_take(self, found: tuple[int, str, int]) -> bool:
        known_at = clock()
        take = partial(self._claims.take, ledger=self._ledger, owner=self._owner, seen=found)
        epoch: int | None = await self._transaction(take)
        if epoch is None:
            return False
        if found[1] not in ("", self._owner):
            self._log.warn("took ledger %o over from %o, which showed no sign of life", self._ledger, found[1])
        self._epoch, self._known_at = epoch, known_at
        self._held.set()
        return True

    async def keep(self, wait_committed: Callable[[], Awaitable[None]]) -> None:
        """Show that this process is alive, until cancelled; then release the ledger.

        Args:
            wait_committed: Waits until what is in progress is recorded.

        Raises:
            LedgerLostError: Another process has taken the ledger.

        Cancellation: The ledger is released first, unless that takes longer than half a second.
        """
        try:
            while True:
                with trio.move_on_after(BEAT_SECONDS):
                    await self._lost.wait()
                await self._beat()
        finally:
            with trio.move_on_after(RELEASE_SECONDS, shield=True):
                if not self._lost.is_set():
                    await wait_committed()
                await self.release()

    async def _beat(self) -> None:
        try:
            await self.run(partial(self._claims.beat, ledger=self._ledger))
        except LedgerLostError:
            raise
        except StoreError as error:
            self._log.once().warn("cannot renew the claim of ledger %o: %s", self._ledger, error)

    async def release(self) -> None:
        """Give the ledger up, so that another process can take it at once.

        Cancellation: It may not be released; then another process takes it after a while.
        """
        epoch, self._epoch, self._held = self._epoch, None, trio.Event()
        if epoch is not None:
            try:
                await self._transaction(partial(self._claims.release, ledger=self._ledger, epoch=epoch))
            except StoreError as error:
                self._log.warn("cannot release ledger %o: %s", self._ledger, error)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work(connection)`` in a transaction if this process owns the ledger, which then keeps it until its end.

        Raises:
            LedgerLostError: Another process has taken the ledger; nothing has changed.
            StoreError: The store failed, or the ledger is not taken; nothing has changed.

        Cancellation: The work may be done anyway.
        """
        epoch, known_at = self._epoch, clock()
        if epoch is None:
            raise StoreError(f"this plugin does not own ledger {self._ledger!r} now; nothing was changed")
        try:
            result: T = await self._transaction(OwnedWork(self._check_owned, epoch, work))
        except LedgerLostError:
            self._lost.set()
            raise
        self._known_at = max(self._known_at, known_at)
        return result

    def _check_owned(self, epoch: int, connection: Connection) -> None:
        if not self._claims.is_owner(connection, self._ledger, epoch):
            raise LedgerLostError(f"another process has taken ledger {self._ledger!r} over; nothing was changed")


class OwnedWork(Generic[T]):
    """A work of the process that owns a ledger.

    Args:
        check: Checks that it does, in the transaction.
        epoch: The epoch in which it does.
        work: The work.
    """

    __slots__ = ("_check", "_epoch", "_work")

    def __init__(self, check: Callable[[int, Connection], None], epoch: int, work: Callable[[Connection], T]) -> None:
        self._check = check
        self._epoch = epoch
        self._work = work

    def __repr__(self) -> str:
        return f"<of the owner: {self._work!r}>"

    def __call__(self, connection: Connection) -> T:
        """Check, and run the work."""
        self._check(self._epoch, connection)
        return self._work(connection)

    def start(self, connection: Connection) -> Steps[T] | None:
        """Check, and return the work's steps, none of which has run; None if it has none."""
        if not isinstance(self._work, Work):
            return None
        self._check(self._epoch, connection)
        return self._work.start(connection)
