"""The ``btp-accounts`` plugin: a server for many accounts over BTP/2.0, like ilp-plugin-mini-accounts."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from ..accounts.server import RESERVE, AccountsServer
from ..errors import NotAcceptedError
from ..net.pace import Pace
from ..runtime.budget import Limits
from .link_limits import LinkLimits
from .options import AccountsOptions
from .pending import Decisions
from .server import BtpServer, Server
from .session import request_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from ..accounts.info import HostInfo
    from ..errors import PluginFailedError
    from ..net.tokens import AccountTokens
    from ..services import PluginServices
    from ..websocket.requests import Handshake
    from .link import Link

__all__ = ["AccountsPlugin"]

# So many connections an account makes without waiting, and then so many a second. The longest wait is shorter than an
# authentication may take.
CONNECTIONS: Final = 64
CONNECTIONS_A_SECOND: Final = 8.0
LONGEST_WAIT: Final = 3.0
# How interledger-rs names an account in the path of the URL.
ACCOUNT_PATH: Final = re.compile(r"/accounts/([^/]+)/ilp/btp")


class AccountsPlugin(AccountsServer, BtpServer):
    """A server whose clients each have an account, below the server's own ILP address.

    ``is_connected()`` is true while it listens. ``account(name)`` returns a plugin for one account. If that plugin has
    no handler for a request, this plugin's handlers serve it.
    """

    options_class: ClassVar[type[AccountsOptions]] = AccountsOptions
    options: AccountsOptions

    def __init__(
        self,
        options: AccountsOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        limits = Limits(
            options.max_server_handlers, options.max_server_handler_bytes, options.max_server_backlog_bytes, RESERVE
        )
        super().__init__(
            options,
            services,
            nursery,
            on_failed,
            generate_account=options.generate_account,
            info=options.debug_host_ildcp_info,
            limits=limits,
            expiry_margin=options.expiry_margin,
        )
        self._limits = LinkLimits(options, self.context, self.table)
        self._server = Server(
            self.context,
            request_ids(),
            host=options.host,
            port=options.port,
            ssl_context=options.ssl_context,
            proxy_protocol=options.proxy_protocol,
            decisions=Decisions(
                make_offer=self.money.make_offer,
                make_room=self._make_room,
                attach=self._attach,
                detach=self._detach,
                is_wanted=self._is_link_wanted,
                identify=partial(_identify, self.tokens, options.account_from_path),
                verify=self.tokens.verify if self.tokens.are_stored else None,
                delay=Pace(CONNECTIONS, CONNECTIONS_A_SECOND, LONGEST_WAIT).delay,
            ),
            refuse=self._refuse_origin,
        )

    @property
    def address(self) -> str:
        """The URL that clients dial, without credentials; its port is the bound one while the plugin listens."""
        return self._server.address

    def _is_link_wanted(self) -> bool:
        return not self.is_disconnecting

    @property
    def server(self) -> Server:
        """The server that accepts every client's connections."""
        return self._server

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Get the server's own address and asset, then listen and serve."""

        def listening() -> None:
            task_status.started()
            self.link_up()

        if self.options.debug_host_ildcp_info is None:
            self.info: HostInfo | None = await self.ask_host()
        broken = False
        try:
            await self._server.run(listening)
        except Exception:
            broken = True
            raise
        finally:
            for link in self.exchanges():
                link.abort("disconnected", closed=not broken)

    def resume_accounts(self) -> None:
        """Resume unfinished transfers to accounts that connected before the journal was open."""
        self.drop_downgraded()
        super().resume_accounts()

    def _make_room(self, name: str) -> None:
        """Make room for a connection of an account.

        Raises:
            UnreachableError: There is no room, or this end has disconnected the account.
        """
        self.check_allowed(name)
        self._limits.make_room(name)

    def _attach(self, link: Link) -> None:
        self.attach_link(link.account, link, link.peer)
        # Last: this serves the messages that were held, and one of them may end the link.
        link.authenticated()

    def _detach(self, link: Link, reason: str) -> None:
        self.detach_link(link.account, link, link.peer, reason)

    def _refuse_origin(self, handshake: Handshake) -> int | None:
        """Refuse a web page's script unless its origin is listed."""
        if handshake.origin is None or self.options.allows(handshake.origin):
            return None
        self.log.info("refused a browser: origin %o is not in allowed_origins", handshake.origin)
        return 403


def _identify(tokens: AccountTokens, from_path: bool, username: str | None, token: bytes, path: str) -> str:
    """Return the account that a client asks for, by its username or, if allowed, in the path of its URL.

    Raises:
        NotAcceptedError: The token is empty, or the account's name cannot be used.
    """
    if from_path:
        found = ACCOUNT_PATH.fullmatch(path.partition("?")[0])
        if found is not None:
            if username and username != found[1]:
                raise NotAcceptedError("auth_username and the URL's path name different accounts")
            username = found[1]
    return tokens.identify(username, token)
