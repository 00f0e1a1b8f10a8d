"""Accepted packets are booked once, and what a store keeps of them is bounded."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from support.journals import connect

from trio_ledger_plugin.stores.schema import migrate
from trio_ledger_plugin.stream import ReceivedPacket, bookings
from trio_ledger_plugin.stream.bookings import MemoryBookings, StoredBookings, Verdict
from trio_ledger_plugin.stream.tables import COMPONENT, STEPS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

HOUR = 3600.0
DAY = 24 * HOUR


class Connected:
    """A store in memory, whose transactions are not undone."""

    def __init__(self) -> None:
        self.connection = connect()

    async def transaction(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        return work(self.connection)

    def count(self, table: str) -> int:
        rows: int = self.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 (a constant)
        return rows


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1e9
        monkeypatch.setattr(bookings, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def store() -> Connected:
    return Connected()


async def open_bookings(store: Any, book: Any = None) -> StoredBookings:
    opened = StoredBookings(store, book)
    await opened.open()
    return opened


def packet(sequence: int, destination: str = "example.a", amount: int = 10) -> ReceivedPacket:
    return ReceivedPacket(amount, None, destination, sequence)


def condition(sequence: int) -> bytes:
    return sequence.to_bytes(32)


async def book(booked: StoredBookings, sequence: int, destination: str = "example.a") -> tuple[Verdict, int]:
    return await booked.book(packet(sequence, destination), condition(sequence))


async def test_packets_of_a_long_connection_are_bounded(store: Connected, clock: Clock) -> None:
    """A payment of a day would fill the disk."""
    booked = await open_bookings(store)
    most = 0
    for sequence in range(1, 5001):
        assert await book(booked, sequence) == (Verdict.NEW, 10 * sequence)
        most = max(most, store.count("lpi_stream_packets"))
    assert most < 1024
    # The last ones get the same answer again, and the others are refused.
    verdicts = [(await book(booked, sequence))[0] for sequence in range(1, 5001)]
    assert verdicts[-512:] == [Verdict.SAME] * 512
    assert set(verdicts) == {Verdict.SAME, Verdict.OTHER}
    assert await booked.judge(packet(1), condition(1)) == (Verdict.OTHER, 50_000)


async def test_packets_of_a_connection_that_is_over_are_forgotten(store: Connected, clock: Clock) -> None:
    booked = await open_bookings(store)
    for number in range(10):
        for sequence in range(1, 6):
            await book(booked, sequence, f"example.{number}")
    assert store.count("lpi_stream_packets") == 50
    clock.now += DAY + 1
    for number in range(10, 20):
        await book(booked, 1, f"example.{number}")
    assert store.count("lpi_stream_packets") == 10
    assert store.count("lpi_stream_totals") == 20
    # Nothing of it is booked again, and the connection may go on.
    assert await book(booked, 5, "example.0") == (Verdict.OTHER, 50)
    assert await book(booked, 6, "example.0") == (Verdict.NEW, 60)
    assert await book(booked, 6, "example.0") == (Verdict.SAME, 60)


async def test_connection_in_use_is_not_forgotten(store: Connected, clock: Clock) -> None:
    booked = await open_bookings(store)
    for hour in range(1, 50):
        clock.now += HOUR
        await book(booked, hour)
        await book(booked, 1, f"example.{hour}")
    assert (await book(booked, 1))[0] is Verdict.SAME


@pytest.mark.parametrize("seconds", [-30 * DAY, 30 * DAY])
async def test_clock_that_jumps_books_nothing_twice(store: Connected, clock: Clock, seconds: float) -> None:
    booked = await open_bookings(store)
    for sequence in range(1, 20):
        await book(booked, sequence)
    clock.now += seconds
    for number in range(3):
        await book(booked, 1, f"example.{number}")
    assert Verdict.NEW not in [(await book(booked, sequence))[0] for sequence in range(1, 20)]


@pytest.mark.parametrize("seed", range(5))
async def test_no_order_of_packets_books_one_twice(
    store: Connected, clock: Clock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(bookings, "_REMEMBERED", 4)
    monkeypatch.setattr(bookings, "_STORED", 8)
    random, done = Random(seed), set()
    totals: dict[str, int] = {}

    def note(_connection: Any, received: ReceivedPacket) -> None:
        name = received.destination, received.sequence
        assert name not in done
        done.add(name)
        totals[received.destination] = totals.get(received.destination, 0) + received.amount

    booked = await open_bookings(store, note)
    for step in range(2000):
        clock.now += random.choice([0, 0, HOUR, 30 * HOUR, -HOUR])
        destination = f"example.{random.randrange(4)}.{step // 400}"
        # Numbers have up to 64 bits: more than a database's integers.
        sequence = (2**64 - 500 if random.random() < 0.1 else 0) + max(1, step % 400 // 4 - random.randrange(12))
        verdict, total = await book(booked, sequence, destination)
        assert total == totals.get(destination, 0)
        assert (verdict is Verdict.NEW) <= ((destination, sequence) in done)
    assert len(done) > 300


async def test_packets_of_an_earlier_version_are_known_and_forgotten(store: Connected, clock: Clock) -> None:
    migrate(store.connection, COMPONENT, STEPS[:1])
    rows = [("example.old", str(sequence), "10", condition(sequence)) for sequence in (9, 10, 1, 2**64 - 1)]
    store.connection.executemany("INSERT INTO lpi_stream_packets VALUES (?, ?, ?, ?)", rows)
    store.connection.execute("INSERT INTO lpi_stream_totals VALUES ('example.old', '40')")
    booked = await open_bookings(store)
    assert await book(booked, 9, "example.old") == (Verdict.SAME, 40)
    await book(booked, 1, "example.new")
    assert store.count("lpi_stream_packets") == 1
    for sequence in (9, 10, 11, 2**64 - 1):
        assert await book(booked, sequence, "example.old") == (Verdict.OTHER, 40)


async def test_same_packet_is_answered_again_in_memory() -> None:
    booked = MemoryBookings()
    assert booked.book(packet(1), condition(1)) == 10
    assert booked.judge(packet(1), condition(1)) == (Verdict.SAME, 10)
    assert booked.judge(packet(1), condition(2)) == (Verdict.OTHER, 10)
