"""The answers of ``serve`` and ``demo``, and the packets that ``ping`` and ``demo`` send.

A Fulfill's preimage is the SHA-256 digest of the Prepare's data, so that both ends can compute it.
"""

from __future__ import annotations

import os
from hashlib import sha256

from ..codec import ilp
from ..errors import DecodeError
from ..ilp.routing import has_expired

__all__ = ["ADDRESS", "REPLIES", "echo", "fulfill", "make_question", "reject"]

ADDRESS = "example.trio-ledger-plugin"
# Addresses of this scheme are between two peers: connectors do not forward packets to them.
DESTINATION = "peer.ping"


def make_question(amount: int, lifetime: float, *, size: int = 32) -> ilp.Prepare:
    """Return a Prepare with random data, which ``fulfill`` fulfills.

    Args:
        amount: The amount.
        lifetime: Seconds until it expires.
        size: Bytes of data.
    """
    data = os.urandom(size)
    return ilp.make_prepare(amount, DESTINATION, sha256(_preimage(data)).digest(), lifetime, data)


async def echo(data: bytes, address: str = ADDRESS) -> bytes:  # noqa: ARG001 (all replies take it)
    """Answer with the same bytes."""
    return data


async def fulfill(data: bytes, address: str = ADDRESS) -> bytes:
    """Answer a Prepare with its Fulfill, or with a Reject by this address that gives the reason."""
    try:
        prepare = ilp.decode(data)
    except DecodeError as error:
        return ilp.encode(ilp.reject_from(error, address))
    if not isinstance(prepare, ilp.Prepare):
        return ilp.encode(ilp.Reject(ilp.ErrorCode.BAD_REQUEST, address, "not a Prepare"))
    if has_expired(prepare):
        return ilp.encode(ilp.Reject(ilp.ErrorCode.TRANSFER_TIMED_OUT, address, "expired"))
    preimage = _preimage(prepare.data)
    if not ilp.fulfills(preimage, prepare.execution_condition):
        text = "the condition is not the SHA-256 digest of the SHA-256 digest of the data"
        return ilp.encode(ilp.Reject(ilp.ErrorCode.WRONG_CONDITION, address, text))
    return ilp.encode(ilp.Fulfill(preimage))


async def reject(data: bytes, address: str = ADDRESS) -> bytes:  # noqa: ARG001 (all replies take it)
    """Answer everything with a Reject by this address."""
    return ilp.encode(ilp.Reject(ilp.ErrorCode.UNREACHABLE, address, "this server rejects everything"))


REPLIES = {"echo": echo, "fulfill": fulfill, "reject": reject}


def _preimage(data: bytes) -> bytes:
    return sha256(data).digest()
