"""Every exception that this package raises on purpose.

The tree::

    LedgerPluginError
    ├── InvalidFieldsError (ValueError)       options, amounts, timeouts: what you passed is wrong
    ├── InvalidServicesError (ValueError)     a service that the plugin needs is missing
    ├── DataHandlerAlreadyRegisteredError
    ├── MoneyHandlerAlreadyRegisteredError
    ├── NotAcceptedError                      the peer refused the credentials
    ├── UnreachableError                      the peer could not be reached
    │   └── ConnectTimeoutError (TimeoutError)
    ├── NotConnectedError                     no link is up: nothing was sent
    ├── PluginClosedError                     you closed it
    ├── PluginFailedError                     it broke for good
    ├── ConnectionLostError                   the link died during a call: the peer may have acted
    ├── ResponseTimeoutError (TimeoutError)   no answer in time: the peer may have acted
    ├── RemoteError                           the peer answered with an error
    ├── TransferInDoubtError                  money was sent and its acknowledgement is lost
    ├── MoneyLevelError                       the link is PLAIN, and the transfer needs KEYED
    ├── StoreError                            the store failed: nothing has changed
    │   └── StoreInDoubtError                 it failed during a commit, which may or may not count
    ├── DecodeError (ValueError)              the bytes are not a packet
    └── TransferNotFoundError, InvalidFulfillmentError, DuplicateIdError, AlreadyRolledBackError,
        AlreadyFulfilledError, InsufficientBalanceError    raised by handlers, sent to the peer under their codes

Each class has a ``name``, as in RFC-0024 or RFC-0023, so that a program written for the JavaScript interface
finds the same names. When a handler raises an error whose class has a ``code``, the peer gets that BTP error.
"""

from __future__ import annotations

from copy import copy
from json import dumps, loads
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from .log import escape

if TYPE_CHECKING:
    from datetime import datetime

    from .protocol_data import ProtocolData

__all__ = [
    "AlreadyFulfilledError",
    "AlreadyRolledBackError",
    "ConnectTimeoutError",
    "ConnectionLostError",
    "DataHandlerAlreadyRegisteredError",
    "DecodeError",
    "DuplicateIdError",
    "InsufficientBalanceError",
    "InvalidFieldsError",
    "InvalidFulfillmentError",
    "InvalidServicesError",
    "LedgerLostError",
    "LedgerPluginError",
    "MoneyHandlerAlreadyRegisteredError",
    "MoneyLevelError",
    "NotAcceptedError",
    "NotConnectedError",
    "PluginClosedError",
    "PluginFailedError",
    "RemoteError",
    "ResponseTimeoutError",
    "StoreError",
    "StoreInDoubtError",
    "TransferInDoubtError",
    "TransferNotFoundError",
    "UnreachableError",
    "wire_error",
]

# JSON writes a character in at most twelve bytes, and a BTP Error holds 8192 of them.
MAX_MESSAGE = 600
# How much of each of a peer's texts an error shows, in characters.
LONGEST_SHOWN = 500


class LedgerPluginError(Exception):
    """The root of every error of this package.

    Attributes:
        name: The error's name in RFC-0024 or RFC-0023; by default the name of the class.
        code: The BTP error code (RFC-0023) that the peer gets when a handler raises this class or an application's
            subclass of it. If empty, the peer learns only that the request failed.
    """

    name: str = "LedgerPluginError"
    code: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Set ``name`` to the name of the class, unless the class defines it."""
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__


class InvalidFieldsError(LedgerPluginError, ValueError):
    """A value that was passed in is wrong; the text names every bad field and says what is expected.

    Attributes:
        problems: For wrong options, pairs of an option's name and what is wrong with it. A name is in the spelling that
            was used, such as ``"listener.port"``, and in quotes if there is no such option. Empty for any other error.
    """

    code = "F01"
    problems: tuple[tuple[str, str], ...] = ()

    def __init__(self, *args: object, problems: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(*args)
        self.problems = problems


class InvalidServicesError(LedgerPluginError, ValueError):
    """A service that the plugin needs, such as a store, is missing or lacks a feature that the options ask for."""


class DataHandlerAlreadyRegisteredError(LedgerPluginError):
    """A data handler is set already; remove it with ``deregister_data_handler()`` first."""


class MoneyHandlerAlreadyRegisteredError(LedgerPluginError):
    """A money handler is set already; remove it with ``deregister_money_handler()`` first."""


class NotAcceptedError(LedgerPluginError):
    """The peer refused the credentials, or a handler refuses a request."""

    code = "F00"


class UnreachableError(LedgerPluginError):
    """The peer could not be reached; trying again later may help."""

    code = "T00"


class ConnectTimeoutError(UnreachableError, TimeoutError):
    """``connect()`` did not succeed within its timeout; ``__cause__`` is the last attempt's error."""


class NotConnectedError(LedgerPluginError):
    """No authenticated link is up. Nothing was sent."""


class PluginClosedError(LedgerPluginError):
    """The plugin was closed or disconnected from this side while the call ran, or before it."""


class PluginFailedError(LedgerPluginError):
    """The plugin met a fatal error and must not be used again; ``__cause__`` is that error."""


class ConnectionLostError(LedgerPluginError):
    """The link died before the response came. The peer may have acted on the request."""


class ResponseTimeoutError(LedgerPluginError, TimeoutError):
    """No response came within the response timeout. The peer may have acted on the request."""


class RemoteError(LedgerPluginError):
    """The peer answered the request with an error (RFC-0023, ERROR).

    Attributes:
        code: The peer's error code, such as ``"F00"``.
        name: The peer's error name, such as ``"NotAcceptedError"``.
        triggered_at: When the error arose according to the peer (an aware ``datetime``), or None if it did not say.
        data: The peer's error data, unchanged; often JSON text.
        protocol_data: The sub-protocol entries that came with the error.
    """

    code: str  # type: ignore[misc]  # the base's ClassVar is for errors that this end sends; this code is the peer's

    def __init__(
        self,
        code: str,
        name: str,
        *,
        triggered_at: datetime | None = None,
        data: bytes = b"",
        protocol_data: tuple[ProtocolData, ...] = (),
    ) -> None:
        super().__init__(code, name)
        self.code = code
        self.name = name
        self.triggered_at = triggered_at
        self.data = data
        self.protocol_data = protocol_data

    @property
    def message(self) -> str:
        """The text of the peer. It is the ``message`` in JSON data, as most peers send it, or else the data itself."""
        text = self.data.decode("utf-8", "replace")
        try:
            told = loads(text)
        except (ValueError, RecursionError):
            return text
        message = told.get("message") if isinstance(told, dict) else None
        return message if isinstance(message, str) else text

    def __str__(self) -> str:
        """Return the peer's code, name and message, with control characters escaped, cut to a readable length."""
        text = f"the peer answered {_printable(self.code)} {_printable(self.name)}"
        return f"{text}: {_printable(self.message)}" if self.data else text


class TransferInDoubtError(LedgerPluginError):
    """Money was sent and its acknowledgement did not come: the peer may or may not have applied it.

    Attributes:
        key: The transfer's idempotency key.
        amount: The amount in the ledger's smallest unit, as decimal text.
    """

    def __init__(self, key: str, amount: str, reason: str = "the acknowledgement did not come") -> None:
        super().__init__(key, amount, reason)
        self.key = key
        self.amount = amount
        self.reason = reason

    def __str__(self) -> str:
        """Return which transfer is in doubt, and why."""
        return f"transfer {self.key!r} of {self.amount} is in doubt: {self.reason}"


class MoneyLevelError(LedgerPluginError):
    """The link is PLAIN, but the options ask for KEYED or the account was KEYED before. Nothing was sent."""


class StoreError(LedgerPluginError):
    """The store failed or cannot be opened; nothing has changed. The text says what to do."""


class StoreInDoubtError(StoreError):
    """The store failed during a commit; it is not known yet whether the change counts."""


class LedgerLostError(StoreError):
    """Another process has taken over the ledger that the plugin keeps in the store; nothing has changed.

    It is the cause of the ``PluginFailedError`` of a plugin that was stopped or cut off for so long that a plugin with
    the option ``standby`` has taken its place.
    """


class DecodeError(LedgerPluginError, ValueError):
    """The bytes are not a packet of the protocol.

    Attributes:
        packet_type: The packet's type, if the packet is readable but breaks a rule; None if it is unreadable.
        request_id: The packet's request id, likewise. RFC-0023 requires an error reply to a readable request,
            and none to an unreadable one.
    """

    def __init__(self, message: str, *, packet_type: int | None = None, request_id: int | None = None) -> None:
        super().__init__(message)
        self.packet_type = packet_type
        self.request_id = request_id


class TransferNotFoundError(LedgerPluginError):
    """BTP F03: the transfer that the request refers to is not known."""

    code = "F03"


class InvalidFulfillmentError(LedgerPluginError):
    """BTP F04: the fulfillment does not match the condition."""

    code = "F04"


class DuplicateIdError(LedgerPluginError):
    """BTP F05: the same id or idempotency key was used for something else before."""

    code = "F05"


class AlreadyRolledBackError(LedgerPluginError):
    """BTP F06: the transfer was rolled back already."""

    code = "F06"


class AlreadyFulfilledError(LedgerPluginError):
    """BTP F07: the transfer was fulfilled already."""

    code = "F07"


class InsufficientBalanceError(LedgerPluginError):
    """BTP F08: the balance does not cover the amount."""

    code = "F08"


# RFC-0023 has a name for each code. An application's subclass is sent under that name, not under its own.
_BTP_NAMES: Final = {
    each.code: each.name
    for each in (
        UnreachableError,
        NotAcceptedError,
        InvalidFieldsError,
        TransferNotFoundError,
        InvalidFulfillmentError,
        DuplicateIdError,
        AlreadyRolledBackError,
        AlreadyFulfilledError,
        InsufficientBalanceError,
    )
}


def wire_error(error: LedgerPluginError) -> tuple[str, str, bytes]:
    """Return the code, name and data that an error has in a BTP packet (RFC-0023, ERROR).

    An error without a BTP code becomes F00 ``NotAcceptedError``, as in ilp-plugin-btp. Never raises, even if an
    application's error class fails in ``__str__``: the peer still needs a reply.
    """
    code = error.code if error.code in _BTP_NAMES else NotAcceptedError.code
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (an application's class may do anything here)
        text = ""
    return code, _BTP_NAMES[code], dumps({"message": text[:MAX_MESSAGE]}).encode()


ErrorT = TypeVar("ErrorT", bound=Exception)


def copy_error(error: ErrorT) -> ErrorT:
    """Return a copy of an error, so that another task can raise it.

    Raising changes an exception's traceback and context: if two tasks raised one object, each would show the other's.

    Returns:
        The copy, or the error itself if its class cannot be copied.
    """
    try:
        duplicate = copy(error)
    except Exception:  # noqa: BLE001 (an application's class may take other arguments than it keeps)
        return error
    duplicate.__cause__ = error.__cause__
    return duplicate.with_traceback(error.__traceback__)


def _printable(text: str) -> str:
    """Return a peer's text with control characters escaped, so that it cannot forge a log line."""
    shown = escape(text[:LONGEST_SHOWN])
    return shown if len(text) <= LONGEST_SHOWN else f"{shown}…"
