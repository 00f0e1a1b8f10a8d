"""The application's handlers: how they are registered, called, and what the peer is told of their errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from .errors import (
    DataHandlerAlreadyRegisteredError,
    LedgerPluginError,
    MoneyHandlerAlreadyRegisteredError,
    NotAcceptedError,
    RemoteError,
    UnreachableError,
)
from .handlers import Transfer, enter_transfer

if TYPE_CHECKING:
    from .services import Log

__all__ = ["DataHandler", "Handlers", "MoneyHandler", "Reply", "as_bytes"]

DataHandler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
MoneyHandler: TypeAlias = Callable[[str], Awaitable[None]]

# What a request is answered with: a response, the acknowledgement of a transfer, or an error.
Reply: TypeAlias = bytes | LedgerPluginError | None


class Handlers:
    """The two handlers of one plugin.

    Args:
        log: Told of errors that the peer must not read.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._data: DataHandler | None = None
        self._money: MoneyHandler | None = None
        self.closing = False

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
        self._data = handler

    def register_money(self, handler: MoneyHandler) -> None:
        """Set the money handler.

        Raises:
            TypeError: It cannot be called.
            MoneyHandlerAlreadyRegisteredError: One is set already.
        """
        _check_callable("money", handler)
        if self._money is not None:
            raise MoneyHandlerAlreadyRegisteredError(
                "a money handler is registered already; call deregister_money_handler() first"
            )
        self._money = handler

    @property
    def serves_data(self) -> bool:
        """Whether a data handler is set."""
        return self._data is not None

    @property
    def serves_money(self) -> bool:
        """Whether a money handler is set."""
        return self._money is not None

    def deregister_data(self) -> None:
        """Remove the data handler, if one is set."""
        self._data = None

    def deregister_money(self) -> None:
        """Remove the money handler, if one is set."""
        self._money = None

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
            return response if response.__class__ is bytes else as_bytes(response)
        except Exception as error:  # noqa: BLE001 (whatever a handler raises, the peer gets one reply)
            return self._refusal("money" if isinstance(payload, Transfer) else "data", error)

    async def _apply(self, transfer: Transfer) -> NotAcceptedError | None:
        if self._money is None:
            return NotAcceptedError("no money handler is registered")
        enter_transfer(transfer)
        await self._money(transfer.amount)
        return None

    def _refusal(self, kind: str, error: Exception) -> LedgerPluginError:
        """Return what the peer is told: the error's own words only where its class is one that peers know."""
        if isinstance(error, LedgerPluginError) and type(error).code and not isinstance(error, RemoteError):
            return error
        reference = uuid4().hex[:12]
        self._log.error("the %s handler failed, reference %s: %o", kind, reference, error)
        return NotAcceptedError(f"the {kind} handler failed, reference {reference}")


def as_bytes(data: object) -> bytes:
    """Return bytes-like data as bytes.

    Raises:
        TypeError: It is not bytes-like.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"data is bytes-like, not {type(data).__name__}")


def _check_callable(kind: str, handler: object) -> None:
    if not callable(handler):
        raise TypeError(f"a {kind} handler is an async function, not {type(handler).__name__}")
