"""What to try after an error, in the words of the command line."""

from __future__ import annotations

import ssl

from ..errors import ConnectTimeoutError, NotAcceptedError, UnreachableError
from .parameters import SECRET_VARIABLE

__all__ = ["advice"]


def advice(error: BaseException) -> str:
    """Return what to try after an error, or an empty string."""
    if isinstance(error, NotAcceptedError):
        return f"check the token in the URL or in {SECRET_VARIABLE}"
    if isinstance(error, ConnectTimeoutError) and error.__cause__ is not None:
        error = error.__cause__
    cause = error.__cause__
    if isinstance(error, UnreachableError) and isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
        return "is the server running, and are host and port right?"
    return ""
