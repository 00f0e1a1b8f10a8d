"""``LedgerPlugin``: the surface of RFC-0024 and its lifecycle, once for every plugin.

An author of a plugin subclasses ``LedgerPlugin`` and writes what differs: ``run_connection`` (how to connect and
stay connected), ``carry_data`` and ``carry_money`` (how one request and one transfer travel), ``fail_calls`` and,
where there is something to finish, ``finish_calls``. Handler rules, events, state, timeouts and validation are here.

The states, and what moves between them::

    IDLE ── connect() ──> CONNECTING ── started ──> READY ── disconnect() ──> DISCONNECTING ──> IDLE
    any ── aclose(), the nursery's end ──> CLOSED            any ── a fatal error ──> FAILED
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

import trio
from attrs import asdict

from .answering import DataHandler, Handlers, MoneyHandler, as_bytes
from .connection import Connection
from .errors import (
    ConnectTimeoutError,
    InvalidFieldsError,
    LedgerPluginError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
)
from .events import Connected, Disconnected, Event, EventStream, Failed
from .handlers import HandlerPool, Transfer
from .log import SafeLog, StdlibLog
from .options import ConnectOptions, LinkOptions
from .statistics import Counters, Statistics
from .tasks import PluginTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .secret import Secret
    from .services import PluginServices

__all__ = ["LedgerPlugin"]

MAX_AMOUNT = 2**64 - 1
# How long a disconnecting plugin takes to say goodbye.
PARTING_SECONDS = 1.0
# How long a closed plugin waits, shielded, for tasks that it has cancelled; one that shields itself can take longer.
END_SECONDS = 0.5


class _State(Enum):
    IDLE = "not connected"
    CONNECTING = "connecting"
    READY = "connected, or trying to be again"
    DISCONNECTING = "disconnecting"
    CLOSED = "closed"
    FAILED = "failed"


class LedgerPlugin(ABC):
    """One account with one peer (RFC-0024, class LedgerPlugin).

    Made by ``open_plugin()`` or ``create_plugin()``. Every method may be called by any task of the same Trio run,
    and by many at once.

    Attributes:
        version: The version of the Ledger Plugin Interface: 2.
        events: The receiving end of the plugin's events. Clones of it compete for them.

    Args:
        options: The plugin's options.
        services: The store and the log that the host offers.
        nursery: Where the plugin's tasks run.
        on_failed: Told of a fatal error; when None, the error leaves through the nursery.
    """

    version: ClassVar[int] = 2
    options_class: ClassVar[type[LinkOptions]] = LinkOptions

    def __init__(
        self,
        options: LinkOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        self.options: LinkOptions = options
        self.services: PluginServices = services
        self.log: SafeLog = SafeLog(services.log or StdlibLog(), self.secrets())
        self.counters: Counters = Counters()
        self.handlers: Handlers = Handlers(self.log)
        self.tasks: PluginTasks = PluginTasks(nursery, self._tasks_ended)
        self.tasks.busy = self._is_busy
        self.pool: HandlerPool = HandlerPool(
            self.tasks,
            self.log,
            limit=options.max_handlers,
            waiting_limit=options.max_waiting_bytes,
            timeout=options.handler_timeout,
        )
        self.tasks.residents.append(self.pool)
        self._on_failed = on_failed
        self._stream = EventStream()
        self.events: trio.MemoryReceiveChannel[Event] = self._stream.receiver
        self._state = _State.IDLE
        self._connection: Connection | None = None
        self._connected = False
        self._draining = False
        self._max_data = options.max_data_bytes
        self._news = trio.Event()
        self._failure: PluginFailedError | None = None
        self.connect_error: Exception | None = None

    # What an author of a plugin writes.

    @abstractmethod
    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Connect, report ``task_status.started()`` when ready, and stay connected until cancelled.

        Call ``link_up()`` and ``link_down()`` as links come and go. An error before ``started()`` leaves
        ``connect()``; one after it is fatal to the plugin. A failed try that is not final belongs into
        ``self.connect_error``, where ``ConnectTimeoutError`` finds its cause.

        Cancellation: Drop the link at once. What is to be finished first belongs into ``finish_calls``.
        """

    @abstractmethod
    def carry_data(self, data: bytes) -> Awaitable[bytes]:
        """Carry one request to the peer and return its response; ``send_data`` checked the arguments."""

    @abstractmethod
    async def carry_money(self, transfer: Transfer) -> None:
        """Carry one transfer to the peer and return when it is acknowledged; ``transfer.key`` is set."""

    @abstractmethod
    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call that waits for the peer, each with an error of its own."""

    @abstractmethod
    def calls_in_flight(self) -> int:
        """Return how many calls wait for the peer."""

    async def finish_calls(self) -> None:
        """Wait for the answers to calls in flight, send what is queued, part from the peer; bounded by the caller."""
        await trio.lowlevel.checkpoint()

    def secrets(self) -> tuple[Secret, ...]:
        """Return what must never appear in a log."""
        return ()

    # Connection management.

    async def connect(self, options: ConnectOptions | None = None) -> None:
        """Connect to the peer (RFC-0024, connect). Does nothing when connected already.

        Handlers may be registered before. A client is connected when it is authenticated, a listener when it
        listens. Callers at the same time share one attempt, and each has its own deadline.

        Args:
            options: The timeout, in milliseconds; the plugin's default is its option ``connect_timeout``.

        Raises:
            TypeError: ``options`` is not a ``ConnectOptions``.
            InvalidFieldsError: Credentials are missing.
            NotAcceptedError: Credentials are refused.
            ConnectTimeoutError: Not connected in time; the cause is the last attempt's error.
            UnreachableError: The peer cannot be reached and trying again cannot help.
            OSError: A listener cannot listen at its address.
            PluginClosedError: The plugin was closed, or disconnected meanwhile.
            PluginFailedError: The plugin has failed.

        Cancellation: Gives up; the last caller to leave cancels the attempt.
        """
        if options is not None and not isinstance(options, ConnectOptions):
            raise TypeError(f"options is a ConnectOptions, not {type(options).__name__}")
        seconds = (options or ConnectOptions()).seconds(self.options.connect_timeout)
        with trio.move_on_after(seconds):
            await self._connect()
            return
        if self._state is _State.READY:
            # Ready at the very moment at which the time was up.
            return
        cause = self.connect_error
        detail = f": {cause}" if cause is not None else ""
        raise ConnectTimeoutError(f"not connected within {seconds:g} s{detail}") from cause

    async def _connect(self) -> None:
        while True:
            self.check_usable()
            connection = self._connection
            if connection is None:
                await self._begin()
            elif connection.is_abandoned or self._state is _State.DISCONNECTING:
                await connection.ended.wait()
            else:
                await connection.wait_settled()
                return

    async def _begin(self) -> None:
        """Open the tasks' home and begin an attempt, unless another task does it meanwhile."""
        self.tasks.leaving = False
        try:
            await self.tasks.start()
            if self._connection is None and self._state is _State.IDLE and self.tasks.running:
                self._state = _State.CONNECTING
                self.connect_error = None
                self._connection = Connection(self._ready)
                self.tasks.spawn(self._run, self._connection)
        finally:
            if self._connection is None:
                self.tasks.leave()

    def _ready(self) -> None:
        if self._state is _State.CONNECTING:
            self._state = _State.READY

    async def _run(self, connection: Connection) -> None:
        """Own one run of ``run_connection`` from the attempt to its end."""
        error: Exception | None = None
        try:
            await connection.run(partial(self.run_connection, task_status=connection))
        except Exception as raised:  # noqa: BLE001 (whatever it is, connect() or the failure tells it)
            error = _only(raised)
        fatal = connection.is_settled
        self._connection = None
        if self._state in (_State.CONNECTING, _State.READY, _State.DISCONNECTING):
            self._state = _State.IDLE
        connection.settle(error or PluginClosedError("the plugin was disconnected while it connected"))
        connection.ended.set()
        self.link_down("disconnected")
        self.tasks.leave()
        if error is not None and fatal:
            self.fail(error)

    async def disconnect(self) -> None:
        """Part from the peer (RFC-0024, disconnect). Does nothing when not connected; ``connect()`` may follow.

        Calls in flight fail with ``PluginClosedError``. Handlers that run are left to finish.

        Cancellation: The link is dropped all the same, without a parting word.
        """
        connection = self._connection
        if connection is None or self._state in (_State.CLOSED, _State.FAILED):
            await trio.lowlevel.checkpoint()
            return
        self._state = _State.DISCONNECTING
        self.link_down("disconnected")
        self.fail_calls(lambda: PluginClosedError("the plugin was disconnected"))
        try:
            with trio.move_on_after(PARTING_SECONDS):
                await self.finish_calls()
        finally:
            connection.cancel()
        await connection.ended.wait()

    async def aclose(self) -> None:
        """Close the plugin for good: drain, part from the peer, end the events. Safe to call twice.

        New calls are refused at once. Calls in flight and running handlers have ``close_timeout`` seconds to
        finish; what has not finished by then is failed with ``PluginClosedError`` or cancelled.

        Cancellation: Nothing drains; the plugin is closed all the same.
        """
        try:
            if self._state not in (_State.CLOSED, _State.FAILED):
                self._draining = self.handlers.closing = True
                with trio.move_on_after(self.options.close_timeout):
                    await self.pool.wait_quiet()
                    await self.finish_calls()
        finally:
            self._end()
            self.tasks.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + END_SECONDS):
                await self.tasks.wait_ended()

    def is_connected(self) -> bool:
        """Return whether a peer is connected and authenticated now (RFC-0024, isConnected)."""
        return self._connected

    async def wait_connected(self) -> None:
        """Wait until a peer is connected.

        Raises:
            PluginClosedError: The plugin was closed first.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time.
        """
        while not self._connected:
            self.check_usable()
            await self._news.wait()
        await trio.lowlevel.checkpoint()

    # Sending.

    async def send_data(self, data: bytes) -> bytes:
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
            ResponseTimeoutError: No answer within ``response_timeout`` seconds; the peer may have acted.
            DecodeError: The peer's answer breaks the protocol; the peer may have acted.
            PluginClosedError: The plugin was closed or disconnected first.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time. The request may have left; its response is discarded.
        """
        if data.__class__ is not bytes:
            data = as_bytes(data)
        if len(data) > self._max_data:
            raise InvalidFieldsError(f"data has {len(data)} bytes; one message holds at most {self._max_data}")
        if not self._connected or self._draining:
            raise self._not_connected()
        return await self.carry_data(data)

    async def send_money(self, amount: str | int, *, idempotency_key: str | None = None) -> None:
        """Transfer money to the peer (RFC-0024, sendMoney); returns once the peer acknowledged it.

        The level is PLAIN: at most once, never sent again by itself.

        Args:
            amount: Units of the ledger's smallest denomination, 1 to 2**64-1: decimal text, or an int.
            idempotency_key: 1 to 64 printable ASCII characters that name this transfer; a UUID4 when None.

        Raises:
            TypeError: ``amount`` or the key has another type.
            InvalidFieldsError: ``amount`` or the key is out of its range. Nothing was sent.
            NotConnectedError: No link is up. Nothing was sent.
            RemoteError: The peer refused the transfer; it was not applied.
            TransferInDoubtError: It was sent and no acknowledgement came; the peer may have applied it.
            PluginClosedError: The plugin was closed before it was sent.
            PluginFailedError: The plugin had failed before it was sent.

        Cancellation: Nothing is sent when the caller was cancelled before; later, the transfer may have been applied.
        """
        transfer = Transfer(_checked_amount(amount), key=_checked_key(idempotency_key))
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._connected or self._draining:
            raise self._not_connected()
        await self.carry_money(transfer)

    # Receiving.

    def register_data_handler(self, handler: DataHandler) -> None:
        """Set the handler of the peer's requests (RFC-0024, registerDataHandler).

        Args:
            handler: ``async (data: bytes) -> bytes``. It runs in a task and a context of its own.

        Raises:
            TypeError: ``handler`` cannot be called.
            DataHandlerAlreadyRegisteredError: One is set already.
        """
        self.handlers.register_data(handler)

    def deregister_data_handler(self) -> None:
        """Remove the data handler, if one is set; those that run finish (RFC-0024, deregisterDataHandler)."""
        self.handlers.deregister_data()

    def register_money_handler(self, handler: MoneyHandler) -> None:
        """Set the handler of the peer's transfers (RFC-0024, registerMoneyHandler).

        Args:
            handler: ``async (amount: str) -> None``, called before the transfer is acknowledged; an error that
                it raises refuses the transfer. ``current_transfer()`` tells more inside it.

        Raises:
            TypeError: ``handler`` cannot be called.
            MoneyHandlerAlreadyRegisteredError: One is set already.
        """
        self.handlers.register_money(handler)

    def deregister_money_handler(self) -> None:
        """Remove the money handler, if one is set; those that run finish (RFC-0024, deregisterMoneyHandler)."""
        self.handlers.deregister_money()

    def statistics(self) -> Statistics:
        """Return a snapshot of what the plugin has done so far."""
        return Statistics(
            **asdict(self.counters),
            calls_in_flight=self.calls_in_flight(),
            handlers_running=self.pool.running,
            events_dropped=self._stream.dropped,
        )

    # What an author of a plugin calls.

    def response_too_long(self, response: bytes) -> LedgerPluginError:
        """Return what the peer is told in place of a response that does not fit a message, and log it."""
        self.log.error("a data handler's response has %d bytes; at most %d can be sent", len(response), self._max_data)
        return NotAcceptedError("the response is too long")

    def link_up(self) -> None:
        """Tell that a peer is connected and authenticated."""
        self._connected = True
        self._tell()
        self._stream.publish(Connected())

    def link_down(self, reason: str) -> None:
        """Tell that the peer is gone; does nothing when none was there."""
        if self._connected:
            self._connected = False
            self._tell()
            self._stream.publish(Disconnected(reason))

    @property
    def is_parting(self) -> bool:
        """Whether the plugin disconnects or closes: no new link is wanted."""
        return self._draining or self._state is _State.DISCONNECTING

    def publish(self, event: Event) -> None:
        """Deliver an event that is the plugin's own kind."""
        self._stream.publish(event)

    def fail(self, error: Exception) -> None:
        """End the plugin for good because of an error that nothing can mend (RFC-0024, event ``error``)."""
        self.log.error("the plugin failed: %o", error)
        if self._state in (_State.CLOSED, _State.FAILED):
            return
        self._failure = PluginFailedError(f"the plugin failed: {error}")
        self._failure.__cause__ = error
        self._end(_State.FAILED, Failed(error))
        self.tasks.cancel()
        if self._on_failed is not None:
            self._on_failed(self._failure)

    def check_usable(self) -> None:
        """Raise what a call on a closed or failed plugin raises.

        Raises:
            PluginClosedError: The plugin is closed, or closing.
            PluginFailedError: The plugin has failed.
        """
        if self._failure is not None:
            raise self._failed_again()
        if self._draining or self._state is _State.CLOSED:
            raise PluginClosedError("the plugin is closed")

    def _failed_again(self) -> PluginFailedError:
        assert self._failure is not None
        error = PluginFailedError(str(self._failure))
        error.__cause__ = self._failure.__cause__
        return error

    def _not_connected(self) -> LedgerPluginError:
        try:
            self.check_usable()
        except LedgerPluginError as error:
            return error
        return NotConnectedError("not connected; nothing was sent")

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _end(self, state: _State = _State.CLOSED, last: Event | None = None) -> None:
        """Enter a final state; every call fails, and the events end."""
        if self._state in (_State.CLOSED, _State.FAILED):
            return
        self._state = state
        self._draining = self.handlers.closing = True
        if self._failure is not None:
            self.fail_calls(self._failed_again)
        else:
            self.fail_calls(lambda: PluginClosedError("the plugin was closed"))
        self.link_down("failed" if self._failure is not None else "closed")
        self._tell()
        self._stream.close(last)
        if self._connection is not None:
            self._connection.settle(self._failure or PluginClosedError("the plugin was closed while it connected"))

    def _is_busy(self) -> bool:
        return self._connection is not None or self.pool.running > 0

    def _tasks_ended(self, crash: Exception | None, *, cancelled: bool) -> Exception | None:
        """Settle the state when the tasks have ended; return what is to leave through the nursery."""
        if crash is not None:
            self.fail(_only(crash))
        elif cancelled and self._state is not _State.FAILED:
            self._end()
        if self._connection is not None:
            # It was cancelled with all the others.
            self._connection.ended.set()
            self._connection = None
        return self._failure if self._on_failed is None else None


def _only(error: Exception) -> Exception:
    """Take a lone error out of its groups."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _checked_amount(amount: object) -> str:
    if isinstance(amount, bool) or not isinstance(amount, str | int):
        raise TypeError(f"amount is decimal text or an int, not {type(amount).__name__}")
    if isinstance(amount, str):
        number = int(amount) if amount.isascii() and amount.isdigit() and len(amount) <= 20 else 0
        shown = repr(amount[:40])
    else:
        number = amount
        shown = str(amount) if abs(amount) < 10**40 else "an enormous number"
    if not 1 <= number <= MAX_AMOUNT:
        raise InvalidFieldsError(f"amount is {shown}; it must be a whole number from 1 to 2**64-1, in digits")
    return str(number)


def _checked_key(key: object) -> str:
    if key is None:
        return str(uuid4())
    if not isinstance(key, str):
        raise TypeError(f"idempotency_key is text, not {type(key).__name__}")
    if not 1 <= len(key) <= 64 or not (key.isascii() and key.isprintable()):
        raise InvalidFieldsError("idempotency_key must be 1 to 64 printable ASCII characters")
    return key
