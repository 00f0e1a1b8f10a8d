"""Counts what an account uses, and what its server uses with it, against their limits.

Invariant: what an account's budget counts, its server's counts too. What a lost link still uses stays counted until it
is given back, so an account gains nothing by opening further links.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio
from attrs import frozen

if TYPE_CHECKING:
    from ..options.base import PluginOptions

__all__ = ["Budget", "Limits", "ReadingTurn"]


@frozen
class Limits:
    """The most that an account, or a whole server, may use at once.

    Attributes:
        handlers: Handlers that run.
        handler_bytes: Bytes of requests and replies that running handlers hold.
        backlog_bytes: Bytes of requests that wait for a handler.
        reserve: For a server: which part of the first three is kept for accounts that use nothing yet.
    """

    handlers: float = inf
    handler_bytes: float = inf
    backlog_bytes: float = inf
    reserve: float = 0.0

    @classmethod
    def of_account(cls, options: PluginOptions) -> Limits:
        """Return the limits of one account, or of a plugin with one peer."""
        return cls(options.max_handlers, options.max_handler_bytes, options.max_backlog_bytes)


class ReadingTurn:
    """The turn that the links of one account take.

    Attributes:
        lock: Held by the link whose turn it is.
        others_busy: Whether links of other accounts have read anything during the last turn.
        unread: The bytes that have arrived over the links that wait for their turn, or have it.
    """

    __slots__ = ("lock", "others_busy", "unread")

    def __init__(self) -> None:
        self.lock: trio.Lock = trio.Lock()
        self.others_busy: bool = False
        self.unread: int = 0


class Budget:
    """What one account, or one server, uses.

    Transfers use at most half of the handlers, so that data requests continue while a store hangs.

    Args:
        limits: The most that may be used.
        parent: The server's budget, for one of its accounts; None for a server and for a plugin with one peer.

    Attributes:
        handlers: How many handlers run.
        transfers: How many of them handle a transfer.
        handler_bytes: The bytes of requests and replies that they hold.
        backlog_bytes: The bytes of requests that wait for a handler.
        calls: How many calls to the peer are in flight.
        links: How many authenticated connections are open.
        call_waiters: The callers that wait until fewer calls are in flight; made when first needed.
        rest_until: Until when its links read nothing, because a request had to be refused; 0 if none had to.
    """

    __slots__ = (
        "__weakref__",
        "_reading",
        "_unused",
        "backlog_bytes",
        "call_waiters",
        "calls",
        "handler_bytes",
        "handlers",
        "limits",
        "links",
        "parent",
        "rest_until",
        "transfers",
    )

    def __init__(self, limits: Limits, parent: Budget | None = None) -> None:
        self.limits: Limits = limits
        self.parent: Budget | None = parent
        self.handlers: int = 0
        self.transfers: int = 0
        self.handler_bytes: int = 0
        self.backlog_bytes: int = 0
        self.calls: int = 0
        self.links: int = 0
        # Made when first needed, as everything below: an idle account must cost little.
        self._reading: ReadingTurn | None = None
        self.call_waiters: trio.lowlevel.ParkingLot | None = None
        self.rest_until: float = 0.0
        self._unused: trio.Event | None = None

    @property
    def in_use(self) -> bool:
        """Whether anything is used."""
        return bool(self.handlers or self.calls or self.links or self.backlog_bytes)

    def measure(self) -> dict[str, int]:
        """Return what is used now, as ``Statistics`` and ``AccountSnapshot`` name it."""
        return {
            "handlers_running": self.handlers,
            "handler_bytes": self.handler_bytes,
            "backlog_bytes": self.backlog_bytes,
        }

    @property
    def reading(self) -> ReadingTurn:
        """The turn of a link to take the messages that it has read, if the account has several links."""
        if self._reading is None:
            self._reading = ReadingTurn()
        return self._reading

    def count_link(self, more: int) -> None:
        """Count a connection that is opened, or if negative, closed."""
        self.links += more
        if self.parent is not None:
            self.parent.links += more

    # Running handlers.

    def admits(self, size: int, *, is_transfer: bool, uses_none: bool) -> bool:
        """Whether a server has room for one more request of an account.

        Args:
            size: The bytes that the request holds.
            is_transfer: Whether it is a transfer.
            uses_none: Whether no handler runs for the account, which may then use what is reserved.
        """
        limits, running = self.limits, self.handlers
        part = 1.0 if uses_none else 1.0 - limits.reserve
        if running >= limits.handlers * part or (running and self.handler_bytes + size > limits.handler_bytes * part):
            return False
        return not is_transfer or not running or 2 * (self.transfers + 1) <= limits.handlers * part

    def take_handler(self, size: int, *, is_transfer: bool) -> bool:
        """Count a request that begins to run; return False, and count nothing, if there is no room for it.

        One that holds more bytes than the limit runs alone.
        """
        limits, running, server = self.limits, self.handlers, self.parent
        if running and (
            running >= limits.handlers
            or self.handler_bytes + size > limits.handler_bytes
            or (is_transfer and 2 * (self.transfers + 1) > limits.handlers)
        ):
            return False
        if server is not None:
            if not server.admits(size, is_transfer=is_transfer, uses_none=not running):
                return False
            # Not by a call: this runs for each request.
            server.handlers += 1
            server.handler_bytes += size
            server.transfers += is_transfer
        self.handlers += 1
        self.handler_bytes += size
        self.transfers += is_transfer
        return True

    def hold_more(self, size: int) -> None:
        """Count bytes that a running request holds beyond its first ones."""
        self.handler_bytes += size
        if self.parent is not None:
            self.parent.handler_bytes += size

    def give_handler_back(self, size: int, *, is_transfer: bool) -> None:
        """Count a request that has ended, and held so many bytes at last."""
        self.handlers -= 1
        self.handler_bytes -= size
        self.transfers -= is_transfer
        if self._unused is not None:
            self._wake_unused()
        server = self.parent
        if server is not None:
            server.handlers -= 1
            server.handler_bytes -= size
            server.transfers -= is_transfer
            if server._unused is not None:
                server._wake_unused()

    def _wake_unused(self) -> None:
        if self._unused is not None and not self.handlers:
            self._unused.set()
            self._unused = None

    async def rest(self) -> None:
        """Wait until its links read again.

        Cancellation: Safe at any time.
        """
        while self.rest_until:
            if self.rest_until <= trio.current_time():
                self.rest_until = 0.0
            await trio.sleep_until(self.rest_until)

    async def wait_no_handlers(self) -> None:
        """Wait until no handler runs.

        Cancellation: Safe at any time.
        """
        while self.handlers:
            if self._unused is None:
                self._unused = trio.Event()
            await self._unused.wait()

    # Waiting requests.

    def may_wait(self, size: int) -> bool:
        """Whether one more request may wait for a handler."""
        if self.backlog_bytes + size > self.limits.backlog_bytes:
            return False
        if self.parent is None:
            return True
        limits = self.parent.limits
        part = 1.0 - limits.reserve if self.backlog_bytes else 1.0
        return self.parent.backlog_bytes + size <= limits.backlog_bytes * part

    def count_waiting(self, size: int) -> None:
        """Count bytes that begin to wait, or if negative, no longer wait."""
        self.backlog_bytes += size
        if self.parent is not None:
            self.parent.backlog_bytes += size
