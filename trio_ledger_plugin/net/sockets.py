"""Streams and their sockets: how to abort a stream, and faster ways to read and write a plain socket on POSIX.

Invariant: this module uses Trio's public interface only, and never blocks. A stream over TLS, in memory or on Windows
has no faster way; it is read and written as usual.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    import ssl

__all__ = ["abort_stream", "accept_tls", "explain_failure", "plain_socket", "read_socket", "write_socket"]

# OpenSSL's reason when a server's context has no certificate. Python has no way to ask a context for one.
NO_CERTIFICATE: Final = "NO_SHARED_CIPHER"
NO_CERTIFICATE_HINT: Final = "; has the ssl_context a certificate (load_cert_chain)?"


async def abort_stream(stream: trio.abc.AsyncResource) -> None:
    """Close a stream at once. Errors are suppressed: the application's own stream may raise anything.

    Cancellation: None comes from here, where it would take the place of the error, such as ``KeyboardInterrupt``, that
    the stream is closed for. Nothing is waited for: the scope is cancelled before the first wait.
    """
    with suppress(Exception), trio.move_on_after(0, shield=True) as scope:
        scope.cancel()
        await stream.aclose()


async def accept_tls(
    stream: trio.abc.Stream, context: ssl.SSLContext, seconds: float
) -> trio.SSLStream[trio.abc.Stream] | None:
    """Do the server's part of the TLS handshake of HTTPS; return None if the client takes longer.

    Raises:
        trio.BrokenResourceError: The handshake failed, or the connection broke.

    Cancellation: The stream must be closed then.
    """
    secured = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
    with trio.move_on_after(seconds):
        await secured.do_handshake()
        return secured
    return None


def explain_failure(error: BaseException) -> str:
    """Return why the server's part of a handshake failed, for the log."""
    cause = error.__cause__ or error
    return f"{cause}{NO_CERTIFICATE_HINT if getattr(cause, 'reason', None) == NO_CERTIFICATE else ''}"


def plain_socket(stream: object) -> trio.socket.SocketType | None:
    """Return the socket of a stream that sends its bytes unchanged; None if there is none, or not on POSIX."""
    return stream.socket if isinstance(stream, trio.SocketStream) and os.name == "posix" else None


async def read_socket(socket: trio.socket.SocketType, size: int) -> bytes:
    """Wait until the socket has bytes, and return them.

    Trio's own ``recv`` tries to read and then waits. On a link without unread bytes, the usual case, that try fails. To
    wait first saves a system call and an exception for each message.

    Args:
        socket: The socket.
        size: The most bytes to return.

    Returns:
        The bytes; empty at the end of the socket.

    Raises:
        trio.BrokenResourceError: The connection broke.
        trio.ClosedResourceError: The socket was closed from this side.

    Cancellation: Nothing is read.
    """
    while True:
        if socket.fileno() < 0:
            raise trio.ClosedResourceError("the socket was closed")
        await trio.lowlevel.wait_readable(socket)
        try:
            return os.read(socket.fileno(), size)
        except (BlockingIOError, InterruptedError):
            continue
        except OSError as error:
            raise trio.BrokenResourceError(f"the socket broke: {error}") from error


def write_socket(socket: trio.socket.SocketType, data: bytes) -> int:
    """Write what the socket accepts without waiting, and return how many bytes it accepted.

    Returns 0 if the socket is full or broken; the next wait for the socket finds out which.
    """
    try:
        return os.write(socket.fileno(), data)
    except OSError:
        return 0
