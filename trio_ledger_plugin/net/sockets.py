"""What lies under a link: a stream of anybody's, and shortcuts to its socket where the system has files for sockets.

The law of this module: it uses Trio's public parts only, and never blocks. A stream over TLS, in memory or on Windows
has no shortcut; it is read and written as any other.
"""

from __future__ import annotations

import os
from contextlib import suppress

import trio

__all__ = ["abort_stream", "plain_socket", "read_socket", "write_socket"]


async def abort_stream(stream: trio.abc.AsyncResource) -> None:
    """Close a stream without a word. It may be the application's and raise anything: that ends its own link only.

    Cancellation: None comes from here, where it would take the place of the error, such as ``KeyboardInterrupt``, that
    the stream is closed for. Nothing is waited for: the scope is cancelled before the first wait.
    """
    with suppress(Exception), trio.CancelScope(shield=True) as scope:
        scope.cancel()
        await stream.aclose()


def plain_socket(stream: object) -> trio.socket.SocketType | None:
    """Return the socket that a stream's bytes go to as they are, or None."""
    return stream.socket if isinstance(stream, trio.SocketStream) and os.name == "posix" else None


async def read_socket(socket: trio.socket.SocketType, size: int) -> bytes:
    """Wait until the socket has bytes and return them, or none at its end.

    Trio's own ``recv`` tries first and waits afterwards. On a link that is idle or read to the end, as most are most
    of the time, that try fails: waiting first saves a call of the system and an exception a message.

    Raises:
        trio.BrokenResourceError: The connection broke.
        trio.ClosedResourceError: The socket was closed from this side.

    Cancellation: Nothing is read.
    """
    while True:
        await trio.lowlevel.wait_readable(socket)
        try:
            return os.read(socket.fileno(), size)
        except (BlockingIOError, InterruptedError):
            continue
        except OSError as error:
            raise trio.BrokenResourceError(f"the socket broke: {error}") from error


def write_socket(socket: trio.socket.SocketType, data: bytes) -> int:
    """Give the socket what it takes without waiting; return how many bytes it took.

    None are taken when it would have to wait or is broken: whoever waits for it then meets the one or the other.
    """
    try:
        return os.write(socket.fileno(), data)
    except OSError:
        return 0
