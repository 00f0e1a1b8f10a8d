"""What a plugin can be told: the options of ``connect()``, of every link, and of the plugins of this package."""

from __future__ import annotations

import math
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from .checking import (
    ADDRESSES,
    COUNT,
    CREDENTIAL,
    FLAGS,
    MONEY,
    NAME,
    PORT,
    RETENTION,
    RULE,
    SECONDS,
    SECRET,
    SSL_CONTEXT,
    SWITCH,
    TEXT,
    WORD,
    CheckedOptions,
    Rule,
    as_secret,
    is_text,
    shown,
)
from .errors import InvalidFieldsError
from .secret import Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

__all__ = [
    "BtpOptions",
    "ConnectOptions",
    "LinkOptions",
    "ListenerOptions",
    "LoopbackOptions",
    "ServerUrl",
    "split_url",
]

HOST_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")

# What a protocol adds to the bytes of one request, rounded up.
ENVELOPE_BYTES: Final = 64


@frozen
class ConnectOptions:
    """Options of ``connect()`` (RFC-0024, class ConnectOptions).

    Attributes:
        timeout: Milliseconds until ``connect()`` gives up. None, 0 and NaN mean the plugin's default;
            ``math.inf`` means no timeout.

    Raises:
        TypeError: ``timeout`` is no number; ``True`` and ``False`` are none.
        InvalidFieldsError: ``timeout`` is negative.
    """

    timeout: float | None = None

    def __attrs_post_init__(self) -> None:
        if self.timeout is None:
            return
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TypeError(f"timeout is a number of milliseconds, not {type(self.timeout).__name__}")
        if self.timeout < 0:
            raise InvalidFieldsError(f"timeout: got {shown(self.timeout)}, must be milliseconds, 0 or more")

    def seconds(self, default: float) -> float:
        """Return the timeout in seconds.

        Args:
            default: The plugin's own timeout in seconds, for a timeout that is None, 0 or NaN.

        Returns:
            Seconds; ``math.inf`` for no timeout.
        """
        # Not above 0 are 0 and NaN, since a negative timeout cannot exist.
        if self.timeout is None or not self.timeout > 0:
            return default
        # An int may be larger than any float, and so for ever.
        return self.timeout / 1000 if self.timeout < 1e300 else math.inf


def _as_tuple(value: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) else value


def _as_copy(value: Mapping[str, object]) -> Mapping[str, object]:
    return dict(value) if isinstance(value, Mapping) else value


@frozen(kw_only=True)
class LinkOptions(CheckedOptions):
    """The limits and times that every link has; times in seconds (``math.inf``: no limit), sizes in bytes.

    Attributes:
        connect_timeout: For ``connect()``: dial, TLS, handshake and authentication together.
        close_timeout: For a normal exit to drain and say goodbye.
        response_timeout: For the peer to answer a request.
        handler_timeout: For a handler to finish; the peer gets an error then.
        ping_interval: Between pings on a link.
        pong_timeout: For the peer to answer a ping; the link is lost then.
        handshake_timeout: For a stranger to finish TLS and the WebSocket handshake.
        auth_timeout: For a stranger to authenticate.
        send_timeout: For 64 KiB to leave; the link is aborted then.
        redial_max_delay: The longest pause between two redials.
        max_message_bytes: Of one message.
        max_unauthenticated_bytes: Of one message before authentication.
        max_fragments: Of one WebSocket message.
        max_entries: Of one packet's protocol data.
        max_queue_bytes: Waiting to be sent on a link; callers wait when it is full.
        max_running_bytes: Of requests, and of their responses, that running handlers hold on a link; more wait.
        max_waiting_bytes: Of requests that wait for a handler on a link; more are refused.
        max_refusal_bytes: Of refusals waiting to be sent on a link; the link is aborted past it.
        max_handlers: Running at once on a link.
        max_in_flight: Requests of ours without an answer on a link.
        max_malformed_per_minute: Malformed packets before a link is closed.
        max_unauthenticated: Connections at a listener that have not authenticated.
        max_unauthenticated_per_address: The same from one address.
        max_failures_per_minute: Failed authentications from one address before answers slow down.
        trusted_proxies: IP addresses that many peers share, so that limits by address do not apply to them.
        money: ``"auto"``: at KEYED where both ends can, else at PLAIN; ``"keyed"``: at KEYED or not at all;
            ``"plain"``: at PLAIN. KEYED needs a transactional store at both ends.
        ledger_id: Tells the transfers of this plugin from those of others in the same store.
        key_retention: How long the keys of transfers are remembered; 24 hours at least.
        max_transfer_keys: Incoming transfers that are remembered for an account; more are refused for the time.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    connect_timeout: float = field(default=30.0, metadata=SECONDS)
    close_timeout: float = field(default=5.0, metadata=SECONDS)
    response_timeout: float = field(default=35.0, metadata=SECONDS)
    handler_timeout: float = field(default=30.0, metadata=SECONDS)
    ping_interval: float = field(default=20.0, metadata=SECONDS)
    pong_timeout: float = field(default=20.0, metadata=SECONDS)
    handshake_timeout: float = field(default=5.0, metadata=SECONDS)
    auth_timeout: float = field(default=5.0, metadata=SECONDS)
    send_timeout: float = field(default=10.0, metadata=SECONDS)
    redial_max_delay: float = field(default=30.0, metadata=SECONDS)
    max_message_bytes: int = field(default=64 * 1024, metadata=COUNT)
    max_unauthenticated_bytes: int = field(default=8 * 1024, metadata=COUNT)
    max_fragments: int = field(default=64, metadata=COUNT)
    max_entries: int = field(default=32, metadata=COUNT)
    max_queue_bytes: int = field(default=1024 * 1024, metadata=COUNT)
    max_running_bytes: int = field(default=4 * 1024 * 1024, metadata=COUNT)
    max_waiting_bytes: int = field(default=2 * 1024 * 1024, metadata=COUNT)
    max_refusal_bytes: int = field(default=64 * 1024, metadata=COUNT)
    max_handlers: int = field(default=256, metadata=COUNT)
    max_in_flight: int = field(default=16384, metadata=COUNT)
    max_malformed_per_minute: int = field(default=8, metadata=COUNT)
    max_unauthenticated: int = field(default=1024, metadata=COUNT)
    max_unauthenticated_per_address: int = field(default=16, metadata=COUNT)
    max_failures_per_minute: int = field(default=5, metadata=COUNT)
    trusted_proxies: tuple[str, ...] = field(default=(), converter=_as_tuple, metadata=ADDRESSES)
    money: str = field(default="auto", metadata=MONEY)
    ledger_id: str = field(default="main", metadata=NAME)
    key_retention: float = field(default=7 * 24 * 60 * 60.0, metadata=RETENTION)
    max_transfer_keys: int = field(default=1_000_000, metadata=COUNT)

    @property
    def max_data_bytes(self) -> int:
        """The most bytes that ``send_data`` takes and a data handler may return: a message less its envelope."""
        return self.max_message_bytes - ENVELOPE_BYTES


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
class LoopbackOptions(LinkOptions):
    """Options of the ``loopback`` plugin: two plugins opened under one name in one process are peers.

    Attributes:
        name: The name that the two share.

    Raises:
        InvalidFieldsError: Any field is wrong; every bad one is named.
    """

    name: str = field(default="loopback", metadata=NAME)


@frozen
class ServerUrl:
    """A server URL taken apart; the credentials are not in ``address``."""

    address: str
    account: str
    token: Secret
    tls: bool
    host: str
    port: int
    resource: str

    @property
    def host_header(self) -> str:
        """The value of the HTTP Host header: the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, so that nobody can listen in between."""
        name = self.host.lower().removesuffix(".")
        try:
            return ip_address(name).is_loopback
        except ValueError:
            return name == "localhost" or name.endswith(".localhost")


def split_url(url: str) -> tuple[str, str, str, str]:
    """Split a URL into scheme, userinfo, host with port, and the rest, each as written."""
    scheme, _, rest = url.partition("://")
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    # The last @: a token may contain one.
    userinfo, _, location = rest[:end].rpartition("@")
    return scheme, userinfo, location, rest[end:]


def parse_server(server: str) -> ServerUrl:
    """Take a ``btp+ws://`` or ``btp+wss://`` URL apart.

    The userinfo, ``account:token``, is taken as written: it is not percent-decoded, as ilp-plugin-btp does not.

    Raises:
        ValueError: It is no such URL. The text shows nothing that may be part of a token.
    """
    scheme, userinfo, location, rest = split_url(server)
    if scheme not in {"btp+ws", "btp+wss"} or "://" not in server:
        meant = {"ws": "btp+ws", "http": "btp+ws", "wss": "btp+wss", "https": "btp+wss"}.get(scheme)
        raise ValueError(
            f"begins with '{scheme}://', must begin with '{meant}://'"
            if meant
            else "must begin with 'btp+wss://' (TLS) or 'btp+ws://'"
        )
    tls = scheme == "btp+wss"
    account, _, token = userinfo.partition(":")
    host, port = _parse_location(location, 443 if tls else 80)
    if "#" in rest:
        raise ValueError("has a fragment ('#...'), must end with its path or query")
    if not all("!" <= character <= "~" for character in rest):
        raise ValueError("has a path or query with spaces or characters outside ASCII, must have them percent-encoded")
    resource = rest if rest.startswith("/") else f"/{rest}"
    return ServerUrl(f"{scheme}://{location}{rest}", account, Secret(token), tls, host, port, resource)


def _parse_location(location: str, default_port: int) -> tuple[str, int]:
    if location.startswith("["):
        host, bracket, after = location[1:].partition("]")
        before, _, port = after.rpartition(":")
        right = _is_ipv6(host) and bracket != "" and before == "" and after[:1] in {"", ":"}
    else:
        host, _, port = location.partition(":")
        right = HOST_CHARACTERS.issuperset(host) and ":" not in port
    if not host:
        raise ValueError("names no host, must be like 'btp+wss://connector.example/path'")
    if not right:
        raise ValueError("has a bad host, must be a name in ASCII, an IPv4 address, or an IPv6 address in []")
    if not port:
        return host, default_port
    # What stands here may be a token, where a host was forgotten: it is not shown.
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError("has a bad port, must be a number from 1 to 65535")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host


@frozen(kw_only=True)
class BtpOptions(LinkOptions):
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
