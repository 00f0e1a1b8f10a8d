"""The sending end of a connection: sends one packet, and judges its answer.

Invariant: an answer counts as the receiver's only if it opens with the connection's key, repeats the packet's number
and has the right type. A Fulfill counts only with the preimage of the packet's condition.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

import trio
from attrs import define

from ..codec import ilp, stream
from ..errors import (
    ConnectionLostError,
    DecodeError,
    NotConnectedError,
    RemoteError,
    ResponseTimeoutError,
)
from ..log import escape
from .credentials import Asset

if TYPE_CHECKING:
    from datetime import datetime

    from ..plugin import LedgerPlugin
    from .credentials import Credentials

__all__ = ["STREAM_ID", "Answer", "Connection", "Flight", "Kind"]

#: The only stream that a payment uses.
STREAM_ID: Final = 1
# With a real address, ilp-protocol-stream's server probes the rate back to it, and closes the connection if that fails.
_GREETING: Final = (
    stream.ConnectionNewAddress(""),
    stream.ConnectionMaxStreamId(STREAM_ID),
    stream.ConnectionMaxData(0),
)
# Receivers of interledger-rs refuse the empty address. The segment keeps others from reading this one.
_OTHER_GREETING: Final = (stream.ConnectionNewAddress("private.SEND_ONLY_CLIENT"), *_GREETING[1:])
_DUMMY_SEGMENT: Final = "_"
_NO_LINK: Final = "T01"
# Packets of this many seconds share the time at which they expire: making and writing a time costs as much as a cipher.
_STAMP_SECONDS: Final = 0.005
# The types of the receiver's packet in a Fulfill and in a Reject. A connector may have made a Reject of a Fulfill.
_IN_FULFILL: Final = frozenset((stream.FULFILL,))
_IN_REJECT: Final = frozenset((stream.FULFILL, stream.REJECT))
EXPIRED: Final = "no answer came before the packet expired"
_MESSAGE: Final = 200


class Kind(Enum):
    """What became of a packet."""

    FULFILLED = "fulfilled"
    REJECTED = "rejected"
    UNANSWERED = "unanswered"


class Answer(NamedTuple):
    """What became of a packet.

    Attributes:
        kind: Fulfilled, rejected, or not answered until it expired.
        code: The code of a Reject, else empty.
        reply: The receiver's STREAM packet, if the answer has one.
        data: The data of a Reject without one.
        reason: For people: the code, the message and who sent it; without control characters.
    """

    kind: Kind
    code: str = ""
    reply: stream.Packet | None = None
    data: bytes = b""
    reason: str = ""


@define(eq=False)
class Flight:
    """What the sender of many packets knows about one that it cancels itself once it has expired.

    A scope with a deadline for each packet would take a tenth of the time.

    Attributes:
        deadline: When the packet expires, on Trio's clock.
        reason: Why there is no answer, if the scope is cancelled.
    """

    deadline: float = math.inf
    reason: str = EXPIRED


class Connection:
    """Sends packets to one receiver.

    Args:
        plugin: Where they are sent.
        credentials: The receiver's address and secret.
        expiry: Seconds until a packet expires.

    Attributes:
        asset: The receiver's asset, once it said so.
        is_greeted: Whether the receiver has answered.
        closed: Why the receiver closed the connection or the stream; None while it has not.
        receipt: The newest receipt (RFC-0039); empty if there is none.
        receive_max: The most that the receiver accepts in total; None if it did not say.
    """

    def __init__(self, plugin: LedgerPlugin, credentials: Credentials, expiry: float) -> None:
        self._plugin = plugin
        self._credentials = credentials
        self._keys = credentials.keys
        self._expiry = expiry
        self._destination = credentials.destination_account
        self._greeting: tuple[stream.Frame, ...] = _GREETING
        self.asset: Asset | None = None
        self.is_greeted: bool = False
        self.closed: str | None = None
        self.receipt: bytes = b""
        self.receive_max: int | None = None
        self._receipt_total = -1
        self._stamped = -math.inf
        self._stamped_for = 0.0
        self._expires_at: datetime

    def greet_otherwise(self) -> bool:
        """Use the greeting for receivers that refuse an empty address; returns False if it is in use already."""
        if self._greeting is _OTHER_GREETING:
            return False
        server, _, token = self._credentials.destination_account.rpartition(".")
        self._destination = f"{server}.{_DUMMY_SEGMENT}.{token}"
        self._greeting = _OTHER_GREETING
        return ilp.is_address(self._destination)

    async def send(
        self,
        amount: int,
        minimum: int,
        frames: tuple[stream.Frame, ...] = (),
        *,
        fulfillable: bool = True,
        expiry: float | None = None,
        flight: Flight | None = None,
    ) -> Answer:
        """Send a packet and return what became of it.

        Args:
            amount: The packet's amount.
            minimum: The least that has to arrive.
            frames: The frames, besides those with which a connection begins.
            fulfillable: Whether the receiver can fulfill it; if not, no money moves.
            expiry: Seconds until it expires; None for those of the payment.
            flight: Is told when the packet expires, if the caller then cancels this call. If None, a packet without an
                answer is `Kind.UNANSWERED` by itself.

        Raises:
            StreamKeyExhaustedError: The key has encrypted as many packets as it may.
            DecodeError: The answer is not one to a Prepare.
            LedgerPluginError: The plugin cannot be used.

        Cancellation: Safe; the packet may have been sent.
        """
        sequence = self._credentials.next_sequence()
        if not self.is_greeted:
            frames = self._greeting + frames
        plaintext = stream.encode(stream.Packet(sequence, stream.PREPARE, minimum, frames))
        data = self._keys.seal(plaintext)
        fulfillment = self._keys.fulfillment(data) if fulfillable else b""
        condition = hashlib.sha256(fulfillment).digest() if fulfillable else os.urandom(32)
        seconds = self._expiry if expiry is None else expiry
        now = trio.current_time()
        deadline = now + seconds
        if not 0 <= now - self._stamped < _STAMP_SECONDS or seconds != self._stamped_for:
            self._expires_at = ilp.make_prepare(0, self._destination, condition, seconds).expires_at
            self._stamped, self._stamped_for = now, seconds
        prepare = ilp.Prepare(amount, self._expires_at, condition, self._destination, data)
        answer: bytes | None = None
        reason = EXPIRED
        try:
            if flight is not None:
                flight.deadline, flight.reason = deadline, reason
                answer = await self._plugin.send_data(ilp.encode(prepare))
            else:
                with trio.move_on_at(deadline):
                    answer = await self._plugin.send_data(ilp.encode(prepare))
        except NotConnectedError as error:
            return Answer(Kind.REJECTED, _NO_LINK, reason=str(error))
        except RemoteError as error:
            return Answer(Kind.REJECTED, error.code, reason=str(error))
        except (ConnectionLostError, ResponseTimeoutError) as error:
            # The packet may still be fulfilled: its money is free again when it has expired.
            reason = str(error)
            if flight is not None:
                flight.reason = reason
                await trio.sleep_forever()
            await trio.sleep_until(deadline)
        if answer is None:
            return Answer(Kind.UNANSWERED, reason=reason)
        return self._judge(ilp.decode(answer), sequence, fulfillment)

    def _judge(self, packet: ilp.Packet, sequence: int, fulfillment: bytes) -> Answer:
        match packet:
            case ilp.Fulfill():
                # It is known: no need for another digest. A packet that cannot be fulfilled has none.
                if not hmac.compare_digest(packet.fulfillment, fulfillment):
                    raise DecodeError("the peer sent a Fulfill without the condition's preimage")
                return Answer(Kind.FULFILLED, reply=self._read(packet.data, sequence, _IN_FULFILL))
            case ilp.Reject():
                reply = self._read(packet.data, sequence, _IN_REJECT)
                said = f"{packet.code} from {packet.triggered_by or 'an unknown node'}: {packet.message[:_MESSAGE]}"
                return Answer(Kind.REJECTED, packet.code, reply, packet.data, escape(said.removesuffix(": ")))
        raise DecodeError("the peer sent a Prepare back; it only echoes")

    def _read(self, data: bytes, sequence: int, types: frozenset[int]) -> stream.Packet | None:
        """Return the receiver's packet in an answer, None if there is none, and remember what it says."""
        if not data:
            return None
        try:
            packet = stream.decode(self._keys.open(data))
        except DecodeError:
            return None
        if packet.sequence != sequence or packet.packet_type not in types:
            return None
        self.is_greeted = True
        for frame in packet.frames:
            self._note(frame)
        return packet

    def _note(self, frame: stream.Frame) -> None:
        match frame:
            case stream.ConnectionAssetDetails(code, scale):
                self.asset = Asset(code, scale)
            case stream.StreamMaxMoney(stream_id=1, receive_max=receive_max):
                self.receive_max = max(receive_max, self.receive_max or 0)
            case stream.StreamReceipt(1, receipt):
                total = int.from_bytes(receipt[18:26])
                if total > self._receipt_total:
                    self._receipt_total, self.receipt = total, receipt
            case stream.ConnectionClose(code, text) | stream.StreamClose(1, code, text):
                name = f"code {code}"
                if code in stream.ErrorCode.__members__.values():
                    name = stream.ErrorCode(code).name.lower().replace("_", " ")
                self.closed = escape(
                    f"the receiver closed the connection ({name}){': ' if text else ''}{text[:_MESSAGE]}"
                )

    async def close(self, seconds: float) -> None:
        """Tell the receiver that the payment has ended; whether that arrives does not matter.

        Args:
            seconds: How long to wait for the answer.

        Cancellation: Safe.
        """
        if not self.is_greeted or self.closed is not None:
            return
        frames = (stream.ConnectionClose(stream.ErrorCode.NO_ERROR),)
        with trio.move_on_after(seconds):
            await self.send(0, 0, frames, fulfillable=False)
