"""What a plugin counts, and the snapshot that users get of it."""

from __future__ import annotations

from attrs import define, frozen

__all__ = ["Counters", "Statistics"]


@frozen(kw_only=True)
class Statistics:
    """A snapshot of what a plugin has done since it was made; ``plugin.statistics()`` gives it.

    Attributes:
        requests_sent: Requests of ours that were handed to a link, transfers included.
        responses_received: How many of them were answered with a response.
        errors_received: How many of them were answered with an error.
        requests_received: Requests of the peer's that were readable, transfers included.
        responses_sent: How many of them were answered with a response.
        errors_sent: How many of them were answered with an error.
        bytes_sent: Bytes written to the network on authenticated links; 0 for a plugin without a network.
        bytes_received: Bytes read from it, likewise.
        calls_in_flight: Requests of ours that wait for their answer now.
        handlers_running: Handlers that run now.
        redials: How often the connection was made again after a loss.
        malformed_packets: Messages of the peer's that were no readable packet.
        unexpected_responses: Answers to no call of ours: late, repeated or made up.
        events_dropped: Events that nobody read in time.
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
    redials: int
    malformed_packets: int
    unexpected_responses: int
    events_dropped: int


@define
class Counters:
    """The counts of one plugin, added to where the things happen."""

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
