"""The events of a plugin, and the channel that delivers them.

Invariants: publishing never waits, and the buffer has a fixed size. When the application does not read, the newest
events are kept, preceded by ``EventsDropped`` with the number of lost ones. ``Failed`` is always last.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AccountConnected",
    "AccountConnectedAgain",
    "AccountDisconnected",
    "Connected",
    "Disconnected",
    "Event",
    "EventStream",
    "EventsDropped",
    "Failed",
    "TransfersInDoubt",
]

BUFFERED_EVENTS = 64


@frozen
class Connected:
    """The plugin is connected: ``is_connected()`` is true (RFC-0024, event ``connect``)."""


@frozen
class Disconnected:
    """The connection was closed by ``disconnect()`` or lost (RFC-0024, event ``disconnect``).

    Attributes:
        reason: Why, as text for logs.
    """

    reason: str


@frozen
class Failed:
    """The plugin met an unrecoverable condition and must not be used again (RFC-0024, event ``error``).

    Always the last event.

    Attributes:
        error: What happened; the ``__cause__`` of the ``PluginFailedError`` that calls raise from now on.
    """

    error: Exception


@frozen
class TransfersInDoubt:
    """It is not known of some outgoing transfers whether the peer has applied them, and they are not sent again.

    Published when transfers come into doubt, many at once as one event, and when the plugin opens with some in doubt.
    An operator settles each with ``plugin.transfers.confirm()`` or ``reject()``.

    Attributes:
        count: How many transfers.
        amount: Their sum, in the ledger's smallest unit.
    """

    count: int
    amount: int


@frozen
class EventsDropped:
    """Events before this one were dropped because the application did not read them in time.

    Attributes:
        count: How many.
    """

    count: int


@frozen
class AccountConnected:
    """An account of a many-account server has its first connection.

    Attributes:
        name: The account's name.
    """

    name: str


@frozen
class AccountConnectedAgain:
    """An account of a many-account server that is connected has a further connection.

    Attributes:
        name: The account's name.
        connections: How many connections it has now.
    """

    name: str
    connections: int


@frozen
class AccountDisconnected:
    """An account of a many-account server has lost its last connection.

    Attributes:
        name: The account's name.
    """

    name: str


Event = (
    Connected
    | Disconnected
    | Failed
    | EventsDropped
    | TransfersInDoubt
    | AccountConnected
    | AccountConnectedAgain
    | AccountDisconnected
)


class EventStream:
    """The sending side of a plugin's events; ``receiver`` is the application's end."""

    def __init__(self) -> None:
        sender, receiver = trio.open_memory_channel[Event](BUFFERED_EVENTS)
        self._sender = sender
        self.receiver: trio.MemoryReceiveChannel[Event] = receiver
        # A clone, so that old events can be dropped even after the application has closed its own end.
        self._overflow = self.receiver.clone()
        self._closed = False
        self._watchers: tuple[EventStream, ...] = ()
        self.dropped: int = 0

    @contextmanager
    def watch(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """Yield a channel that gets each event within the block, besides ``receiver``."""
        watcher = EventStream()
        self._watchers += (watcher,)
        try:
            yield watcher.receiver
        finally:
            self._watchers = tuple(other for other in self._watchers if other is not watcher)
            watcher.close()

    def publish(self, event: Event) -> None:
        """Deliver an event without waiting; events after ``close()`` are discarded."""
        if self._closed:
            return
        for watcher in self._watchers:
            watcher.publish(event)
        try:
            self._sender.send_nowait(event)
        except trio.WouldBlock:
            self._publish_when_full(event)

    def _publish_when_full(self, event: Event) -> None:
        # A full buffer means that no reader is waiting. Nothing here awaits, so no reader sees the buffer in between.
        buffered: list[Event] = []
        lost = 0
        for _ in range(BUFFERED_EVENTS):
            old = self._overflow.receive_nowait()
            if isinstance(old, EventsDropped):
                lost += old.count
            else:
                buffered.append(old)
        survivors = buffered[len(buffered) + 2 - BUFFERED_EVENTS :]
        newly_lost = len(buffered) - len(survivors)
        self.dropped += newly_lost
        for kept in (EventsDropped(lost + newly_lost), *survivors, event):
            self._sender.send_nowait(kept)

    def close(self, last: Event | None = None) -> None:
        """End the stream: buffered events can still be read, then the application's loop ends."""
        if last is not None:
            self.publish(last)
        for watcher in self._watchers:
            watcher.close()
        self._closed = True
        self._sender.close()
        self._overflow.close()
