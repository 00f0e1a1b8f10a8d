"""``LedgerPlugin``: the interface of RFC-0024 for every plugin, composed of the parts that do the work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, ClassVar

import trio

from . import appearance, registration
from .errors import (
    ConnectionLostError,
    InvalidFieldsError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    copy_error,
)
from .money.opening import open_money
from .money.service import MoneyLink, MoneyService
from .options.base import ConnectOptions, PluginOptions, unit_hint
from .runtime.connector import Connector, PluginState, name_of
from .runtime.context import Context
from .runtime.exchange import measure_links
from .runtime.handlers import as_bytes
from .runtime.tasks import finish_within, run_all
from .statistics import Statistics
from .transfer import Receipt, Transfer, check_amount, check_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .errors import PluginFailedError
    from .events import Event
    from .money.reconciliation import Transfers
    from .negotiation import PeerJournal
    from .runtime.exchange import Exchange
    from .runtime.handlers import Handlers
    from .runtime.plugin_log import PluginLog
    from .runtime.tasks import TaskGroup
    from .services import PluginServices
    from .statistics import Counters

__all__ = ["LedgerPlugin"]

CLOSING = PluginState.CLOSING


class LedgerPlugin(ABC):
    """One account with one peer (RFC-0024, class LedgerPlugin).

    ``open_plugin()`` and ``create_plugin()`` return one. Any number of tasks of one Trio run may call every method.

    Attributes:
        version: The version of the Ledger Plugin Interface: 2.
        events: The receiving end of the plugin's events. Each event goes to one of its clones.

    Args:
        options: The plugin's options.
        services: The application's store and log.
        nursery: Where the plugin's tasks run.
        on_failed: Called with the fatal error. If None, the error propagates through the nursery.
    """

    version: ClassVar[int] = 2
    options_class: ClassVar[type[PluginOptions]] = PluginOptions
    has_accounts: ClassVar[bool] = False  # Many accounts, each of which sends its own money.

    def __init__(
        self,
        options: PluginOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        context = Context.for_plugin(
            options, services, nursery, receive=self._receive_transfer, on_end=self._tasks_ended, is_busy=self._is_busy
        )
        link = MoneyLink(self.carry_money, self.peer_journal, self.is_connected, self.publish)
        money = open_money(context, services.store, link, has_accounts=self.has_accounts)
        connector = Connector(
            context,
            self._run,
            run_name=name_of(self.run_connection),
            claim=money.claim,
            release=money.release,
            on_connection_end=self._connection_ended,
            on_end=self._end,
            on_failed=on_failed,
        )
        self.money: MoneyService = money
        self._compose(context, services, connector)

    def _compose(self, context: Context, services: PluginServices, connector: Connector) -> None:
        self.context: Context = context
        self.options: PluginOptions = context.options
        self.services: PluginServices = services
        self.log: PluginLog = context.log
        self.counters: Counters = context.counters
        self.tasks: TaskGroup = context.tasks
        self.handlers: Handlers = context.handlers
        self._connector = connector
        self.events: trio.MemoryReceiveChannel[Event] = connector.stream.receiver
        self._exchange: Exchange | None = None
        self._max_data = context.options.max_data_bytes

    __repr__: ClassVar[appearance.Show] = appearance.show_plugin
    __dir__: ClassVar[appearance.ListNames] = appearance.list_names

    # What the author of a plugin implements.

    @abstractmethod
    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, report ``task_status.started()`` when ready, and stay connected until cancelled.

        Call ``attach()`` and ``detach()``, or ``link_up()`` and ``link_down()``, as links are opened and lost. An error
        before ``started()`` is raised by ``connect()``; an error after it is fatal to the plugin, and so is a return.
        Assign the error of a try that will be repeated to ``self.connect_error``, the cause of ``ConnectTimeoutError``.

        Cancellation: Must drop the link at once. What has to finish first belongs in ``finish_calls``.
        """

    def carry_data(self, data: bytes) -> Awaitable[bytes]:
        """Carry one request to the peer and return its response; ``send_data`` has checked the arguments."""
        exchange = self._exchange
        if exchange is None:
            raise NotConnectedError("not connected; nothing was sent")
        return exchange.request(data)

    async def carry_money(self, transfer: Transfer) -> int | None:
        """Carry one transfer to the peer, once, and return when it is acknowledged.

        At KEYED the peer must get its key and number; return the number of the peer's receipt. ``TransferInDoubtError``
        means that the peer may have applied it, ``RemoteError`` that it was refused, any other that nothing was sent.
        """
        exchange = self._exchange
        if exchange is None:
            raise NotConnectedError("not connected; nothing was sent")
        return await exchange.transfer(transfer)

    def peer_journal(self) -> PeerJournal | None:
        """Return the peer's journal, as both ends agreed on the present link; None at PLAIN."""
        return None if self._exchange is None else self._exchange.peer_journal

    def exchanges(self) -> tuple[Exchange, ...]:
        """Return the exchanges of the links that are up; may be called from any thread."""
        exchange = self._exchange
        return () if exchange is None else (exchange,)

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call in flight, each with an error of its own."""
        for exchange in self.exchanges():
            exchange.calls.close(make_error)

    def calls_in_flight(self) -> int:
        """Return how many calls wait for the peer; may be called from any thread."""
        return sum(len(exchange.calls.pending) for exchange in self.exchanges())

    async def finish_calls(self) -> None:
        """Wait for the replies to calls in flight, send what is queued, and close the links.

        Cancellation: The links that are not closed yet are closed at once.
        """
        await run_all(exchange.finish for exchange in self.exchanges())

    def ended(self, failure: PluginFailedError | None) -> None:  # noqa: B027 (most plugins have nothing to do)
        """Clean up; called once, when the plugin is closed or has failed and is in its final state."""

    @property
    def address(self) -> str:
        """The URL that this end dials or listens at, without credentials; empty for a plugin without a network.

        For a listener on port 0, it has the bound port once ``connect()`` has returned.
        """
        return ""

    # Connection management.

    async def connect(self, options: ConnectOptions | None = None) -> None:
        """Connect to the peer (RFC-0024, connect). Does nothing when connected already.

        Handlers may be registered before. A client is connected when it is authenticated, a listener when it
        listens. Callers at the same time share one attempt, and each has its own deadline.

        Args:
            options: The timeout, such as ``ConnectOptions(seconds=5)``; the default is the option ``connect_timeout``.

        Raises:
            TypeError: ``options`` is not a ``ConnectOptions``.
            InvalidFieldsError: Credentials are missing.
            NotAcceptedError: Credentials are refused.
            ConnectTimeoutError: Not connected in time; the cause is the last attempt's error.
            UnreachableError: The peer cannot be reached and trying again cannot help.
            OSError: A listener cannot open its port.
            PluginClosedError: The plugin was closed, or disconnected meanwhile.
            PluginFailedError: The plugin has failed.

        Cancellation: This caller stops waiting; if it was the last one, the attempt is cancelled.
        """
        self.check_thread()
        default = inf if self.options.standby else self.options.connect_timeout
        await self._connector.connect(ConnectOptions.seconds_of(options, default), unit_hint(options))

    async def disconnect(self) -> None:
        """Disconnect from the peer (RFC-0024, disconnect). Does nothing when not connected; ``connect()`` may follow.

        Calls in flight fail with ``PluginClosedError``. Handlers that run are left to finish.

        Cancellation: The link is dropped anyway, without a closing handshake.
        """
        self.check_thread()
        ended = await self._connector.disconnect(self._cut, self.finish_calls)
        if ended and self.money.keeps_journal and not self._is_busy():
            await self._connector.wait_ended()

    def _cut(self) -> None:
        self.link_down("disconnected")
        self.fail_calls(lambda: PluginClosedError("the plugin was disconnected"))
        self.money.release_callers("the plugin was disconnected")

    async def aclose(self) -> None:
        """Close the plugin for good: drain, close the links, end the events. Safe to call twice.

        New calls are refused at once. Calls in flight and running handlers have ``close_timeout`` seconds to finish;
        then calls fail with ``PluginClosedError`` and handlers are cancelled.

        Cancellation: The plugin is closed anyway, without draining.
        """
        self.check_thread()
        try:
            if self.begin_closing():
                idle = self.context.budget.wait_no_handlers, self.money.finish_handlers
                last = self.finish_calls, self.money.finish_records
                await finish_within(self.options.close_timeout, idle, (each.drain for each in self.exchanges()), last)
        finally:
            await self._connector.stop()  # noqa: ASYNC102 (it shields itself, with a deadline)

    def begin_closing(self) -> bool:
        """Refuse new calls and requests, as ``aclose()`` does first; returns False when the plugin has ended."""
        self.handlers.stop()
        return self._connector.begin_closing()

    def is_connected(self) -> bool:
        """Return whether a peer is connected and authenticated now (RFC-0024, isConnected)."""
        return self._connector.is_connected

    async def wait_connected(self) -> None:
        """Wait until a peer is connected.

        Raises:
            PluginClosedError: The plugin was closed first.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time.
        """
        await self._connector.wait_connected()

    async def send_data(self, data: bytes | bytearray | memoryview) -> bytes:
        """Send one request to the peer and return its response (RFC-0024, sendData).

        Args:
            data: The request, opaque to the plugin; usually an ILP packet. Any bytes-like object.

        Returns:
            The response; empty when the peer answered without data.

        Raises:
            TypeError: ``data`` is not bytes-like.
            InvalidFieldsError: ``data`` is too long for one message. Nothing was sent.
            NotConnectedError: No link is up. Nothing was sent.
            RemoteError: The peer answered with an error.
            ConnectionLostError: The link died first; the peer may have acted.
            ResponseTimeoutError: No answer within ``response_timeout`` seconds after sending; the peer may have acted.
                On a full link, a call first waits for its turn, without a limit while the peer reads what others have
                sent. ``trio.fail_after()`` limits both.
            DecodeError: The peer's answer breaks the protocol; the peer may have acted.
            PluginClosedError: The plugin was closed or disconnected first.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time. The request may have been sent; its response is discarded.
        """
        connector = self._connector
        if data.__class__ is not bytes:
            data = as_bytes(data)
        if len(data) > self._max_data:
            raise InvalidFieldsError(f"data has {len(data)} bytes; one message holds at most {self._max_data}")
        if not connector.is_connected or connector.state is CLOSING:
            raise connector.not_connected()
        if get_ident() != connector.thread:
            connector.check_thread()
        return await self.carry_data(data)

    async def send_money(self, amount: str | int, *, idempotency_key: str | None = None) -> None:
        """Transfer money to the peer (RFC-0024, sendMoney); returns once the peer acknowledged it.

        With a transactional store at both ends, the transfer is KEYED: it takes effect exactly once. It survives the
        loss of links and of this process: the journal sends it again until the peer replies. Otherwise it is PLAIN: it
        takes effect at most once, and is never sent again. With a transactional store here, ``transfers`` lists both.

        Args:
            amount: Units of the ledger's smallest denomination, 1 to 2**64-1: decimal text, or an int.
            idempotency_key: 1 to 64 ASCII characters that name this transfer; if None, a UUID4. If the journal knows
                the key, this call has the outcome of the earlier transfer, and sends nothing.

        Raises:
            TypeError: ``amount`` or the key has another type.
            InvalidFieldsError: ``amount`` or the key is out of its range. Nothing was sent.
            InvalidServicesError: There is no transactional store to keep the key, and ``money`` is not ``"plain"``.
            NotConnectedError: No link is up. Nothing was sent.
            RemoteError: The peer refused the transfer; it was not applied. At KEYED, a temporary refusal (T00) is
                raised only if the peer still refuses it after some more tries within 5 seconds.
            TransferInDoubtError: It was sent, and no acknowledgement came within ``response_timeout`` seconds or
                before the plugin was closed: the peer may have applied it. At KEYED, the journal keeps retrying it.
            NotAcceptedError: The transfer of this key was settled by hand as not applied. Nothing was sent.
            DuplicateIdError: The key belongs to a transfer of another amount. Nothing was sent.
            MoneyLevelError: The link is PLAIN, and the account or the option ``money`` is KEYED. Nothing was sent.
            StoreError: The journal cannot be written. Nothing was sent.
            PluginClosedError: The plugin was closed before it was sent.
            PluginFailedError: The plugin had failed before it was sent.

        Cancellation: Before the transfer is in the journal, nothing is sent. After that, the transfer continues. A
            caller that may be cancelled should pass its own key, to call again with it.
        """
        transfer = Transfer(check_amount(amount), key=check_key(idempotency_key))
        self.check_thread()
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self.is_connected() or self._connector.state is CLOSING:
            error = self._connector.not_connected()
            # The transfer of a known key may be in progress or done: "nothing was sent" would be wrong for it.
            known = idempotency_key is not None and isinstance(error, NotConnectedError)
            if known and await self.money.recall(transfer):
                return
            raise error
        await self.money.send(transfer, has_key=idempotency_key is not None)

    register_data_handler: ClassVar[registration.RegisterData] = registration.register_data_handler
    """Set the handler for requests from the peer, ``async (data: bytes) -> bytes``; most are ILP packets."""
    deregister_data_handler: ClassVar[registration.Deregister] = registration.deregister_data_handler
    """Remove the data handler, if one is set; running calls finish."""
    register_money_handler: ClassVar[registration.RegisterMoney] = registration.register_money_handler
    """Set the handler for transfers from the peer, ``async (amount: str) -> None``; see ``current_transfer()``."""
    register_transactional_money_handler: ClassVar[registration.RegisterTransactional] = (
        registration.register_transactional_money_handler
    )
    """Set a handler for transfers, ``(connection, transfer) -> None``, that runs within the store's transaction."""
    deregister_money_handler: ClassVar[registration.Deregister] = registration.deregister_money_handler
    """Remove the money handler of either kind; running calls finish."""
    watch_events: ClassVar[registration.WatchEvents] = registration.watch_events
    """Return a context manager that yields a channel of all events of the plugin within its block."""
    watch_requests: ClassVar[registration.WatchRequests] = registration.watch_requests
    """Return a context manager that has functions called with each reply, sent or received, within its block."""

    @property
    def transfers(self) -> Transfers:
        """The journal of this plugin's transfers, with totals, and a way to settle transfers in doubt.

        Raises:
            InvalidServicesError: The plugin has no transactional store.
        """
        return self.money.transfers

    def counted(self) -> Counters:
        """Return the counters, without the bytes of open links; may be called from any thread."""
        return self.counters

    def statistics(self) -> Statistics:
        """Return a snapshot of the plugin's statistics; may be called from any thread."""
        now = measure_links(self.exchanges()) | self.context.measure()
        return Statistics.of(self.counted(), events_dropped=self._connector.stream.dropped, **now)

    # What the author of a plugin calls.

    def attach(self, exchange: Exchange) -> None:
        """Use an exchange: a peer is connected and authenticated. Calls over an earlier one fail."""
        former, self._exchange = self._exchange, exchange
        if former is not None and former is not exchange:
            former.close(lambda: ConnectionLostError("another link took its place; the peer may have acted"))
        exchange.start_timers()
        LedgerPlugin.link_up(self)

    def detach(self, exchange: Exchange, reason: str) -> None:
        """Stop using an exchange: its link is lost. Its calls fail with ``ConnectionLostError``."""
        exchange.close(lambda: ConnectionLostError(f"the link was lost: {reason}; the peer may have acted"))
        if exchange is self._exchange:
            self._exchange = None
            self.link_down(reason)

    def link_up(self) -> None:
        """Report that a peer is connected and authenticated; ``attach()`` does it too."""
        self._connector.link_up()
        self.money.link_up()

    def link_down(self, reason: str) -> None:
        """Report that the peer is gone, if one was connected; ``detach()`` does it too."""
        self._connector.link_down(reason)

    @property
    def is_disconnecting(self) -> bool:
        """Whether the plugin disconnects or closes, so that no new link is wanted."""
        return self._connector.is_ending

    @property
    def connect_error(self) -> Exception | None:
        """The error of the last failed try to connect."""
        return self._connector.last_error

    @connect_error.setter
    def connect_error(self, error: Exception) -> None:
        self._connector.last_error = error

    def publish(self, event: Event) -> None:
        """Publish an event that is specific to this plugin."""
        self._connector.stream.publish(event)

    def fail(self, error: Exception) -> None:
        """End the plugin for good, because of a fatal error (RFC-0024, event ``error``)."""
        self._connector.fail(error)

    def check_usable(self) -> None:
        """Raise ``PluginClosedError`` if the plugin is closed or closing, ``PluginFailedError`` if it has failed."""
        self._connector.check_usable()

    def check_thread(self) -> None:
        """Raise ``RuntimeError`` if called in another thread than the plugin runs in."""
        self._connector.check_thread()

    async def _receive_transfer(self, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | Receipt | None:
        return await self.money.receive(transfer, handlers)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        await self.money.open()
        await self.run_connection(task_status=task_status)

    def _connection_ended(self) -> None:
        if self._exchange is not None:
            self.detach(self._exchange, "disconnected")

    def _is_busy(self) -> bool:
        return self._connector.is_running or self.context.budget.handlers > 0 or self.money.is_busy

    def _tasks_ended(self, crash: Exception | None, cancelled: bool) -> Exception | None:
        return self._connector.tasks_ended(crash, cancelled)

    def _end(self, failure: PluginFailedError | None) -> None:
        self.handlers.stop()
        self.fail_calls(lambda: copy_error(failure) if failure else PluginClosedError("the plugin was closed"))
        self.money.close("the plugin was closed")
        self.ended(failure)
