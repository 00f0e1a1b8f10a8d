"""WebSocket handshakes and frames (RFC 6455) as bytes, valid or not.

Invariant: the functions write what the arguments say, whether the specification allows it or not.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import trio

__all__ = [
    "BINARY",
    "CLOSE",
    "MASK",
    "PING",
    "PONG",
    "TEXT",
    "read_head",
    "upgrade_request",
    "upgrade_response",
    "write_frame",
]

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

# The mask of clients. It is constant, so that tests know the bytes.
MASK: Final = bytes.fromhex("a1b2c3d4")
ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def write_frame(
    payload: bytes = b"",
    opcode: int = BINARY,
    *,
    mask: bytes | None = None,
    fin: bool = True,
    rsv: int = 0,
    form: int | None = None,
) -> bytes:
    """Return the bytes of a frame (RFC 6455, section 5.2).

    Args:
        payload: The payload, unmasked.
        opcode: ``BINARY``, ``CLOSE`` and so on, or any number up to 15.
        mask: The four bytes of a client's mask; None means no mask.
        fin: Whether it is the last frame of its message.
        rsv: The reserved bits, 0 to 7.
        form: The size of the length field in bytes: 1, 2 or 8; None means the smallest.
    """
    size = len(payload)
    form = form or (1 if size < 126 else 2 if size < 65536 else 8)
    first = fin << 7 | rsv << 4 | opcode
    masked = 0 if mask is None else 0x80
    length = bytes([masked | size]) if form == 1 else bytes([masked | 126 + (form == 8)]) + size.to_bytes(form, "big")
    if mask is not None:
        payload = mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([first]) + length + payload


def upgrade_request(*, origin: str | None = None) -> bytes:
    """Return a client's opening handshake.

    Args:
        origin: The ``Origin`` header, which browsers send.
    """
    lines = [
        "GET / HTTP/1.1",
        "Host: listener",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *([f"Origin: {origin}"] if origin else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def upgrade_response(request: bytes, *, status_line: str = "HTTP/1.1 101 Switching Protocols") -> bytes:
    """Return a server's answer to a client's opening handshake.

    Args:
        request: The client's handshake, whose key the answer needs.
        status_line: The status line; another one refuses the client.
    """
    key = next(line.split(b": ")[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + ACCEPT_GUID).digest()).decode()  # noqa: S324 (RFC 6455 requires it)
    lines = [status_line, "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def read_head(stream: trio.abc.ReceiveStream) -> bytes:
    """Read an HTTP head byte by byte, so that the bytes after it stay in the stream.

    Raises:
        EOFError: The stream ended first.

    Cancellation: The bytes read so far are lost.
    """
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        data = await stream.receive_some(1)
        if not data:
            raise EOFError("the connection ended during its opening handshake")
        head += data
    return head
