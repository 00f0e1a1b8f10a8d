"""ILDCP packets: every recorded vector, and ILP packets that are not ILDCP."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import addresses, amounts, digests, ilp_packets, moments, recorded_time, vectors

from trio_ledger_plugin.codec import ildcp, ilp
from trio_ledger_plugin.errors import DecodeError, InvalidFieldsError

NO_TEXT: Any = None
NO_PACKET: Any = b""

requests = st.builds(ildcp.IldcpRequest, moments, amounts, st.binary(max_size=40))
responses = st.builds(ildcp.IldcpResponse, addresses, st.integers(0, 255), st.text(max_size=200))


@pytest.mark.parametrize("vector", vectors("ildcp-valid"))
def test_recorded_packet_is_read_and_written_unchanged(vector: dict[str, Any]) -> None:
    """With a wrong asset scale, every later amount is wrong by powers of ten."""
    data, recorded = bytes.fromhex(vector["hex"]), vector["decoded"]
    packet = ildcp.decode(data)
    if vector["kind"] == "request":
        expires_at = recorded_time(recorded["expiresAt"])
        assert packet == ildcp.IldcpRequest(expires_at, 0, bytes.fromhex(recorded["data"]))
    else:
        assert packet == ildcp.IldcpResponse(recorded["clientAddress"], recorded["assetScale"], recorded["assetCode"])
    assert ildcp.encode(packet) == data


@pytest.mark.parametrize("vector", vectors("ildcp-invalid"))
def test_recorded_bad_packet_gets_its_error(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    if vector["strict"]["verdict"] == "accept":
        assert ildcp.encode(ildcp.decode(data)) == data
        return
    with pytest.raises(DecodeError):
        ildcp.decode(data)


@given(requests | responses)
def test_packet_round_trips(packet: ildcp.Packet) -> None:
    assert ildcp.decode(ildcp.encode(packet)) == packet


@given(responses)
def test_additional_fields_are_ignored_and_missing_ones_are_not(packet: ildcp.IldcpResponse) -> None:
    """RFC-0030 adds fields at the end; a response cut short must not give a child half an address."""
    answer = ilp.decode(ildcp.encode(packet)).data
    assert ildcp.decode(ilp.encode(ilp.Fulfill(bytes(32), answer + b"\xff"))) == packet
    for size in range(len(answer)):
        with pytest.raises(DecodeError):
            ildcp.decode(ilp.encode(ilp.Fulfill(bytes(32), answer[:size])))


@given(
    st.binary(max_size=120)
    | ilp_packets.map(ilp.encode)
    | st.binary().map(lambda d: ilp.encode(ilp.Fulfill(bytes(32), d)))
)
def test_any_bytes_give_a_packet_or_a_decode_error(data: bytes) -> None:
    """A parent that sends rubbish must fail only the call that asked, with the error that it expects."""
    try:
        packet = ildcp.decode(data)
    except DecodeError:
        return
    assert ildcp.decode(ildcp.encode(packet)) == packet


def test_request_expires_after_a_minute_by_default() -> None:
    """A request that never expires would be answered after its caller has gone; an expired one, not at all."""
    packet = ildcp.IldcpRequest()
    assert timedelta(seconds=50) < packet.expires_at - datetime.now(UTC) <= timedelta(seconds=60, milliseconds=1)
    assert (packet.amount, packet.data) == (0, b"")
    assert ildcp.decode(ildcp.encode(packet)) == packet


@given(moments, digests.filter(lambda digest: digest != ildcp.CONDITION))
def test_other_prepares_are_not_a_request(expires_at: datetime, condition: bytes) -> None:
    """A plugin answers ILDCP requests itself: a payment mistaken for one would be lost."""
    for condition_, destination in [(ildcp.CONDITION, "peer.configure"), (condition, "peer.config")]:
        with pytest.raises(DecodeError, match=r"goes to peer\.config with the condition of 32 zero bytes"):
            ildcp.decode(ilp.encode(ilp.Prepare(0, expires_at, condition_, destination)))


def test_other_fulfills_are_not_a_response() -> None:
    answer = ilp.decode(ildcp.encode(ildcp.IldcpResponse("g.a", 9, "XRP"))).data
    with pytest.raises(DecodeError, match="fulfillment of 32 zero bytes"):
        ildcp.decode(ilp.encode(ilp.Fulfill(b"\x01" + bytes(31), answer)))


def test_rejected_request_names_the_code() -> None:
    """A child that gets no response should at least log the reason."""
    with pytest.raises(DecodeError, match="rejected with code 'F02'"):
        ildcp.decode(ilp.encode(ilp.Reject("F02", "g.a", "no")))


@pytest.mark.parametrize(
    ("packet", "complaint"),
    [
        (ildcp.IldcpResponse("nowhere", 9, "XRP"), "client_address must be an ILP address"),
        (ildcp.IldcpResponse("g.a", 256, "XRP"), "asset_scale is too large: it must be an integer from 0 to 255"),
        (ildcp.IldcpResponse("g.a", 9, NO_TEXT), "asset_code must be text that UTF-8 can encode"),
        (ildcp.IldcpRequest(amount=-1), "amount is negative"),
    ],
)
def test_packet_with_a_wrong_field_is_not_written(packet: ildcp.Packet, complaint: str) -> None:
    with pytest.raises(InvalidFieldsError, match=complaint):
        ildcp.encode(packet)


def test_only_packets_are_encoded() -> None:
    with pytest.raises(TypeError, match="not bytes"):
        ildcp.encode(NO_PACKET)
