"""The request that the running data handler answers."""

from __future__ import annotations

from contextvars import ContextVar

from attrs import field, frozen

__all__ = ["IncomingRequest", "current_request", "enter_request", "find_request"]


@frozen
class IncomingRequest:
    """Where a request came from, as ``current_request()`` returns it inside a data handler.

    Attributes:
        account: The account that sent it; empty for a plugin with one peer.
        link: The number of the connection that it came over, unique in this process.
        peer: The peer's address, for logs; empty if it has none.
    """

    account: str
    link: int
    peer: str
    # Identifies the account for its server: accounts of two servers may have the same name.
    source: object = field(default=None, repr=False, eq=False)


_request: ContextVar[IncomingRequest] = ContextVar("request")


def current_request() -> IncomingRequest:
    """Return where the request came from that the running data handler answers.

    It also works in tasks that the handler starts.

    Raises:
        RuntimeError: The caller is not inside a data handler.
    """
    request = find_request()
    if request is None:
        raise RuntimeError("current_request() works inside a data handler only")
    return request


def find_request() -> IncomingRequest | None:
    """Return what ``current_request()`` returns; None outside a data handler."""
    return _request.get(None)


def enter_request(request: IncomingRequest) -> None:
    """Set the current request in the current context."""
    _request.set(request)
