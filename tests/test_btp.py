"""BTP packets: every recorded vector, every truncation, and the fast path compared with the general one."""

import struct
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.strategies import btp_packets, payloads, recorded_time, request_ids, same_octets, vectors

from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.errors import DecodeError, InvalidFieldsError

NO_BYTES: Any = "text"
NO_PACKET: Any = b""
NO_TEXT: Any = []
NO_ENTRIES: Any = 5
ILP_TYPES = st.sampled_from([btp.RESPONSE, btp.MESSAGE])
NOON = datetime(2018, 8, 31, 12, 0, 0, 899_000, tzinfo=UTC)


def assert_is_recorded(packet: Any, decoded: dict[str, Any]) -> None:
    data = decoded["data"]
    assert (packet.type, packet.request_id) == (decoded["type"], decoded["requestId"])
    assert len(packet.protocol_data) == len(data["protocolData"])
    for entry, recorded in zip(packet.protocol_data, data["protocolData"], strict=True):
        assert entry.protocol_name == recorded["protocolName"]
        assert entry.content_type == recorded["contentType"]
        assert same_octets(entry.data, recorded)
    if packet.type == btp.TRANSFER:
        assert packet.amount == int(data["amount"])
    if packet.type == btp.ERROR:
        assert (packet.code, packet.name) == (data["code"], data["name"])
        assert packet.triggered_at == recorded_time(data["triggeredAt"])
        assert (
            packet.data.decode() == data["data"]
            if "data" in data
            else same_octets(packet.data, {"dataLen": data["dataUtf8Len"], **data})
        )


@pytest.mark.parametrize("vector", vectors("btp-valid"))
def test_recorded_packet_is_read_and_written_unchanged(vector: dict[str, Any]) -> None:
    """If a packet of the JavaScript plugins were read differently, it would be another request or another amount."""
    frame = bytes.fromhex(vector["hex"])
    if vector["legacy"]:
        with pytest.raises(DecodeError, match=r"not a packet type of BTP/2\.0"):
            btp.decode(frame)
        return
    packet = btp.decode(frame)
    assert_is_recorded(packet, vector["decoded"])
    wire_time = vector.get("triggeredAtWire", "")
    if not wire_time or (len(wire_time) == 19 and wire_time[-2] != "0"):
        assert btp.encode(packet) == frame


@pytest.mark.parametrize("vector", vectors("btp-invalid"))
def test_recorded_bad_packet_gets_its_error(vector: dict[str, Any]) -> None:
    """A packet that only one end refuses is a request that hangs, or a rule that can be evaded."""
    frame, strict = bytes.fromhex(vector["hex"]), vector["strict"]
    if strict["verdict"] == "accept" or vector.get("context") == "first-packet":
        packet = btp.decode(frame)
        if "decoded" in vector["js"] and vector["category"] not in {"error-utf8", "time-noncanonical"}:
            assert_is_recorded(packet, vector["js"]["decoded"])
        return
    with pytest.raises(DecodeError) as caught:
        btp.decode(frame)
    semantic = strict["kind"] == "semantic"
    assert caught.value.packet_type == (frame[0] if semantic else None)
    assert caught.value.request_id == (int.from_bytes(frame[1:5]) if semantic else None)


SAMPLES: list[btp.Packet] = [
    btp.Response(1, (btp.ProtocolData("ilp", 0, bytes(200)), btp.ProtocolData("note", 1, b"ok"))),
    btp.Error(2, "F00", "NotAcceptedError", NOON, b"no", (btp.ProtocolData("why", 2, b"{}"),)),
    btp.Message(3, tuple(btp.ProtocolData(f"p{i}", 0, b"") for i in range(300))),
    btp.Transfer(4, 2**64 - 1, (btp.ProtocolData("claim", 2, b"[1]"),)),
]


@pytest.mark.parametrize("packet", SAMPLES, ids=lambda packet: type(packet).__name__)
def test_packet_cut_anywhere_is_unreadable(packet: Any) -> None:
    """Half a packet taken for a whole one would be a request that the peer did not send."""
    frame = btp.encode(packet)
    for size in range(len(frame)):
        with pytest.raises(DecodeError) as caught:
            btp.decode(frame[:size])
        assert caught.value.request_id is None
        assert btp.decode_ilp(frame[:size]) is None


@pytest.mark.parametrize("packet", SAMPLES, ids=lambda packet: type(packet).__name__)
def test_bytes_after_the_packet_are_ignored(packet: Any) -> None:
    """RFC-0030 adds later fields there: refusing them would lock out newer peers."""
    frame = btp.encode(packet)
    assert btp.decode(frame + b"\x00\xff" * 40) == packet
    assert btp.decode(bytearray(frame)) == btp.decode(memoryview(frame)) == packet


@given(btp_packets)
def test_packet_round_trips(packet: Any) -> None:
    """A field that a caller sends must not change on the way."""
    assert btp.decode(btp.encode(packet)) == packet


@given(
    st.binary(max_size=120)
    | st.builds(lambda kind, rest: kind + rest, st.sampled_from([b"\1", b"\2", b"\6", b"\7"]), st.binary())
)
def test_any_bytes_give_a_packet_or_a_decode_error(data: Any) -> None:
    """Any other exception would end the reader, and with it every call of the link."""
    try:
        packet = btp.decode(data)
    except DecodeError:
        return
    assert btp.decode(btp.encode(packet)).protocol_data == packet.protocol_data


@given(btp_packets.map(btp.encode) | st.builds(btp.encode_ilp, ILP_TYPES, request_ids, payloads), st.data())
def test_mutated_bytes_give_a_packet_or_a_decode_error(frame: bytes, data: Any) -> None:
    """Random bytes seldom get past the header; a damaged packet does, and both decoders must read it alike."""
    at = data.draw(st.integers(0, min(len(frame) - 1, 30)))
    mutated = frame[:at] + data.draw(st.binary(min_size=1, max_size=3)) + frame[at + 1 :]
    assert btp.decode_ilp(mutated) == answer_of_the_plain_way(mutated)


@pytest.mark.parametrize("value", [None, "text", 7, object()])
def test_other_types_than_bytes_are_a_decode_error(value: Any) -> None:
    with pytest.raises(DecodeError):
        btp.decode(value)
    assert btp.decode_ilp(value) is None


def test_too_many_entries_are_refused_with_the_request_id() -> None:
    """One frame must not cost a server thousands of objects; the peer still learns that its request failed."""
    frame = btp.encode(SAMPLES[2])
    assert btp.decode(frame, max_entries=300) == SAMPLES[2]
    with pytest.raises(DecodeError, match="300 sub-protocol entries: at most 32 are accepted") as caught:
        btp.decode(frame, max_entries=32)
    assert (caught.value.packet_type, caught.value.request_id) == (btp.MESSAGE, 3)


def test_impossible_count_is_refused_before_the_entries() -> None:
    """Four bytes must not make the reader loop, or allocate, four thousand million times."""
    with pytest.raises(DecodeError, match="4294967295 entries are announced, but only 3 bytes follow"):
        btp.decode(bytes.fromhex("0600000001" + "08" + "04ffffffff" + "000000"), max_entries=32)


def test_too_long_error_data_is_neither_read_nor_written() -> None:
    """RFC-0023 allows at most 8192 bytes, and a peer may drop the link for more."""
    most = btp.Error(1, "F00", "E", NOON, bytes(8192))
    frame = btp.encode(most)
    assert btp.decode(frame) == most
    body = frame[8:].replace(b"\x82\x20\x00", b"\x82\x20\x01\x00", 1)
    with pytest.raises(DecodeError, match="8193 bytes: at most 8192 are allowed"):
        btp.decode(frame[:5] + b"\x82" + len(body).to_bytes(2) + body)
    with pytest.raises(InvalidFieldsError, match="data has 8193 bytes: at most 8192 are allowed"):
        btp.encode(btp.Error(1, "F00", "E", NOON, bytes(8193)))


def test_repr_shows_no_entry_data() -> None:
    """An entry may be a token, and a repr ends up in logs and tracebacks."""
    shown = repr(btp.Message(1, (btp.ProtocolData("auth_token", btp.TEXT, b"s3cret"),)))
    assert "s3cret" not in shown
    assert "auth_token" in shown
    assert "<6 bytes>" in shown


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (btp.Message(2**32), "request_id is too large: it must be an integer from 0 to 4294967295"),
        (btp.Message(-1), "request_id is negative"),
        (btp.Transfer(1, 2**64), "amount is too large: it must be an integer from 0 to 18446744073709551615"),
        (btp.Transfer(1, -1), "amount is negative"),
        (btp.Transfer(1, NO_BYTES), "amount is str"),
        (btp.Error(1, "F0", "E", NOON), "code has 2 characters: it must have 3"),
        (btp.Error(1, "Fé0", "E", NOON), "code must be text of ASCII"),
        (btp.Error(1, "F00", "É", NOON), "name must be text of ASCII"),
        (btp.Error(1, "F00", "E", NOON.replace(tzinfo=None)), "triggered_at must be an aware datetime"),
        (btp.Error(1, "F00", "E", NOON, NO_BYTES), "data is str"),
        (btp.Message(1, (btp.ProtocolData("é", 0, b""),)), "protocol_name must be text of ASCII"),
        (btp.Message(1, (btp.ProtocolData("x", 256, b""),)), "content_type is too large"),
        (btp.Message(1, (btp.ProtocolData("x", 0, NO_BYTES),)), "data of 'x' is str"),
        (
            btp.Message(1, (btp.ProtocolData("x", 0, b""), btp.ProtocolData("x", 1, b""))),
            "entries with the same name",
        ),
        (btp.Message(1, (btp.ProtocolData(NO_TEXT, 0, b""),)), "protocol_name must be text of ASCII"),
        (btp.Message(1, NO_ENTRIES), "protocol_data must be a tuple of ProtocolData"),
        (btp.Message(1, (NO_PACKET,)), "protocol_data must be a tuple of ProtocolData"),
    ],
)
def test_packet_with_a_wrong_field_is_not_written(packet: Any, complaint: str) -> None:
    """A silent wrap or cut would send another amount, or another request, than the caller asked for."""
    with pytest.raises(InvalidFieldsError, match=complaint):
        btp.encode(packet)


def test_list_of_entries_makes_the_same_packet() -> None:
    """Otherwise a packet would not equal itself after a round trip, and could not be hashed."""
    entry = btp.ProtocolData("ilp", btp.OCTET_STREAM, b"x")
    packet = btp.Message(1, [entry])
    assert packet == btp.Message(1, (entry,)) == btp.decode(btp.encode(packet))
    assert hash(packet)


def test_only_packets_are_encoded() -> None:
    with pytest.raises(TypeError, match="not bytes"):
        btp.encode(NO_PACKET)


@pytest.mark.parametrize(
    ("microsecond", "written"),
    [(0, ".001Z"), (200_000, ".201Z"), (279_999, ".279Z"), (990_000, ".991Z"), (5_000, ".005Z")],
)
def test_error_time_is_written_with_three_digits_not_ending_in_0(microsecond: int, written: str) -> None:
    """JavaScript reads only three digits, canonical OER forbids a trailing zero: anything else is an Invalid Date."""
    moment = datetime(2018, 8, 31, 14, 0, 0, microsecond, tzinfo=timezone(timedelta(hours=2)))
    frame = btp.encode(btp.Error(1, "F00", "E", moment))
    assert b"\x1320180831120000" + written.encode() in frame
    packet = btp.decode(frame)
    assert isinstance(packet, btp.Error)
    assert abs(packet.triggered_at - moment) <= timedelta(milliseconds=1)


def error_with_time(text: str) -> bytes:
    time = text.encode()
    body = b"F00\x01E" + bytes((len(time),)) + time + b"\x00\x01\x00"
    return b"\x02\x00\x00\x00\x01" + bytes((len(body),)) + body


def test_leap_second_is_read_as_the_next_second() -> None:
    """Once in some years every error of a peer would be unreadable for a second, and its calls would hang."""
    packet = btp.decode(error_with_time("20161231235960.852Z"))
    assert isinstance(packet, btp.Error)
    assert packet.triggered_at == datetime(2017, 1, 1, 0, 0, 0, 852_000, tzinfo=UTC)


@pytest.mark.parametrize("text", ["99991231235960Z", "20171224161460Z", "20171224161432.0Z", "20171224161432.10Z", ""])
def test_impossible_error_time_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        btp.decode(error_with_time(text))


# The fast path.

SIZES = [0, 1, 118, 119, 120, 121, 126, 127, 128, 129, 245, 246, 247, 248, 254, 255, 256, 257, 300, 32_830]
SIZES += [65_524, 65_525, 65_526, 65_535, 65_536, 70_000]


def plain(packet_type: int, request_id: int, data: Any) -> btp.Packet:
    made = btp.Response if packet_type == btp.RESPONSE else btp.Message
    return made(request_id, (btp.ProtocolData("ilp", btp.OCTET_STREAM, data),))


@pytest.mark.parametrize("size", SIZES)
def test_fast_path_handles_every_length_form(size: int) -> None:
    """A size at the border between two forms is where the fast and the general codec may differ."""
    data = bytes(i % 251 for i in range(size))
    frame = btp.encode_ilp(btp.MESSAGE, 7, data)
    assert frame == btp.encode(plain(btp.MESSAGE, 7, data))
    assert btp.decode_ilp(frame) == (btp.MESSAGE, 7, data)
    assert btp.decode_ilp(frame + b"\x00") == (btp.MESSAGE, 7, data)
    assert btp.decode_ilp(frame[:-1]) is None


@given(ILP_TYPES, request_ids, payloads, st.binary(max_size=9))
def test_fast_path_agrees_with_encode_and_decode(packet_type: int, request_id: int, data: Any, trailing: bytes) -> None:
    """Both are one protocol: a peer must not notice which one was used."""
    frame = btp.encode_ilp(packet_type, request_id, data)
    packet = plain(packet_type, request_id, data)
    assert frame == btp.encode(packet)
    assert btp.decode(frame + trailing) == packet
    assert btp.decode_ilp(frame + trailing) == (packet_type, request_id, data)


def length_forms(size: int) -> list[bytes]:
    """Every way to write a length, right ones and wrong ones."""
    forms = [bytes((size,))] if size < 0x80 else []
    return [*forms, b"\x80", *(bytes((0x80 | n,)) + size.to_bytes(n) for n in range((size.bit_length() + 7) // 8, 9))]


@pytest.mark.parametrize("size", [0, 1, 119, 120, 121, 127, 128, 129, 246, 247, 248, 255, 256, 257])
@pytest.mark.parametrize("packet_type", [btp.RESPONSE, btp.ERROR, btp.MESSAGE, btp.TRANSFER, 0])
@pytest.mark.parametrize(
    "entry", [b"\x01\x01\x03ilp\x00", b"\x01\x02\x03ilp\x00", b"\x01\x01\x03ilq\x00", b"\x01\x01\x03ilp\x01"]
)
def test_fast_path_accepts_exactly_what_decode_accepts(packet_type: int, entry: bytes, size: int) -> None:
    """Frames that are almost right, in every form of both lengths, with the body cut or extended."""
    for form, body_error, trailing in product(length_forms(size), (-1, 0, 2), (b"", bytes(300))):
        body = entry + form + bytes(size)
        for length in length_forms(len(body) + body_error):
            frame = struct.pack(">BI", packet_type, 9) + length + body + trailing
            assert btp.decode_ilp(frame) == answer_of_the_plain_way(frame), frame


def answer_of_the_plain_way(frame: bytes) -> tuple[int, int, bytes] | None:
    try:
        packet = btp.decode(frame)
    except DecodeError:
        return None
    entries = [(entry.protocol_name, entry.content_type) for entry in packet.protocol_data]
    if packet.type in {btp.RESPONSE, btp.MESSAGE} and entries == [("ilp", btp.OCTET_STREAM)]:
        return packet.type, packet.request_id, packet.protocol_data[0].data
    return None


@given(st.binary(max_size=300))
@example(bytes.fromhex("060000000180") + b"\x01\x01\x03ilp\x00\x02" + bytes(200))
def test_fast_path_never_raises(data: Any) -> None:
    assert btp.decode_ilp(data) == answer_of_the_plain_way(data)


def test_fast_path_returns_none_for_other_packets() -> None:
    """If the fast path accepted such a frame, the other sub-protocols in it would be lost."""
    assert [btp.decode_ilp(btp.encode(packet)) for packet in SAMPLES] == [None] * 4
    not_bytes: Any = bytearray(btp.encode_ilp(btp.MESSAGE, 1, b"x"))
    assert btp.decode_ilp(not_bytes) is None


@pytest.mark.parametrize(
    ("packet_type", "request_id", "complaint"),
    [(btp.TRANSFER, 1, "packet_type must be 1 or 6, not 7"), (6, 2**32, "request_id must"), (6, -1, "request_id must")],
)
def test_fast_path_refuses_wrong_fields(packet_type: int, request_id: int, complaint: str) -> None:
    """A wrapped request id would give one caller's reply to another."""
    for size in (3, 300, 70_000):
        with pytest.raises(InvalidFieldsError, match=complaint):
            btp.encode_ilp(packet_type, request_id, bytes(size))


@pytest.mark.parametrize(("name", "content_type"), [("memo", True), ("n" * 33, 0), ("n" * 33, 1)])
def test_entry_that_was_not_kept_is_encoded_like_others(name: str, content_type: int) -> None:
    """The encoded beginnings of entries are kept by name and type; True equals 1."""
    for each in (0, 1, content_type):
        entry = btp.ProtocolData(name, each, b"x")
        written = btp.encode(btp.Message(1, (entry,)))
        assert btp.decode(written) == btp.Message(1, (btp.ProtocolData(name, int(each), b"x"),))


def test_wrong_entry_is_refused_after_a_right_one_like_it() -> None:
    btp.encode(btp.Message(1, (btp.ProtocolData("memo", 1, b"x"),)))
    for name, content_type in (("memo", 1.0), ("memo", 256), ("mémo", 1), (b"memo", 1)):
        with pytest.raises(InvalidFieldsError):
            btp.encode(btp.Message(1, (btp.ProtocolData(name, content_type, b"x"),)))  # type: ignore[arg-type]
