"""The receiving end: which answer each packet gets, what is booked, addresses, receipts, and nothing that grows."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from attrs import evolve

from trio_ledger_plugin import DataHandlerAlreadyRegisteredError, InvalidFieldsError, StoreInDoubtError, loopback_pair
from trio_ledger_plugin.codec import ildcp, ilp, stream
from trio_ledger_plugin.errors import DecodeError
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stream import Asset, Credentials, ReceivedPacket, Receiver, open_receiver, pay, verify_receipt
from trio_ledger_plugin.stream.crypto import Keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = bytes(range(32))
ADDRESS = "example.receiver"
MONEY = (stream.StreamMoney(1, 1),)
CLOSE = stream.ConnectionClose(stream.ErrorCode.NO_ERROR)


def receiver(on_packet: Callable[[ReceivedPacket], object] | None = None, **more: Any) -> Receiver:
    return Receiver(secret=SECRET, address=ADDRESS, asset=Asset("EUR", 2), on_packet=on_packet, **more)


class Payer:
    """Makes packets for credentials, and reads their answers."""

    def __init__(self, credentials: Credentials) -> None:
        self.credentials = credentials
        self.keys = Keys(credentials.shared_secret)

    def packet(
        self,
        amount: int = 100,
        minimum: int = 100,
        sequence: int = 1,
        frames: tuple[stream.Frame, ...] = MONEY,
        *,
        right: bool = True,
        packet_type: int = stream.PREPARE,
    ) -> ilp.Prepare:
        data = self.keys.seal(stream.encode(stream.Packet(sequence, packet_type, minimum, frames)))
        condition = sha256(self.keys.fulfillment(data)).digest() if right else os.urandom(32)
        return ilp.make_prepare(amount, self.credentials.destination_account, condition, 20, data)

    def reply(self, answer: bytes) -> stream.Packet:
        return stream.decode(self.keys.open(ilp.decode(answer).data))


def reject_of(answer: bytes) -> ilp.Reject:
    packet = ilp.decode(answer)
    assert isinstance(packet, ilp.Reject)
    assert packet.triggered_by == ADDRESS
    assert packet.message == ""
    return packet


def assert_fulfilled(prepare: ilp.Prepare, answer: bytes) -> None:
    packet = ilp.decode(answer)
    assert isinstance(packet, ilp.Fulfill)
    assert ilp.fulfills(packet.fulfillment, prepare.execution_condition)


async def test_packet_with_money_is_fulfilled_and_seen():
    seen: list[ReceivedPacket] = []
    end = receiver(seen.append)
    payer = Payer(end.new_credentials(tag="invoice 17"))
    prepare = payer.packet(amount=105, sequence=9)
    answer = await end.handle(ilp.encode(prepare))
    assert_fulfilled(prepare, answer)
    assert payer.reply(answer) == stream.Packet(9, stream.FULFILL, 105)
    assert seen == [ReceivedPacket(105, "invoice 17", payer.credentials.destination_account, 9)]


@pytest.mark.parametrize("destination", ["example.other.x", "example.receiver", "example.receivers.x", "g.receiver.x"])
async def test_packet_for_another_address_is_f02(destination):
    end = receiver()
    prepare = evolve(Payer(end.new_credentials()).packet(), destination=destination)
    assert reject_of(await end.handle(ilp.encode(prepare))) == ilp.Reject("F02", ADDRESS)


async def test_what_does_not_open_is_f06_without_a_word():
    end, other = receiver(), Receiver(secret=os.urandom(32), address=ADDRESS)
    mine = Payer(end.new_credentials()).packet()
    damaged = bytes((mine.data[0] ^ 1,)) + mine.data[1:]
    cases = [
        Payer(other.new_credentials()).packet(),
        evolve(mine, destination=f"{ADDRESS}.token"),
        evolve(mine, destination=f"{ADDRESS}.{'A' * 60}"),
        evolve(mine, data=damaged),
        evolve(mine, data=b""),
        evolve(mine, data=Payer(end.new_credentials()).packet().data),
    ]
    for prepare in cases:
        assert reject_of(await end.handle(ilp.encode(prepare))) == ilp.Reject("F06", ADDRESS)


async def test_plaintext_that_is_no_packet_is_f06():
    end = receiver()
    payer = Payer(end.new_credentials())
    prepare = evolve(payer.packet(), data=payer.keys.seal(b"no packet"))
    assert reject_of(await end.handle(ilp.encode(prepare))) == ilp.Reject("F06", ADDRESS)


async def test_wrong_types_are_f00_and_rubbish_f01():
    end = receiver()
    payer = Payer(end.new_credentials())
    for data in (ilp.encode(payer.packet(packet_type=stream.FULFILL)), ilp.encode(ilp.Fulfill(bytes(32)))):
        assert reject_of(await end.handle(data)) == ilp.Reject("F00", ADDRESS)
    assert reject_of(await end.handle(b"rubbish")) == ilp.Reject("F01", ADDRESS)


@pytest.mark.parametrize(
    ("change", "frames"),
    [
        ({"frames": (CLOSE,), "right": False}, (CLOSE,)),
        ({"frames": (CLOSE, *MONEY)}, (CLOSE,)),
        ({"minimum": 101}, ()),
        ({"right": False}, ()),
        ({"frames": ()}, ()),
        ({"frames": (stream.StreamMoney(1, 0),)}, ()),
        ({"frames": (stream.StreamMoney(2, 1),)}, ()),
        ({"frames": (*MONEY, stream.StreamMoney(4, 1))}, ()),
        ({"frames": (stream.ConnectionNewAddress(""),), "right": False}, (stream.ConnectionAssetDetails("EUR", 2),)),
    ],
    ids=["close", "close with money", "minimum", "condition", "no stream", "no shares", "ours", "one of ours", "asset"],
)
async def test_packet_that_must_not_be_fulfilled_is_f99(change, frames):
    """The reply says what arrived, so that the payer learns the rate; @interledger/pay ends on F05."""
    seen: list[ReceivedPacket] = []
    end = receiver(seen.append)
    payer = Payer(end.new_credentials())
    answer = await end.handle(ilp.encode(payer.packet(sequence=5, **change)))
    assert reject_of(answer).code == "F99"
    assert payer.reply(answer) == stream.Packet(5, stream.REJECT, 100, frames)
    assert seen == []


async def test_packet_without_money_is_fulfilled_but_not_booked():
    """Old clients of ilp-protocol-stream repeat it for ever after an F99."""
    seen: list[ReceivedPacket] = []
    end = receiver(seen.append)
    prepare = Payer(end.new_credentials()).packet(amount=0, minimum=0, frames=())
    assert_fulfilled(prepare, await end.handle(ilp.encode(prepare)))
    assert seen == []


async def test_segments_after_the_token_are_ignored_and_book_once():
    """A payer could otherwise have one packet booked under many addresses."""
    seen: list[ReceivedPacket] = []
    end = receiver(seen.append)
    payer = Payer(end.new_credentials())
    for more in ("", ".a", ".b.c"):
        prepare = payer.packet()
        prepare = evolve(prepare, destination=f"{prepare.destination}{more}")
        await end.handle(ilp.encode(prepare))
    assert len(seen) == 1


async def test_token_in_another_spelling_is_the_same_connection():
    """The last character of base64 has bits without a meaning: another spelling would book the packet again."""
    seen: list[ReceivedPacket] = []
    end = receiver(seen.append)
    payer = Payer(end.new_credentials(tag="ab"))
    prepare = payer.packet()
    await end.handle(ilp.encode(prepare))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for last in alphabet:
        await end.handle(ilp.encode(evolve(prepare, destination=prepare.destination[:-1] + last)))
    assert len(seen) == 1


async def test_application_refuses_and_the_connection_closes():
    end = receiver(lambda packet: False)
    payer = Payer(end.new_credentials())
    answer = await end.handle(ilp.encode(payer.packet()))
    assert reject_of(answer).code == "F99"
    assert payer.reply(answer).frames == (stream.ConnectionClose(stream.ErrorCode.APPLICATION_ERROR),)


@pytest.mark.parametrize("decision", [0, "yes", ZeroDivisionError("internal canary")])
async def test_application_that_raises_or_errs_says_later(decision, caplog):
    def decide(packet):
        if isinstance(decision, Exception):
            raise decision
        return decision

    end = receiver(decide)
    payer = Payer(end.new_credentials())
    answer = await end.handle(ilp.encode(payer.packet()))
    assert reject_of(answer).code == "T00"
    assert b"canary" not in answer
    assert "refused for now" in caplog.text


async def test_async_decision_has_until_the_packet_expires():
    async def decide(packet):
        await trio.sleep(60)

    end = receiver(decide)
    payer = Payer(end.new_credentials())
    prepare = payer.packet()
    with trio.fail_after(5):
        answer = await end.handle(
            ilp.encode(evolve(prepare, expires_at=ilp.make_prepare(0, ADDRESS, bytes(32), 0.2).expires_at))
        )
    assert reject_of(answer).code == "T00"


async def test_expired_packet_is_not_booked():
    """After a pause of the program it would book what the payer has given up, and has sent again."""
    seen: list[ReceivedPacket] = []
    end = receiver(seen.append)
    payer = Payer(end.new_credentials())
    expired = evolve(payer.packet(), expires_at=datetime.now(UTC) - timedelta(seconds=0.01))
    answer = await end.handle(ilp.encode(expired))
    assert reject_of(answer).code == "R00"
    assert payer.reply(answer) == stream.Packet(1, stream.REJECT, 100)
    assert seen == []


async def test_same_packet_twice_is_booked_once_and_fulfilled_twice():
    """A link that delivers a request twice must not make the payer believe that it was refused."""
    seen: list[ReceivedPacket] = []

    async def decide(packet):
        await trio.sleep(0.01)
        seen.append(packet)

    end = receiver(decide)
    prepare = Payer(end.new_credentials()).packet()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(check_fulfilled, end, prepare)
    await check_fulfilled(end, prepare)
    assert len(seen) == 1


async def check_fulfilled(end: Receiver, prepare: ilp.Prepare) -> None:
    assert_fulfilled(prepare, await end.handle(ilp.encode(prepare)))


async def test_another_packet_with_a_used_number_is_refused():
    end = receiver()
    payer = Payer(end.new_credentials())
    await check_fulfilled(end, payer.packet(sequence=3))
    assert reject_of(await end.handle(ilp.encode(payer.packet(sequence=3)))).code == "F99"
    await check_fulfilled(end, payer.packet(sequence=2))


async def test_memory_of_packets_and_connections_is_bounded():
    """A closed connection's id was kept for ever by ilp-protocol-stream."""
    end = receiver()
    payer = Payer(end.new_credentials())
    for sequence in range(1, 1200):
        await check_fulfilled(end, payer.packet(sequence=sequence))
    # Too old to be known: it may have been booked.
    assert reject_of(await end.handle(ilp.encode(payer.packet(sequence=1)))).code == "F99"
    for _ in range(1200):
        await check_fulfilled(end, Payer(end.new_credentials()).packet())
    bookings = end._bookings
    assert len(end._connections) <= 1024
    assert len(bookings._connections) <= 1024  # type: ignore[union-attr]  # it is in memory
    assert end._deciding == {}


async def test_receipts_say_what_a_connection_received():
    nonce, secret = bytes(range(16)), os.urandom(32)
    end = receiver()
    credentials = end.new_credentials(receipt_nonce=nonce, receipt_secret=secret)
    assert credentials.receipts_enabled
    payer = Payer(credentials)
    for sequence, total in ((1, 100), (2, 200)):
        answer = await end.handle(ilp.encode(payer.packet(sequence=sequence)))
        (frame,) = payer.reply(answer).frames
        assert isinstance(frame, stream.StreamReceipt)
        receipt = verify_receipt(frame.receipt, secret)
        assert (receipt.nonce, receipt.stream_id, receipt.total_received) == (nonce, 1, total)
    answer = await end.handle(ilp.encode(payer.packet(sequence=3, frames=(stream.StreamMoney(257, 1),))))
    assert payer.reply(answer).frames == ()
    assert isinstance(frame, stream.StreamReceipt)
    with pytest.raises(DecodeError, match="not signed"):
        verify_receipt(frame.receipt, bytes(32))
    with pytest.raises(DecodeError, match="not a receipt"):
        verify_receipt(frame.receipt[:-1], secret)


async def test_credentials_work_in_another_process_with_the_same_secret():
    seen: list[ReceivedPacket] = []
    credentials = receiver().new_credentials(tag="späť \U0001f4b6")
    await check_fulfilled(receiver(seen.append), Payer(credentials).packet())
    assert seen[0].tag == "späť \U0001f4b6"


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda end: end.new_credentials(tag="x" * 1000), InvalidFieldsError, "at most 1023"),
        (lambda end: end.new_credentials(tag=7), TypeError, "tag is text"),
        (lambda end: end.new_credentials(receipt_nonce=bytes(16)), InvalidFieldsError, "or neither"),
        (
            lambda end: end.new_credentials(receipt_nonce=bytes(17), receipt_secret=bytes(32)),
            InvalidFieldsError,
            "receipt_nonce has 17 bytes",
        ),
        (lambda end: Receiver(secret=b"canary", address=ADDRESS), InvalidFieldsError, "secret has 6 bytes"),
        (lambda end: Receiver(secret=cast("Any", "canary"), address=ADDRESS), TypeError, "secret is bytes"),
        (lambda end: Receiver(secret=SECRET, address="nowhere"), InvalidFieldsError, "ILP address"),
    ],
)
def test_bad_arguments_get_clear_errors(make, error, said):
    with pytest.raises(error, match=said) as caught:
        make(receiver())
    assert "canary" not in str(caught.value)


async def test_open_receiver_asks_for_its_address_and_asset():
    async with loopback_pair() as (payer, end):

        async def answer(data: bytes) -> bytes:
            return ildcp.encode(ildcp.IldcpResponse("example.parent.child", 9, "XRP"))

        payer.register_data_handler(answer)
        async with open_receiver(end, secret=SECRET) as receiving:
            assert receiving.address == "example.parent.child"
            assert receiving.asset == Asset("XRP", 9)
            with pytest.raises(DataHandlerAlreadyRegisteredError):
                async with open_receiver(end, secret=SECRET, address=ADDRESS):
                    raise AssertionError
        async with open_receiver(end, secret=SECRET, address=ADDRESS) as receiving:
            paid = await pay(payer, receiving.new_credentials(), send=1000)
        assert (paid.delivered, paid.asset) == (1000, None)


async def test_stored_packets_are_booked_once_across_restarts(tmp_path: Path):
    def book(connection, packet):
        connection.execute("INSERT INTO books VALUES (?, ?)", (packet.tag, packet.amount))

    prepare = Payer(receiver().new_credentials(tag="invoice 17")).packet()
    for _ in range(2):
        async with open_sqlite_store(tmp_path / "store.db") as store, loopback_pair() as (_, end):
            await store.transaction(lambda c: c.execute("CREATE TABLE IF NOT EXISTS books (tag, amount)") and None)
            opened = open_receiver(end, secret=SECRET, address=ADDRESS, store=store, book=book)
            async with opened as receiving:
                for _ in range(2):
                    await check_fulfilled(receiving, prepare)
            rows = await store.transaction(lambda c: c.execute("SELECT * FROM books").fetchall())
    assert rows == [("invoice 17", 100)]


async def test_books_that_fail_leave_the_packet_unbooked(tmp_path: Path):
    tries: list[int] = []

    def book(connection, packet):
        tries.append(packet.sequence)
        if len(tries) == 1:
            raise ValueError("no such account")

    async with open_sqlite_store(tmp_path / "store.db") as store, loopback_pair() as (_, end):
        opened = open_receiver(end, secret=SECRET, address=ADDRESS, store=store, book=book)
        async with opened as receiving:
            prepare = Payer(receiving.new_credentials()).packet()
            assert reject_of(await receiving.handle(ilp.encode(prepare))).code == "T00"
            await check_fulfilled(receiving, prepare)
            other = Payer(receiving.new_credentials())
            await check_fulfilled(receiving, other.packet())
            assert reject_of(await receiving.handle(ilp.encode(other.packet()))).code == "F99"
    with pytest.raises(InvalidFieldsError, match="book needs store"):
        async with open_receiver(end, secret=SECRET, address=ADDRESS, book=book):
            raise AssertionError


async def test_commit_in_doubt_is_settled_before_the_answer(tmp_path: Path):
    """A T00 for a packet that was booked would have the payer pay it again."""

    class Doubtful:
        def __init__(self, inner):
            self.inner, self.doubts = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        async def transaction(self, work):
            result = await self.inner.transaction(work)
            if "_record" in repr(work) and self.doubts < 2:
                self.doubts += 1
                raise StoreInDoubtError("the disk is not sure")
            return result

    booked: list[int] = []
    async with open_sqlite_store(tmp_path / "store.db") as inner, loopback_pair() as (_, end):
        store: Any = Doubtful(inner)
        book = lambda connection, packet: booked.append(packet.sequence)  # noqa: E731 (one line is enough)
        async with open_receiver(end, secret=SECRET, address=ADDRESS, store=store, book=book) as receiving:
            await check_fulfilled(receiving, Payer(receiving.new_credentials()).packet())
    assert booked == [1]
    assert store.doubts == 2
