"""Limits the unauthenticated connections of a listener.

Invariant: the number of unauthenticated connections is bounded, in total and for each address. A newcomer is never
refused: when there is no room, the connection that has waited longest without progress makes way. The more often the
authentications from an address fail, the later it gets its replies. Wrong tokens never make it refuse a right one.
"""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import ip_address
from math import inf
from typing import TYPE_CHECKING

import trio
from attrs import define

from .forwarded import is_trusted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..options.base import PluginOptions
    from ..services import Log
    from ..statistics import Counters

__all__ = ["Admission", "PendingPeer"]

MINUTE = 60.0
# After so many seconds without a failure, the next one from an address is news for an operator again.
QUIET = 3600.0
# How much of a refused account's name is logged.
LONGEST_NAME = 100
# By how much each failure delays the reply to it, and the longest delay, in seconds.
DELAY_STEP = 0.25
LONGEST_DELAY = 4.0
# Addresses whose failures are remembered; the oldest are forgotten first.
REMEMBERED = 4096


@define
class _Failures:
    """The failed authentications from one address: in a minute since ``since``, and in all."""

    since: float
    last: float
    in_minute: int = 0
    total: int = 0


class PendingPeer:
    """One connection that is not authenticated yet.

    Attributes:
        is_dropped: Whether it had to make way for others. Its task is cancelled then.
        path: The path and query that it asked for.
    """

    __slots__ = ("_admission", "address", "is_dropped", "path", "scope")

    def __init__(self, admission: Admission, address: str) -> None:
        self._admission = admission
        self.address: str = address
        self.scope: trio.CancelScope = trio.CancelScope()
        self.is_dropped: bool = False
        self.path: str = ""

    def progress(self) -> None:
        """Count a step towards its authentication: now others make way before this one."""
        self._admission.move_back(self)

    def come_from(self, address: str) -> None:
        """Count this connection for the client behind a proxy, now that its address is known."""
        if address != self.address:
            self._admission.move(self, address)

    def leave(self) -> None:
        """Stop counting this connection: it is authenticated."""
        self._admission.remove(self)


class Admission:
    """Counts the unauthenticated connections of a listener.

    Args:
        options: The limits.
        counters: Counts the connections that had to make way.
        log: Gets the refusals.
    """

    def __init__(self, options: PluginOptions, counters: Counters, log: Log) -> None:
        self._options = options
        self._log = log
        self._counters = counters
        #: The most that may wait, if fewer than the option says.
        self.limit: float = inf
        # Without progress for the longest time first.
        self._pending: dict[PendingPeer, None] = {}
        self._by_address: dict[str, dict[PendingPeer, None]] = {}
        # The address whose last failure is the oldest first.
        self._failures: dict[str, _Failures] = {}

    @contextmanager
    def admit(self, address: str) -> Iterator[PendingPeer]:
        """Count one connection within the block, in which it authenticates.

        The block is cancelled, and ends without an error, when the connection has to make way for others.
        """
        self._make_room_for(address)
        if len(self._pending) >= min(self._options.max_unauthenticated, self.limit):
            self.make_room()
        peer = PendingPeer(self, address)
        self._add(peer)
        try:
            with peer.scope:
                yield peer
        finally:
            self.remove(peer)

    def has_room(self, address: str) -> bool:
        """Whether a newcomer from an address makes none of the others make way."""
        here = self._by_address.get(address, ())
        is_full = len(here) >= self._options.max_unauthenticated_per_address and not self._is_exempt(address)
        return not is_full and len(self._pending) < min(self._options.max_unauthenticated, self.limit)

    def make_room(self) -> None:
        """Drop the connection that has waited longest without progress, if there is one."""
        if self._pending:
            self._drop(next(iter(self._pending)))

    def move(self, peer: PendingPeer, address: str) -> None:
        """Count a connection for another address, that of the client behind a proxy."""
        if peer not in self._pending:
            return
        self.remove(peer)
        peer.address = address
        self._make_room_for(address)
        self._add(peer)

    def _make_room_for(self, address: str) -> None:
        here = self._by_address.get(address)
        if here and len(here) >= self._options.max_unauthenticated_per_address and not self._is_exempt(address):
            self._drop(next(iter(here)))

    def _add(self, peer: PendingPeer) -> None:
        self._pending[peer] = None
        self._by_address.setdefault(peer.address, {})[peer] = None

    def _drop(self, peer: PendingPeer) -> None:
        self.remove(peer)
        peer.is_dropped = True
        peer.scope.cancel()
        self._counters.unauthenticated_dropped += 1

    def move_back(self, peer: PendingPeer) -> None:
        """Let the others make way before this one."""
        if peer in self._pending:
            here = self._by_address[peer.address]
            del self._pending[peer], here[peer]
            self._pending[peer] = here[peer] = None

    def remove(self, peer: PendingPeer) -> None:
        """Stop counting a connection; does nothing the second time."""
        if peer in self._pending:
            del self._pending[peer]
            here = self._by_address[peer.address]
            del here[peer]
            if not here:
                del self._by_address[peer.address]

    def refuse(self, what: str, address: str, account: str, reason: object) -> float:
        """Count and log a failed authentication, and return for how many seconds to delay the reply to it.

        The first one from an address is a warning, the later ones are not.

        Args:
            what: What is refused, such as ``"a connection"``.
            address: Where it comes from.
            account: The account that it is for; empty if it names none.
            reason: Why it is refused.
        """
        now = trio.current_time()
        failures = self._failures.pop(address, None)
        if failures is None or now - failures.last > QUIET:
            failures = _Failures(now, now)
        if now - failures.since > MINUTE:
            failures.since, failures.in_minute = now, 0
        failures.last = now
        failures.in_minute += 1
        failures.total += 1
        self._failures[address] = failures
        if len(self._failures) > REMEMBERED:
            del self._failures[next(iter(self._failures))]
        named = f" for account {account[:LONGEST_NAME]}" if account else ""
        if failures.total == 1:
            self._log.warn("refused %s from %s%s: %s", what, address, named, reason)
        else:
            self._log.info("refused %s from %s%s, %d times so far: %s", what, address, named, failures.total, reason)
        return min(max(0, failures.in_minute - self._options.max_failures_per_minute) * DELAY_STEP, LONGEST_DELAY)

    def _is_exempt(self, address: str) -> bool:
        try:
            is_loopback = ip_address(address.partition("%")[0]).is_loopback
        except ValueError:
            # Not a network address: a local socket, or the application's own stream.
            return True
        return is_loopback or is_trusted(address, self._options.trusted_proxies)
