"""Refusals that break the rules in a detail: an ILP Reject and a BTP Error, read as far as they can be used.

``decode`` of `codec.ilp` and `codec.btp` accepts only what the specifications allow. But a refusal means the same
whatever its message, its time or its address look like: with the packet as a whole, the sender would lose the outcome.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from ..errors import DecodeError
from . import btp, ilp
from .oer import read_fixed, read_octets, read_uint

__all__ = ["read_error", "read_reject"]

# The codes that replace unreadable ones: both say that the refusal is final, without a reason.
UNKNOWN_REJECT: Final = ilp.ErrorCode.FINAL_APPLICATION_ERROR
UNKNOWN_ERROR: Final = "F00"
UNKNOWN_NAME: Final = "NotAcceptedError"
# A character has at most four bytes.
LONGEST_MESSAGE: Final = 4 * ilp.MAX_MESSAGE


def read_reject(packet: bytes) -> ilp.Reject | None:
    """Return the Reject in a packet that `codec.ilp.decode` refuses; None if the packet is no whole Reject.

    What is unreadable is replaced: the code by ``F99``, the address by an empty one, the message's bad characters by
    replacement characters. A message that is too long is cut, and data that is too long is dropped.
    """
    try:
        packet_type, offset = read_uint(packet, 0, 1)
        if packet_type != ilp.REJECT:
            return None
        body, _ = read_octets(packet, offset)
        code, offset = read_fixed(body, 0, 3)
    except DecodeError:
        return None
    triggered_by, message, data = _read_fields(body, offset)
    address = triggered_by.decode("ascii", "replace")
    text = message[:LONGEST_MESSAGE].decode("utf-8", "replace")[: ilp.MAX_MESSAGE]
    return ilp.Reject(
        _code(code, UNKNOWN_REJECT),
        address if ilp.is_address(address) else "",
        text,
        data if len(data) <= ilp.MAX_DATA else b"",
    )


def read_error(frame: bytes) -> btp.Error | None:
    """Return the Error in a frame that `codec.btp.decode` refuses; None if the frame is no whole Error.

    What is unreadable is replaced: the code by ``F00``, the name by ``NotAcceptedError``, the time by the current one.
    Data that is too long is cut, and entries are dropped.
    """
    try:
        packet_type, offset = read_uint(frame, 0, 1)
        request_id, offset = read_uint(frame, offset, 4)
        if packet_type != btp.ERROR:
            return None
        body, _ = read_octets(frame, offset)
        code, offset = read_fixed(body, 0, 3)
    except DecodeError:
        return None
    name, _, data = _read_fields(body, offset)
    return btp.Error(
        request_id,
        _code(code, UNKNOWN_ERROR),
        name.decode() if name and name.isascii() else UNKNOWN_NAME,
        datetime.now(UTC),
        data[: btp.MAX_ERROR_DATA],
    )


def _code(code: bytes, unknown: str) -> str:
    return code.decode() if code.isascii() else unknown


def _read_fields(body: bytes, offset: int) -> list[bytes]:
    """Return the three octet strings after a code; those that are missing or unreadable are empty."""
    fields = [b"", b"", b""]
    for at in range(3):
        try:
            fields[at], offset = read_octets(body, offset)
        except DecodeError:
            break
    return fields
