"""The state of a connection: every event, one outcome for each call, and authentication."""

import json
from datetime import UTC, datetime
from itertools import count, islice, pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from support.strategies import vectors

from trio_ledger_plugin.btp.auth import (
    BadAuthError,
    auth_accepted,
    auth_message,
    auth_refused,
    read_auth,
    read_auth_answer,
)
from trio_ledger_plugin.btp.options import BtpOptions
from trio_ledger_plugin.btp.session import Session, SessionEvent, error_reply, request_ids
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.errors import (
    ConnectionLostError,
    DecodeError,
    InsufficientBalanceError,
    NotAcceptedError,
    RemoteError,
    UnreachableError,
)

NOON = datetime(2018, 8, 31, 12, 0, 0, 899_000, tzinfo=UTC)
NOTHING = (SessionEvent.NOTHING, None, None)
UNEXPECTED = (SessionEvent.UNEXPECTED, None, None)
GARBAGE = [b"", b"\x06", b"\x03\x00\x00\x00\x01\x00", b"\x06\x00\x00\x00\x01\x05", bytes(40)]


def session_of(first: int = 1, *, max_entries: int = 32) -> Session[str]:
    """A session with one call in flight, ``"call"`` under the first id."""
    return Session({first: "call"}, max_entries=max_entries)


def entry(name: str, data: bytes = b"", content_type: int = 0) -> btp.ProtocolData:
    return btp.ProtocolData(name, content_type, data)


AUTH = entry("auth")


def error_packet(request_id: int, code: str = "F00", data: bytes = b"no") -> btp.Error:
    return btp.Error(request_id, code, "NotAcceptedError", NOON, data, (entry("why", b"1"),))


def repeated(packet_type: int, request_id: int) -> bytes:
    """A packet that can be read and is illegal: two entries of one name."""
    return bytes([packet_type]) + request_id.to_bytes(4, "big") + bytes.fromhex("0a01020161000001610000")


# Replies to calls.


def test_a_response_answers_its_call() -> None:
    session = session_of(7)
    assert session.receive(btp.encode_ilp(btp.RESPONSE, 7, b"yes")) == (SessionEvent.ANSWER, "call", b"yes")
    assert session.pending == {}


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        ((), b""),
        ((entry("ilp"),), b""),
        ((entry("other", b"x"),), b""),
        ((entry("other", b"x"), entry("ilp", b"yes")), b"yes"),
        ((entry("ilp", b"yes", 1),), b"yes"),
    ],
)
def test_response_in_any_shape_answers_its_call(entries: Any, data: Any) -> None:
    """A reply that is not understood is a call that hangs for 35 s."""
    session = session_of()
    assert session.receive(btp.encode(btp.Response(1, entries))) == (SessionEvent.ANSWER, "call", data)


def test_error_fails_its_call_with_all_fields() -> None:
    session = session_of()
    verdict, call, error = session.receive(btp.encode(error_packet(1)))
    assert (verdict, call) == (SessionEvent.FAILURE, "call")
    assert isinstance(error, RemoteError)
    assert (error.code, error.name, error.data) == ("F00", "NotAcceptedError", b"no")
    assert error.triggered_at == NOON
    assert error.protocol_data == (entry("why", b"1"),)


@pytest.mark.parametrize("packet_type", [btp.RESPONSE])
def test_illegal_reply_fails_its_call_at_once(packet_type: Any) -> None:
    session = session_of()
    verdict, call, error = session.receive(repeated(packet_type, 1))
    assert (verdict, call) == (SessionEvent.FAILURE, "call")
    assert isinstance(error, DecodeError)
    assert session.pending == {}


@pytest.mark.parametrize(
    "frame",
    [
        btp.encode_ilp(btp.RESPONSE, 5, b"late"),
        btp.encode(btp.Response(5)),
        btp.encode(error_packet(5)),
        repeated(btp.RESPONSE, 5),
    ],
)
def test_reply_without_a_call_reaches_no_caller(frame: Any) -> None:
    """A late reply given to another call would be the money or data of another caller."""
    session = session_of()
    assert session.receive(frame) == UNEXPECTED
    assert session.pending == {1: "call"}


def test_ids_are_fresh_numbers_of_32_bits_even_where_they_wrap() -> None:
    starts = {next(request_ids()) for _ in range(5)}
    assert len(starts) > 1
    assert all(0 <= number < 2**32 for number in starts)
    numbers = list(islice(request_ids(), 1000))
    assert {(b - a) % 2**32 for a, b in pairwise(numbers)} == {1}


# Requests from the peer.


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        ((entry("ilp", b"ask"),), b"ask"),
        ((entry("ilp"),), b""),
        ((entry("ilp", b"ask", 1), entry("note", b"x")), b"ask"),
    ],
)
def test_a_message_with_ilp_first_is_a_request(entries: Any, data: Any) -> None:
    session = session_of()
    assert session.receive(btp.encode(btp.Message(9, entries))) == (SessionEvent.REQUEST, 9, data)
    assert set(session.serving) == {9}


@pytest.mark.parametrize("entries", [(entry("info", b"\x02"),), (entry("note", b"x"), entry("ilp", b"ask"))])
def test_a_message_is_of_the_sub_protocol_of_its_first_entry(entries: Any) -> None:
    """RFC-0023: the entries behind the first ask for nothing."""
    session = session_of()
    assert session.receive(btp.encode(btp.Message(9, entries))) == (SessionEvent.OTHER, 9, entries)
    assert set(session.serving) == {9}


def test_a_message_without_entries_gets_an_empty_response() -> None:
    """ilp-plugin-btp replies in this way; silence would cost its sender 35 s."""
    session = session_of()
    verdict, request_id, reply = session.receive(btp.encode(btp.Message(9)))
    assert (verdict, request_id) == (SessionEvent.REPLY, 9)
    assert btp.decode(reply) == btp.Response(9)
    assert not session.serving


def test_transfer_is_passed_on_with_all_fields() -> None:
    session = session_of()
    transfer = btp.Transfer(9, 2**64 - 1, (entry("claim", b"{}", 2),))
    assert session.receive(btp.encode(transfer)) == (SessionEvent.TRANSFER, 9, transfer)


REQUESTS = {
    "plain": btp.encode_ilp(btp.MESSAGE, 9, b"ask"),
    "message": btp.encode(btp.Message(9, (entry("ilp", b"ask"), entry("note")))),
    "no ilp": btp.encode(btp.Message(9)),
    "transfer": btp.encode(btp.Transfer(9, 5)),
}


@pytest.mark.parametrize("first", ["plain", "message", "transfer"])
@pytest.mark.parametrize("second", REQUESTS)
def test_an_id_repeated_in_flight_is_dropped(first: Any, second: Any) -> None:
    """A transfer that is applied twice creates money."""
    session = session_of()
    assert session.receive(REQUESTS[first])[0] in (SessionEvent.REQUEST, SessionEvent.TRANSFER)
    assert session.receive(REQUESTS[second]) == NOTHING
    del session.serving[9]
    assert session.receive(REQUESTS[second]) != NOTHING


@pytest.mark.parametrize("packet_type", [btp.MESSAGE, btp.TRANSFER])
def test_an_illegal_request_is_answered_with_f01(packet_type: Any) -> None:
    session = session_of()
    frame = repeated(packet_type, 9)
    if packet_type == btp.TRANSFER:
        frame = frame[:5] + b"\x12" + bytes(8) + frame[6:]
    verdict, request_id, reply = session.receive(frame)
    assert (verdict, request_id) == (SessionEvent.REPLY, 9)
    packet = btp.decode(reply)
    assert isinstance(packet, btp.Error)
    assert (packet.request_id, packet.code, packet.name) == (9, "F01", "InvalidFieldsError")
    assert not session.serving


@pytest.mark.parametrize("frame", GARBAGE)
def test_an_unreadable_packet_changes_nothing(frame: Any) -> None:
    session = session_of()
    verdict, key, error = session.receive(frame)
    assert (verdict, key) == (SessionEvent.MALFORMED, None)
    assert isinstance(error, DecodeError)
    assert (session.pending, session.serving) == ({1: "call"}, {})


def test_packet_with_too_many_entries_is_refused() -> None:
    """Thousands of entries would make one small packet cost a lot of memory."""
    session = session_of(max_entries=3)
    entries = (entry("ilp"), *(entry(f"e{i}") for i in range(3)))
    assert session.receive(btp.encode(btp.Message(8, entries[:3]))) == (SessionEvent.REQUEST, 8, b"")
    verdict, request_id, reply = session.receive(btp.encode(btp.Message(9, entries)))
    assert (verdict, request_id, btp.decode(reply).type) == (SessionEvent.REPLY, 9, btp.ERROR)
    assert set(session.serving) == {8}


def test_text_is_no_packet() -> None:
    verdict, key, error = session_of().reject_text()
    assert (verdict, key) == (SessionEvent.MALFORMED, None)
    assert isinstance(error, DecodeError)


def test_error_reply_contains_code_name_and_text() -> None:
    packet = btp.decode(error_reply(3, InsufficientBalanceError("too little")))
    assert isinstance(packet, btp.Error)
    assert (packet.request_id, packet.code, packet.name) == (3, "F08", "InsufficientBalanceError")
    assert json.loads(packet.data) == {"message": "too little"}
    other = btp.decode(error_reply(3, ConnectionLostError("mine")))
    assert isinstance(other, btp.Error)
    assert (other.code, other.name) == ("F00", "NotAcceptedError")


class SessionMachine(RuleBasedStateMachine):
    """Any order of calls, replies, cancellations and requests: each call has at most one outcome, its own."""

    calls = Bundle("calls")
    requests = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.session: Session[int] = Session({}, max_entries=32)
        # Few ids, so that they repeat while calls are in flight.
        self.ids = (number % 16 for number in count(3))
        self.in_flight: dict[int, int] = {}
        self.serving: set[int] = set()
        self.outcomes: dict[int, int] = {}

    @rule(target=calls)
    def open(self) -> int:
        if len(self.in_flight) == 16:
            return next(iter(self.in_flight))
        call = len(self.outcomes)
        request_id = next(number for number in self.ids if number not in self.in_flight)
        self.session.pending[request_id] = call
        self.in_flight[request_id] = call
        self.outcomes[call] = 0
        return request_id

    def check(self, request_id: int, frame: bytes, verdict: SessionEvent) -> Any:
        got, call, value = self.session.receive(frame)
        if request_id not in self.in_flight:
            assert (got, call, value) == UNEXPECTED
            return None
        assert (got, call) == (verdict, self.in_flight.pop(request_id))
        self.outcomes[call] += 1
        return value

    @rule(request_id=calls | st.integers(0, 20), data=st.binary(max_size=4))
    def answer(self, request_id: int, data: bytes) -> None:
        value = self.check(request_id, btp.encode_ilp(btp.RESPONSE, request_id, data), SessionEvent.ANSWER)
        assert value in (None, data)

    @rule(request_id=calls)
    def answer_empty(self, request_id: int) -> None:
        assert self.check(request_id, btp.encode(btp.Response(request_id)), SessionEvent.ANSWER) in (None, b"")

    @rule(request_id=calls)
    def fail(self, request_id: int) -> None:
        self.check(request_id, btp.encode(error_packet(request_id)), SessionEvent.FAILURE)

    @rule(request_id=calls)
    def answer_badly(self, request_id: int) -> None:
        self.check(request_id, repeated(btp.RESPONSE, request_id), SessionEvent.FAILURE)

    @rule(request_id=consumes(calls))
    def forget(self, request_id: int) -> None:
        """The caller is cancelled, or its call times out."""
        call = self.session.pending.pop(request_id, None)
        assert call == self.in_flight.pop(request_id, None)
        if call is not None:
            self.outcomes[call] += 1

    @rule(target=requests, request_id=st.integers(0, 8), kind=st.sampled_from(["plain", "message", "transfer"]))
    def ask(self, request_id: int, kind: str) -> int:
        frame = REQUESTS[kind][:1] + request_id.to_bytes(4, "big") + REQUESTS[kind][5:]
        verdict, key, _ = self.session.receive(frame)
        if request_id in self.serving:
            assert verdict is SessionEvent.NOTHING
        else:
            assert verdict is (SessionEvent.TRANSFER if kind == "transfer" else SessionEvent.REQUEST)
            assert key == request_id
        self.serving.add(request_id)
        return request_id

    @rule(request_id=consumes(requests))
    def reply(self, request_id: int) -> None:
        self.session.serving.pop(request_id, None)
        self.serving.discard(request_id)

    @rule(frame=st.sampled_from(GARBAGE) | st.binary(max_size=4))
    def garbage(self, frame: bytes) -> None:
        assert self.session.receive(frame)[0] is SessionEvent.MALFORMED

    @invariant()
    def remembers_what_is_in_flight_and_nothing_else(self) -> None:
        assert self.session.pending == self.in_flight
        assert set(self.session.serving) == self.serving
        assert all(times == (call not in self.in_flight.values()) for call, times in self.outcomes.items())


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# Authentication.

SHOWN_TOKENS = {
    "btpv-0102": ("alice", b"shh_its_a_secret"),
    "btpv-0105": ("", b""),
    "btpv-0106": (None, b"tok"),
    "btpv-0109": (None, b"k" * 4096),
}


@pytest.mark.parametrize("vector", [v for v in vectors("btp-valid") if v.values[0]["group"] == "auth"])
def test_recorded_auth_packets_are_read(vector: Any) -> None:
    """A client whose first packet is refused never gets in."""
    frame = bytes.fromhex(vector["hex"])
    if vector["decoded"]["type"] != btp.MESSAGE:
        accepted = vector["decoded"]["type"] == btp.RESPONSE
        if accepted:
            assert read_auth_answer(frame, 8, max_entries=32, token="x")
        else:
            with pytest.raises(NotAcceptedError, match="invalid auth"):
                read_auth_answer(frame, 8, max_entries=32, token="x")
        return
    request = read_auth(frame, max_entries=32)
    assert request.request_id == vector["decoded"]["requestId"]
    names = {e["protocolName"] for e in vector["decoded"]["data"]["protocolData"]}
    assert (request.username is None) == ("auth_username" not in names)
    assert set(request.extra) == names - {"auth", "auth_username", "auth_token"}
    if vector["id"] in SHOWN_TOKENS:
        assert (request.username, request.token) == SHOWN_TOKENS[vector["id"]]


@pytest.mark.parametrize("vector", [v for v in vectors("btp-invalid") if v.values[0].get("context") == "first-packet"])
def test_recorded_bad_first_packets_do_not_authenticate(vector: Any) -> None:
    frame = bytes.fromhex(vector["hex"])
    with pytest.raises(BadAuthError) as caught:
        read_auth(frame, max_entries=32)
    assert caught.value.request_id == int.from_bytes(frame[1:5], "big")


@pytest.mark.parametrize(
    ("frame", "request_id"),
    [
        (b"", None),
        (b"\x06\x00", None),
        (repeated(btp.MESSAGE, 8), 8),
        (btp.encode(btp.Message(8)), 8),
        (btp.encode_ilp(btp.MESSAGE, 8, b"ask"), 8),
        (btp.encode(btp.Message(8, (entry("auth"),))), 8),
        (btp.encode(btp.Message(8, (entry("auth_token", b"t", 1), entry("auth")))), 8),
        (
            btp.encode(
                btp.Message(8, (entry("auth"), entry("auth_username", b"\xff", 1), entry("auth_token", b"t", 1)))
            ),
            8,
        ),
        (btp.encode(btp.Message(8, (entry("auth"), entry("auth_token", b"t", 2)))), 8),
        (btp.encode(btp.Response(8)), 8),
        (btp.encode(btp.Transfer(8, 1)), 8),
    ],
)
def test_other_packets_do_not_authenticate(frame: Any, request_id: Any) -> None:
    with pytest.raises(BadAuthError) as caught:
        read_auth(frame, max_entries=32)
    assert caught.value.request_id == request_id


def test_auth_packet_is_that_of_ilp_plugin_btp() -> None:
    """Other servers know only this order of entries."""
    frame = auth_message(8, "alice", "shh", {"mode": "receive"})
    assert btp.decode(frame) == btp.Message(
        8,
        (
            entry("auth"),
            entry("auth_username", b"alice", 1),
            entry("auth_token", b"shh", 1),
            entry("mode", b"receive", 1),
        ),
    )
    request = read_auth(frame, max_entries=32)
    assert (request.request_id, request.username, request.token) == (8, "alice", b"shh")
    assert request.extra == {"mode": b"receive"}
    assert auth_message(8, "", "", {}).hex() == (
        "0600000008260103046175746800000d617574685f757365726e616d6501000a617574685f746f6b656e0100"
    )


def test_the_credentials_of_a_request_are_not_shown() -> None:
    request = read_auth(auth_message(8, "alice", "canary", {"flag": "canary"}), max_entries=32)
    assert "canary" not in repr(request)
    assert "alice" in repr(request)


def test_accepting_reply_authenticates() -> None:
    assert btp.decode(auth_accepted(8)) == btp.Response(8)
    assert read_auth_answer(auth_accepted(8), 8, max_entries=32, token="shh!")


def test_a_refusal_says_why_in_plain_text() -> None:
    packet = btp.decode(auth_refused(8, "invalid auth_token"))
    assert isinstance(packet, btp.Error)
    assert (packet.request_id, packet.code, packet.name, packet.data) == (
        8,
        "F00",
        "NotAcceptedError",
        b"invalid auth_token",
    )
    with pytest.raises(NotAcceptedError, match="invalid auth_token"):
        read_auth_answer(auth_refused(8, "invalid auth_token"), 8, max_entries=32, token="shh!")


@pytest.mark.parametrize("code", ["F00", "T00"])
def test_refusal_that_repeats_the_token_is_shown_without_it(code: Any) -> None:
    """The text of an error ends up in logs, and so would the token."""
    packet = btp.Error(8, code, "No canary", NOON, b"unknown token canary!", (entry("seen", b"canary"),))
    with pytest.raises((NotAcceptedError, UnreachableError), match=r"unknown token \*\*\*!") as caught:
        read_auth_answer(btp.encode(packet), 8, max_entries=32, token="canary")
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteError)
    assert cause.name == "No ***"
    assert b"canary" not in cause.data
    assert "canary" not in str(cause.__dict__)


def test_temporary_refusal_does_not_reject_the_credentials() -> None:
    """A server that is busy for a moment must not end the plugin."""
    with pytest.raises(UnreachableError, match="cannot authenticate now"):
        read_auth_answer(btp.encode(error_packet(8, "T00")), 8, max_entries=32, token="shh!")


@pytest.mark.parametrize(
    "frame",
    [
        btp.encode(btp.Response(9)),
        btp.encode(error_packet(9)),
        btp.encode_ilp(btp.MESSAGE, 8, b"early"),
        btp.encode(btp.Transfer(8, 1)),
    ],
)
def test_other_packets_before_the_reply_are_kept(frame: Any) -> None:
    assert not read_auth_answer(frame, 8, max_entries=32, token="shh!")


def test_unreadable_reply_is_an_error_of_the_server() -> None:
    with pytest.raises(UnreachableError, match="not readable"):
        read_auth_answer(b"\x01", 8, max_entries=32, token="shh!")


@pytest.mark.parametrize(
    ("value", "content_type", "data"),
    [
        ("text", btp.TEXT, b"text"),
        (b"\x00\xff", btp.OCTET_STREAM, b"\x00\xff"),
        ({"b": [1, None, "\u00e9"], "a": 1.5}, btp.JSON, '{"b":[1,null,"\u00e9"],"a":1.5}'.encode()),
        (5, btp.JSON, b"5"),
        (None, btp.JSON, b"null"),
    ],
)
def test_flag_is_encoded_as_in_the_javascript_plugin(value, content_type, data):
    """A configuration that works there would be refused, or read in a different way by the server."""
    flags = BtpOptions(server="btp+ws://h", btp_auth_flags={"flag": value}).btp_auth_flags
    packet = btp.decode(auth_message(1, "", "t", flags))
    assert packet.protocol_data[3:] == (btp.ProtocolData("flag", content_type, data),)
