"""Sends the transfers of one account.

Invariants: a transfer is in the journal before its first byte is sent, and stays there until its outcome is known. From
then on one of the plugin's tasks owns it; its callers only wait. At PLAIN, the task hands it to a link once. At KEYED,
the task hands it to one link after another until the peer answers, or until the peer may have forgotten its key.
"""

from __future__ import annotations

from functools import partial
from math import inf
from time import time
from typing import TYPE_CHECKING, Final, TypeVar

import trio
from attrs import evolve

from ..errors import (
    DuplicateIdError,
    LedgerPluginError,
    MoneyLevelError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    RemoteError,
    StoreError,
    StoreInDoubtError,
    TransferInDoubtError,
    copy_error,
)
from ..transfer import MoneyLevel, Transfer, TransferDirection, TransferState
from .pending import PendingTransfer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Awaitable, Callable

    from ..runtime.context import Context
    from ..transfer import JournalEntry, Window
    from .ledger import Ledger

__all__ = ["Sender"]

T = TypeVar("T")

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
# Transfers in the journal are sent again only while fewer than this many are in flight.
RESUMED_AT_ONCE: Final = 256
# By how many seconds the clock may be set back before the age of a transfer counts as unknown.
CLOCK_SECONDS: Final = 3600.0


class _Withdrawn(Exception):  # noqa: N818 (not an error: the transfer has no callers)
    """All callers stopped waiting before the transfer was in the journal."""


class Sender:
    """Sends the transfers of one account.

    Args:
        context: What the parts of the plugin share.
        ledger: The journal.
        account: The account's name; empty for a plugin with one peer.
        carry: Carries a transfer over the present link, once.
        peer_retention: Returns for how many seconds the peer keeps keys, agreed on the present link; None at PLAIN.
    """

    def __init__(
        self,
        context: Context,
        ledger: Ledger,
        account: str,
        carry: Callable[[Transfer], Awaitable[None]],
        peer_retention: Callable[[], int | None],
    ) -> None:
        self._context = context
        self._carry = carry
        self._peer_retention = peer_retention
        self._ledger = ledger
        self._account = account
        self._live: dict[str, PendingTransfer] = {}
        self._resuming = False
        # Whether the journal may hold transfers of an earlier plugin that this sender has not read yet.
        self.behind: bool = False
        self._closed = False
        self._transfer_ended = trio.Event()
        self._new_link = trio.Event()

    async def send(self, transfer: Transfer) -> None:
        """Send a transfer and return when it is acknowledged; ``LedgerPlugin.send_money`` documents what it raises."""
        assert transfer.key is not None
        outgoing = self._live.get(transfer.key)
        seconds = self._context.options.response_timeout
        deadline = trio.current_time() + seconds
        with trio.move_on_at(deadline) as patience:
            while outgoing is not None and outgoing.withdrawn and not outgoing.entered.is_set():
                # Its callers stopped waiting; whether that was before it entered the journal is known soon.
                await outgoing.entered.wait()
                if not outgoing.begun:
                    outgoing = self._live.get(transfer.key)
        if patience.cancelled_caught:
            reason = "the store did not answer in time, so an earlier call with its key may not have been withdrawn"
            raise TransferInDoubtError(transfer.key, transfer.amount, reason)
        if outgoing is None:
            if self._closed:
                raise PluginClosedError("the plugin was closed; nothing was sent")
            outgoing = self._enter(evolve(transfer, account=self._account))
        elif outgoing.transfer.amount != transfer.amount:
            raise _key_conflict(transfer.key, outgoing.transfer.amount)
        await outgoing.wait(deadline, seconds)

    async def recall(self, transfer: Transfer) -> bool:
        """Report the outcome of a transfer whose key is known, while there is no link; return False if it is unknown.

        Returns or raises as ``send()`` does.
        """
        assert transfer.key is not None
        if transfer.key in self._live:
            await self.send(transfer)
            return True
        outgoing = PendingTransfer(evolve(transfer, account=self._account), None)
        find = self._ledger.journal.find
        with trio.move_on_after(self._context.options.response_timeout):
            known = await self._ledger.run(find, self._account, TransferDirection.OUT, transfer.key)
            if known is None:
                return False
            if await self._must_send(outgoing, known):
                outgoing.settle(partial(outgoing.doubt, "it is in the journal, and goes on once there is a link"))
            await outgoing.wait(inf, inf)
            return True
        raise outgoing.doubt("the store did not answer in time, so it is not known whether its key was used before")

    def _enter(self, transfer: Transfer) -> PendingTransfer:
        retention = self._peer_retention()
        if retention is None:
            outgoing = PendingTransfer(transfer, None)
        else:
            # The peer keeps a key from when it receives it. Using only half of that time leaves a margin for slow
            # networks and for clocks that are set.
            now = time()
            outgoing = PendingTransfer(evolve(transfer, level=MoneyLevel.KEYED), (now, now + retention / 2))
        self._begin(outgoing)
        return outgoing

    def _begin(self, outgoing: PendingTransfer) -> None:
        assert outgoing.transfer.key is not None
        try:
            self._context.tasks.spawn(self._run, outgoing)
        except RuntimeError as error:
            raise PluginClosedError("the plugin was closed or disconnected; nothing was sent") from error
        self._live[outgoing.transfer.key] = outgoing

    def link_up(self) -> None:
        """Send unanswered transfers again, if the link is at KEYED."""
        self._new_link.set()
        self._new_link = trio.Event()
        if self._peer_retention() is not None and not self._resuming:
            self._resuming = True
            self._context.tasks.spawn(self._resume)

    def abandon(self, reason: str) -> None:
        """Release callers waiting on KEYED transfers; the link itself ends the wait of those at PLAIN."""
        for outgoing in self._live.values():
            if outgoing.transfer.level is MoneyLevel.KEYED:
                outgoing.settle(partial(outgoing.doubt, reason))

    def close(self, reason: str) -> None:
        """Stop sending; the next plugin of the account sends the KEYED transfers in the journal."""
        self.abandon(reason)
        self._closed = True
        self._new_link.set()
        if self.behind or any(outgoing.transfer.level is MoneyLevel.KEYED for outgoing in self._live.values()):
            self._ledger.unfinished.add(self._account)

    async def _resume(self) -> None:
        """Send the unanswered transfers in the journal again, a limited number at once."""
        after, pause = 0, FIRST_PAUSE
        try:
            while not self._closed:
                try:
                    page = await self._ledger.run(self._ledger.journal.unanswered, self._account, after)
                except StoreError as error:
                    self._context.log.error("cannot look for transfers to send again: %s", error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                if not page:
                    self.behind = False
                    return
                for number, transfer, window in page:
                    after = number
                    while len(self._live) >= RESUMED_AT_ONCE:
                        self._transfer_ended = trio.Event()
                        await self._transfer_ended.wait()
                    if transfer.key not in self._live:
                        self._begin(PendingTransfer(transfer, window, sent_before=True))
        finally:
            self._resuming = False

    # One transfer, in its own task.

    async def _run(self, outgoing: PendingTransfer) -> None:
        try:
            to_send = outgoing.sent_before or await self._enter_journal(outgoing)
            outgoing.entered.set()
            if to_send:
                if outgoing.transfer.level is MoneyLevel.KEYED:
                    await self._send_keyed(outgoing)
                else:
                    await self._send_plain(outgoing)
        except _Withdrawn:
            pass
        finally:
            assert outgoing.transfer.key is not None
            del self._live[outgoing.transfer.key]
            outgoing.entered.set()
            self._transfer_ended.set()
            outgoing.settle(partial(outgoing.doubt, "the plugin was closed before it was acknowledged"))

    async def _enter_journal(self, outgoing: PendingTransfer) -> bool:
        """Enter a transfer as SENT; return False if its outcome is known without sending it."""

        def enter(connection: sqlite3.Connection) -> JournalEntry | None:
            # The order matters: Trio's thread first sets ``withdrawn``, then reads ``begun``.
            outgoing.begun = True
            if outgoing.withdrawn:
                outgoing.begun = False
                raise _Withdrawn
            return self._ledger.journal.begin(
                connection, outgoing.transfer, outgoing.window, plain_allowed=self._ledger.plain_allowed
            )

        try:
            known = await self._ledger.run(enter)
        except StoreInDoubtError as error:
            outgoing.settle(
                partial(outgoing.doubt, f"nothing was sent yet, but the store may have recorded it: {error}")
            )
        except (StoreError, MoneyLevelError) as error:
            if outgoing.promised:
                key = outgoing.transfer.key
                self._context.log.error(
                    "transfer %s was not sent, although its caller was told that it goes on: %s", key, error
                )
            outgoing.settle(partial(type(error), str(error)))
        else:
            if known is not None:
                return await self._must_send(outgoing, known)
            if not outgoing.withdrawn or outgoing.transfer.level is MoneyLevel.KEYED:
                return True
            # The callers stopped waiting while the store committed it, and may have paid in another way since.
            await self._record(self._withdraw, outgoing.transfer)
            outgoing.begun = False
        return False

    async def _must_send(self, outgoing: PendingTransfer, known: JournalEntry) -> bool:
        """Settle a transfer from its entry in the journal; return True if this task has to send it again instead."""
        if known.amount != int(outgoing.transfer.amount):
            outgoing.settle(partial(_key_conflict, known.key, str(known.amount)))
        elif known.state is TransferState.ACKED:
            outgoing.settle()
        elif known.state is TransferState.REJECTED:
            by_hand = "the transfer was settled by hand as not applied; use a new key for a new transfer"
            outgoing.settle(partial(copy_error, known.error or NotAcceptedError(by_hand)))
        elif known.state is TransferState.SENT and known.level is MoneyLevel.KEYED:
            outgoing.transfer = evolve(outgoing.transfer, level=MoneyLevel.KEYED)
            outgoing.window, outgoing.sent_before = known.window, True
            return True
        else:
            await self._record(self._ledger.journal.doubt, outgoing.transfer)
            outgoing.settle(partial(outgoing.doubt, "it was sent before and not acknowledged"))
        return False

    async def _send_plain(self, outgoing: PendingTransfer) -> None:
        journal, transfer = self._ledger.journal, outgoing.transfer
        try:
            await self._carry(transfer)
        except TransferInDoubtError as error:
            await self._record(journal.doubt, transfer)
            outgoing.settle(partial(outgoing.doubt, error.reason))
        except RemoteError as error:
            await self._record_refusal(outgoing, error)
        except LedgerPluginError as error:
            await self._forget_unsent(outgoing, error)
        except Exception as error:  # noqa: BLE001 (a plugin of another package may raise anything)
            self._context.log.error("carrying transfer %s failed: %o", transfer.key, error)
            await self._record(journal.doubt, transfer)
            outgoing.settle(partial(outgoing.doubt, "the plugin failed to carry it"))
        else:
            await self._record(journal.answered, transfer, None)
            outgoing.settle()

    async def _send_keyed(self, outgoing: PendingTransfer) -> None:
        # Whether the peer may have applied it already; if so, a temporary refusal does not mean that it has not.
        sent_before = outgoing.sent_before
        # Whether it has just been entered; an older entry may have been settled by hand since.
        fresh = not sent_before
        pause = FIRST_PAUSE
        while True:
            if self._peer_retention() is None and not self._closed:
                fresh = False
                with trio.move_on_after(_time_left(outgoing.window, None)):
                    while self._peer_retention() is None and not self._closed:
                        await self._new_link.wait()
            if self._closed:
                return
            # Checked with the system clock again: Trio's clock may stand still while the machine sleeps.
            if not _time_left(outgoing.window, self._peer_retention()):
                await self._leave_in_doubt(outgoing, "the peer may have forgotten its key; it is not sent again")
                return
            if not fresh and not await self._must_still_send(outgoing):
                return
            fresh, next_link = False, self._new_link
            try:
                await self._carry(outgoing.transfer)
            except TransferInDoubtError:
                sent_before = True
                if self._peer_retention() is None or next_link is not self._new_link:
                    continue
            except RemoteError as error:
                if sent_before and error.code == DuplicateIdError.code:
                    # The peer says that the key belongs to another request; that may be this transfer as sent before.
                    await self._leave_in_doubt(outgoing, f"it was sent again, and {error}")
                    return
                if not (sent_before and _is_temporary(error)):
                    await self._record_refusal(outgoing, error)
                    return
            except (PluginClosedError, PluginFailedError):
                # The plugin ended while the transfer waited to be sent. After a disconnect(), the next link sends it.
                pass
            except LedgerPluginError as error:
                if not sent_before and not isinstance(error, NotConnectedError):
                    await self._forget_unsent(outgoing, error)
                    return
            except Exception as error:  # noqa: BLE001 (a plugin of another package may raise anything)
                self._context.log.error("carrying transfer %s failed: %o", outgoing.transfer.key, error)
                sent_before = True
            else:
                await self._record(self._ledger.journal.answered, outgoing.transfer, None)
                outgoing.settle()
                return
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _must_still_send(self, outgoing: PendingTransfer) -> bool:
        """Read a transfer's entry again; settle it and return False if it does not have to be sent any longer."""
        transfer = outgoing.transfer
        known = await self._record(self._ledger.journal.find, transfer.account, TransferDirection.OUT, transfer.key)
        return known is not None and await self._must_send(outgoing, known)

    async def _leave_in_doubt(self, outgoing: PendingTransfer, reason: str) -> None:
        await self._record(self._ledger.journal.doubt, outgoing.transfer)
        outgoing.settle(partial(outgoing.doubt, reason))

    async def _forget_unsent(self, outgoing: PendingTransfer, error: LedgerPluginError) -> None:
        """Remove a transfer that was not sent from the journal."""
        await self._record(self._withdraw, outgoing.transfer)
        outgoing.settle(partial(copy_error, error))

    async def _record_refusal(self, outgoing: PendingTransfer, error: RemoteError) -> None:
        """Record a refusal; after a temporary one, the key may be used again."""
        if _is_temporary(error):
            await self._record(self._withdraw, outgoing.transfer)
        else:
            await self._record(self._ledger.journal.answered, outgoing.transfer, error)
        outgoing.settle(partial(copy_error, error))

    def _withdraw(self, connection: sqlite3.Connection, transfer: Transfer) -> None:
        # Runs on the store's thread. Once this sender is closed, the next plugin may be sending a KEYED transfer again.
        if not (self._closed and transfer.level is MoneyLevel.KEYED):
            self._ledger.journal.withdraw(connection, transfer)

    async def _record(self, work: Callable[..., T], *args: object) -> T:
        """Run ``work`` on the journal, and retry until the store works: the outcome of a transfer must be recorded."""
        pause = FIRST_PAUSE
        with self._context.tasks.committing():
            while True:
                try:
                    return await self._ledger.run(work, *args)
                except StoreError as error:
                    self._context.log.error("cannot record the outcome of a transfer: %s", error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)


def _time_left(window: Window | None, retention: int | None) -> float:
    """Return for how many more seconds a transfer may be sent.

    The result is 0 if the clock was set back to before the transfer. A peer whose retention is shorter now than when
    the transfer was entered may have forgotten the key sooner.
    """
    now = time()
    if window is None or now < window[0] - CLOCK_SECONDS:
        return 0.0
    since, until = window
    return max(0.0, (until if retention is None else min(until, since + retention / 2)) - now)


def _is_temporary(error: RemoteError) -> bool:
    return error.code.startswith("T")


def _key_conflict(key: str, amount: str) -> DuplicateIdError:
    return DuplicateIdError(f"the key {key!r} belongs to a transfer of {amount}")
