"""HTTP proxies: a tunnel to the server by CONNECT (RFC 9110, section 9.3.6).

Invariant: no byte of the connection itself is sent before the proxy has opened the tunnel. No error and no log line has
the proxy's credentials.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio
from attrs import frozen

from ..errors import UnreachableError
from ..secret import Secret
from .dial import dial, start_tls
from .http_head import HeadTooLongError, parse_head, read_pause, receive_head
from .sockets import abort_stream
from .unreachable import PermanentlyUnreachableError, RetryLaterError
from .url import parse_location, split_url

if TYPE_CHECKING:
    import ssl

__all__ = ["Proxy", "dial_through", "find_proxy", "parse_proxy"]

PORTS: Final = {"http": 80, "https": 443}


@frozen
class Proxy:
    """An HTTP proxy.

    Attributes:
        address: Its URL without credentials.
        credentials: ``user:password``, decoded; empty if there are none.
        tls: Whether the proxy itself is reached by TLS.
        host: The host; an IPv6 address has no brackets here.
        port: The TCP port.
    """

    address: str
    credentials: Secret
    tls: bool
    host: str
    port: int


def parse_proxy(url: str) -> Proxy:
    """Parse the URL of a proxy, ``http://user:password@host:port``; its userinfo is percent-decoded.

    Raises:
        ValueError: It is not such a URL. The text shows nothing of it.
    """
    from urllib.parse import unquote  # noqa: PLC0415 (slow to import, and few programs have a proxy)

    scheme, userinfo, location, rest = split_url(url if "://" in url else f"http://{url}")
    if scheme not in PORTS:
        raise ValueError("must begin with 'http://' or 'https://': other kinds of proxies are not supported")
    if rest not in ("", "/"):
        raise ValueError("has a path, must be like 'http://user:password@proxy.example:3128'")
    host, port = parse_location(location, PORTS[scheme])
    return Proxy(f"{scheme}://{location}", Secret(unquote(userinfo)), scheme == "https", host, port)


def find_proxy(host: str, *, tls: bool) -> Proxy | None:
    """Return the proxy that the environment names for a host: ``HTTPS_PROXY`` with TLS, else ``HTTP_PROXY``.

    ``NO_PROXY`` and lower case are heeded as by the standard library.

    Raises:
        PermanentlyUnreachableError: The variable does not hold the URL of an HTTP proxy.
    """
    if not any(name.lower() in ("http_proxy", "https_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415 (slow to import)

    kind = "https" if tls else "http"
    url = getproxies_environment().get(kind)
    if not url or proxy_bypass(host):
        return None
    try:
        return parse_proxy(url)
    except ValueError as error:
        raise PermanentlyUnreachableError(f"the environment variable {kind}_proxy {error}") from None


async def dial_through(
    proxy: Proxy,
    host: str,
    port: int,
    address: str,
    *,
    ssl_context: ssl.SSLContext | None,
    proxy_context: ssl.SSLContext | None,
    user_agent: str,
    limit: int,
) -> trio.abc.Stream:
    """Open a connection through a proxy.

    Args:
        proxy: The proxy.
        host: The server's host, a name or an IP address; the proxy resolves a name.
        port: The server's TCP port.
        address: The URL of the server without credentials, for errors.
        ssl_context: The TLS context for the server; None connects without TLS.
        proxy_context: The TLS context for the proxy, if that is reached by TLS.
        user_agent: The ``User-Agent`` header; empty for none.
        limit: The most bytes that the head of the proxy's answer may have.

    Returns:
        The stream, with the TLS handshake done.

    Raises:
        PermanentlyUnreachableError: The proxy refuses its credentials, or a certificate is not trusted.
        UnreachableError: The server cannot be reached now.

    Cancellation: The connection is closed.
    """
    stream = await dial(proxy.host, proxy.port, f"the proxy {proxy.address}", ssl_context=proxy_context)
    is_open = False
    try:
        await _open_tunnel(stream, proxy, host, port, user_agent, limit)
        is_open = True
    except HeadTooLongError as error:
        raise UnreachableError(f"the answer of the proxy {proxy.address} is too long: {error}") from None
    except trio.BrokenResourceError as error:
        raise UnreachableError(f"the connection to the proxy {proxy.address} broke") from error
    finally:
        if not is_open:
            await abort_stream(stream)  # noqa: ASYNC102 (it waits for nothing)
    return stream if ssl_context is None else await start_tls(stream, host, address, ssl_context)


async def _open_tunnel(
    stream: trio.abc.Stream, proxy: Proxy, host: str, port: int, user_agent: str, limit: int
) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if user_agent:
        lines.append(f"User-Agent: {user_agent}")
    if proxy.credentials:
        from base64 import b64encode  # noqa: PLC0415 (few programs have a proxy)

        token = b64encode(proxy.credentials.reveal().encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {token}")
    await stream.send_all("".join(f"{line}\r\n" for line in (*lines, "")).encode())
    answer, rest = await receive_head(stream, limit)
    head = parse_head(answer)
    if 200 <= head.status < 300 and not rest:
        return
    if head.status == 407:
        raise PermanentlyUnreachableError(f"the proxy {proxy.address} refuses its credentials: HTTP 407")
    if head.status < 300:
        raise UnreachableError(f"{proxy.address} does not answer as an HTTP proxy")
    raise RetryLaterError(
        f"the proxy {proxy.address} does not connect to {target}: HTTP {head.status}", read_pause(head)
    )
