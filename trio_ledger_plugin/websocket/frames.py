"""WebSocket frames as values (RFC 6455, section 5), without I/O.

A frame is *plain* if it is one whole binary message: FIN set, no reserved bit, opcode 2, masked as the sender's role
requires, its length in the shortest form and within the limit, with no fragmented message in progress.

Invariant: every byte is returned once, in order. ``FrameReader.lift`` returns the payloads of plain frames, unmasked.
``FrameReader.take_other`` returns every other frame unchanged, for a complete WebSocket implementation to check.
"""

from __future__ import annotations

import os
from contextlib import suppress
from enum import Enum
from struct import Struct
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CLOSE",
    "PING",
    "PONG",
    "FrameKind",
    "FrameReader",
    "OtherFrame",
    "binary_frame",
    "close_frame",
    "mask_in_python",
    "masked_binary_frame",
    "read_close",
]

PLAIN_FIRST_BYTE = 0x82
CONTINUATION = 0x0
CLOSE, PING, PONG = 0x8, 0x9, 0xA

# Below this many bytes, one XOR of two big integers is faster than four calls of bytes.translate.
TRANSLATE_FROM = 512

_TABLES = tuple(bytes(byte ^ key for byte in range(256)) for key in range(256))
_SHORT = Struct(">BB").pack
_MEDIUM = Struct(">BBH").pack
_LONG = Struct(">BBQ").pack


def mask_in_python(payload: bytes, key: bytes) -> bytes:
    """Mask or unmask a payload with a four-byte key (RFC 6455, section 5.3)."""
    size = len(payload)
    if size < TRANSLATE_FROM:
        repeated = (key * (size // 4 + 1))[:size]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")).to_bytes(size, "little")
    work = bytearray(payload)
    for offset in range(4):
        work[offset::4] = work[offset::4].translate(_TABLES[key[offset]])
    return bytes(work)


_xor: Callable[[bytes, bytes], bytes] = mask_in_python
with suppress(ImportError):
    # In C, 32 KiB take a fiftieth of the time. The extra "speed" installs it.
    from websockets.speedups import apply_mask

    _xor = apply_mask


def binary_frame(payload: bytes) -> bytes:
    """Return the plain frame of a payload as a server sends it, unmasked."""
    size = len(payload)
    if size < 126:
        return _SHORT(PLAIN_FIRST_BYTE, size) + payload
    if size < 65536:
        return _MEDIUM(PLAIN_FIRST_BYTE, 126, size) + payload
    return _LONG(PLAIN_FIRST_BYTE, 127, size) + payload


class _MaskKeys:
    """Unpredictable mask keys, as RFC 6455 requires of a client; one system call yields a page of them."""

    def __init__(self) -> None:
        self._page = b""
        self._used = 0

    def next_key(self) -> bytes:
        start = self._used
        if start >= len(self._page):
            self._page = os.urandom(4096)
            start = 0
        self._used = start + 4
        return self._page[start : start + 4]


_next_key = _MaskKeys().next_key


def masked_binary_frame(payload: bytes) -> bytes:
    """Return the plain frame of a payload as a client sends it, masked with a fresh key."""
    size = len(payload)
    key = _next_key()
    if size < 126:
        return _SHORT(PLAIN_FIRST_BYTE, 0x80 | size) + key + _xor(payload, key)
    if size < 65536:
        return _MEDIUM(PLAIN_FIRST_BYTE, 0x80 | 126, size) + key + _xor(payload, key)
    return _LONG(PLAIN_FIRST_BYTE, 0x80 | 127, size) + key + _xor(payload, key)


def close_frame(code: int, *, masked: bool) -> bytes:
    """Return a Close frame with a code and no reason, masked for a client to send or not."""
    payload = code.to_bytes(2, "big")
    frame = masked_binary_frame(payload) if masked else binary_frame(payload)
    return bytes((0x80 | CLOSE,)) + frame[1:]


def read_close(frame: bytes) -> tuple[int | None, str]:
    """Return the code and the reason of a whole Close frame; None and an empty text if it has none."""
    payload = _xor(frame[6:], frame[2:6]) if frame[1] & 0x80 else frame[2:]
    if len(payload) < 2:
        return None, ""
    return int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace")


class FrameKind(Enum):
    """What a frame that is not plain means for the frames after it."""

    CONTROL = "a ping or a pong"
    CLOSE = "the peer's Close: nothing after it is a message"
    FRAGMENT = "a part of a message that continues"
    MESSAGE_END = "the last or only frame of a message"
    ILLEGAL = "a frame that breaks RFC 6455: nothing after it can be trusted"
    TOO_BIG = "a frame or message that exceeds the limits"


@frozen
class OtherFrame:
    """A frame that is not plain.

    Attributes:
        kind: What it means for the frames after it.
        raw: The whole frame as it arrived; for ILLEGAL and TOO_BIG, all bytes that have arrived from its header on.
    """

    kind: FrameKind
    raw: bytes


class FrameReader:
    """Splits the bytes after the HTTP head into plain frames and others.

    Args:
        masked: Whether frames must be masked: True for a server, which reads a client's frames.
        max_message: The most bytes that a message may have, in one frame or in fragments. May be changed later.
        max_fragments: The most frames that a message may have.
    """

    __slots__ = (
        "_buffer",
        "_fragmented_bytes",
        "_fragments",
        "_masked",
        "_position",
        "max_fragments",
        "max_message",
    )

    def __init__(self, *, masked: bool, max_message: int, max_fragments: int) -> None:
        self._masked = masked
        self.max_message: int = max_message
        self.max_fragments: int = max_fragments
        self._buffer = b""
        self._position = 0
        self._fragments = 0
        self._fragmented_bytes = 0

    def feed(self, data: bytes) -> None:
        """Add bytes from the network."""
        rest = self._buffer[self._position :]
        self._buffer = rest + data if rest else data
        self._position = 0

    @property
    def unread(self) -> int:
        """How many bytes are left."""
        return len(self._buffer) - self._position

    @property
    def is_empty(self) -> bool:
        """Whether no byte is left."""
        return not self._buffer

    def take_rest(self) -> bytes:
        """Return and drop all bytes that belong to no frame yet."""
        rest = self._buffer[self._position :]
        self._buffer = b""
        self._position = 0
        return rest

    def lift(self, most: int) -> list[bytes]:
        """Take up to ``most`` plain frames from the front and return their payloads, unmasked."""
        payloads: list[bytes] = []
        if self._fragments:
            return payloads
        buffer, position = self._buffer, self._position
        end = len(buffer)
        masked, limit = self._masked, self.max_message
        mask_bit, head = (0x80, 6) if masked else (0, 2)
        while end - position >= 2 and buffer[position] == PLAIN_FIRST_BYTE and len(payloads) < most:
            size = buffer[position + 1] ^ mask_bit
            start = position + head
            if size >= 126:
                if size == 126:
                    size = int.from_bytes(buffer[position + 2 : position + 4])
                    start += 2
                    if size < 126:
                        break
                elif size == 127:
                    size = int.from_bytes(buffer[position + 2 : position + 10])
                    start += 8
                    if size < 65536:
                        break
                else:
                    # Masked or not, the other way round.
                    break
            stop = start + size
            if size > limit or stop > end:
                break
            payload = buffer[start:stop]
            payloads.append(_xor(payload, buffer[start - 4 : start]) if masked else payload)
            position = stop
        if position == end:
            # Nothing is left: drop the buffer, so that an idle connection holds no old bytes.
            self._buffer, position = b"", 0
        self._position = position
        return payloads

    def take_other(self) -> OtherFrame | None:
        """Take the frame at the front, which is not plain; None until all of it has arrived."""
        buffer, position = self._buffer, self._position
        available = len(buffer) - position
        if available < 2:
            return None
        first, second = buffer[position], buffer[position + 1]
        opcode, final = first & 0x0F, bool(first & 0x80)
        header = 2 + {126: 2, 127: 8}.get(second & 0x7F, 0)
        if first & 0x70 or opcode not in (0, 1, 2, CLOSE, PING, PONG) or bool(second & 0x80) != self._masked:
            return OtherFrame(FrameKind.ILLEGAL, self.take_rest())
        if opcode >= CLOSE and (second & 0x7F > 125 or not final):
            return OtherFrame(FrameKind.ILLEGAL, self.take_rest())
        if (opcode == CONTINUATION) != bool(self._fragments) and opcode < CLOSE:
            return OtherFrame(FrameKind.ILLEGAL, self.take_rest())
        if available < header:
            return None
        size = second & 0x7F
        if header > 2:
            size = int.from_bytes(buffer[position + 2 : position + header], "big")
            if size < (126 if header == 4 else 65536) or size >> 63:
                return OtherFrame(FrameKind.ILLEGAL, self.take_rest())
        if opcode < CLOSE and (
            self._fragmented_bytes + size > self.max_message or self._fragments >= self.max_fragments
        ):
            return OtherFrame(FrameKind.TOO_BIG, self.take_rest())
        stop = position + header + (4 if self._masked else 0) + size
        if stop > len(buffer):
            return None
        self._position = stop
        return OtherFrame(self._account(opcode, size, final=final), buffer[position:stop])

    def _account(self, opcode: int, size: int, *, final: bool) -> FrameKind:
        if opcode >= CLOSE:
            return FrameKind.CLOSE if opcode == CLOSE else FrameKind.CONTROL
        if final:
            self._fragments = self._fragmented_bytes = 0
            return FrameKind.MESSAGE_END
        self._fragments += 1
        self._fragmented_bytes += size
        return FrameKind.FRAGMENT
