"""Inputs made of good ones by small damage: the same from the same seed, on any machine.

    python -m fuzz.mutation --seconds 3600 [--seed 1]       (in tests/)

runs until the time is up or something breaks, and then tells the input.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tracemalloc
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import trio
from support.peers import BINARY, CLOSE, KEY, PING, PONG, TEXT, frame

from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.codec.oer import length_prefix

from .connections import check_connection
from .targets import CODECS, check_codec, check_frames, measure_codec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["frame_streams", "packet_seeds", "packets", "stream_seeds"]

HERE = Path(__file__).parent
VECTORS = HERE.parent / "vectors"
CORPUS = HERE / "corpus"
# Larger ones teach nothing new and cost time; what large inputs do is tried apart.
LONGEST = 2048
INTERESTING = (
    b"\x00",
    b"\x01",
    b"\x7e",
    b"\x7f",
    b"\x80",
    b"\x81\x80",
    b"\x82\xff\xff",
    b"\xff",
    b"\x82\x7f",
    b"\x88\x82",
)
OPCODES = (0, TEXT, BINARY, 3, CLOSE, PING, PONG, 11)


def packet_seeds() -> list[bytes]:
    """Return the recorded packets, good and bad, and those of the corpus, in a fixed order; about half are good."""
    good, bad = (_recorded(f"*-{kind}.json") for kind in ("valid", "invalid"))
    found = [path.read_bytes() for path in sorted(CORPUS.glob("*.packet"))]
    return good * max(1, len(bad) // len(good)) + bad + found


def _recorded(names: str) -> list[bytes]:
    vectors = (vector for path in VECTORS.glob(names) for vector in json.loads(path.read_text())["vectors"])
    seeds = {bytes.fromhex(vector["hex"]) for vector in vectors}
    return sorted(seed for seed in seeds if 0 < len(seed) <= LONGEST)


def stream_seeds() -> list[bytes]:
    """Return the streams of frames of the corpus, in a fixed order."""
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.stream"))]


def mutants(seeds: list[bytes], random: Random) -> Iterator[bytes]:
    """Give inputs without end, each a seed with one to eight changes."""
    while True:
        data = bytearray(random.choice(seeds))
        for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 8))):
            _damage(data, seeds, random)
        yield bytes(data)


def packets(random: Random) -> Iterator[bytes]:
    """Give packets without end, many of them with a body that is damaged and a length that is right."""
    seeds = packet_seeds()
    damaged = mutants(seeds, random)
    while True:
        if random.random() < 0.3:
            yield next(damaged)
            continue
        seed = random.choice(seeds)
        # BTP has a request id between the type and the length; most seeds have a length of one byte.
        start = 5 if seed[0] in (btp.RESPONSE, btp.ERROR, btp.MESSAGE, btp.TRANSFER) else 1
        width = 1 if len(seed) <= start or seed[start] < 0x80 else 1 + seed[start] % 0x80
        body = bytearray(seed[start + width :])
        _damage(body, seeds, random)
        yield seed[:start] + length_prefix(len(body)) + body


def frame_streams(seeds: list[bytes], random: Random) -> Iterator[bytes]:
    """Give streams without end: frames of every sort one after the other, or damaged streams of the corpus."""
    damaged = mutants(seeds, random)
    while True:
        if random.random() < 0.5:
            yield next(damaged)
            continue
        mask = KEY if random.random() < 0.8 else None
        stream = b"".join(_frame(random, mask) for _ in range(random.randrange(1, 6)))
        if random.random() < 0.3:
            work = bytearray(stream)
            _damage(work, seeds, random)
            stream = bytes(work)
        yield stream


def _frame(random: Random, mask: bytes | None) -> bytes:
    opcode = random.choice((BINARY, BINARY, BINARY, *OPCODES))
    payload = random.randbytes(random.choice((0, 1, 2, 5, 125, 126, 130, 600)))
    form = random.choice((None, None, None, None, 1, 2, 8))
    if opcode == CLOSE and random.random() < 0.7:
        payload = random.choice((b"", b"\x03\xe8", b"\x03\xe8bye", b"\x03\xf1\xff", b"\x00\x05", b"\x03"))
    if opcode in (TEXT, 0) and random.random() < 0.7:
        payload = "tëxt".encode()
    if form == 1 and len(payload) > 125:
        form = None
    rsv = random.choice((0,) * 12 + (1, 2, 4, 7))
    return frame(payload, opcode, mask=mask, fin=random.random() < 0.75, rsv=rsv, form=form)


def _damage(data: bytearray, seeds: list[bytes], random: Random) -> None:
    at = random.randrange(len(data) + 1)
    match random.randrange(9):
        case 0 if data:
            data[at % len(data)] ^= 1 << random.randrange(8)
        case 1 if data:
            data[at % len(data)] = random.randrange(256)
        case 2 if data:
            data[at % len(data)] = (data[at % len(data)] + random.choice((-1, 1))) % 256
        case 3:
            data[at : at + random.randrange(1, 9)] = b""
        case 4:
            data[at:at] = random.randbytes(random.randrange(1, 9))
        case 5:
            word = random.choice(INTERESTING)
            data[at : at + len(word)] = word
        case 6:
            data[at:at] = data[at : at + random.randrange(1, 33)]
        case 7:
            del data[at:]
        case _:
            other = random.choice(seeds)
            start = random.randrange(len(other) + 1)
            data[at:] = other[start : start + LONGEST]


def main(seconds: float, seed: int) -> int:
    """Try inputs until the time is up; return how many were tried."""
    random = Random(seed)
    inputs, streams = packets(random), frame_streams(stream_seeds(), random)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        data = b""
        try:
            for data in islice(inputs, 2000):
                check_codec(data)
            tracemalloc.start()
            for data in islice(inputs, 200):
                measure_codec(data)
            tracemalloc.stop()
            for data in islice(streams, 1000):
                check_frames(data, random)
            for data in islice(streams, 20):
                trio.run(check_connection, data, random)
        except BaseException:
            print(f"seed {seed}, after {tried} inputs: {data.hex()}", file=sys.stderr)
            raise
        tried += 3220
    return tried


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{main(arguments.seconds, arguments.seed)} inputs, {', '.join(CODECS)}, frames, connections: nothing found")
