"""The options of the plugins ``btp`` and ``btp-accounts``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from ..accounts.info import HOST_INFO, HostInfo
from ..net.url import ServerUrl, parse_server
from ..options.base import PluginOptions
from ..options.checked import CheckedOptions
from ..options.fields import (
    CREDENTIAL,
    NESTED,
    PORT,
    SECRET,
    SSL_CONTEXT,
    SWITCH,
    TEXT,
    VALIDATOR,
    WORD,
    Refused,
    Validator,
    as_secret,
    as_tuple,
    is_text,
    is_word,
)
from ..secret import Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

__all__ = ["AccountsOptions", "BtpOptions", "HostInfo", "ListenerOptions"]

# An origin as browsers send it. Any other text in allowed_origins is a regular expression.
PLAIN_ORIGIN: Final = r"[a-z][a-z0-9+-]*://[A-Za-z0-9.:_-]+|null"
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


@frozen(eq=False, repr=False)
class ListenerOptions(CheckedOptions):
    """Where a plugin listens for its one peer, and the token that the peer must show.

    Attributes:
        port: The TCP port. 0 takes a free one; ``plugin.address`` then has its number. None opens no port: the
            application hands over connections with ``serve_stream()`` and ``serve_websocket()``.
        secret: The token that the peer authenticates with, as text or as a ``Secret``.
        host: The address to listen on.
        ssl_context: The server's TLS context. None listens without TLS.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    port: int | None = field(metadata=PORT)
    secret: Secret = field(converter=as_secret, metadata=CREDENTIAL)
    host: str = field(default="127.0.0.1", metadata=WORD)
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SSL_CONTEXT)


@frozen(kw_only=True, eq=False, repr=False)
class BtpOptions(PluginOptions):
    """Options of the ``btp`` plugin: a client that dials ``server``, or a ``listener`` for one peer.

    Attributes:
        server: The URL to dial, ``btp+ws(s)://account:token@host:port/path?query``. The account and the token are
            taken as written and moved to ``btp_account`` and ``btp_token``; ``server`` then has neither.
        listener: Where to listen, instead of dialing ``server``.
        btp_account: The account's name, if ``server`` has none.
        btp_token: The token, if ``server`` has none, as text or as a ``Secret``.
        btp_auth_flags: Further entries of the auth message: text, bytes, or what JSON can hold.
        ssl_context: The client's TLS context. None verifies the server with the system's certificates.
        allow_insecure: Whether the token may go without TLS to a host that is not this machine.

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
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SSL_CONTEXT)
    allow_insecure: bool = field(default=False, metadata=SWITCH)

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
        if server is None and values["ssl_context"] is not None:
            yield "ssl_context", "is for dialing a server, a listener has its own in listener.ssl_context"
        if isinstance(server, ServerUrl):
            yield from _find_server_conflicts(server, values)

    @property
    def address(self) -> str:
        """The server's URL without credentials."""
        return self._dialed.address

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
        host: The address to listen on.
        allowed_origins: The web pages whose scripts may connect, by the ``Origin`` header that browsers send. Each is
            an origin such as ``https://wallet.example``, or a regular expression that must match the whole origin.
            The server refuses browsers from any other origin.
        generate_account: True: an account's name is the hash of its token. False: it is the username that the
            client gives, which needs a store. None: the username if there is one and a store, else the hash.
        debug_host_ildcp_info: The server's ILP address and asset. If None, ``connect()`` asks the data handler, as a
            child asks its parent.
        ssl_context: The server's TLS context. None listens without TLS.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    port: int | None = field(default=3000, metadata=PORT)
    host: str = field(default="127.0.0.1", metadata=WORD)
    allowed_origins: tuple[str, ...] = field(
        default=(),
        converter=as_tuple,
        metadata={VALIDATOR: Validator("a tuple of origins or regular expressions", _are_origins)},
    )
    generate_account: bool | None = field(
        default=None,
        metadata={VALIDATOR: Validator("True, False or None", lambda value: value is None or isinstance(value, bool))},
    )
    debug_host_ildcp_info: HostInfo | None = field(default=None, metadata=HOST_INFO)
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SSL_CONTEXT)

    def allows(self, origin: str) -> bool:
        """Return whether a page of this origin may connect."""
        return any(
            allowed == origin or (not re.fullmatch(PLAIN_ORIGIN, allowed) and re.fullmatch(allowed, origin) is not None)
            for allowed in self.allowed_origins
        )
