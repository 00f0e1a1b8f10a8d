"""Dialing: opens TCP connections, with or without TLS, and turns their errors into this package's."""

from __future__ import annotations

import os
import ssl
from socket import gaierror
from typing import TYPE_CHECKING

import trio

from ..errors import UnreachableError
from .sockets import abort_stream
from .unreachable import PermanentlyUnreachableError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["dial", "start_tls"]

# The errors of OpenSSL, by version, for a server that answers without TLS, or does not answer.
NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING")
NO_TLS_HINT = "; does the server speak TLS? if not, its URL begins with {}://"


# Trio starts tasks in it, one for each address.
@trio.lowlevel.enable_ki_protection
async def dial(host: str, port: int, address: str, *, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    """Open a connection.

    Args:
        host: A name or an IP address.
        port: The TCP port.
        address: The URL of the peer without credentials, for errors.
        ssl_context: The TLS context; None connects without TLS.

    Returns:
        The stream, with the TLS handshake done.

    Raises:
        PermanentlyUnreachableError: The host cannot exist, or its certificate is not trusted.
        UnreachableError: The peer cannot be reached now.

    Cancellation: The connection is closed.
    """
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError as error:
        errors = _errors_of(error)
        reasons = ", ".join(dict.fromkeys(map(_reason_of, errors)))
        # From the first alone: a group's traceback has a page for each of the name's addresses.
        raise UnreachableError(f"cannot connect to {address}: {reasons}") from errors[0]
    except RuntimeError as error:
        # The resolver needs a thread, and the system has none now.
        raise UnreachableError(f"cannot connect to {address}: {error}") from error
    except UnicodeError as error:
        raise PermanentlyUnreachableError(f"{address} names a host that cannot exist: {error}") from error
    return stream if ssl_context is None else await start_tls(stream, host, address, ssl_context)


async def start_tls(stream: trio.abc.Stream, host: str, address: str, context: ssl.SSLContext) -> trio.abc.Stream:
    """Do a client's TLS handshake over a stream; the arguments and errors are those of ``dial``.

    Cancellation: The connection is closed.
    """
    secured = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    done = False
    try:
        await secured.do_handshake()
        done = True
    except trio.BrokenResourceError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise PermanentlyUnreachableError(
                f"the certificate of {address} is not trusted: {error.__cause__.verify_message}"
            ) from error.__cause__
        cause = error.__cause__ or error
        plain = address.partition("://")[0].removesuffix("s")
        hint = NO_TLS_HINT.format(plain) if getattr(cause, "reason", None) in NO_TLS else ""
        raise UnreachableError(f"TLS with {address} failed: {cause}{hint}") from error
    finally:
        if not done:
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
    return secured


def _errors_of(error: OSError) -> Sequence[Exception]:
    """Return the system's errors: a name can have several addresses, and Trio groups their errors."""
    cause = error.__cause__
    return cause.exceptions if isinstance(cause, ExceptionGroup) else (error,)


def _reason_of(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    # Trio's own text repeats the address. The resolver's numbers are not those of os.strerror.
    return error.strerror or str(error) if isinstance(error, gaierror) else os.strerror(error.errno)
