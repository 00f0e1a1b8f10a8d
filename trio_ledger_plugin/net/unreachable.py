"""What a failed try says about the next one."""

from __future__ import annotations

from ..errors import UnreachableError

__all__ = ["PermanentlyUnreachableError", "RetryLaterError"]


class PermanentlyUnreachableError(UnreachableError):
    """The peer cannot be reached, and another try cannot help."""

    name: str = UnreachableError.name


class RetryLaterError(UnreachableError):
    """The peer, or a proxy before it, refuses for now.

    Attributes:
        pause: The seconds that it asks to wait before the next try; 0 if it names no time.
    """

    name: str = UnreachableError.name

    def __init__(self, text: str, pause: float = 0.0) -> None:
        super().__init__(text)
        self.pause: float = pause
