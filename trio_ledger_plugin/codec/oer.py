"""The parts of Canonical OER that Interledger uses (RFC-0030), as plain functions over bytes and an offset.

Invariant: a length is used only after a check that so many bytes follow, so an announced size allocates no memory.
Readers take ``(data, offset)``, return the value and the offset after it, and raise only `DecodeError`. Writers return
bytes and raise `InvalidFieldsError`, which names the field, what is wrong and what is expected.
"""

from __future__ import annotations

import codecs
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from ..errors import DecodeError, InvalidFieldsError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_UINT64",
    "PIECE",
    "BytesLike",
    "as_bytes",
    "count_utf8",
    "ia5",
    "length_prefix",
    "octets",
    "read_fixed",
    "read_ia5",
    "read_length",
    "read_octets",
    "read_time",
    "read_uint",
    "read_utf8",
    "read_var_uint",
    "time_digits",
    "uint",
    "utf8",
    "var_uint",
    "whole_milliseconds",
]

BytesLike = bytes | bytearray | memoryview

MAX_UINT64 = 2**64 - 1

# Text is decoded in pieces of this many bytes.
PIECE = 256

_UTF8_DECODER = codecs.getincrementaldecoder("utf-8")


def as_bytes(data: BytesLike) -> bytes:
    """Return a decoder's input as ``bytes``; an object that is ``bytes`` already is not copied.

    Raises:
        DecodeError: It is not bytes-like.
    """
    if data.__class__ is bytes:
        return data
    if isinstance(data, BytesLike):
        return bytes(data)
    raise DecodeError(f"a packet is bytes, not {type(data).__name__}")


def read_length(data: bytes, offset: int) -> tuple[int, int]:
    """Read a length determinant in its only canonical form, and check that so many bytes follow it.

    Returns:
        The length in bytes, and the offset after the determinant.

    Raises:
        DecodeError: The length is cut off, not canonical, or greater than the rest of the data.
    """
    if offset >= len(data):
        raise DecodeError("the data ends before a length")
    length = data[offset]
    offset += 1
    if length >= 0x80:
        width = length & 0x7F
        if not 1 <= width <= 8:
            raise DecodeError(f"a length takes 1 to 8 bytes, not {width}")
        digits, offset = read_fixed(data, offset, width)
        length = int.from_bytes(digits)
        if digits[0] == 0 or length < 0x80:
            raise DecodeError(f"the length {length} is not in its shortest form")
    if length > len(data) - offset:
        raise DecodeError(f"a length announces {length} bytes, but {len(data) - offset} follow")
    return length, offset


def read_octets(data: bytes, offset: int) -> tuple[bytes, int]:
    """Read a variable-length octet string: a length determinant and so many bytes.

    Raises:
        DecodeError: As `read_length`.
    """
    # Lengths of up to two bytes, which nearly all are, are read here, without further calls.
    most = len(data)
    if offset < most:
        first, start = data[offset], offset + 1
        if first < 0x80:
            end = start + first
            if end <= most:
                return data[start:end], end
        elif first <= 0x82:
            digits = data[start : start + first - 0x80]
            size, start = int.from_bytes(digits), start + len(digits)
            end = start + size
            if size >= (0x80 if first == 0x81 else 0x100) and end <= most:
                return data[start:end], end
    length, offset = read_length(data, offset)
    end = offset + length
    return data[offset:end], end


def read_fixed(data: bytes, offset: int, size: int) -> tuple[bytes, int]:
    """Read an octet string of exactly ``size`` bytes.

    Raises:
        DecodeError: Fewer bytes are left.
    """
    end = offset + size
    if end > len(data):
        raise DecodeError(f"a field takes {size} bytes, but {len(data) - offset} are left")
    return data[offset:end], end


def read_uint(data: bytes, offset: int, size: int) -> tuple[int, int]:
    """Read a big-endian unsigned integer of exactly ``size`` bytes.

    Raises:
        DecodeError: Fewer bytes are left.
    """
    digits, offset = read_fixed(data, offset, size)
    return int.from_bytes(digits), offset


def read_var_uint(data: bytes, offset: int, *, saturate: bool = False) -> tuple[int, int]:
    """Read a variable-length unsigned integer of at most 64 bits in its only canonical form; 0 takes one byte.

    Args:
        data: Where to read.
        offset: The offset of its length.
        saturate: Whether a greater integer is read as 2**64-1 instead of being refused.

    Raises:
        DecodeError: It is cut off, empty, has leading zeros or is too great.
    """
    start = offset + 1
    if start < len(data):
        size = data[offset]
        if size == 1:
            return data[start], start + 1
        end = start + size
        if 1 < size <= 8 and data[start] and end <= len(data):
            return int.from_bytes(data[start:end]), end
    digits, offset = read_octets(data, offset)
    if not digits:
        raise DecodeError("an integer has no bytes")
    if digits[0] == 0 and len(digits) > 1:
        raise DecodeError("an integer has leading zeros")
    if len(digits) > 8:
        if not saturate:
            raise DecodeError(f"an integer takes at most 8 bytes, not {len(digits)}")
        return MAX_UINT64, offset
    return int.from_bytes(digits), offset


def read_ia5(value: bytes, field: str) -> str:
    """Return an IA5String's bytes as text. IA5 is 7-bit: control characters are legal, bytes above 0x7F are not.

    Raises:
        DecodeError: A byte is above 0x7F; the text names the field.
    """
    try:
        return value.decode("ascii")
    except UnicodeDecodeError:
        raise DecodeError(f"{field} contains a byte above 0x7F") from None


def read_utf8(value: bytes, field: str) -> str:
    """Return bytes as UTF-8 text.

    Raises:
        DecodeError: They are not UTF-8; the text names the field.
    """
    return "".join(_utf8_pieces(value, field))


def count_utf8(value: bytes, field: str) -> int:
    """Return how many characters of UTF-8 the bytes are; at most a small piece of the text is in memory at once.

    Raises:
        DecodeError: They are not UTF-8; the text names the field.
    """
    return sum(map(len, _utf8_pieces(value, field)))


def _utf8_pieces(value: bytes, field: str) -> Iterator[str]:
    """Yield the text piece by piece: with a wide character in a text, Python needs up to seven times its bytes."""
    decoder = _UTF8_DECODER()
    try:
        for at in range(0, len(value), PIECE):
            yield decoder.decode(value[at : at + PIECE])
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise DecodeError(f"{field} is not UTF-8 text") from None


@lru_cache(maxsize=64)
def read_time(digits: bytes) -> datetime:
    """Return the UTC time of 17 digits: year, month, day, hour, minute, second, milliseconds.

    Raises:
        DecodeError: The bytes are not 17 digits, or the time does not exist in the calendar.
    """
    if len(digits) == 17 and digits.isdigit():
        number = int(digits)
        days, clock = divmod(number, 10**9)
        year, month, day = days // 10_000, days // 100 % 100, days % 100
        hour, minute, second, milliseconds = clock // 10**7, clock // 10**5 % 100, clock // 1000 % 100, clock % 1000
        try:
            return datetime(year, month, day, hour, minute, second, milliseconds * 1000, tzinfo=UTC)
        except ValueError:
            pass
    raise DecodeError(f"{digits!r} is not a time")


def length_prefix(length: int) -> bytes:
    """Return the canonical length determinant of ``length`` bytes."""
    if length < 0x80:
        return length.to_bytes()
    width = (length.bit_length() + 7) // 8
    return (0x80 | width).to_bytes() + length.to_bytes(width)


def octets(value: BytesLike, field: str, most: int | None = None) -> bytes:
    """Return a variable-length octet string: the length of ``value``, then ``value``.

    Args:
        value: The bytes to write.
        field: The field's name, for the error.
        most: The greatest number of bytes allowed; None means any.

    Raises:
        InvalidFieldsError: ``value`` is not bytes-like, or longer than ``most``.
    """
    if value.__class__ is not bytes:
        if not isinstance(value, BytesLike):
            raise InvalidFieldsError(f"{field} is {type(value).__name__}: it must be bytes")
        value = bytes(value)
    length = len(value)
    if most is not None and length > most:
        raise InvalidFieldsError(f"{field} has {length} bytes: at most {most} are allowed")
    return (length.to_bytes() if length < 0x80 else length_prefix(length)) + value


def uint(value: object, size: int, field: str) -> bytes:
    """Return ``value`` as a big-endian unsigned integer of ``size`` bytes.

    Raises:
        InvalidFieldsError: ``value`` is not an integer or does not fit.
    """
    if isinstance(value, int):
        try:
            return value.to_bytes(size)
        except OverflowError:
            problem = "is negative" if value < 0 else "is too large"
    else:
        problem = f"is {type(value).__name__}"
    raise InvalidFieldsError(f"{field} {problem}: it must be an integer from 0 to {(1 << 8 * size) - 1}")


def var_uint(value: object, field: str) -> bytes:
    """Return ``value`` as a variable-length unsigned integer.

    Raises:
        InvalidFieldsError: ``value`` is not an integer from 0 to 2**64-1.
    """
    if isinstance(value, int) and 0 <= value <= MAX_UINT64:
        if value < 0x100:
            return b"\x01" + value.to_bytes()
        size = (value.bit_length() + 7) // 8
        return size.to_bytes() + value.to_bytes(size)
    return uint(value, 8, field)  # raises


def ia5(value: str, field: str) -> bytes:
    """Return the bytes of an IA5String, without a length.

    Raises:
        InvalidFieldsError: ``value`` is not text, or has a character outside ASCII.
    """
    if isinstance(value, str) and value.isascii():
        return value.encode()
    raise InvalidFieldsError(f"{field} must be text of ASCII characters only")


def utf8(value: str, field: str) -> bytes:
    """Return the bytes of a UTF8String, without a length.

    Raises:
        InvalidFieldsError: ``value`` is not text, or has a lone surrogate, which UTF-8 cannot encode.
    """
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            pass
    raise InvalidFieldsError(f"{field} must be text that UTF-8 can encode")


def time_digits(moment: datetime, field: str, *, rounded: bool = False) -> str:
    """Return an aware time in UTC as 17 digits, cut off or rounded to milliseconds.

    Raises:
        InvalidFieldsError: ``moment`` is not an aware ``datetime``, or is outside the years 1 to 9999 in UTC.
    """
    if isinstance(moment, datetime) and moment.utcoffset() is not None:
        try:
            return _digits_of(moment, rounded)
        except OverflowError:
            pass
    raise InvalidFieldsError(f"{field} must be an aware datetime, in the years 1 to 9999 of UTC")


@lru_cache(maxsize=64)
def _digits_of(moment: datetime, rounded: bool) -> str:
    # Packets that are sent together often expire together.
    moment = moment.astimezone(UTC)
    moment = whole_milliseconds(moment) if rounded else moment
    day = (moment.year * 100 + moment.month) * 100 + moment.day
    clock = (moment.hour * 100 + moment.minute) * 100 + moment.second
    return f"{(day * 10**6 + clock) * 1000 + moment.microsecond // 1000:017}"


def whole_milliseconds(moment: datetime) -> datetime:
    """Return a time rounded to whole milliseconds, as in a packet; the last of the year 9999 is cut off."""
    try:
        return moment + timedelta(microseconds=(moment.microsecond + 500) // 1000 * 1000 - moment.microsecond)
    except OverflowError:
        return moment.replace(microsecond=999_000)
