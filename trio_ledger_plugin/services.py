"""The services that a host gives to a plugin (RFC-0024, class PluginServices)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeVar

from attrs import frozen

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

__all__ = ["Log", "PluginServices", "Store", "TransactionalStore"]

T = TypeVar("T")


class Store(Protocol):
    """The host's persistence: text under keys (RFC-0024, PluginServices#store)."""

    async def put(self, key: str, value: str) -> None:
        """Store a value under a key, replacing what was there."""
        ...

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None when there is none."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a key and its value; a key that is not there is no error."""
        ...


class TransactionalStore(Store, Protocol):
    """A store that can also change several things at once, all or nothing; money that survives crashes needs one.

    ``open_sqlite_store()`` gives one.
    """

    async def transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work(connection)`` inside a transaction and return its result once that is safely on disk.

        Args:
            work: Called in the store's own thread, one at a time. It may be run again when a commit fails, so it
                changes nothing but the database. An exception that it raises undoes what it did, and is raised here.

        Raises:
            StoreError: The store failed; nothing has changed.
            StoreInDoubtError: The store failed during the commit, and cannot tell whether it counts.

        Cancellation: ``work`` is not run if it has not begun; once begun it commits all the same.
        """
        ...


class Log(Protocol):
    """The host's log (RFC-0024, PluginServices#log).

    Messages hold the tokens ``%O %o %s %d %j %%``; ``trio_ledger_plugin.log.format_message`` fills them in.
    """

    def debug(self, message: str, *params: object) -> None:
        """Log extremely verbose information."""
        ...

    def info(self, message: str, *params: object) -> None:
        """Log a notable event of normal operation."""
        ...

    def warn(self, message: str, *params: object) -> None:
        """Log an unusual event that calls for attention."""
        ...

    def error(self, message: str, *params: object) -> None:
        """Log that something went wrong."""
        ...


@frozen
class PluginServices:
    """What the host offers; every service is optional.

    Attributes:
        store: Where the plugin keeps what must outlive it. None: nothing is kept.
        log: Where the plugin logs. None: the standard library's logger ``trio_ledger_plugin``.

    Raises:
        TypeError: A service lacks a method.
    """

    store: Store | None = None
    log: Log | None = None

    def __attrs_post_init__(self) -> None:
        _check("store", self.store, ("put", "get", "delete"))
        if isinstance(self.log, logging.Logger):
            # It has all the methods, and cannot read %j and %O.
            raise TypeError("log: a logging.Logger formats otherwise; give trio_ledger_plugin.log.StdlibLog(logger)")
        _check("log", self.log, ("debug", "info", "warn", "error"))


def _check(service: str, value: object, methods: tuple[str, ...]) -> None:
    # By hand: isinstance() with a runtime protocol neither says what is missing nor asks whether it can be called.
    if value is None:
        return
    if isinstance(value, type):
        raise TypeError(f"{service}: {value.__name__} is a class, must be an object of it")
    if missing := [name for name in methods if not callable(getattr(value, name, None))]:
        hint = "; open it first, with 'async with'" if hasattr(value, "__aenter__") else ""
        raise TypeError(f"{service}: {type(value).__name__} has no method {', '.join(missing)}{hint}")
