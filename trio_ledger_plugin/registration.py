"""How an application registers its handlers: the methods of ``LedgerPlugin`` that do so (RFC-0024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .runtime.handlers import check_transactional

if TYPE_CHECKING:
    from .money.service import MoneyService
    from .runtime.handlers import DataHandler, Handlers, MoneyHandler, TransactionalMoneyHandler

__all__ = [
    "deregister_data_handler",
    "deregister_money_handler",
    "register_data_handler",
    "register_money_handler",
    "register_transactional_money_handler",
]


class Registers(Protocol):
    """What a plugin needs to have for these functions to be its methods."""

    handlers: Handlers
    money: MoneyService


def register_data_handler(self: Registers, handler: DataHandler) -> None:
    """Set the handler of the peer's requests (RFC-0024, registerDataHandler).

    Args:
        handler: ``async (data: bytes) -> bytes``. It runs in a task and a context of its own.

    Raises:
        TypeError: ``handler`` cannot be called.
        DataHandlerAlreadyRegisteredError: One is set already.
    """
    self.handlers.register_data(handler)


def deregister_data_handler(self: Registers) -> None:
    """Remove the data handler, if one is set; those that run finish (RFC-0024, deregisterDataHandler)."""
    self.handlers.deregister_data()


def register_money_handler(self: Registers, handler: MoneyHandler) -> None:
    """Set the handler of the peer's transfers (RFC-0024, registerMoneyHandler).

    Args:
        handler: ``async (amount: str) -> None``; ``current_transfer()`` tells more inside it. Without a
            transactional store it is called before the transfer is acknowledged, and an error that it raises
            refuses the transfer. With one it is called once the transfer is credited, at least once, and again
            after an error until it succeeds: it tells by the key what it has seen before.

    Raises:
        TypeError: ``handler`` cannot be called.
        MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
    """
    self.handlers.register_money(handler)
    self.money.handler_registered()


def register_transactional_money_handler(self: Registers, handler: TransactionalMoneyHandler) -> None:
    """Set a handler of the peer's transfers that has its effect exactly once, in the store's own database.

    Args:
        handler: ``(connection: sqlite3.Connection, transfer: Transfer) -> None``, a plain function. It runs on
            the store's thread, inside the transaction that credits the transfer: what it writes counts exactly
            when the transfer does. An error that it raises undoes what it did and refuses the transfer. It
            can be run again after a commit that failed, so it changes nothing but the database.

    Raises:
        TypeError: ``handler`` cannot be called, or is an async function.
        InvalidServicesError: There is no transactional store.
        MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
    """
    check_transactional(handler)
    self.money.check_journal()
    self.handlers.register_transactional_money(handler)


def deregister_money_handler(self: Registers) -> None:
    """Remove the money handler of either kind; those that run finish (RFC-0024, deregisterMoneyHandler)."""
    self.handlers.deregister_money()
