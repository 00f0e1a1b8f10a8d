"""ILPv4 packets: every recorded vector, every truncation, addresses, and the helper functions."""

import hashlib
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import addresses, ilp_packets, recorded_time, same_octets, vectors

from trio_ledger_plugin import errors
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.codec.ilp import ErrorCode
from trio_ledger_plugin.errors import DecodeError, InvalidFieldsError

NOON = datetime(2030, 1, 2, 12, 0, 0, 678_000, tzinfo=UTC)
CONDITION = hashlib.sha256(bytes(32)).digest()
NO_BYTES: Any = "text"
WIDE_ITEMS: Any = memoryview(bytes(128)).cast("I")
NO_TEXT: Any = None
NO_PACKET: Any = b""


def assert_is_recorded(packet: ilp.Packet, decoded: dict[str, Any]) -> None:
    data = decoded["data"]
    assert packet.type == decoded["type"]
    assert same_octets(packet.data, data)
    match packet:
        case ilp.Prepare():
            assert packet.amount == int(data["amount"])
            assert packet.expires_at == recorded_time(data["expiresAt"])
            assert packet.execution_condition.hex() == data["executionCondition"]
            assert packet.destination == data["destination"]
        case ilp.Fulfill():
            assert packet.fulfillment.hex() == data["fulfillment"]
        case ilp.Reject():
            assert (packet.code, packet.triggered_by) == (data["code"], data["triggeredBy"])
            recorded = data | ({"message": data["message"].encode().hex()} if "message" in data else {})
            assert same_octets(packet.message.encode(), recorded, "message")


@pytest.mark.parametrize("vector", vectors("ilp-valid"))
def test_recorded_packet_is_read_and_written_unchanged(vector: dict[str, Any]) -> None:
    """A Prepare that is read differently from other implementations is money sent elsewhere, or too late."""
    data = bytes.fromhex(vector["hex"])
    packet = ilp.decode(data)
    assert_is_recorded(packet, vector["decoded"])
    assert ilp.encode(packet) == data


@pytest.mark.parametrize("vector", vectors("ilp-invalid"))
def test_recorded_bad_packet_gets_its_error(vector: dict[str, Any]) -> None:
    """A packet that only some nodes of a path accept is stuck between them until it expires."""
    data = bytes.fromhex(vector["hex"])
    if vector["strict"]["verdict"] == "accept":
        assert_is_recorded(ilp.decode(data), vector["js"]["decoded"])
        return
    with pytest.raises(DecodeError):
        ilp.decode(data)


SAMPLES = [
    ilp.Prepare(107, NOON, CONDITION, "example.alice", b"hello"),
    ilp.Fulfill(bytes(32), bytes(200)),
    ilp.Reject("F02", "example.bob", "no route", b"\x00"),
]


@pytest.mark.parametrize("packet", SAMPLES, ids=lambda packet: type(packet).__name__)
def test_packet_cut_anywhere_is_refused(packet: ilp.Packet) -> None:
    data = ilp.encode(packet)
    for size in range(len(data)):
        with pytest.raises(DecodeError):
            ilp.decode(data[:size])


@pytest.mark.parametrize("packet", SAMPLES, ids=lambda packet: type(packet).__name__)
def test_bytes_after_the_packet_are_ignored(packet: ilp.Packet) -> None:
    """RFC-0030 adds later fields there: refusing them would lock out newer nodes."""
    data = ilp.encode(packet)
    assert ilp.decode(data + b"\x00\xff") == packet
    assert ilp.decode(bytearray(data)) == ilp.decode(memoryview(data)) == packet


@given(ilp_packets)
def test_packet_round_trips(packet: ilp.Packet) -> None:
    assert ilp.decode(ilp.encode(packet)) == packet


@given(
    st.binary(max_size=120)
    | st.builds(lambda kind, rest: kind + rest, st.sampled_from([b"\x0c", b"\x0d", b"\x0e"]), st.binary())
)
def test_any_bytes_give_a_packet_or_a_decode_error(data: bytes) -> None:
    """A peer must not be able to cause an exception that a handler does not expect."""
    try:
        packet = ilp.decode(data)
    except DecodeError:
        return
    assert ilp.decode(ilp.encode(packet)) == packet


@given(ilp_packets.map(ilp.encode), st.data())
def test_mutated_bytes_give_a_packet_or_a_decode_error(data: bytes, choose: st.DataObject) -> None:
    at = choose.draw(st.integers(0, min(len(data) - 1, 120)))
    try:
        packet = ilp.decode(data[:at] + choose.draw(st.binary(min_size=1, max_size=3)) + data[at + 1 :])
    except DecodeError:
        return
    assert ilp.decode(ilp.encode(packet)) == packet


@pytest.mark.parametrize("value", [None, "text", 7])
def test_other_types_than_bytes_are_a_decode_error(value: Any) -> None:
    with pytest.raises(DecodeError):
        ilp.decode(value)


def test_message_length_is_limited_in_characters() -> None:
    """RFC-0027 counts characters: 8191 that are not ASCII are legal, one more is not."""
    longest = ilp.Reject("F00", "g.a", "é" * 8191)
    data = ilp.encode(longest)
    assert ilp.decode(data) == longest
    with pytest.raises(InvalidFieldsError, match="message has 8192 characters: at most 8191 are allowed"):
        ilp.encode(ilp.Reject("F00", "g.a", "m" * 8192))


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (ilp.Prepare(2**64, NOON, CONDITION, "g.a"), "amount is too large"),
        (ilp.Prepare(-1, NOON, CONDITION, "g.a"), "amount is negative"),
        (ilp.Prepare(1, NOON.replace(tzinfo=None), CONDITION, "g.a"), "expires_at must be an aware datetime"),
        (ilp.Prepare(1, NOON, CONDITION[1:], "g.a"), "execution_condition must be exactly 32 bytes"),
        (ilp.Prepare(1, NOON, WIDE_ITEMS, "g.a"), "execution_condition must be exactly 32 bytes"),
        (ilp.Prepare(1, NOON, NO_BYTES, "g.a"), "execution_condition must be exactly 32 bytes"),
        (ilp.Prepare(1, NOON, CONDITION, "g"), "destination must be an ILP address"),
        (ilp.Prepare(1, NOON, CONDITION, ""), "destination must be an ILP address"),
        (ilp.Prepare(1, NOON, CONDITION, NO_TEXT), "destination must be an ILP address"),
        (ilp.Prepare(1, NOON, CONDITION, "g.a", bytes(32_768)), "data has 32768 bytes: at most 32767 are allowed"),
        (ilp.Fulfill(bytes(31)), "fulfillment must be exactly 32 bytes"),
        (ilp.Fulfill(bytes(32), bytes(32_768)), "data has 32768 bytes"),
        (ilp.Reject("F0", "g.a"), "code has 2 characters: it must have 3"),
        (ilp.Reject("F\u00e90", "g.a"), "code must be text of ASCII"),
        (ilp.Reject("F00", "nowhere"), "triggered_by must be an ILP address or empty"),
        (ilp.Reject("F00", NO_TEXT), "triggered_by must be an ILP address or empty"),
        (ilp.Reject("F00", "g.a", "\ud800"), "message must be text that UTF-8 can encode"),
        (ilp.Reject("F00", "g.a", NO_TEXT), "message must be text that UTF-8 can encode"),
        (ilp.Reject("F00", "g.a", "", bytes(32_768)), "data has 32768 bytes"),
    ],
)
def test_packet_with_a_wrong_field_is_not_written(packet: ilp.Packet, complaint: str) -> None:
    """A silent wrap would offer another amount; a packet that other nodes refuse would only time out."""
    with pytest.raises(InvalidFieldsError, match=complaint):
        ilp.encode(packet)


def test_only_packets_are_encoded() -> None:
    with pytest.raises(TypeError, match="not bytes"):
        ilp.encode(NO_PACKET)


def test_illegal_reject_still_shows_its_code() -> None:
    """The sender learns why its payment failed, even if the rejecting node has an invalid address."""
    with pytest.raises(DecodeError, match=r"code 'T01' comes from 'foo\.a'"):
        ilp.decode(bytes.fromhex("0e0b54303105666f6f2e610000"))


@given(addresses)
def test_addresses_of_every_scheme_are_accepted(address: str) -> None:
    assert ilp.is_address(address)
    assert not ilp.is_address(f"{address}.")
    assert not ilp.is_address(f"{address}\n")
    assert not ilp.is_address(f".{address}")


@pytest.mark.parametrize(
    "text",
    ["", "g", "g.", "g..a", "G.a", "test4.a", "foo.a", "g.a b", "g.\u00e9", "g.a/b", "ag.a", "g." + "a" * 1022, None],
)
def test_invalid_address_is_refused(text: Any) -> None:
    """A connector routes by address: a malformed one must be refused when it arrives."""
    assert not ilp.is_address(text)


def test_address_of_1023_characters_is_the_longest() -> None:
    assert ilp.is_address("g." + "a" * 1021)


def test_make_prepare_sets_the_expiry_from_the_lifetime() -> None:
    now = datetime(2030, 1, 2, 14, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=2)))
    packet = ilp.make_prepare(5, "g.a", CONDITION, 30.5, b"x", now=now)
    assert packet == ilp.Prepare(5, datetime(2030, 1, 2, 12, 0, 30, 623_000, tzinfo=UTC), CONDITION, "g.a", b"x")
    assert ilp.decode(ilp.encode(packet)) == packet


def test_make_prepare_uses_the_system_clock_by_default() -> None:
    before = datetime.now(UTC)
    packet = ilp.make_prepare(5, "g.a", CONDITION, 30)
    milliseconds = timedelta(milliseconds=1)
    assert (
        before + timedelta(seconds=30) - milliseconds < packet.expires_at <= datetime.now(UTC) + timedelta(seconds=30)
    )
    assert packet.data == b""


@pytest.mark.parametrize("lifetime", [0, -1, float("nan"), float("inf"), 10**12])
def test_impossible_lifetime_is_refused(lifetime: float) -> None:
    """Every node rejects a Prepare that has expired when it is made, with a text that explains nothing."""
    with pytest.raises(InvalidFieldsError, match="lifetime must be a number of seconds, more than 0"):
        ilp.make_prepare(5, "g.a", CONDITION, lifetime)


def test_only_the_preimage_fulfills() -> None:
    """If anything else were accepted, this node would pay for it out of its own pocket."""
    preimage = bytes(range(32))
    condition = hashlib.sha256(preimage).digest()
    assert ilp.fulfills(preimage, condition)
    assert not ilp.fulfills(bytes(32), condition)
    assert not ilp.fulfills(condition, condition)
    assert not ilp.fulfills(preimage, condition[:-1])
    assert not ilp.fulfills(b"short", hashlib.sha256(b"short").digest())


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DecodeError("secret"), "F01", "invalid packet"),
        (InvalidFieldsError("secret"), "F00", "bad request"),
        (errors.NotAcceptedError("secret"), "F00", "bad request"),
        (errors.InvalidFulfillmentError("secret"), "F05", "wrong condition"),
        (errors.InsufficientBalanceError("secret"), "T04", "insufficient liquidity"),
        (errors.ResponseTimeoutError("secret"), "R00", "transfer timed out"),
        (errors.UnreachableError("secret"), "T01", "peer unreachable"),
        (errors.ConnectTimeoutError("secret"), "T01", "peer unreachable"),
        (errors.NotConnectedError("secret"), "T01", "peer unreachable"),
        (errors.ConnectionLostError("secret"), "T01", "peer unreachable"),
        (errors.PluginClosedError("secret"), "T01", "peer unreachable"),
        (errors.PluginFailedError("secret"), "T01", "peer unreachable"),
        (errors.RemoteError("F00", "secret"), "T01", "peer unreachable"),
        (errors.DuplicateIdError("secret"), "T00", "internal error"),
        (ValueError("secret"), "T00", "internal error"),
        (KeyboardInterrupt("secret"), "T00", "internal error"),
    ],
)
def test_reject_has_a_matching_code_and_no_error_text(error: BaseException, code: str, message: str) -> None:
    """With the wrong class of code, senders retry for ever or never; the error's text is not for other nodes."""
    packet = ilp.reject_from(error, "g.a")
    assert packet == ilp.Reject(code, "g.a", message)
    assert ilp.decode(ilp.encode(packet)) == packet


def test_codes_have_names() -> None:
    assert ErrorCode("F02").name == "UNREACHABLE"
    assert ErrorCode["RATE_LIMITED"] == "T05"
    assert {code[0] for code in ErrorCode} == {"F", "T", "R"}


def test_repr_shows_neither_fulfillment_nor_data() -> None:
    """A fulfillment is worth its packet's money until it is delivered, and a repr ends up in logs."""
    assert repr(ilp.Fulfill(b"f" * 32, b"secret")) == "Fulfill(fulfillment=<32 bytes>, data=<6 bytes>)"
    assert "secret" not in repr(
        [ilp.Prepare(1, NOON, CONDITION, "g.a", b"secret"), ilp.Reject("F00", "", "", b"secret")]
    )


def test_last_moment_that_python_has_can_be_sent() -> None:
    """Programs use it for "never". It cannot be rounded up."""
    packet = ilp.Prepare(0, datetime.max.replace(tzinfo=UTC), bytes(32), "g.a")
    assert ilp.decode(ilp.encode(packet)) == ilp.Prepare(
        0, datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC), bytes(32), "g.a"
    )
