"""The end that listens for its one peer: whoever shows the token takes the place of the connection before."""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Protocol

from .door import Door, DoorHost
from .session import AuthRequest, BadAuthError

if TYPE_CHECKING:
    import trio

    from ..websocket.connection import Handshake
    from .options import BtpOptions, ListenerOptions

__all__ = ["Listener", "ListenerHost"]


class ListenerHost(DoorHost, Protocol):
    """The plugin's side of a listener."""

    options: BtpOptions


class Listener:
    """Lets one peer in, by its token.

    Args:
        host: The plugin.
        options: Where to listen, and the secret.
    """

    def __init__(self, host: ListenerHost, options: ListenerOptions) -> None:
        self._digest = sha256(options.secret.reveal().encode()).digest()
        self.door: Door = Door(host, options, self._identify, None, _refuse_browsers)

    @property
    def address(self) -> str:
        """The URL to dial, without credentials; its port is the bound one while the plugin listens."""
        return self.door.address

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen, report it, and serve.

        Raises:
            OSError: The address cannot be listened on.

        Cancellation: Stops listening and drops those who are not authenticated yet.
        """
        await self.door.run(task_status.started)

    def _identify(self, request: AuthRequest) -> str:
        """Judge the token; a one-peer plugin's account has no name."""
        if not compare_digest(sha256(request.token).digest(), self._digest):
            raise BadAuthError("invalid auth_token", request.request_id)
        return ""


def _refuse_browsers(handshake: Handshake) -> int | None:
    """Refuse a web page's script: it would speak with the rights of whoever looks at the page."""
    return 403 if handshake.origin is not None else None
