"""The interface between a link and the WebSocket connection below it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..log import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.budget import Budget
    from .writer import FrameWriter

__all__ = ["MessageReceiver", "OnEnd", "WebSocketTransport", "closed_by_peer"]

# Called once, after the last message, with whether the plugin's tasks were cancelled, and an error if there is a bug.
OnEnd: TypeAlias = "Callable[[bool, Exception | None], None]"


class MessageReceiver(Protocol):
    """Gets the messages of a connection. No method may wait or raise.

    Attributes:
        replies_blocked: The number of replies that wait for room in the send queue; 1 if too much is held for a peer
            whose token is looked up. While it is not 0, reading pauses for ``wait_ready``.
    """

    replies_blocked: int

    @property
    def turns(self) -> Budget:
        """The budget whose links take turns in reading."""

    @property
    def is_open(self) -> bool:
        """Whether the peer is authenticated."""

    async def wait_ready(self) -> None:
        """Wait until it makes sense to read on."""

    def receive(self, message: bytes) -> None:
        """Handle one binary message."""

    def receive_text(self) -> None:
        """Handle a text message."""

    def too_big(self) -> None:
        """Handle a message that exceeds the limits; it is the last one."""

    def peer_left(self, reason: str) -> None:
        """Handle the end of the connection; may be called more than once."""


class WebSocketTransport(Protocol):
    """An open WebSocket connection."""

    @property
    def peer(self) -> str:
        """The peer's address, for logs."""

    @property
    def writer(self) -> FrameWriter:
        """Queues and sends frames."""

    @property
    def frame(self) -> Callable[[bytes], bytes]:
        """A function that turns one binary message into what ``writer.write`` accepts."""

    @property
    def bytes_received(self) -> int:
        """The number of bytes received so far; while it grows, the peer is alive."""

    def open(self, receiver: MessageReceiver, on_end: OnEnd) -> None:
        """Start to receive messages.

        Args:
            receiver: Gets the messages, in the order in which they arrive.
            on_end: Called once, when the connection is closed and its reader has ended.
        """

    def authenticated(self) -> None:
        """Allow messages of full size."""

    async def ping(self) -> None:
        """Send a ping and wait for its pong; waits for ever if the connection ends first.

        Cancellation: Safe at any time.
        """

    async def close(self, code: int, reason: str) -> None:
        """Close with a closing handshake, for at most a second, then close the stream.

        Cancellation: The stream is closed at once.
        """

    def abort(self) -> None:
        """Close the stream without a closing handshake."""

    async def wait_closed(self) -> None:
        """Wait until the stream is closed and the receiver gets no more calls.

        Cancellation: Safe at any time.
        """


def closed_by_peer(code: int | None, reason: str) -> str:
    """Return the reason for which a link ended whose peer sent a Close, with the peer's own code and text."""
    said = "" if code is None else f" with {code}"
    return f"the peer closed the connection{said}{': ' if reason else ''}{escape(reason)}"
