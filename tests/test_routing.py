"""Forwarded packets have one answer, in time and proven; errors on the way become Rejects."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from trio_ledger_plugin import (
    ConnectionLostError,
    DecodeError,
    InvalidFieldsError,
    NotConnectedError,
    RemoteError,
    ResponseTimeoutError,
)
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.ilp.routing import child_segment, forward, read_prepare, route

ADDRESS = "test.node"
PREIMAGE = bytes(32)
CONDITION = sha256(PREIMAGE).digest()
FULFILL = ilp.encode(ilp.Fulfill(PREIMAGE, b"done"))
REJECT = ilp.encode(ilp.Reject("F02", "test.other", "no route"))


def prepare(destination: str = "test.node.alice", lifetime: float = 30) -> ilp.Prepare:
    return ilp.Prepare(1, datetime.now(UTC) + timedelta(seconds=lifetime), CONDITION, destination)


class Hop:
    """A next hop that answers after some seconds, or raises an error."""

    def __init__(self, answer: bytes | Exception = FULFILL, seconds: float = 0) -> None:
        self.answer = answer
        self.seconds = seconds
        self.received: list[bytes] = []

    async def send(self, data: bytes) -> bytes:
        self.received.append(data)
        await trio.sleep(self.seconds)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def rejected(answer: bytes) -> str:
    packet = ilp.decode(answer)
    assert isinstance(packet, ilp.Reject)
    assert packet.triggered_by == ADDRESS
    return packet.code


# route


@pytest.mark.parametrize(
    "data",
    [b"", b"raw", FULFILL, REJECT, *(ilp.encode(prepare(to)) for to in (ADDRESS, "peer.ping", "peer.settle.x"))],
    ids=["empty", "no packet", "fulfill", "reject", "own address", "peer.ping", "peer.settle.x"],
)
async def test_what_is_local_is_not_forwarded(data: bytes) -> None:
    """A peer. address at another hop would reach the wrong peer."""
    hop, local = Hop(), Hop(b"reply")
    assert await route(data, hop.send, ADDRESS, local.send) == b"reply"
    assert (hop.received, local.received) == ([], [data])


@pytest.mark.parametrize("destination", ["test.node.alice", "test.nodes", "test.x", "g.peer.x"])
async def test_other_prepares_are_forwarded_unchanged(destination: str) -> None:
    data = ilp.encode(prepare(destination)) + b"ignored"
    hop, local = Hop(), Hop(b"reply")
    assert await route(data, hop.send, ADDRESS, local.send) == FULFILL
    assert (hop.received, local.received) == ([data], [])


async def test_without_a_reply_everything_is_forwarded() -> None:
    hop = Hop(b"answer")
    for data in (b"raw", ilp.encode(prepare(ADDRESS))):
        assert await route(data, hop.send, ADDRESS) == b"answer"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotConnectedError("gone"), "T01"),
        (ConnectionLostError("lost"), "T01"),
        (RemoteError("F00", "NotAcceptedError"), "T01"),
        (ResponseTimeoutError("late"), "R00"),
        (DecodeError("rubbish"), "F01"),
        (InvalidFieldsError("no Prepare"), "F00"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
async def test_error_of_the_next_hop_becomes_a_reject(error: Exception, code: str) -> None:
    """A BTP error says nothing to the ILP sender, who would have to wait for the expiry."""
    assert rejected(await route(ilp.encode(prepare()), Hop(error).send, ADDRESS)) == code


async def test_error_of_the_reply_is_not_a_reject() -> None:
    """The handler's caller maps it, as it maps every error of a handler."""
    with pytest.raises(NotConnectedError):
        await route(b"raw", Hop().send, ADDRESS, Hop(NotConnectedError("own")).send)


async def test_unexpected_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await route(ilp.encode(prepare()), Hop(ZeroDivisionError()).send, ADDRESS)


# forward


@pytest.mark.parametrize("answer", [FULFILL, REJECT, FULFILL + b"ignored"], ids=["fulfill", "reject", "trailing bytes"])
async def test_answer_of_the_next_hop_comes_back_unchanged(answer: bytes) -> None:
    packet, hop = prepare(), Hop(answer)
    assert await forward(packet, hop.send, ADDRESS) == answer
    assert hop.received == [ilp.encode(packet)]
    data = ilp.encode(packet) + b"ignored"
    assert await forward(packet, hop.send, ADDRESS, data) == answer
    assert hop.received[1] == data


async def test_expired_prepare_is_not_sent() -> None:
    hop = Hop()
    assert rejected(await forward(prepare(lifetime=-0.001), hop.send, ADDRESS)) == "R00"
    assert hop.received == []


async def test_no_answer_before_the_expiry_is_r00(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    assert rejected(await forward(prepare(lifetime=5), Hop(seconds=60).send, ADDRESS)) == "R00"
    assert trio.current_time() - began == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("answer", [FULFILL, ilp.encode(ilp.Fulfill(bytes(31) + b"1"))], ids=["right", "wrong"])
async def test_answer_that_ignores_the_expiry_is_r00(answer: bytes, mock_clock: MockClock) -> None:
    """A Fulfill past the expiry would be paid out of this node's own pocket."""

    async def send(data: bytes) -> bytes:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
            mock_clock.jump(10)
            await trio.lowlevel.checkpoint()
        return answer

    assert rejected(await forward(prepare(lifetime=5), send, ADDRESS)) == "R00"


async def test_fulfillment_is_checked_against_the_condition() -> None:
    """The sender would not accept it, and this node would have paid."""
    assert rejected(await forward(prepare(), Hop(ilp.encode(ilp.Fulfill(b"1" * 32))).send, ADDRESS)) == "F05"


@pytest.mark.parametrize("answer", [b"", b"raw", ilp.encode(prepare())], ids=["empty", "no packet", "a Prepare"])
async def test_answer_that_is_no_fulfill_or_reject_is_an_error(answer: bytes) -> None:
    with pytest.raises(DecodeError):
        await forward(prepare(), Hop(answer).send, ADDRESS)


async def test_forward_raises_the_errors_of_send() -> None:
    error = NotConnectedError("gone")
    with pytest.raises(NotConnectedError) as caught:
        await forward(prepare(), Hop(error).send, ADDRESS)
    assert caught.value is error


@pytest.mark.parametrize("lifetime", [30, -1])
async def test_forward_is_a_checkpoint(lifetime: float) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await forward(prepare(lifetime=lifetime), Hop().send, ADDRESS)
    assert scope.cancelled_caught


# Reading


@pytest.mark.parametrize(("data", "problem"), [(b"", ""), (FULFILL, "another ILP packet"), (b"raw", "ILPv4")])
def test_only_a_prepare_is_read(data: Any, problem: str) -> None:
    with pytest.raises(InvalidFieldsError, match=f"must be an ILP Prepare.*{problem}"):
        read_prepare(data)


def test_prepare_is_read() -> None:
    packet = read_prepare(ilp.encode(prepare()))
    assert packet.destination == "test.node.alice"


@pytest.mark.parametrize(
    ("destination", "segment"),
    [
        ("test.node.alice", "alice"),
        ("test.node.alice.~x.y", "alice"),
        ("test.node", None),
        ("test.nodes.alice", None),
        ("test.nod", None),
        ("g.test.node.alice", None),
    ],
)
def test_child_segment(destination: str, segment: str | None) -> None:
    assert child_segment(destination, ADDRESS) == segment


async def test_next_hop_gets_less_time(autojump_clock: MockClock) -> None:
    """Without a margin, this node could get the fulfillment too late to pass it on, and pay for it."""
    packet, hop = prepare(lifetime=30), Hop(seconds=28.5)
    assert await forward(packet, hop.send, ADDRESS, ilp.encode(packet), margin=1.0) == FULFILL
    (sent,) = map(ilp.decode, hop.received)
    assert isinstance(sent, ilp.Prepare)
    assert abs(packet.expires_at - sent.expires_at - timedelta(seconds=1)) <= timedelta(milliseconds=1)
    hop = Hop(seconds=29.5)
    assert rejected(await forward(packet, hop.send, ADDRESS, margin=1.0)) == "R00"


@pytest.mark.parametrize(("lifetime", "code"), [(0.9, "R02"), (-1, "R00")])
async def test_prepare_without_time_for_the_margin_is_not_sent(lifetime: float, code: str) -> None:
    hop = Hop()
    assert rejected(await forward(prepare(lifetime=lifetime), hop.send, ADDRESS, margin=1.0)) == code
    assert hop.received == []


async def test_address_between_peers_is_never_forwarded() -> None:
    """RFC-0015: at another hop it would reach the wrong peer."""
    hop = Hop(b"answer")
    assert rejected(await route(ilp.encode(prepare("peer.settle.x")), hop.send, ADDRESS)) == "F02"
    assert hop.received == []
