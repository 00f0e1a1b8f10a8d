"""``open_receiver``: receives payments, without keeping anything about connections (RFC-0029).

Invariant: a Fulfill leaves only after the packet was accepted and booked, and each packet is booked once. What is not
readable with the receiver's keys gets a Reject without data and without a message, so that nothing on the wire tells
implementations apart.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from inspect import isawaitable
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from attrs import frozen

from ..codec import ilp, stream
from ..codec.ilp import ErrorCode
from ..codec.oer import MAX_UINT64
from ..errors import DecodeError, InvalidFieldsError, InvalidServicesError
from ..ilp.configuration import check_plugin, fetch_ildcp
from ..ilp.routing import child_segment, has_expired
from ..log import StdlibLog
from ..runtime.handlers import check_function
from .addresses import AddressBook, Details, check_details
from .bookings import MemoryBookings, ReceivedPacket, StoredBookings, Verdict
from .credentials import Asset, Credentials
from .crypto import Keys, check_secret
from .receipts import make_receipt

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator

    from ..plugin import LedgerPlugin
    from ..services import Log, TransactionalStore

__all__ = ["OnPacket", "Receiver", "open_receiver"]

OnPacket: TypeAlias = Callable[[ReceivedPacket], object | Awaitable[object]]
Book: TypeAlias = "Callable[[sqlite3.Connection, ReceivedPacket], object]"

# Keys of connections that were used last; they can be derived again at any time.
_CACHED: Final = 1024
_CLOSE: Final = stream.ConnectionClose(stream.ErrorCode.NO_ERROR)
_REFUSE: Final = stream.ConnectionClose(stream.ErrorCode.APPLICATION_ERROR)
_RECEIPT_IDS: Final = 255


@frozen
class _Connection:
    """What an address means."""

    address: str
    keys: Keys
    details: Details


class Receiver:
    """Receives payments at addresses below its own; ``open_receiver`` makes one.

    Args:
        secret: The receiver's secret, 32 bytes or more. Credentials work for as long as it is the same.
        address: The receiver's own ILP address.
        asset: The asset of its account; None if payers need not know.
        on_packet: Decides about each packet with money, as ``open_receiver`` documents it.
        log: Where errors of ``on_packet`` are logged.
        bookings: Where accepted packets are recorded; None remembers the last ones.

    Attributes:
        address: The receiver's own ILP address.
        asset: The asset of its account.
        log: Where errors of the application's functions are logged.
    """

    def __init__(
        self,
        *,
        secret: bytes,
        address: str,
        asset: Asset | None = None,
        on_packet: OnPacket | None = None,
        log: Log | None = None,
        bookings: MemoryBookings | StoredBookings | None = None,
    ) -> None:
        if not ilp.is_address(address):
            raise InvalidFieldsError("address must be an ILP address, such as example.receiver")
        self.address: str = address
        self.asset: Asset | None = asset
        self._addresses = AddressBook(check_secret(secret, "secret"), address)
        self._on_packet = on_packet
        self.log: Log = log or StdlibLog()
        self._bookings = bookings or MemoryBookings()
        self._connections: OrderedDict[str, _Connection] = OrderedDict()
        self._deciding: dict[tuple[str, int], trio.Event] = {}

    def new_credentials(
        self, tag: str | None = None, *, receipt_nonce: bytes | None = None, receipt_secret: bytes | None = None
    ) -> Credentials:
        """Return credentials for one payment.

        Args:
            tag: The application's name for the payment, such as ``"invoice 17"``. It is encrypted in the address, and
                given back with each packet.
            receipt_nonce: 16 bytes that receipts contain (RFC-0039); None for no receipts.
            receipt_secret: 32 bytes that sign receipts; needed with the nonce.

        Raises:
            TypeError: An argument has the wrong type.
            InvalidFieldsError: The tag is too long for an address, or the nonce or the secret is wrong.
        """
        details = check_details(tag, receipt_nonce, receipt_secret)
        address, secret = self._addresses.make(details)
        return Credentials(address, secret, receipts_enabled=bool(details.receipt_nonce))

    async def handle(self, data: bytes) -> bytes:
        """Answer an ILP packet, as a data handler does.

        Args:
            data: The packet.

        Returns:
            A Fulfill or a Reject.

        Cancellation: The packet is not fulfilled; it may have been booked.
        """
        try:
            prepare = ilp.decode(data)
        except DecodeError:
            return self._reject(ErrorCode.INVALID_PACKET)
        if not isinstance(prepare, ilp.Prepare):
            return self._reject(ErrorCode.BAD_REQUEST)
        try:
            connection = self._connections.get(prepare.destination) or self._connect(prepare.destination)
            if connection is None:
                return self._reject(ErrorCode.UNREACHABLE)
            packet = stream.decode(connection.keys.open(prepare.data))
        except DecodeError:
            return self._reject(ErrorCode.UNEXPECTED_PAYMENT)
        if packet.packet_type != stream.PREPARE:
            return self._reject(ErrorCode.BAD_REQUEST)
        return await self._judge(prepare, connection, packet)

    def _connect(self, destination: str) -> _Connection | None:
        """Return what an address means, and remember it; None if it is not below the receiver's own.

        Raises:
            DecodeError: What follows the receiver's own is not a token of it.
        """
        segment = child_segment(destination, self.address)
        if segment is None:
            return None
        token, details = self._addresses.read(segment)
        connection = _Connection(self._addresses.address_of(token), Keys(self._addresses.shared_secret(token)), details)
        self._connections[destination] = connection
        if len(self._connections) > _CACHED:
            self._connections.popitem(last=False)
        return connection

    async def _judge(self, prepare: ilp.Prepare, connection: _Connection, packet: stream.Packet) -> bytes:
        """Answer a packet that was made with a connection's key."""
        shares = foreign = 0
        closes = asks = False
        for frame in packet.frames:
            if isinstance(frame, stream.StreamMoney):
                shares += frame.shares
                # A payer opens streams with odd numbers.
                foreign += frame.stream_id % 2 == 0
            elif isinstance(frame, stream.ConnectionClose):
                closes = True
            elif isinstance(frame, stream.ConnectionNewAddress):
                asks = True
        answer = _Answer(self, connection, packet, prepare.amount, asks=asks)
        if closes:
            return answer.reject(ErrorCode.FINAL_APPLICATION_ERROR, _CLOSE)
        fulfillment = connection.keys.fulfillment(prepare.data)
        right = ilp.fulfills(fulfillment, prepare.execution_condition)
        if prepare.amount < packet.amount or not right:
            return answer.reject(ErrorCode.FINAL_APPLICATION_ERROR)
        if prepare.amount == 0:
            return answer.fulfill(fulfillment)
        # Money for a stream that the payer cannot open belongs to no stream.
        if not shares or foreign:
            return answer.reject(ErrorCode.FINAL_APPLICATION_ERROR)
        received = ReceivedPacket(prepare.amount, connection.details.tag, connection.address, packet.sequence)
        return await self._decide(answer, received, prepare, fulfillment)

    async def _decide(
        self, answer: _Answer, received: ReceivedPacket, prepare: ilp.Prepare, fulfillment: bytes
    ) -> bytes:
        """Have the application decide, book the packet, and answer. The same packet is decided once at a time."""
        if has_expired(prepare):
            # Its money is out of reach, and the payer may have sent it again.
            return answer.reject(ErrorCode.TRANSFER_TIMED_OUT)
        name = received.destination, received.sequence
        try:
            while (decided := self._deciding.get(name)) is not None:
                await decided.wait()
            accepted = self._accept(received, prepare.execution_condition)
            total = accepted if isinstance(accepted, int) else await self._finish(name, accepted, prepare.expires_at)
        except _RefusedError as refused:
            return answer.reject(ErrorCode.FINAL_APPLICATION_ERROR, *refused.frames)
        except Exception as error:  # noqa: BLE001 (an application may raise anything, and the payer may try again)
            self.log.error("a packet of a STREAM payment is refused for now: %O", error)
            return answer.reject(ErrorCode.INTERNAL_ERROR)
        if total is None:
            return answer.reject(ErrorCode.INTERNAL_ERROR)
        return answer.fulfill(fulfillment, total)

    async def _finish(self, name: tuple[str, int], accepted: Awaitable[int], expires_at: datetime) -> int | None:
        """Wait until a packet is accepted, and return what its connection has received; None if it expires first."""
        self._deciding[name] = trio.Event()
        try:
            seconds = (expires_at - datetime.now(UTC)).total_seconds()
            with trio.move_on_after(max(seconds, 0)):
                return await accepted
            return None
        finally:
            self._deciding.pop(name).set()

    def _accept(self, received: ReceivedPacket, condition: bytes) -> int | Awaitable[int]:
        """Accept and book a packet; return what its connection has received, at once if nothing has to wait.

        Raises:
            _RefusedError: The packet is refused.
        """
        if isinstance(self._bookings, StoredBookings):
            return self._accept_stored(self._bookings, received, condition)
        verdict, total = self._bookings.judge(received, condition)
        if verdict is Verdict.OTHER:
            raise _RefusedError
        if verdict is Verdict.SAME:
            return total
        decision = None if self._on_packet is None else self._on_packet(received)
        if decision is not None:
            if isawaitable(decision):
                return self._accept_later(self._bookings, decision, received, condition)
            _check_decision(decision)
        return self._bookings.book(received, condition)

    async def _accept_later(
        self, bookings: MemoryBookings, decision: Awaitable[object], received: ReceivedPacket, condition: bytes
    ) -> int:
        _check_decision(await decision)
        return bookings.book(received, condition)

    async def _accept_stored(self, bookings: StoredBookings, received: ReceivedPacket, condition: bytes) -> int:
        verdict, total = await bookings.judge(received, condition)
        if verdict is Verdict.NEW:
            decision = None if self._on_packet is None else self._on_packet(received)
            _check_decision(await decision if isawaitable(decision) else decision)
            verdict, total = await bookings.book(received, condition)
        if verdict is Verdict.OTHER:
            raise _RefusedError
        return total

    def _reject(self, code: ErrorCode) -> bytes:
        return ilp.encode(ilp.Reject(code, self.address, "", b""))


class _RefusedError(Exception):
    """The application refuses a packet, or another packet has its number."""

    def __init__(self, *frames: stream.Frame) -> None:
        super().__init__()
        self.frames = frames


def _check_decision(decision: object) -> None:
    """Raise an error unless a decision accepts the packet."""
    if decision is False:
        raise _RefusedError(_REFUSE)
    if decision is not None and decision is not True:
        raise TypeError(f"on_packet returns None or False, not {type(decision).__name__}")


class _Answer:
    """Builds the answer to one packet.

    Args:
        receiver: Who answers.
        connection: Whose keys the packet was made with.
        packet: The packet.
        amount: What arrives with it.
        asks: Whether the payer begins the connection, and so asks for the asset.
    """

    __slots__ = ("_amount", "_asks", "_connection", "_packet", "_receiver")

    def __init__(
        self, receiver: Receiver, connection: _Connection, packet: stream.Packet, amount: int, *, asks: bool
    ) -> None:
        self._receiver = receiver
        self._connection = connection
        self._packet = packet
        self._amount = amount
        self._asks = asks

    def fulfill(self, fulfillment: bytes, total: int = 0) -> bytes:
        """Return a Fulfill, with a receipt if the payer asked for receipts and the connection has received something.

        Args:
            fulfillment: The preimage of the packet's condition.
            total: What the connection has received.
        """
        frames = self._frames() if self._asks else ()
        if total and self._connection.details.receipt_nonce:
            frames += self._receipt(total)
        return ilp.encode(ilp.Fulfill(fulfillment, self._seal(stream.FULFILL, frames)))

    def _receipt(self, total: int) -> tuple[stream.StreamReceipt, ...]:
        details = self._connection.details
        for frame in self._packet.frames:
            if isinstance(frame, stream.StreamMoney) and frame.stream_id <= _RECEIPT_IDS:
                capped = min(total, MAX_UINT64)
                receipt = make_receipt(details.receipt_nonce, details.receipt_secret, frame.stream_id, capped)
                return (stream.StreamReceipt(frame.stream_id, receipt),)
        return ()

    def reject(self, code: ErrorCode, *frames: stream.Frame) -> bytes:
        """Return a Reject with the receiver's packet."""
        sealed = self._seal(stream.REJECT, (*self._frames(), *frames))
        return ilp.encode(ilp.Reject(code, self._receiver.address, "", sealed))

    def _frames(self) -> tuple[stream.Frame, ...]:
        asset = self._receiver.asset
        if asset is None or not self._asks:
            return ()
        return (stream.ConnectionAssetDetails(asset.code, asset.scale),)

    def _seal(self, packet_type: int, frames: tuple[stream.Frame, ...]) -> bytes:
        packet = stream.Packet(self._packet.sequence, packet_type, self._amount, frames)
        return self._connection.keys.seal(stream.encode(packet))


@asynccontextmanager
async def open_receiver(
    plugin: LedgerPlugin,
    *,
    secret: bytes,
    address: str | None = None,
    asset: Asset | None = None,
    on_packet: OnPacket | None = None,
    store: TransactionalStore[sqlite3.Connection] | None = None,
    book: Book | None = None,
) -> AsyncIterator[Receiver]:
    """Receive payments over a plugin during a block, as its data handler.

    Args:
        plugin: A connected plugin without a data handler.
        secret: The receiver's secret, 32 bytes or more, such as ``os.urandom(32)``, which the application keeps.
            Credentials work for as long as it is the same, in any process.
        address: The receiver's ILP address. None asks the peer for it, and for the asset (ILDCP).
        asset: The asset of the account, which payers are told; needed with ``address`` for payers that check the rate.
        on_packet: Called with a `ReceivedPacket` for each packet with money; sync or async. It returns None to accept
            it, or False to refuse it and end the payment. If it raises, the payer may try later, with another packet.
            It has until the packet expires. None accepts all packets.
        store: Where accepted packets are recorded, so that each is booked once even if this process ends in between.
            Without a store, the last 512 packets of the last 1,024 connections are remembered.
        book: Called with the store's connection and a `ReceivedPacket`, in the transaction that records the packet, in
            the store's thread. It writes the application's books, and nothing else.

    Yields:
        The receiver.

    Raises:
        TypeError: An argument has the wrong type; ``book`` is an async function for example.
        InvalidFieldsError: ``secret`` is too short, ``address`` is wrong, or ``book`` is given without ``store``.
        InvalidServicesError: The extra ``stream`` is not installed, or ``store`` has no transactions.
        DataHandlerAlreadyRegisteredError: The plugin has a data handler.
        StoreError: The store failed.
        RemoteError: The peer does not answer ILDCP; give ``address``.

    Cancellation: Ends the block. Packets that are being decided are not fulfilled if the plugin closes.
    """
    check_plugin(plugin)
    check_secret(secret, "secret")
    if asset is not None and not isinstance(asset, Asset):
        raise TypeError(f"asset is an Asset, not {type(asset).__name__}")
    if on_packet is not None:
        check_function("on_packet", on_packet, "packet", may_wait=True)
    if book is not None:
        check_function("book", book, "connection", "packet")
        if store is None:
            raise InvalidFieldsError("book needs store: it runs in the transaction of the store")
    if store is not None and not callable(getattr(store, "transaction", None)):
        raise InvalidServicesError(
            "store: packets are recorded in one with transaction(), as open_sqlite_store() gives"
        )
    if address is None:
        own = await fetch_ildcp(plugin)
        address, asset = own.client_address, asset or Asset(own.asset_code, own.asset_scale)
    bookings = None
    if store is not None:
        bookings = StoredBookings(store, book)
        await bookings.open()
    receiver = Receiver(
        secret=secret,
        address=address,
        asset=asset,
        on_packet=on_packet,
        log=plugin.log.once(),
        bookings=bookings,
    )
    plugin.register_data_handler(receiver.handle)
    try:
        yield receiver
    finally:
        plugin.deregister_data_handler()
