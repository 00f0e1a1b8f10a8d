"""Transfers: the value itself, its level and state, and its entry in the journal."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from attrs import field, frozen

from .errors import InvalidFieldsError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from .errors import RemoteError

__all__ = [
    "IDEMPOTENCY_KEY",
    "TRANSFER_NUMBER",
    "TRANSITIONS",
    "JournalEntry",
    "MoneyLevel",
    "Receipt",
    "Totals",
    "Transfer",
    "TransferDirection",
    "TransferState",
    "check_amount",
    "check_key",
    "current_transfer",
    "enter_transfer",
    "is_key",
    "numbered",
    "read_number",
]

# The sub-protocol of a transfer's key.
IDEMPOTENCY_KEY: Final = "idempotency_key"
# The sub-protocol of its number, and of the number of its receipt.
TRANSFER_NUMBER: Final = "transfer_number"
# Databases have integers of 64 bits, and JSON exact ones of 53.
MAX_DIGITS: Final = 15
MAX_KEY = 64
MAX_AMOUNT = 2**64 - 1


class MoneyLevel(Enum):
    """Whether a transfer takes effect exactly once or at most once.

    Attributes:
        KEYED: Exactly once: both ends remember the transfer's key, so it is sent again until it is acknowledged.
        PLAIN: At most once: the plugin never sends it again; a lost acknowledgement leaves it in doubt.
    """

    KEYED = "keyed"
    PLAIN = "plain"


@frozen
class Transfer:
    """One transfer, as ``current_transfer()`` returns it inside a money handler.

    Attributes:
        amount: The amount in the ledger's smallest unit, as decimal text.
        account: The account that sent it; empty for a plugin with one peer.
        key: The transfer's idempotency key: the sender's at KEYED; at PLAIN one that is generated on arrival if there
            is a journal, else None. A handler that may be called twice for one transfer can recognise it by account,
            journal and key.
        level: The level at which it is sent.
        journal: Incoming at KEYED: the id of the sender's journal, to which the key belongs. Empty otherwise.
        digest: Distinguishes a transfer that is sent again from another one under the same key; may be empty at PLAIN.
        number: At KEYED: its number among the transfers that its sender has sent to this receiver's journal, from 1
            upwards; the same each time that it is sent. 0 if it has none. Not compared.
    """

    amount: str
    account: str = ""
    key: str | None = field(default=None, kw_only=True)
    level: MoneyLevel = field(default=MoneyLevel.PLAIN, kw_only=True)
    journal: str = field(default="", kw_only=True, repr=False)
    digest: bytes = field(default=b"", kw_only=True, repr=False)
    number: int = field(default=0, kw_only=True, repr=False, eq=False)


def numbered(transfer: Transfer, number: int) -> Transfer:
    """Return a transfer with its number; attrs' ``evolve()`` takes three times as long."""
    return Transfer(
        transfer.amount,
        transfer.account,
        key=transfer.key,
        level=transfer.level,
        journal=transfer.journal,
        digest=transfer.digest,
        number=number,
    )


class Receipt(bytes):
    """The acknowledgement of a KEYED transfer: its number among those that the receiver has credited, in digits."""

    __slots__ = ()

    @classmethod
    def of(cls, number: int) -> Receipt:
        """Return the receipt with a number."""
        return cls(b"%d" % number)


def read_number(digits: bytes | None) -> int:
    """Return the number of a transfer or of a receipt from its digits; 0 if there is none, or none that can be."""
    return int(digits) if digits and digits.isdigit() and len(digits) <= MAX_DIGITS else 0


_transfer: ContextVar[Transfer] = ContextVar("transfer")


def current_transfer() -> Transfer:
    """Return the transfer that the running money handler was called for.

    Raises:
        RuntimeError: The caller is not inside a money handler.
    """
    try:
        return _transfer.get()
    except LookupError:
        raise RuntimeError("current_transfer() works inside a money handler only") from None


def enter_transfer(transfer: Transfer) -> None:
    """Set the current transfer; each handler has its own context, so it is not reset afterwards."""
    _transfer.set(transfer)


def is_key(text: str) -> bool:
    """Whether text can be a transfer's key: 1 to 64 ASCII characters without NUL, which some databases cannot keep."""
    return 1 <= len(text) <= MAX_KEY and text.isascii() and "\0" not in text


class TransferDirection(Enum):
    """The direction of a transfer, seen from this end."""

    OUT = "out"
    IN = "in"


class TransferState(Enum):
    """The state of a transfer in the journal.

    Attributes:
        SENT: Outgoing: it may have been sent, and there is no reply yet; at KEYED it will be sent again.
        ACKED: Outgoing: the peer has applied it.
        REJECTED: Outgoing: the peer has refused it.
        IN_DOUBT: Outgoing: it is not known whether the peer has applied it, and it is not sent again.
        APPLIED: Incoming: it is credited, and the money handler has not finished with it.
        DELIVERED: Incoming: it is credited, and the money handler has finished.
        REFUSED: Incoming: the transactional money handler refused it.
    """

    SENT = "sent"
    ACKED = "acked"
    REJECTED = "rejected"
    IN_DOUBT = "in_doubt"
    APPLIED = "applied"
    DELIVERED = "delivered"
    REFUSED = "refused"


# The states that may follow each state. A transfer that is withdrawn, because it was certainly not applied, leaves the
# journal from SENT.
TRANSITIONS: Final[Mapping[TransferState, tuple[TransferState, ...]]] = {
    TransferState.SENT: (TransferState.ACKED, TransferState.REJECTED, TransferState.IN_DOUBT),
    TransferState.IN_DOUBT: (TransferState.ACKED, TransferState.REJECTED),
    TransferState.APPLIED: (TransferState.DELIVERED,),
    TransferState.ACKED: (),
    TransferState.REJECTED: (),
    TransferState.DELIVERED: (),
    TransferState.REFUSED: (),
}


@frozen
class JournalEntry:
    """One transfer in the journal.

    Attributes:
        number: Its position in the journal; later transfers have higher numbers.
        account: The account; empty for a plugin with one peer.
        direction: Outgoing or incoming.
        key: Its idempotency key.
        amount: The amount in the ledger's smallest unit.
        level: The level at which it is sent.
        state: Its state.
        error: The refusal, a ``RemoteError`` with the code, name and data on the wire; None if it was not refused, or
            if it was settled by hand.
        created: When it was entered (aware).
        changed: When its state last changed (aware).
    """

    number: int
    account: str
    direction: TransferDirection
    key: str
    amount: int
    level: MoneyLevel
    state: TransferState
    error: RemoteError | None = field(eq=str)
    created: datetime
    changed: datetime


@frozen
class Totals:
    """Sums of transfers, in the ledger's smallest unit.

    Attributes:
        sent: Outgoing transfers that the peer has acknowledged.
        received: Incoming transfers that were credited.
        in_doubt: Outgoing transfers in the state SENT or IN_DOUBT: the peer may have applied them or not.
    """

    sent: int
    received: int
    in_doubt: int


def check_amount(amount: object) -> str:
    """Return an amount as decimal text.

    Raises:
        TypeError: It is neither text nor an int.
        InvalidFieldsError: It is no whole number from 1 to 2**64-1.
    """
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise TypeError(f"amount is decimal text or an int, not {type(amount).__name__}")
    if isinstance(amount, str):
        number = int(amount) if amount.isascii() and amount.isdigit() and len(amount) <= 20 else 0
        shown = repr(amount[:40])
    else:
        number = amount
        shown = str(amount) if abs(amount) < 10**40 else "an enormous number"
    if not 1 <= number <= MAX_AMOUNT:
        raise InvalidFieldsError(f"amount is {shown}; it must be a whole number from 1 to 2**64-1, in digits")
    return str(number)


def check_key(key: object) -> str:
    """Return an idempotency key; a fresh UUID4 for None.

    Raises:
        TypeError: It is not text.
        InvalidFieldsError: It is not 1 to 64 ASCII characters.
    """
    if key is None:
        return str(uuid4())
    if not isinstance(key, str):
        raise TypeError(f"idempotency_key is text, not {type(key).__name__}")
    if not is_key(key):
        raise InvalidFieldsError("idempotency_key must be 1 to 64 ASCII characters without NUL")
    return key
