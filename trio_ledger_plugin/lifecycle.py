"""The life of a plugin: connecting, disconnecting, closing, failing, and the events that tell of it.

The law of this module: every change of a plugin's state is made here, and comes before the event that tells of it.
A final state is entered once; with it every call fails and the events end.

The states, and what moves between them::

    IDLE ── connect() ──> CONNECTING ── started ──> READY ── disconnect() ──> DISCONNECTING ──> IDLE
    any ── aclose(), the nursery's end ──> CLOSED            any ── a fatal error ──> FAILED
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

import trio

from .connection import Connection
from .errors import ConnectTimeoutError, LedgerPluginError, NotConnectedError, PluginClosedError, PluginFailedError
from .events import Connected, Disconnected, Event, EventStream, Failed
from .options.base import ConnectOptions, PluginOptions
from .runtime.context import Context
from .runtime.tasks import TaskGroup, unwrap_group

if TYPE_CHECKING:
    from collections.abc import Callable

    from .log import RedactingLog
    from .money.service import MoneyService
    from .runtime.handlers import Handlers
    from .services import PluginServices
    from .statistics import Counters
    from .transfer import Transfer

__all__ = ["Lifecycle"]

# How long a disconnecting plugin takes to say goodbye.
DISCONNECT_SECONDS = 1.0
# How long a closed plugin waits, shielded, for tasks that it has cancelled; one that shields itself can take longer.
END_SECONDS = 0.5


class _State(Enum):
    IDLE = "not connected"
    CONNECTING = "connecting"
    READY = "connected, or trying to be again"
    DISCONNECTING = "disconnecting"
    CLOSED = "closed"
    FAILED = "failed"


class Lifecycle(ABC):
    """What every plugin does, whatever it carries; see ``LedgerPlugin``."""

    def __init__(
        self,
        options: PluginOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        self.options: PluginOptions = options
        self.services: PluginServices = services
        self.context: Context = Context.for_plugin(
            options, services, nursery, receive=self._receive_transfer, on_end=self._tasks_ended, is_busy=self._is_busy
        )
        self.log: RedactingLog = self.context.log
        self.counters: Counters = self.context.counters
        self.tasks: TaskGroup = self.context.tasks
        self.handlers: Handlers = self.context.handlers
        self.desk: MoneyService = self.make_desk()
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
        self._thread = get_ident()
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
    def make_desk(self) -> MoneyService:
        """Return what looks after the plugin's money."""

    @abstractmethod
    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call that waits for the peer, each with an error of its own."""

    async def finish_calls(self) -> None:
        """Wait for the answers to calls in flight, send what is queued, part from the peer; bounded by the caller."""
        await trio.lowlevel.checkpoint()

    def abandon_money(self, reason: str) -> None:
        """Let those go who wait for transfers that go on in the journal."""
        self.desk.abandon(reason)

    def ended(self, failure: PluginFailedError | None) -> None:  # noqa: B027 (most plugins have nothing to do)
        """Take note that the plugin is closed, or has failed; called once, when it is in its final state."""

    async def _receive_transfer(self, transfer: Transfer) -> LedgerPluginError | None:
        """Credit a transfer of the peer's."""
        return await self.desk.receive(transfer, self.handlers)

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
            raise TypeError(
                f"options is a ConnectOptions, such as ConnectOptions(timeout=5000), not {type(options).__name__}"
            )
        self.check_thread()
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
        self.desk.claim()
        try:
            await self.tasks.start()
            # The home before this one has given the ledger up when it ended.
            self.desk.claim()
            if self._connection is None and self._state is _State.IDLE and self.tasks.running:
                self._state = _State.CONNECTING
                # Not before: tasks that end already must begin nothing any more.
                self.tasks.closing_when_idle = False
                self.connect_error = None
                self._connection = Connection(self._ready)
                self.tasks.spawn(self._run, self._connection)
        finally:
            if self._connection is None:
                self.tasks.close_when_idle()
            if self.tasks.ended:
                # There is no end of the tasks to come that would give it up.
                self.desk.release()

    def _ready(self) -> None:
        if self._state is _State.CONNECTING:
            self._state = _State.READY

    async def _run(self, connection: Connection) -> None:
        """Own one run of ``run_connection`` from the attempt to its end."""
        error: Exception | None = None
        try:
            await connection.run(partial(self._connect_and_stay, connection))
        except Exception as raised:  # noqa: BLE001 (whatever it is, connect() or the failure tells it)
            error = unwrap_group(raised)
        fatal = connection.is_settled
        self._connection = None
        if self._state in (_State.CONNECTING, _State.READY, _State.DISCONNECTING):
            self._state = _State.IDLE
        connection.settle(error or PluginClosedError("the plugin was disconnected while it connected"))
        connection.ended.set()
        self.link_down("disconnected")
        self.tasks.close_when_idle()
        if error is not None and fatal:
            self.fail(error)

    async def _connect_and_stay(self, connection: Connection) -> None:
        await self.desk.open()
        await self.run_connection(task_status=connection)

    async def disconnect(self) -> None:
        """Part from the peer (RFC-0024, disconnect). Does nothing when not connected; ``connect()`` may follow.

        Calls in flight fail with ``PluginClosedError``. Handlers that run are left to finish.

        Cancellation: The link is dropped all the same, without a parting word.
        """
        self.check_thread()
        connection = self._connection
        if connection is None or self._state in (_State.CLOSED, _State.FAILED):
            await trio.lowlevel.checkpoint()
            return
        self._state = _State.DISCONNECTING
        self.link_down("disconnected")
        self.fail_calls(lambda: PluginClosedError("the plugin was disconnected"))
        self.abandon_money("the plugin was disconnected")
        try:
            with trio.move_on_after(DISCONNECT_SECONDS):
                await self.finish_calls()
        finally:
            connection.cancel()
        await connection.ended.wait()
        if self.desk.ledger is not None and not self._is_busy():
            # The ledger is given up when the tasks have ended, and another plugin may be waiting to have it.
            with trio.move_on_after(END_SECONDS):
                await self.tasks.wait_ended()

    async def aclose(self) -> None:
        """Close the plugin for good: drain, part from the peer, end the events. Safe to call twice.

        New calls are refused at once. Calls in flight and running handlers have ``close_timeout`` seconds to
        finish; what has not finished by then is failed with ``PluginClosedError`` or cancelled.

        Cancellation: Nothing drains; the plugin is closed all the same.
        """
        self.check_thread()
        try:
            if self._state not in (_State.CLOSED, _State.FAILED):
                self._draining = True
                self.handlers.stop()
                with trio.move_on_after(self.options.close_timeout):
                    await self.context.budget.handlers.wait_unused()
                    await self.desk.finish_handlers()
                    await self.finish_calls()
                    await self.desk.finish_records()
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
        self.check_thread()
        while not self._connected:
            self.check_usable()
            await self._news.wait()
        await trio.lowlevel.checkpoint()

    # What an author of a plugin calls.

    def link_up(self) -> None:
        """Tell that a peer is connected and authenticated."""
        self._connected = True
        self._tell()
        self._stream.publish(Connected())
        self.desk.link_up()

    def link_down(self, reason: str) -> None:
        """Tell that the peer is gone; does nothing when none was there."""
        if self._connected:
            self._connected = False
            self._tell()
            self._stream.publish(Disconnected(reason))

    @property
    def is_disconnecting(self) -> bool:
        """Whether the plugin disconnects or closes, so that no new link is wanted."""
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
            raise PluginClosedError("the plugin is closed; open a new one")

    def check_thread(self) -> None:
        """Raise where waiting would never end.

        Raises:
            RuntimeError: This is another thread than that of the plugin's Trio run.
        """
        if get_ident() != self._thread:
            raise RuntimeError(
                "the plugin belongs to another thread; call it as trio.from_thread.run(plugin.send_data, data)"
            )

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
        return NotConnectedError(
            "not connected; nothing was sent: connect() connects, and wait_connected() waits for a peer"
        )

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def _end(self, state: _State = _State.CLOSED, last: Event | None = None) -> None:
        """Enter a final state; every call fails, and the events end."""
        if self._state in (_State.CLOSED, _State.FAILED):
            return
        self._state = state
        self._draining = True
        self.handlers.stop()
        if self._failure is not None:
            self.fail_calls(self._failed_again)
        else:
            self.fail_calls(lambda: PluginClosedError("the plugin was closed"))
        self.desk.close("the plugin was closed")
        self.link_down("failed" if self._failure is not None else "closed")
        self._tell()
        self._stream.close(last)
        self.ended(self._failure)
        if self._connection is not None:
            self._connection.settle(self._failure or PluginClosedError("the plugin was closed while it connected"))

    def _is_busy(self) -> bool:
        return self._connection is not None or self.context.budget.handlers.used > 0 or self.desk.is_busy

    def _tasks_ended(self, crash: Exception | None, *, cancelled: bool) -> Exception | None:
        """Settle the state when the tasks have ended; return what is to leave through the nursery."""
        self.desk.release()
        if crash is not None:
            self.fail(unwrap_group(crash))
        elif cancelled and self._state is not _State.FAILED:
            self._end()
        if self._connection is not None:
            # It was cancelled with all the others.
            self._connection.ended.set()
            self._connection = None
        return self._failure if self._on_failed is None else None
