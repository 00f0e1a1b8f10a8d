"""Limits the unauthenticated connections of a listener.

Invariant: the number of unauthenticated connections is bounded, in total and for each address. The more often the
authentications from an address fail, the later it gets its replies. Wrong tokens never make it refuse a right one.
"""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio

from .forwarded import is_trusted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..options.base import PluginOptions

__all__ = ["Admission"]

MINUTE = 60.0
# By how much each failure delays the reply to it, and the longest delay, in seconds.
DELAY_STEP = 0.25
LONGEST_DELAY = 4.0
# Addresses whose failures are remembered; the oldest are forgotten first.
REMEMBERED = 4096


class Admission:
    """Counts the unauthenticated connections of a listener.

    Args:
        options: The limits.
    """

    def __init__(self, options: PluginOptions) -> None:
        self._options = options
        self._by_address: dict[str, int] = {}
        self._total = 0
        self._failures: dict[str, tuple[float, int]] = {}

    @contextmanager
    def admit(self, address: str) -> Iterator[bool]:
        """Count one connection within the block, in which it authenticates; yields False if it must be refused."""
        if self._total >= self._options.max_unauthenticated:
            yield False
            return
        with self.admit_client(address) as admitted:
            self._total += 1
            try:
                yield admitted
            finally:
                self._total -= 1

    @contextmanager
    def admit_client(self, address: str) -> Iterator[bool]:
        """Count an admitted connection for one more address within the block: that of the client behind a proxy."""
        here = self._by_address.get(address, 0)
        if here >= self._options.max_unauthenticated_per_address and not self._is_exempt(address):
            yield False
            return
        self._by_address[address] = here + 1
        try:
            yield True
        finally:
            left = self._by_address.pop(address) - 1
            if left:
                self._by_address[address] = left

    def failure_delay(self, address: str) -> float:
        """Count a failed authentication, and return for how many seconds to delay the reply to it."""
        now = trio.current_time()
        since, times = self._failures.pop(address, (now, 0))
        if now - since > MINUTE:
            since, times = now, 0
        self._failures[address] = (since, times + 1)
        if len(self._failures) > REMEMBERED:
            del self._failures[next(iter(self._failures))]
        return min(max(0, times + 1 - self._options.max_failures_per_minute) * DELAY_STEP, LONGEST_DELAY)

    def _is_exempt(self, address: str) -> bool:
        try:
            is_loopback = ip_address(address.partition("%")[0]).is_loopback
        except ValueError:
            # Not a network address: a local socket, or the application's own stream.
            return True
        return is_loopback or is_trusted(address, self._options.trusted_proxies)
