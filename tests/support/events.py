"""Events as tests read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import trio

    from trio_ledger_plugin.events import Event

__all__ = ["names", "next_event"]


def names(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


async def next_event(events: trio.MemoryReceiveChannel[Event], kind: type[Event]) -> Any:
    """Return the next event, which must be of a kind."""
    event = await events.receive()
    assert isinstance(event, kind), event
    return event
