"""The money service of one plugin: everything that the plugin does about transfers.

Invariant: with a transactional store, every transfer goes through the journal. Without one, transfers are PLAIN and
nothing about them is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, cast

from ..errors import InvalidServicesError, LedgerPluginError, NotAcceptedError
from ..runtime.handlers import begin_handling
from ..transfer import enter_transfer
from .reconciliation import Transfers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..runtime.context import Context
    from ..runtime.handlers import Handlers, MoneyHandler
    from ..services import Store, TransactionalStore
    from ..transfer import Transfer
    from .ledger import Ledger

__all__ = ["MoneyService", "open_money", "receive_plain"]


Carry: TypeAlias = "Callable[[Transfer], Awaitable[None]]"
PeerRetention: TypeAlias = "Callable[[], int | None]"


def open_money(
    context: Context, store: Store | None, *, has_accounts: bool, carry: Carry, peer_retention: PeerRetention
) -> MoneyService:
    """Return the money service of a plugin, with a ledger if the store is transactional.

    Args:
        context: What the parts of the plugin share.
        store: The store of the application, or None.
        has_accounts: Whether the plugin is many accounts, each of which sends its own money.
        carry: Carries a transfer to the peer, once.
        peer_retention: Returns for how many seconds the peer keeps keys, agreed on the present link; None at PLAIN.

    Raises:
        InvalidServicesError: The options ask for KEYED, which needs a transactional store.
    """

    def find_handler(account: str) -> MoneyHandler | None:
        return service.find_handler(account)

    ledger: Ledger | None = None
    if callable(getattr(store, "transaction", None)):
        from .ledger import Ledger  # noqa: PLC0415 (programs without a journal need not import SQLite)

        ledger = Ledger(cast("TransactionalStore", store), context, find_handler)
    elif context.options.money == "keyed":
        raise InvalidServicesError(
            "store: money='keyed' needs one that has transaction(), as open_sqlite_store() gives"
        )
    account = None if has_accounts else ""
    service = MoneyService(context, ledger, account=account, carry=carry, peer_retention=peer_retention)
    if ledger is not None:
        context.timers.periodic += [ledger, ledger.outbox]
    return service


class MoneyService:
    """The transfers of one plugin.

    Args:
        context: What the parts of the plugin share.
        ledger: The ledger with the journal; None without a transactional store.
        account: The account that it sends to and shows: empty for a plugin with one peer, None for a plugin that sends
            nothing and shows all.
        carry: Carries a transfer to the peer, once.
        peer_retention: Returns for how many seconds the peer keeps keys, agreed on the present link; None at PLAIN.
        server: The service of the server, for an account; None for a plugin of its own, to which the ledger belongs.
    """

    def __init__(
        self,
        context: Context,
        ledger: Ledger | None,
        *,
        account: str | None,
        carry: Carry,
        peer_retention: PeerRetention,
        server: MoneyService | None = None,
    ) -> None:
        self._context = context
        self._account = account
        self._carry = carry
        self._server = server
        self.ledger: Ledger | None = ledger
        self._own = ledger if server is None else None
        self._accounts: dict[str, MoneyService] = {}
        self._sender: Sender | None = None
        if ledger is not None and account is not None:
            from .sender import Sender  # noqa: PLC0415 (programs without a journal need not import it)

            self._sender = Sender(context, ledger, account, carry, peer_retention)

    def for_account(self, name: str, context: Context, carry: Carry, peer_retention: PeerRetention) -> MoneyService:
        """Return the service of one account of a server, in the server's ledger.

        Args:
            name: The account's name.
            context: The account's context.
            carry: Carries a transfer to the account's client, once.
            peer_retention: Returns for how many seconds the client keeps keys; None at PLAIN.
        """
        service = MoneyService(
            context, self.ledger, account=name, carry=carry, peer_retention=peer_retention, server=self
        )
        self._accounts[name] = service
        service._take_unfinished()
        return service

    def find_handler(self, account: str) -> MoneyHandler | None:
        """Return the money handler that credited transfers of an account go to; None while they wait for one."""
        service = self._accounts.get(account)
        own = None if service is None else service._context.handlers.money
        return own or self._context.handlers.money

    @property
    def offered_retention(self) -> int | None:
        """For how many seconds this end offers to keep keys; None if it offers only PLAIN."""
        options = self._context.options
        return None if self.ledger is None or options.money == "plain" else int(options.key_retention)

    @property
    def transfers(self) -> Transfers:
        """The transfers in the journal.

        Raises:
            InvalidServicesError: There is no transactional store.
        """
        if self.ledger is None:
            raise InvalidServicesError("store: transfers are remembered in one that has transaction() only")
        return Transfers(self.ledger, self._account)

    @property
    def is_busy(self) -> bool:
        """Whether money handlers are running that must be left to finish."""
        return self._own is not None and self._own.outbox.running > 0

    async def send(self, transfer: Transfer) -> None:
        """Send a transfer; ``LedgerPlugin.send_money`` documents what it raises."""
        if self._sender is None:
            await self._carry(transfer)
        else:
            await self._sender.send(transfer)

    async def recall(self, transfer: Transfer) -> bool:
        """Report the outcome of a transfer in the journal, while there is no link; return False if it is not there."""
        return self._sender is not None and await self._sender.recall(transfer)

    async def receive(self, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | None:
        """Credit a transfer that the peer sent, and return what the peer is told: None, or a refusal.

        Args:
            transfer: The transfer.
            handlers: The handlers of the transfer's account.

        Raises:
            Exception: The money handler raised it; there is no journal, and the transfer is refused.

        Cancellation: With a journal the transfer may be credited.
        """
        if self.ledger is None:
            return await receive_plain(transfer, handlers)
        if handlers.transactional is None:
            return await self.ledger.receive(transfer, None)
        from .ledger import receive_within  # noqa: PLC0415 (programs without a journal need not import SQLite)

        return await receive_within(self.ledger, transfer, handlers)

    def handler_registered(self) -> None:
        """Call the new money handler for what waits in the journal."""
        if self.ledger is not None:
            self.ledger.outbox.look_again()

    def check_journal(self) -> None:
        """Refuse a transactional money handler where there is no journal.

        Raises:
            InvalidServicesError: There is no transactional store.
        """
        if self.ledger is None:
            raise InvalidServicesError("store: a transactional money handler needs one that has transaction()")

    # The plugin's life.

    def claim(self) -> None:
        """Claim the ledger for this plugin.

        Raises:
            InvalidServicesError: Another open plugin has claimed it.
        """
        if self._own is not None:
            self._own.claim()

    async def open(self) -> None:
        """Open the journal before the first link.

        Cancellation: Safe at any time.
        """
        if self._own is not None:
            await self._own.open()
            # If disconnect() was called while a handler ran, the outbox is still running and has to be woken.
            self._own.outbox.look()

    def link_up(self) -> None:
        """Handle a new link: look for received transfers to deliver and for transfers to send again."""
        if self._own is not None:
            self._own.outbox.look()
        if self._sender is not None:
            self._sender.link_up()

    def release_callers(self, reason: str) -> None:
        """Release the callers that wait for KEYED transfers, of all accounts; the journal keeps sending them."""
        if self._sender is not None:
            self._sender.abandon(reason)
        for service in self._accounts.values():
            service.release_callers(reason)

    def close(self, reason: str) -> None:
        """Send no more transfers, and release the ledger once no task works on it."""
        if self._sender is not None:
            self._sender.close(reason)
        if self._server is not None:
            assert self._account is not None
            del self._server._accounts[self._account]
        elif self._context.tasks.ended:
            self.release()

    def release(self) -> None:
        """Release the ledger, so that another plugin can claim it."""
        if self._own is not None:
            self._own.release()

    def is_unfinished(self, account: str) -> bool:
        """Whether an account has transfers of an earlier plugin that no plugin is sending again yet."""
        return self.ledger is not None and account in self.ledger.unfinished

    def _take_unfinished(self) -> None:
        """Send the transfers that an earlier plugin of the account left in the journal, from now on."""
        if self._sender is not None and self.ledger is not None and self._account in self.ledger.unfinished:
            self.ledger.unfinished.remove(self._account)
            self._sender.behind = True

    async def finish_handlers(self) -> None:
        """Wait for running money handlers.

        Cancellation: Safe at any time.
        """
        if self._own is not None:
            await self._own.outbox.wait_quiet()

    async def finish_records(self) -> None:
        """Wait until the peer's replies and the ledger's age are recorded.

        Cancellation: Safe at any time.
        """
        await self._context.tasks.wait_committed()
        if self._own is not None:
            await self._own.save_age()


async def receive_plain(transfer: Transfer, handlers: Handlers) -> LedgerPluginError | None:
    """Have a transfer handled where there is no journal; ``MoneyService.receive`` documents the rest.

    Cancellation: The handler is cancelled.
    """
    handler = handlers.money
    if handler is None:
        return NotAcceptedError("no money handler is registered")
    enter_transfer(transfer)
    await begin_handling(handler, transfer.amount)
    return None
