"""One attempt of a plugin to connect, which several callers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..errors import copy_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["ConnectAttempt"]


class ConnectAttempt(trio.TaskStatus[None]):
    """One run of the connection, which several callers of ``connect()`` share; the run's ``task_status``.

    Args:
        on_ready: Called when the connection is ready.
    """

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self._on_ready = on_ready
        self._scope = trio.CancelScope()
        self._settled = trio.Event()
        self._waiting = 0
        self._error: Exception | None = None
        self.ended: trio.Event = trio.Event()

    @property
    def is_settled(self) -> bool:
        """Whether the attempt has succeeded or failed."""
        return self._settled.is_set()

    @property
    def is_abandoned(self) -> bool:
        """Whether the run is cancelled, or past its end."""
        return self._scope.cancel_called or self.ended.is_set()

    def started(self, value: None = None) -> None:  # noqa: ARG002 (the signature is Trio's)
        """Report that the attempt succeeded; does nothing once it is abandoned."""
        if not self.is_settled and not self.is_abandoned:
            self._on_ready()
            self._settled.set()

    def check_return(self, run: str) -> None:
        """Check that the run may return: it was cancelled.

        Args:
            run: The function that has returned, for the error.

        Raises:
            RuntimeError: It returned by itself.
        """
        if not self.is_abandoned:
            when = "" if self.is_settled else ", without task_status.started()"
            raise RuntimeError(
                f"{run} returned{when}; it has to run until it is cancelled: let it end with 'await "
                "trio.sleep_forever()', or raise the error that ends the connection"
            )

    def settle(self, error: Exception) -> None:
        """Report that the attempt failed; does nothing when it was settled before."""
        if not self.is_settled:
            self._error = error
            self._settled.set()

    def cancel(self) -> None:
        """End the run."""
        self._scope.cancel()

    async def run(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run until the function ends or ``cancel()`` is called."""
        try:
            with self._scope:
                await function()
        finally:
            self._scope.cancel()

    async def wait_settled(self) -> None:
        """Wait until the attempt has succeeded.

        Raises:
            Exception: The error of the attempt; each caller gets its own copy.

        Cancellation: This caller stops waiting; if it was the last one, the attempt is cancelled.
        """
        self._waiting += 1
        try:
            await self._settled.wait()
        finally:
            self._waiting -= 1
            if not self._waiting and not self.is_settled:
                self._scope.cancel()
        if self._error is not None:
            # Copied for the next caller before raising adds a traceback.
            error, self._error = self._error, copy_error(self._error)
            raise error
