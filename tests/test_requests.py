"""HTTP requests at a WebSocket server: what is no handshake is answered, and the log has the reason."""

import logging
from typing import Any

import pytest
import trio
import trio.testing
from support.peers import TOKEN, Peer, listening, open_btp, upgrade_request
from trio.testing import MockClock

from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.websocket.requests import BadHandshakeError, receive_handshake

OPTIONS = PluginOptions(max_head_bytes=2000)
LONG = upgrade_request().replace(b"Host: ", b"Cookie: " + b"x" * 3000 + b"\r\nHost: ")


async def ask(request: bytes, piece: int = 10_000, *, then_end: bool = False) -> tuple[bytes, Any]:
    """Send a request in pieces, and return the response and what receive_handshake() returns or raises."""
    near, far = trio.testing.memory_stream_pair()
    outcome: Any = None

    async def serve() -> None:
        nonlocal outcome
        try:
            outcome = await receive_handshake(near, OPTIONS)
        except BadHandshakeError as error:
            outcome = error
        await near.send_stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        for at in range(0, len(request), piece):
            await far.send_all(request[at : at + piece])
            await trio.testing.wait_all_tasks_blocked()
        if then_end:
            await far.send_eof()
        response = b""
        while data := await far.receive_some():
            response += data
        await far.aclose()
    return response, outcome


@pytest.mark.parametrize("piece", [1, 700, 10_000])
async def test_handshake_is_passed_on_with_what_follows(piece: int) -> None:
    request = upgrade_request(origin="https://page.example")
    response, handshake = await ask(request + b"f", piece)
    assert response == b""
    head, rest = handshake.received
    assert head == request
    assert rest in (b"", b"f")
    assert handshake.origin == "https://page.example"


@pytest.mark.parametrize("piece", [100, 1400, 10_000])
async def test_long_head_gets_431_however_it_is_cut(piece: int, autojump_clock: MockClock) -> None:
    """A reset would become a 502 of the proxy before, without any explanation."""
    response, error = await ask(LONG, piece)
    assert response.startswith(b"HTTP/1.1 431 ")
    assert "2,000 bytes (max_head_bytes)" in str(error)


@pytest.mark.parametrize(
    ("request_bytes", "status", "reason"),
    [
        (b"GET / HTTP/1.0\r\nSec-WebSocket-Version: 13\r\n\r\n", 426, "Upgrade header is missing: a proxy"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\n", 405, "a POST request"),
        (b"\x80\x01\r\n\r\n", 400, "does not speak HTTP"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n", 400, "a PROXY protocol header"),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11", 400, "a PROXY protocol header"),
        (upgrade_request().replace(b"HTTP/1.1", b"HTTP/1.0"), 400, "needs HTTP/1.1"),
        (upgrade_request().replace(b"Upgrade: websocket", b"Upgrade: h2c"), 400, "must be websocket"),
        (upgrade_request().replace(b"Connection: Upgrade", b"Connection: close"), 400, "Connection header"),
        (upgrade_request().replace(b"Sec-WebSocket-Key", b"X-Key"), 400, "Sec-WebSocket-Key header is missing"),
        (upgrade_request().replace(b"Version: 13", b"Version: 8"), 400, "Sec-WebSocket-Version header must be 13"),
        (upgrade_request().replace(b"GET", b"PUT"), 400, "not PUT"),
    ],
)
async def test_each_mistake_has_a_status_and_a_reason(
    request_bytes: bytes, status: int, reason: str, autojump_clock: MockClock
) -> None:
    """With "the handshake failed" alone, the missing line cannot be found in the configuration of nginx."""
    response, error = await ask(request_bytes)
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert reason in str(error)
    assert not error.is_check


async def test_tls_on_a_plain_port_is_named() -> None:
    response, error = await ask(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", then_end=True)
    assert response == b""
    assert "speaks TLS, and this port does not" in str(error)


@pytest.mark.parametrize(
    "request_bytes",
    [b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\nGET / HTTP/1.0\r\n\r\n", b"OPTIONS / HTTP/1.0\r\n\r\n"],
)
async def test_health_check_gets_200(request_bytes: bytes, autojump_clock: MockClock) -> None:
    response, error = await ask(request_bytes)
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"Content-Length: 3\r\nConnection: close\r\n\r\nOK\n")
    assert error.is_check


async def test_head_request_gets_200_without_a_body(autojump_clock: MockClock) -> None:
    response, error = await ask(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.endswith(b"\r\n\r\n")
    assert error.is_check


@pytest.mark.parametrize(("sent", "is_check"), [(b"", True), (b"GET / HT", False)])
async def test_connection_without_a_request_is_a_check(sent: bytes, is_check: bool) -> None:
    response, error = await ask(sent, then_end=True)
    assert response == b""
    assert error.is_check == is_check


async def test_answer_is_not_lost_to_what_the_client_still_sends() -> None:
    """The system discards an answer when the socket is closed with bytes unread."""
    async with open_btp(listening()) as plugin:
        host, _, port = plugin.address.rpartition("//")[2].rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        await stream.send_all(b"GET / HTTP/1.1\r\n" + b"X-Filler: abcdefgh\r\n" * 5000 + b"\r\n")
        response = b""
        while data := await stream.receive_some():
            response += data
        assert response.startswith(b"HTTP/1.1 431 ")
        await stream.aclose()


async def test_log_has_one_line_for_a_failed_handshake(clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """And none at INFO for health checks, of which a load balancer makes one a second."""
    caplog.set_level(logging.INFO)
    async with open_btp(listening(handshake_timeout=3.0)) as plugin:
        host, _, port = plugin.address.rpartition("//")[2].rpartition(":")
        for request in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HT"):
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(request)
            with trio.fail_after(10):
                while await stream.receive_some():
                    pass
            await stream.aclose()
        peer = await Peer.dial(plugin.address)
        await peer.authenticate(TOKEN)
        await plugin.wait_connected()
        lines = [record.getMessage() for record in caplog.records if "handshake" in record.getMessage()]
        assert lines == [
            "the handshake with 127.0.0.1 failed: a PUT request; only handshakes and health checks are expected",
            "the handshake with 127.0.0.1 failed: it took longer than 3 s",
        ]
        await peer.aclose()
