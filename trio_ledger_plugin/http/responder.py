"""Where the reply to a request goes."""

from __future__ import annotations

from abc import ABC, abstractmethod

__all__ = ["Responder"]


class Responder(ABC):
    """One request of the peer, until it has its response.

    Attributes:
        is_ilp: Whether the request is an ILP packet, so that an error can be a Reject.
        request_id: The id that the link gave the request.
    """

    __slots__ = ("is_ilp", "request_id")

    def __init__(self) -> None:
        self.is_ilp: bool = False
        self.request_id: int = 0

    @abstractmethod
    async def respond(self, status: int, body: bytes) -> None:
        """Send the response; it is dropped if the connection is lost.

        Cancellation: The connection is lost.
        """

    @abstractmethod
    def respond_soon(self, status: int, body: bytes) -> None:
        """Send the response without waiting."""

    @abstractmethod
    def drop(self) -> None:
        """Handle that there will be no response: the plugin disconnects."""
