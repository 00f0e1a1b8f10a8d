"""The connector of a plugin that has no connection of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from ..errors import NotConnectedError, PluginFailedError
from ..events import Failed
from .connector import DISCONNECT_SECONDS, FINAL, Connector, PluginState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from .context import Context
    from .exchange import Exchange

__all__ = ["HostedConnector"]


class HostedConnector(Connector):
    """The connector of an account's plugin, whose connections its server accepts.

    Args:
        context: What the parts of the plugin share.
        is_listening: Returns whether the server is connected.
        exchanges: Returns the exchanges of the account's links.
        allow: Called with False when the account is disconnected, after which the server refuses its client, and with
            True when it may connect again.
        on_end: Called once: with None when the plugin is closed, or with the fatal error when it has failed.
    """

    def __init__(
        self,
        context: Context,
        *,
        is_listening: Callable[[], bool],
        exchanges: Callable[[], Sequence[Exchange]],
        allow: Callable[[bool], None],
        on_end: Callable[[PluginFailedError | None], None],
    ) -> None:
        super().__init__(
            context,
            _never,
            claim=_do_nothing,
            release=_do_nothing,
            on_connection_end=_do_nothing,
            on_end=on_end,
            on_failed=_ignore,
        )
        self._is_listening = is_listening
        self._exchanges = exchanges
        self._allow = allow
        self.state = PluginState.READY

    async def connect(self, seconds: float, hint: str = "") -> None:  # noqa: ARG002 (there is nothing to wait for)
        """Let the account's client connect, and check that the server listens.

        Raises:
            NotConnectedError: The server does not listen.

        Cancellation: Safe at any time.
        """
        await trio.lowlevel.checkpoint()
        self.check_usable()
        if not self._is_listening():
            raise NotConnectedError("the server does not listen; connect() it first")
        self._allow(True)

    async def disconnect(self, cut: Callable[[], None], say_goodbye: Callable[[], Awaitable[None]]) -> bool:
        """End the account's connections; its client cannot connect again before ``connect()``.

        Cancellation: The connections are ended anyway, without a closing handshake.
        """
        self._allow(False)
        # Only these: connect() may be called meanwhile, and the client open others.
        exchanges = self._exchanges()
        cut()
        try:
            with trio.move_on_after(DISCONNECT_SECONDS):
                await say_goodbye()
        finally:
            for exchange in exchanges:
                exchange.abort("disconnected", closed=True)
        return False

    async def stop(self) -> None:
        """End the account's plugin and drop its connections; the tasks are the server's and go on.

        Cancellation: None comes from here, where it would replace the error for which the plugin is closed.
        """
        try:
            self.close()
        finally:
            for exchange in self._exchanges():
                exchange.abort("closed", closed=True)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def fail(self, error: Exception) -> None:
        """End the plugin for good; the server's tasks go on."""
        if self.state not in FINAL:
            self._failure = PluginFailedError(f"the plugin failed: {error}")
            self._failure.__cause__ = error
            self._end(PluginState.FAILED, Failed(error))


async def _never(_task_status: trio.TaskStatus[None]) -> None:
    raise AssertionError("a hosted plugin has no connection of its own")


def _do_nothing() -> None:
    pass


def _ignore(_failure: PluginFailedError) -> None:
    pass
