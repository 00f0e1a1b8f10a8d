"""How many connections the process's file descriptors are enough for.

Invariant: some descriptors are left for files, for the store and for connections that this process dials, and some for
peers that are not authenticated yet.
"""

from __future__ import annotations

import sys
from math import inf

__all__ = ["links_limit", "unauthenticated_limit"]

# The descriptors that are left for everything else: a quarter, and at most so many.
MOST_RESERVED = 64


def _for_connections() -> float:
    if sys.platform == "win32":
        return inf
    import resource  # noqa: PLC0415 (not there on Windows)

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return inf if limit == resource.RLIM_INFINITY else limit - min(limit // 4, MOST_RESERVED)


def unauthenticated_limit() -> float:
    """Return for how many unauthenticated connections there are descriptors."""
    return max(1, _for_connections() // 4)


def links_limit() -> float:
    """Return for how many authenticated connections there are descriptors."""
    return max(1, _for_connections() - unauthenticated_limit())
