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
    ├── ConnectionLostError                   the link died under a call: the peer may have acted
    ├── ResponseTimeoutError (TimeoutError)   no answer in time: the peer may have acted
    ├── RemoteError                           the peer answered with an error
    ├── TransferInDoubtError                  money was sent and its acknowledgement is lost
    ├── MoneyLevelError                       the peer's link lacks the money level that is asked for
    ├── StoreError                            the store failed: what was asked of it has not happened
    │   └── StoreInDoubtError                 it failed in a commit that may or may not count
    ├── DecodeError (ValueError)              bytes that are no packet
    └── TransferNotFoundError, InvalidFulfillmentError, DuplicateIdError, AlreadyRolledBackError,
        AlreadyFulfilledError, InsufficientBalanceError    raised by handlers, sent to the peer under their codes

Each class has ``name``, the name that RFC-0024 or RFC-0023 gives it, so that a program written against the
JavaScript interface finds the names it knows. A class whose ``code`` is set travels to the peer as that BTP
error when a handler raises it.
"""

from __future__ import annotations

from copy import copy
from json import dumps
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

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


class LedgerPluginError(Exception):
    """The root of every error of this package.

    Attributes:
        name: The error's name in RFC-0024 or RFC-0023; the class's own name unless said otherwise.
        code: The BTP error code (RFC-0023) under which a handler's exception of this class, or of an application's
            subclass, reaches the peer, or an empty string: then the peer is told nothing but that something went wrong.
    """

    name: str = "LedgerPluginError"
    code: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        """Give each class its own name, unless it says another."""
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__


class InvalidFieldsError(LedgerPluginError, ValueError):
    """A value that was passed in is wrong; the text names every bad field and what is right.

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
    """A service that the plugin needs, such as a store, was not given or cannot do what is asked."""


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
        triggered_at: When the peer says the error arose (an aware ``datetime``), or None where it was not told.
        data: The peer's error data as it came, often JSON text.
        protocol_data: The sub-protocol entries that came with the error.
    """

    code: str  # type: ignore[misc]  # the class-wide code is of errors that we send; this one is the peer's

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

    def __str__(self) -> str:
        """Say what the peer said, its control characters escaped, cut to a readable length."""
        text = f"the peer answered {_printable(self.code)} {_printable(self.name)}"
        return f"{text}: {_printable(self.data.decode('utf-8', 'replace'))}" if self.data else text


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
        """Say which transfer is in doubt and why."""
        return f"transfer {self.key!r} of {self.amount} is in doubt: {self.reason}"


class MoneyLevelError(LedgerPluginError):
    """Money is refused, since the link is PLAIN where KEYED is asked for, or was agreed before. Nothing was sent."""


class StoreError(LedgerPluginError):
    """The store failed, or cannot be opened; what was asked of it has not happened. The text says what to do."""


class StoreInDoubtError(StoreError):
    """The store failed while it made a change last; nobody can say yet whether the change counts."""


class DecodeError(LedgerPluginError, ValueError):
    """Bytes that are not a packet of the protocol.

    Attributes:
        packet_type: The packet's type where it could be read although it breaks a rule, else None.
        request_id: The packet's request id, likewise. RFC-0023 answers such a request with an error, and
            leaves an unreadable one (both None) unanswered.
    """

    def __init__(self, message: str, *, packet_type: int | None = None, request_id: int | None = None) -> None:
        super().__init__(message)
        self.packet_type = packet_type
        self.request_id = request_id


class TransferNotFoundError(LedgerPluginError):
    """BTP F03: the transfer that the request speaks of is not known."""

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


# RFC-0023 has a name for each code. A subclass travels under it, whatever an application has called it.
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
    """Return the code, name and data under which an error reaches the peer (RFC-0023, ERROR).

    An error without a code of BTP's becomes F00 ``NotAcceptedError``, as ilp-plugin-btp has it. Never raises: a peer
    whose request an application's own class of errors refused must be answered too.
    """
    code = error.code if error.code in _BTP_NAMES else NotAcceptedError.code
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 (an application's class may do anything here)
        text = ""
    return code, _BTP_NAMES[code], dumps({"message": text[:MAX_MESSAGE]}).encode()


ErrorT = TypeVar("ErrorT", bound=Exception)


def copy_error(error: ErrorT) -> ErrorT:
    """Return an error like this one, for one more caller: raised in two tasks, one object tells each of the other's.

    The error itself, where its class cannot be copied.
    """
    try:
        twin = copy(error)
    except Exception:  # noqa: BLE001 (an application's class may take other arguments than it keeps)
        return error
    twin.__cause__ = error.__cause__
    return twin.with_traceback(error.__traceback__)


def _printable(text: str, limit: int = 500) -> str:
    """Return a peer's text with control characters escaped, so that it cannot forge a log line."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return shown if len(text) <= limit else f"{shown}…"
