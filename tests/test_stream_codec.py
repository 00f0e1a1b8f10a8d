"""STREAM packets: the test vectors of RFC-0029 both ways, every truncation, limits, and any bytes."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import VECTORS, stream_packets

from trio_ledger_plugin.codec import stream
from trio_ledger_plugin.errors import DecodeError, InvalidFieldsError

RECORDED = json.loads((VECTORS / "stream.json").read_text())
NAMES = {
    "errorCode": "error_code",
    "errorMessage": "error_message",
    "sourceAccount": "source_account",
    "sourceAssetCode": "source_asset_code",
    "sourceAssetScale": "source_asset_scale",
    "maxOffset": "max_offset",
    "maxStreamId": "max_stream_id",
    "streamId": "stream_id",
    "shares": "shares",
    "receiveMax": "receive_max",
    "totalReceived": "total_received",
    "sendMax": "send_max",
    "totalSent": "total_sent",
    "offset": "offset",
    "data": "data",
    "receipt": "receipt",
}
BYTES = {"data", "receipt"}
TEXTS = {"errorMessage", "sourceAccount", "sourceAssetCode"}


def frame_of(recorded: dict[str, Any]) -> stream.Frame:
    kind = getattr(stream, recorded["name"])
    assert kind.type == recorded["type"]
    values = {
        NAMES[name]: base64.b64decode(value) if name in BYTES else value if name in TEXTS else int(value)
        for name, value in recorded.items()
        if name not in {"type", "name"}
    }
    frame: stream.Frame = kind(**values)
    return frame


def packet_of(vector: dict[str, Any]) -> stream.Packet:
    packet = vector["packet"]
    frames = tuple(map(frame_of, packet["frames"]))
    return stream.Packet(int(packet["sequence"]), packet["packetType"], int(packet["amount"]), frames)


@pytest.mark.parametrize("vector", RECORDED, ids=lambda vector: vector["name"])
def test_vector_of_the_specification_both_ways(vector: dict[str, Any]) -> None:
    """A frame that is read differently elsewhere is a payment that ends for no visible reason."""
    data, packet = base64.b64decode(vector["buffer"]), packet_of(vector)
    assert stream.decode(data) == packet
    if not vector.get("decode_only"):
        assert stream.encode(packet) == data
    assert stream.decode(stream.encode(packet)) == packet


def test_all_vectors_are_there() -> None:
    assert len(RECORDED) == 53


@given(stream_packets)
def test_packet_round_trips(packet: stream.Packet) -> None:
    assert stream.decode(stream.encode(packet)) == packet


SAMPLE = stream.Packet(
    7,
    stream.PREPARE,
    2**40,
    (
        stream.ConnectionAssetDetails("\U0001f4b6" * 100, 2),
        stream.StreamReceipt(1, bytes(58)),
        stream.UnknownFrame(99, b"later"),
        stream.ConnectionNewAddress(""),
    ),
)


def test_packet_cut_anywhere_is_refused() -> None:
    data = stream.encode(SAMPLE)
    for size in range(len(data)):
        with pytest.raises(DecodeError):
            stream.decode(data[:size])


def test_bytes_after_the_packet_are_ignored() -> None:
    data = stream.encode(SAMPLE)
    assert stream.decode(data + b"\x00\xff") == SAMPLE
    assert stream.decode(bytearray(data)) == stream.decode(memoryview(data)) == SAMPLE


def test_bytes_after_the_fields_of_a_frame_are_ignored() -> None:
    """A later version of a frame would end every payment."""
    assert stream.decode(bytes.fromhex("010c0101010001010306010501090909")).frames == (stream.ConnectionMaxData(5),)


def test_unknown_frame_is_kept() -> None:
    assert stream.decode(stream.encode(SAMPLE)).frames[2] == stream.UnknownFrame(99, b"later")


@given(st.binary(max_size=120) | st.binary(max_size=120).map(lambda rest: b"\x01\x0c\x01\x01\x01\x00\x01\x02" + rest))
def test_any_bytes_give_a_packet_or_a_decode_error(data: bytes) -> None:
    try:
        packet = stream.decode(data)
    except DecodeError:
        return
    assert stream.decode(stream.encode(packet)) == packet


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("020c010001000100", "version 2"),
        ("010b010001000100", "11 is not a packet type"),
        ("010c0001000100", "no bytes"),
        ("010c02000101000100", "leading zeros"),
        ("010c0901020304050607080901000100", "at most 8 bytes"),
        ("010c01000100020101", "257 frames"),
        ("010c010001000101" + "0204033a3a3a", "not an ILP address"),
        ("010c010001000101" + "01040102ffff", "not UTF-8"),
        ("010c010001000101" + "1704010101aa", "not 58"),
    ],
)
def test_bad_packet_gets_a_clear_error(data: str, said: str) -> None:
    with pytest.raises(DecodeError, match=said):
        stream.decode(bytes.fromhex(data))


def test_packet_longer_than_an_ilp_packet_holds_is_refused() -> None:
    frame = stream.StreamData(1, 0, bytes(stream.MAX_PLAINTEXT))
    with pytest.raises(InvalidFieldsError, match="at most 32739"):
        stream.encode(stream.Packet(1, stream.PREPARE, 0, (frame,)))
    with pytest.raises(DecodeError, match="at most 32739"):
        stream.decode(bytes(stream.MAX_PLAINTEXT + 1))


@pytest.mark.parametrize(
    "bad",
    [
        stream.Packet(-1, stream.PREPARE, 0),
        stream.Packet(2**64, stream.PREPARE, 0),
        stream.Packet(0, 11, 0),
        stream.Packet(0, stream.PREPARE, 0, (stream.ConnectionNewAddress("no address"),)),
        stream.Packet(0, stream.PREPARE, 0, (stream.ConnectionClose(256),)),
        stream.Packet(0, stream.PREPARE, 0, (stream.StreamReceipt(1, b"short"),)),
        stream.Packet(0, stream.PREPARE, 0, (stream.ConnectionMaxData(1),) * 257),
        stream.Packet(0, stream.PREPARE, 0, ("frame",)),  # type: ignore[arg-type]  # what is tested
    ],
)
def test_bad_fields_are_refused(bad: stream.Packet) -> None:
    with pytest.raises(InvalidFieldsError):
        stream.encode(bad)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="not int"):
        stream.encode(7)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(DecodeError, match="not str"):
        stream.decode("text")  # type: ignore[arg-type]  # what is tested


def test_repr_shows_no_bytes_of_the_peer() -> None:
    assert "later" not in repr(SAMPLE)
