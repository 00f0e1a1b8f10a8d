"""A store that lives as long as its object: for tests, demonstrations, and plugins that may forget."""

from __future__ import annotations

import trio

__all__ = ["MemoryStore", "check_text"]


class MemoryStore:
    """Text under keys in memory (RFC-0024, PluginServices#store).

    Cancellation: Each method is a checkpoint first; a cancelled call has changed nothing.
    Concurrency: Any number of tasks of one Trio run may use it at once; the last ``put`` wins.
    """

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    async def put(self, key: str, value: str) -> None:
        """Store a value under a key, replacing what was there. Cancelled: nothing is stored.

        Raises:
            TypeError: ``key`` or ``value`` is not a str.
        """
        check_text("key", key)
        check_text("value", value)
        await trio.lowlevel.checkpoint()
        self._values[key] = value

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None when there is none. Cancelled: nothing happens.

        Raises:
            TypeError: ``key`` is not a str.
        """
        check_text("key", key)
        await trio.lowlevel.checkpoint()
        return self._values.get(key)

    async def delete(self, key: str) -> None:
        """Remove a key; a missing one is no error. Cancelled: nothing is removed.

        Raises:
            TypeError: ``key`` is not a str.
        """
        check_text("key", key)
        await trio.lowlevel.checkpoint()
        self._values.pop(key, None)


def check_text(what: str, value: object) -> None:
    """Refuse what is not text, for every store alike.

    Args:
        what: What it is to be: ``"key"`` or ``"value"``.
        value: What was given.

    Raises:
        TypeError: It is not a str.
    """
    if not isinstance(value, str):
        raise TypeError(f"a store's {what} is text (str), not {type(value).__name__}")
