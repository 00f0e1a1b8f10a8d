"""How a transfer stands in a BTP packet (RFC-0023, TRANSFER)."""

from __future__ import annotations

from hashlib import sha256

from attrs import evolve

from ..codec import btp
from ..errors import InvalidFieldsError
from ..transfer import IDEMPOTENCY_KEY, MoneyLevel, Transfer, is_key

__all__ = ["read_transfer", "transfer_packet"]


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
