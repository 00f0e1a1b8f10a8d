"""A store in memory: for tests, demonstrations, and plugins whose data need not survive a restart."""

from __future__ import annotations

from contextlib import suppress

import trio

from ..errors import InvalidFieldsError

__all__ = ["MemoryStore", "check_key", "check_text"]


class MemoryStore:
    """Text under keys in memory (RFC-0024, PluginServices#store).

    Cancellation: Each method begins with a checkpoint; a cancelled call changes nothing.
    Concurrency: Any number of tasks of one Trio run may use it at once; the last ``put`` wins.
    """

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    async def put(self, key: str, value: str) -> None:
        """Store a value under a key, replacing an earlier one.

        Raises:
            TypeError: ``key`` or ``value`` is not a str.
            InvalidFieldsError: One of them is text that UTF-8 cannot encode, or ``key`` has a NUL character.

        Cancellation: Nothing is stored.
        """
        check_key(key)
        check_text("value", value)
        await trio.lowlevel.checkpoint()
        self._values[key] = value

    async def put_if_absent(self, key: str, value: str) -> str:
        """Store a value under a key that has none, and return the value that the key has now.

        Raises:
            TypeError: ``key`` or ``value`` is not a str.
            InvalidFieldsError: One of them is text that UTF-8 cannot encode, or ``key`` has a NUL character.

        Cancellation: Nothing is stored.
        """
        check_key(key)
        check_text("value", value)
        await trio.lowlevel.checkpoint()
        return self._values.setdefault(key, value)

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None if there is none.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot encode, or has a NUL character.

        Cancellation: Safe at any time.
        """
        check_key(key)
        await trio.lowlevel.checkpoint()
        return self._values.get(key)

    async def delete(self, key: str) -> None:
        """Remove a key and its value; a missing key is not an error.

        Raises:
            TypeError: ``key`` is not a str.
            InvalidFieldsError: ``key`` is text that UTF-8 cannot encode, or has a NUL character.

        Cancellation: Nothing is removed.
        """
        check_key(key)
        await trio.lowlevel.checkpoint()
        self._values.pop(key, None)


def check_text(what: str, value: object) -> None:
    """Check that a key or a value is text; used by every store.

    Args:
        what: ``"key"`` or ``"value"``, for the error.
        value: The argument to check.

    Raises:
        TypeError: It is not a str.
        InvalidFieldsError: It is text that UTF-8 cannot encode.
    """
    if not isinstance(value, str):
        raise TypeError(f"a store's {what} is text (str), not {type(value).__name__}")
    encodable = False
    # Suppressed, and the new error is raised outside: the UnicodeEncodeError contains the whole text, which may be
    # secret, and would otherwise be the new error's context.
    with suppress(UnicodeEncodeError):
        value.encode()
        encodable = True
    if not encodable:
        raise InvalidFieldsError(f"a store's {what} has a lone surrogate; it must be text that UTF-8 can encode")


def check_key(key: object) -> None:
    """Check a key; used by every store.

    Raises:
        TypeError: It is not a str.
        InvalidFieldsError: It is text that UTF-8 cannot encode, or has a NUL character.
    """
    check_text("key", key)
    # PostgreSQL's text has none, so a program could not change its store.
    if "\0" in str(key):
        raise InvalidFieldsError("a store's key has a NUL character, which not every database can hold")
