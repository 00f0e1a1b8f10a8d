"""The money service of one plugin: everything that the plugin does about transfers.

Invariant: with a transactional store, every transfer goes through the journal. Without one, transfers are PLAIN and
nothing about them is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..errors import InvalidServicesError, LedgerPluginError, NotAcceptedError
from ..runtime.handlers import Handlers, begin_handling
from ..transfer import enter_transfer
from .reconciliation import Transfers

if TYPE_CHECKING:
    from ..options.base import PluginOptions
    from ..runtime.tasks import TaskGroup
    from ..services import Log, Store, TransactionalStore
    from ..transfer import Transfer
    from .ledger import Ledger
    from .outbox import FindHandler
    from .sender import SenderHost

__all__ = ["MoneyService", "make_ledger", "receive_plain"]


def make_ledger(
    store: Store | None, options: PluginOptions, log: Log, tasks: TaskGroup, find_handler: FindHandler
) -> Ledger | None:
    """Return the ledger of a plugin with a transactional store, or None without one.

    Raises:
        InvalidServicesError: The options ask for KEYED, which needs a transactional store.
    """
    if callable(getattr(store, "transaction", None)):
        from .ledger import Ledger  # noqa: PLC0415 (programs without a journal need not import SQLite)

        return Ledger(cast("TransactionalStore", store), options, log, tasks, find_handler)
    if options.money == "keyed":
        raise InvalidServicesError(
            "store: money='keyed' needs one that has transaction(), as open_sqlite_store() gives"
        )
    return None


class MoneyService:
    """The transfers of one plugin.

    Args:
        host: The plugin.
        ledger: The ledger with the journal; None without a transactional store.
        tasks: The task group that runs the tasks.
        account: The account to send to; empty for a plugin with one peer, None for a plugin that sends nothing.
        shows: The account that ``transfers`` shows; None for all.
        keeps_ledger: Whether the ledger belongs to this plugin, not to the server of many accounts around it.
    """

    def __init__(
        self,
        host: SenderHost,
        ledger: Ledger | None,
        tasks: TaskGroup,
        *,
        account: str | None,
        shows: str | None,
        keeps_ledger: bool,
    ) -> None:
        self._host = host
        self._tasks = tasks
        self._shows = shows
        self.ledger: Ledger | None = ledger
        self._own = ledger if keeps_ledger else None
        self._sender: Sender | None = None
        if ledger is not None and account is not None:
            from .sender import Sender  # noqa: PLC0415 (programs without a journal need not import it)

            self._sender = Sender(host, ledger, tasks, account)
        if self._own is not None:
            host.context.timers.periodic += [self._own, self._own.outbox]

    @property
    def offered_retention(self) -> int | None:
        """For how many seconds this end offers to keep keys; None if it offers only PLAIN."""
        options = self._host.options
        return None if self.ledger is None or options.money == "plain" else int(options.key_retention)

    @property
    def transfers(self) -> Transfers:
        """The transfers in the journal.

        Raises:
            InvalidServicesError: There is no transactional store.
        """
        if self.ledger is None:
            raise InvalidServicesError("store: transfers are remembered in one that has transaction() only")
        return Transfers(self.ledger, self._shows)

    @property
    def is_busy(self) -> bool:
        """Whether money handlers are running that must be left to finish."""
        return self._own is not None and self._own.outbox.running > 0

    async def send(self, transfer: Transfer) -> None:
        """Send a transfer; ``LedgerPlugin.send_money`` documents what it raises."""
        if self._sender is None:
            await self._host.carry_money(transfer)
        else:
            await self._sender.send(transfer)

    async def recall(self, transfer: Transfer) -> bool:
        """Report the outcome of a transfer in the journal, while there is no link; return False if it is not there."""
        return self._sender is not None and await self._sender.recall(transfer)

    async def receive(self, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | None:
        """Credit a transfer of the peer's, and return what the peer is told: None, or a refusal.

        Args:
            transfer: The transfer.
            handlers: Those of the transfer's account.

        Raises:
            Exception: The money handler raised it; there is no journal, and the transfer is refused.

        Cancellation: With a journal the transfer may be credited.
        """
        if self.ledger is None:
            return await receive_plain(transfer, handlers)
        if handlers.transactional is None:
            return await self.ledger.receive(transfer, None)
        from .ledger import receive_within  # noqa: PLC0415 (SQLite and the journal are for those who keep one)

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

    def abandon(self, reason: str) -> None:
        """Release callers waiting on KEYED transfers; the journal keeps retrying them."""
        if self._sender is not None:
            self._sender.abandon(reason)

    def close(self, reason: str) -> None:
        """Stop sending, and release the ledger once no task uses it."""
        if self._sender is not None:
            self._sender.close(reason)
        if self._tasks.ended:
            self.release()

    def release(self) -> None:
        """Release the ledger, so that another plugin can claim it."""
        if self._own is not None:
            self._own.release()

    def is_unfinished(self, account: str) -> bool:
        """Whether an account has transfers of an earlier plugin that no plugin is sending again yet."""
        return self.ledger is not None and account in self.ledger.unfinished

    def take_unfinished(self, account: str) -> None:
        """Take over sending an account's transfers of an earlier plugin."""
        if self._sender is not None and self.ledger is not None and account in self.ledger.unfinished:
            self.ledger.unfinished.remove(account)
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
        await self._tasks.wait_committed()
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
