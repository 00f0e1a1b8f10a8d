"""The ``loopback`` plugin: two plugins in one process, for development, tests and embedding.

The first plugin that is opened under a name waits, as a listener does; the second becomes its peer. Requests,
transfers, limits, deadlines and errors are those of any other plugin; only the network is missing.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

import trio

from .calls import CallTable
from .errors import (
    ConnectionLostError,
    InvalidFieldsError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    RemoteError,
    ResponseTimeoutError,
    TransferInDoubtError,
    UnreachableError,
    told_to_peer,
)
from .handlers import HandlerQueue
from .money.transfer import MoneyLevel, Transfer
from .opening import open_plugin
from .options import LoopbackOptions
from .plugin import LedgerPlugin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .answering import Reply
    from .services import PluginServices

__all__ = ["LoopbackPlugin", "loopback_pair"]

# Which plugins stand under a name, in one Trio run.
_waiting: trio.lowlevel.RunVar[dict[str, list[LoopbackPlugin]]] = trio.lowlevel.RunVar("loopback plugins")
# One count for all: a reply that comes late meets no other call.
_request_ids = count(1)


class LoopbackPlugin(LedgerPlugin):
    """One of two plugins that are peers in one process."""

    options_class: ClassVar[type[LoopbackOptions]] = LoopbackOptions
    options: LoopbackOptions

    def __init__(
        self,
        options: LoopbackOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self._peer: LoopbackPlugin | None = None
        self._calls = CallTable(limit=options.max_in_flight, timeout=options.response_timeout)
        self._requests = HandlerQueue(self.pool, self, self.handlers.answer)

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Stand under the name and wait for the peer, or join the one that waits."""
        plugins = _plugins_under(self.options.name)
        if len(plugins) == 2:
            raise InvalidFieldsError(f"name is {self.options.name!r}; two plugins are connected under it already")
        plugins.append(self)
        try:
            if len(plugins) == 2 and not plugins[0].is_parting:
                for plugin, peer in (plugins, plugins[::-1]):
                    plugin.meet(peer)
            self.tasks.watch(self, trio.current_time() + self.options.response_timeout)
            task_status.started()
            await trio.sleep_forever()
        finally:
            plugins.remove(self)
            if not plugins:
                del _waiting.get()[self.options.name]
            self._requests.abandon()
            self._calls.close(lambda: PluginClosedError("the plugin was closed; the peer may have acted"))
            if self._peer is not None:
                self._peer.part()
                self._peer = None

    def meet(self, peer: LoopbackPlugin) -> None:
        """Be connected to a peer."""
        self._peer = peer
        self._calls = CallTable(limit=self.options.max_in_flight, timeout=self.options.response_timeout)
        self._requests = HandlerQueue(self.pool, self, self.handlers.answer)
        self.link_up()

    def part(self) -> None:
        """Take note that the peer has gone."""
        self._peer = None
        self._requests.abandon()
        self._calls.close(lambda: ConnectionLostError("the peer disconnected; it may have acted"))
        self.link_down("the peer disconnected")

    async def carry_data(self, data: bytes) -> bytes:
        """Hand a request to the peer."""
        await self._wait_for_turn()
        return await self._ask(data, len(data))

    async def carry_money(self, transfer: Transfer) -> None:
        """Hand a transfer to the peer, once."""
        assert transfer.key is not None
        await self._wait_for_turn()
        if transfer.level is MoneyLevel.KEYED and self.peer_retention() is None:
            raise NotConnectedError("the peer does not keep transfer keys; nothing was sent")
        try:
            await self._ask(transfer, 0)
        except (ConnectionLostError, ResponseTimeoutError, PluginClosedError, PluginFailedError) as error:
            raise TransferInDoubtError(transfer.key, transfer.amount, str(error)) from error

    def peer_retention(self) -> int | None:
        """Return for how many seconds the peer keeps transfer keys, where both ends do."""
        if self._peer is None or self.desk.offered_retention is None:
            return None
        return self._peer.desk.offered_retention

    async def _ask(self, payload: bytes | Transfer, size: int) -> bytes:
        calls, peer = self._calls, self._peer
        assert peer is not None
        call = calls.new_call()
        request_id = next(_request_ids)
        calls.pending[request_id] = call
        self.counters.requests_sent += 1
        peer.receive(request_id, payload, size)
        return await calls.outcome(request_id, call)

    async def _wait_for_turn(self) -> None:
        """Wait until a call more may be made; raise when there will be none."""
        calls = self._calls
        await calls.wait_for_slot()
        calls.check_open()

    def receive(self, request_id: int, payload: bytes | Transfer, size: int) -> None:
        """Take a request or transfer of the peer's."""
        self.counters.requests_received += 1
        if isinstance(payload, Transfer):
            keyed = payload.level is MoneyLevel.KEYED
            key, digest = (payload.key, payload.amount.encode()) if keyed else (None, b"")
            payload = Transfer(payload.amount, key=key, level=payload.level, digest=digest)
        if not self._requests.submit(request_id, payload, size):
            # In a task: the caller has to wait before it can be woken.
            self.tasks.spawn(self.reply, request_id, UnreachableError("too many requests wait already"))

    async def reply(self, request_id: int, reply: Reply) -> None:
        """Give the peer a handler's reply."""
        if isinstance(reply, bytes) and len(reply) > self.options.max_data_bytes:
            reply = self.response_too_long(reply)
        self._send_reply(request_id, reply)

    def expire(self, request_id: int) -> None:
        """Answer for a data handler that is past its deadline."""
        self._send_reply(request_id, UnreachableError("the handler took too long"))

    def _send_reply(self, request_id: int, reply: Reply) -> None:
        if self._peer is None:
            return
        if isinstance(reply, LedgerPluginError):
            self.counters.errors_sent += 1
        else:
            self.counters.responses_sent += 1
        self._peer.receive_reply(request_id, reply)

    def receive_reply(self, request_id: int, reply: Reply) -> None:
        """Take the answer to a call of ours."""
        call = self._calls.pending.pop(request_id, None)
        if call is None:
            self.counters.unexpected_responses += 1
        elif isinstance(reply, LedgerPluginError):
            self.counters.errors_received += 1
            code, name, data = told_to_peer(reply)
            call.fail(RemoteError(code, name, triggered_at=datetime.now(UTC), data=data))
        else:
            self.counters.responses_received += 1
            call.answer(reply or b"")

    def sweep(self, now: float) -> float:
        """Fail the calls that are past their deadline."""
        return self._calls.expire(now)

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call in flight."""
        self._calls.close(make_error)

    def calls_in_flight(self) -> int:
        """Return how many calls wait for the peer."""
        return len(self._calls.pending)

    async def finish_calls(self) -> None:
        """Wait for the answers to the calls in flight."""
        await self._calls.drain()


def _plugins_under(name: str) -> list[LoopbackPlugin]:
    try:
        names = _waiting.get()
    except LookupError:
        names = {}
        _waiting.set(names)
    return names.setdefault(name, [])


@asynccontextmanager
async def loopback_pair(
    services: PluginServices | None = None, *, nursery: trio.Nursery | None = None
) -> AsyncIterator[tuple[LoopbackPlugin, LoopbackPlugin]]:
    """Open two loopback plugins that are peers.

    Args:
        services: What both are given. In a transactional store the first keeps its transfers as ledger ``main``, the
            second as ``peer``.
        nursery: Where their tasks run; when None, around the block.

    Yields:
        The two plugins, connected to each other.

    Raises:
        PluginFailedError: One of them met a fatal error.

    Cancellation: Closes both at once.
    """
    name = f"pair-{uuid4()}"
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(open_plugin(LoopbackOptions(name=name), services, nursery=nursery))
        options = LoopbackOptions(name=name, ledger_id="peer")
        second = await stack.enter_async_context(open_plugin(options, services, nursery=nursery))
        assert isinstance(first, LoopbackPlugin)
        assert isinstance(second, LoopbackPlugin)
        yield first, second
