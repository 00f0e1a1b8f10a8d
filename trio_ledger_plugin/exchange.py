"""``ExchangePlugin``: the short way to write a plugin whose link carries requests, and replies that name their request.

An author writes ``run_connection``, ``send_request`` and ``send_reply``; limits, deadlines, handlers and what each
error tells of a request are common. A link with ways of its own, such as BTP's, has an ``Exchange`` of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

import trio

from .errors import ConnectionLostError, DecodeError, LedgerPluginError, PluginFailedError, RemoteError, wire_error
from .plugin import LedgerPlugin
from .runtime.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from .options.base import PluginOptions
    from .runtime.handlers import Reply
    from .services import PluginServices
    from .transfer import Transfer

__all__ = ["ExchangePlugin"]

# One count for all: a reply that comes late meets no other call.
_numbers = count(1)


class ExchangePlugin(LedgerPlugin):
    """A plugin whose link carries numbered requests and their replies.

    Args:
        options: The plugin's options.
        services: The store and the log of the application.
        nursery: Where the plugin's tasks run.
        on_failed: Called with the fatal error. If None, the error propagates through the nursery.
    """

    def __init__(
        self,
        options: PluginOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self._exchange = _PluginExchange(self)

    # What an author of a plugin writes.

    @abstractmethod
    def send_request(self, number: int, request: bytes | Transfer) -> None:
        """Send a request to the peer, or queue it; called while a link is up.

        Args:
            number: What the peer's reply has to name: below 2**63, never the same twice in a process.
            request: What ``send_data`` was given, or a transfer.

        Raises:
            LedgerPluginError: Nothing was sent; the caller gets the error.
        """

    @abstractmethod
    def send_reply(self, number: int, reply: Reply) -> None:
        """Send the reply to a request of the peer's, or queue it.

        Args:
            number: The number that the request had.
            reply: A response; None, the acknowledgement of a transfer; or an error, of which
                ``errors.wire_error(error)`` gives what the peer may know.
        """

    # What an author of a plugin calls.

    def link_up(self) -> None:
        """Report that a peer is connected and authenticated; what is left of the link before it is dropped."""
        self._exchange.close(lambda: ConnectionLostError("another link took its place; the peer may have acted"))
        self._exchange = _PluginExchange(self)
        self.context.timers.schedule(self._exchange, trio.current_time() + self.options.response_timeout)
        super().link_up()

    def peer_left(self, reason: str) -> None:
        """Report that the link is lost: its calls fail with ``ConnectionLostError``."""
        self._exchange.close(lambda: ConnectionLostError(f"the link was lost: {reason}; the peer may have acted"))
        self.link_down(reason)

    def receive_request(self, number: int, request: bytes | Transfer) -> None:
        """Have a request or transfer of the peer's served; ``send_reply`` is called later, unless the link is lost."""
        self._exchange.receive_request(number, request)

    def receive_reply(self, number: int, reply: Reply) -> None:
        """Give the peer's reply to the call that it names; a reply to no call is counted and ignored.

        Args:
            number: The number that the request had.
            reply: A response; None, which counts as an empty one; or an error. ``RemoteError`` is raised as it is, and
                so is ``DecodeError``, for a reply that cannot be read: it leaves a transfer in doubt. Any other is
                raised as the ``RemoteError`` that it becomes on the wire.
        """
        self._exchange.receive_reply(number, reply)

    # What every plugin has to do.

    async def carry_data(self, data: bytes) -> bytes:
        """Send a request and return the response."""
        return await self._exchange.request(data)

    async def carry_money(self, transfer: Transfer) -> None:
        """Send a transfer, once, and return when it is acknowledged."""
        await self._exchange.transfer(transfer)

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call in flight."""
        self._exchange.close(make_error)

    def calls_in_flight(self) -> int:
        """Return how many calls wait for the peer."""
        return len(self._exchange.calls.pending)

    async def finish_calls(self) -> None:
        """Wait for the replies to the calls in flight."""
        await self._exchange.drain()


class _PluginExchange(Exchange):
    """The exchange of one link of an ``ExchangePlugin``.

    Args:
        plugin: The plugin, which sends.
    """

    __slots__ = ("_plugin",)

    def __init__(self, plugin: ExchangePlugin) -> None:
        super().__init__(plugin.context, _numbers)
        self._plugin = plugin

    def send_request(self, request_id: int, request: bytes | Transfer) -> None:
        self._plugin.send_request(request_id, request)

    def send_reply(self, request_id: int, reply: Reply) -> None:
        self._plugin.send_reply(request_id, reply)

    def receive_reply(self, request_id: int, reply: Reply) -> None:
        if isinstance(reply, LedgerPluginError) and not isinstance(reply, RemoteError | DecodeError):
            code, name, data = wire_error(reply)
            reply = RemoteError(code, name, triggered_at=datetime.now(UTC), data=data)
        super().receive_reply(request_id, reply)

    @property
    def peer_retention(self) -> int | None:
        return self._plugin.peer_retention()
