"""Forwarding ILP packets from one account to another (RFC-0027).

Invariants: a Prepare that was forwarded has exactly one answer. It is the next hop's Fulfill or Reject, or a Reject by
this node. An address between two peers is never forwarded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from attrs import evolve

from ..codec import ilp
from ..codec.refusals import read_reject
from ..errors import DecodeError, InvalidFieldsError, LedgerPluginError

if TYPE_CHECKING:
    from ..services import Log

__all__ = ["Send", "child_segment", "forward", "has_expired", "read_prepare", "route"]

#: Sends an ILP packet to a peer and returns the peer's answer, as ``LedgerPlugin.send_data`` does.
Send: TypeAlias = Callable[[bytes], Awaitable[bytes]]

# Addresses between two peers: what is sent to one is never forwarded.
PEER_PREFIX: Final = "peer."


async def route(data: bytes, send: Send, address: str, reply: Send | None = None) -> bytes:
    """Answer a request: forward it, or reply if it is for this node itself.

    Args:
        data: The request.
        send: Forwards the request and returns its answer. Its errors become Rejects, as `codec.ilp.reject_from` has
            them.
        address: This node's ILP address.
        reply: Answers what is for this node: a Prepare to ``address`` or to an address that begins with ``peer.``, and
            what is not a Prepare. If None, all is forwarded but the addresses with ``peer.``, which are rejected with
            ``F02``: they are never forwarded (RFC-0015).

    Cancellation: As ``send`` and ``reply`` say.
    """
    prepare = _find_prepare(data)
    is_for_peer = prepare is not None and prepare.destination.startswith(PEER_PREFIX)
    if reply is not None and (prepare is None or is_for_peer or prepare.destination == address):
        return await reply(data)
    if is_for_peer:
        await trio.lowlevel.checkpoint()
        text = "an address between two peers is not forwarded"
        return ilp.encode(ilp.Reject(ilp.ErrorCode.UNREACHABLE, address, text))
    try:
        return await send(data)
    except LedgerPluginError as error:
        return ilp.encode(ilp.reject_from(error, address))


def _find_prepare(data: bytes) -> ilp.Prepare | None:
    try:
        packet = ilp.decode(data)
    except DecodeError:
        return None
    return packet if isinstance(packet, ilp.Prepare) else None


async def forward(
    prepare: ilp.Prepare,
    send: Send,
    address: str,
    data: bytes | None = None,
    *,
    log: Log | None = None,
    margin: float = 0.0,
) -> bytes:
    """Send a Prepare to the next hop, and return its answer unless that comes too late or is wrong.

    Args:
        prepare: The packet.
        send: Sends the packet to the next hop and returns the answer.
        address: This node's ILP address, for its own Rejects.
        data: The packet's bytes as they came; if None, ``prepare`` is encoded.
        log: Gets a warning about a Reject that breaks the rules.
        margin: How many seconds earlier the packet expires at the next hop: the time to pass its answer on, without
            which this node could pay and not be paid. It also ends packets that go round in a circle.

    Returns:
        The next hop's answer, unchanged, except that an unusual address, message or code of a Reject is replaced: it
        stays a Reject. Or a Reject by this node: ``R00`` if the Prepare expires first, ``R02`` if less than the margin
        is left, ``F05`` if the fulfillment is not the condition's preimage.

    Raises:
        DecodeError: The answer is not an ILP Fulfill or Reject; the peer may have acted.
        LedgerPluginError: ``send`` raised it.

    Cancellation: As ``send`` says.
    """
    # Computed once: a wall clock that is set meanwhile changes nothing.
    left = (prepare.expires_at - datetime.now(UTC)).total_seconds()
    deadline = trio.current_time() + left - margin
    rejection = ilp.Reject(ilp.ErrorCode.TRANSFER_TIMED_OUT, address, "the packet expired")
    if 0 < left <= margin:
        text = f"the packet expires within {margin:g} s, too early to be forwarded"
        rejection = ilp.Reject(ilp.ErrorCode.INSUFFICIENT_TIMEOUT, address, text)
    if margin:
        prepare, data = evolve(prepare, expires_at=prepare.expires_at - timedelta(seconds=margin)), None
    if trio.current_time() < deadline:
        with trio.move_on_at(deadline):
            answer = await send(ilp.encode(prepare) if data is None else data)
            wrong = _check_answer(answer, prepare, address, log)
            if trio.current_time() < deadline:
                if wrong is None:
                    return answer
                rejection = wrong
    await trio.lowlevel.checkpoint()
    return ilp.encode(rejection)


def _check_answer(answer: bytes, prepare: ilp.Prepare, address: str, log: Log | None) -> ilp.Reject | None:
    """Return the Reject that takes the place of a wrong answer; None if the answer is right.

    Raises:
        DecodeError: The answer is not a Fulfill or Reject.
    """
    try:
        packet = ilp.decode(answer)
    except DecodeError as error:
        reject = read_reject(answer)
        if reject is None:
            raise
        if log is not None:
            log.warn("a Reject for %s was repaired on its way: %s", prepare.destination, error)
        return reject
    if isinstance(packet, ilp.Prepare):
        raise DecodeError("the answer to a Prepare is a Prepare")
    if isinstance(packet, ilp.Fulfill) and not ilp.fulfills(packet.fulfillment, prepare.execution_condition):
        return ilp.Reject(ilp.ErrorCode.WRONG_CONDITION, address, "the fulfillment is not the condition's preimage")
    return None


def has_expired(prepare: ilp.Prepare) -> bool:
    """Whether a Prepare's time is over."""
    return prepare.expires_at <= datetime.now(UTC)


def read_prepare(data: bytes) -> ilp.Prepare:
    """Return the Prepare that the data holds.

    Raises:
        InvalidFieldsError: It holds another ILP packet, or none.
    """
    problem = "another ILP packet"
    try:
        packet = ilp.decode(data)
        if isinstance(packet, ilp.Prepare):
            return packet
    except DecodeError as error:
        problem = str(error)
    raise InvalidFieldsError(f"data must be an ILP Prepare, whose destination names the account: {problem}")


def child_segment(destination: str, address: str) -> str | None:
    """Return the first segment of a destination below an address; None if the destination is not below it."""
    prefix = f"{address}."
    return destination[len(prefix) :].partition(".")[0] if destination.startswith(prefix) else None
