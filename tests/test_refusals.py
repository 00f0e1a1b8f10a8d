"""Refusals that break the rules in a detail keep their meaning: the code, and that they are refusals."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ledger_plugin.btp.auth import read_auth_answer
from trio_ledger_plugin.btp.session import Session, SessionEvent
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.codec.oer import length_prefix
from trio_ledger_plugin.codec.refusals import read_error, read_reject
from trio_ledger_plugin.errors import DecodeError, NotAcceptedError, RemoteError, UnreachableError
from trio_ledger_plugin.ilp.configuration import read_ildcp_answer
from trio_ledger_plugin.ilp.routing import forward
from trio_ledger_plugin.testing.conformance.assertions import Recorder


def octets(data: bytes) -> bytes:
    return length_prefix(len(data)) + data


def reject(code: bytes = b"T04", address: bytes = b"example.bob", message: bytes = b"no", data: bytes = b"") -> bytes:
    return b"\x0e" + octets(code + octets(address) + octets(message) + octets(data))


def error(
    code: bytes = b"F08",
    name: bytes = b"InsufficientBalanceError",
    time: bytes = b"20180831120000.899Z",
    data: bytes = b"no",
    entries: bytes = b"\x01\x00",
) -> bytes:
    return b"\x02\x00\x00\x00\x01" + octets(code + octets(name) + octets(time) + octets(data) + entries)


ODD_REJECTS = {
    "address of one word": (reject(address=b"unknown"), ilp.Reject("T04", "", "no")),
    "dot at its end": (reject(address=b"example.bob."), ilp.Reject("T04", "", "no")),
    "address in Latin-1": (reject(address="example.b\xf6b".encode("latin-1")), ilp.Reject("T04", "", "no")),
    "message in Latin-1": (reject(message=b"liquidit\xe9"), ilp.Reject("T04", "example.bob", "liquidit\ufffd")),
    "long message": (reject(message=b"x" * 9000), ilp.Reject("T04", "example.bob", "x" * 8191)),
    "long data": (reject(data=bytes(40_000)), ilp.Reject("T04", "example.bob", "no")),
    "no data": (
        b"\x0e" + octets(b"T04" + octets(b"example.bob") + octets(b"no")),
        ilp.Reject("T04", "example.bob", "no"),
    ),
    "code alone": (b"\x0e\x03T04", ilp.Reject("T04", "", "")),
    "unreadable code": (reject(code=b"\xff04"), ilp.Reject("F99", "example.bob", "no")),
}


@pytest.mark.parametrize("name", ODD_REJECTS)
def test_odd_reject_keeps_what_can_be_used(name: str) -> None:
    packet, readable = ODD_REJECTS[name]
    with pytest.raises(DecodeError):
        ilp.decode(packet)
    assert read_reject(packet) == readable
    assert ilp.decode(ilp.encode(readable)) == readable


@pytest.mark.parametrize("packet", [b"", b"\x0e", b"\x0e\x02T0", b"\x0e\x05T04", b"\x0d\x03abc", b"\x0c\x00"])
def test_what_is_no_whole_reject_is_none(packet: bytes) -> None:
    assert read_reject(packet) is None


@given(st.sampled_from(ilp.ErrorCode), st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=60))
def test_code_survives_any_details(code: Any, address: bytes, message: bytes, data: bytes) -> None:
    packet = read_reject(reject(code.encode(), address, message, data))
    assert packet is not None
    assert (packet.code, packet.data) == (code, data)
    assert ilp.decode(ilp.encode(packet)) == packet


@pytest.mark.parametrize("name", ODD_REJECTS)
async def test_router_passes_an_odd_reject_on(name: str) -> None:
    """The payer would get F01, "your packet is invalid", which is final and untrue, instead of T04."""
    packet, readable = ODD_REJECTS[name]
    condition = hashlib.sha256(bytes(32)).digest()
    prepare = ilp.Prepare(1, datetime.now(UTC) + timedelta(seconds=9), condition, "example.bob.x")
    log = Recorder()

    async def send(_: bytes) -> bytes:
        return packet

    assert ilp.decode(await forward(prepare, send, "example.router", log=log)) == readable
    assert len(log.lines) == 1


def test_ildcp_refusal_with_an_odd_message_is_a_refusal() -> None:
    with pytest.raises(RemoteError) as caught:
        read_ildcp_answer(reject(message=b"\xff"))
    assert caught.value.code == "T04"


ODD_ERRORS = {
    "time without a day": error(time=b"201808"),
    "time with a zone": error(time=b"20180831120000.899+0200"),
    "no time": error(time=b""),
    "name in Latin-1": error(name=b"R\xe9fus"),
    "long data": error(data=bytes(9000)),
    "entries that are cut off": error(entries=b"\x01\x05"),
    "no entries": error(entries=b""),
    "two entries of a name": error(entries=b"\x01\x02" + 2 * b"\x01a\x00\x00"),
}


@pytest.mark.parametrize("name", ODD_ERRORS)
def test_odd_error_fails_its_call_as_refused(name: str) -> None:
    """The call would wait for 35 s, and a transfer that was refused would be in doubt."""
    session = Session({1: "call"}, max_entries=32)
    event, call, failure = session.receive(ODD_ERRORS[name])
    assert (event, call) == (SessionEvent.FAILURE, "call")
    assert isinstance(failure, RemoteError)
    assert failure.code == "F08"
    assert isinstance(failure.__cause__, DecodeError)
    assert session.pending == {}


def test_odd_error_without_a_call_is_given_to_nobody() -> None:
    session = Session({2: "call"}, max_entries=32)
    assert session.receive(ODD_ERRORS["no time"])[0] is SessionEvent.MALFORMED
    assert session.pending == {2: "call"}


@pytest.mark.parametrize(
    "frame", [b"\x02\x00\x00\x00\x01\x05F0", b"\x02\x00\x00\x00\x01\x02F0", b"\x01\x00\x00\x00\x01\x00"]
)
def test_what_is_no_whole_error_is_none(frame: bytes) -> None:
    assert read_error(frame) is None


def test_unreadable_code_and_name_are_replaced() -> None:
    packet = read_error(error(code=b"\xff00", name=b"\xff"))
    assert packet is not None
    assert (packet.code, packet.name, packet.data) == ("F00", "NotAcceptedError", b"no")


@pytest.mark.parametrize(("code", "kind"), [(b"F00", NotAcceptedError), (b"T00", UnreachableError)])
def test_odd_refusal_of_a_token_keeps_its_verdict(code: bytes, kind: type[Exception]) -> None:
    """A client would dial for ever with a token that the server has refused."""
    with pytest.raises(kind):
        read_auth_answer(error(code=code, time=b"yesterday"), 1, max_entries=32, token="token")
