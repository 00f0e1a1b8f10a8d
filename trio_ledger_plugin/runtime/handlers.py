"""The application's handlers: how they are registered, called, and what the peer is told of their errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutine, iscoroutinefunction
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

from ..errors import (
    DataHandlerAlreadyRegisteredError,
    InvalidServicesError,
    LedgerPluginError,
    MoneyHandlerAlreadyRegisteredError,
    NotAcceptedError,
    RemoteError,
    UnreachableError,
)
from ..transfer import Transfer, begin_handling, enter_transfer

if TYPE_CHECKING:
    import sqlite3

    from ..money.ledger import Ledger
    from ..services import Log

__all__ = [
    "DataHandler",
    "Handlers",
    "MoneyHandler",
    "Reply",
    "TransactionalMoneyHandler",
    "as_bytes",
]

DataHandler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
MoneyHandler: TypeAlias = Callable[[str], Awaitable[None]]
TransactionalMoneyHandler: TypeAlias = "Callable[[sqlite3.Connection, Transfer], None]"

# What a request is answered with: a response, the acknowledgement of a transfer, or an error.
Reply: TypeAlias = bytes | LedgerPluginError | None


class Handlers:
    """The handlers of one plugin: one of data, and one of money.

    Args:
        log: Told of errors that the peer must not read.
        ledger: The plugin's journal of transfers; None where there is no store for one.
    """

    def __init__(self, log: Log, ledger: Ledger | None = None) -> None:
        self._log = log
        self._ledger = ledger
        self._data: DataHandler | None = None
        self._money: MoneyHandler | None = None
        self._transactional: TransactionalMoneyHandler | None = None
        self.closing = False
        self._wrap: Callable[[str, Any], Any] = _as_it_is

    def register_data(self, handler: DataHandler) -> None:
        """Set the data handler.

        Raises:
            TypeError: It cannot be called.
            DataHandlerAlreadyRegisteredError: One is set already.
        """
        _check_callable("data", handler)
        if self._data is not None:
            raise DataHandlerAlreadyRegisteredError(
                "a data handler is registered already; call deregister_data_handler() first"
            )
        self._data = self._wrap("data", handler)

    def register_money(self, handler: MoneyHandler) -> None:
        """Set the money handler.

        Raises:
            TypeError: It cannot be called.
            MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
        """
        _check_callable("money", handler)
        self._check_no_money_handler()
        self._money = self._wrap("money", handler)
        if self._ledger is not None:
            self._ledger.outbox.look_again()

    def register_transactional_money(self, handler: TransactionalMoneyHandler) -> None:
        """Set the money handler that runs inside the transaction of the transfer.

        Raises:
            TypeError: It cannot be called, or is an async function.
            InvalidServicesError: There is no transactional store.
            MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
        """
        if not callable(handler) or iscoroutinefunction(handler):
            raise TypeError("a transactional money handler is a plain function: it runs on the store's thread")
        if self._ledger is None:
            raise InvalidServicesError("store: a transactional money handler needs one that has transaction()")
        self._check_no_money_handler()
        self._transactional = self._wrap("transactional_money", handler)

    def _check_no_money_handler(self) -> None:
        if self.serves_money:
            raise MoneyHandlerAlreadyRegisteredError(
                "a money handler is registered already; call deregister_money_handler() first"
            )

    def wrap(self, wrap: Callable[[str, Any], Any]) -> None:
        """Have something else called in the place of each handler, of those as well that are set already.

        Args:
            wrap: Given the kind, ``"data"``, ``"money"`` or ``"transactional_money"``, and a handler; returns what is
                called with the same arguments.
        """
        self._wrap = wrap
        self._data = self._data and wrap("data", self._data)
        self._money = self._money and wrap("money", self._money)
        self._transactional = self._transactional and wrap("transactional_money", self._transactional)

    @property
    def serves_data(self) -> bool:
        """Whether a data handler is set."""
        return self._data is not None

    @property
    def serves_money(self) -> bool:
        """Whether a money handler is set, of either kind."""
        return self._money is not None or self._transactional is not None

    @property
    def money(self) -> MoneyHandler | None:
        """The money handler that is called once a transfer is credited, if one is set."""
        return self._money

    def deregister_data(self) -> None:
        """Remove the data handler, if one is set."""
        self._data = None

    def deregister_money(self) -> None:
        """Remove the money handler, of either kind, if one is set."""
        self._money = self._transactional = None

    async def answer(self, payload: bytes | Transfer) -> Reply:
        """Have a handler serve a request or a transfer, and return the reply; no exception of a handler's leaves."""
        if self.closing:
            return UnreachableError("the plugin is closing")
        try:
            if isinstance(payload, Transfer):
                return await self._apply(payload)
            if self._data is None:
                return UnreachableError("no data handler is registered")
            response = await self._data(payload)
            return response if response.__class__ is bytes else as_bytes(response, "what a data handler returns")
        except Exception as error:  # noqa: BLE001 (whatever a handler raises, the peer gets one reply)
            return self._refusal("money" if isinstance(payload, Transfer) else "data", error)

    async def _apply(self, transfer: Transfer) -> LedgerPluginError | None:
        if self._ledger is not None:
            if self._transactional is None:
                return await self._ledger.receive(transfer, None)
            return await self._apply_within(self._ledger, transfer, self._transactional)
        if self._money is None:
            return NotAcceptedError("no money handler is registered")
        enter_transfer(transfer)
        await begin_handling(self._money, transfer.amount)
        return None

    async def _apply_within(
        self, ledger: Ledger, transfer: Transfer, handler: TransactionalMoneyHandler
    ) -> LedgerPluginError | None:
        from ..stores.sqlite_errors import is_storage_error  # noqa: PLC0415 (whoever has a ledger has loaded it)

        failures: list[tuple[str, Exception]] = []

        def apply(connection: sqlite3.Connection, received: Transfer) -> LedgerPluginError | None:
            # On the store's thread, and perhaps twice: the log is told afterwards.
            failures.clear()
            try:
                _check_plain(handler(connection, received))  # type: ignore[func-returns-value]  # that is checked
            except Exception as error:
                if is_storage_error(error):
                    raise
                refusal, reference = _judge("money", error)
                failures.append((reference, error))
                return refusal
            return None

        refusal = await ledger.receive(transfer, apply)
        for reference, error in failures:
            self._tell("money", reference, error)
        return refusal

    def _refusal(self, kind: str, error: Exception) -> LedgerPluginError:
        refusal, reference = _judge(kind, error)
        self._tell(kind, reference, error)
        return refusal

    def _tell(self, kind: str, reference: str, error: Exception) -> None:
        if reference:
            plain = isinstance(error, TypeError) and "await" in str(error)
            hint = "; is it an async function?" if plain else ""
            self._log.error("the %s handler failed, reference %s: %o%s", kind, reference, error, hint)


def _judge(kind: str, error: Exception) -> tuple[LedgerPluginError, str]:
    """Return what the peer is told, and a reference for the log, empty where the peer is told the error itself.

    The error's own words are told only where its class is one that peers know.
    """
    if isinstance(error, LedgerPluginError) and type(error).code and not isinstance(error, RemoteError):
        return error, ""
    reference = uuid4().hex[:12]
    return NotAcceptedError(f"the {kind} handler failed, reference {reference}"), reference


def _check_plain(result: object) -> None:
    """Refuse what an async function in disguise returns: it has done nothing."""
    if iscoroutine(result):
        result.close()
        raise TypeError("a transactional money handler is a plain function; this one returned a coroutine")


def as_bytes(data: object, what: str = "data") -> bytes:
    """Return bytes-like data as bytes.

    Raises:
        TypeError: It is not bytes-like; ``what`` says in the error what it is.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    hint = "; text becomes bytes with .encode()" if isinstance(data, str) else ""
    raise TypeError(f"{what} is bytes-like, not {type(data).__name__}{hint}")


def _as_it_is(_: str, handler: Any) -> Any:  # noqa: ANN401 (any kind of handler)
    return handler


def _check_callable(kind: str, handler: object) -> None:
    if not callable(handler):
        raise TypeError(f"a {kind} handler is an async function, not {type(handler).__name__}")
