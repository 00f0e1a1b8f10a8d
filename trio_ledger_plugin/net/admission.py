"""How many unauthenticated connections a listener has, and from where.

Invariant: the number of connections that are not authenticated is bounded, in total and for each address. An address
whose authentications fail often is answered later and later; a right token is never refused because of wrong ones.
"""

from __future__ import annotations

from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..options.base import PluginOptions

__all__ = ["Admission"]

MINUTE = 60.0
# What one more failure adds to the delay of its answer, and the longest delay.
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
        self._inside: dict[str, int] = {}
        self._total = 0
        self._failures: dict[str, tuple[float, int]] = {}

    @contextmanager
    def admit(self, address: str) -> Iterator[bool]:
        """Count one connection while it is not authenticated; yields False when it must be refused."""
        here = self._inside.get(address, 0)
        full = self._total >= self._options.max_unauthenticated
        crowded = here >= self._options.max_unauthenticated_per_address and not self._is_exempt(address)
        if full or crowded:
            yield False
            return
        self._total += 1
        self._inside[address] = here + 1
        try:
            yield True
        finally:
            self._total -= 1
            left = self._inside.pop(address) - 1
            if left:
                self._inside[address] = left

    def failure_delay(self, address: str) -> float:
        """Count a failed authentication and return the seconds to wait before it is answered."""
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
            return address in self._options.trusted_proxies or ip_address(address.partition("%")[0]).is_loopback
        except ValueError:
            # Not a network address: a local socket, or a stream that the application has made.
            return True
