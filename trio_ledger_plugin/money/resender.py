"""Sends again what an account's journal holds and is due.

Invariant: what waits for another try is in the journal only. A transfer that waits there has no task, and no place
among the transfers that are being sent.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING, Final

import trio

from ..errors import StoreInDoubtError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from .outcomes import Outcomes
    from .outgoing import BeingSent
    from .sending_account import SendingAccount

__all__ = ["Resender", "pause_after"]

# How many transfers are sent again at once.
RESENT_AT_ONCE: Final = 256
# The pauses between two tries of a transfer that the peer refuses for now (RFC-0023: 1 to 60 seconds).
FIRST_RETRY: Final = 1.0
LONGEST_RETRY: Final = 60.0


class Resender:
    """Sends one account's transfers again.

    Args:
        account: The account.
        outcomes: Works on the journal until the store succeeds.
        may_send: Returns whether there is a link over which transfers can be sent again.
        being_sent: The keys of the transfers that are being sent; the sender changes it.
        begin: Called with a transfer that was just taken from the journal; returns a function that sends it, once.
        rested: Called when it no longer looks for transfers.
    """

    def __init__(
        self,
        account: SendingAccount,
        outcomes: Outcomes,
        *,
        may_send: Callable[[], bool],
        being_sent: Collection[str],
        begin: Callable[[BeingSent], Callable[[], Awaitable[None]]],
        rested: Callable[[], None],
    ) -> None:
        self._account = account
        self._context = account.context
        self._sql = account.journal.sql
        self._outcomes = outcomes
        self._may_send = may_send
        self._being_sent = being_sent
        self._begin = begin
        self._rested = rested
        # Whether a commit in doubt may have taken transfers that are not known here.
        self._in_doubt = False
        # Held while transfers are taken from the journal, until it is known here that they are being sent.
        self._taking = trio.Lock()
        self._sending = 0
        self._runs = False
        self._changed = trio.Event()
        #: Whether the journal may hold transfers of the account that wait.
        self.has_waiting: bool = account.name in account.journal.unfinished

    @property
    def is_needed(self) -> bool:
        """Whether it looks for transfers, or may have to when there is a link."""
        return self._runs or self.has_waiting

    def wake(self, *, has_waiting: bool = False) -> None:
        """Look for transfers that are due.

        Args:
            has_waiting: Whether one has just begun to wait.
        """
        self.has_waiting = self.has_waiting or has_waiting
        self._changed.set()
        if not self._runs and self._may_send() and self._context.tasks.running:
            self._runs = True
            self._context.tasks.spawn(self._run)

    @asynccontextmanager
    async def resting(self) -> AsyncIterator[None]:
        """Take no transfer from the journal during the block; what was taken before is known to be being sent.

        Cancellation: Safe at any time.
        """
        async with self._taking:
            yield

    async def _run(self) -> None:
        """Send what is due, a limited number at once; ends when nothing waits or the link is lost."""
        try:
            while self._may_send():
                self._changed = trio.Event()
                next_age = await self._outcomes.persist("send transfers again", self._take)
                if not self._context.tasks.running:
                    # The plugin ends; the journal makes what was taken due again when it is opened.
                    return
                if next_age is None and not self._changed.is_set() and not self._sending:
                    self.has_waiting = False
                    return
                wait = inf if next_age is None else max(0.0, next_age - self._sql.age())
                with trio.move_on_after(inf if self._sending >= RESENT_AT_ONCE else wait):
                    await self._changed.wait()
        finally:
            self._runs = False
            self._rested()

    async def _take(self) -> float | None:
        """Begin to send what is due, a limited number at once; return the age at which more is due."""
        async with self._taking:
            room = RESENT_AT_ONCE - self._sending
            known = frozenset(self._being_sent) if self._in_doubt else None
            try:
                due = await self._account.run(self._sql.outgoing.take_due, self._account.name, room, known)
            except StoreInDoubtError:
                self._in_doubt = True
                raise
            self._in_doubt = False
            if self._context.tasks.running:
                for sent in due.transfers:
                    self._sending += 1
                    self._context.tasks.spawn(self._send_one, self._begin(sent))
            return due.next_age

    async def _send_one(self, send: Callable[[], Awaitable[None]]) -> None:
        try:
            await send()
        finally:
            self._sending -= 1
            self._changed.set()


def pause_after(tries: int) -> float:
    """Return the pause after a try, in seconds."""
    return float(min(FIRST_RETRY * 2 ** min(tries, 10), LONGEST_RETRY))
