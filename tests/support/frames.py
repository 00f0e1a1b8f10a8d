"""Splitting input into frames: as the frame stream does it, and slowly by the letter of RFC 6455."""

from typing import Any

from support.peers import BINARY, CLOSE
from trio_ledger_plugin.websocket.frames import FrameKind, FrameReader

__all__ = ["FRAGMENTS", "LIMIT", "reader", "split_by_reader", "split_by_the_book"]


LIMIT, FRAGMENTS = 1000, 4


def reader(*, masked: bool, limit: int = LIMIT) -> FrameReader:
    return FrameReader(masked=masked, max_message=limit, max_fragments=FRAGMENTS)


def split_by_reader(frames: FrameReader, chunks: list[bytes], most: int = 16) -> list[Any]:
    """Feed chunks and take frames as the frame stream does, up to the first frame that ends it."""
    taken: list[Any] = []
    for chunk in chunks:
        frames.feed(chunk)
        while True:
            payloads = frames.lift(most)
            taken += payloads
            if len(payloads) == most:
                continue
            other = frames.take_other()
            if other is None:
                break
            if other.kind in (FrameKind.ILLEGAL, FrameKind.TOO_BIG):
                return [*taken, other.kind]
            taken.append((other.kind, other.raw))
            if other.kind is FrameKind.CLOSE:
                return taken
    return taken


def split_by_the_book(data: bytes, *, masked: bool, limit: int = LIMIT) -> list[Any]:
    """Split whole input by the letter of RFC 6455, sections 5.2 and 5.4: slowly, one rule after the other."""
    taken: list[Any] = []
    parts: list[int] = []
    at = 0
    while len(data) - at >= 2:
        fin, rsv, opcode = data[at] >> 7, data[at] >> 4 & 7, data[at] & 15
        has_mask, short = data[at + 1] >> 7, data[at + 1] & 127
        control = opcode >= 8
        if rsv or opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15) or bool(has_mask) != masked:
            return [*taken, FrameKind.ILLEGAL]
        if control and (short > 125 or not fin):
            return [*taken, FrameKind.ILLEGAL]
        if not control and (opcode == 0) != (len(parts) > 0):
            return [*taken, FrameKind.ILLEGAL]
        extra = {126: 2, 127: 8}.get(short, 0)
        length = data[at + 2 : at + 2 + extra]
        if len(length) < extra:
            return taken
        size = int.from_bytes(length, "big") if extra else short
        if (extra == 2 and size < 126) or (extra == 8 and (size < 65536 or size >= 2**63)):
            return [*taken, FrameKind.ILLEGAL]
        if not control and (sum(parts) + size > limit or len(parts) + 1 > FRAGMENTS):
            return [*taken, FrameKind.TOO_BIG]
        start = at + 2 + extra + 4 * has_mask
        if len(data) < start + size:
            return taken
        raw = data[at : start + size]
        body = data[start : start + size]
        if has_mask:
            key = data[start - 4 : start]
            body = bytes(b ^ key[i & 3] for i, b in enumerate(body))
        at = start + size
        if control:
            taken.append((FrameKind.CLOSE if opcode == CLOSE else FrameKind.CONTROL, raw))
            if opcode == CLOSE:
                return taken
        elif opcode == BINARY and fin and not parts:
            taken.append(body)
        elif fin:
            parts.clear()
            taken.append((FrameKind.MESSAGE_END, raw))
        else:
            parts.append(size)
            taken.append((FrameKind.FRAGMENT, raw))
    return taken
