"""The options of the plugins ``btp`` and ``btp-accounts``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from ..accounts.info import HOST_INFO, HostInfo
from ..net.request_options import HEADER_TEXT, HEADERS, PROXY, as_headers, as_proxy
from ..net.tunnel import find_proxy, parse_proxy
from ..net.url import ServerUrl, parse_server
from ..options.base import PluginOptions
from ..options.checked import CheckedOptions
from ..options.fields import (
    CLIENT_CONTEXT,
    COUNT,
    CREDENTIAL,
    HOST,
    NESTED,
    OPTIONAL_SWITCH,
    PORT,
    SECONDS,
    SECRET,
    SERVER_CONTEXT,
    SWITCH,
    TEXT,
    VALIDATOR,
    Refused,
    Validator,
    as_host,
    as_secret,
    as_tuple,
    is_text,
    is_word,
)
from ..secret import Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from ..net.tunnel import Proxy

__all__ = ["AccountsOptions", "BtpOptions", "HostInfo", "ListenerOptions", "allows_origin"]

# An origin as browsers send it. Any other text in allowed_origins is a regular expression.
PLAIN_ORIGIN: Final = r"[a-z][a-z0-9+-]*://[A-Za-z0-9.:_-]+|null"
NO_PROXIES: Final = "set without trusted_proxies, which must have the addresses of the proxies that may connect"
# Entries of the auth message that the plugin writes itself. RFC-0023 forbids a second entry of the same name.
OWN_AUTH_ENTRIES: Final = frozenset({"auth", "auth_username", "auth_token", "transfer_keys"})


def _are_origins(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    try:
        return all(isinstance(item, str) and item != "" and re.compile(item) for item in value)
    except re.error:
        return False


def _are_flags(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        is_word(name) and name.isascii() and len(name) < 256 and name not in OWN_AUTH_ENTRIES and _is_flag(flag)
        for name, flag in value.items()
    )


def _is_flag(value: object) -> bool:
    if isinstance(value, str | bytes):
        return isinstance(value, bytes) or is_text(value)
    try:
        return is_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return False


def _as_copy(value: Mapping[str, object]) -> Mapping[str, object]:
    return dict(value) if isinstance(value, Mapping) else value


def _as_url(value: str | None) -> Any:  # noqa: ANN401  # a ServerUrl or Refused until the constructor has ended
    """Parse a URL; the constructor splits the result into fields."""
    if not is_text(value):
        return value
    try:
        return parse_server(value)
    except ValueError as error:
        return Refused.because(str(error))


ORIGINS: Final = {VALIDATOR: Validator("a tuple of origins or regular expressions", _are_origins)}


@frozen(eq=False, repr=False)
class ListenerOptions(CheckedOptions):
    """Where a plugin listens for its one peer, and the token that the peer must show.

    Attributes:
        port: The TCP port. 0 takes a free one; ``plugin.address`` then has its number. None opens no port: the
            application hands over connections with ``serve_stream()`` and ``serve_websocket()``.
        secret: The token that the peer authenticates with, as text or as a ``Secret``.
        host: The address to listen on. None, or ``"*"``: every address of this machine, IPv4 and IPv6, with one port.
        ssl_context: The server's TLS context. None listens without TLS.
        proxy_protocol: Whether each connection to the port begins with a header of the PROXY protocol, version 1 or 2,
            by which a proxy names the client. Only ``trusted_proxies`` may connect then.
        allowed_origins: The web pages whose scripts may connect, as for ``btp-accounts``. By default, there are none.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    port: int | None = field(metadata=PORT)
    secret: Secret = field(converter=as_secret, metadata=CREDENTIAL)
    host: str | None = field(default="127.0.0.1", converter=as_host, metadata=HOST)
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SERVER_CONTEXT)
    proxy_protocol: bool = field(default=False, metadata=SWITCH)
    allowed_origins: tuple[str, ...] = field(default=(), converter=as_tuple, metadata=ORIGINS)


@frozen(kw_only=True, eq=False, repr=False)
class BtpOptions(PluginOptions):
    """Options of the ``btp`` plugin: a client that dials ``server``, or a ``listener`` for one peer.

    Attributes:
        server: The URL to dial, ``btp+ws(s)://account:token@host:port/path?query``. The account and the token are
            moved to ``btp_account`` and ``btp_token``; ``server`` then has neither. As in JavaScript, characters such
            as ``=``, ``/`` and blanks are percent-encoded in them, and nothing is decoded.
        listener: Where to listen, instead of dialing ``server``.
        btp_account: The account's name, if ``server`` has none.
        btp_token: The token, if ``server`` has none, as text or as a ``Secret``.
        btp_auth_flags: Further entries of the auth message: text, bytes, or what JSON can hold.
        ssl_context: The client's TLS context. None verifies the server with the system's certificates.
        allow_insecure: Whether the token may go without TLS to a host that is not this machine.
        headers: Further headers of the handshake, for a proxy or a gateway before the server. Values that are a
            ``Secret``, and those of ``Authorization`` and ``Cookie``, are kept out of the log.
        user_agent: The ``User-Agent`` header; empty for none.
        proxy: The HTTP proxy to go through, ``http://user:password@host:port``, as text or as a ``Secret``. None: the
            one that the environment names in ``HTTPS_PROXY``, or in ``HTTP_PROXY`` for ``btp+ws://``, unless the
            server is in ``NO_PROXY`` or on this machine. Empty: none.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    server: str | None = field(
        default=None,
        converter=_as_url,
        metadata={
            VALIDATOR: Validator(
                "a URL (str) or None", lambda value: value is None or isinstance(value, ServerUrl), shown=False
            )
        },
    )
    listener: ListenerOptions | None = field(
        default=None,
        metadata={
            VALIDATOR: Validator(
                "ListenerOptions or None",
                lambda value: value is None or isinstance(value, ListenerOptions),
                shown=False,
            ),
            NESTED: ListenerOptions,
        },
    )
    btp_account: str = field(default="", metadata=TEXT)
    btp_token: Secret = field(default=Secret(""), converter=as_secret, metadata=SECRET)
    btp_auth_flags: Mapping[str, object] = field(
        factory=dict,
        converter=_as_copy,
        metadata={
            VALIDATOR: Validator(
                "a mapping of names of 1 to 255 ASCII characters, none of "
                f"{', '.join(sorted(OWN_AUTH_ENTRIES))}, to text, bytes or what JSON can hold",
                _are_flags,
                shown=False,
            )
        },
        repr=lambda flags: repr(sorted(flags)),
    )
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=CLIENT_CONTEXT)
    allow_insecure: bool = field(default=False, metadata=SWITCH)
    headers: Mapping[str, str | Secret] = field(
        factory=dict,
        converter=as_headers,
        metadata=HEADERS,
        repr=lambda headers: repr(sorted(headers)),
    )
    user_agent: str = field(default="trio-ledger-plugin", metadata=HEADER_TEXT)
    proxy: Secret | None = field(default=None, converter=as_proxy, metadata=PROXY)

    _url: ServerUrl | None = field(init=False, default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        url: ServerUrl | None = self.server  # type: ignore[assignment]  # as the converter left it
        if url is not None:
            # The object is still under construction. The credentials are in fields of their own from here on.
            object.__setattr__(self, "server", url.address)
            object.__setattr__(self, "_url", url)
            if url.account or url.token:
                object.__setattr__(self, "btp_account", url.account)
                object.__setattr__(self, "btp_token", url.token)

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Check that there is one end, one set of credentials, and no token in the clear."""
        server, listener = values["server"], values["listener"]
        if server is None and listener is None:
            yield "server", "missing, must be the URL to dial, or give listener instead"
        if server is not None and listener is not None:
            yield "server", "given together with listener, must be one of the two"
        for name in ("headers", "proxy"):
            if server is None and values[name]:
                yield name, "is for dialing a server, and this end listens"
        if server is None and values["ssl_context"] is not None:
            yield "ssl_context", "is for dialing a server, a listener has its own in listener.ssl_context"
        if isinstance(listener, ListenerOptions) and listener.proxy_protocol and not values["trusted_proxies"]:
            yield "listener.proxy_protocol", NO_PROXIES
        if isinstance(server, ServerUrl):
            yield from _find_server_conflicts(server, values)

    @property
    def address(self) -> str:
        """The server's URL without credentials."""
        return self._dialed.address

    @property
    def is_escaped(self) -> bool:
        """Whether the account or the token in the server's URL was percent-encoded."""
        return self._dialed.is_escaped

    @property
    def has_percent(self) -> bool:
        """Whether the account or the token in the server's URL has a ``%``, as written or for another character."""
        return "%" in self._dialed.account + self._dialed.token.reveal()

    @property
    def tls(self) -> bool:
        """Whether the server is dialed with TLS."""
        return self._dialed.tls

    @property
    def host(self) -> str:
        """The server's host; an IPv6 address without its brackets."""
        return self._dialed.host

    @property
    def port(self) -> int:
        """The server's port. If the URL has none, it is 80, or 443 with TLS."""
        return self._dialed.port

    @property
    def resource(self) -> str:
        """The path and query to ask the server for; at least ``/``."""
        return self._dialed.resource

    def request_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the further headers of the handshake."""
        values = {**({"User-Agent": self.user_agent} if self.user_agent else {}), **self.headers}
        return [
            (name.encode(), (value.reveal() if isinstance(value, Secret) else value).encode("latin-1"))
            for name, value in values.items()
        ]

    def find_proxy(self) -> Proxy | None:
        """Return the proxy to go through, if there is one.

        Raises:
            UnreachableError: The environment names one by a bad URL.
        """
        if self.proxy is not None:
            return parse_proxy(self.proxy.reveal()) if self.proxy else None
        return None if self._dialed.is_loopback else find_proxy(self.host, tls=self.tls)

    @property
    def host_header(self) -> str:
        """The value of the HTTP Host header."""
        return self._dialed.host_header

    @property
    def _dialed(self) -> ServerUrl:
        if self._url is None:
            raise AttributeError("this end listens: there is no server to dial")
        return self._url


def _find_server_conflicts(url: ServerUrl, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    account, token = values["btp_account"], values["btp_token"]
    if (url.account or url.token) and (account or token):
        yield "server", "has an account or token in it, and btp_account or btp_token is given too: give them once"
    if (url.token or token) and not url.tls and not url.is_loopback and values["allow_insecure"] is not True:
        yield (
            "allow_insecure",
            f"not set, and the token would go to {url.host!r} unencrypted; the server must be btp+wss:// (or set this)",
        )
    if values["ssl_context"] is not None and not url.tls:
        yield "ssl_context", "has no use with btp+ws://, the server must be btp+wss://"


@frozen(kw_only=True, eq=False, repr=False)
class AccountsOptions(PluginOptions):
    """Options of the ``btp-accounts`` plugin, a server for many accounts; the fields of ilp-plugin-mini-accounts.

    Attributes:
        port: The TCP port. 0 takes a free one; ``plugin.address`` then has its number. None opens no port: the
            application hands over connections with ``serve_stream()`` and ``serve_websocket()``.
        host: The address to listen on. None, or ``"*"``: every address of this machine, IPv4 and IPv6, with one port.
        allowed_origins: The web pages whose scripts may connect, by the ``Origin`` header that browsers send. Each is
            an origin such as ``https://wallet.example``, or a regular expression that must match the whole origin.
            The server refuses browsers from any other origin.
        generate_account: True: an account's name is the hash of its token. False: it is the username that the
            client gives, which needs a store. None: the username if there is one and a store, else the hash.
        debug_host_ildcp_info: The server's ILP address and asset. If None, ``connect()`` asks the data handler, as a
            child asks its parent.
        ssl_context: The server's TLS context. None listens without TLS.
        proxy_protocol: Whether each connection to the port begins with a header of the PROXY protocol, version 1 or 2,
            by which a proxy names the client. Only ``trusted_proxies`` may connect then.
        account_from_path: Whether a client may name its account in the path of the URL instead of a username, as
            interledger-rs does: ``/accounts/NAME/ilp/btp``.
        max_links_per_account: The number of connections of one account. A further one replaces the oldest that is idle,
            or is refused.
        max_links: The number of connections of all accounts. An eighth of them is kept for accounts that have none.
            None: as many as there are file descriptors for, with some left for other purposes.
        max_server_handlers: The number of handlers that run at once for all accounts; ``max_handlers`` is the number
            for one account. An eighth is kept for accounts that have none, as with the two limits that follow.
        max_server_handler_bytes: The requests, and their responses, that the running handlers of all accounts may hold.
        max_server_backlog_bytes: The requests of all accounts that may wait for a handler.
        expiry_margin: How many seconds before its own expiry a forwarded Prepare expires at the next hop.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    port: int | None = field(default=3000, metadata=PORT)
    host: str | None = field(default="127.0.0.1", converter=as_host, metadata=HOST)
    allowed_origins: tuple[str, ...] = field(default=(), converter=as_tuple, metadata=ORIGINS)
    generate_account: bool | None = field(default=None, metadata=OPTIONAL_SWITCH)
    debug_host_ildcp_info: HostInfo | None = field(default=None, metadata=HOST_INFO)
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SERVER_CONTEXT)
    proxy_protocol: bool = field(default=False, metadata=SWITCH)
    account_from_path: bool = field(default=False, metadata=SWITCH)
    max_links_per_account: int = field(default=16, metadata=COUNT)
    max_links: int | None = field(
        default=None,
        metadata={
            VALIDATOR: Validator(
                "None or a whole number above 0 and below 2**63",
                lambda value: value is None or COUNT[VALIDATOR].accepts(value),
            )
        },
    )
    max_server_handlers: int = field(default=16384, metadata=COUNT)
    max_server_handler_bytes: int = field(default=256 * 1024 * 1024, metadata=COUNT)
    max_server_backlog_bytes: int = field(default=128 * 1024 * 1024, metadata=COUNT)
    expiry_margin: float = field(default=1.0, metadata=SECONDS)

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Check that there is a proxy to trust if one is expected."""
        if values["proxy_protocol"] is True and not values["trusted_proxies"]:
            yield "proxy_protocol", NO_PROXIES

    def allows(self, origin: str) -> bool:
        """Return whether a page of this origin may connect."""
        return allows_origin(self.allowed_origins, origin)


def allows_origin(allowed_origins: tuple[str, ...], origin: str) -> bool:
    """Return whether a page of this origin may connect."""
    return any(
        allowed == origin or (not re.fullmatch(PLAIN_ORIGIN, allowed) and re.fullmatch(allowed, origin) is not None)
        for allowed in allowed_origins
    )
