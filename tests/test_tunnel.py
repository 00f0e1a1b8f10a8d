"""HTTP proxies and further headers, and what of them must not be seen."""

import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trustme
from support.peers import TOKEN, open_btp, read_head, serving, welcome
from trio.testing import MockClock

from trio_ledger_plugin import BtpOptions, ConnectOptions, ListenerOptions, PluginServices
from trio_ledger_plugin.errors import ConnectTimeoutError, InvalidFieldsError, UnreachableError
from trio_ledger_plugin.net.tunnel import find_proxy, parse_proxy
from trio_ledger_plugin.secret import Secret
from trio_ledger_plugin.testing.conformance.assertions import Recorder

PASSWORD = "pass-canary-51d2"
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class ConnectProxy:
    """An HTTP proxy that tunnels each connection to one server, no matter which the client asks for."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.heads: list[bytes] = []
        self.port = 0
        self.to = 0

    async def __call__(self, near: trio.SocketStream) -> None:
        self.heads.append(await read_head(near))
        if self.answers:
            await near.send_all(self.answers.pop(0))
            return
        far = await trio.open_tcp_stream("127.0.0.1", self.to)
        await near.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        async with far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far, nursery)
            nursery.start_soon(self._pump, far, near, nursery)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, nursery: trio.Nursery) -> None:
        try:
            async for data in source:
                await sink.send_all(data)
        except trio.BrokenResourceError:
            pass
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def proxied(*answers: bytes, server: Any = None) -> AsyncIterator[tuple[ConnectProxy, bytearray]]:
    """Give a proxy to a server, and what the server receives."""
    received = bytearray()

    async def accept(stream: trio.abc.Stream) -> None:
        peer = await welcome(Remembering(stream, received))
        await peer.let_in()
        await trio.sleep_forever()

    proxy = ConnectProxy(*answers)
    async with serving(server or accept) as url, trio.open_nursery() as nursery:
        proxy.to = int(url.rpartition(":")[2])
        listeners = await nursery.start(partial(trio.serve_tcp, proxy, 0, host="127.0.0.1"))
        proxy.port = listeners[0].socket.getsockname()[1]
        yield proxy, received
        nursery.cancel_scope.cancel()


class Remembering(trio.abc.Stream):
    """A stream that keeps what it receives."""

    def __init__(self, stream: trio.abc.Stream, received: bytearray) -> None:
        self._stream = stream
        self._received = received

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        self._received += data
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


def options(proxy: ConnectProxy, host: str = "connector.example:7768", **more: Any) -> dict[str, Any]:
    return {
        "server": f"btp+ws://alice:{TOKEN}@{host}/path",
        "proxy": f"http://us%65r:{PASSWORD}@127.0.0.1:{proxy.port}",
        "allow_insecure": True,
        **more,
    }


async def test_client_connects_through_a_proxy() -> None:
    """The name is resolved by the proxy: the client may have no access to any other network."""
    async with proxied() as (proxy, received), open_btp(options(proxy)) as plugin:
        assert plugin.is_connected()
        credentials = b64encode(f"user:{PASSWORD}".encode())
        assert proxy.heads == [
            b"CONNECT connector.example:7768 HTTP/1.1\r\nHost: connector.example:7768\r\n"
            b"User-Agent: trio-ledger-plugin\r\nProxy-Authorization: Basic " + credentials + b"\r\n\r\n"
        ]
        assert received.startswith(b"GET /path HTTP/1.1\r\nHost: connector.example:7768\r\n")
        assert PASSWORD.encode() not in received


async def test_tls_is_with_the_server_and_not_with_the_proxy() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("connector.example").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def accept(stream: trio.SocketStream) -> None:
        peer = await welcome(trio.SSLStream(stream, context, server_side=True))
        await peer.let_in()
        await trio.sleep_forever()

    async with proxied(server=accept) as (proxy, _):
        opts = options(proxy, server=f"btp+wss://alice:{TOKEN}@connector.example", ssl_context=trusting)
        async with open_btp(opts):
            assert proxy.heads[0].startswith(b"CONNECT connector.example:443 HTTP/1.1\r\n")


async def test_ipv6_host_is_in_brackets() -> None:
    async with proxied() as (proxy, _), open_btp(options(proxy, "[2001:db8::1]:7768")):
        assert proxy.heads[0].startswith(b"CONNECT [2001:db8::1]:7768 HTTP/1.1\r\nHost: [2001:db8::1]:7768\r\n")


@pytest.mark.parametrize("status", [403, 429, 502, 503, 504])
async def test_refusals_of_a_proxy_are_temporary(status: int, clock: MockClock) -> None:
    answer = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nRetry-After: 3\r\n\r\n" % status
    async with proxied(answer) as (proxy, _):
        start = trio.current_time()
        async with open_btp(options(proxy)):
            assert len(proxy.heads) == 2
            assert trio.current_time() - start >= 3


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", UnreachableError, "refuses its credentials: HTTP 407"),
        (
            b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
            ConnectTimeoutError,
            "does not connect to connector.example:7768: HTTP 502",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", ConnectTimeoutError, "does not answer as an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", ConnectTimeoutError, "does not answer as an HTTP proxy"),
        (b"HTTP/1.1 200 OK\r\nX: " + bytes(20_000), ConnectTimeoutError, "is too long"),
        (b"", ConnectTimeoutError, "does not answer as an HTTP proxy"),
    ],
)
async def test_error_names_the_proxy_and_not_its_credentials(
    answer: bytes, kind: type[Exception], text: str, clock: MockClock
) -> None:
    log = Recorder()
    async with proxied(*[answer] * 100) as (proxy, _):
        with pytest.raises(UnreachableError, match=text) as caught:
            async with open_btp(options(proxy), PluginServices(log=log), connect=ConnectOptions(500)):
                raise AssertionError("connected")
        assert type(caught.value).__name__ == kind.__name__ or kind is UnreachableError
        assert isinstance(caught.value, ConnectTimeoutError) == (kind is ConnectTimeoutError)
        assert f"http://127.0.0.1:{proxy.port}" in str(caught.value)
    assert PASSWORD not in str(caught.value) + "".join(log.lines) + repr(BtpOptions(**options(proxy)))


async def test_proxy_that_cannot_be_reached_is_named(clock: MockClock) -> None:
    async with proxied() as (proxy, _):
        pass
    with pytest.raises(ConnectTimeoutError, match=f"cannot connect to the proxy http://127.0.0.1:{proxy.port}"):
        async with open_btp(options(proxy), connect=ConnectOptions(500)):
            raise AssertionError("connected")


# The environment.


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
async def test_proxy_of_the_environment_is_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxied() as (proxy, _):
        monkeypatch.setenv(name, f"127.0.0.1:{proxy.port}")
        async with open_btp(options(proxy) | {"proxy": None}):
            assert len(proxy.heads) == 1


@pytest.mark.parametrize(
    ("variables", "host", "tls", "found"),
    [
        ({}, "connector.example", True, None),
        ({"HTTPS_PROXY": "http://p:1"}, "connector.example", True, "http://p:1"),
        ({"https_proxy": "https://u:p@p:1/"}, "connector.example", True, "https://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "connector.example", False, None),
        ({"HTTP_PROXY": "http://p"}, "connector.example", False, "http://p"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other.example,.example"}, "connector.example", True, None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "connector.example", True, None),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "other.example"}, "connector.example", True, "http://p:1"),
        ({"HTTPS_PROXY": ""}, "connector.example", True, None),
    ],
)
def test_environment_is_read_as_usual(
    variables: dict[str, str], host: str, tls: bool, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    proxy = find_proxy(host, tls=tls)
    assert (None if proxy is None else proxy.address) == found


def test_bad_proxy_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"socks5://u:{PASSWORD}@p:1")
    with pytest.raises(
        UnreachableError, match="the environment variable https_proxy must begin with 'http://'"
    ) as caught:
        find_proxy("connector.example", tls=True)
    assert PASSWORD not in str(caught.value)


async def test_this_machine_and_an_empty_option_need_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")

    async def accept(stream: trio.abc.Stream) -> None:
        await (await welcome(stream)).let_in()
        await trio.sleep_forever()

    async with serving(accept) as url, open_btp({"server": url}):
        pass
    assert BtpOptions(server="btp+wss://connector.example", btp_token="t", proxy="").find_proxy() is None


# Options.


@pytest.mark.parametrize(
    ("proxy", "text"),
    [
        (f"socks5://u:{PASSWORD}@p:1", "must begin with 'http://' or 'https://'"),
        (f"http://u:{PASSWORD}@p:1/path", "has a path"),
        (f"http://u:{PASSWORD}@:1", "names no host"),
        (f"http://u:{PASSWORD}@p:x", "bad port"),
        (5, "must be the URL of an HTTP proxy"),
    ],
)
def test_wrong_proxy_is_refused(proxy: Any, text: str) -> None:
    with pytest.raises(InvalidFieldsError) as caught:
        BtpOptions(server="btp+ws://127.0.0.1", proxy=proxy)
    assert text in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_proxy_is_for_the_end_that_dials() -> None:
    listener = ListenerOptions(port=0, secret="t")
    dialing: list[dict[str, Any]] = [{"proxy": "http://p:1"}, {"headers": {"X": "1"}}]
    for more in dialing:
        with pytest.raises(InvalidFieldsError, match="is for dialing a server"):
            BtpOptions(listener=listener, **more)


def test_proxy_without_a_scheme_is_http() -> None:
    proxy = parse_proxy("u:p%40ss@[::1]:3128")
    assert (proxy.address, proxy.tls, proxy.host, proxy.port) == ("http://[::1]:3128", False, "::1", 3128)
    assert proxy.credentials == Secret("u:p@ss")


async def test_headers_and_user_agent_are_sent_and_not_shown() -> None:
    log = Recorder()
    headers = {"Authorization": f"Bearer {PASSWORD}", "X-Route": "blü", "X-Key": Secret(PASSWORD)}
    async with proxied() as (proxy, received):
        opts = options(proxy, headers=headers, user_agent="shop/2")
        async with open_btp(opts, PluginServices(log=log)) as plugin:
            plugin.log.info("%s", PASSWORD)
            assert PASSWORD not in repr(plugin.options)
            assert "X-Route" in repr(plugin.options)
        lines = received.split(b"\r\n")
        assert f"Authorization: Bearer {PASSWORD}".encode() in lines
        assert "X-Route: blü".encode("latin-1") in lines
        assert f"X-Key: {PASSWORD}".encode() in lines
        assert b"User-Agent: shop/2" in lines
    assert PASSWORD not in "".join(log.lines)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "x"},
        {"sec-websocket-key": "x"},
        {"Proxy-Authorization": "x"},
        {"User-Agent": "x"},
        {"X Y": "1"},
        {"X": "a\r\nY: b"},
        {"X": " a"},
        {"X": "\u20ac"},
        {"X": 5},
        {5: "x"},
        ["X"],
    ],
)
def test_wrong_headers_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidFieldsError, match="headers: got a value of type"):
        BtpOptions(server="btp+ws://127.0.0.1", headers=headers)
