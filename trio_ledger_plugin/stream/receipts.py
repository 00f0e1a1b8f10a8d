"""Receipts: the receiver's proof, for a third party, of what a payer has delivered (RFC-0039)."""

from __future__ import annotations

import hmac
from typing import Final

from attrs import frozen

from ..codec.oer import read_fixed, read_uint, uint
from ..codec.stream import RECEIPT_SIZE
from ..errors import DecodeError

__all__ = ["Receipt", "make_receipt", "verify_receipt"]

_VERSION: Final = 1
_SIGNED: Final = RECEIPT_SIZE - 32


@frozen
class Receipt:
    """What a receipt says.

    Attributes:
        nonce: The 16 bytes that the verifier chose.
        stream_id: The stream.
        total_received: What the stream has received so far.
    """

    nonce: bytes
    stream_id: int
    total_received: int


def make_receipt(nonce: bytes, secret: bytes, stream_id: int, total_received: int) -> bytes:
    """Return a receipt of 58 bytes.

    Raises:
        InvalidFieldsError: ``stream_id`` is above 255, or the total above 2**64-1.
    """
    signed = bytes((_VERSION,)) + nonce + uint(stream_id, 1, "stream_id") + uint(total_received, 8, "total_received")
    return signed + hmac.digest(secret, signed, "sha256")


def verify_receipt(receipt: bytes, secret: bytes) -> Receipt:
    """Return what a receipt says, if the secret signed it.

    A verifier has to compare the nonce with its own, and to credit only what is above the totals it has seen before.

    Args:
        receipt: The receipt, 58 bytes.
        secret: The verifier's secret.

    Raises:
        DecodeError: It is no receipt, or another secret signed it.
    """
    if len(receipt) != RECEIPT_SIZE or receipt[0] != _VERSION:
        raise DecodeError(f"not a receipt: that has {RECEIPT_SIZE} bytes and begins with {_VERSION}")
    if not hmac.compare_digest(hmac.digest(secret, receipt[:_SIGNED], "sha256"), receipt[_SIGNED:]):
        raise DecodeError("the receipt is not signed with this secret")
    nonce, offset = read_fixed(receipt, 1, 16)
    stream_id, offset = read_uint(receipt, offset, 1)
    total_received, _ = read_uint(receipt, offset, 8)
    return Receipt(nonce, stream_id, total_received)
