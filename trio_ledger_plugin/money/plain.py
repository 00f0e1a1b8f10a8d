"""The money service of a plugin without a transactional store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InvalidServicesError, LedgerPluginError, UnreachableError
from ..runtime.handlers import begin_handling
from ..transfer import enter_transfer
from .service import NO_HANDLER, MoneyService

if TYPE_CHECKING:
    from ..runtime.context import Context
    from ..runtime.handlers import Handlers
    from ..transfer import Transfer
    from .service import MoneyLink

__all__ = ["PlainMoney"]


class PlainMoney(MoneyService):
    """Transfers that nothing is kept of: at PLAIN, and handled before they are acknowledged.

    Args:
        context: What the parts of the plugin share.
        link: What the service uses of the plugin.
    """

    def __init__(self, context: Context, link: MoneyLink) -> None:
        self._context = context
        self._link = link

    async def send(self, transfer: Transfer, *, has_key: bool) -> None:
        """Send a transfer."""
        if has_key and self._context.options.money != "plain":
            raise InvalidServicesError(
                "store: an idempotency_key is kept in one that has transaction(), as open_sqlite_store() gives;"
                " money='plain' sends without keeping it"
            )
        await self._link.carry(transfer)

    async def receive(self, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | None:
        """Credit a transfer that the peer sent, or refuse it."""
        handler = handlers.money
        if handler is None:
            return UnreachableError(NO_HANDLER)
        enter_transfer(transfer)
        await begin_handling(handler, transfer.amount)
        return None

    def for_account(self, name: str, context: Context, link: MoneyLink) -> PlainMoney:  # noqa: ARG002
        """Return the service of one account of a server."""
        return PlainMoney(context, link)
