"""Which packets were accepted, so that each is booked once.

A packet is named by its address and its number. The same packet again, which a link may deliver twice, has the same
condition: it gets the same Fulfill and is not booked again. Another packet under a known number is refused, because a
payer that uses a number twice could make two payments look like one.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from ..errors import StoreInDoubtError
from ..stores.schema import Steps, migrate

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from ..services import TransactionalStore

__all__ = ["STEPS", "MemoryBookings", "ReceivedPacket", "StoredBookings", "Verdict"]

#: How many accepted packets of a connection are remembered in memory; payers have at most some hundreds in flight.
_REMEMBERED: Final = 512
_CONNECTIONS: Final = 1024
_RETRY_SECONDS: Final = 0.1


@frozen
class ReceivedPacket:
    """A packet with money, which waits for its Fulfill.

    Attributes:
        amount: What arrives if the packet is fulfilled, in smallest units of the receiver's account.
        tag: The tag of the credentials; None if they have none.
        destination: The address of the connection. With ``sequence`` it names the packet.
        sequence: The packet's number in its connection.
    """

    amount: int
    tag: str | None
    destination: str
    sequence: int


class Verdict(Enum):
    """What is known about a packet."""

    NEW = "new"
    SAME = "accepted before"
    OTHER = "another packet has its number"


@define
class _Connection:
    total: int = 0
    # Numbers up to this one are no longer remembered.
    floor: int = 0
    accepted: OrderedDict[int, bytes] = field(factory=OrderedDict)


class MemoryBookings:
    """Remembers the last packets of the last connections."""

    def __init__(self) -> None:
        self._connections: OrderedDict[str, _Connection] = OrderedDict()

    def judge(self, packet: ReceivedPacket, condition: bytes) -> tuple[Verdict, int]:
        """Return what is known about a packet, and what its connection has received."""
        connection = self._connections.get(packet.destination)
        if connection is None:
            return Verdict.NEW, 0
        known = connection.accepted.get(packet.sequence)
        if known is None:
            return (Verdict.NEW if packet.sequence > connection.floor else Verdict.OTHER), connection.total
        return (Verdict.SAME if known == condition else Verdict.OTHER), connection.total

    def book(self, packet: ReceivedPacket, condition: bytes) -> int:
        """Record a packet as accepted, and return what its connection has received."""
        connection = self._connections.get(packet.destination)
        if connection is None:
            connection = self._connections[packet.destination] = _Connection()
        self._connections.move_to_end(packet.destination)
        if len(self._connections) > _CONNECTIONS:
            self._connections.popitem(last=False)
        connection.accepted[packet.sequence] = condition
        connection.total += packet.amount
        if len(connection.accepted) > _REMEMBERED:
            oldest, _ = connection.accepted.popitem(last=False)
            connection.floor = max(connection.floor, oldest)
        return connection.total


COMPONENT: Final = "stream"
STEPS: Final[Steps] = (
    (
        # Numbers and amounts have up to 64 bits without a sign: more than a database's integers.
        """CREATE TABLE lpi_stream_packets (
            destination TEXT NOT NULL,
            sequence TEXT NOT NULL,
            amount TEXT NOT NULL,
            condition BLOB NOT NULL,
            PRIMARY KEY (destination, sequence)
        ) WITHOUT ROWID""",
        """CREATE TABLE lpi_stream_totals (
            destination TEXT PRIMARY KEY,
            total TEXT NOT NULL
        ) WITHOUT ROWID""",
    ),
)


class StoredBookings:
    """Records packets in a store, in one transaction with the application's own books.

    Args:
        store: The store.
        book: Called with the store's connection and the packet, inside the transaction; None if there is nothing to do.
    """

    def __init__(
        self,
        store: TransactionalStore[sqlite3.Connection],
        book: Callable[[sqlite3.Connection, ReceivedPacket], object] | None,
    ) -> None:
        self._store = store
        self._book = book

    async def open(self) -> None:
        """Create the tables, unless they are there.

        Raises:
            StoreError: The store failed.
        """
        await self._store.transaction(partial(migrate, component=COMPONENT, steps=STEPS))

    async def judge(self, packet: ReceivedPacket, condition: bytes) -> tuple[Verdict, int]:
        """Return what is known about a packet, and what its connection has received."""
        return await self._store.transaction(partial(_judge, packet=packet, condition=condition))

    async def book(self, packet: ReceivedPacket, condition: bytes) -> tuple[Verdict, int]:
        """Record a packet as accepted, unless it is known, and return what its connection has received.

        Raises:
            StoreError: The store failed, and nothing is recorded.

        Cancellation: Once begun, the transaction commits anyway.
        """
        while True:
            try:
                return await self._store.transaction(
                    partial(_record, packet=packet, condition=condition, book=self._book)
                )
            except StoreInDoubtError:
                # If the commit counts, the next try finds the packet.
                await trio.sleep(_RETRY_SECONDS)


def _judge(connection: sqlite3.Connection, packet: ReceivedPacket, condition: bytes) -> tuple[Verdict, int]:
    row = connection.execute(
        "SELECT condition FROM lpi_stream_packets WHERE destination = ? AND sequence = ?",
        (packet.destination, str(packet.sequence)),
    ).fetchone()
    total = connection.execute(
        "SELECT total FROM lpi_stream_totals WHERE destination = ?", (packet.destination,)
    ).fetchone()
    received = 0 if total is None else int(total[0])
    if row is None:
        return Verdict.NEW, received
    return (Verdict.SAME if bytes(row[0]) == condition else Verdict.OTHER), received


def _record(
    connection: sqlite3.Connection,
    packet: ReceivedPacket,
    condition: bytes,
    book: Callable[[sqlite3.Connection, ReceivedPacket], object] | None,
) -> tuple[Verdict, int]:
    verdict, received = _judge(connection, packet, condition)
    if verdict is not Verdict.NEW:
        return verdict, received
    connection.execute(
        "INSERT INTO lpi_stream_packets VALUES (?, ?, ?, ?)",
        (packet.destination, str(packet.sequence), str(packet.amount), condition),
    )
    connection.execute(
        "INSERT OR REPLACE INTO lpi_stream_totals VALUES (?, ?)", (packet.destination, str(received + packet.amount))
    )
    if book is not None:
        book(connection, packet)
    return verdict, received + packet.amount
