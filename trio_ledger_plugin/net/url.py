"""The URL of a server, over BTP or over HTTP.

One over BTP is read as ilp-plugin-btp reads it, so that one URL opens one account.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Final

from attrs import frozen

from ..secret import Secret

__all__ = ["ServerUrl", "is_loopback", "parse_http", "parse_location", "parse_server", "split_url"]

# What ilp-plugin-btp percent-encodes in an account and a token: the userinfo percent-encode set of the URL standard,
# besides control characters and all that is not ASCII.
ESCAPED: Final = frozenset(' "#<>?`{}/:;=@[\\]^|')
# What the URL standard drops around a URL.
BLANKS: Final = "".join(map(chr, range(33)))
HOST_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")


@frozen
class ServerUrl:
    """The parts of a server's URL.

    Attributes:
        address: The URL without the credentials, and without the colon of an empty port.
        account: The account in the userinfo; empty if there is none.
        token: The token in the userinfo; empty if there is none.
        is_escaped: Whether the account or the token differs from what the URL has, because it was percent-encoded.
        tls: Whether to use TLS.
        host: The host; an IPv6 address has no brackets here.
        port: The port, or the scheme's default.
        resource: The path and query; at least ``/``.
    """

    address: str
    account: str
    token: Secret
    is_escaped: bool
    tls: bool
    host: str
    port: int
    resource: str

    @property
    def host_header(self) -> str:
        """The value of the HTTP Host header, without the port if it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this machine, so that the traffic crosses no network."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an IP address without brackets, is this machine."""
    name = host.lower().removesuffix(".")
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def split_url(url: str) -> tuple[str, str, str, str]:
    """Split a URL into scheme, userinfo, host with port, and the rest, each as written."""
    scheme, _, rest = url.partition("://")
    # The URL standard takes a backslash for a slash.
    end = min((at for mark in "/\\?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    # The last @: a token may contain one.
    userinfo, _, location = rest[:end].rpartition("@")
    return scheme, userinfo, location, rest[end:]


def parse_server(server: str) -> ServerUrl:
    """Parse a ``btp+ws://`` or ``btp+wss://`` URL.

    The userinfo, ``account:token``, is percent-encoded where the URL standard does so, and never decoded, as JavaScript
    reads it: ``a=b`` becomes ``a%3Db``, and ``a%20b`` stays. Tabs, line breaks, and blanks around the URL are dropped.

    Raises:
        ValueError: ``server`` is not such a URL. The text shows nothing that may be part of a token.
    """
    server = re.sub(r"[\t\n\r]", "", server.strip(BLANKS))
    scheme, userinfo, location, rest = split_url(server)
    if scheme not in {"btp+ws", "btp+wss"} or "://" not in server:
        meant = {"ws": "btp+ws", "http": "btp+ws", "wss": "btp+wss", "https": "btp+wss"}.get(scheme)
        raise ValueError(
            f"begins with '{scheme}://', must begin with '{meant}://'"
            if meant
            else "must begin with 'btp+wss://' (TLS) or 'btp+ws://'"
        )
    account, _, token = userinfo.partition(":")
    escaped = _escape(account), _escape(token)
    return _parse_rest(
        scheme, location, rest, account=escaped[0], token=escaped[1], escaped=escaped != (account, token)
    )


def parse_http(url: str) -> ServerUrl:
    """Parse an ``http://`` or ``https://`` URL; it has no userinfo, since a token has an option of its own.

    Raises:
        ValueError: ``url`` is not such a URL. The text shows nothing that may be part of a token.
    """
    scheme, userinfo, location, rest = split_url(url)
    if scheme not in {"http", "https"} or "://" not in url:
        raise ValueError("must begin with 'https://' (TLS) or 'http://'")
    if userinfo:
        raise ValueError("has credentials before an '@', must have none: static_token or jwt_secret has them")
    return _parse_rest(scheme, location, rest)


def _parse_rest(
    scheme: str, location: str, rest: str, *, account: str = "", token: str = "", escaped: bool = False
) -> ServerUrl:
    tls = scheme in {"btp+wss", "https"}
    secure = "https" if scheme.startswith("http") else "btp+wss"
    try:
        host, port = parse_location(location, 443 if tls else 80, f"{secure}://connector.example/path")
    except ValueError:
        if "@" in rest and not (account or token):
            names = "name and static_token" if scheme.startswith("http") else "btp_account and btp_token"
            raise ValueError(
                f"has a {rest[0]!r} before its '@', must have none in the account and the token: {names} take every "
                "character"
            ) from None
        raise
    if "#" in rest:
        raise ValueError("has a fragment ('#...'), must end with its path or query")
    if "\\" in rest or not all("!" <= character <= "~" for character in rest):
        raise ValueError(
            "has a path or query with spaces, backslashes or characters outside ASCII, must have them percent-encoded"
        )
    resource = rest if rest.startswith("/") else f"/{rest}"
    # Without the colon of an empty port, which would be two before the reason in an error.
    address = f"{scheme}://{location.removesuffix(':')}{rest}"
    return ServerUrl(address, account, Secret(token), escaped, tls, host, port, resource)


def _escape(text: str) -> str:
    """Percent-encode an account or a token as the URL standard does in a userinfo."""
    return "".join(
        character if " " < character <= "~" and character not in ESCAPED else _percent_encode(character)
        for character in text
    )


def _percent_encode(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode())


def parse_location(
    location: str, default_port: int, example: str = "btp+wss://connector.example/path"
) -> tuple[str, int]:
    """Parse a host and an optional port.

    Raises:
        ValueError: It is not that. The text shows nothing of it.
    """
    if location.startswith("["):
        host, bracket, after = location[1:].partition("]")
        before, _, port = after.rpartition(":")
        right = _is_ipv6(host) and bracket != "" and before == "" and after[:1] in {"", ":"}
    else:
        host, _, port = location.partition(":")
        right = HOST_CHARACTERS.issuperset(host) and ":" not in port
    if not host:
        raise ValueError(f"names no host, must be like {example!r}")
    if not right:
        raise ValueError("has a bad host, must be a name in ASCII, an IPv4 address, or an IPv6 address in []")
    if not port:
        return host, default_port
    # The port is not shown: if the host is missing, it may be a token.
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError("has a bad port, must be a number from 1 to 65535")
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return "%" not in host
