"""Which packets were accepted, so that each is booked once.

A packet is named by its address and its number. The same packet again, which a link may deliver twice, has the same
condition: it gets the same Fulfill and is not booked again. Another packet under a known number is refused, because a
payer that uses a number twice could make two payments look like one.

Invariant: a packet that was accepted is never booked again, however late it comes. What is forgotten are the lowest
numbers of a connection, and after that no packet up to the highest of these is accepted in this connection. So nothing
depends on a clock: it only decides when a connection is taken to be over.
"""

from __future__ import annotations

from collections import OrderedDict
from enum import Enum
from functools import partial
from time import time
from typing import TYPE_CHECKING, Final

import trio
from attrs import define, field, frozen

from ..errors import StoreInDoubtError
from ..stores.schema import migrate
from .tables import COMPONENT, STEPS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from ..services import TransactionalStore

__all__ = ["MemoryBookings", "ReceivedPacket", "StoredBookings", "Verdict"]

#: How many accepted packets of a connection are remembered at least; payers have at most some hundreds in flight.
_REMEMBERED: Final = 512
#: How many connections are remembered in memory.
_CONNECTIONS: Final = 1024
#: How many packets of a connection are in a store at most: half of them are forgotten together.
_STORED: Final = 2 * _REMEMBERED
#: After how many seconds without a packet a connection's packets leave the store. No packet is in flight for so long.
_IDLE_SECONDS: Final = 86_400.0
#: How many such connections are looked for with each new one, so that there are fewer and fewer.
_IDLE_AT_ONCE: Final = 2
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


@frozen
class _Stored:
    """What a store has about a connection.

    Attributes:
        total: What it has received.
        kept: How many of its packets are stored.
        highest: The highest number of a packet.
        refused_to: Up to which number no packet is accepted that is not stored.
    """

    total: int = 0
    kept: int = 0
    highest: int = 0
    refused_to: int = 0


def _find(connection: sqlite3.Connection, destination: str) -> _Stored | None:
    statement = "SELECT total, kept, highest, refused_to FROM lpi_stream_totals WHERE destination = ?"
    row = connection.execute(statement, (destination,)).fetchone()
    return None if row is None else _Stored(*map(int, row))


def _verdict(
    connection: sqlite3.Connection, packet: ReceivedPacket, condition: bytes, stored: _Stored | None
) -> Verdict:
    row = connection.execute(
        "SELECT condition FROM lpi_stream_packets WHERE destination = ? AND sequence = ?",
        (packet.destination, str(packet.sequence)),
    ).fetchone()
    if row is not None:
        return Verdict.SAME if bytes(row[0]) == condition else Verdict.OTHER
    return Verdict.NEW if stored is None or packet.sequence > stored.refused_to else Verdict.OTHER


def _judge(connection: sqlite3.Connection, packet: ReceivedPacket, condition: bytes) -> tuple[Verdict, int]:
    stored = _find(connection, packet.destination)
    return _verdict(connection, packet, condition, stored), 0 if stored is None else stored.total


def _record(
    connection: sqlite3.Connection,
    packet: ReceivedPacket,
    condition: bytes,
    book: Callable[[sqlite3.Connection, ReceivedPacket], object] | None,
) -> tuple[Verdict, int]:
    known = _find(connection, packet.destination)
    stored = known or _Stored()
    verdict = _verdict(connection, packet, condition, known)
    if verdict is not Verdict.NEW:
        return verdict, stored.total
    connection.execute(
        "INSERT INTO lpi_stream_packets VALUES (?, ?, ?, ?)",
        (packet.destination, str(packet.sequence), str(packet.amount), condition),
    )
    total, kept, refused_to = stored.total + packet.amount, stored.kept + 1, stored.refused_to
    if kept >= _STORED:
        kept, refused_to = _forget_lowest(connection, packet.destination)
    now, highest = time(), max(stored.highest, packet.sequence)
    connection.execute(
        "INSERT OR REPLACE INTO lpi_stream_totals (destination, total, kept, changed, highest, refused_to)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (packet.destination, str(total), kept, now, str(highest), str(refused_to)),
    )
    if known is None:
        _forget_idle(connection, now)
    if book is not None:
        book(connection, packet)
    return verdict, total


def _forget_lowest(connection: sqlite3.Connection, destination: str) -> tuple[int, int]:
    """Forget the lowest numbers of a connection; return how many are left, and the highest that is forgotten."""
    select = "SELECT sequence FROM lpi_stream_packets WHERE destination = ?"
    numbers = sorted(int(sequence) for (sequence,) in connection.execute(select, (destination,)).fetchall())
    forgotten = numbers[:-_REMEMBERED]
    delete = "DELETE FROM lpi_stream_packets WHERE destination = ? AND sequence = ?"
    for number in forgotten:
        connection.execute(delete, (destination, str(number)))
    return len(numbers) - len(forgotten), forgotten[-1]


def _forget_idle(connection: sqlite3.Connection, now: float) -> None:
    """Forget the packets of connections that are over; only the total of each stays."""
    select = "SELECT destination FROM lpi_stream_totals WHERE kept > 0 AND changed < ? ORDER BY changed LIMIT ?"
    for (destination,) in connection.execute(select, (now - _IDLE_SECONDS, _IDLE_AT_ONCE)).fetchall():
        connection.execute("DELETE FROM lpi_stream_packets WHERE destination = ?", (destination,))
        forget = "UPDATE lpi_stream_totals SET kept = 0, refused_to = highest WHERE destination = ?"
        connection.execute(forget, (destination,))
