"""The options of the plugins ``btp`` and ``btp-accounts``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from ..codec import ilp
from ..net.url import ServerUrl, parse_server
from ..options.base import PluginOptions
from ..options.fields import (
    CREDENTIAL,
    FLAGS,
    NAME,
    PORT,
    RULE,
    SECRET,
    SSL_CONTEXT,
    SWITCH,
    TEXT,
    WORD,
    CheckedOptions,
    Rule,
    as_secret,
    is_text,
)
from ..secret import Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

__all__ = ["AccountsOptions", "BtpOptions", "HostInfo", "ListenerOptions"]

# An origin as browsers send it; whatever else stands in allowed_origins is a regular expression.
PLAIN_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+-]*://[A-Za-z0-9.:_-]+|null")


def _are_origins(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    try:
        return all(isinstance(item, str) and item != "" and re.compile(item) for item in value)
    except re.error:
        return False


def _as_tuple(value: Any) -> Any:  # noqa: ANN401 (whatever it is, the field's rule judges it)
    return tuple(value) if isinstance(value, list) else value


def _is_scale(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _as_copy(value: Mapping[str, object]) -> Mapping[str, object]:
    return dict(value) if isinstance(value, Mapping) else value


@frozen
class ListenerOptions(CheckedOptions):
    """Where a plugin listens for its one peer, and the token that the peer must show.

    Attributes:
        port: The TCP port; 0 takes a free one, which ``plugin.address`` tells. None opens none: connections are
            handed over with ``serve_stream()`` and ``serve_websocket()`` only.
        secret: The token that the peer authenticates with; text is taken too.
        host: The address to listen on.
        ssl_context: A server's TLS context; None listens without TLS.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    port: int | None = field(metadata=PORT)
    secret: Secret = field(converter=as_secret, metadata=CREDENTIAL)
    host: str = field(default="127.0.0.1", metadata=WORD)
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SSL_CONTEXT)


@frozen(kw_only=True)
class BtpOptions(PluginOptions):
    """Options of the ``btp`` plugin: a client that dials ``server``, or a ``listener`` for one peer.

    Attributes:
        server: ``btp+ws(s)://account:token@host:port/path?query``; the account and the token are taken out of it
            as written and stand in ``btp_account`` and ``btp_token``.
        listener: Where to listen instead.
        btp_account: The account name, instead of one in ``server``.
        btp_token: The token, instead of one in ``server``; text is taken too.
        btp_auth_flags: Further entries of the authentication message: text, bytes, or what JSON can hold.
        ssl_context: The client's TLS context; None verifies the server by the system's certificates.
        allow_insecure: Send the token without TLS to a host that is not this machine.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    server: str | None = field(
        default=None,
        metadata={RULE: Rule("a URL (str) or None", lambda value: value is None or is_text(value), shown=False)},
    )
    listener: ListenerOptions | None = field(
        default=None,
        metadata={
            RULE: Rule(
                "ListenerOptions or None",
                lambda value: value is None or isinstance(value, ListenerOptions),
                shown=False,
                nested=ListenerOptions,
            )
        },
    )
    btp_account: str = field(default="", metadata=TEXT)
    btp_token: Secret = field(default=Secret(""), converter=as_secret, metadata=SECRET)
    btp_auth_flags: Mapping[str, object] = field(
        factory=dict, converter=_as_copy, metadata=FLAGS, repr=lambda flags: repr(sorted(flags))
    )
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SSL_CONTEXT)
    allow_insecure: bool = field(default=False, metadata=SWITCH)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.server is not None:
            url = parse_server(self.server)
            # Frozen for everybody else: from here on the credentials stand in one place.
            object.__setattr__(self, "server", url.address)
            if url.account or url.token:
                object.__setattr__(self, "btp_account", url.account)
                object.__setattr__(self, "btp_token", url.token)

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Give what is wrong between the fields: one end only, credentials once, no token in the clear."""
        server, listener = values.get("server"), values.get("listener")
        if server is None and listener is None:
            yield "server", "missing, must be the URL to dial, or give listener instead"
        if server is not None and listener is not None:
            yield "server", "given together with listener, must be one of the two"
        if server is None and values.get("ssl_context") is not None:
            yield "ssl_context", "is for dialing a server, a listener has its own in listener.ssl_context"
        if isinstance(server, str):
            yield from _find_server_conflicts(server, values)

    @property
    def address(self) -> str:
        """The server's URL without credentials."""
        return self._url.address

    @property
    def tls(self) -> bool:
        """Whether the server is dialed with TLS."""
        return self._url.tls

    @property
    def host(self) -> str:
        """The server's host; an IPv6 address without its brackets."""
        return self._url.host

    @property
    def port(self) -> int:
        """The server's port; 80, or 443 with TLS, where the URL has none."""
        return self._url.port

    @property
    def resource(self) -> str:
        """The path and query to ask the server for; at least ``/``."""
        return self._url.resource

    @property
    def host_header(self) -> str:
        """The value of the HTTP Host header."""
        return self._url.host_header

    @property
    def _url(self) -> ServerUrl:
        if self.server is None:
            raise AttributeError("this end listens: there is no server to dial")
        return parse_server(self.server)


def _find_server_conflicts(server: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    problem = ""
    try:
        url = parse_server(server)
    except ValueError as error:
        problem = str(error)
    if problem:
        yield "server", problem
        return
    account, token = values.get("btp_account"), values.get("btp_token")
    if (url.account or url.token) and (account or token):
        yield "server", "has an account or token in it, and btp_account or btp_token is given too: give them once"
    if (url.token or token) and not url.tls and not url.is_loopback and values.get("allow_insecure") is not True:
        yield "server", f"would send the token to {url.host!r} unencrypted, must be btp+wss:// (or set allow_insecure)"
    if values.get("ssl_context") is not None and not url.tls:
        yield "ssl_context", "has no use with btp+ws://, the server must be btp+wss://"


@frozen
class HostInfo(CheckedOptions):
    """What the server's accounts are told of it (RFC-0031).

    Attributes:
        client_address: The server's own ILP address; its accounts' addresses lie below it.
        asset_scale: How many decimal places the unit of amounts lies below the asset's own unit, 0 to 255.
        asset_code: The asset, such as ``"XRP"``.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    client_address: str = field(
        metadata={
            RULE: Rule(
                "an ILP address, such as example.parent", lambda value: isinstance(value, str) and ilp.is_address(value)
            )
        }
    )
    asset_scale: int = field(metadata={RULE: Rule("a whole number from 0 to 255", _is_scale)})
    asset_code: str = field(metadata=NAME)


@frozen(kw_only=True)
class AccountsOptions(PluginOptions):
    """Options of the ``btp-accounts`` plugin, a server for many accounts; the fields of ilp-plugin-mini-accounts.

    Attributes:
        port: The TCP port; 0 takes a free one, which ``plugin.address`` tells. None opens none: connections are
            handed over with ``serve_stream()`` and ``serve_websocket()`` only.
        host: The address to listen on.
        allowed_origins: The web pages whose scripts may connect, by the ``Origin`` header that browsers send:
            an origin such as ``https://wallet.example``, or a regular expression that the whole of it must match.
            Without it a browser is refused.
        generate_account: True: an account's name is the hash of its token. False: it is the username that the
            client gives; needs a store. None: the username where one is given and there is a store, else the hash.
        debug_host_ildcp_info: The server's ILP address and asset; when None, ``connect()`` asks the data handler,
            as a child asks its parent.
        ssl_context: A server's TLS context; None listens without TLS.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    port: int | None = field(default=3000, metadata=PORT)
    host: str = field(default="127.0.0.1", metadata=WORD)
    allowed_origins: tuple[str, ...] = field(
        default=(),
        converter=_as_tuple,
        metadata={RULE: Rule("a tuple of origins or regular expressions", _are_origins)},
    )
    generate_account: bool | None = field(
        default=None,
        metadata={RULE: Rule("True, False or None", lambda value: value is None or isinstance(value, bool))},
    )
    debug_host_ildcp_info: HostInfo | None = field(
        default=None,
        metadata={
            RULE: Rule("HostInfo or None", lambda value: value is None or isinstance(value, HostInfo), nested=HostInfo)
        },
    )
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SSL_CONTEXT)

    def allows(self, origin: str) -> bool:
        """Whether a page of this origin may connect."""
        return any(
            allowed == origin or (not PLAIN_ORIGIN.fullmatch(allowed) and re.fullmatch(allowed, origin) is not None)
            for allowed in self.allowed_origins
        )
