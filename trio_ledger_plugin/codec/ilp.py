"""ILPv4 packets to bytes and back (RFC-0027), addresses (RFC-0015) and error codes.

A packet is a type and a length-prefixed body. Bytes after the last known field, or after the packet, are ignored, as
RFC-0030 requires. Everything else is strict: packets are written in one canonical form, and only that form is read.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import ClassVar, Final

from attrs import field, frozen

from ..errors import (
    ConnectionLostError,
    DecodeError,
    InsufficientBalanceError,
    InvalidFieldsError,
    InvalidFulfillmentError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    RemoteError,
    ResponseTimeoutError,
    UnreachableError,
)
from ..secret import shown_size
from .lazy_text import LazyText, with_text
from .oer import (
    BytesLike,
    as_bytes,
    count_utf8,
    ia5,
    octets,
    read_fixed,
    read_ia5,
    read_octets,
    read_time,
    time_digits,
    uint,
    utf8,
)

__all__ = [
    "FULFILL",
    "MAX_ADDRESS",
    "MAX_DATA",
    "MAX_MESSAGE",
    "PREPARE",
    "REJECT",
    "ErrorCode",
    "Fulfill",
    "Packet",
    "Prepare",
    "Reject",
    "decode",
    "encode",
    "fulfills",
    "is_address",
    "make_prepare",
    "reject_from",
]

PREPARE: Final = 12
FULFILL: Final = 13
REJECT: Final = 14
_TYPES: Final = frozenset((PREPARE, FULFILL, REJECT))
# What a Prepare begins with: amount, time of expiry, condition.
_PREPARE_HEAD: Final = struct.Struct(">Q17s32s")

MAX_ADDRESS: Final = 1023
MAX_DATA: Final = 32_767
MAX_MESSAGE: Final = 8191

_NO_ADDRESS: Final = "destination must be an ILP address, such as example.alice"
# Packet after packet goes to the same address; of so many addresses the two forms are kept.
_ADDRESSES: Final = 128
_ADDRESS = re.compile(r"(?:g|private|example|peer|self|test[1-3]?|local)(?:\.[A-Za-z0-9_~-]+)+")


class ErrorCode(StrEnum):
    """The codes of a Reject, by their names in RFC-0027. F is final, T temporary, R relative.

    A peer may send others: a Reject accepts any three ASCII characters.
    """

    BAD_REQUEST = "F00"
    INVALID_PACKET = "F01"
    UNREACHABLE = "F02"
    INVALID_AMOUNT = "F03"
    INSUFFICIENT_DESTINATION_AMOUNT = "F04"
    WRONG_CONDITION = "F05"
    UNEXPECTED_PAYMENT = "F06"
    CANNOT_RECEIVE = "F07"
    AMOUNT_TOO_LARGE = "F08"
    FINAL_APPLICATION_ERROR = "F99"
    INTERNAL_ERROR = "T00"
    PEER_UNREACHABLE = "T01"
    PEER_BUSY = "T02"
    CONNECTOR_BUSY = "T03"
    INSUFFICIENT_LIQUIDITY = "T04"
    RATE_LIMITED = "T05"
    TEMPORARY_APPLICATION_ERROR = "T99"
    TRANSFER_TIMED_OUT = "R00"
    INSUFFICIENT_SOURCE_AMOUNT = "R01"
    INSUFFICIENT_TIMEOUT = "R02"
    RELATIVE_APPLICATION_ERROR = "R99"


@frozen
class Prepare:
    """A conditional payment: the receiver gets the money if it sends the fulfillment before the packet expires.

    Attributes:
        amount: The amount in the smallest unit of the account over which the packet is sent, 0 to 2**64-1.
        expires_at: When the packet expires, an aware time; cut off to whole milliseconds when it is written.
        execution_condition: The SHA-256 digest of the fulfillment, 32 bytes.
        destination: The receiver's ILP address.
        data: What the receiver's protocol needs, at most 32,767 bytes; ``repr`` shows only their number.
    """

    type: ClassVar[int] = PREPARE

    amount: int
    expires_at: datetime
    execution_condition: bytes
    destination: str
    data: bytes = field(default=b"", repr=shown_size)


@frozen
class Fulfill:
    """The receiver's proof that it accepted the money.

    Attributes:
        fulfillment: The condition's preimage, 32 bytes; ``repr`` does not show it, since it is worth the money.
        data: What the sender's protocol needs, at most 32,767 bytes; ``repr`` shows only their number.
    """

    type: ClassVar[int] = FULFILL

    fulfillment: bytes = field(repr=shown_size)
    data: bytes = field(default=b"", repr=shown_size)


@frozen
class Reject(LazyText):
    """The refusal of a Prepare: no money moved.

    Attributes:
        code: Three ASCII characters, usually an `ErrorCode`.
        triggered_by: The ILP address of the node that refused, or an empty string if it is not known.
        message: Text for debugging, at most 8191 characters. In a packet from the peer it may contain control
            characters: escape them before you log it.
        data: Details that depend on the code, at most 32,767 bytes; ``repr`` shows only their number.
    """

    type: ClassVar[int] = REJECT

    code: str
    triggered_by: str
    message: str = ""
    data: bytes = field(default=b"", repr=shown_size)


Packet = Prepare | Fulfill | Reject


def encode(packet: Packet) -> bytes:
    """Return the bytes of a packet, in canonical form (RFC-0027, RFC-0030).

    Raises:
        InvalidFieldsError: A field has the wrong type or is out of range.
        TypeError: ``packet`` is not an ILP packet.
    """
    match packet:
        case Prepare():
            if not isinstance(packet.destination, str):
                raise InvalidFieldsError(_NO_ADDRESS)
            destination = _encode_destination(packet.destination)
            body = (
                uint(packet.amount, 8, "amount")
                + time_digits(packet.expires_at, "expires_at", rounded=True).encode()
                + _digest(packet.execution_condition, "execution_condition")
                + destination
            )
        case Fulfill():
            body = _digest(packet.fulfillment, "fulfillment")
        case Reject():
            body = _encode_reject_fields(packet)
        case _:
            raise TypeError(f"an ILP packet is a Prepare, Fulfill or Reject, not {type(packet).__name__}")
    return packet.type.to_bytes() + octets(body + octets(packet.data, "data", MAX_DATA), "packet")


def decode(data: BytesLike) -> Packet:
    """Return the packet at the beginning of the data (RFC-0027).

    Args:
        data: The packet. Bytes after it are ignored.

    Raises:
        DecodeError: The data is not a packet, or a field of it is not allowed.
    """
    octet_string = as_bytes(data)
    if not octet_string:
        raise DecodeError("an ILP packet has at least one byte, its type")
    packet_type = octet_string[0]
    if packet_type not in _TYPES:
        raise DecodeError(f"{packet_type} is not a packet type of ILPv4")
    body, _ = read_octets(octet_string, 1)
    if packet_type == PREPARE:
        return _decode_prepare(body)
    if packet_type == REJECT:
        return _decode_reject(body)
    fulfillment, offset = read_fixed(body, 0, 32)
    return Fulfill(fulfillment, _decode_data(body, offset))


def is_address(text: str) -> bool:
    """Whether text is an ILP address (RFC-0015): a scheme and one or more segments, at most 1023 characters."""
    return isinstance(text, str) and len(text) <= MAX_ADDRESS and _ADDRESS.fullmatch(text) is not None


def make_prepare(
    amount: int,
    destination: str,
    condition: bytes,
    lifetime: float,
    data: bytes = b"",
    *,
    now: datetime | None = None,
) -> Prepare:
    """Return a Prepare that expires ``lifetime`` seconds from now.

    Args:
        amount: The amount in the account's smallest unit.
        destination: The receiver's ILP address.
        condition: The SHA-256 digest of the fulfillment.
        lifetime: Seconds until the Prepare expires, more than 0.
        data: What the receiver's protocol needs.
        now: The aware time to count from; if None, the system clock's time.

    Raises:
        InvalidFieldsError: The lifetime is not positive, or ends after the year 9999. Other fields are checked when
            the packet is encoded.
    """
    try:
        if lifetime > 0:
            expires_at = (now or datetime.now(UTC)) + timedelta(seconds=lifetime)
            # Cut off: a time rounded up would exceed the lifetime, and with it the limit of a node.
            expires_at = expires_at.replace(microsecond=expires_at.microsecond // 1000 * 1000)
            return Prepare(amount, expires_at, condition, destination, data)
    except OverflowError:
        pass
    raise InvalidFieldsError("lifetime must be a number of seconds, more than 0, that ends before the year 10000")


def fulfills(fulfillment: bytes, condition: bytes) -> bool:
    """Whether a fulfillment is the 32-byte preimage of a condition (RFC-0027). Takes the same time for any content."""
    return len(fulfillment) == 32 and hmac.compare_digest(hashlib.sha256(fulfillment).digest(), condition)


# The first matching class determines the code. Any other error, such as one of a handler, is an internal error.
_CODES: Final = (
    (DecodeError, ErrorCode.INVALID_PACKET),
    ((InvalidFieldsError, NotAcceptedError), ErrorCode.BAD_REQUEST),
    (InvalidFulfillmentError, ErrorCode.WRONG_CONDITION),
    (InsufficientBalanceError, ErrorCode.INSUFFICIENT_LIQUIDITY),
    (ResponseTimeoutError, ErrorCode.TRANSFER_TIMED_OUT),
    (
        (UnreachableError, NotConnectedError, ConnectionLostError, PluginClosedError, PluginFailedError, RemoteError),
        ErrorCode.PEER_UNREACHABLE,
    ),
)


def reject_from(error: BaseException, triggered_by: str) -> Reject:
    """Return the Reject that reports an error to the sender of a Prepare.

    The message is only the code's name: an exception's text may contain data that the sender must not see.

    Args:
        error: The exception. Errors of this package get a matching code, all others ``T00``, internal error.
        triggered_by: The ILP address of this node, or an empty string.
    """
    code = next((code for kinds, code in _CODES if isinstance(error, kinds)), ErrorCode.INTERNAL_ERROR)
    return Reject(code, triggered_by, code.name.lower().replace("_", " "))


def _encode_reject_fields(packet: Reject) -> bytes:
    """Return the fields of a Reject before its data."""
    code = ia5(packet.code, "code")
    if len(code) != 3:
        raise InvalidFieldsError(f"code has {len(code)} characters: it must have 3, such as F00")
    if packet.triggered_by != "" and not is_address(packet.triggered_by):
        raise InvalidFieldsError("triggered_by must be an ILP address or empty")
    message = utf8(packet.message, "message")
    if len(packet.message) > MAX_MESSAGE:
        raise InvalidFieldsError(f"message has {len(packet.message)} characters: at most {MAX_MESSAGE} are allowed")
    return code + octets(packet.triggered_by.encode(), "triggered_by") + octets(message, "message")


@lru_cache(maxsize=_ADDRESSES)
def _encode_destination(destination: str) -> bytes:
    if not is_address(destination):
        raise InvalidFieldsError(_NO_ADDRESS)
    return octets(destination.encode(), "destination")


@lru_cache(maxsize=_ADDRESSES)
def _decode_destination(address: bytes) -> str:
    destination = read_ia5(address, "the destination")
    if not is_address(destination):
        raise DecodeError(f"the destination {destination[:80]!r} is not an ILP address")
    return destination


def _decode_prepare(body: bytes) -> Prepare:
    """Return the Prepare of a body."""
    try:
        amount, expiry, condition = _PREPARE_HEAD.unpack_from(body)
    except struct.error:
        raise DecodeError(f"a Prepare has at least {_PREPARE_HEAD.size} bytes, not {len(body)}") from None
    address, offset = read_octets(body, _PREPARE_HEAD.size)
    destination = _decode_destination(address)
    return Prepare(amount, read_time(expiry), condition, destination, _decode_data(body, offset))


def _decode_reject(body: bytes) -> Reject:
    """Return the Reject of a body."""
    three, offset = read_fixed(body, 0, 3)
    address, offset = read_octets(body, offset)
    text, offset = read_octets(body, offset)
    code, triggered_by = read_ia5(three, "a Reject's code"), read_ia5(address, "a Reject's address")
    if triggered_by and not is_address(triggered_by):
        raise DecodeError(f"a Reject with code {code!r} comes from {triggered_by[:80]!r}, which is not an ILP address")
    characters = count_utf8(text, "a Reject's message")
    if characters > MAX_MESSAGE:
        raise DecodeError(f"a Reject's message has {characters} characters: at most {MAX_MESSAGE} are allowed")
    return with_text(Reject(code, triggered_by, data=_decode_data(body, offset)), "message", text)


def _decode_data(body: bytes, offset: int) -> bytes:
    """Return the data, the last field of every packet."""
    data, _ = read_octets(body, offset)
    if len(data) > MAX_DATA:
        raise DecodeError(f"the data has {len(data)} bytes: at most {MAX_DATA} are allowed")
    return data


def _digest(value: bytes, name: str) -> bytes:
    """Return a field of exactly 32 bytes."""
    if value.__class__ is bytes and len(value) == 32:
        return value
    if isinstance(value, BytesLike) and len(digest := bytes(value)) == 32:
        return digest
    raise InvalidFieldsError(f"{name} must be exactly 32 bytes")
