"""What the journal says of a transfer, and of all of them together."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeAlias

from attrs import field, frozen

from ..errors import RemoteError
from .transfer import MoneyLevel

__all__ = ["JournalEntry", "Totals", "TransferDirection", "TransferState", "Window", "read_entry"]


Window: TypeAlias = tuple[float, float]


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


def read_entry(row: tuple[Any, ...]) -> JournalEntry:
    """Return what a row of ``COLUMNS`` says."""
    number, account, direction, key, amount, level, state, code, name, data, created, changed, until = row
    return JournalEntry(
        number,
        account,
        TransferDirection(direction),
        key,
        int(amount),
        MoneyLevel(level),
        TransferState(state),
        None if code is None else RemoteError(code, name, data=data),
        datetime.fromtimestamp(created, UTC),
        datetime.fromtimestamp(changed, UTC),
        None if until is None else (created, until),
    )


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
