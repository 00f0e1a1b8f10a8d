"""Enters new transfers of one account in the journal, and withdraws those whose callers stop waiting before.

Invariants: what is entered is sent or withdrawn, whichever way the task ends, unless the plugin ends. A transfer that
the store has not begun to enter is withdrawn at once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from attrs import evolve

from ..errors import LedgerPluginError, NotConnectedError, PluginClosedError, StoreInDoubtError, copy_error
from ..stores.steps import InSteps
from ..transfer import MoneyLevel
from .outgoing import BeingSent
from .pending import Phase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

    from ..negotiation import PeerJournal
    from ..stores.dialect import Connection
    from ..stores.steps import Steps
    from ..transfer import JournalEntry
    from .comparing import Comparing
    from .outcomes import Outcomes
    from .pending import PendingTransfer
    from .sending_account import SendingAccount

__all__ = ["NOTHING_SENT", "Entering"]

NOTHING_SENT: Final = "the plugin was closed or disconnected; nothing was sent"


class Entering:
    """Enters new transfers of one account in the journal.

    Args:
        account: The account.
        outcomes: Records what becomes of transfers.
        comparing: Compares the journal with that of the peer.
        is_connected: Returns whether there is a link.
        wake_resender: Called when a transfer that is in the journal already has callers again.
        send: Sends a transfer that is entered.
        rest: Called when a transfer's task ends.
    """

    def __init__(
        self,
        account: SendingAccount,
        outcomes: Outcomes,
        comparing: Comparing,
        *,
        is_connected: Callable[[], bool],
        wake_resender: Callable[[], None],
        send: Callable[[PendingTransfer], Awaitable[None]],
        rest: Callable[[PendingTransfer], None],
    ) -> None:
        self._account = account
        self._context = account.context
        self._outgoing = account.journal.sql.outgoing
        self._outcomes = outcomes
        self._comparing = comparing
        self._is_connected = is_connected
        self._wake_resender = wake_resender
        self._send = send
        self._rest = rest

    async def enter(self, pending: PendingTransfer, scope: trio.CancelScope) -> None:
        """Enter a transfer in the journal and send it.

        Args:
            pending: The transfer.
            scope: The scope of the task, which has no other work; it is cancelled to withdraw the transfer.
        """
        entered: BeingSent | JournalEntry | None = None
        goes_on = False
        pending.entering = scope
        try:
            entered = await self._enter(pending)
            goes_on = not scope.cancel_called
        finally:
            pending.entering = None
            if not goes_on and scope.cancel_called and self._context.tasks.running:
                # This task ends, and another one does the rest.
                self._context.tasks.spawn(self._go_on, pending, entered)
            elif not goes_on:
                self._rest(pending)
        if goes_on:
            await self._go_on(pending, entered)

    async def _enter(self, pending: PendingTransfer) -> BeingSent | JournalEntry | None:
        """Return what the store has answered; None if it did not enter the transfer, or is in doubt."""
        if pending.stopped:
            return None
        pending.phase = Phase.ENTERING
        try:
            return await self._begin(pending)
        except StoreInDoubtError as error:
            pending.settle(partial(pending.doubt, f"nothing was sent yet, but the store may have recorded it: {error}"))
        except LedgerPluginError as error:
            if pending.promised:
                text = "transfer %s was not sent, although its caller was told that it goes on: %s"
                self._context.log.error(text, pending.transfer.key, error)
            pending.gone = True
            pending.settle(partial(copy_error, error))
        return None

    async def _begin(self, pending: PendingTransfer) -> BeingSent | JournalEntry | None:
        # If the link is lost from here on, the transfer waits for the next one.
        peer = pending.peer or await self._comparing.wait()
        if peer is None and not self._is_connected():
            raise NotConnectedError("not connected; nothing was sent")
        if pending.is_keyed is (peer is None):
            pending.transfer = evolve(pending.transfer, level=MoneyLevel.KEYED if peer else MoneyLevel.PLAIN)

        return await self._account.run(InSteps(partial(self._begin_work, pending, peer)))

    def _begin_work(
        self, pending: PendingTransfer, peer: PeerJournal | None, connection: Connection
    ) -> Steps[BeingSent | JournalEntry | None]:
        if not pending.begin_entering():
            return None
        begin = self._outgoing.begin.start
        return (yield from begin(connection, pending.transfer, peer, plain_allowed=self._account.journal.plain_allowed))

    async def _go_on(self, pending: PendingTransfer, entered: BeingSent | JournalEntry | None) -> None:
        try:
            if entered is None:
                await self._withdraw(pending)
            elif await self._is_to_be_sent(pending, entered):
                await self._send(pending)
        finally:
            self._rest(pending)

    async def _withdraw(self, pending: PendingTransfer) -> None:
        """Withdraw a transfer of which nothing was sent; if the store has begun, it may have recorded it."""
        if not pending.gone and not pending.prevent_entering():
            await self._outcomes.record(self._outgoing.withdraw_new, self._account.name, str(pending.transfer.key))
        pending.gone = True
        pending.settle(partial(PluginClosedError, NOTHING_SENT))

    async def _is_to_be_sent(self, pending: PendingTransfer, entered: BeingSent | JournalEntry) -> bool:
        if not isinstance(entered, BeingSent):
            if await self._outcomes.goes_on(pending, entered):
                pending.phase = Phase.WAITING
                self._wake_resender()
            return False
        pending.sent = entered
        if pending.phase is Phase.WITHDRAWN and not pending.is_keyed:
            # The callers stopped waiting while the store committed it, and may have paid in another way since.
            await self._outcomes.record(self._outgoing.withdraw, entered)
            pending.gone = True
            return False
        pending.phase = Phase.WAITING
        return True
