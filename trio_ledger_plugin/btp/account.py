"""One account of a many-account server: its connections, and the plugin that the application may have of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio
from attrs import evolve, frozen

from ..codec import ildcp, ilp
from ..errors import (
    DecodeError,
    InvalidFieldsError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    RemoteError,
)
from ..lifecycle import DISCONNECT_SECONDS
from ..money.service import MoneyService
from ..options.base import ConnectOptions
from ..plugin import LedgerPlugin
from ..statistics import Counters
from ..transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..errors import PluginFailedError
    from ..options.base import PluginOptions
    from ..runtime.handlers import Handlers, Reply
    from ..runtime.tasks import TaskGroup
    from ..services import PluginServices
    from ..statistics import Statistics
    from .link import Link
    from .options import HostInfo

__all__ = ["Account", "AccountPlugin", "AccountSnapshot", "part_all"]

# How the destination of an ILDCP request stands in its packet, and where: behind type, length, amount, expiry and
# condition.
ILDCP_MARK = bytes([len(ildcp.DESTINATION)]) + ildcp.DESTINATION.encode()
MARK_FROM, MARK_TO = 59, 59 + 4 + len(ILDCP_MARK)


class AccountHost(Protocol):
    """The server's side of an account."""

    services: PluginServices
    tasks: TaskGroup
    desk: MoneyService
    handlers: Handlers
    info: HostInfo | None
    nursery: trio.Nursery

    @property
    def options(self) -> PluginOptions:
        """The limits and times of the accounts' links."""

    def check_usable(self) -> None:
        """Raise what a call on a closed or failed plugin raises."""

    def is_connected(self) -> bool:
        """Return whether the server listens."""

    def release(self, account: Account) -> None:
        """Forget an account that nothing is left of."""


@frozen(kw_only=True)
class AccountSnapshot:
    """A connected account as it is now; ``AccountsPlugin.accounts()`` gives it.

    Attributes:
        name: The account's name.
        connections: How many connections it has.
        connected_at: When it got the first of them, in seconds of Trio's clock.
        requests_received: Requests of its client's since then, transfers included.
        requests_sent: Requests to its client since then, transfers included.
        bytes_received: Bytes read from its connections since then, those that are gone included.
        bytes_sent: Bytes written to them, likewise.
    """

    name: str
    connections: int
    connected_at: float
    requests_received: int
    requests_sent: int
    bytes_received: int
    bytes_sent: int


class Account:
    """One account of a server; an idle one costs no more than this.

    Args:
        host: The server.
        name: The account's name.
    """

    __slots__ = ("_connected_at", "_counters", "_host", "links", "name", "plugin")

    def __init__(self, host: AccountHost, name: str) -> None:
        self._host = host
        self.name: str = name
        # The live ones, the newest last; any number, and each can go at any time.
        self.links: dict[Link, None] = {}
        self.plugin: AccountPlugin | None = None
        self._begin()

    def _begin(self) -> None:
        """Count from now on."""
        self._connected_at = trio.current_time()
        self._counters = Counters()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left of it."""
        return not self.links and self.plugin is None

    def add(self, link: Link) -> None:
        """Take an authenticated link, beside those that are there."""
        if not self.links:
            self._begin()
        self.links[link] = None

    def remove(self, link: Link) -> None:
        """Let a lost link go, and keep count of its bytes."""
        del self.links[link]
        for counters in (self._counters, *([self.plugin.counters] if self.plugin is not None else ())):
            counters.bytes_sent += link.bytes_sent
            counters.bytes_received += link.bytes_received

    def snapshot(self) -> AccountSnapshot:
        """Return what there is to know of it now."""
        counted = self._counters
        return AccountSnapshot(
            name=self.name,
            connections=len(self.links),
            connected_at=self._connected_at,
            requests_received=counted.requests_received,
            requests_sent=counted.requests_sent,
            bytes_received=counted.bytes_received + sum(link.bytes_received for link in self.links),
            bytes_sent=counted.bytes_sent + sum(link.bytes_sent for link in self.links),
        )

    def link_for_request(self) -> Link:
        """Return the link that a request goes to: exactly one, or the request would be executed twice.

        Raises:
            NotConnectedError: There is none.
        """
        if not self.links:
            raise NotConnectedError(f"account {self.name} is not connected; nothing was sent")
        self._counters.requests_sent += 1
        return next(reversed(self.links))

    def give_plugin(self) -> AccountPlugin:
        """Return the account's plugin, made when first asked for."""
        if self.plugin is None:
            self.plugin = AccountPlugin(self._host, self)
            if self.links:
                self.plugin.link_up()
        return self.plugin

    def plugin_ended(self) -> None:
        """Let the plugin go: it was closed."""
        self.plugin = None
        if self.is_idle:
            self._host.release(self)

    async def answer(self, payload: bytes | Transfer) -> Reply:
        """Have a request or transfer of the account's served; no exception of a handler's leaves."""
        self._counters.requests_received += 1
        plugin = self.plugin
        if plugin is None:
            return await self._serve(payload, None)
        plugin.counters.requests_received += 1
        plugin.handlers_running += 1
        try:
            reply = await self._serve(payload, plugin.handlers)
        finally:
            plugin.handler_ended()
        if isinstance(reply, LedgerPluginError):
            plugin.counters.errors_sent += 1
        else:
            plugin.counters.responses_sent += 1
        return reply

    async def _serve(self, payload: bytes | Transfer, own: Handlers | None) -> Reply:
        """Ask the account's own handler first, then the server's, who also says when it is closing."""
        common = self._host.handlers
        if own is None or common.is_stopped:
            own = common
        if isinstance(payload, Transfer):
            return await (own if own.serves_money else common).answer(payload)
        if ILDCP_MARK in payload[MARK_FROM:MARK_TO]:
            answer = self._answer_ildcp(payload)
            if answer is not None:
                return answer
        return await (own if own.serves_data else common).answer(payload)

    def _answer_ildcp(self, payload: bytes) -> bytes | None:
        """Tell the client its address and asset; None when it asks for something else."""
        info = self._host.info
        assert info is not None
        try:
            packet = ilp.decode(payload)
        except DecodeError:
            return None
        if not isinstance(packet, ilp.Prepare) or packet.destination != ildcp.DESTINATION:
            return None
        try:
            ildcp.decode(payload)
            address = f"{info.client_address}.{self.name}"
            return ildcp.encode(ildcp.IldcpResponse(address, info.asset_scale, info.asset_code))
        except (DecodeError, InvalidFieldsError) as error:
            return ilp.encode(ilp.reject_from(error, info.client_address))


class AccountPlugin(LedgerPlugin):
    """One account of a server as a plugin of its own; ``AccountsPlugin.account()`` gives it.

    It is connected while the account has a connection. The client dials, and the server listens, so ``connect()``
    has nothing to do; ``wait_connected()`` waits for the client. Its tasks are the server's.

    Args:
        host: The server.
        account: The account.
    """

    def __init__(self, host: AccountHost, account: Account) -> None:
        self._host = host
        self._account = account
        super().__init__(host.options, host.services, host.nursery, lambda _: None)
        self.desk.take_unfinished(account.name)
        self.handlers_running: int = 0
        self._quiet: trio.Event | None = None

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Do nothing: the server's connection is this plugin's."""
        task_status.started()
        await trio.lowlevel.checkpoint()

    async def connect(self, options: ConnectOptions | None = None) -> None:
        """Check that the server listens: it is the account's client that connects.

        Raises:
            TypeError: ``options`` is not a ``ConnectOptions``.
            NotConnectedError: The server does not listen.
            PluginClosedError: The plugin was closed.
            PluginFailedError: The server has failed.

        Cancellation: Safe at any time.
        """
        if options is not None and not isinstance(options, ConnectOptions):
            raise TypeError(
                f"options is a ConnectOptions, such as ConnectOptions(timeout=5000), not {type(options).__name__}"
            )
        await trio.lowlevel.checkpoint()
        self.check_usable()
        if not self._host.is_connected():
            raise NotConnectedError("the server does not listen; connect() it first")

    async def aclose(self) -> None:
        """Close the plugin for good, and the account's connections with it; its client may connect again.

        Cancellation: As with every plugin, nothing drains.
        """
        try:
            await super().aclose()
        finally:
            for link in tuple(self._account.links):
                link.abort("closed", closed=True)

    async def disconnect(self) -> None:
        """Part from every connection of the account; its client may connect again.

        Calls in flight fail with ``PluginClosedError``. Handlers that run are left to finish.

        Cancellation: The connections are dropped all the same, without a parting word.
        """
        links = tuple(self._account.links)
        self.link_down("disconnected")
        self._fail(links, lambda: PluginClosedError("the account was disconnected"))
        self.abandon_money("the account was disconnected")
        try:
            with trio.move_on_after(DISCONNECT_SECONDS):
                await part_all(links)
        finally:
            for link in links:
                link.abort("disconnected", closed=True)

    async def carry_data(self, data: bytes) -> bytes:
        """Send a request over the newest connection."""
        self._host.check_usable()
        link = self._account.link_for_request()
        self.counters.requests_sent += 1
        try:
            response = await link.request(data)
        except LedgerPluginError as error:
            self.counters.errors_received += isinstance(error, RemoteError)
            raise
        self.counters.responses_received += 1
        return response

    def peer_retention(self) -> int | None:
        """Return for how many seconds the client keeps transfer keys, agreed on its newest link; None at PLAIN."""
        return next((link.peer_retention for link in reversed(self._account.links)), None)

    def make_desk(self) -> MoneyService:
        """Return what looks after the account's money, in the server's ledger."""
        name = self._account.name
        return MoneyService(
            self, self._host.desk.ledger, self._host.tasks, account=name, shows=name, keeps_ledger=False
        )

    async def carry_money(self, transfer: Transfer) -> None:
        """Send a transfer over the newest connection, once."""
        self._host.check_usable()
        link = self._account.link_for_request()
        self.counters.requests_sent += 1
        await link.transfer(transfer)
        self.counters.responses_received += 1

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call to the account."""
        self._fail(self._account.links, make_error)

    def _fail(self, links: Iterable[Link], make_error: Callable[[], LedgerPluginError]) -> None:
        for link in links:
            link.calls.close(make_error)

    async def finish_calls(self) -> None:
        """Let the account's handlers finish, and its connections drain and part from its client."""
        while self.handlers_running:
            if self._quiet is None:
                self._quiet = trio.Event()
            await self._quiet.wait()
        await part_all(self._account.links)

    def handler_ended(self) -> None:
        """Count a handler of the account's that has ended."""
        self.handlers_running -= 1
        if not self.handlers_running and self._quiet is not None:
            self._quiet.set()
            self._quiet = None

    def calls_in_flight(self) -> int:
        """Return how many calls wait for the account's client."""
        return sum(len(link.calls.pending) for link in tuple(self._account.links))

    def statistics(self) -> Statistics:
        """Return a snapshot of what was done for the account since this plugin was made."""
        # A copy: another thread may ask.
        links = tuple(self._account.links)
        counted = super().statistics()
        return evolve(
            counted,
            handlers_running=self.handlers_running,
            bytes_sent=counted.bytes_sent + sum(link.bytes_sent for link in links),
            bytes_received=counted.bytes_received + sum(link.bytes_received for link in links),
        )

    def host_ended(self, failure: PluginFailedError | None) -> None:
        """End with the server."""
        if failure is None:
            self._end()
        else:
            cause = failure.__cause__
            self.fail(cause if isinstance(cause, Exception) else failure)

    def ended(self, failure: PluginFailedError | None) -> None:  # noqa: ARG002 (the server asks for it, not we)
        """Leave the account; the server makes a new plugin when it is asked for one.

        Its links stay with whoever ends it: a server that ends drops them when what is being committed has been told.
        """
        self._account.plugin_ended()


async def part_all(links: Iterable[Link]) -> None:
    """Let links drain and part from their peers, all at once.

    Cancellation: The connections that have not parted are closed at once.
    """
    async with trio.open_nursery() as nursery:
        for link in tuple(links):
            nursery.start_soon(_part, link)


async def _part(link: Link) -> None:
    await link.drain()
    await link.say_goodbye()
