"""``ExchangePlugin``: for plugins whose link carries requests, and replies that name the request they answer.

The law of this module: a call belongs to the link that it went over, and so does a request of the peer's. When the link
is gone its calls have failed, and what its handlers answer later goes nowhere, not even over the next link.

An author writes ``run_connection``, ``send_request`` and ``send_reply``; limits, deadlines, handlers and what each
error tells of a request are common. A link with ways of its own, such as BTP's, is a ``LedgerPlugin`` directly.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime
from itertools import count
from math import inf
from typing import TYPE_CHECKING

import trio

from .errors import (
    ConnectionLostError,
    LedgerPluginError,
    NotConnectedError,
    PluginFailedError,
    RemoteError,
    TransferInDoubtError,
    UnreachableError,
    wire_error,
)
from .parking import park
from .plugin import LedgerPlugin
from .runtime.calls import IN_DOUBT, CallTable
from .runtime.workers import RequestQueue
from .transfer import MoneyLevel, Transfer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .options.base import PluginOptions
    from .runtime.handlers import Reply
    from .services import PluginServices

__all__ = ["ExchangePlugin"]

# What a transfer counts for while it waits for a handler.
TRANSFER_BYTES = 64
# One count for all: a reply that comes late meets no other call.
_numbers = count(1)


class ExchangePlugin(LedgerPlugin):
    """A plugin whose link carries numbered requests and their replies.

    Args:
        options: The plugin's options.
        services: The store and the log that the host offers.
        nursery: Where the plugin's tasks run.
        on_failed: Told of a fatal error; when None, the error leaves through the nursery.
    """

    def __init__(
        self,
        options: PluginOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self._exchange = _Exchange(self)

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
            number: The peer's number of the request.
            reply: A response; None for a transfer that was taken; or an error, of which
                ``errors.wire_error(error)`` gives what the peer may know.
        """

    # What an author of a plugin calls.

    def link_up(self) -> None:
        """Tell that a peer is connected and authenticated; what is left of the link before it is forgotten."""
        self._exchange.end(lambda: ConnectionLostError("another link took its place; the peer may have acted"))
        self._exchange = _Exchange(self)
        self.context.timers.schedule(self._exchange, trio.current_time() + self.options.response_timeout)
        super().link_up()

    def peer_left(self, reason: str) -> None:
        """Tell that the link is lost: its calls fail with ``ConnectionLostError``."""
        self._exchange.end(lambda: ConnectionLostError(f"the link was lost: {reason}; the peer may have acted"))
        self.link_down(reason)

    def receive_request(self, number: int, request: bytes | Transfer) -> None:
        """Take a request of the peer's; ``send_reply`` is called once, later, unless the link is lost."""
        self.counters.requests_received += 1
        self._exchange.serve(number, request)

    def receive_reply(self, number: int, reply: Reply) -> None:
        """Take the peer's reply to a request of this end; one to no request is counted and ignored.

        Args:
            number: The number that the request had.
            reply: A response; None, as an empty one; or an error. A ``RemoteError`` is raised as it is, another as the
                ``RemoteError`` that it becomes on its way.
        """
        call = self._exchange.calls.pending.pop(number, None)
        if call is None:
            self.counters.unexpected_responses += 1
        elif isinstance(reply, LedgerPluginError):
            self.counters.errors_received += 1
            call.fail(reply if isinstance(reply, RemoteError) else _as_remote(reply))
        else:
            self.counters.responses_received += 1
            call.answer(reply or b"")

    # What every plugin has to do.

    async def carry_data(self, data: bytes) -> bytes:
        """Send a request and return the response."""
        calls = await self._turn()
        return await self._ask(calls, data)

    async def carry_money(self, transfer: Transfer) -> None:
        """Send a transfer, once, and return when it is acknowledged."""
        assert transfer.key is not None
        calls = await self._turn()
        if transfer.level is MoneyLevel.KEYED and self.peer_retention() is None:
            calls.wake_next()
            raise NotConnectedError("the peer does not keep transfer keys; nothing was sent")
        try:
            await self._ask(calls, transfer)
        except IN_DOUBT as error:
            raise TransferInDoubtError(transfer.key, transfer.amount, str(error)) from error

    async def _turn(self) -> CallTable:
        """Wait until a call more may be made; raise when there will be none."""
        calls = self._exchange.calls
        await calls.wait_for_slot()
        calls.check_open()
        return calls

    # Ctrl-C must not leave a call behind whose caller waits for something else by then.
    @trio.lowlevel.enable_ki_protection
    async def _ask(self, calls: CallTable, request: bytes | Transfer) -> bytes:
        number, call = calls.open()
        try:
            self.send_request(number, request)
            self.counters.requests_sent += 1
            response: bytes = await park(call) if call.early is None else call.early.unwrap()
            return response
        finally:
            calls.forget(number)

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call in flight."""
        self._exchange.end(make_error)

    def calls_in_flight(self) -> int:
        """Return how many calls wait for the peer."""
        return len(self._exchange.calls.pending)

    async def finish_calls(self) -> None:
        """Wait for the answers to the calls in flight."""
        await self._exchange.calls.drain()


class _Exchange:
    """What goes over one link: calls of this end, and requests of the peer's.

    Args:
        plugin: The plugin.
    """

    def __init__(self, plugin: ExchangePlugin) -> None:
        self._plugin = plugin
        options = plugin.options
        self.calls: CallTable = CallTable(_numbers, limit=options.max_in_flight, timeout=options.response_timeout)
        self._requests = RequestQueue(plugin.context.workers, plugin.context.budget, self, plugin.handlers.answer)

    def serve(self, number: int, request: bytes | Transfer) -> None:
        size = TRANSFER_BYTES if isinstance(request, Transfer) else len(request)
        if not self._requests.submit(number, request, size):
            # In a task: a peer in this process has to wait for the reply before it can be given one.
            self._plugin.tasks.spawn(self.reply, number, UnreachableError("too many requests wait already"))

    async def reply(self, number: int, reply: Reply) -> None:
        """Send a handler's reply, or drop it when the link is gone."""
        self._send(number, reply)

    def expire(self, number: int) -> None:
        """Answer for a data handler that is past its deadline."""
        self._send(number, UnreachableError("the handler took too long"))

    def _send(self, number: int, reply: Reply) -> None:
        if self.calls.closed:
            return
        if isinstance(reply, LedgerPluginError):
            self._plugin.counters.errors_sent += 1
        else:
            self._plugin.counters.responses_sent += 1
        self._plugin.send_reply(number, reply)

    def fire(self, now: float) -> float:
        """Fail the calls that are past their deadline."""
        return inf if self.calls.closed else self.calls.expire(now)

    def end(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call; the requests that wait for a handler are forgotten. The first reason counts."""
        self.calls.close(make_error)
        self._requests.abandon()


def _as_remote(error: LedgerPluginError) -> RemoteError:
    code, name, data = wire_error(error)
    return RemoteError(code, name, triggered_at=datetime.now(UTC), data=data)
