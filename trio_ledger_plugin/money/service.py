"""The money service of one plugin: everything that the plugin does about transfers.

With a transactional store, every transfer goes through the journal (``journaled.py``). Without one, transfers are PLAIN
and nothing about them is kept (``plain.py``).
"""

# ruff: noqa: B027 (by default, a service does what is right for one that keeps nothing)

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import frozen

from ..errors import InvalidServicesError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..errors import LedgerPluginError
    from ..events import Event
    from ..negotiation import JournalOffer, PeerJournal
    from ..runtime.context import Context
    from ..runtime.handlers import Handlers
    from ..transfer import Receipt, Transfer
    from .reconciliation import Transfers

    Carry: TypeAlias = Callable[[Transfer], Awaitable[int | None]]

__all__ = ["NO_HANDLER", "MoneyLink", "MoneyService"]

# Why money is refused when no handler takes it; the code is T00.
NO_HANDLER: Final = "no money handler is registered"


@frozen
class MoneyLink:
    """What a money service uses of its plugin.

    Attributes:
        carry: Carries a transfer to the peer, once, and returns the number of its receipt, if it has one.
        peer: Returns the peer's journal as the present link knows it; None at PLAIN and without a link.
        is_connected: Returns whether there is a link.
        publish: Publishes an event of the plugin.
        changed: Called when ``MoneyService.is_sending`` may have changed.
    """

    carry: Carry
    peer: Callable[[], PeerJournal | None]
    is_connected: Callable[[], bool]
    publish: Callable[[Event], None]
    changed: Callable[[], None] = lambda: None


class MoneyService(ABC):
    """The transfers of one plugin, or of one account of a server.

    What it does by default is right for a service that keeps nothing.
    """

    @abstractmethod
    async def send(self, transfer: Transfer, *, has_key: bool) -> None:
        """Send a transfer; ``LedgerPlugin.send_money`` documents what it raises.

        Args:
            transfer: The transfer; its key is set.
            has_key: Whether the caller chose the key, which must keep its meaning.
        """

    @abstractmethod
    async def receive(self, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | Receipt | None:
        """Credit a transfer that the peer sent, and return what the peer is told: None or a receipt, or a refusal.

        Args:
            transfer: The transfer.
            handlers: The handlers of the transfer's account.

        Raises:
            Exception: The money handler raised it; there is no journal, and the transfer is refused.

        Cancellation: With a journal the transfer may be credited.
        """

    @abstractmethod
    def for_account(self, name: str, context: Context, link: MoneyLink) -> MoneyService:
        """Return the service of one account of a server.

        Args:
            name: The account's name.
            context: The account's context.
            link: What the service uses of the account's plugin.
        """

    @property
    def keeps_journal(self) -> bool:
        """Whether transfers are kept in a journal."""
        return False

    @property
    def transfers(self) -> Transfers:
        """The transfers in the journal.

        Raises:
            InvalidServicesError: There is no transactional store.
        """
        raise InvalidServicesError("store: transfers are remembered in one that has transaction() only")

    @property
    def is_sending(self) -> bool:
        """Whether it has transfers to send, or to send again when there is a link."""
        return False

    @property
    def is_busy(self) -> bool:
        """Whether money handlers are running that must be left to finish."""
        return False

    async def recall(self, transfer: Transfer) -> bool:  # noqa: ARG002 (nothing is known here)
        """Report the outcome of a transfer in the journal, while there is no link; return False if it is not there."""
        return False

    def check_journal(self) -> None:
        """Refuse a transactional money handler where there is no journal.

        Raises:
            InvalidServicesError: There is no transactional store.
        """
        raise InvalidServicesError("store: a transactional money handler needs one that has transaction()")

    def handler_registered(self) -> None:
        """Call the new money handler, of either kind, for what waits in the journal."""

    # What peers are told.

    def offer(self) -> JournalOffer | None:
        """Return what a peer is told about the journal; None if this end offers only PLAIN."""
        return None

    async def make_offer(self, account: str, peer: JournalOffer | None) -> JournalOffer | None:  # noqa: ARG002
        """Return what an account's peer is told about the journal, with the numbers of the transfers with the peer's.

        Args:
            account: The account.
            peer: What the peer has said about its journal; None if it has not yet.

        Cancellation: Safe at any time. A store that fails or hangs delays this for a second at most.
        """
        return None

    # The plugin's life.

    def claim(self) -> None:
        """Claim the ledger for this plugin.

        Raises:
            InvalidServicesError: Another open plugin has claimed it.
        """

    async def open(self) -> None:
        """Open the journal before the first link.

        Cancellation: Safe at any time.
        """

    def link_up(self) -> None:
        """Handle a new link."""

    def account_link_up(self, account: str, peer: PeerJournal | None) -> None:
        """Handle a new link of an account that has no service of its own."""

    def release_callers(self, reason: str) -> None:
        """Release the callers that wait for KEYED transfers, of all accounts; the journal keeps sending them."""

    def close(self, reason: str) -> None:
        """Send no more transfers, and release the ledger once no task works on it."""

    def release(self) -> None:
        """Release the ledger, so that another plugin can claim it."""

    def is_unfinished(self, account: str) -> bool:  # noqa: ARG002
        """Whether an account has transfers of an earlier plugin that no plugin is sending again yet."""
        return False

    def call_on_open(self, function: Callable[[], None]) -> None:
        """Have a function called once it is known which accounts are unfinished."""

    async def finish_handlers(self) -> None:
        """Wait for running money handlers.

        Cancellation: Safe at any time.
        """

    async def finish_records(self) -> None:
        """Wait until the peer's replies and the ledger's age are recorded.

        Cancellation: Safe at any time.
        """
