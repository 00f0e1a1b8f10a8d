"""The ``http-accounts`` plugin: a server for many accounts over HTTP, as ilp-plugin-http is with ``multi``.

Invariant: a request belongs to the account that its token authenticates. ``ILP-Peer-Name`` only says which account the
client means; a request with the name of another account is refused.
"""

from __future__ import annotations

import re
from functools import partial
from math import inf
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from ..accounts.account import AccountPlugin
from ..accounts.server import RESERVE, AccountsServer
from ..errors import NotAcceptedError
from ..net.tokens import is_segment
from ..runtime.budget import Limits
from .client import Client, peer_name
from .connection import IDLE_SECONDS
from .credentials import PeerToken
from .endpoint import (
    HttpEndpoint,
    refuse_money,
    refuse_transactional_money_handler,
    register_idle_money_handler,
)
from .gate import Gate
from .link import HttpLink
from .options import HttpAccountsOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..accounts.account import Account
    from ..accounts.info import HostInfo
    from ..errors import PluginFailedError
    from ..ilp.routing import Send
    from ..options.base import ConnectOptions
    from ..registration import RegisterMoney, RegisterTransactional
    from ..runtime.exchange import Exchange
    from ..services import PluginServices

__all__ = ["HttpAccountsPlugin"]

# How many accounts without a connection stay connected for a while. Where tokens name accounts, names are free.
MOST_QUIET: Final = 1024
# What ilp-plugin-http sends as ILP-Peer-Name by default: the number of its own port.
PORT_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,4}")


class HttpAccountsPlugin(AccountsServer, HttpEndpoint):
    """A server whose clients each have an account, below the server's own ILP address.

    ``is_connected()`` is true while it listens. ``account(name)`` returns a plugin for one account. If that plugin has
    no handler for a request, this plugin's handlers serve it.

    An account is connected from its client's first request until no connection of the client has been open for 75
    seconds, and while the application has connected the account's plugin.
    """

    options_class: ClassVar[type[HttpAccountsOptions]] = HttpAccountsOptions
    options: HttpAccountsOptions

    def __init__(
        self,
        options: HttpAccountsOptions,
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
            info=options.ildcp,
            limits=limits,
            expiry_margin=options.expiry_margin,
        )
        incoming = options.incoming
        self._token = PeerToken(incoming)
        self._has_table = not (incoming.static_token or incoming.jwt_secret)
        self._links: dict[str, _AccountLink] = {}
        # The links without a connection, in the order in which their last one ended.
        self._quiet: dict[_AccountLink, None] = {}
        # Sends to accounts that are not connected.
        self._router: HttpLink | None = None
        self.open_server(
            incoming,
            Gate(
                incoming,
                limit=options.max_data_bytes,
                seconds=options.auth_timeout,
                identify=self._identify,
                verify=self.tokens.verify if self._has_table and self.tokens.are_stored else None,
                open_link=self.open_link,
            ),
        )

    def _identify(self, token: str, name: str | None) -> tuple[str, float]:
        """Return the account of a token, and until when the token is valid.

        Raises:
            NotAcceptedError: The token is wrong, or the name is another account's.
        """
        if self._has_table:
            if self.options.generate_account is True or not self.tokens.are_stored:
                name = _without_port(name)
            try:
                return self.tokens.identify(name, token.encode("utf-8", "surrogatepass")), inf
            except NotAcceptedError as error:
                raise NotAcceptedError("the token does not fit ILP-Peer-Name, which may be no name here") from error
        claims = self._token.check(token)
        if claims.expires < inf or claims.subject is not None or not self.options.incoming.static_token:
            account, claimed = claims.subject, _without_port(name)
            if account is None or not is_segment(account):
                raise NotAcceptedError("the token's sub must be the account's name")
            if claimed is not None and claimed != account:
                raise NotAcceptedError("ILP-Peer-Name is not the token's sub")
            return account, claims.expires
        if name is None or not is_segment(name):
            raise NotAcceptedError("ILP-Peer-Name must be the account's name")
        return name, inf

    # Links.

    def open_link(self, name: str) -> HttpLink | None:
        """Return the link of an account; None while the plugin disconnects.

        Raises:
            UnreachableError: This end has disconnected the account.
        """
        if self._router is None or self.is_disconnecting:
            return None
        self.check_allowed(name)
        link = self._links.get(name)
        if link is None:
            link = self._links[name] = _AccountLink(self, name, self._address)
            self.attach_link(name, link, "its client")
            link.start_timers()
            self.link_is_quiet(link)
        return link

    def _address(self) -> str:
        return self.known_info().client_address

    def link_is_quiet(self, link: _AccountLink) -> None:
        """Handle that a link has no connection."""
        self._quiet[link] = None
        if len(self._quiet) > MOST_QUIET:
            oldest = next(iter(self._quiet))
            del self._quiet[oldest]
            if not self._is_kept(oldest):
                oldest.abort("too many accounts are connected without a connection")

    def link_is_used(self, link: _AccountLink) -> None:
        """Handle that a link has a connection."""
        self._quiet.pop(link, None)

    def may_forget(self, link: _AccountLink) -> bool:
        """Whether a link without a connection may end: the application has not connected its account."""
        return link in self._quiet and not self._is_kept(link)

    def _is_kept(self, link: _AccountLink) -> bool:
        plugin = self.open_account(link.account).plugin
        return isinstance(plugin, _HttpAccountPlugin) and plugin.is_wanted

    def link_ended(self, link: _AccountLink, reason: str) -> None:
        """Handle that a link was aborted."""
        self._quiet.pop(link, None)
        if self._links.get(link.account) is link:
            del self._links[link.account]
            self.detach_link(link.account, link, "its client", reason)

    def make_plugin(self, account: Account) -> AccountPlugin:
        """Return a new plugin of an account."""
        plugin = _HttpAccountPlugin(account, self.services, self.money, self.account_hooks)
        plugin.open_link = partial(self.open_link, account.name)
        return plugin

    def sender_to(self, name: str) -> Send | None:
        """Return a function that sends a request to an account's URL; None if there is no URL."""
        if self._router is None or self.client is None or not is_segment(name):
            return None
        return partial(self._router.send_to, name)

    def exchanges(self) -> tuple[Exchange, ...]:
        """Return the links of all accounts, and the one to accounts without; may be called from any thread."""
        router = self._router
        return super().exchanges() if router is None else (*super().exchanges(), router)

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Get the server's own address and asset, then listen and serve."""
        options = self.options
        if options.incoming.static_token:
            self.log.warn("incoming.static_token is common to all accounts: a client can take the name of another")
        if options.ildcp is None:
            self.info: HostInfo | None = await self.ask_host()
        outgoing = options.outgoing
        if outgoing is not None:
            name = peer_name(options.incoming, outgoing)
            self.client: Client | None = Client(options, outgoing, name=name, mark=options.multi_delimiter)
        router = HttpLink(self.context, self.ids, self.client, address=self._address)

        def listening() -> None:
            self._router = router
            router.start_timers()
            task_status.started()
            self.link_up()

        try:
            await self.run_endpoint(listening)
        finally:
            self._router = None


class _AccountLink(HttpLink):
    """The link of one account: what its client sends over any number of connections, and what goes to its URL."""

    __slots__ = ("_connections", "_plugin", "_quiet_since")

    def __init__(self, plugin: HttpAccountsPlugin, name: str, address: Callable[[], str]) -> None:
        super().__init__(plugin.context, plugin.ids, plugin.client, address=address, account=name)
        self._plugin = plugin
        self._connections: set[object] = set()
        self._quiet_since = trio.current_time()

    @property
    def connections(self) -> int:
        """The number of the client's connections."""
        return len(self._connections)

    def connection_opened(self, connection: object) -> None:
        self._connections.add(connection)
        self._plugin.link_is_used(self)

    def connection_closed(self, connection: object) -> None:
        self._connections.discard(connection)
        if not self._connections and self.is_open:
            self._quiet_since = trio.current_time()
            self._plugin.link_is_quiet(self)

    def fire(self, now: float) -> float:
        """Fail late calls, and end after a while without a connection."""
        again = min(super().fire(now), now + IDLE_SECONDS)
        if self.is_open and now >= self._quiet_since + IDLE_SECONDS and self._plugin.may_forget(self):
            self.abort(f"no connection for {IDLE_SECONDS} s")
        return again if self.is_open else inf

    def abort(self, reason: str, *, closed: bool = False) -> None:
        """Drop the link at once; the next request of its client makes another."""
        super().abort(reason, closed=closed)
        self._plugin.link_ended(self, reason)


class _HttpAccountPlugin(AccountPlugin):
    """The plugin of one account.

    ``connect()`` connects it without probing the client, and so does a request of the client.
    """

    register_money_handler: ClassVar[RegisterMoney] = register_idle_money_handler
    """Set a money handler, which is never called: HTTP carries no money."""
    register_transactional_money_handler: ClassVar[RegisterTransactional] = refuse_transactional_money_handler
    """Raise ``InvalidServicesError``: HTTP carries no money."""
    #: Opens the account's link; set by the server.
    open_link: Callable[[], object]
    #: Whether the application has connected it, so that it stays connected without a connection of its client.
    is_wanted: bool = False

    async def connect(self, options: ConnectOptions | None = None) -> None:
        """Connect the account; the client is not probed.

        Raises:
            NotConnectedError: The server does not listen.
            PluginClosedError: The plugin was closed.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time.
        """
        await super().connect(options)
        self.is_wanted = True
        self.open_link()

    async def disconnect(self) -> None:
        """Disconnect the account; its client is refused until ``connect()``.

        Cancellation: The connections are ended anyway.
        """
        self.is_wanted = False
        await super().disconnect()

    async def send_money(self, amount: str | int, *, idempotency_key: str | None = None) -> None:
        """Raise ``MoneyLevelError``: ILP over HTTP carries no money."""
        await refuse_money(self, amount, idempotency_key)


def _without_port(name: str | None) -> str | None:
    """Return a client's name; None for a number that ilp-plugin-http sends if its name is not configured."""
    return None if name is None or PORT_NUMBER.fullmatch(name) else name
