"""The money service of a plugin with a transactional store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4
from weakref import WeakValueDictionary

import trio
from attrs import evolve

from ..errors import LedgerPluginError, StoreError, StoreInDoubtError, UnreachableError
from .doubts import Doubts
from .history import START
from .incoming import NoRoomError, Received
from .journal import Journal
from .outbox import Outbox
from .reconciliation import Transfers
from .sender import Sender
from .sending_account import SendingAccount
from .service import NO_HANDLER, MoneyService
from .transactional import HandlerCall
from .turns import BACKGROUND

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from ..negotiation import JournalOffer, PeerJournal
    from ..runtime.context import Context
    from ..runtime.handlers import Handlers
    from ..services import TransactionalStore
    from ..transfer import Receipt, Transfer
    from .service import MoneyLink

__all__ = ["AccountMoney", "JournaledMoney"]

# How often transfers are forgotten: those at PLAIN do not count against a limit, because they stay for a minute only.
FORGET_SECONDS: Final = 60.0
# How often it is counted what is kept.
COUNT_SECONDS: Final = 3600.0
# The pause between two slices of what is forgotten, which leaves the store to others.
SLICE_PAUSE: Final = 0.01
# The pause between two tries while the store cannot tell whether a transfer is applied.
DOUBT_SECONDS: Final = 1.0
# How often the ledger's age is recorded at most because of new links.
AGE_SECONDS: Final = 5.0


class JournaledMoney(MoneyService):
    """The transfers of a plugin, or of a server with all its accounts, in the plugin's ledger.

    Invariant: while the store fails, transfers are refused; but if a transfer may have been applied, the peer gets no
    reply before the store can tell.

    Args:
        context: What the parts of the plugin share.
        store: The store with the journal.
        link: What the service uses of the plugin.
        has_accounts: Whether each account sends its own money, with a service of its own.
    """

    def __init__(
        self, context: Context, store: TransactionalStore[Any], link: MoneyLink, *, has_accounts: bool
    ) -> None:
        self._context = context
        self._link = link
        self._has_accounts = has_accounts
        self.journal: Journal = Journal(store, context.options, context.log)
        self.doubts: Doubts = Doubts(context, link.publish)
        self.outbox: Outbox = Outbox(context, self.journal, self._find_handlers)
        # Each is kept by its account's plugin, and sends nothing any more when that is forgotten.
        self._accounts: WeakValueDictionary[str, AccountMoney] = WeakValueDictionary()
        self._on_open: Callable[[], None] | None = None
        self._age_saved_at = -AGE_SECONDS
        self._forgetting = False
        # When it is counted next what is kept.
        self._count_at = 0.0
        # Whether a handler was registered that the journal does not know of yet.
        self._new_handler = False
        self._sender = None if has_accounts else self._new_sender("", context, link, self.doubts)
        self.journal.on_open = self._opened
        self.journal.wake_sender = self._wake_sender
        context.timers.periodic += [self, self.outbox]
        context.gauges.append(self._measure)

    def _new_sender(self, name: str, context: Context, link: MoneyLink, doubts: Doubts) -> Sender:
        account = SendingAccount(name, context, self.journal, doubts)
        return Sender(account, link.carry, peer=link.peer, is_connected=link.is_connected, changed=link.changed)

    def for_account(self, name: str, context: Context, link: MoneyLink) -> AccountMoney:
        """Return the service of one account of a server."""
        doubts = Doubts(context, link.publish)
        account = AccountMoney(self, name, context, self._new_sender(name, context, link, doubts))
        self._accounts[name] = account
        return account

    def forget_account(self, name: str) -> None:
        """Forget the service of an account whose plugin has ended."""
        self._accounts.pop(name, None)

    def _wake_sender(self, account: str) -> None:
        service = self._accounts.get(account)
        if service is not None:
            service.sender.look_again()
        else:
            self.journal.unfinished.add(account)

    def _find_handlers(self, account: str) -> Handlers:
        service = self._accounts.get(account)
        return self._context.handlers if service is None else service.handlers

    @property
    def keeps_journal(self) -> bool:
        """True: transfers are kept in a journal."""
        return True

    @property
    def transfers(self) -> Transfers:
        """The transfers in the journal."""
        return Transfers(self.journal, None if self._has_accounts else "", self.holding)

    def holding(self, account: str, key: str) -> AbstractAsyncContextManager[None] | None:
        """Return a context in which a transfer is not sent; None if nothing sends the account's transfers."""
        service = self._accounts.get(account)
        sender = self._sender if service is None else service.sender
        return None if sender is None else sender.holding(key)

    @property
    def is_busy(self) -> bool:
        """Whether money handlers are running that must be left to finish."""
        return self.outbox.running > 0

    # Sending and receiving.

    async def send(self, transfer: Transfer, *, has_key: bool) -> None:  # noqa: ARG002 (every key is kept)
        """Send a transfer."""
        if self._sender is None:
            await self._link.carry(transfer)
        else:
            await self._sender.send(transfer)

    async def recall(self, transfer: Transfer) -> bool:
        """Report the outcome of a transfer in the journal, while there is no link."""
        return self._sender is not None and await self._sender.recall(transfer)

    async def receive(self, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | Receipt | None:
        """Credit a transfer that the peer sent, or refuse it."""
        if transfer.key is None:
            # If a commit is in doubt, the transfer is found again by its key.
            transfer = evolve(transfer, key=str(uuid4()))
        incoming = self.journal.sql.incoming
        call: HandlerCall | None = None
        if handlers.transactional is not None:
            call = HandlerCall(handlers.transactional, self.journal.dialect)
        elif handlers.money is None and self._context.options.accept_money != "journal":
            # Nobody takes the money. What was credited earlier still gets the same reply.
            received = await self._run(transfer, incoming.repeat_reply)
            return UnreachableError(NO_HANDLER) if received is None else received.reply_to(transfer)
        with self._context.tasks.committing():
            allowed = self.journal.plain_allowed
            received = await self._run(transfer, incoming.receive, apply=call, plain_allowed=allowed)
            assert received is not None
            if call is not None:
                call.log_failure(handlers)
            elif received.credited is not None:
                self.outbox.deliver(received.credited)
            if isinstance(received.refusal, NoRoomError):
                handlers.counters.transfers_refused += 1
            return received.reply_to(transfer)

    async def _run(
        self, transfer: Transfer, work: Callable[..., Received | None], **options: object
    ) -> Received | None:
        """Run work on a received transfer, until it is certain what became of it."""
        in_doubt = False
        while True:
            try:
                received = await self.journal.run(transfer.account, work, transfer, **options)
            except StoreError as error:
                # Once a try is in doubt, neither reply is certain to be true before the store can tell.
                in_doubt = in_doubt or isinstance(error, StoreInDoubtError)
                if not in_doubt:
                    self._context.log.once().error("refused a transfer of %s: %s", transfer.amount, error)
                    return Received(UnreachableError("transfers cannot be applied now"))
                self._context.log.once().error("a transfer of %s waits for the store: %s", transfer.amount, error)
                await trio.sleep(DOUBT_SECONDS)
            else:
                if in_doubt:
                    # An earlier try may have credited it.
                    self.outbox.look_at(transfer.account)
                return received

    def check_journal(self) -> None:
        """Do nothing: a transactional money handler can be used."""

    def handler_registered(self) -> None:
        """Call the new money handler, of either kind, for what waits in the journal."""
        self.outbox.look_again()
        self._new_handler = True
        if self.journal.is_open and self._context.tasks.running:
            self._context.tasks.spawn(self._note_handler)

    async def _note_handler(self) -> None:
        """Have the journal keep what waits for a handler from now on, without a limit of time."""
        try:
            if self._new_handler:
                await self.journal.run(BACKGROUND, self.journal.sql.history.note_handler)
                self._new_handler = False
        except StoreError as error:
            self._context.log.warn("cannot record that there is a money handler: %s", error)

    def _measure(self) -> dict[str, int]:
        """Return what is remembered now."""
        room = self.journal.sql.room
        return {"transfers_remembered": room.keys, "accounts_remembered": room.accounts}

    # What peers are told.

    @property
    def _offers_keys(self) -> bool:
        return self._context.options.money != "plain"

    def offer(self) -> JournalOffer | None:
        """Return what a peer is told about the journal."""
        return self.journal.offer() if self._offers_keys else None

    async def make_offer(self, account: str, peer: JournalOffer | None) -> JournalOffer | None:
        """Return what a peer is told about the journal, with the numbers of the transfers with its own."""
        if not self._offers_keys:
            return None
        return await self.journal.make_offer(account, None if peer is None else peer.journal)

    # The plugin's life.

    def claim(self) -> None:
        """Claim the ledger for this plugin."""
        self.journal.claim()

    async def open(self) -> None:
        """Open the journal before the first link."""
        if await self.journal.take():
            assert self.journal.lease is not None
            self._context.tasks.spawn(self.journal.lease.keep, self._context.tasks.wait_committed)
        await self.journal.open()

    def _opened(self) -> None:
        """Handle the opening of the journal, which may come later than that of the plugin."""
        # If disconnect() was called while a handler ran, the outbox is still running and has to be woken.
        self.outbox.look_again()
        if self._context.tasks.running:
            self._context.tasks.spawn(self.doubts.report_earlier, self.journal)
            self._context.tasks.spawn(self._note_handler)
        if self._on_open is not None:
            self._on_open()

    def call_on_open(self, function: Callable[[], None]) -> None:
        """Have a function called once it is known which accounts are unfinished."""
        self._on_open = function

    def link_up(self) -> None:
        """Handle a new link."""
        self._save_age_soon()
        if self._sender is not None:
            self._sender.link_up()

    def account_link_up(self, account: str, peer: PeerJournal | None) -> None:
        """Handle a new link of an account that has no service of its own."""
        self._save_age_soon()
        if peer is not None:
            self._context.tasks.spawn(self._meet, account, peer)

    async def _meet(self, account: str, peer: PeerJournal) -> None:
        try:
            await self.doubts.meet(self.journal, account, peer)
        except StoreError as error:
            self._context.log.once().error("cannot compare the journal of account %s: %s", account, error)

    def _save_age_soon(self) -> None:
        """Record the ledger's age, so that the next peer is told a recent one."""
        now = trio.current_time()
        if now - self._age_saved_at >= AGE_SECONDS:
            self._age_saved_at = now
            self._context.tasks.spawn(self.journal.save_age)

    def release_callers(self, reason: str) -> None:
        """Release the callers that wait for KEYED transfers."""
        if self._sender is not None:
            self._sender.abandon(reason)
        for service in self._accounts.values():
            service.release_callers(reason)

    def close(self, reason: str) -> None:
        """Send no more transfers."""
        if self._sender is not None:
            self._sender.close(reason)
        if self._context.tasks.ended:
            self.release()

    def release(self) -> None:
        """Release the ledger, so that another plugin can claim it."""
        self.journal.release()

    def is_unfinished(self, account: str) -> bool:
        """Whether an account has transfers of an earlier plugin that no plugin is sending again yet."""
        return account in self.journal.unfinished

    async def finish_handlers(self) -> None:
        """Wait for running money handlers."""
        await self.outbox.wait_quiet()

    async def finish_records(self) -> None:
        """Wait until what is in progress is recorded."""
        await self._context.tasks.wait_committed()
        await self.journal.save_age()

    # Forgetting.

    def fire(self, now: float) -> float:
        """Start a task that removes transfers whose keys need not be kept any longer; return when to do it next."""
        self._context.tasks.spawn(self._forget)
        return now + FORGET_SECONDS

    async def _forget(self) -> None:
        if self._forgetting:
            # A long history takes more than one interval.
            return
        self._forgetting = True
        after: tuple[float, int] | None = START
        try:
            await self.journal.wait_owned()
            await self.journal.save_age()
            await self._note_handler()
            while after is not None and not self._new_handler:
                if after != START:
                    await trio.sleep(SLICE_PAUSE)
                after = await self.journal.run(BACKGROUND, self.journal.sql.history.forget, after)
            if trio.current_time() >= self._count_at:
                await self._count()
                self._count_at = trio.current_time() + COUNT_SECONDS
        except StoreError as error:
            self._context.log.warn("cannot forget old transfers: %s", error)
        finally:
            self._forgetting = False

    async def _count(self) -> None:
        """Count what the ledger keeps; in between, the room counts what changes."""
        after = await self.journal.run(BACKGROUND, self.journal.sql.history.count, None)
        while after is not None:
            await trio.sleep(SLICE_PAUSE)
            after = await self.journal.run(BACKGROUND, self.journal.sql.history.count, after)


class AccountMoney(MoneyService):
    """The transfers of one account of a server, in the server's ledger.

    Args:
        server: The server's service.
        name: The account's name.
        context: The account's context.
        sender: Sends the account's transfers.
    """

    def __init__(self, server: JournaledMoney, name: str, context: Context, sender: Sender) -> None:
        self._server = server
        self._name = name
        self._context = context
        self.sender: Sender = sender

    @property
    def handlers(self) -> Handlers:
        """The account's handlers."""
        return self._context.handlers

    @property
    def is_sending(self) -> bool:
        """Whether the account has transfers to send, or to send again."""
        return self.sender.is_needed

    @property
    def keeps_journal(self) -> bool:
        """True: transfers are kept in a journal."""
        return True

    @property
    def transfers(self) -> Transfers:
        """The transfers in the journal."""
        return Transfers(self._server.journal, self._name, self._server.holding)

    async def send(self, transfer: Transfer, *, has_key: bool) -> None:  # noqa: ARG002 (every key is kept)
        """Send a transfer."""
        await self.sender.send(transfer)

    async def recall(self, transfer: Transfer) -> bool:
        """Report the outcome of a transfer in the journal, while there is no link."""
        return await self.sender.recall(transfer)

    async def receive(self, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | Receipt | None:
        """Credit a transfer that the peer sent, or refuse it."""
        return await self._server.receive(transfer, handlers)

    def for_account(self, name: str, context: Context, link: MoneyLink) -> MoneyService:
        """Return the service of one account of a server."""
        return self._server.for_account(name, context, link)

    def check_journal(self) -> None:
        """Do nothing: a transactional money handler can be used."""

    def handler_registered(self) -> None:
        """Call the new money handler, of either kind, for what waits in the journal."""
        self._server.handler_registered()

    def link_up(self) -> None:
        """Handle a new link."""
        self.sender.link_up()

    def release_callers(self, reason: str) -> None:
        """Release the callers that wait for KEYED transfers."""
        self.sender.abandon(reason)

    def close(self, reason: str) -> None:
        """Send no more transfers."""
        self.sender.close(reason)
        self._server.forget_account(self._name)

    async def finish_records(self) -> None:
        """Wait until what is in progress is recorded."""
        await self._context.tasks.wait_committed()
