"""A sub-protocol entry of BTP, as a plain value: the codec reads and writes it, and an error may carry it."""

from __future__ import annotations

from attrs import field, frozen

from .secret import shown_size

__all__ = ["ProtocolData"]


@frozen
class ProtocolData:
    """One sub-protocol entry of a packet (RFC-0023, ProtocolData).

    Attributes:
        protocol_name: The sub-protocol, ASCII text that is unique within its packet, such as ``"ilp"``. The peer's may
            hold control characters: escape them before they reach a log.
        content_type: What ``data`` is: 0 for octets, 1 for text, 2 for JSON, or another number up to 255; a hint only.
        data: The entry's bytes. ``repr`` shows only how many there are, since they may be a token.
    """

    protocol_name: str
    content_type: int
    data: bytes = field(repr=shown_size)
