"""The error of a payment that did not do what was asked for."""

from __future__ import annotations

from ..errors import LedgerPluginError

__all__ = ["PaymentFailedError"]


class PaymentFailedError(LedgerPluginError):
    """A payment or a quote ended before it was complete.

    Attributes:
        sent: What left this account for certain, in its smallest unit.
        delivered: What the receiver got for certain, at least, in the smallest unit of the receiver's account.
        unanswered: What was in packets that no answer came for before they expired. The peer may count it as sent.
        reason: Why the payment ended.
    """

    def __init__(self, sent: int, delivered: int, reason: str, *, unanswered: int = 0) -> None:
        super().__init__(sent, delivered, reason)
        self.sent = sent
        self.delivered = delivered
        self.unanswered = unanswered
        self.reason = reason

    def __str__(self) -> str:
        """Return the reason, and what was sent and delivered."""
        more = f"; packets with {self.unanswered} got no answer" if self.unanswered else ""
        return f"{self.reason}; sent {self.sent}, delivered {self.delivered}{more}"
