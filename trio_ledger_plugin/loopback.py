"""The ``loopback`` plugin: two plugins in one process, for development, tests and embedding.

The first plugin that is opened with a name waits, like a listener; the second becomes its peer. Requests, transfers,
limits, deadlines and errors are those of any other plugin; only the network is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import trio
from attrs import evolve

from .errors import InvalidFieldsError, PluginClosedError
from .exchange import ExchangePlugin
from .negotiation import PeerJournal
from .options.loopback import LoopbackOptions
from .transfer import MoneyLevel, Transfer

if TYPE_CHECKING:
    from .runtime.handlers import Reply

__all__ = ["LoopbackOptions", "LoopbackPlugin"]

# The open plugins by name, at most two for each name, in one Trio run.
_open_plugins: trio.lowlevel.RunVar[dict[str, list[LoopbackPlugin]]] = trio.lowlevel.RunVar("loopback plugins")


class LoopbackPlugin(ExchangePlugin):
    """One of two plugins that are peers in one process."""

    options_class: ClassVar[type[LoopbackOptions]] = LoopbackOptions
    options: LoopbackOptions
    _peer: LoopbackPlugin | None = None
    _journal: PeerJournal | None = None

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Register the name and wait for a peer, or connect to the plugin that waits."""
        plugins = _plugins_under(self.options.name)
        if len(plugins) == 2:
            raise InvalidFieldsError(f"name is {self.options.name!r}; two plugins are connected under it already")
        plugins.append(self)
        try:
            if len(plugins) == 2 and not plugins[0].is_disconnecting:
                for plugin, peer in (plugins, plugins[::-1]):
                    plugin.meet(peer)
            task_status.started()
            await trio.sleep_forever()
        finally:
            plugins.remove(self)
            if not plugins:
                del _open_plugins.get()[self.options.name]
            if self._exchange is not None:
                self._exchange.close(lambda: PluginClosedError("the plugin was closed; the peer may have acted"))
                self.detach(self._exchange, "closed")
            if self._peer is not None:
                self._peer.part()
                self._peer = self._journal = None

    def meet(self, peer: LoopbackPlugin) -> None:
        """Connect to a peer; the peer's plugin calls this."""
        self._peer, self._journal = peer, None
        self.link_up()

    def part(self) -> None:
        """Disconnect, because the peer has ended; the peer's plugin calls this."""
        self._peer = self._journal = None
        self.peer_left("the peer disconnected")

    def peer_journal(self) -> PeerJournal | None:
        """Return the peer's journal; None unless both ends have one."""
        if self._journal is None and self._peer is not None and self.money.offer() is not None:
            offer = self._peer.money.offer()
            self._journal = None if offer is None else PeerJournal.of(offer)
        return self._journal

    def send_request(self, number: int, request: bytes | Transfer) -> None:
        """Hand a request or a transfer to the peer."""
        if self._peer is not None:
            self._peer.receive_request(number, self._as_received(request) if isinstance(request, Transfer) else request)

    def _as_received(self, transfer: Transfer) -> Transfer:
        """Return a transfer as its receiver sees it: at PLAIN, without the key."""
        offer = self.money.offer()
        if transfer.level is MoneyLevel.PLAIN or offer is None:
            return Transfer(transfer.amount)
        digest = transfer.amount.encode()
        return evolve(transfer, account="", journal=offer.journal, digest=digest)

    def send_reply(self, number: int, reply: Reply) -> None:
        """Hand a reply to the peer."""
        if self._peer is not None:
            self._peer.receive_reply(number, reply)


def _plugins_under(name: str) -> list[LoopbackPlugin]:
    try:
        names = _open_plugins.get()
    except LookupError:
        names = {}
        _open_plugins.set(names)
    return names.setdefault(name, [])
