"""ILDCP packets to bytes and back (RFC-0031): a child asks its parent for an address and an asset.

Both are ILP packets: the request is a Prepare to ``peer.config``, the response a Fulfill whose fulfillment is zero.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import field, frozen

from ..errors import DecodeError, InvalidFieldsError
from ..secret import shown_size
from . import ilp
from .lazy_text import LazyText, with_text
from .oer import BytesLike, count_utf8, octets, read_ia5, read_octets, read_uint, uint, utf8, whole_milliseconds

__all__ = ["CONDITION", "DESTINATION", "FULFILLMENT", "IldcpRequest", "IldcpResponse", "Packet", "decode", "encode"]

DESTINATION: Final = "peer.config"
FULFILLMENT: Final = bytes(32)
CONDITION: Final = hashlib.sha256(FULFILLMENT).digest()


def _in_a_minute() -> datetime:
    """Return the time a minute from now, in whole milliseconds as in a packet."""
    return whole_milliseconds(datetime.now(UTC) + timedelta(minutes=1))


@frozen
class IldcpRequest:
    """A child's request for its configuration.

    Attributes:
        expires_at: When the request expires, an aware time; a minute from now by default.
        amount: What the child pays for the response, in the account's smallest unit; 0 by default.
        data: Empty by default; RFC-0031 gives it no meaning.
    """

    expires_at: datetime = field(factory=_in_a_minute)
    amount: int = 0
    data: bytes = field(default=b"", repr=shown_size)


@frozen
class IldcpResponse(LazyText):
    """A parent's response.

    Attributes:
        client_address: The ILP address for the child to use.
        asset_scale: How many decimal places an amount has: at a scale of 9, the amount 1 is 10**-9 of the asset's own
            unit. 0 to 255.
        asset_code: The asset that the two settle in, such as ``"XRP"``.
    """

    client_address: str
    asset_scale: int
    asset_code: str


Packet = IldcpRequest | IldcpResponse


def encode(packet: Packet) -> bytes:
    """Return the ILP packet that contains an ILDCP packet (RFC-0031).

    Raises:
        InvalidFieldsError: A field has the wrong type or is out of range.
        TypeError: ``packet`` is not an ILDCP packet.
    """
    match packet:
        case IldcpRequest():
            return ilp.encode(ilp.Prepare(packet.amount, packet.expires_at, CONDITION, DESTINATION, packet.data))
        case IldcpResponse():
            return ilp.encode(ilp.Fulfill(FULFILLMENT, _encode_response(packet)))
        case _:
            raise TypeError(f"an ILDCP packet is an IldcpRequest or IldcpResponse, not {type(packet).__name__}")


def decode(data: BytesLike) -> Packet:
    """Return the request or the response that an ILP packet contains (RFC-0031).

    Args:
        data: The ILP packet. Bytes after it, or after the response's last field, are ignored.

    Raises:
        DecodeError: The data is not an ILP packet, or not one of ILDCP. For a Reject, the text contains its code.
    """
    packet = ilp.decode(data)
    match packet:
        case ilp.Prepare():
            if (packet.destination, packet.execution_condition) != (DESTINATION, CONDITION):
                raise DecodeError(
                    f"not an ILDCP request: that goes to {DESTINATION} with the condition of 32 zero bytes"
                )
            return IldcpRequest(packet.expires_at, packet.amount, packet.data)
        case ilp.Fulfill():
            if packet.fulfillment != FULFILLMENT:
                raise DecodeError("not an ILDCP response: that has a fulfillment of 32 zero bytes")
            return _decode_response(packet.data)
    raise DecodeError(f"the ILDCP request was rejected with code {packet.code!r}")


def _encode_response(packet: IldcpResponse) -> bytes:
    """Return the data of a response's Fulfill."""
    if not ilp.is_address(packet.client_address):
        raise InvalidFieldsError("client_address must be an ILP address, such as example.parent.child")
    return (
        octets(packet.client_address.encode(), "client_address")
        + uint(packet.asset_scale, 1, "asset_scale")
        + octets(utf8(packet.asset_code, "asset_code"), "asset_code")
    )


def _decode_response(data: bytes) -> IldcpResponse:
    """Return the response that the data of a Fulfill contains."""
    address, offset = read_octets(data, 0)
    asset_scale, offset = read_uint(data, offset, 1)
    asset_code, _ = read_octets(data, offset)
    client_address = read_ia5(address, "the client address")
    if not ilp.is_address(client_address):
        raise DecodeError(f"the client address {client_address[:80]!r} is not an ILP address")
    count_utf8(asset_code, "the asset code")
    return with_text(IldcpResponse(client_address, asset_scale, ""), "asset_code", asset_code)
