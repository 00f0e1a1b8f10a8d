"""One transfer, how surely its effect happens once, and what the journal says of it."""

from __future__ import annotations

from contextvars import ContextVar
from enum import Enum
from inspect import isawaitable
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from .errors import RemoteError

__all__ = [
    "IDEMPOTENCY_KEY",
    "MIN_RETENTION",
    "TRANSFER_KEYS",
    "JournalEntry",
    "MoneyLevel",
    "NotAsyncError",
    "Totals",
    "Transfer",
    "TransferDirection",
    "TransferState",
    "Window",
    "begin_handling",
    "current_transfer",
    "enter_transfer",
    "is_key",
    "read_retention",
]

# The entry of the authentication that offers KEYED and agrees to it; its text is the retention in seconds.
TRANSFER_KEYS: Final = "transfer_keys"
# The entry of a transfer that holds its key.
IDEMPOTENCY_KEY: Final = "idempotency_key"
# An end that forgets keys sooner could be sent a transfer again that it has forgotten.
MIN_RETENTION: Final = 24 * 60 * 60
MAX_KEY = 64
MAX_RETENTION_DIGITS = 10


# From when until when a transfer may be sent, in seconds since the epoch.
Window: TypeAlias = tuple[float, float]


class MoneyLevel(Enum):
    """How surely a transfer has its effect once.

    Attributes:
        KEYED: Exactly once: both ends remember the transfer's key, so it is sent again until it is acknowledged.
        PLAIN: At most once: never sent again by itself; a lost acknowledgement leaves it in doubt.
    """

    KEYED = "keyed"
    PLAIN = "plain"


@frozen
class Transfer:
    """One transfer, as ``current_transfer()`` gives it inside a money handler.

    Attributes:
        amount: Units of the ledger's smallest denomination, as decimal text.
        account: The account that it came from; empty for a plugin with one peer.
        key: The transfer's idempotency key: the sender's at KEYED, one made on arrival where there is a journal,
            else None. A handler that may be called twice for one transfer tells by it.
        level: The level at which it travels.
        digest: What tells a transfer that is sent again from another under the same key; empty where no key counts.
    """

    amount: str
    account: str = ""
    key: str | None = field(default=None, kw_only=True)
    level: MoneyLevel = field(default=MoneyLevel.PLAIN, kw_only=True)
    digest: bytes = field(default=b"", kw_only=True, repr=False)


_transfer: ContextVar[Transfer] = ContextVar("transfer")


def current_transfer() -> Transfer:
    """Return the transfer that the running money handler was called for.

    Raises:
        RuntimeError: No money handler runs here.
    """
    try:
        return _transfer.get()
    except LookupError:
        raise RuntimeError("current_transfer() works inside a money handler only") from None


def enter_transfer(transfer: Transfer) -> None:
    """Make a transfer the current one; each handler's context is its own, so nothing takes it back."""
    _transfer.set(transfer)


class NotAsyncError(TypeError):
    """What was registered as a money handler has been called, and is no async function."""


def begin_handling(handler: Callable[[str], Awaitable[None]], amount: str) -> Awaitable[None]:
    """Call a money handler and return what is to be awaited.

    Raises:
        NotAsyncError: It has returned something else, and what it did is done.
    """
    awaitable = handler(amount)
    if not isawaitable(awaitable):
        raise NotAsyncError(f"a money handler is an async function; this one returned {type(awaitable).__name__}")
    return awaitable


def is_key(text: str) -> bool:
    """Whether text can be a transfer's key: 1 to 64 ASCII characters, control characters included."""
    return 1 <= len(text) <= MAX_KEY and text.isascii()


def read_retention(text: bytes | None) -> int | None:
    """Read for how many seconds a peer keeps keys; None when it does not say so, or keeps them too briefly."""
    if text is None or not text.isdigit() or len(text) > MAX_RETENTION_DIGITS:
        return None
    seconds = int(text)
    return seconds if seconds >= MIN_RETENTION else None


class TransferDirection(Enum):
    """Which way a transfer goes."""

    OUT = "out"
    IN = "in"


class TransferState(Enum):
    """How far a transfer has come.

    Attributes:
        SENT: It may have left, and is not answered; at KEYED it will be sent again.
        ACKED: The peer has applied it.
        REJECTED: The peer has refused it.
        IN_DOUBT: Nobody here can tell whether the peer has applied it, and it is not sent again.
        APPLIED: It is credited, and the money handler has not finished with it.
        DELIVERED: It is credited, and the money handler has finished.
        REFUSED: The transactional money handler refused it.
    """

    SENT = "sent"
    ACKED = "acked"
    REJECTED = "rejected"
    IN_DOUBT = "in_doubt"
    APPLIED = "applied"
    DELIVERED = "delivered"
    REFUSED = "refused"


@frozen
class JournalEntry:
    """One transfer in the journal.

    Attributes:
        number: Its place in the journal; later ones have higher numbers.
        account: The account; empty for a plugin with one peer.
        direction: Which way it goes.
        key: Its idempotency key.
        amount: Units of the ledger's smallest denomination.
        level: The level at which it travels.
        state: How far it has come.
        error: What it was refused with, a ``RemoteError`` with the code, the name and the data on the wire; None where
            it was not refused, or was settled by hand.
        created: When it was entered (aware).
        changed: When its state changed last (aware).
        window: From when until when it may be sent, in seconds since the epoch; None where it is not sent again.
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
    window: Window | None


@frozen
class Totals:
    """What has moved, in units of the ledger's smallest denomination.

    Attributes:
        sent: What the peer has acknowledged.
        received: What was credited here.
        in_doubt: What was sent and is neither acknowledged nor refused, or may have been applied.
    """

    sent: int
    received: int
    in_doubt: int
