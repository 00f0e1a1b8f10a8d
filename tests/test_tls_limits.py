"""TLS handshakes that do not end: how many bytes they can make an end read, and for how long."""

import ssl
from contextlib import suppress
from typing import Any

import pytest
import trio
import trustme
from support.peers import TOKEN, open_btp, serving
from trio.testing import MockClock

from trio_ledger_plugin import BtpOptions, ConnectOptions, ListenerOptions
from trio_ledger_plugin.errors import ConnectTimeoutError

MEGABYTE = 1024 * 1024
CLIENT_HELLO, SERVER_HELLO, CERTIFICATE = 1, 2, 11


def endless(kind: int) -> list[bytes]:
    """Return records of a handshake message that announces 16 MiB: the first, and the one to repeat."""
    start = bytes([kind, 0xFF, 0xFF, 0xFF])
    record = b"\x16\x03\x03\x40\x00"
    return [record + start + bytes(16384 - 4), record + bytes(16384)]


async def send_endlessly(stream: trio.abc.SendStream, kind: int) -> int:
    """Send such a message until the other end closes, and return how many bytes could be sent."""
    first, more = endless(kind)
    sent = 0
    try:
        await stream.send_all(first)
        while True:
            await stream.send_all(more)
            sent += len(more)
    except trio.BrokenResourceError:
        return sent


def server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("kind", [SERVER_HELLO, CERTIFICATE])
async def test_server_cannot_fill_a_client_in_the_handshake(kind: int) -> None:
    """The other end has shown no certificate yet: it may be anyone."""
    sent: list[int] = []

    async def flood(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        sent.append(await send_endlessly(stream, kind))

    opts: dict[str, Any] = {"ssl_context": ssl.create_default_context()}
    async with serving(flood) as url:
        with pytest.raises(ConnectTimeoutError):
            async with open_btp({"server": url.replace("btp+ws:", "btp+wss:"), **opts}, connect=ConnectOptions(500)):
                raise AssertionError("connected")
    # More than OpenSSL reads, since buffers of the system hold some of it.
    assert max(sent) < 8 * MEGABYTE


@pytest.mark.parametrize("kind", [CLIENT_HELLO, CERTIFICATE])
async def test_stranger_cannot_fill_a_server_in_the_handshake(kind: int) -> None:
    options = BtpOptions(listener=ListenerOptions(0, TOKEN, ssl_context=server_context()))
    async with open_btp(options) as plugin:
        stream = await trio.open_tcp_stream("127.0.0.1", int(plugin.address.rpartition(":")[2]))
        with trio.fail_after(5):
            assert await send_endlessly(stream, kind) < 8 * MEGABYTE
        await stream.aclose()


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_stranger_has_five_seconds_for_the_handshake(first: bytes, clock: MockClock) -> None:
    options = BtpOptions(listener=ListenerOptions(0, TOKEN, ssl_context=server_context()))
    async with open_btp(options) as plugin:
        stream = await trio.open_tcp_stream("127.0.0.1", int(plugin.address.rpartition(":")[2]))
        start = trio.current_time()
        if first:
            await stream.send_all(first)
        with suppress(trio.BrokenResourceError):
            assert await stream.receive_some() == b""
        assert trio.current_time() == pytest.approx(start + 5, abs=0.2)
        await stream.aclose()
