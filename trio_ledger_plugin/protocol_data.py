"""A sub-protocol entry of BTP, as a plain value: the codec reads and writes it, and errors may contain it."""

from __future__ import annotations

from attrs import field, frozen

from .secret import shown_size

__all__ = ["ProtocolData"]


@frozen
class ProtocolData:
    """One sub-protocol entry of a packet (RFC-0023, ProtocolData).

    Attributes:
        protocol_name: The sub-protocol, ASCII text that is unique within its packet, such as ``"ilp"``. In a packet
            from the peer it may contain control characters: escape them before you log it.
        content_type: The type of ``data``: 0 for octets, 1 for text, 2 for JSON, or another number up to 255; only a
            hint.
        data: The entry's bytes. ``repr`` shows only their number, since they may be a token.
    """

    protocol_name: str
    content_type: int
    data: bytes = field(repr=shown_size)
