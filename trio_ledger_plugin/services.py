"""The services that an application gives to a plugin (RFC-0024, class PluginServices)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    #: Returns the values of keys, with None for a key that has none.
    Read: TypeAlias = Callable[[Sequence[str]], list[str | None]]
    #: The new values of keys; None removes a value.
    Changes: TypeAlias = Mapping[str, str | None]

__all__ = ["Changes", "Log", "PluginServices", "Read", "Store", "TransactionalStore"]

T = TypeVar("T")
ConnectionT_co = TypeVar("ConnectionT_co", covariant=True)


class Store(Protocol):
    """The application's persistent store: text under keys (RFC-0024, PluginServices#store).

    A store that several programs use at once also has ``put_if_absent(key, value)``, which stores a value under a key
    that has none, and returns the value that the key has then. Every store of this package has it. Those in a database
    also have ``update(decide)``, which reads and changes several values in one transaction.
    """

    async def put(self, key: str, value: str) -> None:
        """Store a value under a key, replacing an earlier one."""
        ...

    async def get(self, key: str) -> str | None:
        """Return the value under a key, or None if there is none."""
        ...

    async def delete(self, key: str) -> None:
        """Remove a key and its value; a missing key is not an error."""
        ...


class TransactionalStore(Store, Protocol[ConnectionT_co]):
    """A store with transactions, which money that survives crashes needs.

    ``open_sqlite_store()`` returns one whose connections are ``sqlite3.Connection``, ``open_postgres_store()`` one
    whose connections are ``psycopg.Connection``. A class that wraps a store of this package passes on its attribute
    ``dialect``; a store without one is taken for an SQLite store.
    """

    async def transaction(self, work: Callable[[ConnectionT_co], T]) -> T:
        """Run ``work(connection)`` inside a transaction and return its result once the changes are safely stored.

        Args:
            work: Called in the store's own thread. It may run again when a commit fails, so it
                must change nothing but the database. If it raises an exception, its changes are undone and this method
                raises that exception.

        Raises:
            StoreError: The store failed; nothing has changed.
            StoreInDoubtError: The store failed during the commit; it is not known whether the changes count.

        Cancellation: ``work`` does not run if it has not begun. Once begun, it commits anyway.
        """
        ...


class Log(Protocol):
    """The application's log (RFC-0024, PluginServices#log).

    Messages contain the tokens ``%O %o %s %d %j %%``; ``trio_ledger_plugin.log.format_message`` fills them in.
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
    """The services that the application offers; each is optional.

    Attributes:
        store: Where the plugin keeps data that must survive a restart. None: it keeps nothing.
        log: Where the plugin logs. None: the standard library's logger ``trio_ledger_plugin``.

    Raises:
        TypeError: A service lacks a method.
    """

    store: Store | None = None
    log: Log | None = None

    def __attrs_post_init__(self) -> None:
        _check("store", self.store, ("put", "get", "delete"))
        if isinstance(self.log, logging.Logger) or self.log is logging:
            # It has all four methods, but does not know the tokens %j and %O.
            raise TypeError("log: a logging.Logger formats otherwise; give trio_ledger_plugin.log.StdlibLog(logger)")
        _check("log", self.log, ("debug", "info", "warn", "error"))


def _check(service: str, value: object, methods: tuple[str, ...]) -> None:
    # Not isinstance() with a runtime protocol: it neither names the missing method nor checks that it is callable.
    if value is None:
        return
    if isinstance(value, type):
        raise TypeError(f"{service}: {value.__name__} is a class, must be an object of it")
    if missing := [name for name in methods if not callable(getattr(value, name, None))]:
        hint = "; open it first, with 'async with'" if hasattr(value, "__aenter__") else ""
        raise TypeError(f"{service}: {type(value).__name__} has no method {', '.join(missing)}{hint}")
