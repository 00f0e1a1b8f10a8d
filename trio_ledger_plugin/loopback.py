"""The ``loopback`` plugin: two plugins in one process, for development, tests and embedding.

The first plugin that is opened with a name waits, like a listener; the second becomes its peer. Requests, transfers,
limits, deadlines and errors are those of any other plugin; only the network is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import trio

from .errors import InvalidFieldsError, PluginClosedError
from .exchange import ExchangePlugin
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
                self._peer = None

    def meet(self, peer: LoopbackPlugin) -> None:
        """Connect to a peer; the peer's plugin calls this."""
        self._peer = peer
        self.link_up()

    def part(self) -> None:
        """Disconnect, because the peer has ended; the peer's plugin calls this."""
        self._peer = None
        self.peer_left("the peer disconnected")

    def peer_retention(self) -> int | None:
        """Return for how many seconds the peer keeps transfer keys; None unless both ends keep them."""
        if self._peer is None or self.money.offered_retention is None:
            return None
        return self._peer.money.offered_retention

    def send_request(self, number: int, request: bytes | Transfer) -> None:
        """Hand a request or a transfer to the peer."""
        if self._peer is not None:
            self._peer.receive_request(number, _as_received(request) if isinstance(request, Transfer) else request)

    def send_reply(self, number: int, reply: Reply) -> None:
        """Hand a reply to the peer."""
        if self._peer is not None:
            self._peer.receive_reply(number, reply)


def _as_received(transfer: Transfer) -> Transfer:
    """Return a transfer as its receiver sees it: at PLAIN, without the key."""
    if transfer.level is MoneyLevel.PLAIN:
        return Transfer(transfer.amount)
    return Transfer(transfer.amount, key=transfer.key, level=transfer.level, digest=transfer.amount.encode())


def _plugins_under(name: str) -> list[LoopbackPlugin]:
    try:
        names = _open_plugins.get()
    except LookupError:
        names = {}
        _open_plugins.set(names)
    return names.setdefault(name, [])
