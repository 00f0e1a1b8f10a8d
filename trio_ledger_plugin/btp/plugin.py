"""The ``btp`` plugin: one account with one peer over BTP/2.0 (RFC-0023)."""

from __future__ import annotations

from functools import partial
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, ClassVar

from ..errors import InvalidFieldsError, NotAcceptedError, PluginFailedError
from .client import Client
from .link import CLOSE_NORMAL, Link
from .options import BtpOptions, allows_origin
from .pending import Decisions
from .server import BtpServer, Server
from .session import request_ids

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from ..services import PluginServices
    from ..websocket.requests import Handshake

__all__ = ["BtpPlugin"]


class BtpPlugin(BtpServer):
    """A client of a BTP server, or a listener for one BTP client, as its options say."""

    options_class: ClassVar[type[BtpOptions]] = BtpOptions
    options: BtpOptions

    def __init__(
        self,
        options: BtpOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        on_failed: Callable[[PluginFailedError], None] | None = None,
    ) -> None:
        super().__init__(options, services, nursery, on_failed)
        self._link: Link | None = None
        self.money.call_on_open(self.drop_downgraded)
        ids = request_ids()
        self._side: Client | Server
        listener = options.listener
        if listener is None:
            self._side = Client(
                self.context,
                options,
                ids,
                make_offer=partial(self.money.make_offer, "", None),
                attach=self._attach_link,
                detach=self._detach_link,
                is_wanted=self._is_link_wanted,
                on_failed_try=self._note_failed_try,
            )
        else:
            digest = sha256(listener.secret.reveal().encode()).digest()
            self._side = Server(
                self.context,
                ids,
                host=listener.host,
                port=listener.port,
                ssl_context=listener.ssl_context,
                proxy_protocol=listener.proxy_protocol,
                decisions=Decisions(
                    make_offer=self.money.make_offer,
                    make_room=_has_room,
                    attach=self._attach_link,
                    detach=self._detach_link,
                    is_wanted=self._is_link_wanted,
                    identify=partial(_check_token, digest),
                    verify=None,
                    delay=_no_delay,
                ),
                refuse=partial(_refuse_browsers, listener.allowed_origins),
            )

    @property
    def address(self) -> str:
        """The URL that is dialed or listened at, without credentials."""
        return self._side.address

    def _is_link_wanted(self) -> bool:
        return not self.is_disconnecting

    def _note_failed_try(self, error: Exception) -> None:
        self.connect_error = error

    @property
    def server(self) -> Server:
        """The server that accepts connections.

        Raises:
            InvalidFieldsError: This plugin dials.
        """
        if not isinstance(self._side, Server):
            raise InvalidFieldsError("this plugin dials; only a plugin with the option listener serves connections")
        return self._side

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the client or the listener."""
        broken = False
        try:
            await self._side.run(task_status.started)
        except Exception:
            broken = True
            raise
        finally:
            if self._link is not None:
                self._link.abort("disconnected", closed=not broken)

    def _attach_link(self, link: Link) -> None:
        """Use an authenticated link, and close the one before."""
        if self._link is not None:
            self._link.shut(CLOSE_NORMAL, "replaced by a new connection")
        self._link = link
        self.log.debug("connected with %s", link.peer)
        # First: authenticated() serves the messages that were held, and one of them may end the link.
        self.attach(link)
        link.authenticated()

    def _detach_link(self, link: Link, reason: str) -> None:
        """Stop using a link that is lost; does nothing for a link that is not in use."""
        if link is self._link:
            self._link = None
            self.log.info("the connection with %s ended: %s", link.peer, reason)
            self.detach(link, reason)


def _has_room(_account: str) -> None:
    """Return: a new connection replaces the one before."""


def _no_delay(_account: str) -> float:
    """Return 0: the one peer delays only itself."""
    return 0.0


def _check_token(digest: bytes, _username: str | None, token: bytes, _path: str) -> str:
    """Return the account of a token, which is empty for a plugin with one peer.

    Raises:
        NotAcceptedError: The token is wrong.
    """
    if not compare_digest(sha256(token).digest(), digest):
        raise NotAcceptedError("invalid auth_token")
    return ""


def _refuse_browsers(allowed: tuple[str, ...], handshake: Handshake) -> int | None:
    """Refuse the script of a web page that is not allowed: it would act with the rights of the page's visitor."""
    return 403 if handshake.origin is not None and not allows_origin(allowed, handshake.origin) else None
