"""The states of a plugin, its connection, and its events.

Invariants: a plugin has one state, and changes it only as ``TRANSITIONS`` allows. It enters a final state once and
never leaves it. ``is_connected`` changes before the event that reports the change.

::

    IDLE ── connect() ──> CONNECTING ── started ──> READY ── disconnect() ──> DISCONNECTING ──> IDLE
    any ── aclose() ──> CLOSING ──> CLOSED            any ── the nursery's end ──> CLOSED
    any ── a fatal error ──> FAILED
"""

from __future__ import annotations

from enum import Enum
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Final

import trio

from ..errors import (
    ConnectTimeoutError,
    LedgerPluginError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    copy_error,
)
from ..events import Connected, Disconnected, Event, EventStream, Failed
from .attempt import ConnectAttempt
from .tasks import unwrap_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .context import Context

__all__ = ["DISCONNECT_SECONDS", "FINAL", "HOW_TO_CONNECT", "Connector", "PluginState", "name_of"]

# How long disconnecting may take to close the links, in seconds.
DISCONNECT_SECONDS = 1.0
# How long a closed plugin waits, shielded, for its cancelled tasks, in seconds. A task with a shield can take longer.
END_SECONDS = 0.5
# The advice for programs in the error of a call without a connection.
HOW_TO_CONNECT = ": connect() connects, and wait_connected() waits for a peer"


class PluginState(Enum):
    """The state of a plugin; it does not say whether a peer is connected."""

    IDLE = "not connected"
    CONNECTING = "connecting"
    READY = "connected, or trying to be again"
    DISCONNECTING = "disconnecting"
    CLOSING = "closing"
    CLOSED = "closed"
    FAILED = "failed"


FINAL: Final = frozenset({PluginState.CLOSED, PluginState.FAILED})
# The states in which the plugin refuses calls.
UNUSABLE: Final = FINAL | {PluginState.CLOSING}
TRANSITIONS: Final[dict[PluginState, frozenset[PluginState]]] = {
    PluginState.IDLE: UNUSABLE | {PluginState.CONNECTING},
    PluginState.CONNECTING: UNUSABLE | {PluginState.READY, PluginState.IDLE, PluginState.DISCONNECTING},
    PluginState.READY: UNUSABLE | {PluginState.IDLE, PluginState.DISCONNECTING},
    PluginState.DISCONNECTING: UNUSABLE | {PluginState.IDLE},
    PluginState.CLOSING: FINAL,
    PluginState.CLOSED: frozenset(),
    PluginState.FAILED: frozenset(),
}


def name_of(run: Callable[..., object]) -> str:
    """Return the name of a plugin's ``run_connection``; empty for a plugin of this package."""
    package = __name__.partition(".")[0]
    return "" if run.__module__.partition(".")[0] == package else f"{run.__qualname__}()"


class Connector:
    """Changes a plugin's state, runs its connection, and publishes its events.

    Args:
        context: What the parts of the plugin share.
        run: Connects, reports ``task_status.started()``, and stays connected until cancelled.
        run_name: The name of that function if the application wrote it, for errors about it; else empty.
        claim: Called before the plugin's tasks start. Raises an error if another plugin uses the ledger.
        release: Called when the tasks that started after ``claim`` have ended.
        on_connection_end: Called when ``run`` has ended.
        on_end: Called once: with None when the plugin is closed, or with the fatal error when it has failed.
        on_failed: Called with the fatal error. If None, the error propagates through the nursery.
    """

    def __init__(
        self,
        context: Context,
        run: Callable[[trio.TaskStatus[None]], Awaitable[None]],
        *,
        run_name: str = "",
        claim: Callable[[], None],
        release: Callable[[], None],
        on_connection_end: Callable[[], None],
        on_end: Callable[[PluginFailedError | None], None],
        on_failed: Callable[[PluginFailedError], None] | None,
    ) -> None:
        self._context = context
        self._run = run
        self._run_name = run_name
        self._claim = claim
        self._release = release
        self._on_connection_end = on_connection_end
        self._on_end = on_end
        self._on_failed = on_failed
        self._attempt: ConnectAttempt | None = None
        self._failure: PluginFailedError | None = None
        #: The thread of the Trio run that the plugin belongs to.
        self.thread: int = get_ident()
        self._changed = trio.Event()
        self.state: PluginState = PluginState.IDLE
        self.stream: EventStream = EventStream()
        #: Whether a peer is connected and authenticated.
        self.is_connected: bool = False
        #: The error of the last failed try to connect, for ``ConnectTimeoutError``.
        self.last_error: Exception | None = None

    # States.

    def move(self, state: PluginState) -> None:
        """Enter another state.

        Raises:
            RuntimeError: ``TRANSITIONS`` does not allow it; that is a bug.
        """
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a plugin that is {self.state.value} cannot become {state.value}")
        self.state = state

    @property
    def is_running(self) -> bool:
        """Whether a connection is being made, kept or ended."""
        return self._attempt is not None

    @property
    def is_ending(self) -> bool:
        """Whether the plugin disconnects or refuses calls, so that no new link is wanted."""
        return self.state in UNUSABLE or self.state is PluginState.DISCONNECTING

    def begin_closing(self) -> bool:
        """Refuse further calls; returns False if the plugin is already in a final state."""
        if self.state in FINAL:
            return False
        if self.state is not PluginState.CLOSING:
            self.move(PluginState.CLOSING)
        return True

    def check_usable(self) -> None:
        """Raise ``PluginClosedError`` if the plugin is closed or closing, ``PluginFailedError`` if it has failed."""
        if self._failure is not None:
            raise copy_error(self._failure)
        if self.state in UNUSABLE:
            raise PluginClosedError("the plugin is closed; open a new one")

    def not_connected(self) -> LedgerPluginError:
        """Return the error of a call while no peer is connected or the plugin refuses calls."""
        try:
            self.check_usable()
        except LedgerPluginError as error:
            return error
        return NotConnectedError(f"not connected; nothing was sent{HOW_TO_CONNECT}")

    def check_thread(self) -> None:
        """Raise ``RuntimeError`` if called in another thread than the plugin runs in."""
        if get_ident() != self.thread:
            raise RuntimeError(
                "the plugin belongs to another thread; call it as trio.from_thread.run(plugin.send_data, data)"
            )

    # Whether a peer is connected.

    def link_up(self) -> None:
        """Report that a peer is connected and authenticated."""
        self.is_connected = True
        self._wake_waiters()
        self.stream.publish(Connected())

    def link_down(self, reason: str) -> None:
        """Report that the peer is gone; does nothing if no peer was connected."""
        if self.is_connected:
            self.is_connected = False
            self._wake_waiters()
            self.stream.publish(Disconnected(reason))

    async def wait_connected(self) -> None:
        """Wait until a peer is connected.

        Raises:
            PluginClosedError: The plugin was closed first.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time.
        """
        self.check_thread()
        while not self.is_connected:
            self.check_usable()
            await self._changed.wait()
        await trio.lowlevel.checkpoint()

    def _wake_waiters(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # Connecting.

    async def connect(self, seconds: float, hint: str = "") -> None:
        """Connect, or wait for the attempt of another caller.

        Args:
            seconds: How long this caller waits; ``math.inf`` for no limit.
            hint: What the error says behind them.

        Raises:
            ConnectTimeoutError: Not connected in time.
            Exception: The error of the attempt.

        Cancellation: This caller stops waiting; if it was the last one, the attempt is cancelled.
        """
        with trio.move_on_after(seconds):
            await self._connect()
            return
        if self.state is PluginState.READY:
            # The plugin became ready at the very moment of the timeout.
            return
        cause = self.last_error
        detail = f": {cause}" if cause is not None else ""
        if cause is None and self._run_name:
            detail = f": {self._run_name} has not called task_status.started()"
        raise ConnectTimeoutError(f"not connected within {seconds:g} s{hint}{detail}") from cause

    async def _connect(self) -> None:
        while True:
            self.check_usable()
            attempt = self._attempt
            if attempt is None:
                await self._begin()
            elif attempt.is_abandoned or self.state is PluginState.DISCONNECTING:
                await attempt.ended.wait()
            else:
                await attempt.wait_settled()
                return

    async def _begin(self) -> None:
        """Start the plugin's tasks and an attempt, unless another task does so meanwhile."""
        tasks = self._context.tasks
        self._claim()
        try:
            await tasks.start()
            # Claimed again: earlier tasks of the plugin released the ledger when they ended.
            self._claim()
            if self._attempt is None and self.state is PluginState.IDLE and tasks.running:
                self.move(PluginState.CONNECTING)
                # Only here: tasks that are already ending must not start anything.
                tasks.closing_when_idle = False
                self.last_error = None
                self._attempt = ConnectAttempt(self._ready)
                tasks.spawn(self._run_attempt, self._attempt)
        finally:
            if self._attempt is None:
                tasks.close_when_idle()
            if tasks.ended:
                # The tasks have ended already, so their end cannot release the ledger.
                self._release()

    def _ready(self) -> None:
        if self.state is PluginState.CONNECTING:
            self.move(PluginState.READY)

    async def _run_attempt(self, attempt: ConnectAttempt) -> None:
        """Run the connection of one attempt, from start to end."""
        error: Exception | None = None
        try:
            await attempt.run(partial(self._run_until_cancelled, attempt))
        except Exception as raised:  # noqa: BLE001 (connect() raises it, or the plugin fails with it)
            error = unwrap_group(raised)
        fatal = attempt.is_settled
        self._attempt = None
        if PluginState.IDLE in TRANSITIONS[self.state]:
            self.move(PluginState.IDLE)
        attempt.settle(error or PluginClosedError("the plugin was disconnected while it connected"))
        attempt.ended.set()
        self.link_down("disconnected")
        self._context.tasks.close_when_idle()
        if error is not None and fatal:
            self.fail(error)
        self._on_connection_end()

    async def _run_until_cancelled(self, attempt: ConnectAttempt) -> None:
        """Run the connection; that it returns by itself is an error.

        Raises:
            RuntimeError: It has returned.
        """
        await self._run(attempt)
        if not self.is_ending:
            attempt.check_return(self._run_name or "run_connection()")

    # Disconnecting.

    async def disconnect(self, cut: Callable[[], None], say_goodbye: Callable[[], Awaitable[None]]) -> bool:
        """End the connection; ``connect()`` may follow.

        Args:
            cut: Called at once; reports that no peer is connected.
            say_goodbye: Closes the links; cancelled after a second.

        Returns:
            Whether there was a connection.

        Cancellation: The connection is ended anyway, without a closing handshake.
        """
        attempt = self._attempt
        if attempt is None or self.state in FINAL:
            await trio.lowlevel.checkpoint()
            return False
        if PluginState.DISCONNECTING in TRANSITIONS[self.state]:
            self.move(PluginState.DISCONNECTING)
        cut()
        try:
            with trio.move_on_after(DISCONNECT_SECONDS):
                await say_goodbye()
        finally:
            attempt.cancel()
        await attempt.ended.wait()
        return True

    async def stop(self) -> None:
        """End the plugin for good: cancel its tasks, and wait for at most half a second until they have ended.

        Cancellation: Shielded, for at most half a second.
        """
        try:
            self.close()
        finally:
            self._context.tasks.cancel()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_SECONDS):
            await self._context.tasks.wait_ended()

    async def wait_ended(self) -> None:
        """Wait for at most half a second until no task of the plugin is left.

        Cancellation: Safe at any time.
        """
        with trio.move_on_after(END_SECONDS):
            await self._context.tasks.wait_ended()

    # The end.

    def fail(self, error: Exception) -> None:
        """End the plugin for good, because of a fatal error."""
        self._context.log.error("the plugin failed: %o", error)
        if self.state in FINAL:
            return
        failure = PluginFailedError(f"the plugin failed: {error}")
        failure.__cause__ = error
        self._failure = failure
        self._end(PluginState.FAILED, Failed(error))
        self._context.tasks.cancel()
        if self._on_failed is not None:
            self._on_failed(failure)

    def close(self) -> None:
        """End the plugin for good; does nothing in a final state."""
        if self.state not in FINAL:
            self._end(PluginState.CLOSED, None)

    def _end(self, state: PluginState, last: Event | None) -> None:
        """Enter a final state: every call fails, and the events end."""
        self.move(state)
        self.link_down("closed" if self._failure is None else "failed")
        self._wake_waiters()
        self.stream.close(last)
        if self._attempt is not None:
            self._attempt.settle(self._failure or PluginClosedError("the plugin was closed while it connected"))
        # Last, since it calls functions of the plugin's author.
        self._on_end(self._failure)

    def tasks_ended(self, crash: Exception | None, cancelled: bool) -> Exception | None:
        """Set the state after the plugin's tasks have ended; return the error to raise in the nursery."""
        self._release()
        if crash is not None:
            self.fail(unwrap_group(crash))
        elif cancelled and self.state is not PluginState.FAILED:
            self.close()
        if self._attempt is not None:
            # Its task was cancelled with the others.
            self._attempt.ended.set()
            self._attempt = None
        return self._failure if self._on_failed is None else None
