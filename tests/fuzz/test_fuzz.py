"""A hundred thousand damaged inputs, the same in every run: ``nox -s fuzz`` tries others, for as long as it is told.

Were one of these to fail, one peer could end a program, make it hang, fill its memory, or have it read a packet
otherwise than the next implementation does.
"""

import tracemalloc
from itertools import islice
from random import Random

import pytest
from support.peers import listening, open_btp

from trio_ledger_plugin.codec import btp, ildcp, ilp
from trio_ledger_plugin.codec.oer import octets
from trio_ledger_plugin.errors import DecodeError
from trio_ledger_plugin.testing.conformance.assertions import echo

from .connections import check_connection, check_plugin
from .mutation import frame_streams, packet_seeds, packets, stream_seeds
from .targets import CODECS, check_codec, check_frames, measure_codec

SEED = 20180831
PACKETS, MEASURED, STREAMS, CONNECTIONS, PLUGINS = 70_000, 5_000, 24_700, 100, 200

pytestmark = pytest.mark.slow


def test_the_inputs_are_a_hundred_thousand():
    assert PACKETS + MEASURED + STREAMS + CONNECTIONS + PLUGINS == 100_000


def test_codecs_raise_decode_errors_or_round_trip():
    inputs = packets(Random(SEED))
    for data in islice(inputs, PACKETS):
        check_codec(data)


def test_the_fuzzer_reaches_packets_that_can_be_read():
    """Inputs that are all refused at their first byte would prove nothing."""
    inputs = list(islice(packets(Random(SEED)), 5_000))
    for codec, least in ((btp, 0.1), (ilp, 0.05), (ildcp, 0.002)):
        read = 0
        for data in inputs:
            try:
                codec.decode(data)
                read += 1
            except DecodeError:
                pass
        assert read >= least * len(inputs), codec.__name__


@pytest.fixture
def traced():
    """Trace memory; what the codecs build once, at their first use, is there before."""
    for data in packet_seeds():
        check_codec(data)
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_decoding_takes_at_most_four_times_the_input(traced):
    inputs = packets(Random(SEED + 1))
    for data in islice(inputs, MEASURED):
        measure_codec(data)


def rejected(message: bytes) -> bytes:
    """Write a Reject, its message perhaps longer than any may be."""
    return b"\x0e" + octets(b"F00\x00" + octets(message, "message") + b"\x00", "packet")


def tried_error(data: bytes) -> bytes:
    """Write a BTP Error with more data than any may have."""
    return b"\x02\x00\x00\x00\x01" + octets(b"F00\x00\x0f20180831120000Z" + octets(data, "data") + b"\x01\x00", "body")


def named(asset_code: bytes) -> bytes:
    """Write the answer to an ILDCP request with the bytes of an asset's name."""
    return ilp.encode(ilp.Fulfill(bytes(32), b"\x06test.a\x09" + octets(asset_code, "asset code")))


# Python keeps all of a text with one such character at four bytes a character.
WIDE = "\U0001f600".encode()
LARGE = {
    "a request of 64 KiB": btp.encode_ilp(btp.MESSAGE, 1, bytes(65_500)),
    "a request with an entry behind it": btp.encode(
        btp.Message(1, (btp.ProtocolData("ilp", 0, bytes(60_000)), btp.ProtocolData("x", 0, b"")))
    ),
    "an entry with a long name": btp.encode(btp.Message(1, (btp.ProtocolData("n" * 65_000, 0, b""),))),
    "32 entries": btp.encode(btp.Message(1, tuple(btp.ProtocolData(f"e{i}", 0, bytes(2000)) for i in range(32)))),
    "21,000 entries of one name": b"\x06" + bytes(4) + octets(b"\x02\x52\x08" + bytes(63_000), "body"),
    "too much data of an error": tried_error(bytes(60_000)),
    "a Prepare": ilp.encode(ilp.make_prepare(1, "test." + "a" * 1000, bytes(32), 30.0, bytes(ilp.MAX_DATA))),
    "a Fulfill": ilp.encode(ilp.Fulfill(bytes(32), bytes(ilp.MAX_DATA))),
    "a long ASCII message": rejected(b"a" * 60_000),
    "a long message that ends wide": rejected(b"a" * 60_000 + WIDE),
    "the longest message that is allowed, wide at its end": rejected(b"a" * 8190 + WIDE),
    "the longest message that is allowed, wide at its beginning": rejected(WIDE + b"a" * 8190),
    "the longest message that is allowed, of Latin letters": rejected("é".encode() * 8191),
    "the longest message of wide characters": rejected(WIDE * 8191),
    "a message of 1,000 characters, wide": rejected(b"a" * 999 + WIDE),
    "a message of 256 bytes, wide": rejected(b"a" * 252 + WIDE),
    "a long message that is no text": rejected(b"a" * 8190 + b"\xff"),
    "an asset's name as long as can be, wide": named(b"a" * 32_700 + WIDE),
    "an asset's name as long as can be, no text at its end": named(b"a" * 32_700 + b"\xf0"),
    "as many frames as a payment may have": b"\x01\x0c\x01\x01\x01\x00\x02\x01\x00" + b"\xf0\x00" * 256,
    "more frames than a payment may have": b"\x01\x0c\x01\x01\x01\x00\x02\x3f\xff" + b"\xf0\x00" * 16_000,
    "a payment's error, long and wide": b"\x01\x0c\x01\x01\x01\x00\x01\x01\x01"
    + octets(b"\x01" + octets(WIDE * 8000, "t"), "f"),
    "an announced gigabyte": b"\x06" + bytes(4) + b"\x84\x40\x00\x00\x00" + bytes(100),
    "an announced eternity": b"\x0c\x88" + b"\xff" * 8 + bytes(100),
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE.keys())
def test_large_inputs_keep_the_memory_bound(data, traced):
    """64 KiB from a peer must not become megabytes, with any content."""
    measure_codec(data)


def test_streams_split_as_rfc_6455_says_in_any_chunks():
    random = Random(SEED + 2)
    streams = frame_streams(stream_seeds(), random)
    for data in islice(streams, STREAMS):
        check_frames(data, random)


async def test_frame_stream_gives_the_same_messages():
    random = Random(SEED + 3)
    streams = frame_streams(stream_seeds(), random)
    for data in islice(streams, CONNECTIONS):
        await check_connection(data, random)


@pytest.mark.parametrize("let_in", [False, True], ids=["unauthenticated", "authenticated"])
async def test_plugin_survives_any_input(let_in):
    random = Random(SEED + 4 + let_in)
    streams = frame_streams(stream_seeds(), random)
    options = listening(max_failures_per_minute=10**6)
    async with open_btp(options, data_handler=echo) as plugin:
        for data in islice(streams, PLUGINS // 2):
            await check_plugin(plugin, data, let_in=let_in)


def test_all_codecs_are_tried():
    assert set(CODECS) == {"btp", "ilp", "ildcp", "stream"}
