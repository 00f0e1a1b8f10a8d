"""The plugins that let peers in, and how an application that owns its server hands them connections."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from ..plugin import LedgerPlugin
from ..websocket.connection import Accepted

if TYPE_CHECKING:
    import trio

    from ..websocket.connection import WebSocketConnection
    from .door import Door

__all__ = ["BtpServer"]


class BtpServer(LedgerPlugin):
    """What ``btp`` with a ``listener`` and ``btp-accounts`` share: connections can be handed to them.

    What is handed over is treated as a connection of the plugin's own port: the same authentication, limits and
    times, and the plugin's tasks do the work. With ``port=None`` there is no other way in.
    """

    @abstractmethod
    def open_door(self) -> Door:
        """Return the door that lets peers in.

        Raises:
            InvalidFieldsError: This plugin dials.
        """

    async def serve_stream(self, stream: trio.abc.Stream, *, peer: str = "") -> None:
        """Serve a stream that a listener of the application's accepted, from the WebSocket handshake to its end.

        It is as fast as a connection of the plugin's own. A handshake with an ``Origin`` header is judged as there.
        Returns when the connection has ended, whyever: it was refused, the peer left, a newer connection took its
        place, or the plugin was disconnected or closed. The stream is closed then.

        Args:
            stream: The stream; TLS, where there is any, is the application's, as a ``trio.SSLStream``. Nobody else
                may use it from now on.
            peer: The peer's address, for logs and for the limits by address; taken from the stream when empty. A
                stream without an IP address has no limits by address.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: This plugin dials, it has no ``listener``.
            NotConnectedError: The plugin is not connected. The stream is left as it was, as with every error here.
            PluginClosedError: The plugin was closed before.
            PluginFailedError: The plugin had failed before.

        Cancellation: Ends the connection at once; its calls fail with ``ConnectionLostError``. The plugin goes on.
        """
        _check_peer(peer)
        self.check_usable()
        await self.open_door().serve_stream(stream, peer)

    async def serve_websocket(self, connection: WebSocketConnection, *, peer: str = "") -> None:
        """Serve a connection that a server of the application's accepted with trio-websocket.

        The application has judged the handshake: the path, the ``Origin`` header and sub-protocols are its matter.
        The connection's bytes stay trio-websocket's, so this way is slower than ``serve_stream``. Returns as
        ``serve_stream`` does, the connection closed.

        Args:
            connection: What ``request.accept()`` returned. Nobody else may use it from now on. Its
                ``max_message_size`` bounds what a stranger's message can take of memory, and should be
                ``max_message_bytes`` of this plugin's; longer messages end the connection on arrival.
            peer: As for ``serve_stream``.

        Raises:
            TypeError: An argument has another type, or the connection is a client's.
            InvalidFieldsError: This plugin dials, it has no ``listener``.
            NotConnectedError: The plugin is not connected. The connection is left as it was, as with every error here.
            PluginClosedError: The plugin was closed before.
            PluginFailedError: The plugin had failed before.

        Cancellation: As with ``serve_stream``.
        """
        _check_peer(peer)
        self.check_usable()
        await self.open_door().serve_websocket(Accepted(connection), peer)


def _check_peer(peer: object) -> None:
    if not isinstance(peer, str):
        raise TypeError(f"peer is text, not {type(peer).__name__}")
