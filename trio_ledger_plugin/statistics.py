"""The counters of a plugin, and the snapshot of them that users get."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Final

from attrs import asdict, astuple, define, fields, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["GAUGES", "Counters", "Statistics"]

#: The statistics that go up and down; all others only grow.
GAUGES: Final = frozenset(
    {
        "accounts_remembered",
        "backlog_bytes",
        "calls_in_flight",
        "handler_bytes",
        "handlers_running",
        "links",
        "transfers_remembered",
    }
)
# Without a journal.
NOTHING_REMEMBERED: Final = {"transfers_remembered": 0, "accounts_remembered": 0}


@frozen(kw_only=True)
class Statistics:
    """What a plugin has done since it was created; ``plugin.statistics()`` returns this snapshot.

    Attributes:
        requests_sent: Requests that this end handed to a link, transfers included.
        responses_received: How many of them the peer answered with a response.
        errors_received: How many of them the peer answered with an error.
        requests_received: Readable requests from the peer, transfers included.
        responses_sent: How many of them this end answered with a response.
        errors_sent: How many of them this end answered with an error.
        bytes_sent: Bytes written to the network on authenticated links; 0 for a plugin without a network.
        bytes_received: Bytes read from it, likewise.
        calls_in_flight: Requests of this end that are waiting for their reply now.
        handlers_running: Handlers that are running now, including those of requests whose link was lost.
        handler_bytes: Bytes of requests and replies that they hold.
        backlog_bytes: Bytes of requests that wait for a handler now, with a share for each request.
        links: Authenticated connections that are open now.
        transfers_remembered: Received transfers that the journal remembers now; it is counted exactly once an hour.
        accounts_remembered: Accounts that the journal remembers now, likewise.
        redials: How often the connection was established again after a loss.
        malformed_packets: Messages from the peer that were not readable packets.
        unexpected_responses: Replies that match no call: late, repeated or made up.
        requests_refused: Requests from the peer that were refused because too many were waiting or running.
        transfers_refused: Transfers from the peer that were refused because too many are remembered.
        links_refused: Connections that were authenticated and refused, because the account or the server had too many
            or the account was disconnected by this end.
        links_replaced: Idle connections that were closed to make room for a new one of the same account.
        unauthenticated_dropped: Connections that were closed before they were authenticated, to make room for others.
        events_dropped: Events that the application did not read in time.
    """

    requests_sent: int
    responses_received: int
    errors_received: int
    requests_received: int
    responses_sent: int
    errors_sent: int
    bytes_sent: int
    bytes_received: int
    calls_in_flight: int
    handlers_running: int
    handler_bytes: int
    backlog_bytes: int
    links: int
    transfers_remembered: int
    accounts_remembered: int
    redials: int
    malformed_packets: int
    unexpected_responses: int
    requests_refused: int
    transfers_refused: int
    links_refused: int
    links_replaced: int
    unauthenticated_dropped: int
    events_dropped: int

    @classmethod
    def of(cls, counters: Counters, *, bytes_sent: int, bytes_received: int, **now: int) -> Statistics:
        """Return what was counted so far, and what is so at this moment.

        Args:
            counters: The counts.
            bytes_sent: Bytes that left over the links that are up, which the counters do not have yet.
            bytes_received: Bytes that came over them.
            now: What is in use at this moment, and ``events_dropped``.
        """
        counted = asdict(counters)
        counted["bytes_sent"] += bytes_sent
        counted["bytes_received"] += bytes_received
        return cls(**counted, **(NOTHING_REMEMBERED | now))


@define
class Counters:
    """The counts of one plugin; each is incremented where the counted thing happens."""

    requests_sent: int = 0
    responses_received: int = 0
    errors_received: int = 0
    requests_received: int = 0
    responses_sent: int = 0
    errors_sent: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    redials: int = 0
    malformed_packets: int = 0
    unexpected_responses: int = 0
    requests_refused: int = 0
    transfers_refused: int = 0
    links_refused: int = 0
    links_replaced: int = 0
    unauthenticated_dropped: int = 0

    def since(self, before: Counters) -> Counters:
        """Return what was counted after ``before``."""
        return Counters(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))

    def add(self, other: Counters, times: int = 1) -> None:
        """Count what others have counted; with -1 times, no longer count it."""
        for name in COUNTED:
            setattr(self, name, getattr(self, name) + times * getattr(other, name))

    def add_all(self, others: Iterable[Counters]) -> None:
        """Count what many others have counted, in a fraction of the time that ``add`` takes for each."""
        for name, number in zip(COUNTED, map(sum, zip(*map(_read, others), strict=True)), strict=False):
            setattr(self, name, getattr(self, name) + number)


COUNTED: Final = tuple(each.name for each in fields(Counters))
_read: Final = attrgetter(*COUNTED)
