"""Chooses the money service of a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from ..errors import InvalidServicesError
from .plain import PlainMoney

if TYPE_CHECKING:
    from ..runtime.context import Context
    from ..services import Store, TransactionalStore
    from .service import MoneyLink, MoneyService

__all__ = ["open_money"]


def open_money(context: Context, store: Store | None, link: MoneyLink, *, has_accounts: bool) -> MoneyService:
    """Return the money service of a plugin, with a journal if the store is transactional.

    Args:
        context: What the parts of the plugin share.
        store: The store of the application, or None.
        link: What the service uses of the plugin.
        has_accounts: Whether the plugin is many accounts, each of which sends its own money.

    Raises:
        InvalidServicesError: The options ask for something that needs a transactional store.
    """
    if context.options.standby and getattr(getattr(store, "dialect", None), "claims", None) is None:
        raise InvalidServicesError(
            "store: standby=True needs one that several programs can open, as open_postgres_store() gives"
        )
    if callable(getattr(store, "transaction", None)):
        from .journaled import JournaledMoney  # noqa: PLC0415 (programs without a journal need not import SQLite)

        return JournaledMoney(context, cast("TransactionalStore[Any]", store), link, has_accounts=has_accounts)
    for option, value in (("money", "keyed"), ("accept_money", "journal")):
        if getattr(context.options, option) == value:
            raise InvalidServicesError(
                f"store: {option}={value!r} needs one that has transaction(), as open_sqlite_store() gives"
            )
    return PlainMoney(context, link)
