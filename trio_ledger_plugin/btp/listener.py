"""The end that listens for its one peer: whoever shows the token takes the place of the connection before."""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING

from .auth import AuthRequest, BadAuthError
from .door import Door

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trio

    from ..runtime.context import Context
    from ..websocket.connection import Handshake
    from .link import Link
    from .options import ListenerOptions

__all__ = ["Listener"]


class Listener:
    """Lets one peer in, by its token.

    Args:
        context: What the parts of the plugin share.
        options: Where to listen, and the secret.
        ids: Where request ids come from.
        offered_retention: For how many seconds this end keeps transfer keys; None where it offers PLAIN only.
        attach: Called with each link whose peer's token is right.
        detach: Called with each link that is lost, attached or not, and the reason.
        is_wanted: Whether links are still wanted.
    """

    def __init__(
        self,
        context: Context,
        options: ListenerOptions,
        ids: Iterator[int],
        *,
        offered_retention: int | None,
        attach: Callable[[Link], None],
        detach: Callable[[Link, str], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        self._digest = sha256(options.secret.reveal().encode()).digest()
        self.door: Door = Door(
            context,
            options,
            ids,
            offered_retention=offered_retention,
            attach=attach,
            detach=detach,
            is_wanted=is_wanted,
            identify=self._identify,
            verify=None,
            refuse=_refuse_browsers,
        )

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
