"""What a program keeps in memory about a transaction's changes, and takes back when they are undone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .dialect import Connection

__all__ = ["when_undone"]


def when_undone(connection: Connection, function: Callable[[], None]) -> None:
    """Have a function called if the transaction is undone, before its works run again; the last function first.

    Does nothing in a store that the application provides: there a change in memory stays although its transaction was
    undone.

    Args:
        connection: The connection, inside a transaction.
        function: Called in the store's thread. It must not raise an exception.
    """
    functions: list[Callable[[], None]] | None = getattr(connection, "when_undone", None)
    if functions is not None:
        functions.append(function)
