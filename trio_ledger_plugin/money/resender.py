"""Sends again what an account's journal holds and is due.

Invariant: what waits for another try is in the journal only. A transfer that waits there has no task, and no place
among the transfers that are being sent.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..runtime.context import Context
    from .journal import Journal
    from .outcomes import Outcomes
    from .outgoing import BeingSent

__all__ = ["Resender"]

# How many transfers are sent again at once.
RESENT_AT_ONCE: Final = 256


class Resender:
    """Sends one account's transfers again.

    Args:
        context: What the parts of the plugin share.
        journal: The journal.
        account: The account's name.
        outcomes: Works on the journal until the store succeeds.
        may_send: Returns whether there is a link over which transfers can be sent again.
        send: Sends a transfer, once.
    """

    def __init__(
        self,
        context: Context,
        journal: Journal,
        account: str,
        outcomes: Outcomes,
        *,
        may_send: Callable[[], bool],
        send: Callable[[BeingSent], Awaitable[None]],
    ) -> None:
        self._context = context
        self._sql = journal.sql
        self._account = account
        self._outcomes = outcomes
        self._may_send = may_send
        self._send = send
        self._sending = 0
        self._runs = False
        self._changed = trio.Event()
        #: Whether the journal may hold transfers of the account that wait.
        self.has_waiting: bool = account in journal.unfinished

    def wake(self, *, has_waiting: bool = False) -> None:
        """Look for transfers that are due.

        Args:
            has_waiting: Whether one has just begun to wait.
        """
        self.has_waiting = self.has_waiting or has_waiting
        self._changed.set()
        if not self._runs and self._may_send():
            self._runs = True
            self._context.tasks.spawn(self._run)

    async def _run(self) -> None:
        """Send what is due, a limited number at once; ends when nothing waits or the link is lost."""
        try:
            while self._may_send():
                self._changed = trio.Event()
                room = RESENT_AT_ONCE - self._sending
                due = await self._outcomes.record(self._sql.outgoing.take_due, self._account, room)
                for sent in due.transfers:
                    self._sending += 1
                    self._context.tasks.spawn(self._send_one, sent)
                if due.next_age is None and not self._changed.is_set() and not self._sending:
                    self.has_waiting = False
                    return
                wait = inf if due.next_age is None else max(0.0, due.next_age - self._sql.age())
                with trio.move_on_after(inf if self._sending >= RESENT_AT_ONCE else wait):
                    await self._changed.wait()
        finally:
            self._runs = False

    async def _send_one(self, sent: BeingSent) -> None:
        try:
            await self._send(sent)
        finally:
            self._sending -= 1
            self._changed.set()
