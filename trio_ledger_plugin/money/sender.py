"""Sends the transfers of one account: each is in the journal before it leaves, and until its fate is known.

The law of this module: a transfer belongs to a task of the plugin's from the moment that it is in the journal; its
callers only wait. At PLAIN it is handed to a link once. At KEYED it is handed to one link after another until the peer
answers, or until the peer may have forgotten its key.
"""

from __future__ import annotations

from functools import partial
from math import inf
from time import time
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

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
    from collections.abc import Callable

    from ..options.base import PluginOptions
    from ..runtime.context import Context
    from ..runtime.tasks import TaskGroup
    from ..services import Log
    from ..transfer import JournalEntry, Window
    from .ledger import Ledger

__all__ = ["Sender", "SenderHost"]

T = TypeVar("T")

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
# How many transfers of before are sent again at once.
RESUMED_AT_ONCE: Final = 256
# By how much a clock may be set back without leaving it open how old a transfer is.
CLOCK_SECONDS: Final = 3600.0


class SenderHost(Protocol):
    """The plugin's side of its sender."""

    context: Context

    @property
    def options(self) -> PluginOptions:
        """The plugin's options."""

    @property
    def log(self) -> Log:
        """Where to log."""

    def peer_retention(self) -> int | None:
        """Return for how many seconds the peer keeps keys, agreed on the present link; None at PLAIN."""

    async def carry_money(self, transfer: Transfer) -> None:
        """Carry a transfer over the present link, once."""


class _Withdrawn(Exception):  # noqa: N818 (no error: nobody waits for the transfer any more)
    """All callers have left before the transfer was in the journal."""


class Sender:
    """Sends the transfers of one account.

    Args:
        host: The plugin.
        ledger: Its journal.
        tasks: Owns the tasks.
        account: The account's name; empty for a plugin with one peer.
    """

    def __init__(self, host: SenderHost, ledger: Ledger, tasks: TaskGroup, account: str) -> None:
        self._host = host
        self._ledger = ledger
        self._tasks = tasks
        self._account = account
        self._live: dict[str, PendingTransfer] = {}
        self._resuming = False
        # Whether the journal holds transfers of before that nobody has looked for yet.
        self.behind: bool = False
        self._closed = False
        self._one_less = trio.Event()
        self._link_came = trio.Event()

    async def send(self, transfer: Transfer) -> None:
        """Send a transfer and return when it is acknowledged; ``LedgerPlugin.send_money`` tells what it raises."""
        assert transfer.key is not None
        outgoing = self._live.get(transfer.key)
        seconds = self._host.options.response_timeout
        deadline = trio.current_time() + seconds
        with trio.move_on_at(deadline) as patience:
            while outgoing is not None and outgoing.withdrawn and not outgoing.entered.is_set():
                # Its callers have left; whether in time is known soon.
                await outgoing.entered.wait()
                if not outgoing.begun:
                    outgoing = self._live.get(transfer.key)
        if patience.cancelled_caught:
            reason = "the store does not tell whether an earlier call under its key was withdrawn in time"
            raise TransferInDoubtError(transfer.key, transfer.amount, reason)
        if outgoing is None:
            if self._closed:
                raise PluginClosedError("the plugin was closed; nothing was sent")
            outgoing = self._enter(evolve(transfer, account=self._account))
        elif outgoing.transfer.amount != transfer.amount:
            raise _another(transfer.key, outgoing.transfer.amount)
        await outgoing.wait(deadline, seconds)

    async def recall(self, transfer: Transfer) -> bool:
        """Have the outcome of a transfer whose key is known, while there is no link; false when it is not known."""
        assert transfer.key is not None
        if transfer.key in self._live:
            await self.send(transfer)
            return True
        outgoing = PendingTransfer(evolve(transfer, account=self._account), None)
        find = self._ledger.journal.find
        with trio.move_on_after(self._host.options.response_timeout):
            known = await self._ledger.run(find, self._account, TransferDirection.OUT, transfer.key)
            if known is None:
                return False
            if await self._is_open(outgoing, known):
                outgoing.settle(partial(outgoing.doubt, "it is in the journal, and goes on once there is a link"))
            await outgoing.wait(inf, inf)
            return True
        raise outgoing.doubt("the store does not tell what is known of its key")

    def _enter(self, transfer: Transfer) -> PendingTransfer:
        retention = self._host.peer_retention()
        if retention is None:
            outgoing = PendingTransfer(transfer, None)
        else:
            # The peer keeps a key from when it sees it; the other half is for clocks that are set, and slow networks.
            now = time()
            outgoing = PendingTransfer(evolve(transfer, level=MoneyLevel.KEYED), (now, now + retention / 2))
        self._begin(outgoing)
        return outgoing

    def _begin(self, outgoing: PendingTransfer) -> None:
        assert outgoing.transfer.key is not None
        try:
            self._tasks.spawn(self._run, outgoing)
        except RuntimeError as error:
            raise PluginClosedError("the plugin was closed or disconnected; nothing was sent") from error
        self._live[outgoing.transfer.key] = outgoing

    def link_up(self) -> None:
        """Send again what is not answered, if the link is at KEYED."""
        self._link_came.set()
        self._link_came = trio.Event()
        if self._host.peer_retention() is not None and not self._resuming:
            self._resuming = True
            self._tasks.spawn(self._resume)

    def abandon(self, reason: str) -> None:
        """Let the callers go whose transfers go on in the journal; those at PLAIN are told by their link."""
        for outgoing in self._live.values():
            if outgoing.transfer.level is MoneyLevel.KEYED:
                outgoing.settle(partial(outgoing.doubt, reason))

    def close(self, reason: str) -> None:
        """Send nothing any more; what goes on in the journal is for the next plugin of the account."""
        self.abandon(reason)
        self._closed = True
        self._link_came.set()
        if self.behind or any(outgoing.transfer.level is MoneyLevel.KEYED for outgoing in self._live.values()):
            self._ledger.unfinished.add(self._account)

    async def _resume(self) -> None:
        """Send what the journal holds from before, some of it at a time."""
        after, pause = 0, FIRST_PAUSE
        try:
            while not self._closed:
                try:
                    page = await self._ledger.run(self._ledger.journal.unanswered, self._account, after)
                except StoreError as error:
                    self._host.log.error("cannot look for transfers to send again: %s", error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                    continue
                if not page:
                    self.behind = False
                    return
                for number, transfer, window in page:
                    after = number
                    while len(self._live) >= RESUMED_AT_ONCE:
                        self._one_less = trio.Event()
                        await self._one_less.wait()
                    if transfer.key not in self._live:
                        self._begin(PendingTransfer(transfer, window, sent_before=True))
        finally:
            self._resuming = False

    # One transfer, in a task of its own.

    async def _run(self, outgoing: PendingTransfer) -> None:
        try:
            to_send = outgoing.sent_before or await self._journal(outgoing)
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
            self._one_less.set()
            outgoing.settle(partial(outgoing.doubt, "the plugin was closed before it was acknowledged"))

    async def _journal(self, outgoing: PendingTransfer) -> bool:
        """Enter a transfer as SENT; false when its fate is decided without sending it."""

        def enter(connection: sqlite3.Connection) -> JournalEntry | None:
            # In this order: on Trio's thread it is withdrawn first, and then asked whether this has begun.
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
            outgoing.settle(partial(outgoing.doubt, f"nothing was sent yet, and the store cannot tell: {error}"))
        except (StoreError, MoneyLevelError) as error:
            if outgoing.promised:
                key = outgoing.transfer.key
                self._host.log.error("transfer %s was not sent, though its caller was told otherwise: %s", key, error)
            outgoing.settle(partial(type(error), str(error)))
        else:
            if known is not None:
                return await self._is_open(outgoing, known)
            if not outgoing.withdrawn or outgoing.transfer.level is MoneyLevel.KEYED:
                return True
            # The store took its time to commit it: whoever gave up may have paid otherwise meanwhile.
            await self._record(self._withdraw, outgoing.transfer)
            outgoing.begun = False
        return False

    async def _is_open(self, outgoing: PendingTransfer, known: JournalEntry) -> bool:
        """Tell the callers what is known of a transfer; true when it is for this task to send it again."""
        if known.amount != int(outgoing.transfer.amount):
            outgoing.settle(partial(_another, known.key, str(known.amount)))
        elif known.state is TransferState.ACKED:
            outgoing.settle()
        elif known.state is TransferState.REJECTED:
            by_hand = "the transfer was settled by hand as not applied; a new one needs a key of its own"
            outgoing.settle(partial(copy_error, known.error or NotAcceptedError(by_hand)))
        elif known.state is TransferState.SENT and known.level is MoneyLevel.KEYED:
            outgoing.transfer = evolve(outgoing.transfer, level=MoneyLevel.KEYED)
            outgoing.window, outgoing.sent_before = known.window, True
            return True
        else:
            await self._record(self._ledger.journal.doubt, outgoing.transfer)
            outgoing.settle(partial(outgoing.doubt, "it was sent before, and not acknowledged"))
        return False

    async def _send_plain(self, outgoing: PendingTransfer) -> None:
        journal, transfer = self._ledger.journal, outgoing.transfer
        try:
            await self._host.carry_money(transfer)
        except TransferInDoubtError as error:
            await self._record(journal.doubt, transfer)
            outgoing.settle(partial(outgoing.doubt, error.reason))
        except RemoteError as error:
            await self._refused(outgoing, error)
        except LedgerPluginError as error:
            await self._not_sent(outgoing, error)
        except Exception as error:  # noqa: BLE001 (a plugin of somebody else's may raise anything)
            self._host.log.error("carrying transfer %s failed: %o", transfer.key, error)
            await self._record(journal.doubt, transfer)
            outgoing.settle(partial(outgoing.doubt, "the plugin failed to carry it"))
        else:
            await self._record(journal.answered, transfer, None)
            outgoing.settle()

    async def _send_keyed(self, outgoing: PendingTransfer) -> None:
        # Whether the peer may have applied it already: then a temporary refusal says nothing of that.
        sent_before = outgoing.sent_before
        # Whether it has just been entered: what has been there for longer may have been settled by hand.
        fresh = not sent_before
        pause = FIRST_PAUSE
        while True:
            if self._host.peer_retention() is None and not self._closed:
                fresh = False
                with trio.move_on_after(_time_left(outgoing.window, None)):
                    while self._host.peer_retention() is None and not self._closed:
                        await self._link_came.wait()
            if self._closed:
                return
            # Asked of the clock: one that Trio measures time by may stand still while the machine sleeps.
            if not _time_left(outgoing.window, self._host.peer_retention()):
                await self._in_doubt(outgoing, "the peer may have forgotten its key; it is not sent again")
                return
            if not fresh and not await self._is_still_open(outgoing):
                return
            fresh, next_link = False, self._link_came
            try:
                await self._host.carry_money(outgoing.transfer)
            except TransferInDoubtError:
                sent_before = True
                if self._host.peer_retention() is None or next_link is not self._link_came:
                    continue
            except RemoteError as error:
                if sent_before and error.code == DuplicateIdError.code:
                    # Of another request under this key; the one that came first may have been ours.
                    await self._in_doubt(outgoing, f"it was sent again, and {error}")
                    return
                if not (sent_before and _is_temporary(error)):
                    await self._refused(outgoing, error)
                    return
            except (PluginClosedError, PluginFailedError):
                # It waited for its turn. Where the plugin was only disconnected, it is for the next link.
                pass
            except LedgerPluginError as error:
                if not sent_before and not isinstance(error, NotConnectedError):
                    await self._not_sent(outgoing, error)
                    return
            except Exception as error:  # noqa: BLE001 (a plugin of somebody else's may raise anything)
                self._host.log.error("carrying transfer %s failed: %o", outgoing.transfer.key, error)
                sent_before = True
            else:
                await self._record(self._ledger.journal.answered, outgoing.transfer, None)
                outgoing.settle()
                return
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _is_still_open(self, outgoing: PendingTransfer) -> bool:
        """Look whether a transfer is still to be sent; where it is not, its callers are told."""
        transfer = outgoing.transfer
        known = await self._record(self._ledger.journal.find, transfer.account, TransferDirection.OUT, transfer.key)
        return known is not None and await self._is_open(outgoing, known)

    async def _in_doubt(self, outgoing: PendingTransfer, reason: str) -> None:
        await self._record(self._ledger.journal.doubt, outgoing.transfer)
        outgoing.settle(partial(outgoing.doubt, reason))

    async def _not_sent(self, outgoing: PendingTransfer, error: LedgerPluginError) -> None:
        """Forget a transfer that has not left."""
        await self._record(self._withdraw, outgoing.transfer)
        outgoing.settle(partial(copy_error, error))

    async def _refused(self, outgoing: PendingTransfer, error: RemoteError) -> None:
        """Record a refusal; one that is temporary leaves nothing under the key."""
        if _is_temporary(error):
            await self._record(self._withdraw, outgoing.transfer)
        else:
            await self._record(self._ledger.journal.answered, outgoing.transfer, error)
        outgoing.settle(partial(copy_error, error))

    def _withdraw(self, connection: sqlite3.Connection, transfer: Transfer) -> None:
        # On the store's thread. After the end a transfer at KEYED is the next plugin's, which may be sending it again.
        if not (self._closed and transfer.level is MoneyLevel.KEYED):
            self._ledger.journal.withdraw(connection, transfer)

    async def _record(self, work: Callable[..., T], *args: object) -> T:
        """Work on the journal, however long the store does not let it: write, above all, what has happened."""
        pause = FIRST_PAUSE
        with self._tasks.committing():
            while True:
                try:
                    return await self._ledger.run(work, *args)
                except StoreError as error:
                    self._host.log.error("cannot record what became of a transfer: %s", error)
                    await trio.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)


def _time_left(window: Window | None, retention: int | None) -> float:
    """Return for how many seconds a transfer may be sent; 0 as well when the clock was set back to before it.

    A peer that keeps keys for less time than when it was entered may have forgotten it sooner.
    """
    now = time()
    if window is None or now < window[0] - CLOCK_SECONDS:
        return 0.0
    since, until = window
    return max(0.0, (until if retention is None else min(until, since + retention / 2)) - now)


def _is_temporary(error: RemoteError) -> bool:
    return error.code.startswith("T")


def _another(key: str, amount: str) -> DuplicateIdError:
    return DuplicateIdError(f"the key {key!r} belongs to a transfer of {amount}")
