"""STREAM packets and their frames to bytes and back (RFC-0029), as they are before encryption.

A packet is the plaintext of an ILP packet's data. Frames of unknown types are kept. Bytes after a frame's known fields
and after the last frame are ignored, as RFC-0029 requires. Otherwise exactly one form is written and read.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from functools import lru_cache
from typing import ClassVar, Final, TypeAlias, get_args

from attrs import field, frozen

from ..errors import DecodeError, InvalidFieldsError
from ..secret import shown_size
from .ilp import FULFILL, PREPARE, REJECT, is_address
from .lazy_text import LazyText, with_text
from .oer import (
    BytesLike,
    as_bytes,
    count_utf8,
    octets,
    read_fixed,
    read_ia5,
    read_octets,
    read_uint,
    read_var_uint,
    uint,
    utf8,
    var_uint,
)

__all__ = [
    "FULFILL",
    "MAX_FRAMES",
    "MAX_PLAINTEXT",
    "PREPARE",
    "RECEIPT_SIZE",
    "REJECT",
    "ConnectionAssetDetails",
    "ConnectionClose",
    "ConnectionDataBlocked",
    "ConnectionMaxData",
    "ConnectionMaxStreamId",
    "ConnectionNewAddress",
    "ConnectionStreamIdBlocked",
    "ErrorCode",
    "Frame",
    "Packet",
    "StreamClose",
    "StreamData",
    "StreamDataBlocked",
    "StreamMaxData",
    "StreamMaxMoney",
    "StreamMoney",
    "StreamMoneyBlocked",
    "StreamReceipt",
    "UnknownFrame",
    "decode",
    "encode",
]

VERSION: Final = 1
# The first bytes of a packet of each type.
_HEADS: Final = {packet_type: bytes((VERSION, packet_type)) for packet_type in (PREPARE, FULFILL, REJECT)}
_SHORT: Final = 8
#: The data of an ILP packet has at most 32,767 bytes, of which encryption takes 28.
MAX_PLAINTEXT: Final = 32_739
#: A frame of two bytes becomes an object of a hundred, so their number is limited; peers send about ten.
MAX_FRAMES: Final = 256
#: The bytes of a receipt (RFC-0039).
RECEIPT_SIZE: Final = 58


class ErrorCode(IntEnum):
    """Why a connection or a stream is closed, by the names in RFC-0029. A peer may send other numbers."""

    NO_ERROR = 1
    INTERNAL_ERROR = 2
    ENDPOINT_BUSY = 3
    FLOW_CONTROL_ERROR = 4
    STREAM_ID_ERROR = 5
    STREAM_STATE_ERROR = 6
    FRAME_FORMAT_ERROR = 7
    PROTOCOL_VIOLATION = 8
    APPLICATION_ERROR = 9


class _Kind(Enum):
    """How a field of a frame is written."""

    NUMBER, GREATEST, BYTE, TEXT, ADDRESS, OCTETS, RECEIPT = range(7)


_NUMBER, _GREATEST, _BYTE, _TEXT = _Kind.NUMBER, _Kind.GREATEST, _Kind.BYTE, _Kind.TEXT
_Fields: TypeAlias = tuple[tuple[str, _Kind], ...]


@frozen
class ConnectionClose(LazyText):
    """The connection ends.

    Attributes:
        error_code: Usually an `ErrorCode`, 0 to 255.
        error_message: Text for debugging; from a peer it may contain control characters.
    """

    type: ClassVar[int] = 0x01
    fields: ClassVar[_Fields] = (("error_code", _BYTE), ("error_message", _TEXT))

    error_code: int
    error_message: str = ""


@frozen
class ConnectionNewAddress:
    """The address at which the sender of the frame can be reached; empty if it cannot be reached."""

    type: ClassVar[int] = 0x02
    fields: ClassVar[_Fields] = (("source_account", _Kind.ADDRESS),)

    source_account: str


@frozen
class ConnectionMaxData:
    """How many bytes of data the sender of the frame accepts on all streams together."""

    type: ClassVar[int] = 0x03
    fields: ClassVar[_Fields] = (("max_offset", _NUMBER),)

    max_offset: int


@frozen
class ConnectionDataBlocked:
    """How many bytes of data the sender of the frame would send on all streams together."""

    type: ClassVar[int] = 0x04
    fields: ClassVar[_Fields] = (("max_offset", _NUMBER),)

    max_offset: int


@frozen
class ConnectionMaxStreamId:
    """The greatest stream id that the sender of the frame accepts."""

    type: ClassVar[int] = 0x05
    fields: ClassVar[_Fields] = (("max_stream_id", _NUMBER),)

    max_stream_id: int


@frozen
class ConnectionStreamIdBlocked:
    """The stream id that the sender of the frame would open."""

    type: ClassVar[int] = 0x06
    fields: ClassVar[_Fields] = (("max_stream_id", _NUMBER),)

    max_stream_id: int


@frozen
class ConnectionAssetDetails(LazyText):
    """The asset of the sender of the frame.

    Attributes:
        source_asset_code: The asset's code, such as ``"EUR"``.
        source_asset_scale: How many decimal places its amounts have, 0 to 255.
    """

    type: ClassVar[int] = 0x07
    fields: ClassVar[_Fields] = (("source_asset_code", _TEXT), ("source_asset_scale", _BYTE))

    source_asset_code: str
    source_asset_scale: int


@frozen
class StreamClose(LazyText):
    """A stream ends; the fields are those of `ConnectionClose`, for one stream."""

    type: ClassVar[int] = 0x10
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("error_code", _BYTE), ("error_message", _TEXT))

    stream_id: int
    error_code: int
    error_message: str = ""


@frozen
class StreamMoney:
    """A stream's part of the packet's amount, in shares: its shares divided by those of all streams."""

    type: ClassVar[int] = 0x11
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("shares", _NUMBER))

    stream_id: int
    shares: int


@frozen
class StreamMaxMoney:
    """How much the sender of the frame accepts on a stream, and how much it has received."""

    type: ClassVar[int] = 0x12
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("receive_max", _GREATEST), ("total_received", _NUMBER))

    stream_id: int
    receive_max: int
    total_received: int


@frozen
class StreamMoneyBlocked:
    """How much the sender of the frame would send on a stream, and how much it has sent."""

    type: ClassVar[int] = 0x13
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("send_max", _GREATEST), ("total_sent", _NUMBER))

    stream_id: int
    send_max: int
    total_sent: int


@frozen
class StreamData:
    """Bytes of a stream, and where they belong; ``repr`` shows only their number."""

    type: ClassVar[int] = 0x14
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("offset", _NUMBER), ("data", _Kind.OCTETS))

    stream_id: int
    offset: int
    data: bytes = field(repr=shown_size)


@frozen
class StreamMaxData:
    """How many bytes of data the sender of the frame accepts on a stream."""

    type: ClassVar[int] = 0x15
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("max_offset", _NUMBER))

    stream_id: int
    max_offset: int


@frozen
class StreamDataBlocked:
    """How many bytes of data the sender of the frame would send on a stream."""

    type: ClassVar[int] = 0x16
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("max_offset", _NUMBER))

    stream_id: int
    max_offset: int


@frozen
class StreamReceipt:
    """The receiver's proof of what a stream has received (RFC-0039), 58 bytes; ``repr`` shows only their number."""

    type: ClassVar[int] = 0x17
    fields: ClassVar[_Fields] = (("stream_id", _NUMBER), ("receipt", _Kind.RECEIPT))

    stream_id: int
    receipt: bytes = field(repr=shown_size)


@frozen
class UnknownFrame:
    """A frame of another type, 0 to 255, and its bytes; ``repr`` shows only their number."""

    type: int
    content: bytes = field(repr=shown_size)


_KnownFrame: TypeAlias = (
    ConnectionClose
    | ConnectionNewAddress
    | ConnectionMaxData
    | ConnectionDataBlocked
    | ConnectionMaxStreamId
    | ConnectionStreamIdBlocked
    | ConnectionAssetDetails
    | StreamClose
    | StreamMoney
    | StreamMaxMoney
    | StreamMoneyBlocked
    | StreamData
    | StreamMaxData
    | StreamDataBlocked
    | StreamReceipt
)
Frame: TypeAlias = _KnownFrame | UnknownFrame

_CLASSES: Final[dict[int, type[_KnownFrame]]] = {each.type: each for each in get_args(_KnownFrame)}


@frozen
class Packet:
    """A STREAM packet.

    Attributes:
        sequence: The number of the Prepare among those of its sender, 0 to 2**64-1; a reply repeats it.
        packet_type: The type of the ILP packet that carries it: ``PREPARE``, ``FULFILL`` or ``REJECT``.
        amount: In a Prepare, the least amount that the receiver may accept; in a reply, the amount that arrived.
        frames: The frames, in order.
    """

    sequence: int
    packet_type: int
    amount: int
    frames: tuple[Frame, ...] = ()


def encode(packet: Packet) -> bytes:
    """Return the bytes of a packet, in canonical form (RFC-0029).

    Raises:
        InvalidFieldsError: A field has the wrong type or is out of range, or the packet is too long for an ILP packet.
        TypeError: ``packet`` is not a `Packet`.
    """
    if not isinstance(packet, Packet):
        raise TypeError(f"a STREAM packet is a Packet, not {type(packet).__name__}")
    head = _HEADS.get(packet.packet_type)
    if head is None:
        raise InvalidFieldsError("packet_type must be PREPARE (12), FULFILL (13) or REJECT (14)")
    frames = packet.frames
    if len(frames) > MAX_FRAMES:
        raise InvalidFieldsError(f"frames has {len(frames)} frames: at most {MAX_FRAMES} are allowed")
    encoded = head + var_uint(packet.sequence, "sequence") + var_uint(packet.amount, "amount")
    encoded += var_uint(len(frames), "frames")
    if frames:
        encoded += b"".join(
            [_encode_money(frame) if isinstance(frame, StreamMoney) else _encode_frame(frame) for frame in frames]
        )
    if len(encoded) > MAX_PLAINTEXT:
        raise InvalidFieldsError(f"the packet has {len(encoded)} bytes: at most {MAX_PLAINTEXT} are allowed")
    return encoded


def decode(data: BytesLike) -> Packet:
    """Return the packet at the beginning of the data (RFC-0029).

    Args:
        data: The packet, decrypted. Bytes after the last frame are ignored.

    Raises:
        DecodeError: The data is not a packet, or a field of it is not allowed.
    """
    octet_string = data if data.__class__ is bytes else as_bytes(data)
    if len(octet_string) > MAX_PLAINTEXT:
        raise DecodeError(f"the packet has {len(octet_string)} bytes: at most {MAX_PLAINTEXT} are allowed")
    version, packet_type = read_fixed(octet_string, 0, 2)[0]
    if version != VERSION:
        raise DecodeError(f"version {version} of STREAM is not known")
    if packet_type not in _HEADS:
        raise DecodeError(f"{packet_type} is not a packet type of ILPv4")
    sequence, offset = read_var_uint(octet_string, 2)
    amount, offset = read_var_uint(octet_string, offset)
    count, offset = read_var_uint(octet_string, offset)
    if count > MAX_FRAMES:
        raise DecodeError(f"the packet has {count} frames: at most {MAX_FRAMES} are allowed")
    frames: list[Frame] = []
    for _ in range(count):
        (frame_type,), offset = read_fixed(octet_string, offset, 1)
        content, offset = read_octets(octet_string, offset)
        decode_frame = _decode_short_frame if len(content) <= _SHORT else _decode_frame
        frames.append(decode_frame(frame_type, content))
    return Packet(sequence, packet_type, amount, tuple(frames))


def _encode_frame(frame: Frame) -> bytes:
    if isinstance(frame, UnknownFrame):
        content = frame.content
    elif _CLASSES.get(getattr(frame, "type", -1)) is type(frame):
        content = b"".join([_encode_field(getattr(frame, name), name, kind) for name, kind in frame.fields])
    else:
        raise InvalidFieldsError(f"frames must be frames of this module, not {type(frame).__name__}")
    return uint(frame.type, 1, "type") + octets(content, "content")


def _encode_field(value: object, name: str, kind: _Kind) -> bytes:
    if kind is _NUMBER or kind is _GREATEST:
        return var_uint(value, name)
    if kind is _BYTE:
        return uint(value, 1, name)
    if kind is _TEXT:
        return octets(utf8(value, name), name)  # type: ignore[arg-type]  # utf8() checks it
    if kind is _Kind.ADDRESS:
        if value != "" and not is_address(value):  # type: ignore[arg-type]  # is_address() checks it
            raise InvalidFieldsError(f"{name} must be an ILP address or empty")
        return octets(str(value).encode(), name)
    encoded = octets(value, name)  # type: ignore[arg-type]  # octets() checks it
    if kind is _Kind.RECEIPT and len(encoded) != RECEIPT_SIZE + 1:
        raise InvalidFieldsError(f"{name} must have {RECEIPT_SIZE} bytes")
    return encoded


def _decode_frame(frame_type: int, content: bytes) -> Frame:
    known = _CLASSES.get(frame_type)
    if known is None:
        return UnknownFrame(frame_type, content)
    values: list[int | str | bytes] = []
    text = b""
    offset = 0
    for name, kind in known.fields:
        value: int | str | bytes
        if kind is _NUMBER or kind is _GREATEST:
            value, offset = read_var_uint(content, offset, saturate=kind is _GREATEST)
        elif kind is _BYTE:
            value, offset = read_uint(content, offset, 1)
        else:
            read, offset = read_octets(content, offset)
            if kind is _TEXT:
                count_utf8(read, name)
                text, value = read, ""
            else:
                value = _check_octets(read, name, kind)
        values.append(value)
    frame = known(*values)  # type: ignore[arg-type]  # one value for each field, of its kind
    if text and isinstance(frame, ConnectionClose | ConnectionAssetDetails | StreamClose):
        return with_text(frame, next(name for name, kind in known.fields if kind is _TEXT), text)
    return frame


# Most frames of a payment are the same few bytes in each packet. Frames are values, so packets can share them.
_decode_short_frame = lru_cache(maxsize=256)(_decode_frame)


@lru_cache(maxsize=16)
def _encode_money(frame: StreamMoney) -> bytes:
    return _encode_frame(frame)


def _check_octets(read: bytes, name: str, kind: _Kind) -> str | bytes:
    if kind is _Kind.RECEIPT and len(read) != RECEIPT_SIZE:
        raise DecodeError(f"{name} has {len(read)} bytes, not {RECEIPT_SIZE}")
    if kind is not _Kind.ADDRESS:
        return read
    address = read_ia5(read, name)
    if address and not is_address(address):
        raise DecodeError(f"{name} is {address[:80]!r}, which is not an ILP address")
    return address
