"""``ExchangePlugin``: the short way to write a plugin whose link carries numbered requests and their replies.

The author implements ``run_connection``, ``send_request`` and ``send_reply``. Limits, deadlines, handlers and the
meaning of errors are common to all such plugins. A link that needs more, as BTP's, subclasses ``Exchange`` instead.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime
from itertools import count
from typing import TYPE_CHECKING

from .errors import DecodeError, LedgerPluginError, RemoteError, wire_error
from .plugin import LedgerPlugin
from .runtime.exchange import Exchange
from .transfer import Transfer  # noqa: TC001 (so that the signatures of public methods can be resolved)

if TYPE_CHECKING:
    from .negotiation import PeerJournal
    from .runtime.handlers import AnyReply, Reply

__all__ = ["ExchangePlugin"]

# Shared by all plugins, so that a late reply never matches another call.
_numbers = count(1)


class ExchangePlugin(LedgerPlugin):
    """A plugin whose link carries numbered requests and their replies.

    Its link is an ``Exchange`` from ``link_up()`` to ``peer_left()``.
    """

    # What the author of a plugin implements.

    @abstractmethod
    def send_request(self, number: int, request: bytes | Transfer) -> None:
        """Send a request to the peer, or queue it; called while a link is up.

        Args:
            number: The number that the peer's reply must have: below 2**63, and unique in the process.
            request: The data of ``send_data``, or a transfer, whose key and number the peer must get at KEYED.

        Raises:
            LedgerPluginError: Nothing was sent; the caller gets the error.
        """

    @abstractmethod
    def send_reply(self, number: int, reply: Reply) -> None:
        """Send the reply to a request from the peer, or queue it.

        Args:
            number: The number of the request.
            reply: A response; for the acknowledgement of a transfer, None, or at KEYED the bytes of its ``Receipt``; or
                an error, for which ``errors.wire_error(error)`` returns what to send.
        """

    # What the author of a plugin calls.

    def link_up(self) -> None:
        """Report that a peer is connected and authenticated; calls over an earlier link fail."""
        self.attach(_PluginExchange(self))

    def peer_left(self, reason: str) -> None:
        """Report that the link is lost: its calls fail with ``ConnectionLostError``."""
        if self._exchange is not None:
            self.detach(self._exchange, reason)

    def receive_request(self, number: int, request: bytes | Transfer) -> None:
        """Serve a request or transfer from the peer; ``send_reply`` is called later, unless the link is lost."""
        if self._exchange is not None:
            self._exchange.receive_request(number, request)

    def receive_reply(self, number: int, reply: Reply) -> None:
        """Give the peer's reply to its call; a reply without a call is counted and ignored.

        Args:
            number: The number of the request.
            reply: A response, or the bytes of a receipt; None for an empty response; or an error. A ``RemoteError`` is
                raised unchanged, and so is a ``DecodeError``, for an unreadable reply, which leaves a transfer in
                doubt. Any other error is raised as the ``RemoteError`` that it becomes on the wire.
        """
        if self._exchange is not None:
            self._exchange.receive_reply(number, reply)
        else:
            self.counters.unexpected_responses += 1

    def peer_journal(self) -> PeerJournal | None:
        """Return the peer's journal, as both ends agreed on the present link; None at PLAIN, as by default.

        A plugin whose messages carry transfer keys tells its peer ``money.offer()`` when a link is made, and returns
        ``PeerJournal.of(offer)`` for the peer's.
        """
        return None


class _PluginExchange(Exchange):
    """The exchange of one link of an ``ExchangePlugin``.

    Args:
        plugin: The plugin, which sends requests and replies.
    """

    __slots__ = ("_plugin",)

    def __init__(self, plugin: ExchangePlugin) -> None:
        super().__init__(plugin.context, _numbers)
        self._plugin = plugin

    def send_request(self, request_id: int, request: bytes | Transfer) -> None:
        self._plugin.send_request(request_id, request)

    def send_reply(self, request_id: int, reply: AnyReply) -> None:
        # Only BTP has other sub-protocols.
        assert not isinstance(reply, tuple)
        self._plugin.send_reply(request_id, reply)

    def receive_reply(self, request_id: int, reply: Reply) -> None:
        if isinstance(reply, LedgerPluginError) and not isinstance(reply, RemoteError | DecodeError):
            code, name, data = wire_error(reply)
            reply = RemoteError(code, name, triggered_at=datetime.now(UTC), data=data)
        super().receive_reply(request_id, reply)

    @property
    def peer_journal(self) -> PeerJournal | None:
        return self._plugin.peer_journal()
