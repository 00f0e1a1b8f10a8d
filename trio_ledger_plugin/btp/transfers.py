"""How a transfer stands in a BTP packet, and what it means when its packet is lost (RFC-0023, TRANSFER)."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from attrs import evolve

from ..codec import btp
from ..errors import (
    ConnectionLostError,
    DecodeError,
    InvalidFieldsError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    ResponseTimeoutError,
    TransferInDoubtError,
)
from ..money.transfer import IDEMPOTENCY_KEY, MoneyLevel, Transfer, is_key

if TYPE_CHECKING:
    from .link import Link

__all__ = ["carry_transfer", "read_transfer", "transfer_packet"]

# What can befall a transfer once it was handed to the link: the peer may have applied it.
IN_DOUBT = (ConnectionLostError, ResponseTimeoutError, DecodeError, PluginClosedError, PluginFailedError)


def transfer_packet(request_id: int, transfer: Transfer) -> bytes:
    """Return the encoded packet of a transfer; its key goes with it at KEYED."""
    entries: tuple[btp.ProtocolData, ...] = ()
    if transfer.level is MoneyLevel.KEYED and transfer.key is not None:
        entries = (btp.ProtocolData(IDEMPOTENCY_KEY, btp.TEXT, transfer.key.encode()),)
    return btp.encode(btp.Transfer(request_id, int(transfer.amount), entries))


def read_transfer(packet: btp.Transfer, account: str, *, keyed: bool) -> Transfer:
    """Read a peer's transfer.

    Args:
        packet: The packet.
        account: The account that it came from.
        keyed: Whether the link is at KEYED; a key counts on such a link only.

    Raises:
        InvalidFieldsError: The amount or the key is out of its range.
    """
    if packet.amount == 0:
        raise InvalidFieldsError("amount is 0; it must be at least 1")
    amount = str(packet.amount)
    entry = next((entry for entry in packet.protocol_data if entry.protocol_name == IDEMPOTENCY_KEY), None)
    if not keyed or entry is None:
        return Transfer(amount, account)
    key = entry.data.decode("ascii", "replace")
    if not is_key(key):
        raise InvalidFieldsError("idempotency_key must be 1 to 64 ASCII characters")
    digest = sha256(btp.encode(evolve(packet, request_id=0))).digest()
    return Transfer(amount, account, key=key, level=MoneyLevel.KEYED, digest=digest)


async def carry_transfer(link: Link, transfer: Transfer) -> None:
    """Send a transfer over a link, once, and return when it is acknowledged.

    Raises:
        LedgerPluginError: As ``LedgerPlugin.carry_money`` tells.

    Cancellation: The transfer may have left and may be applied.
    """
    assert transfer.key is not None
    if transfer.level is MoneyLevel.KEYED and link.peer_retention is None:
        raise NotConnectedError("the peer does not keep transfer keys on this link; nothing was sent")
    await link.wait_for_turn()
    try:
        await link.transfer(transfer)
    except IN_DOUBT as error:
        raise TransferInDoubtError(transfer.key, transfer.amount, str(error)) from error
