"""Events as texts for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .events import (
    AccountConnected,
    AccountConnectedAgain,
    AccountDisconnected,
    Connected,
    Disconnected,
    EventsDropped,
    Failed,
    TransfersInDoubt,
)
from .log import escape
from .money.doubts import describe_doubts

if TYPE_CHECKING:
    from .events import Event

__all__ = ["event_text"]


def event_text(event: Event) -> str:
    """Return an event as a text for people."""
    match event:
        case Connected():
            return "connected"
        case Disconnected(reason):
            return f"disconnected: {escape(reason)}"
        case AccountConnected(account):
            return f"{account} connected"
        case AccountConnectedAgain(account, connections):
            return f"{account} connected again, {connections} connections now"
        case AccountDisconnected(account):
            return f"{account} disconnected"
        case Failed(error):
            return f"failed: {escape(str(error))}"
        case EventsDropped(count):
            return f"{count} events were lost"
        case TransfersInDoubt():
            return describe_doubts(event)
