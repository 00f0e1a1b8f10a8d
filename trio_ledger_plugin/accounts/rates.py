"""How many requests a second a server's accounts make."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .account import AccountSnapshot

__all__ = ["AccountRates", "per_second"]


class AccountRates:
    """Computes the accounts' rates between one look and the next."""

    def __init__(self) -> None:
        self._at = trio.current_time()
        self._seen: dict[str, tuple[float, int]] = {}

    def update(self, accounts: Iterable[AccountSnapshot]) -> dict[str, float]:
        """Return the requests a second, both ways, of each account since the last look, by name."""
        now, seen = trio.current_time(), self._seen
        elapsed, rates = now - self._at, {}
        self._at, self._seen = now, {}
        for account in accounts:
            requests = account.requests_received + account.requests_sent
            connected_at, before = seen.get(account.name, (account.connected_at, 0))
            # An account that disconnected and connected again counts from zero.
            done = requests - (before if connected_at == account.connected_at else 0)
            rates[account.name] = per_second(done, elapsed)
            self._seen[account.name] = account.connected_at, requests
        return rates


def per_second(count: int, elapsed: float) -> float:
    """Return a rate; 0 if no time has passed."""
    return count / elapsed if elapsed > 0 else 0.0
