"""Sends the transfers of one account.

Invariants: a transfer is in the journal before its first byte is sent, and stays there until its outcome is known. At
PLAIN, it is handed to a link once. At KEYED, it is handed to one link after another until the peer replies, or until
the peer may have forgotten its key. What is to be sent again is in the journal only (``resender.py``).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

import trio
from attrs import evolve

from ..errors import (
    DuplicateIdError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    RemoteError,
    TransferInDoubtError,
)
from ..transfer import MoneyLevel, Transfer
from .comparing import Comparing
from .doubts import SETTLE_BY_HAND
from .entering import NOTHING_SENT, Entering
from .outcomes import Outcomes, key_conflict
from .pending import PendingTransfer, Phase
from .resender import Resender, pause_after

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ..negotiation import PeerJournal
    from .outgoing import BeingSent
    from .sending_account import SendingAccount

__all__ = ["Sender"]

# How long a caller whose time is over waits for the store to withdraw its transfer.
GIVE_UP_SECONDS: Final = 1.0
LINK_LOST: Final = "the link was lost; nothing was sent"
BEGUN: Final = (Phase.NEW, Phase.ENTERING, Phase.SENT)  # a task works on the transfer


class Sender:
    """Sends the transfers of one account.

    Args:
        account: The account.
        carry: Carries a transfer over the present link, once.
        peer: Returns the peer's journal as the present link knows it; None at PLAIN and without a link.
        is_connected: Returns whether there is a link.
        changed: Called when ``is_needed`` may have changed.
    """

    def __init__(
        self,
        account: SendingAccount,
        carry: Callable[[Transfer], Awaitable[int | None]],
        *,
        peer: Callable[[], PeerJournal | None],
        is_connected: Callable[[], bool],
        changed: Callable[[], None],
    ) -> None:
        self._account = account
        self._context = account.context
        self._journal = account.journal
        self._outgoing = account.journal.sql.outgoing
        self._carry = carry
        self._peer = peer
        self._is_connected = is_connected
        self._changed = changed
        self._outcomes = outcomes = Outcomes(account)
        self._live: dict[str, PendingTransfer] = {}
        self._resender = Resender(
            account,
            outcomes,
            may_send=self._may_resend,
            being_sent=self._live.keys(),
            begin=self._take_over,
            rested=changed,
        )
        self._comparing = Comparing(
            account,
            outcomes,
            peer=peer,
            resting=self._resender.resting,
            done=self._compared,
        )
        self._entering = Entering(
            account,
            outcomes,
            self._comparing,
            is_connected=is_connected,
            wake_resender=self._resender.wake,
            send=self._send,
            rest=self._rest,
        )
        self._journal.unfinished.discard(account.name)
        self._closed = False

    @property
    def is_needed(self) -> bool:
        """Whether it has transfers to send, or to send again; otherwise it can be forgotten while there is no link."""
        return bool(self._live or self._comparing.running or self._resender.is_needed)

    # Sending.

    async def send(self, transfer: Transfer) -> None:
        """Send a transfer and return when it is acknowledged; ``LedgerPlugin.send_money`` documents what it raises."""
        seconds = self._context.options.response_timeout
        deadline = trio.current_time() + seconds
        pending = self._live.get(str(transfer.key))
        if pending is not None and pending.phase is Phase.WITHDRAWN:
            pending = await self._wait_withdrawn(transfer, deadline)
        if pending is None:
            if self._closed:
                raise PluginClosedError("the plugin was closed; nothing was sent")
            if not self._is_connected():
                # The link was lost while an earlier call under the key was being withdrawn.
                raise NotConnectedError("not connected; nothing was sent")
            pending = self._begin(transfer)
        elif pending.transfer.amount != transfer.amount:
            raise key_conflict(str(transfer.key), pending.transfer.amount)
        await pending.wait(deadline, seconds)

    async def _wait_withdrawn(self, transfer: Transfer, deadline: float) -> PendingTransfer | None:
        """Wait while the transfer under a key is being withdrawn; return one that is being sent under it then."""
        assert transfer.key is not None
        with trio.move_on_at(deadline):
            while (pending := self._live.get(transfer.key)) is not None and pending.phase is Phase.WITHDRAWN:
                await pending.idle.wait()
                if pending.phase is Phase.WITHDRAWN and not pending.gone:
                    reason = "the plugin ended before an earlier call with its key was withdrawn"
                    raise TransferInDoubtError(transfer.key, transfer.amount, reason)
            return pending
        reason = "the store did not answer in time, so an earlier call with its key may not have been withdrawn"
        raise TransferInDoubtError(transfer.key, transfer.amount, reason)

    async def recall(self, transfer: Transfer) -> bool:
        """Report the outcome of a transfer whose key is known, while there is no link; return False if it is unknown.

        Returns or raises as ``send()`` does.
        """
        assert transfer.key is not None
        if transfer.key in self._live:
            await self.send(transfer)
            return True
        name = self._account.name
        pending = self._new_pending(evolve(transfer, account=name))
        with trio.move_on_after(self._context.options.response_timeout):
            known = await self._journal.read(name, self._outgoing.find, name, transfer.key)
            if known is None:
                return False
            if await self._outcomes.goes_on(pending, known):
                pending.settle(partial(pending.doubt, "it is in the journal, and goes on once there is a link"))
            await pending.wait(inf, inf)
            return True
        raise pending.doubt("the store did not answer in time, so it is not known whether its key was used before")

    def _new_pending(self, transfer: Transfer) -> PendingTransfer:
        return PendingTransfer(transfer, self._context.timers, self._give_up, self._drop)

    def _begin(self, transfer: Transfer) -> PendingTransfer:
        peer = self._peer()
        level = MoneyLevel.PLAIN if peer is None else MoneyLevel.KEYED
        pending = self._new_pending(Transfer(transfer.amount, self._account.name, key=transfer.key, level=level))
        pending.begin_work()
        pending.peer = peer if self._comparing.is_done else None
        try:
            self._context.tasks.spawn_again(partial(self._entering.enter, pending))
        except RuntimeError as error:
            raise PluginClosedError(NOTHING_SENT) from error
        self._live[str(transfer.key)] = pending
        return pending

    def _drop(self, pending: PendingTransfer) -> None:
        """Keep a transfer no longer in memory; the journal has it."""
        if self._live.get(str(pending.transfer.key)) is pending and not pending.is_being_withdrawn:
            del self._live[str(pending.transfer.key)]
            if not self._live:
                self._changed()

    async def _give_up(self, pending: PendingTransfer) -> None:
        """Withdraw a transfer that the peer has only refused for now; the callers get the last refusal."""
        sent, refusal = pending.sent, pending.refusal
        waits = pending.phase is Phase.WAITING and self._context.tasks.running
        if sent is not None and refusal is not None and waits and not pending.is_being_withdrawn:
            # In a task of its own: all callers get the same outcome, also if one of them is cancelled.
            pending.withdrawn = trio.Event()
            self._context.tasks.spawn(self._withdraw_waiting, pending, sent, refusal)
        if pending.withdrawn is not None:
            with trio.move_on_after(GIVE_UP_SECONDS):
                await pending.withdrawn.wait()

    async def _withdraw_waiting(self, pending: PendingTransfer, sent: BeingSent, refusal: RemoteError) -> None:
        await self._outcomes.withdraw_waiting(pending, sent, refusal)
        if pending.phase is Phase.SETTLED or not pending.has_callers:
            self._drop(pending)

    # The plugin's life.

    def link_up(self) -> None:
        """Handle a new link: compare the peer's journal with what is known, then send unanswered transfers again."""
        self._comparing.link_up(wanted=not self._closed)

    def _compared(self, has_doubts: bool) -> None:
        """Send again what is due, and tell the callers whose transfers are in doubt now."""
        self._resender.wake()
        if has_doubts:
            for key in list(self._live):
                self._look_up_soon(key)
        self._changed()

    def abandon(self, reason: str) -> None:
        """Release callers waiting on KEYED transfers; the link itself ends the wait of those at PLAIN."""
        for pending in tuple(self._live.values()):
            if pending.is_entering and not pending.begun and not pending.promised:
                # It is no longer entered, and its task tells its callers that nothing was sent.
                pending.stop_entering()
            elif pending.is_keyed:
                pending.settle(partial(pending.doubt, reason))

    def close(self, reason: str) -> None:
        """Stop sending; the next plugin of the account sends the KEYED transfers in the journal."""
        self.abandon(reason)
        self._closed = True
        self._resender.wake()
        if self._resender.has_waiting or any(pending.is_keyed for pending in self._live.values()):
            self._journal.unfinished.add(self._account.name)

    @asynccontextmanager
    async def holding(self, key: str) -> AsyncIterator[None]:
        """Do not send the transfer of a key during the block, which settles it by hand; a try in progress ends first.

        Cancellation: Safe at any time.
        """
        while True:
            async with self._resender.resting():
                pending = self._live.get(key)
                if pending is None or pending.phase not in BEGUN:
                    try:
                        yield
                    finally:
                        self._look_up_soon(key)
                    return
            await pending.idle.wait()

    def _look_up_soon(self, key: str) -> None:
        pending = self._live.get(key)
        if pending is not None and pending.phase is Phase.WAITING and self._context.tasks.running:
            pending.begin_work()
            self._context.tasks.spawn(self._look_up, pending)

    async def _look_up(self, pending: PendingTransfer) -> None:
        """Give the callers of a transfer its outcome, if it is settled."""
        try:
            known = await self._outcomes.record(self._outgoing.find, self._account.name, pending.transfer.key)
            if known is not None:
                await self._outcomes.goes_on(pending, known)
        finally:
            self._rest(pending)

    # One transfer, in its own task.

    def _rest(self, pending: PendingTransfer) -> None:
        """End a task's work on a transfer; it stays in memory only while callers wait for it."""
        if not pending.end_work():
            return
        if pending.phase is not Phase.WAITING or not pending.has_callers:
            self._drop(pending)
        if pending.phase is Phase.SENT or (pending.is_entering and not pending.prevent_entering()):
            # The task was cancelled: the plugin ends.
            pending.settle(partial(pending.doubt, "the plugin was closed before it was acknowledged"))
        elif pending.is_entering:
            pending.settle(partial(PluginClosedError, NOTHING_SENT))
        elif pending.phase is Phase.WITHDRAWN and pending.prevent_entering():
            pending.gone = True

    async def _send(self, pending: PendingTransfer) -> None:
        """Hand a transfer to the link, once."""
        assert pending.sent is not None
        if not pending.is_keyed:
            pending.phase = Phase.SENT
            await self._send_plain(pending, pending.sent)
            return
        peer = self._peer()
        if peer is None:
            await self._postpone(pending, pending.sent, 0.0)
        elif pending.sent.journal != peer.id and not pending.may_be_applied:
            await self._outcomes.forget_unsent(pending, pending.sent, NotConnectedError(LINK_LOST))
        elif pending.sent.journal != peer.id or peer.age() >= pending.sent.resend_until:
            reason = f"the peer may have forgotten its key, so it is not sent again; {SETTLE_BY_HAND}"
            await self._outcomes.leave_in_doubt(pending, pending.sent.number, reason)
        else:
            pending.phase = Phase.SENT
            await self._send_keyed(pending, pending.sent)

    async def _send_plain(self, pending: PendingTransfer, sent: BeingSent) -> None:
        try:
            await self._journal.check_fresh()
            await self._carry(pending.transfer)
        except TransferInDoubtError as error:
            await self._outcomes.leave_in_doubt(pending, sent.number, f"{error.reason}; {SETTLE_BY_HAND}")
        except RemoteError as error:
            await self._outcomes.record_refusal(pending, sent, error)
        except LedgerPluginError as error:
            await self._outcomes.forget_unsent(pending, sent, error)
        except Exception as error:  # noqa: BLE001 (a plugin of another package may raise anything)
            self._context.log.error("carrying transfer %s failed: %O", pending.transfer.key, error)
            reason = f"the plugin failed to carry it; {SETTLE_BY_HAND}"
            await self._outcomes.leave_in_doubt(pending, sent.number, reason)
        else:
            await self._outcomes.record_acknowledgement(pending, sent)

    async def _send_keyed(self, pending: PendingTransfer, sent: BeingSent) -> None:
        link = self._comparing.link
        pause = pause_after(sent.tries)
        try:
            receipt = await self._carry(sent.transfer)
        except TransferInDoubtError:
            pending.may_be_applied = True
            # If the link was lost, the next one tries at once.
            pause = 0.0 if self._is_lost(link) else pause
        except RemoteError as error:
            if pending.may_be_applied and error.code == DuplicateIdError.code:
                # The peer says that the key belongs to another request; that may be this transfer as sent before.
                reason = f"it was sent again, and {error}; {SETTLE_BY_HAND}"
                await self._outcomes.leave_in_doubt(pending, sent.number, reason)
                return
            if not error.code.startswith("T"):
                await self._outcomes.record_refusal(pending, sent, error)
                return
            pending.refuse_for_now(error)
        except (PluginClosedError, PluginFailedError, NotConnectedError):
            # Nothing was sent: the link was lost first. The next link sends it.
            pause = 0.0 if self._is_lost(link) else pause
        except LedgerPluginError as error:
            if not pending.may_be_applied:
                await self._outcomes.forget_unsent(pending, sent, error)
                return
        except Exception as error:  # noqa: BLE001 (a plugin of another package may raise anything)
            self._context.log.error("carrying transfer %s failed: %O", pending.transfer.key, error)
            pending.may_be_applied = True
        else:
            await self._outcomes.record_acknowledgement(pending, sent, receipt or 0)
            return
        await self._postpone(pending, sent, pause)

    def _is_lost(self, link: trio.Event) -> bool:
        """Whether the link with this event is lost."""
        return self._peer() is None or link is not self._comparing.link

    async def _postpone(self, pending: PendingTransfer, sent: BeingSent, pause: float) -> None:
        """Have the resender send a transfer again after a pause, in seconds."""
        sent.tries = sent.tries + 1 if pause else 0
        await self._outcomes.record(self._outgoing.postpone, sent, pause)
        if pending.phase is Phase.SENT and pending.sent is sent:
            pending.phase = Phase.WAITING
        if self._closed:
            self._journal.wake_sender(self._account.name)
        else:
            self._resender.wake(has_waiting=True)

    # Sending again what the journal holds.

    def look_again(self) -> None:
        """Look for transfers to send again: an earlier sender of the account has left one."""
        self._resender.wake(has_waiting=True)
        self._changed()

    def _may_resend(self) -> bool:
        return not self._closed and self._comparing.is_done and self._peer() is not None

    def _take_over(self, sent: BeingSent) -> Callable[[], Awaitable[None]]:
        """Begin to send a transfer that was just taken from the journal; return a function that does it."""
        key = str(sent.transfer.key)
        pending = self._live.get(key)
        if pending is None or pending.phase is Phase.SETTLED:
            pending = self._live[key] = self._new_pending(sent.transfer)
            pending.may_be_applied = True
        pending.sent, pending.phase = sent, Phase.SENT
        pending.begin_work()
        return partial(self._send_again, pending, sent, may_send=self._may_resend())

    async def _send_again(self, pending: PendingTransfer, sent: BeingSent, *, may_send: bool) -> None:
        try:
            if may_send and self._may_resend():
                await self._send(pending)
            else:
                # The link is another one since, whose peer may have another journal.
                await self._postpone(pending, sent, 0.0)
        finally:
            self._rest(pending)
