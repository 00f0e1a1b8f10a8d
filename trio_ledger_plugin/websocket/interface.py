"""What a link needs of the connection below it, whoever reads and writes its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from .writer import FrameWriter

__all__ = ["MessageReceiver", "OnEnd", "WebSocketTransport"]

# Called once, when nothing more will come: whether the plugin's tasks were cancelled, and an error that is a bug.
OnEnd: TypeAlias = "Callable[[bool, Exception | None], None]"


class MessageReceiver(Protocol):
    """The link's side of a lane. No method may wait or raise.

    Attributes:
        replies_blocked: How many replies wait for room in the out-queue.
    """

    replies_blocked: int

    def receive(self, message: bytes) -> None:
        """Take one binary message."""

    def receive_text(self) -> None:
        """Take note of a text message."""

    def too_big(self) -> None:
        """Take note of a message past the limits; nothing more will be received."""

    def peer_left(self, reason: str) -> None:
        """Take note that nothing more will be received."""


class WebSocketTransport(Protocol):
    """An open WebSocket connection."""

    @property
    def peer(self) -> str:
        """The address at the other end, for logs."""

    @property
    def writer(self) -> FrameWriter:
        """The queue of what is sent."""

    @property
    def frame(self) -> Callable[[bytes], bytes]:
        """Returns what the writer takes for one binary message."""

    @property
    def bytes_received(self) -> int:
        """Bytes that have come so far; while they grow, the other end is alive."""

    def open(self, receiver: MessageReceiver, on_end: OnEnd) -> None:
        """Let messages come.

        Args:
            receiver: Where they go, in the order of the wire.
            on_end: Called once, when nothing more will come.
        """

    def authenticated(self) -> None:
        """Allow messages of full size."""

    async def ping(self) -> None:
        """Send a ping and wait for its pong, for ever if the connection ends first.

        Cancellation: Safe at any time.
        """

    async def close(self, code: int, reason: str) -> None:
        """Close with a closing handshake, for at most a second, then close the stream.

        Cancellation: The stream is closed at once.
        """

    def abort(self) -> None:
        """Close the stream without a word."""

    async def wait_closed(self) -> None:
        """Wait until the stream is closed and nothing more will come.

        Cancellation: Safe at any time.
        """
