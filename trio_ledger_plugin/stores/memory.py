"""A store that lives as long as its object: for tests, demonstrations, and plugins that may forget."""

from __future__ import annotations

from contextlib import suppress

import trio

from ..errors import InvalidFieldsError

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
            InvalidFieldsError: One of them is text that UTF-8 cannot hold.
        """
        check_text("key", key)
        check_text("value", value)
        await trio.lowlevel.checkpoint()
        self._values[key] = value

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None when there is none. Cancelled: nothing happens.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot hold.
        """
        check_text("key", key)
        await trio.lowlevel.checkpoint()
        return self._values.get(key)

    async def delete(self, key: str) -> None:
        """Remove a key; a missing one is no error. Cancelled: nothing is removed.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot hold.
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
        InvalidFieldsError: It is text that UTF-8 cannot hold.
    """
    if not isinstance(value, str):
        raise TypeError(f"a store's {what} is text (str), not {type(value).__name__}")
    sound = False
    # Suppressed and not replaced: the codec's error carries the whole text, and would be the context of ours.
    with suppress(UnicodeEncodeError):
        value.encode()
        sound = True
    if not sound:
        raise InvalidFieldsError(f"a store's {what} has a lone surrogate; it must be text that UTF-8 can hold")
