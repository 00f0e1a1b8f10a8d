"""The methods of ``LedgerPlugin`` that register handlers (RFC-0024) or watch a plugin, and their types.

A class that takes a function from here as its method declares it ``ClassVar`` with one of these types: without it, type
checkers infer different ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from .runtime.handlers import check_transactional

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import trio

    from .events import Event
    from .money.service import MoneyService
    from .runtime.connector import Connector
    from .runtime.context import Context
    from .runtime.handlers import DataHandler, Handlers, MoneyHandler, TransactionalMoneyHandler
    from .runtime.workers import OnReply

__all__ = [
    "Deregister",
    "RegisterData",
    "RegisterMoney",
    "RegisterTransactional",
    "Registers",
    "WatchEvents",
    "WatchRequests",
    "deregister_data_handler",
    "deregister_money_handler",
    "register_data_handler",
    "register_money_handler",
    "register_transactional_money_handler",
    "watch_events",
    "watch_requests",
]


class Registers(Protocol):
    """What these functions use of the plugin whose methods they are."""

    context: Context
    handlers: Handlers
    money: MoneyService
    _connector: Connector


RegisterData: TypeAlias = "Callable[[Registers, DataHandler], None]"
RegisterMoney: TypeAlias = "Callable[[Registers, MoneyHandler], None]"
RegisterTransactional: TypeAlias = "Callable[[Registers, TransactionalMoneyHandler], None]"
Deregister: TypeAlias = "Callable[[Registers], None]"
WatchEvents: TypeAlias = "Callable[[Registers], AbstractContextManager[trio.MemoryReceiveChannel[Event]]]"
WatchRequests: TypeAlias = "Callable[[Registers, OnReply, OnReply], AbstractContextManager[None]]"


def register_data_handler(self: Registers, handler: DataHandler) -> None:
    """Set the handler for requests from the peer (RFC-0024, registerDataHandler).

    Args:
        handler: ``async (data: bytes) -> bytes``. Each call runs in its own task and context.

    Raises:
        TypeError: ``handler`` is not an async function, or cannot be called with one argument.
        DataHandlerAlreadyRegisteredError: A data handler is set already.
    """
    self.handlers.register_data(handler)


def deregister_data_handler(self: Registers) -> None:
    """Remove the data handler, if one is set; running calls finish (RFC-0024, deregisterDataHandler)."""
    self.handlers.deregister_data()


def register_money_handler(self: Registers, handler: MoneyHandler) -> None:
    """Set the handler for transfers from the peer (RFC-0024, registerMoneyHandler).

    Args:
        handler: ``async (amount: str) -> None``; inside it, ``current_transfer()`` returns the transfer. Without a
            transactional store, it is called before the transfer is acknowledged, and an error that it raises refuses
            the transfer. With one, it is called after the transfer is credited: at least once, and after an error again
            until it succeeds. It can recognise a repeated call by the transfer's key.

    Raises:
        TypeError: ``handler`` is not an async function, or cannot be called with one argument.
        MoneyHandlerAlreadyRegisteredError: A money handler of either kind is set already.
    """
    self.handlers.register_money(handler)
    self.money.handler_registered()


def register_transactional_money_handler(self: Registers, handler: TransactionalMoneyHandler) -> None:
    """Set a handler for transfers from the peer that takes effect exactly once, in the store's own database.

    Args:
        handler: ``(connection: sqlite3.Connection, transfer: Transfer) -> None``, a plain function. It runs on the
            store's thread, inside the transaction that credits the transfer, so that both are committed or neither is.
            An error that it raises rolls back its changes and refuses the transfer. It can be called again after a
            failed commit, so it must change nothing but the database.

    Raises:
        TypeError: ``handler`` cannot be called with two arguments, or is an async function or a generator.
        InvalidServicesError: There is no transactional store.
        MoneyHandlerAlreadyRegisteredError: A money handler of either kind is set already.
    """
    check_transactional(handler)
    self.money.check_journal()
    self.handlers.register_transactional_money(handler)
    self.money.handler_registered()


def deregister_money_handler(self: Registers) -> None:
    """Remove the money handler of either kind; running calls finish (RFC-0024, deregisterMoneyHandler)."""
    self.handlers.deregister_money()


def watch_events(self: Registers) -> AbstractContextManager[trio.MemoryReceiveChannel[Event]]:
    """Return a context manager that yields a channel of the plugin's events within its block.

    Unlike clones of ``events``, which compete for each event, this channel gets every event, and so does ``events``. It
    keeps 64 events, as ``events`` does.
    """
    return self._connector.stream.watch()


def watch_requests(self: Registers, on_handled: OnReply, on_answered: OnReply) -> AbstractContextManager[None]:
    """Return a context manager that has two functions called within its block, for metrics.

    They are called for each request, so they must be fast, and they must not raise an exception. A server is watched
    with all its accounts.

    Args:
        on_handled: Called with the reply to each request from the peer, before it is sent: when its handler was called,
            in seconds of Trio's clock; and bytes, None for the acknowledgement of a transfer, or the error.
        on_answered: Called likewise with the reply to each request of this end, or with the error that it fails with.

    Raises:
        RuntimeError: On entering the block: they are watched already.
    """
    return self.context.workers.watch(on_handled, on_answered)
