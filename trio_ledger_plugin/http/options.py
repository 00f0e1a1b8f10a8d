"""The options of the plugins ``http`` and ``http-accounts``, which are those of ilp-plugin-http and some more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

from ..accounts.info import HOST_INFO, HostInfo
from ..net.url import ServerUrl, parse_http
from ..options.base import PluginOptions
from ..options.checked import CheckedOptions
from ..options.fields import (
    CLIENT_CONTEXT,
    COUNT,
    EARLIER_NAME,
    HOST,
    NESTED,
    OPTIONAL_SWITCH,
    PORT,
    SECONDS,
    SECRET,
    SERVER_CONTEXT,
    SWITCH,
    VALIDATOR,
    WORD,
    Refused,
    Validator,
    as_host,
    as_secret,
    is_text,
    is_word,
)
from ..secret import Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping

__all__ = ["HttpAccountsOptions", "HttpOptions", "IncomingOptions", "OutgoingOptions"]

# A peer opens as many connections as it has calls, all at once and from one address.
MAX_UNAUTHENTICATED_PER_ADDRESS: Final = 256
NO_HTTP2: Final = "False or None: this plugin speaks HTTP/1.1, as every peer's own server does"


def _is_path(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.startswith("/") and is_word(value) and "?" not in value)


def _is_header(value: object) -> bool:
    return value is None or (isinstance(value, str) and value != "" and all("!" <= letter <= "~" for letter in value))


def _is_header_secret(value: object) -> bool:
    text = value.reveal() if isinstance(value, Secret) else value
    return isinstance(text, str) and all("!" <= letter <= "~" for letter in text)


def _is_lifetime(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 365 * 86400


HEADER: Final = {VALIDATOR: Validator("printable ASCII without spaces, or None", _is_header)}
TOKEN: Final = {
    VALIDATOR: Validator(
        "printable ASCII (str) without spaces, or a Secret of it: it is the value of a header",
        _is_header_secret,
        shown=False,
    )
}
OPTIONAL_TEXT: Final = {VALIDATOR: Validator("text (str) or None", lambda value: value is None or is_text(value))}


def _as_url(value: str) -> Any:  # noqa: ANN401  # a ServerUrl or Refused until the constructor has ended
    if not is_text(value):
        return value
    try:
        return parse_http(value)
    except ValueError as error:
        return Refused.because(str(error))


def _merge(options: CheckedOptions, name: str, old: str) -> None:
    """Move the value of an old name to the present one; the object is still under construction."""
    value = getattr(options, old)
    if value:
        object.__setattr__(options, name, value)


def _find_twice(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, old in (("static_token", "secret_token"), ("jwt_secret", "secret")):
        if values[name] and values[old]:
            yield name, f"given as {old} too, must be given once"


@frozen(eq=False, repr=False)
class IncomingOptions(CheckedOptions):
    """Where a plugin listens for its peer's requests, and what the peer must show.

    Attributes:
        port: The TCP port. 0 takes a free one; ``plugin.address`` then has its number. None opens no port: the
            application mounts ``plugin.asgi_app`` or hands over connections with ``serve_stream()``.
        static_token: A token that the peer must show.
        jwt_secret: The secret with which the peer signs JSON Web Tokens; with ``static_token`` too, either is accepted.
        jwt_subject: The claim ``sub`` that such a token must have; None for any.
        require_exp: Whether a JSON Web Token must say when it expires.
        allow_bare_token: Whether the token may stand without ``Bearer``; the old names below imply it.
        host: The address to listen on. None, or ``"*"``: every address of this machine, IPv4 and IPv6, with one port.
        ssl_context: The server's TLS context; with ``verify_mode=CERT_REQUIRED``, clients must have a certificate. None
            listens without TLS.
        path: The path of the endpoint; None for any.
        secret_token: The old name of ``static_token``.
        secret: The old name of ``jwt_secret``.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    port: int | None = field(metadata=PORT)
    static_token: Secret = field(default=Secret(""), converter=as_secret, metadata=TOKEN)
    jwt_secret: Secret = field(default=Secret(""), converter=as_secret, metadata=SECRET)
    jwt_subject: str | None = field(default=None, metadata=OPTIONAL_TEXT)
    require_exp: bool = field(default=True, metadata=SWITCH)
    allow_bare_token: bool = field(default=False, metadata=SWITCH)
    host: str | None = field(default="127.0.0.1", converter=as_host, metadata=HOST)
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=SERVER_CONTEXT)
    path: str | None = field(
        default=None, metadata={VALIDATOR: Validator("a path that begins with '/', or None for any", _is_path)}
    )
    secret_token: Secret = field(default=Secret(""), converter=as_secret, metadata=TOKEN, repr=False)
    secret: Secret = field(default=Secret(""), converter=as_secret, metadata=SECRET, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.secret_token or self.secret:
            object.__setattr__(self, "allow_bare_token", True)
        _merge(self, "static_token", "secret_token")
        _merge(self, "jwt_secret", "secret")

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Check that no value is given under two names."""
        return _find_twice(values)


@frozen(eq=False, repr=False)
class OutgoingOptions(CheckedOptions):
    """Where a plugin sends its requests, and what it shows there.

    Attributes:
        url: The peer's URL, ``https://`` or ``http://``. Redirects are never followed.
        static_token: The token to show.
        jwt_secret: The secret with which JSON Web Tokens are signed and shown; it has priority over ``static_token``.
        jwt_subject: The claim ``sub`` of these tokens; None for none.
        jwt_expiry: The lifetime of such a token, at least a second; a new one is signed after half of it.
        name: The value of the header ``ILP-Peer-Name``; if None, the number of the incoming port.
        send_ilp_destination: Whether to send the destination of each Prepare in a header ``ILP-Destination``.
        max_connections: The most connections to the peer; further calls wait for one.
        idle_timeout: For how long an idle connection is kept; less if the peer promises less.
        ssl_context: The client's TLS context, which may hold a certificate. None verifies the peer with the system's.
        allow_insecure: Whether the token may go without TLS to a host that is not this machine.
        secret_token: The old name of ``static_token``. The token is then sent without ``Bearer``.
        secret: The old name of ``jwt_secret``. The JSON Web Token is then sent without ``Bearer``.
        http2: Must be false: this plugin speaks HTTP/1.1.
        http2_max_requests_per_session: Must be None: this plugin speaks HTTP/1.1.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    # A ServerUrl during the construction.
    url: str = field(
        converter=_as_url,
        metadata={VALIDATOR: Validator("a URL (str)", lambda value: isinstance(value, ServerUrl), shown=False)},
    )
    static_token: Secret = field(default=Secret(""), converter=as_secret, metadata=TOKEN)
    jwt_secret: Secret = field(default=Secret(""), converter=as_secret, metadata=SECRET)
    jwt_subject: str | None = field(default=None, metadata=OPTIONAL_TEXT)
    jwt_expiry: float = field(
        default=30.0,
        metadata={
            VALIDATOR: Validator(
                "a number of seconds from 1 to a year",
                _is_lifetime,
                milliseconds="a number of milliseconds from 1,000 to a year",
            ),
            EARLIER_NAME: "token_expiry",
        },
    )
    name: str | None = field(default=None, metadata=HEADER)
    send_ilp_destination: bool = field(default=False, metadata=SWITCH)
    max_connections: int = field(default=128, metadata=COUNT)
    idle_timeout: float = field(default=4.0, metadata=SECONDS)
    ssl_context: ssl.SSLContext | None = field(default=None, metadata=CLIENT_CONTEXT)
    allow_insecure: bool = field(default=False, metadata=SWITCH)
    secret_token: Secret = field(default=Secret(""), converter=as_secret, metadata=TOKEN, repr=False)
    secret: Secret = field(default=Secret(""), converter=as_secret, metadata=SECRET, repr=False)
    http2: bool = field(default=False, metadata={VALIDATOR: Validator(NO_HTTP2, lambda value: value in (False, None))})
    http2_max_requests_per_session: int | None = field(
        default=None, metadata={VALIDATOR: Validator("None: this plugin speaks HTTP/1.1", lambda value: value is None)}
    )

    _parsed: ServerUrl | None = field(init=False, default=None, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        url: ServerUrl = self.url  # type: ignore[assignment]  # as the converter left it
        # The object is still under construction.
        object.__setattr__(self, "_parsed", url)
        object.__setattr__(self, "url", url.address)
        _merge(self, "static_token", "secret_token")
        _merge(self, "jwt_secret", "secret")

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Check that there is one set of credentials."""
        yield from _find_twice(values)
        if not any(values[name] for name in ("static_token", "secret_token", "jwt_secret", "secret")):
            yield "static_token", "missing, must be the token to show, or give jwt_secret"
        url = values["url"]
        if isinstance(url, ServerUrl) and not url.tls and values["ssl_context"] is not None:
            yield "ssl_context", "has no use with http://, the url must be https://"

    @property
    def parsed(self) -> ServerUrl:
        """The parts of the URL."""
        assert self._parsed is not None
        return self._parsed

    @property
    def goes_in_the_clear(self) -> bool:
        """Whether the token would go over a network without TLS."""
        return not (self.parsed.tls or self.parsed.is_loopback or self.allow_insecure)


def _are(kind: type[CheckedOptions]) -> dict[str, Any]:
    expected = f"{kind.__name__} or None"
    accepts = Validator(expected, lambda value: value is None or isinstance(value, kind), shown=False)
    return {VALIDATOR: accepts, NESTED: kind}


INCOMING: Final = _are(IncomingOptions)
OUTGOING: Final = _are(OutgoingOptions)


@frozen(kw_only=True, eq=False, repr=False)
class HttpOptions(PluginOptions):
    """Options of the ``http`` plugin: ILP over HTTP with one peer, in both directions; those of ilp-plugin-http.

    Attributes:
        incoming: Where the plugin listens for the peer's requests; None if it only sends.
        outgoing: Where it sends its own; None if it only serves.
        allow_insecure: As ``outgoing.allow_insecure``.
        max_unauthenticated_per_address: The number of connections from one address that have sent no right token yet;
            further ones wait.
        multi: Must be false: the plugin ``http-accounts`` serves many accounts.
        multi_delimiter: Only ``http-accounts`` uses it.
        ildcp: Only ``http-accounts`` uses it.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    incoming: IncomingOptions | None = field(default=None, metadata=INCOMING)
    outgoing: OutgoingOptions | None = field(default=None, metadata=OUTGOING)
    allow_insecure: bool = field(default=False, metadata=SWITCH)
    max_unauthenticated_per_address: int = field(default=MAX_UNAUTHENTICATED_PER_ADDRESS, metadata=COUNT)
    multi: bool = field(
        default=False,
        metadata={
            VALIDATOR: Validator(
                "False: many accounts are served by HttpAccountsOptions, of the plugin 'http-accounts'",
                lambda value: value is False,
            )
        },
    )
    multi_delimiter: str = field(default="%", metadata=WORD)
    ildcp: HostInfo | None = field(default=None, metadata=HOST_INFO)

    @property
    def address(self) -> str:
        """The URL to which requests are sent; empty if there is none."""
        return "" if self.outgoing is None else self.outgoing.url

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Check that there is a direction, that the peer must show a token, and that no token goes in the clear."""
        incoming, outgoing = values["incoming"], values["outgoing"]
        if incoming is None and outgoing is None:
            yield "outgoing", "missing, must be where to send requests, or give incoming"
        if isinstance(incoming, IncomingOptions) and not (incoming.static_token or incoming.jwt_secret):
            yield "incoming.static_token", "missing, must be the token that the peer shows, or give jwt_secret"
        yield from _find_clear_token(values)


@frozen(kw_only=True, eq=False, repr=False)
class HttpAccountsOptions(PluginOptions):
    """Options of the ``http-accounts`` plugin: a server for many accounts; ilp-plugin-http's with ``multi``.

    Each account has a token of its own. With ``incoming.jwt_secret``, it is a JSON Web Token, whose ``sub`` is the
    account's name. Otherwise the account's name is as ``generate_account`` says, and ``ILP-Peer-Name`` is the username.
    A request whose ``ILP-Peer-Name`` is not the account of its token is refused.

    Attributes:
        incoming: Where the plugin listens for the clients' requests. With ``static_token``, as in ilp-plugin-http, that
            token is the clients' common one, and each client is who it says it is: only for clients that trust each
            other.
        outgoing: Where it sends requests to its clients: ``multi_delimiter`` in the URL stands for the account's name.
            None if it only serves.
        allow_insecure: As ``outgoing.allow_insecure``.
        max_unauthenticated_per_address: The number of connections from one address that have sent no right token yet;
            further ones wait.
        multi: Must be true.
        multi_delimiter: The text of ``outgoing.url`` that is replaced by the account's name; its first occurrence.
        ildcp: The server's ILP address and asset. If None, ``connect()`` asks the data handler, as a child asks its
            parent.
        generate_account: True: an account's name is the hash of its token. False: it is the username, which needs a
            store. None: the username if there is one and a store, else the hash.
        max_server_handlers: The number of handlers that run at once for all accounts; ``max_handlers`` is the number
            for one account. An eighth is kept for accounts that have none, as with the two limits that follow.
        max_server_handler_bytes: The requests, and their responses, that the running handlers of all accounts may hold.
        max_server_backlog_bytes: The requests of all accounts that may wait for a handler.
        expiry_margin: How many seconds before its own expiry a forwarded Prepare expires at the next hop.

    Raises:
        InvalidFieldsError: Fields are wrong. The text names each.
    """

    incoming: IncomingOptions = field(
        metadata={
            VALIDATOR: Validator("IncomingOptions", lambda value: isinstance(value, IncomingOptions), shown=False),
            NESTED: IncomingOptions,
        }
    )
    outgoing: OutgoingOptions | None = field(default=None, metadata=OUTGOING)
    allow_insecure: bool = field(default=False, metadata=SWITCH)
    max_unauthenticated_per_address: int = field(default=MAX_UNAUTHENTICATED_PER_ADDRESS, metadata=COUNT)
    multi: bool = field(
        default=True,
        metadata={VALIDATOR: Validator("True: this plugin serves many accounts", lambda value: value is True)},
    )
    multi_delimiter: str = field(default="%", metadata=WORD)
    ildcp: HostInfo | None = field(default=None, metadata=HOST_INFO)
    generate_account: bool | None = field(default=None, metadata=OPTIONAL_SWITCH)
    max_server_handlers: int = field(default=16384, metadata=COUNT)
    max_server_handler_bytes: int = field(default=256 * 1024 * 1024, metadata=COUNT)
    max_server_backlog_bytes: int = field(default=128 * 1024 * 1024, metadata=COUNT)
    expiry_margin: float = field(default=1.0, metadata=SECONDS)

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Check that the URL has a place for the account's name, and that no token goes in the clear."""
        outgoing, mark = values["outgoing"], values["multi_delimiter"]
        if isinstance(outgoing, OutgoingOptions) and isinstance(mark, str) and mark not in outgoing.parsed.resource:
            yield "outgoing.url", f"has no {mark!r} in its path, which must stand for the account's name"
        yield from _find_clear_token(values)


def _find_clear_token(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    outgoing = values["outgoing"]
    if isinstance(outgoing, OutgoingOptions) and outgoing.goes_in_the_clear and values["allow_insecure"] is not True:
        host = outgoing.parsed.host
        problem = f"not set, and the token would go to {host!r} unencrypted; the url must be https:// (or set this)"
        yield "outgoing.allow_insecure", problem
