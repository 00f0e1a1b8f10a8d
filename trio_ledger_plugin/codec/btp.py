"""BTP/2.0 packets to bytes and back (RFC-0023).

A frame is a type, a request id and a length-prefixed body; every body ends with the sub-protocol entries. Bytes
after the last known field, or after the packet, are ignored: RFC-0030 requires this for later extensions. Everything
else is strict: packets are written in one canonical form, and only that form is read, except for the time of an Error.

`encode` and `decode` handle every packet. `encode_ilp` and `decode_ilp` are fast paths: they build no objects and
handle only a request or response with one ILP packet, which is nearly all traffic. `encode_transfer` and
`encode_response` save the object of a packet that is only written.
"""

from __future__ import annotations

import re
import struct
from datetime import datetime, timedelta
from functools import lru_cache
from typing import ClassVar, Final

from attrs import field, frozen

from ..errors import DecodeError, InvalidFieldsError
from ..protocol_data import ProtocolData
from .oer import (
    BytesLike,
    as_bytes,
    ia5,
    length_prefix,
    octets,
    read_fixed,
    read_ia5,
    read_length,
    read_octets,
    read_time,
    read_uint,
    time_digits,
    uint,
)

__all__ = [
    "ERROR",
    "JSON",
    "MAX_ERROR_DATA",
    "MESSAGE",
    "OCTET_STREAM",
    "RESPONSE",
    "TEXT",
    "TRANSFER",
    "Error",
    "Message",
    "Packet",
    "ProtocolData",
    "Response",
    "Transfer",
    "decode",
    "decode_ilp",
    "encode",
    "encode_ilp",
    "encode_response",
    "encode_transfer",
]

RESPONSE: Final = 1
ERROR: Final = 2
MESSAGE: Final = 6
TRANSFER: Final = 7

OCTET_STREAM: Final = 0
TEXT: Final = 1
JSON: Final = 2

MAX_ERROR_DATA: Final = 8192
# The longest name of an entry whose encoded form is kept.
MAX_KEPT_NAME: Final = 32


def _as_tuple(entries: list[ProtocolData] | tuple[ProtocolData, ...]) -> tuple[ProtocolData, ...]:
    return tuple(entries) if isinstance(entries, list) else entries


@frozen
class Response:
    """The reply to a request that succeeded.

    Attributes:
        request_id: The id of that request, 0 to 2**32-1.
        protocol_data: The sub-protocol entries, in order; each name is unique.
    """

    type: ClassVar[int] = RESPONSE

    request_id: int
    protocol_data: tuple[ProtocolData, ...] = field(default=(), converter=_as_tuple)


@frozen
class Error:
    """The reply to a request that failed.

    Attributes:
        request_id: The id of that request, 0 to 2**32-1.
        code: The error's code, three ASCII characters, such as ``"F00"``.
        name: The error's name, ASCII text, such as ``"NotAcceptedError"``.
        triggered_at: When the error arose, an aware time; the packet has a resolution of one millisecond.
        data: More about the error, at most 8192 bytes, often JSON text.
        protocol_data: The sub-protocol entries, in order; each name is unique.
    """

    type: ClassVar[int] = ERROR

    request_id: int
    code: str
    name: str
    triggered_at: datetime
    data: bytes = b""
    protocol_data: tuple[ProtocolData, ...] = field(default=(), converter=_as_tuple)


@frozen
class Message:
    """A request that moves no money.

    Attributes:
        request_id: The id that the reply will have, 0 to 2**32-1.
        protocol_data: The sub-protocol entries, in order; each name is unique. The first one determines the kind of
            request.
    """

    type: ClassVar[int] = MESSAGE

    request_id: int
    protocol_data: tuple[ProtocolData, ...] = field(default=(), converter=_as_tuple)


@frozen
class Transfer:
    """A request that moves money.

    Attributes:
        request_id: The id that the reply will have, 0 to 2**32-1.
        amount: The amount in the ledger's smallest unit, 0 to 2**64-1.
        protocol_data: The sub-protocol entries, in order; each name is unique.
    """

    type: ClassVar[int] = TRANSFER

    request_id: int
    amount: int
    protocol_data: tuple[ProtocolData, ...] = field(default=(), converter=_as_tuple)


Packet = Response | Error | Message | Transfer

_TYPES = frozenset({RESPONSE, ERROR, MESSAGE, TRANSFER})
_ILP_TYPES = frozenset({RESPONSE, MESSAGE})

_HEADER = struct.Struct(">BI")
_NO_ENTRIES: Final = "protocol_data must be a tuple of ProtocolData"

# No known implementation writes fewer than three fraction digits ending in zero; JavaScript peers always write three.
_TIME = re.compile(rb"(\d{14})(?:\.(\d{3}|\d?[1-9]))?Z")


def encode(packet: Packet) -> bytes:
    """Return the frame of a packet, in canonical form (RFC-0023, RFC-0030).

    An Error's time is written in milliseconds, with three fraction digits of which the last is not zero: canonical OER
    forbids trailing zeros, and JavaScript peers read only three digits. If the last digit is zero, a millisecond is
    added.

    Raises:
        InvalidFieldsError: A field has the wrong type or is out of range, or two entries have the same name.
        TypeError: ``packet`` is not a BTP packet.
    """
    match packet:
        case Response() | Message():
            fields = b""
        case Transfer():
            return encode_transfer(packet.request_id, packet.amount, packet.protocol_data)
        case Error():
            fields = _encode_error_fields(packet)
        case _:
            raise TypeError(f"a BTP packet is a Response, Error, Message or Transfer, not {type(packet).__name__}")
    return _encode(packet.type, packet.request_id, fields, packet.protocol_data)


def encode_transfer(request_id: int, amount: int, entries: tuple[ProtocolData, ...]) -> bytes:
    """Return the frame of a Transfer with these fields, without building one.

    Raises:
        InvalidFieldsError: A field has the wrong type or is out of range, or two entries have the same name.
    """
    return _encode(TRANSFER, request_id, uint(amount, 8, "amount"), entries)


def encode_response(request_id: int, *entries: ProtocolData) -> bytes:
    """Return the frame of a Response with these fields, without building one.

    Raises:
        InvalidFieldsError: A field has the wrong type or is out of range, or two entries have the same name.
    """
    return _encode(RESPONSE, request_id, b"", entries)


def _encode(packet_type: int, request_id: int, fields: bytes, entries: tuple[ProtocolData, ...]) -> bytes:
    body = fields + _encode_entries(entries)
    return packet_type.to_bytes() + uint(request_id, 4, "request_id") + octets(body, "the packet")


def decode(data: BytesLike, *, max_entries: int | None = None) -> Packet:
    """Return the packet in a frame (RFC-0023).

    An Error's time may have zero to three fraction digits. A leap second is read as the second after it, the nearest
    time that a ``datetime`` can represent.

    Args:
        data: The frame. Bytes after the packet are ignored.
        max_entries: The greatest number of sub-protocol entries to accept; if None, only the frame's size limits it.

    Raises:
        DecodeError: The frame is not a valid packet. If it is readable, but two entries have the same name or there are
            more than ``max_entries``, ``packet_type`` and ``request_id`` are set. If it is unreadable, both are None.
    """
    frame = as_bytes(data)
    packet_type = frame[0] if frame else read_uint(frame, 0, 1)[0]
    if packet_type not in _TYPES:
        raise DecodeError(f"{packet_type} is not a packet type of BTP/2.0")
    request_id, offset = read_uint(frame, 1, 4)
    body, _ = read_octets(frame, offset)
    offset = 0
    if packet_type == ERROR:
        code, name, triggered_at, error_data, offset = _decode_error_fields(body)
    elif packet_type == TRANSFER:
        amount, offset = read_uint(body, 0, 8)

    count, offset = _decode_count(body, offset)
    if max_entries is not None and count > max_entries:
        raise DecodeError(
            f"{count} sub-protocol entries: at most {max_entries} are accepted",
            packet_type=packet_type,
            request_id=request_id,
        )
    entries = _decode_entries(body, offset, count)
    if count > 1 and len({entry.protocol_name for entry in entries}) < count:
        raise DecodeError("two sub-protocol entries have the same name", packet_type=packet_type, request_id=request_id)

    if packet_type == MESSAGE:
        return Message(request_id, entries)
    if packet_type == RESPONSE:
        return Response(request_id, entries)
    if packet_type == TRANSFER:
        return Transfer(request_id, amount, entries)
    return Error(request_id, code, name, triggered_at, error_data, entries)


def _encode_error_fields(packet: Error) -> bytes:
    """Return the fields of an Error before its entries."""
    code = ia5(packet.code, "code")
    if len(code) != 3:
        raise InvalidFieldsError(f"code has {len(code)} characters: it must have 3, such as F00")
    digits = time_digits(packet.triggered_at, "triggered_at")
    last = "1" if digits[-1] == "0" else digits[-1]
    return b"".join(
        (
            code,
            octets(ia5(packet.name, "name"), "name"),
            octets(f"{digits[:14]}.{digits[14:16]}{last}Z".encode(), "triggered_at"),
            octets(packet.data, "data", MAX_ERROR_DATA),
        )
    )


def _decode_error_fields(body: bytes) -> tuple[str, str, datetime, bytes, int]:
    """Return code, name, time and data of an Error, and the offset after them."""
    code, offset = read_fixed(body, 0, 3)
    name, offset = read_octets(body, offset)
    time, offset = read_octets(body, offset)
    data, offset = read_octets(body, offset)
    if len(data) > MAX_ERROR_DATA:
        raise DecodeError(f"an error's data has {len(data)} bytes: at most {MAX_ERROR_DATA} are allowed")
    return read_ia5(code, "an error's code"), read_ia5(name, "an error's name"), _decode_time(time), data, offset


def _decode_time(text: bytes) -> datetime:
    """Return the time of a GeneralizedTime (RFC-0030, variable-length timestamps)."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise DecodeError(f"{text[:40]!r} is not a time")
    seconds, fraction = found[1], found[2] or b""
    # A leap second occurs only at the end of a day, and datetime cannot represent it.
    leap = seconds.endswith(b"235960")
    if leap:
        seconds = seconds[:12] + b"59"
    try:
        return read_time(seconds + fraction.ljust(3, b"0")) + timedelta(seconds=leap)
    except OverflowError:
        raise DecodeError(f"{text!r} is after the year 9999") from None


def _encode_entries(entries: tuple[ProtocolData, ...]) -> bytes:
    """Return the count and the entries."""
    if not isinstance(entries, tuple):
        raise InvalidFieldsError(_NO_ENTRIES)
    count = len(entries)
    parts = [bytes((1, count)) if count < 0x100 else octets(count.to_bytes(4).lstrip(b"\0"), "protocol_data")]
    for entry in entries:
        if not isinstance(entry, ProtocolData):
            raise InvalidFieldsError(_NO_ENTRIES)
        name, content_type, data = entry.protocol_name, entry.content_type, entry.data
        plain = name.__class__ is str and content_type.__class__ is int and len(name) <= MAX_KEPT_NAME
        parts.append((_kept_entry_head if plain else _entry_head)(name, content_type))
        if data.__class__ is bytes and len(data) < 0x80:
            parts.append(len(data).to_bytes())
            parts.append(data)
        else:
            parts.append(octets(data, f"data of {name!r}"))
    if count > 1 and len({entry.protocol_name for entry in entries}) < count:
        raise InvalidFieldsError("protocol_data has two entries with the same name: each name must be unique")
    return b"".join(parts)


def _entry_head(name: str, content_type: int) -> bytes:
    """Return the bytes of an entry before its data."""
    return octets(ia5(name, "protocol_name"), "protocol_name") + uint(content_type, 1, "content_type")


# A program uses few names, again and again.
_kept_entry_head = lru_cache(maxsize=64)(_entry_head)


def _decode_count(body: bytes, offset: int) -> tuple[int, int]:
    """Return the number of entries, checked against the size of the remaining body, and the offset after it."""
    digits, offset = read_octets(body, offset)
    if not 1 <= len(digits) <= 8 or (digits[0] == 0 and len(digits) > 1):
        raise DecodeError("the number of entries is not in its shortest form")
    count = int.from_bytes(digits)
    # An entry takes at least three bytes: two lengths and the content type.
    if count > (len(body) - offset) // 3:
        raise DecodeError(f"{count} entries are announced, but only {len(body) - offset} bytes follow")
    return count, offset


def _decode_entries(body: bytes, offset: int, count: int) -> tuple[ProtocolData, ...]:
    """Return ``count`` entries."""
    entries = []
    for _ in range(count):
        name, offset = read_octets(body, offset)
        content_type = body[offset] if offset < len(body) else read_uint(body, offset, 1)[0]
        data, offset = read_octets(body, offset + 1)
        decode_name = _kept_name if len(name) <= MAX_KEPT_NAME else _decode_name
        entries.append(ProtocolData(decode_name(name), content_type, data))
    return tuple(entries)


def _decode_name(name: bytes) -> str:
    return read_ia5(name, "a sub-protocol's name")


_kept_name = lru_cache(maxsize=64)(_decode_name)


# The fast path. One ILP entry in a Message or Response begins with these bytes: count 1, name "ilp", content type 0.
_ILP = b"\x01\x01\x03ilp\x00"
_ILP_2 = _ILP + b"\x82"


def _ilp_body_head(size: int) -> bytes:
    """Return the bytes between the header and the data of an ``ilp`` entry of ``size`` bytes."""
    head = _ILP + length_prefix(size)
    return length_prefix(len(head) + size) + head


_SHORT_HEADS = tuple(_ilp_body_head(size) for size in range(256))
# From 256 bytes up to this size, both lengths take two bytes after 0x82.
_LONG_MOST = 0xFFFF - len(_ILP_2) - 2
_LONG_HEAD = struct.Struct(">BIBH8sH")

# The layout of a frame, by the first byte of its body's length: an unpacker of (type, request id, length of the body,
# first bytes of the entry, size of the data), the expected first bytes of the entry, the smallest size with a canonical
# length, and the offsets of the body and the data. In each layout the two lengths have the same form: short, one byte
# or two bytes. The few sizes in between and the largest ones are left to `_decode_rare_ilp`.
_LAYOUTS = {
    **dict.fromkeys(range(0x80), (struct.Struct(">BIB7sB").unpack_from, _ILP, 0, 6, 14)),
    0x81: (struct.Struct(">BIxB8sB").unpack_from, _ILP + b"\x81", 0x80, 7, 16),
    0x82: (struct.Struct(">BIxH8sH").unpack_from, _ILP_2, 0x100, 8, 18),
}


def encode_ilp(packet_type: int, request_id: int, data: bytes) -> bytes:
    """Return the frame of a Message or Response with one entry, ``ilp``: the same bytes as from `encode`, but faster.

    Args:
        packet_type: `MESSAGE` or `RESPONSE`.
        request_id: The request's id, 0 to 2**32-1.
        data: The ILP packet, of any size.

    Raises:
        InvalidFieldsError: The type is neither of the two, or the id is out of range.
    """
    if packet_type not in _ILP_TYPES:
        raise InvalidFieldsError(f"packet_type must be {RESPONSE} or {MESSAGE}, not {packet_type!r}")
    size = len(data)
    try:
        if size < 256:
            return _HEADER.pack(packet_type, request_id) + _SHORT_HEADS[size] + data
        if size <= _LONG_MOST:
            return _LONG_HEAD.pack(packet_type, request_id, 0x82, size + 10, _ILP_2, size) + data
        return _HEADER.pack(packet_type, request_id) + _ilp_body_head(size) + data
    except struct.error:
        raise InvalidFieldsError(f"request_id must be an integer from 0 to {2**32 - 1}") from None


def decode_ilp(frame: bytes) -> tuple[int, int, bytes] | None:
    """Return type, request id and data of a frame as `encode_ilp` writes it; bytes after the entry are ignored.

    Never raises.

    Args:
        frame: The frame, as ``bytes``.

    Returns:
        None if the frame is anything else, legal or not (use `decode` then), or is not ``bytes``.
    """
    if type(frame) is not bytes:
        return None
    try:
        unpack, expected, least, start, head = _LAYOUTS[frame[5]]
        packet_type, request_id, length, entry, size = unpack(frame)
    except (LookupError, struct.error):
        return _decode_rare_ilp(frame)
    if entry == expected and least <= size <= start + length - head <= len(frame) - head and packet_type in _ILP_TYPES:
        return packet_type, request_id, frame[head : head + size]
    return _decode_rare_ilp(frame)


def _decode_rare_ilp(frame: bytes) -> tuple[int, int, bytes] | None:
    """Do the same as `decode_ilp`, for every size."""
    try:
        packet_type, request_id = _HEADER.unpack_from(frame)
        length, start = read_length(frame, 5)
        if packet_type not in _ILP_TYPES or not frame.startswith(_ILP, start):
            return None
        data, end = read_octets(frame, start + len(_ILP))
    except (struct.error, DecodeError):
        return None
    return (packet_type, request_id, data) if end <= start + length else None
