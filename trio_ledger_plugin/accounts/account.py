"""One account of a server of many accounts: its links, and its plugin if the application asks for one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import evolve, frozen

from ..codec import ildcp, ilp
from ..errors import DecodeError, InvalidFieldsError, NotConnectedError
from ..money.service import MoneyLink
from ..plugin import LedgerPlugin
from ..runtime.handlers import Handlers
from ..runtime.hosted import HostedConnector
from ..statistics import Counters

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..errors import PluginFailedError
    from ..events import Event
    from ..money.service import MoneyService
    from ..runtime.budget import Budget
    from ..runtime.context import Context
    from ..runtime.exchange import Exchange
    from ..runtime.handlers import DataHandler, MoneyHandler, Receive, TransactionalMoneyHandler
    from ..services import PluginServices
    from .info import HostInfo

__all__ = ["Account", "AccountHooks", "AccountPlugin", "AccountSnapshot"]

# The bytes of an ILDCP request's destination, and where they are in the packet: after type, length, amount, expiry and
# condition.
ILDCP_MARK = bytes([len(ildcp.DESTINATION)]) + ildcp.DESTINATION.encode()
MARK_FROM, MARK_TO = 59, 59 + 4 + len(ILDCP_MARK)
NOTHING_COUNTED = Counters()


def counted_now(counters: Counters) -> Counters:
    """Return a copy of counters; of those of a new account, as nearly every one is, always the same object."""
    return NOTHING_COUNTED if counters == NOTHING_COUNTED else evolve(counters)


@frozen(kw_only=True)
class AccountSnapshot:
    """A snapshot of a connected account; ``AccountsPlugin.accounts()`` returns it.

    Attributes:
        name: The account's name.
        connections: The number of its connections.
        connected_at: When the account became connected, in seconds of Trio's clock.
        requests_received: Requests from its client since then, transfers included.
        requests_sent: Requests to its client since then, transfers included.
        requests_refused: Requests from its client since then that were refused because too many waited or ran.
        transfers_refused: Transfers from its client since then that were refused because too many are remembered.
        links_refused: Connections of its client that were refused since then, because there were too many.
        links_replaced: Idle connections that were closed since then, to make room for newer ones.
        bytes_received: Bytes read from its connections since then, including closed ones.
        bytes_sent: Bytes written to its connections since then, including closed ones.
        calls_in_flight: Requests to its client that are waiting for their reply now.
        handlers_running: Handlers of its requests that are running now, including those of lost connections.
        handler_bytes: Bytes of requests and replies that they hold.
        backlog_bytes: Bytes of its requests that wait for a handler now, with a share for each request.
    """

    name: str
    connections: int
    connected_at: float
    requests_received: int
    requests_sent: int
    requests_refused: int
    transfers_refused: int
    links_refused: int
    links_replaced: int
    bytes_received: int
    bytes_sent: int
    calls_in_flight: int
    handlers_running: int
    handler_bytes: int
    backlog_bytes: int


class Account:
    """One account of a server. An idle account needs no task and no timer.

    Args:
        name: The account's name.
        budget: The account's budget.
        server: The server's context; the account's context has its own counters, handlers and budget.
        info: Returns the server's address and asset.
        receive: Called with each transfer from the account's client.
        changed: Called with the name when handlers of the account are registered or deregistered.
    """

    __slots__ = ("__weakref__", "_connected_at", "_counted_before", "context", "links", "name", "plugin")

    def __init__(
        self,
        name: str,
        budget: Budget,
        *,
        server: Context,
        info: Callable[[], HostInfo],
        receive: Receive,
        changed: Callable[[str], None],
    ) -> None:
        self.name: str = name
        counters = Counters()
        handlers = _AccountHandlers(name, server, counters, info, receive, changed)
        self.context: Context = evolve(server, counters=counters, handlers=handlers, budget=budget, gauges=[])
        # The open links, the newest last.
        self.links: dict[Exchange, None] = {}
        self.plugin: AccountPlugin | None = None
        self._begin()

    def _begin(self) -> None:
        """Start the counts of the snapshot."""
        self._connected_at = trio.current_time()
        self._counted_before = counted_now(self.context.counters)

    @property
    def is_needed(self) -> bool:
        """Whether the server has to remember the account: it is connected, or the application uses its plugin.

        An account whose plugin was only asked for is remembered as long as the application keeps the plugin.
        """
        if self.links or self.plugin is None:
            return bool(self.links)
        handlers = self.context.handlers
        return self.plugin.is_used or handlers.serves_data or handlers.serves_money

    @property
    def is_used(self) -> bool:
        """Whether anything was sent over its connections, in either direction."""
        counters = self.context.counters
        return counters.requests_received > 0 or counters.requests_sent > 0

    @property
    def newest_link(self) -> Exchange | None:
        """The link that sends requests. It is exactly one: over two, a request would be executed twice."""
        return next(reversed(self.links), None)

    def add(self, link: Exchange) -> None:
        """Add an authenticated link."""
        if not self.links:
            self._begin()
        self.links[link] = None
        link.serve_as(self.context)
        if self.plugin is not None:
            self.plugin.use_link(link)

    def remove(self, link: Exchange) -> None:
        """Remove a link that is lost."""
        del self.links[link]
        if self.plugin is not None:
            self.plugin.use_link(self.newest_link)

    def find_idle_link(self) -> Exchange | None:
        """Return the oldest link over which nothing is under way; None if there is none."""
        return next((link for link in self.links if link.is_idle), None)

    def snapshot(self) -> AccountSnapshot:
        """Return a snapshot of the account."""
        # In few steps: a snapshot of all accounts is one of thousands.
        counters, before, budget = self.context.counters, self._counted_before, self.context.budget
        connections, bytes_received, bytes_sent = 0, counters.bytes_received, counters.bytes_sent
        for link in self.links:
            connections += link.connections
            bytes_received += link.bytes_received
            bytes_sent += link.bytes_sent
        return AccountSnapshot(
            name=self.name,
            connections=connections,
            connected_at=self._connected_at,
            requests_received=counters.requests_received - before.requests_received,
            requests_sent=counters.requests_sent - before.requests_sent,
            requests_refused=counters.requests_refused - before.requests_refused,
            transfers_refused=counters.transfers_refused - before.transfers_refused,
            links_refused=counters.links_refused - before.links_refused,
            links_replaced=counters.links_replaced - before.links_replaced,
            bytes_received=bytes_received - before.bytes_received,
            bytes_sent=bytes_sent - before.bytes_sent,
            calls_in_flight=budget.calls,
            handlers_running=budget.handlers,
            handler_bytes=budget.handler_bytes,
            backlog_bytes=budget.backlog_bytes,
        )

    async def request(self, data: bytes) -> bytes:
        """Send a request over the newest link and return its response.

        Raises:
            NotConnectedError: There is no link. Nothing was sent.
            LedgerPluginError: As ``LedgerPlugin.send_data`` documents.

        Cancellation: The request may have been sent; its response is ignored.
        """
        link = self.newest_link
        if link is None:
            raise NotConnectedError(f"account {self.name} is not connected; nothing was sent")
        return await link.request(data)


class _AccountHandlers(Handlers):
    """The handlers of one account; the server's handlers serve what has no handler here.

    ILDCP requests (RFC-0031) are answered without a handler.
    """

    __slots__ = ("_changed", "_info", "_name")

    def __init__(
        self,
        name: str,
        server: Context,
        counters: Counters,
        info: Callable[[], HostInfo],
        receive: Receive,
        changed: Callable[[str], None],
    ) -> None:
        super().__init__(server.log, counters, receive, max_reply=server.options.max_data_bytes, parent=server.handlers)
        self._name = name
        self._info = info
        self._changed = changed

    def register_data(self, handler: DataHandler) -> None:
        super().register_data(handler)
        self._changed(self._name)

    def register_money(self, handler: MoneyHandler) -> None:
        super().register_money(handler)
        self._changed(self._name)

    def register_transactional_money(self, handler: TransactionalMoneyHandler) -> None:
        super().register_transactional_money(handler)
        self._changed(self._name)

    def deregister_data(self) -> None:
        super().deregister_data()
        self._changed(self._name)

    def deregister_money(self) -> None:
        super().deregister_money()
        self._changed(self._name)

    def _answer_without_handler(self, payload: bytes) -> bytes | None:
        return self._answer_ildcp(payload) if ILDCP_MARK in payload[MARK_FROM:MARK_TO] else None

    def _answer_ildcp(self, payload: bytes) -> bytes | None:
        """Return the client's address and asset; None for another request."""
        info = self._info()
        try:
            packet = ilp.decode(payload)
        except DecodeError:
            return None
        if not isinstance(packet, ilp.Prepare) or packet.destination != ildcp.DESTINATION:
            return None
        try:
            ildcp.decode(payload)
            address = f"{info.client_address}.{self._name}"
            return ildcp.encode(ildcp.IldcpResponse(address, info.asset_scale, info.asset_code))
        except (DecodeError, InvalidFieldsError) as error:
            return ilp.encode(ilp.reject_from(error, info.client_address))


@frozen
class AccountHooks:
    """What the plugin of an account calls at its server.

    Attributes:
        is_listening: Whether the server is connected.
        allow: Called with the account's name, and whether its client may connect.
        changed: Called with the account's name when the application begins to use the plugin.
        on_ended: Called when the plugin is closed or has failed.
    """

    is_listening: Callable[[], bool]
    allow: Callable[[str, bool], None]
    changed: Callable[[str], None]
    on_ended: Callable[[Account], None]


class AccountPlugin(LedgerPlugin):
    """The plugin of one account of a server; ``AccountsPlugin.account()`` returns it.

    It is connected while the account has a connection. The client dials, so ``connect()`` only checks that the server
    listens, and ``wait_connected()`` waits for the client. ``disconnect()`` ends the account's connections, and the
    server refuses its client, which tries again at growing intervals, until ``connect()``. ``aclose()`` only ends the
    connections. The server's tasks do the work.

    Args:
        account: The account.
        services: The server's services.
        money: The server's money.
        hooks: What it calls at the server.
    """

    def __init__(self, account: Account, services: PluginServices, money: MoneyService, hooks: AccountHooks) -> None:
        self._account = account
        self._hooks = hooks
        self._has_reader = False
        self._counted_before = counted_now(account.context.counters)
        connector = HostedConnector(
            account.context,
            is_listening=hooks.is_listening,
            exchanges=self.exchanges,
            allow=partial(hooks.allow, account.name),
            on_end=self._end,
        )
        self._server_money = money
        self._money: MoneyService | None = None
        self._compose(account.context, services, connector)
        self._exchange = account.newest_link

    @property
    def account_name(self) -> str:
        """The account's name."""
        return self._account.name

    @property
    def money(self) -> MoneyService:
        """The account's money, which is made when it is first needed: many plugins are only asked for."""
        if self._money is None:
            link = MoneyLink(self.carry_money, self.peer_journal, self.is_connected, self.publish, self._money_changed)
            self._money = self._server_money.for_account(self._account.name, self._account.context, link)
            self._money_changed()
        return self._money

    @money.setter
    def money(self, money: MoneyService) -> None:
        self._money = money

    @property
    def events(self) -> trio.MemoryReceiveChannel[Event]:
        """The receiving end of the account's events."""
        # Who reads them need not keep the plugin.
        if not self._has_reader:
            self._has_reader = True
            self._hooks.changed(self._account.name)
        return self._events

    @events.setter
    def events(self, events: trio.MemoryReceiveChannel[Event]) -> None:
        self._events = events

    @property
    def is_used(self) -> bool:
        """Whether the server has to keep this plugin, although nobody else may, while the account has no link."""
        return self._has_reader or (self._money is not None and self._money.is_sending)

    def _money_changed(self) -> None:
        self._hooks.changed(self._account.name)

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Do nothing: the server accepts the connections."""
        task_status.started()
        await trio.lowlevel.checkpoint()

    def exchanges(self) -> tuple[Exchange, ...]:
        """Return the account's links; may be called from any thread."""
        return tuple(self._account.links)

    def fail(self, error: Exception) -> None:
        """End the plugin for good and drop its connections; a client that connects again has a new account."""
        links = self.exchanges()
        super().fail(error)
        for link in links:
            link.abort("the account's plugin failed")

    def use_link(self, link: Exchange | None) -> None:
        """Send further requests over this link; None means that there is no link."""
        self._exchange = link

    def counted(self) -> Counters:
        """Return what was counted for the account since this plugin was made."""
        return self.counters.since(self._counted_before)

    def server_ended(self, failure: PluginFailedError | None) -> None:
        """End with the server."""
        if failure is None:
            self._connector.close()
        else:
            cause = failure.__cause__
            self._connector.fail(cause if isinstance(cause, Exception) else failure)

    def ended(self, failure: PluginFailedError | None) -> None:  # noqa: ARG002 (the hook's signature)
        """Detach from the account. Its links stay: a server that ends drops them once commits are acknowledged."""
        self._hooks.on_ended(self._account)
