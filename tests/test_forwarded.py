"""Clients behind proxies: their addresses, by X-Forwarded-For and by the PROXY protocol, and who may say them."""

import logging
import ssl
from contextlib import suppress
from typing import Any

import pytest
import trio
import trustme
from support.peers import TOKEN, Peer, open_btp, upgrade_request
from trio.testing import MockClock

from trio_ledger_plugin import AccountsOptions, BtpOptions, ListenerOptions, open_plugin
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.errors import InvalidFieldsError
from trio_ledger_plugin.net.forwarded import client_address, is_trusted
from trio_ledger_plugin.net.proxy_protocol import SIGNATURE_V2, BadProxyHeaderError, read_proxy_header

PROXIES = ("127.0.0.1", "10.0.0.0/8", "2001:db8::/32")
CLIENT = "203.0.113.7"


@pytest.mark.parametrize(
    ("peer", "header", "address"),
    [
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", CLIENT, CLIENT),
        ("127.0.0.1", f"198.51.100.1, {CLIENT}", CLIENT),
        ("127.0.0.1", f"198.51.100.1, {CLIENT}, 10.1.2.3", CLIENT),
        ("127.0.0.1", "10.1.2.3, 10.3.2.1", "10.1.2.3"),
        ("127.0.0.1", f"{CLIENT}:4711", CLIENT),
        ("127.0.0.1", "[2001:db9::1]:4711", "2001:db9::1"),
        ("127.0.0.1", "2001:db9::1", "2001:db9::1"),
        ("2001:db8::5", CLIENT, CLIENT),
        ("::ffff:10.0.0.1", CLIENT, CLIENT),
        ("127.0.0.1", "unknown", "127.0.0.1"),
        ("127.0.0.1", f"{CLIENT}, unknown, 10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", f"{CLIENT},", "127.0.0.1"),
        ("198.51.100.9", CLIENT, "198.51.100.9"),
        ("a peer without an address", CLIENT, "a peer without an address"),
    ],
)
def test_address_is_that_of_the_last_hop_that_is_not_trusted(peer: str, header: str, address: str) -> None:
    """A client that could choose its address would be free of limits, or put others under them."""
    assert client_address(peer, header, PROXIES) == address


def test_nobody_is_trusted_by_default() -> None:
    assert not is_trusted("127.0.0.1", ())
    assert client_address("127.0.0.1", CLIENT, ()) == "127.0.0.1"


def options(*proxies: str, **listener: Any) -> BtpOptions:
    return BtpOptions(listener=ListenerOptions(port=0, secret=TOKEN, **listener), trusted_proxies=proxies)


async def dial(plugin: BtpPlugin, first: bytes = b"") -> trio.SocketStream:
    host, _, port = plugin.address.rpartition("//")[2].rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    await stream.send_all(first)
    return stream


def forwarded(address: str) -> bytes:
    return upgrade_request().replace(b"Host: ", f"X-Forwarded-For: {address}\r\nHost: ".encode())


async def upgraded(stream: trio.abc.Stream, request: bytes) -> Peer:
    await stream.send_all(request)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await stream.receive_some(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    return Peer(stream, client=True)


def lines_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("trusted", [True, False])
async def test_log_has_the_address_of_the_client(trusted: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    async with open_btp(options(*["127.0.0.1"] * trusted)) as plugin:
        peer = await upgraded(await dial(plugin), forwarded(CLIENT))
        await peer.authenticate()
        await plugin.wait_connected()
        await peer.aclose()
        refused = await upgraded(await dial(plugin), forwarded(CLIENT))
        await refused.authenticate("wrong")
        await refused.aclose()
    expected = CLIENT if trusted else "127.0.0.1"
    assert f"connected with {expected}" in lines_of(caplog)
    assert f"refused a connection from {expected}" in lines_of(caplog)


async def test_limits_are_those_of_the_client_and_not_of_the_proxy(clock: MockClock) -> None:
    """One guesser behind the proxy would otherwise slow everybody down, or be as free as the proxy."""
    limits: dict[str, Any] = {"max_unauthenticated_per_address": 2, "max_failures_per_minute": 1}
    opts = BtpOptions(listener=ListenerOptions(0, TOKEN), trusted_proxies=("127.0.0.1",), **limits)
    async with open_btp(opts) as plugin:
        waiting = [await upgraded(await dial(plugin), forwarded(CLIENT)) for _ in range(2)]
        third = await upgraded(await dial(plugin), forwarded(CLIENT))
        await third.wait_eof()
        other = await upgraded(await dial(plugin), forwarded("203.0.113.8"))
        delays = []
        for address in (CLIENT, CLIENT, "203.0.113.9"):
            await waiting.pop().aclose() if waiting else None
            await trio.sleep(1)
            start = trio.current_time()
            guesser = await upgraded(await dial(plugin), forwarded(address))
            await guesser.authenticate("wrong")
            delays.append(trio.current_time() - start)
            await guesser.aclose()
        assert [delay > 0.2 for delay in delays] == [False, True, False]
        for peer in (*waiting, other, third):
            await peer.aclose()


# The PROXY protocol.


def version_2(command: int, family: int, addresses: bytes, size: int | None = None) -> bytes:
    return SIGNATURE_V2 + bytes([command, family]) + (len(addresses) if size is None else size).to_bytes(2) + addresses


V4 = bytes([203, 0, 113, 7, 10, 0, 0, 1, 0x12, 0x34, 0x01, 0xBB])
V6 = bytes.fromhex("20010db9000000000000000000000001") + bytes(16) + bytes(4)
HEADERS = {
    "v1": (f"PROXY TCP4 {CLIENT} 10.0.0.1 5555 443\r\n".encode(), CLIENT),
    "v1, IPv6": (b"PROXY TCP6 2001:db9::1 2001:db8::2 5555 443\r\n", "2001:db9::1"),
    "v1, unknown": (b"PROXY UNKNOWN\r\n", ""),
    "v1, unknown with more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", ""),
    "v2": (version_2(0x21, 0x11, V4), CLIENT),
    "v2 with extensions": (version_2(0x21, 0x11, V4 + b"\x04\x00\x01x"), CLIENT),
    "v2, IPv6": (version_2(0x21, 0x21, V6), "2001:db9::1"),
    "v2, a local socket": (version_2(0x21, 0x31, bytes(216)), ""),
    "v2, a health check": (version_2(0x20, 0x00, b""), ""),
}


class Bytewise(trio.abc.ReceiveStream):
    """A stream of given bytes, which come one by one or as many as are asked for."""

    def __init__(self, data: bytes, most: int) -> None:
        self.data = data
        self.most = most

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        assert max_bytes is not None
        await trio.lowlevel.checkpoint()
        size = min(max_bytes, self.most)
        piece, self.data = self.data[:size], self.data[size:]
        return piece

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("most", [1, 1000])
@pytest.mark.parametrize("name", HEADERS)
async def test_header_is_read_to_its_end_and_no_further(name: str, most: int) -> None:
    header, address = HEADERS[name]
    stream = Bytewise(header + b"rest", most)
    assert await read_proxy_header(stream) == address
    assert stream.data == b"rest"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"PROXY",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 203.0.113.7\r\n",
        b"PROXY TCP4 nowhere 10.0.0.1 1 2\r\n",
        b"PROXY UDP4 203.0.113.7 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 " + b"1" * 200 + b"\r\n",
        version_2(0x31, 0x11, V4),
        version_2(0x22, 0x11, V4),
        version_2(0x21, 0x11, V4[:3]),
        version_2(0x21, 0x11, V4, size=60_000),
        version_2(0x21, 0x11, V4, size=40),
        SIGNATURE_V2,
    ],
)
async def test_bad_header_is_refused(header: bytes) -> None:
    with pytest.raises(BadProxyHeaderError) as caught:
        await read_proxy_header(Bytewise(header, 1000))
    assert caught.value.is_check == (header in (b"", SIGNATURE_V2))


@pytest.mark.parametrize("name", HEADERS)
async def test_listener_behind_a_proxy_knows_the_client(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    header, address = HEADERS[name]
    async with open_btp(options("127.0.0.1", proxy_protocol=True)) as plugin:
        peer = await upgraded(await dial(plugin, header), upgrade_request())
        await peer.authenticate()
        await plugin.wait_connected()
        await peer.aclose()
    assert f"connected with {address or '127.0.0.1'}" in lines_of(caplog)


async def test_header_comes_before_tls(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with open_btp(options("127.0.0.1", proxy_protocol=True, ssl_context=context)) as plugin:
        stream = trio.SSLStream(await dial(plugin, HEADERS["v1"][0]), trusting, server_hostname="127.0.0.1")
        peer = await upgraded(stream, upgrade_request())
        await peer.authenticate()
        await plugin.wait_connected()
        await peer.aclose()
    assert f"connected with {CLIENT}" in lines_of(caplog)


@pytest.mark.parametrize(
    ("proxies", "first", "reason"),
    [
        (["10.0.0.1"], HEADERS["v1"][0], "it does not come from one of trusted_proxies"),
        (["127.0.0.1"], upgrade_request(), "the connection does not begin with a PROXY protocol header"),
        (["127.0.0.1"], b"PROXY TCP4", "it took longer than 5 s"),
    ],
)
async def test_connection_without_a_trusted_header_is_closed(
    proxies: list[str], first: bytes, reason: str, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trio_ledger_plugin")
    async with open_btp(options(*proxies, proxy_protocol=True)) as plugin:
        stream = await dial(plugin, first)
        with trio.fail_after(10), suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        await stream.aclose()
        await trio.sleep(0.1)
    assert f"the handshake with 127.0.0.1 failed: {reason}" in lines_of(caplog)


async def test_server_of_many_accounts_takes_the_same_options(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    opts = AccountsOptions(port=0, trusted_proxies=("127.0.0.1",), proxy_protocol=True)

    async def refuse(data: bytes) -> bytes:
        return b""

    async with open_plugin(
        {
            "plugin": "btp-accounts",
            "port": 0,
            "trustedProxies": ["127.0.0.1"],
            "proxyProtocol": True,
            "debugHostIldcpInfo": {"clientAddress": "example.a", "assetScale": 9, "assetCode": "XRP"},
        },
        data_handler=refuse,
    ) as plugin:
        assert plugin.options.trusted_proxies == opts.trusted_proxies
        host, _, port = plugin.address.rpartition("//")[2].rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        peer = await upgraded(stream, HEADERS["v2"][0] + upgrade_request())
        await peer.authenticate()
        await peer.aclose()
    assert f"from {CLIENT}" in lines_of(caplog)


def test_proxy_protocol_needs_proxies_to_trust() -> None:
    with pytest.raises(InvalidFieldsError, match=r"listener\.proxy_protocol: set without trusted_proxies"):
        options(proxy_protocol=True)
    with pytest.raises(InvalidFieldsError, match=r"proxy_protocol: set without trusted_proxies"):
        AccountsOptions(port=0, proxy_protocol=True)
