"""What must hold for any bytes, of the codecs and of what splits a stream into frames; a breach is an AssertionError.

The functions here are called by every fuzzer: by mutation (``mutation.py``) and by coverage (``coverage_guided.py``).
"""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from support.frames import LIMIT, reader, split_by_reader, split_by_the_book

from trio_ledger_plugin.codec import btp, ildcp, ilp, stream
from trio_ledger_plugin.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

__all__ = ["CODECS", "check_btp", "check_codec", "check_frames", "check_ildcp", "check_ilp", "measure_codec"]

# As a link reads.
MAX_ENTRIES = 32
# What a decode may take beside four times its input, however small that is: objects have heads of their own, and an
# error has a text, its frames and those of its cause. In BTP each entry is an object with a place, a name and data.
OBJECTS = 4 * 1024
ENTRY = 128
FRAMES = stream.MAX_FRAMES
ALLOWANCES = {
    "btp": OBJECTS + MAX_ENTRIES * ENTRY,
    "ilp": OBJECTS,
    "ildcp": OBJECTS,
    "stream": OBJECTS + FRAMES * ENTRY,
}


def check_btp(data: bytes) -> None:
    """Hold one frame against the rules of a codec, and the short way of BTP against the long one."""
    try:
        packet = btp.decode(data, max_entries=MAX_ENTRIES)
    except DecodeError:
        packet = None
    plain = btp.decode_ilp(data)
    if plain is not None:
        packet_type, request_id, ilp_data = plain
        kind = btp.Message if packet_type == btp.MESSAGE else btp.Response
        assert packet == kind(request_id, (btp.ProtocolData("ilp", btp.OCTET_STREAM, ilp_data),))
        assert btp.decode_ilp(btp.encode_ilp(*plain)) == plain
    if packet is None:
        return
    again = btp.decode(btp.encode(packet), max_entries=MAX_ENTRIES)
    if isinstance(packet, btp.Error):
        # What is written has a last digit that is not zero: a millisecond later at most.
        assert isinstance(again, btp.Error)
        assert 0 <= (again.triggered_at - packet.triggered_at).total_seconds() <= 0.001
        assert btp.encode(again) == btp.encode(packet)
    else:
        assert again == packet


def _check_plain(codec: Any, data: bytes) -> None:
    try:
        packet = codec.decode(data)
    except DecodeError:
        return
    written = codec.encode(packet)
    assert codec.decode(written) == packet
    assert codec.encode(codec.decode(written)) == written


def check_ilp(data: bytes) -> None:
    """Hold one packet against the rules of a codec."""
    _check_plain(ilp, data)


def check_stream(data: bytes) -> None:
    """Hold one packet against the rules of a codec."""
    _check_plain(stream, data)


def check_ildcp(data: bytes) -> None:
    """Hold one packet against the rules of a codec."""
    _check_plain(ildcp, data)


CODECS: dict[str, Callable[[bytes], None]] = {
    "btp": check_btp,
    "ilp": check_ilp,
    "ildcp": check_ildcp,
    "stream": check_stream,
}
_DECODERS: dict[str, Callable[[bytes], object]] = {
    "btp": lambda data: btp.decode(data, max_entries=MAX_ENTRIES),
    "ilp": ilp.decode,
    "ildcp": ildcp.decode,
    "stream": stream.decode,
}


def check_codec(data: bytes) -> None:
    """Hold any bytes against the rules of every codec."""
    for check in CODECS.values():
        check(data)


def measure_codec(data: bytes) -> float:
    """Check that decoding takes no more memory than it may; return the most that any took, in bytes of the input.

    Memory must be traced.
    """
    most = 0.0
    for name, decode in _DECODERS.items():
        allowed = 4 * len(data) + ALLOWANCES[name]
        # What a decode needs, it needs each time. The tests that ran before may have left garbage whose collection,
        # in the middle of a decode, takes memory for its finalizers; the collector does not run twice in a row.
        for _ in range(3):
            taken = _memory_taken(decode, data)
            if taken <= allowed:
                break
        assert taken <= allowed, f"{name} took {taken} bytes for {len(data)}"
        most = max(most, taken / max(1, len(data)))
    return most


def _memory_taken(decode: Callable[[bytes], object], data: bytes) -> int:
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    with suppress(DecodeError):
        decode(data)
    _, peak = tracemalloc.get_traced_memory()
    return peak - before


def check_frames(data: bytes, random: Random) -> None:
    """Hold a stream of bytes after the HTTP head, whole and in pieces, against what RFC 6455 says of it."""
    for masked in (True, False):
        expected = split_by_the_book(data, masked=masked)
        cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(6)))
        pieces = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        for chunks in ([data], pieces):
            assert split_by_reader(reader(masked=masked), chunks, random.choice((1, 2, 16))) == expected
        check_kept(pieces, masked=masked)


def check_kept(chunks: list[bytes], *, masked: bool) -> None:
    """Check that no more than one frame within the limit, and what came behind it in one read, is ever kept."""
    frames = reader(masked=masked)
    for chunk in chunks:
        frames.feed(chunk)
        while True:
            lifted = frames.lift(16)
            if len(lifted) == 16:
                continue
            other = frames.take_other()
            if other is None:
                break
            if other.kind.name in ("ILLEGAL", "TOO_BIG", "CLOSE"):
                return
        # A header is 14 bytes at the most, and a control frame's payload less than the limit.
        kept = len(frames.take_rest())
        assert kept <= LIMIT + 14, f"{kept} bytes are kept"
        return
