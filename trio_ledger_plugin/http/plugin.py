"""The ``http`` plugin: ILP over HTTP with one peer (RFC-0035), in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from .client import Client, peer_name
from .credentials import PeerToken
from .endpoint import HttpEndpoint
from .gate import Gate
from .link import HttpLink
from .options import HttpOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from ..errors import PluginFailedError
    from ..services import PluginServices

__all__ = ["HttpPlugin"]


class HttpPlugin(HttpEndpoint):
    """Sends requests to one peer, and serves that peer's.

    It is connected while its port is bound: HTTP has no lasting connection that could be lost, and the peer is not
    probed.
    """

    options_class: ClassVar[type[HttpOptions]] = HttpOptions
    options: HttpOptions

    def __init__(
        self,
        options: HttpOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self._link: HttpLink | None = None
        incoming = options.incoming
        if incoming is not None:
            token = PeerToken(incoming)
            gate = Gate(
                incoming,
                limit=options.max_data_bytes,
                seconds=options.auth_timeout,
                identify=lambda shown, _: ("", token.check(shown).expires),
                verify=None,
                open_link=self._open_link,
            )
            self.open_server(incoming, gate)

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Listen, and serve until cancelled."""
        options = self.options
        if options.outgoing is not None:
            self.client: Client | None = Client(
                options, options.outgoing, name=peer_name(options.incoming, options.outgoing)
            )
        own = "" if options.ildcp is None else options.ildcp.client_address
        link = HttpLink(self.context, self.ids, self.client, address=lambda: own)

        def listening() -> None:
            self._link = link
            self.attach(link)
            task_status.started()

        try:
            await self.run_endpoint(listening)
        finally:
            self._link = None

    def _open_link(self, _account: str) -> HttpLink | None:
        return None if self.is_disconnecting else self._link
