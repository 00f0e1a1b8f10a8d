"""The application's handlers: how they are registered and called, and which errors the peer gets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from inspect import (
    getattr_static,
    isasyncgenfunction,
    isawaitable,
    iscoroutinefunction,
    isfunction,
    isgeneratorfunction,
    ismethod,
    signature,
    unwrap,
)
from types import FunctionType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard
from uuid import uuid4

from ..errors import (
    DataHandlerAlreadyRegisteredError,
    LedgerPluginError,
    MoneyHandlerAlreadyRegisteredError,
    NotAcceptedError,
    RemoteError,
    UnreachableError,
)
from ..protocol_data import ProtocolData
from ..request import find_request
from ..transfer import Receipt, Transfer

if TYPE_CHECKING:
    import sqlite3

    from ..services import Log
    from ..statistics import Counters

__all__ = [
    "AnyReply",
    "DataHandler",
    "Handlers",
    "MessageHandler",
    "MoneyHandler",
    "NotAsyncError",
    "Payload",
    "Receive",
    "Reply",
    "TransactionalMoneyHandler",
    "as_bytes",
    "begin_handling",
    "check_async",
    "check_function",
    "check_transactional",
    "judge_error",
]

DataHandler: TypeAlias = Callable[[bytes], Awaitable[bytes]]
MoneyHandler: TypeAlias = Callable[[str], Awaitable[None]]
TransactionalMoneyHandler: TypeAlias = "Callable[[sqlite3.Connection, Transfer], None]"

# Called with the sender's account and the entries of its message; returns the entries of the response.
MessageHandler: TypeAlias = Callable[[str, tuple[ProtocolData, ...]], Awaitable[tuple[ProtocolData, ...]]]

# The reply to a request: a response, None or a receipt for the acknowledgement of a transfer, or an error.
Reply: TypeAlias = bytes | LedgerPluginError | None
# The same, or the entries of the response to a message of another sub-protocol.
AnyReply: TypeAlias = Reply | tuple[ProtocolData, ...]
# What a handler is called with: data, a transfer, or the entries of a message of another sub-protocol.
Payload: TypeAlias = bytes | Transfer | tuple[ProtocolData, ...]
# Gives a transfer from the peer to the money handler; returns the acknowledgement, or the error that refuses it.
Receive: TypeAlias = "Callable[[Transfer, Handlers], Awaitable[LedgerPluginError | Receipt | None]]"


class Handlers:
    """The handlers of one plugin: one for data, and one for money.

    Args:
        log: Gets the errors that the peer must not read.
        counters: The counters for statistics.
        receive: Called with each transfer that the peer sends, and these handlers.
        max_reply: The most bytes that a data handler may return.
        parent: The server's handlers, for requests without a handler here; they have no parent themselves. None if
            there is no server.

    Attributes:
        counters: The counters for statistics.
    """

    __slots__ = (
        "_data",
        "_log",
        "_max_reply",
        "_message",
        "_money",
        "_parent",
        "_receive",
        "_stopped",
        "_transactional",
        "_wrap",
        "counters",
    )

    def __init__(
        self, log: Log, counters: Counters, receive: Receive, *, max_reply: int, parent: Handlers | None = None
    ) -> None:
        self._log = log
        self.counters: Counters = counters
        self._receive = receive
        self._max_reply = max_reply
        self._parent = parent
        self._data: DataHandler | None = None
        self._message: MessageHandler | None = None
        self._money: MoneyHandler | None = None
        self._transactional: TransactionalMoneyHandler | None = None
        self._stopped = False
        self._wrap: Callable[[str, Any], Any] = _as_it_is

    def register_data(self, handler: DataHandler) -> None:
        """Set the data handler.

        Raises:
            TypeError: It is not an async function that can be called with its argument.
            DataHandlerAlreadyRegisteredError: One is set already.
        """
        check_async("data", handler, "data")
        if self._data is not None:
            raise DataHandlerAlreadyRegisteredError(
                "a data handler is registered already; call deregister_data_handler() first"
            )
        self._data = self._wrap("data", handler)

    def register_message(self, handler: MessageHandler) -> None:
        """Set the handler of messages of other sub-protocols.

        Raises:
            DataHandlerAlreadyRegisteredError: One is set already.
        """
        if self._message is not None:
            raise DataHandlerAlreadyRegisteredError(
                "a message handler is registered already; call deregister_message_handler() first"
            )
        self._message = handler

    def deregister_message(self) -> None:
        """Remove the handler of messages of other sub-protocols, if one is set."""
        self._message = None

    def register_money(self, handler: MoneyHandler) -> None:
        """Set the money handler.

        Raises:
            TypeError: It is not an async function that can be called with its argument.
            MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
        """
        check_async("money", handler, "amount")
        self._check_no_money_handler()
        self._money = self._wrap("money", handler)

    def register_transactional_money(self, handler: TransactionalMoneyHandler) -> None:
        """Set the money handler that runs inside the transaction of the transfer.

        Raises:
            TypeError: It cannot be called with its arguments, or is an async function or a generator.
            MoneyHandlerAlreadyRegisteredError: One is set already, of either kind.
        """
        check_transactional(handler)
        self._check_no_money_handler()
        self._transactional = self._wrap("transactional_money", handler)

    def _check_no_money_handler(self) -> None:
        if self.serves_money:
            raise MoneyHandlerAlreadyRegisteredError(
                "a money handler is registered already; call deregister_money_handler() first"
            )

    def wrap(self, wrap: Callable[[str, Any], Any]) -> None:
        """Wrap every handler, both present and later ones.

        Args:
            wrap: Called with the kind, ``"data"``, ``"money"`` or ``"transactional_money"``, and a handler; returns
                the function to call with the same arguments instead.
        """
        self._wrap = wrap
        self._data = self._data and wrap("data", self._data)
        self._money = self._money and wrap("money", self._money)
        self._transactional = self._transactional and wrap("transactional_money", self._transactional)

    @property
    def serves_data(self) -> bool:
        """Whether a data handler is set here."""
        return self._data is not None

    @property
    def serves_money(self) -> bool:
        """Whether a money handler is set here, of either kind."""
        return self._money is not None or self._transactional is not None

    @property
    def is_stopped(self) -> bool:
        """Whether every request is refused: the plugin is closing."""
        return self._stopped or (self._parent is not None and self._parent.is_stopped)

    @property
    def data(self) -> DataHandler | None:
        """The data handler: the one set here, or else the parent's."""
        if self._data is None and self._parent is not None:
            return self._parent.data
        return self._data

    @property
    def money(self) -> MoneyHandler | None:
        """The handler of credited transfers; None if none is set, or a transactional one is."""
        return self._serving_money()._money

    @property
    def transactional(self) -> TransactionalMoneyHandler | None:
        """The handler that runs inside the transaction of a transfer, if one is set."""
        return self._serving_money()._transactional

    def _serving_money(self) -> Handlers:
        """Return the handlers for transfers: these if a money handler is set here, else the parent's."""
        if self.serves_money or self._parent is None:
            return self
        return self._parent._serving_money()

    def deregister_data(self) -> None:
        """Remove the data handler, if one is set."""
        self._data = None

    def deregister_money(self) -> None:
        """Remove the money handler, of either kind, if one is set."""
        self._money = self._transactional = None

    def stop(self) -> None:
        """Refuse all further requests: the plugin is closing."""
        self._stopped = True

    async def answer(self, payload: Payload) -> AnyReply:
        """Call a handler with a request or a transfer, and return the reply; a handler's exception becomes a reply."""
        parent = self._parent
        if parent is not None and payload.__class__ is bytes:
            reply = self._answer_without_handler(payload)
            if reply is not None:
                return reply
        if self._stopped or (parent is not None and parent._stopped):
            return UnreachableError("the plugin is closing")
        if not isinstance(payload, bytes):
            return await self._answer_other(payload)
        handler = self._data
        if handler is None and parent is not None:
            handler = parent._data
        try:
            if handler is None:
                return UnreachableError("no data handler is registered")
            response = await handler(payload)
            if response.__class__ is not bytes:
                response = as_bytes(response, "what a data handler returns")
        except Exception as error:  # noqa: BLE001 (a handler may raise any exception, and the peer gets one reply)
            return self.refuse("data", error)
        if len(response) > self._max_reply:
            self._log.error(
                "a data handler's response has %d bytes; at most %d can be sent", len(response), self._max_reply
            )
            return NotAcceptedError("the response is too long")
        return response

    def _answer_without_handler(self, _payload: bytes) -> bytes | None:
        """Return what an account's own handlers answer themselves; None if a handler is to be called."""
        return None

    async def _answer_other(self, payload: Transfer | tuple[ProtocolData, ...]) -> AnyReply:
        """Answer what is not data."""
        try:
            if isinstance(payload, Transfer):
                return await self._receive(payload, self)
            handler = self._parent._message if self._message is None and self._parent is not None else self._message
            if handler is None:
                return NotAcceptedError("this sub-protocol is not supported")
            request = find_request()
            return await handler("" if request is None else request.account, payload)
        except Exception as error:  # noqa: BLE001 (as in answer())
            return self.refuse("money" if isinstance(payload, Transfer) else "message", error)

    def refuse(self, kind: str, error: Exception) -> LedgerPluginError:
        """Return the error that the peer gets for a handler's error, and log the latter if they differ."""
        refusal, reference = judge_error(kind, error)
        self.log_error(kind, reference, error)
        return refusal

    def log_error(self, kind: str, reference: str, error: Exception) -> None:
        """Log a handler's error with its reference; without one, the peer gets the error and nothing is logged."""
        if reference:
            plain = isinstance(error, TypeError) and "await" in str(error)
            hint = " (is it an async function?)" if plain else ""
            self._log.error("the %s handler failed, reference %s%s: %O", kind, reference, hint, error)


class NotAsyncError(TypeError):
    """A money handler was called and turned out to be a plain function."""


def begin_handling(handler: MoneyHandler, amount: str) -> Awaitable[None]:
    """Call a money handler and return its awaitable.

    Raises:
        NotAsyncError: The handler is a plain function. Its effect stands.
    """
    awaitable = handler(amount)
    if not isawaitable(awaitable):
        raise NotAsyncError(f"a money handler is an async function; this one returned {type(awaitable).__name__}")
    return awaitable


def judge_error(kind: str, error: Exception) -> tuple[LedgerPluginError, str]:
    """Return the error that the peer gets, and a reference for the log.

    The peer gets the handler's error itself only if its class has a BTP code; the reference is empty then.
    """
    if isinstance(error, LedgerPluginError) and type(error).code and not isinstance(error, RemoteError):
        return error, ""
    reference = uuid4().hex[:12]
    return NotAcceptedError(f"the {kind} handler failed, reference {reference}"), reference


def check_transactional(handler: object) -> None:
    """Check that a transactional money handler can be called as one.

    Raises:
        TypeError: It cannot be called with its arguments, or is an async function or a generator.
    """
    if not _is_plain(handler):
        raise TypeError("a transactional money handler is a plain function: it runs on the store's thread")
    _check_arguments("a transactional money handler", "handler", handler, ("connection", "transfer"))


def check_function(name: str, function: object, *names: str, may_wait: bool = False) -> None:
    """Check a function of the application that is not a handler of a plugin.

    Args:
        name: The name of the argument that it is given as.
        function: The function, or something else.
        names: What it is called with.
        may_wait: Whether it may be an async function.

    Raises:
        TypeError: It cannot be called with its arguments, or is an async function or a generator and may not be one.
    """
    if not callable(function):
        raise TypeError(f"{name} is a function, not {type(function).__name__}")
    if not may_wait and not _is_plain(function):
        raise TypeError(f"{name} is a plain function, and {_name_of(function)}() is an async function or a generator")
    _check_arguments(name, name, function, names)


def _is_plain(function: object) -> TypeGuard[Callable[..., object]]:
    """Return whether a call does the work; one of a function of these kinds returns at once and does nothing."""
    idle = (iscoroutinefunction, isasyncgenfunction, isgeneratorfunction)
    return callable(function) and not any(is_idle(function) or is_idle(type(function).__call__) for is_idle in idle)


def as_bytes(data: object, what: str = "data") -> bytes:
    """Return bytes-like data as bytes.

    Raises:
        TypeError: It is not bytes-like. The error's text calls it ``what``.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    hint = "; text becomes bytes with .encode()" if isinstance(data, str) else ""
    if isawaitable(data):
        hint = "; an 'await' is missing before it"
    raise TypeError(f"{what} is bytes-like, not {type(data).__name__}{hint}")


def _as_it_is(_: str, handler: Any) -> Any:  # noqa: ANN401 (any kind of handler)
    return handler


def _check_arguments(what: str, name: str, handler: Callable[..., object], names: tuple[str, ...]) -> None:
    """Check that a handler can be called with its arguments, as far as its signature says for certain.

    What a wrapper takes is its own signature, not that of the function in it. A builtin may have none, and
    ``__signature__`` may be another's. ``signature`` takes the first argument away from a static ``__call__``, too.

    Raises:
        TypeError: It cannot be called so.
    """
    call = getattr_static(type(handler), "__call__")
    is_certain = isinstance(call, FunctionType | WrapperDescriptorType) and not hasattr(handler, "__signature__")
    try:
        own = signature(handler, follow_wrapped=False) if is_certain else None
    except (TypeError, ValueError):
        return
    try:
        if own is not None:
            own.bind(*names)
    except TypeError as error:
        raise TypeError(
            f"{what} is called as {name}({', '.join(names)}), and {_name_of(handler)}() cannot be: {error}"
        ) from None


def _name_of(function: Callable[..., object]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def check_async(kind: str, handler: object, *names: str) -> None:
    """Check that a handler can be an async function that is called with these arguments.

    What a lambda or an object with ``__call__`` returns is only known once it is called. A ``def`` without ``async`` is
    a mistake unless its annotation says that it returns an awaitable.

    Raises:
        TypeError: It cannot be called with its arguments, or is a plain function.
    """
    if not callable(handler):
        raise TypeError(f"a {kind} handler is an async function, not {type(handler).__name__}")
    _check_plain(kind, handler)
    _check_arguments(f"a {kind} handler", "handler", handler, names)


def _check_plain(kind: str, handler: object) -> None:
    function: Any = handler
    while isinstance(function, partial):
        function = function.func
    function = unwrap(function)
    if not (isfunction(function) or ismethod(function)) or iscoroutinefunction(function):
        return
    returned = str(function.__annotations__.get("return", ""))
    if function.__name__ != "<lambda>" and not any(name in returned for name in ("Awaitable", "Coroutine")):
        raise TypeError(
            f"a {kind} handler is an async function, and {function.__name__}() is not; begin it with 'async def', or "
            "annotate that it returns an Awaitable"
        )
