"""What the plugins ``http`` and ``http-accounts`` have in common."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, ClassVar

import trio
from attrs import evolve

from ..errors import InvalidFieldsError, InvalidServicesError, MoneyLevelError, PluginClosedError
from ..plugin import LedgerPlugin
from ..registration import register_money_handler
from ..runtime.handlers import check_transactional
from ..transfer import check_amount, check_key
from .asgi import AsgiApp
from .server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..errors import LedgerPluginError, PluginFailedError
    from ..options.base import PluginOptions
    from ..registration import RegisterMoney, Registers, RegisterTransactional
    from ..runtime.handlers import MoneyHandler, TransactionalMoneyHandler
    from ..services import PluginServices
    from ..transfer import Transfer
    from .client import Client
    from .gate import Gate
    from .options import IncomingOptions

__all__ = ["HttpEndpoint", "refuse_money", "refuse_transactional_money_handler", "register_idle_money_handler"]

NO_MONEY = "ILP over HTTP carries no money; settle with the peer in another way"


def register_idle_money_handler(self: Registers, handler: MoneyHandler) -> None:
    """Set a money handler, which is never called: ILP over HTTP carries no money. The log gets a warning.

    The handler is checked as in ``LedgerPlugin.register_money_handler``.

    Raises:
        TypeError: ``handler`` is not an async function, or cannot be called with one argument.
        MoneyHandlerAlreadyRegisteredError: A money handler is set already.
    """
    register_money_handler(self, handler)
    self.context.log.warn("the money handler is never called: ILP over HTTP carries no money")


def refuse_transactional_money_handler(_: Registers, handler: TransactionalMoneyHandler) -> None:
    """Raise: there is no journal, because ILP over HTTP carries no money.

    Raises:
        TypeError: As ``LedgerPlugin.register_transactional_money_handler`` documents.
        InvalidServicesError: Always, for a handler that is right, whatever the store is.
    """
    check_transactional(handler)
    raise InvalidServicesError("a transactional money handler has no journal here: ILP over HTTP carries no money")


class HttpEndpoint(LedgerPlugin):
    """Serves requests over HTTP, and sends them; it carries no money."""

    register_money_handler: ClassVar[RegisterMoney] = register_idle_money_handler
    """Set a money handler, which is never called: HTTP carries no money."""
    register_transactional_money_handler: ClassVar[RegisterTransactional] = refuse_transactional_money_handler
    """Raise ``InvalidServicesError``: HTTP carries no money."""

    def __init__(
        self,
        options: PluginOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        # Without the store: there is no money to keep there.
        super().__init__(options, evolve(services, store=None), nursery, on_failed)
        self.services: PluginServices = services
        self.ids: Iterator[int] = count(1)
        self._http_server: HttpServer | None = None
        self.client: Client | None = None

    def open_server(self, incoming: IncomingOptions, gate: Gate) -> None:
        """Make the server; a plugin without one only sends."""
        self._http_server = HttpServer(self.context, incoming, gate, is_wanted=self._is_wanted)

    def _is_wanted(self) -> bool:
        return self.is_connected() and not self.is_disconnecting

    @property
    def server(self) -> HttpServer:
        """The server that accepts connections.

        Raises:
            InvalidFieldsError: This plugin only sends.
        """
        if self._http_server is None:
            raise InvalidFieldsError("this plugin only sends; one with the option incoming serves requests")
        return self._http_server

    @property
    def address(self) -> str:
        """The URL of the own endpoint, without its path; empty if there is no port.

        With port 0, it has the bound port once ``connect()`` has returned.
        """
        return "" if self._http_server is None else self._http_server.address

    async def run_endpoint(self, listening: Callable[[], None]) -> None:
        """Listen and serve until cancelled.

        Args:
            listening: Called once the port is bound, or at once if there is none.

        Cancellation: Stops listening, and drops every connection.
        """
        broken = False
        try:
            if self._http_server is None:
                listening()
                await trio.sleep_forever()
            else:
                await self._http_server.run(listening)
        except Exception:
            broken = True
            raise
        finally:
            for exchange in self.exchanges():
                exchange.abort("disconnected", closed=not broken)
            if self.client is not None:
                self.client.close(lambda: PluginClosedError("the plugin was disconnected; nothing was sent"))

    def fail_calls(self, make_error: Callable[[], LedgerPluginError]) -> None:
        """Fail every call in flight and every call that waits for a connection, each with an error of its own."""
        super().fail_calls(make_error)
        if self.client is not None:
            self.client.close(make_error)

    async def serve_stream(self, stream: trio.abc.Stream, *, peer: str = "") -> None:
        """Serve a stream that the application's own listener accepted, until it ends.

        It is treated like a connection to the plugin's port. Returns when the connection has ended, for any reason. The
        stream is closed then.

        Args:
            stream: The stream; with TLS, a ``trio.SSLStream``. Nothing else may use it after this call.
            peer: The peer's address, for logs and for the limits by address. If empty, it is taken from the stream.

        Raises:
            TypeError: An argument has another type.
            InvalidFieldsError: This plugin only sends.
            NotConnectedError: The plugin is not connected. The stream is left as it was, as with every error here.
            PluginClosedError: The plugin was closed before.
            PluginFailedError: The plugin had failed before.

        Cancellation: Ends the connection at once. Its handlers go on; their replies are dropped.
        """
        if not isinstance(peer, str):
            raise TypeError(f"peer is text, not {type(peer).__name__}")
        server = self.server
        self.check_usable()
        await server.serve_stream(stream, peer)

    @property
    def asgi_app(self) -> AsgiApp:
        """The endpoint as an ASGI application, to be mounted in the application's own server on Trio.

        Its requests are treated like those to the plugin's port. While the plugin is not connected, they get status
        503.

        Raises:
            InvalidFieldsError: This plugin only sends.
        """
        return AsgiApp(self.server)

    async def send_money(self, amount: str | int, *, idempotency_key: str | None = None) -> None:
        """Raise: ILP over HTTP carries no money.

        Args:
            amount: As in ``LedgerPlugin.send_money``.
            idempotency_key: Likewise.

        Raises:
            MoneyLevelError: Always, for arguments that are right. Nothing was sent.
            TypeError: An argument has another type.
            InvalidFieldsError: An argument is out of its range.
            PluginClosedError: The plugin was closed.
            PluginFailedError: The plugin has failed.

        Cancellation: Safe at any time.
        """
        await refuse_money(self, amount, idempotency_key)

    async def carry_money(self, transfer: Transfer) -> None:  # noqa: ARG002 (no transfer can be carried)
        """Raise ``MoneyLevelError``."""
        await trio.lowlevel.checkpoint()
        raise MoneyLevelError(NO_MONEY)


async def refuse_money(plugin: LedgerPlugin, amount: str | int, idempotency_key: str | None) -> None:
    """Raise the error of ``send_money``, after the checks that every plugin makes.

    Raises:
        MoneyLevelError: The arguments are right, and the plugin is open.
    """
    check_amount(amount)
    check_key(idempotency_key)
    plugin.check_thread()
    await trio.lowlevel.checkpoint_if_cancelled()
    plugin.check_usable()
    raise MoneyLevelError(NO_MONEY)
