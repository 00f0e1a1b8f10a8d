"""The PROXY protocol: a proxy's header before the first bytes of a connection, which names the client.

The text of the protocol, versions 1 and 2, is part of HAProxy's documentation.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import trio

__all__ = ["SIGNATURE_V1", "SIGNATURE_V2", "BadProxyHeaderError", "read_proxy_header"]

SIGNATURE_V1: Final = b"PROXY "
SIGNATURE_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
# The longest header of version 1, with its line end; and the longest here of version 2, without its first 16 bytes.
LONGEST_V1: Final = 107
LONGEST_V2: Final = 2048
LOCAL, PROXY = 0x20, 0x21
# Version 2: what the address families say, and how long their addresses are.
INET, INET6 = 0x1, 0x2
ADDRESS_BYTES: Final = {INET: 4, INET6: 16}


class BadProxyHeaderError(Exception):
    """A connection does not begin with a header of the PROXY protocol.

    Attributes:
        is_check: Whether it ended at once, as those of simple health checks do.
    """

    def __init__(self, reason: str, *, is_check: bool = False) -> None:
        super().__init__(reason)
        self.is_check: bool = is_check


async def read_proxy_header(stream: trio.abc.ReceiveStream) -> str:
    """Read the header, and no byte after it.

    Returns:
        The client's IP address; empty if the proxy names none, as for its own health checks.

    Raises:
        BadProxyHeaderError: There is no such header, or it is malformed.
        trio.BrokenResourceError: The connection broke.

    Cancellation: The stream must be closed then.
    """
    # Both versions have at least as many bytes as the signature of version 2.
    data = await _read_exactly(stream, len(SIGNATURE_V2), b"")
    if data == SIGNATURE_V2:
        return await _read_v2(stream)
    if not data.startswith(SIGNATURE_V1):
        raise BadProxyHeaderError("the connection does not begin with a PROXY protocol header")
    while not data.endswith(b"\r\n"):
        if len(data) >= LONGEST_V1:
            raise BadProxyHeaderError("its PROXY protocol header has no end")
        data = await _read_exactly(stream, len(data) + 1, data)
    return _parse_v1(data)


async def _read_exactly(stream: trio.abc.ReceiveStream, size: int, data: bytes) -> bytes:
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise BadProxyHeaderError("it ended within its PROXY protocol header", is_check=not data)
        data += piece
    return data


def _parse_v1(line: bytes) -> str:
    words = line.decode("latin-1").removesuffix("\r\n").split(" ")
    if words[1] == "UNKNOWN":
        return ""
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise BadProxyHeaderError("its PROXY protocol header is malformed")
    try:
        address = ip_address(words[2])
    except ValueError:
        raise BadProxyHeaderError("its PROXY protocol header names no IP address") from None
    return str(address)


async def _read_v2(stream: trio.abc.ReceiveStream) -> str:
    command, family, high, low = await _read_exactly(stream, 4, b"")
    size = high << 8 | low
    if command not in (LOCAL, PROXY):
        raise BadProxyHeaderError("its PROXY protocol header has an unknown version or command")
    if size > LONGEST_V2:
        raise BadProxyHeaderError("its PROXY protocol header is too long")
    addresses = await _read_exactly(stream, size, b"")
    length = ADDRESS_BYTES.get(family >> 4, 0)
    if command == LOCAL or not length:
        return ""
    if size < 2 * length:
        raise BadProxyHeaderError("its PROXY protocol header is too short for its addresses")
    return str(ip_address(addresses[:length]))
