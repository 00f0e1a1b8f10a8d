"""The end that dials: what ends an attempt, what is retried and when, and what ends the plugin."""

import re
import socket
import ssl
import threading
import traceback
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import inf
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from support.events import next_event
from support.peers import CLOSE, TOKEN, Peer, frame, open_btp, read_head, serving, welcome
from trio.testing import MockClock

from trio_ledger_plugin import ConnectOptions, PluginServices
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.errors import (
    ConnectTimeoutError,
    InvalidFieldsError,
    NotAcceptedError,
    PluginFailedError,
    UnreachableError,
)
from trio_ledger_plugin.events import Connected, Disconnected, Failed
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo

NOON = datetime(2018, 8, 31, 12, 0, 0, 899_000, tzinfo=UTC)


OFTEN = 20


class Server:
    """A scripted server: each connection gets the next behaviour, and later ones the last."""

    def __init__(self, *behaviours: Any) -> None:
        self.behaviours = behaviours
        self.times: list[float] = []
        self.peers: list[Peer] = []
        self.tried_often = trio.Event()

    async def __call__(self, stream: trio.SocketStream) -> None:
        turn = len(self.times)
        self.times.append(trio.current_time())
        if turn == OFTEN:
            self.tried_often.set()
        await self.behaviours[min(turn, len(self.behaviours) - 1)](self, stream)

    async def accept(self, stream: trio.abc.Stream) -> None:
        """Accept the client and keep the link."""
        peer = await welcome(stream)
        await peer.let_in()
        self.peers.append(peer)
        await trio.sleep_forever()

    async def accept_and_leave(self, stream: trio.abc.Stream) -> None:
        await (await welcome(stream)).let_in()

    async def hang_up(self, stream: trio.abc.Stream) -> None:
        """Close before the handshake."""

    async def close_silently(self, stream: trio.abc.Stream) -> None:
        """Close after the credentials, without a reply."""
        await (await welcome(stream)).receive_packet()

    async def say_nothing(self, stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async def say_nothing_after_the_handshake(self, stream: trio.abc.Stream) -> None:
        await welcome(stream)
        await trio.sleep_forever()

    async def refuse(self, stream: trio.abc.Stream, code: str = "F00") -> None:
        """Refuse the credentials, and repeat them in the error."""
        peer = await welcome(stream)
        packet = await peer.receive_packet()
        data = b"no such token: " + packet.protocol_data[2].data
        await peer.send_packet(btp.Error(packet.request_id, code, "NotAcceptedError", NOON, data))
        await peer.wait_eof()

    async def refuse_for_now(self, stream: trio.abc.Stream) -> None:
        await self.refuse(stream, "T00")

    async def answer_nonsense(self, stream: trio.abc.Stream) -> None:
        peer = await welcome(stream)
        await peer.receive_packet()
        await peer.send(peer.frame(b"\x01\x02\x03"))
        await peer.wait_eof()


def answering(status: int, after: str = "", location: str = "") -> Any:
    headers = "".join(
        f"{name}: {value}\r\n" for name, value in {"Retry-After": after, "Location": location}.items() if value
    )

    async def behave(server: Server, stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 %d Said So\r\n%sContent-Length: 4\r\n\r\nwhat" % (status, headers.encode()))
        await stream.receive_some()

    return behave


async def connect_fails(server: Server, error: type[Exception], *, timeout: float = 30_000, **options: Any) -> Any:
    async with serving(server) as url:
        with pytest.raises(error) as caught:
            async with open_btp({"server": url, **options}, connect=ConnectOptions(timeout)):
                raise AssertionError("connected")
    return caught.value


# The first connection.


async def test_client_is_connected_once_it_is_accepted(clock: MockClock) -> None:
    server = Server(Server.accept)
    async with serving(server) as url, open_btp({"server": url}) as plugin:
        assert plugin.is_connected()
        await next_event(plugin.events, Connected)
        assert TOKEN not in plugin.address
        assert "alice" not in plugin.address


async def test_auth_packet_is_the_first_and_contains_the_flags(clock: MockClock) -> None:
    """Servers know this order of entries, as ilp-plugin-btp sends it."""
    packets: list[Any] = []

    async def look(server: Server, stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        packets.append(await peer.let_in())
        await peer.wait_eof()

    async with serving(Server(look)) as url, open_btp({"server": url, "btp_auth_flags": {"mode": "receive"}}):
        entries = [(entry.protocol_name, entry.content_type, entry.data) for entry in packets[0].protocol_data]
        assert entries == [
            ("auth", 0, b""),
            ("auth_username", 1, b"alice"),
            ("auth_token", 1, TOKEN.encode()),
            ("mode", 1, b"receive"),
        ]


async def test_requests_around_the_reply_to_credentials_are_served(clock: MockClock) -> None:
    """Servers send at once; a lost request would hang at their end."""
    answers: list[Any] = []
    done = trio.Event()

    async def eager(server: Server, stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        packet = await peer.receive_packet()
        await peer.send(
            peer.frame(btp.encode_ilp(btp.MESSAGE, 1, b"before")),
            peer.frame(btp.encode(btp.Response(packet.request_id))),
            peer.frame(btp.encode_ilp(btp.MESSAGE, 2, b"behind")),
        )
        answers.extend([await peer.receive_packet(), await peer.receive_packet()])
        done.set()
        await peer.wait_eof()

    async with serving(Server(eager)) as url, open_btp({"server": url}, data_handler=echo):
        await done.wait()
    assert sorted((answer.request_id, answer.protocol_data[0].data) for answer in answers) == [
        (1, b"before"),
        (2, b"behind"),
    ]


async def test_flood_before_the_reply_is_not_kept(clock: MockClock) -> None:
    """A server that never replies to the credentials must not fill the memory."""

    async def flood(server: Server, stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        await peer.receive_packet()
        for i in range(100):
            await peer.send_request(i, bytes(1000))
        await peer.wait_eof()

    error = await connect_fails(Server(flood), ConnectTimeoutError, timeout=9000)
    assert "past the limits" in str(error.__cause__)


async def test_missing_credentials_are_named(clock: MockClock) -> None:
    server = Server(Server.accept)
    async with serving(server) as url:
        bare = "btp+ws://" + url.rpartition("@")[2]
        with pytest.raises(InvalidFieldsError, match="credentials"):
            async with open_btp({"server": bare}):
                raise AssertionError("connected")
    assert server.times == []


async def test_refused_credentials_fail_at_once_without_the_token(clock: MockClock) -> None:
    """Retrying refused credentials is a storm, and a token in an error is a token in a bug report."""
    server, log = Server(Server.refuse), Recorder()
    async with serving(server) as url:
        start = trio.current_time()
        with pytest.raises(NotAcceptedError, match="no such token") as caught:
            async with open_btp({"server": url}, PluginServices(log=log)):
                raise AssertionError("connected")
        assert trio.current_time() - start < 1
    assert len(server.times) == 1
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + "".join(log.lines)
    assert TOKEN not in text
    assert TOKEN not in repr(caught.value.__cause__.__dict__)


@pytest.mark.parametrize(("token", "sent"), [("a=b=canary", "a%3Db%3Dcanary"), ("a%3Dcanary", "a%3Dcanary")])
async def test_escaped_token_is_warned_about_once(
    token: Any, sent: Any, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that knows the token as it is in the URL refuses it, and the reason would be a riddle."""
    server = Server(Server.hang_up, Server.accept)
    async with serving(server, credentials=f"alice:{token}") as url, open_btp({"server": url}):
        await trio.testing.wait_all_tasks_blocked()
    warned = [record.getMessage() for record in caplog.records if "percent-encoded" in record.getMessage()]
    assert len(warned) == (token != sent)
    assert "canary" not in caplog.text


@pytest.mark.parametrize("status", [401, 403, 408, 425, 429, 500, 503])
async def test_http_refusals_are_no_verdict_on_the_token(status: Any, clock: MockClock) -> None:
    """The token travels in BTP: such a status comes from a proxy, and to give up would be an outage for good."""
    server = Server(answering(status), answering(status), Server.accept)
    async with serving(server) as url, open_btp({"server": url}) as plugin:
        assert plugin.is_connected()
        assert len(server.times) == 3
        await server.peers[0].aclose()
    server = Server(answering(status))
    error = await connect_fails(server, ConnectTimeoutError, timeout=2000)
    assert f"HTTP {status}" in str(error)


TOMORROW = (datetime.now(UTC) + timedelta(days=1)).strftime("%a, %d %b %Y %H:%M:%S GMT")


@pytest.mark.parametrize(
    ("after", "least"), [("7", 7), (TOMORROW, 3600), ("soon", 0), ("", 0)], ids=["seconds", "time", "text", "empty"]
)
async def test_retry_after_is_honoured(after: str, least: float, clock: MockClock) -> None:
    """A server that asks for a pause and gets a storm instead does not recover; a day would be too much, too."""
    busy = answering(503, after)
    server = Server(busy, Server.accept, busy, Server.accept)
    async with serving(server) as url, open_btp({"server": url}, connect=ConnectOptions(inf)) as plugin:
        await next_event(plugin.events, Connected)
        await server.peers[0].aclose()
        await next_event(plugin.events, Disconnected)
        await next_event(plugin.events, Connected)
    for first, second in ((0, 1), (2, 3)):
        assert least <= server.times[second] - server.times[first] <= least + 0.2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirect_is_refused_and_its_target_named(status: Any, clock: MockClock) -> None:
    """To follow it would send the token to another server; without its target the URL cannot be mended."""
    server = Server(answering(status, location="https://moved.example/btp\x1b[31m"))
    error = await connect_fails(server, UnreachableError, timeout=1000)
    assert isinstance(error, ConnectTimeoutError) == (status in (302, 307))
    assert r"https://moved.example/btp\x1b[31m" in str(error)


async def test_server_of_another_protocol_is_named_as_such(clock: MockClock) -> None:
    async def greet(server: Server, stream: trio.SocketStream) -> None:
        await stream.send_all(b"SSH-2.0-OpenSSH_9.2\r\n")

    error = await connect_fails(Server(greet), ConnectTimeoutError, timeout=1000)
    assert "not answered in HTTP" in str(error)


async def test_body_of_a_refusal_is_not_read(clock: MockClock) -> None:
    """An attacker in between could otherwise fill the memory: such a body has no limit."""
    sent = 0

    async def flood(server: Server, stream: trio.SocketStream) -> None:
        nonlocal sent
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100000000000\r\n\r\n")
        while True:
            await stream.send_all(bytes(65536))
            sent += 65536

    await connect_fails(Server(flood), UnreachableError)
    # What the buffers of the system hold.
    assert sent < 16 * 1024 * 1024


async def test_head_of_an_answer_has_a_limit(clock: MockClock) -> None:
    async def flood(server: Server, stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nX: " + bytes(20_000) + b"\r\n\r\n")
        await stream.receive_some()

    error = await connect_fails(Server(flood), ConnectTimeoutError, timeout=1000)
    assert "the HTTP head exceeds 16,384 bytes" in str(error)


async def test_server_that_closes_at_a_handshake_may_expect_tls(clock: MockClock) -> None:
    async def close(server: Server, stream: trio.SocketStream) -> None:
        await read_head(stream)
        await stream.aclose()

    error = await connect_fails(Server(close), ConnectTimeoutError, timeout=1000)
    assert str(error).endswith("; if it expects TLS, its URL begins with btp+wss://")


async def test_a_url_without_an_endpoint_fails_at_once(clock: MockClock) -> None:
    server = Server(answering(404))
    error = await connect_fails(server, UnreachableError)
    assert not isinstance(error, ConnectTimeoutError)
    assert error.name == "UnreachableError"
    assert "HTTP 404" in str(error)
    assert "no BTP endpoint at this URL" in str(error)
    assert len(server.times) == 1


@pytest.mark.parametrize(
    "behaviour",
    [answering(200), answering(500), Server.hang_up, Server.refuse_for_now, Server.answer_nonsense],
)
async def test_server_errors_are_retried_until_the_timeout(behaviour: Any, clock: MockClock) -> None:
    """A server that restarts must not make its clients give up."""
    server = Server(behaviour)
    error = await connect_fails(server, ConnectTimeoutError, timeout=2000)
    assert isinstance(error.__cause__, UnreachableError)
    assert isinstance(error, TimeoutError)
    assert TOKEN not in str(error)
    assert len(server.times) > 2
    recovering = Server(behaviour, behaviour, Server.accept)
    async with serving(recovering) as url, open_btp({"server": url}) as plugin:
        assert plugin.is_connected()
        assert len(recovering.times) == 3


async def test_port_without_a_listener_is_a_timeout_with_its_cause(clock: MockClock) -> None:
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    start = trio.current_time()
    with pytest.raises(ConnectTimeoutError) as caught:
        async with open_btp({"server": f"btp+ws://a:{TOKEN}@127.0.0.1:{port}"}, connect=ConnectOptions(timeout=2500)):
            raise AssertionError("connected")
    assert trio.current_time() == start + 2.5
    assert isinstance(caught.value.__cause__, UnreachableError)
    assert isinstance(caught.value.__cause__.__cause__, OSError)


async def test_silent_closes_are_no_refusal(clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """interledger-rs refuses in this way, and also closes silently in case of its own troubles."""
    error = await connect_fails(Server(Server.close_silently), ConnectTimeoutError, timeout=5000)
    assert re.search(r"no answer to the credentials, \d+ times so far .*; the server may refuse the token", str(error))
    caplog.clear()
    patient = Server(*[Server.close_silently] * 5, Server.accept)
    async with serving(patient) as url, open_btp({"server": url}) as plugin:
        assert plugin.is_connected()
        assert len(patient.times) == 6
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition("credentials, ")[2][:7] for line in warned] == ["1 times", "3 times"]


async def test_close_code_and_text_are_told(clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """Without them an operator does not know whether to wait, to pay, or to mend something."""

    async def close(peer: Peer) -> None:
        await peer.send(frame((1013).to_bytes(2, "big") + f"over\x1bquota, {TOKEN}".encode(), CLOSE))

    async def leave(server: Server, stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        await peer.let_in()
        await close(peer)

    async def turn_away(server: Server, stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        await peer.receive_packet()
        await close(peer)

    caplog.set_level("INFO")
    async with serving(Server(leave, turn_away, Server.accept)) as url, open_btp({"server": url}) as plugin:
        await next_event(plugin.events, Connected)
        lost = await next_event(plugin.events, Disconnected)
        assert lost.reason == r"the peer closed the connection with 1013: over\x1bquota, ***"
        await next_event(plugin.events, Connected)
    told = [record for record in caplog.records if r"1013: over\x1bquota, ***" in record.getMessage()]
    assert [record.levelname for record in told] == ["INFO", "WARNING"]


@pytest.mark.parametrize("timeout", [5_000, 30_000])
@pytest.mark.parametrize("phase", ["handshake", "auth", "tls"])
async def test_a_server_that_hangs_does_not_hang_the_caller(phase: Any, timeout: Any, clock: MockClock) -> None:
    """One scope covers all phases, and one silent connection does not use up the whole timeout."""
    server = Server(Server.say_nothing_after_the_handshake if phase == "auth" else Server.say_nothing)
    async with serving(server) as url:
        start = trio.current_time()
        with pytest.raises(ConnectTimeoutError) as caught:
            async with open_btp(
                {"server": url.replace("btp+ws:", "btp+wss:"), "ssl_context": ssl.create_default_context()}
                if phase == "tls"
                else {"server": url},
                connect=ConnectOptions(timeout),
            ):
                raise AssertionError("connected")
        assert trio.current_time() == start + timeout / 1000
    assert (len(server.times) > 1) == (timeout > 10_000)
    assert (caught.value.__cause__ is not None) == (timeout > 10_000)


@pytest.mark.parametrize("host", ["a..example", "x" * 70 + ".example"])
async def test_host_with_an_invalid_name_is_unreachable(host: Any, clock: MockClock) -> None:
    """The error of a codec does not say that the URL is wrong."""
    opts = {"server": f"btp+wss://a:{TOKEN}@{host}", "ssl_context": ssl.create_default_context()}
    with pytest.raises(UnreachableError) as caught:
        async with open_btp(opts, connect=ConnectOptions(timeout=1000)):
            raise AssertionError("connected")
    assert not isinstance(caught.value, ConnectTimeoutError)
    assert TOKEN not in str(caught.value)


# Redials.


async def test_a_lost_link_is_redialed_at_once(clock: MockClock) -> None:
    server = Server(Server.accept)
    async with serving(server) as url, open_btp({"server": url}) as plugin:
        await next_event(plugin.events, Connected)
        await trio.sleep(15)
        lost = trio.current_time()
        await server.peers[0].aclose()
        await next_event(plugin.events, Disconnected)
        await next_event(plugin.events, Connected)
        assert trio.current_time() == lost
        assert server.times == [0, lost]
        assert plugin.statistics().redials == 1


async def test_redials_back_off_with_jitter_up_to_the_longest_pause(clock: MockClock) -> None:
    """All clients of a restarted server would otherwise come back at the same moment, again and again."""
    server = Server(Server.accept, Server.hang_up)
    async with serving(server) as url, open_btp({"server": url, "redial_max_delay": 5.0}) as plugin:
        await next_event(plugin.events, Connected)
        await trio.sleep(15)
        lost = trio.current_time()
        await server.peers[0].aclose()
        await trio.sleep(100)
        tries = server.times[1:]
        assert tries[0] == lost
        assert not plugin.is_connected()
        gaps = [later - earlier for earlier, later in pairwise(tries)]
        for at, gap in zip(tries, gaps, strict=False):
            assert gap <= min(max(at - lost, 0.1), 5) + 0.01
        assert len({round(gap, 3) for gap in gaps}) > len(gaps) / 2
        assert 20 <= len(tries) <= 150
        server.behaviours = (Server.accept,)
        await next_event(plugin.events, Disconnected)
        with trio.fail_after(5.1):
            await next_event(plugin.events, Connected)


async def test_short_links_do_not_cause_a_storm_of_redials(clock: MockClock) -> None:
    """Two clients of one account replace each other; neither may come back in the same millisecond."""
    server = Server(Server.accept_and_leave)
    async with serving(server) as url, open_btp({"server": url}):
        await server.tried_often.wait()
    assert server.times[OFTEN] - server.times[0] > 1


async def test_credentials_refused_on_a_redial_end_the_plugin(clock: MockClock) -> None:
    server = Server(Server.accept, Server.refuse)
    plugins: list[Any] = []

    async def lose_the_link(url: str) -> None:
        async with open_btp({"server": url}) as plugin:
            plugins.append(plugin)
            await next_event(plugin.events, Connected)
            await server.peers[0].aclose()
            await trio.sleep(60)
            raise AssertionError("still there")

    async with serving(server) as url:
        with pytest.raises(PluginFailedError) as caught:
            await lose_the_link(url)
        plugin = plugins[0]
        assert isinstance(caught.value.__cause__, NotAcceptedError)
        await next_event(plugin.events, Disconnected)
        failed = await next_event(plugin.events, Failed)
        assert failed.error is caught.value.__cause__
        with pytest.raises(trio.EndOfChannel):
            await plugin.events.receive()
        with pytest.raises(PluginFailedError):
            await plugin.send_data(b"ask")
        assert TOKEN not in "".join(traceback.format_exception(caught.value))
    assert len(server.times) == 2


@pytest.mark.parametrize("behaviour", [Server.close_silently, answering(404), Server.hang_up])
async def test_other_errors_on_a_redial_are_retried(behaviour: Any, clock: MockClock) -> None:
    """A server that is being deployed answers with all of these for a minute."""
    server = Server(Server.accept, *[behaviour] * 5, Server.accept)
    async with serving(server) as url, open_btp({"server": url}) as plugin:
        await next_event(plugin.events, Connected)
        await server.peers[0].aclose()
        await next_event(plugin.events, Disconnected)
        await next_event(plugin.events, Connected)
        assert len(server.times) == 7


async def test_redial_without_a_thread_for_the_resolver_is_retried(clock: MockClock) -> None:
    """A system that is short of threads for a moment must not end the plugin for good."""

    class Resolver(trio.abc.HostnameResolver):
        failures = 0

        async def getaddrinfo(self, _host: Any, port: Any, *_: object) -> list[Any]:
            if self.failures:
                self.failures -= 1
                raise RuntimeError("can't start new thread")
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", port))]

        async def getnameinfo(self, *_: object) -> tuple[str, str]:
            raise AssertionError("there is no request")

    resolver = Resolver()
    trio.socket.set_custom_hostname_resolver(resolver)
    server = Server(Server.accept)
    async with serving(server) as url, open_btp({"server": url.replace("127.0.0.1", "localhost")}) as plugin:
        await next_event(plugin.events, Connected)
        resolver.failures = 3
        await server.peers[0].aclose()
        await next_event(plugin.events, Disconnected)
        await next_event(plugin.events, Connected)
        assert resolver.failures == 0


async def test_disconnecting_while_redialing_ends_it(clock: MockClock) -> None:
    server = Server(Server.accept, Server.say_nothing)
    async with serving(server) as url, open_btp({"server": url}) as plugin:
        await server.peers[0].aclose()
        await trio.sleep(1)
        await plugin.disconnect()
        await trio.sleep(100)
        assert len(server.times) == 2
        server.behaviours = (Server.accept,)
        await plugin.connect(ConnectOptions(inf))
        assert plugin.is_connected()


# TLS.


def tls_server(certificate: trustme.LeafCert) -> Server:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def behave(server: Server, stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, context, server_side=True)
        await server.accept(secured)

    return Server(behave)


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_client_connects_to_a_trusted_server(clock: MockClock) -> None:
    authority = trustme.CA()
    server = tls_server(authority.issue_cert("127.0.0.1"))
    async with serving(server) as url:
        opts = {"server": url.replace("btp+ws:", "btp+wss:"), "ssl_context": trusting(authority)}
        async with open_btp(opts) as plugin, trio.open_nursery() as nursery:

            async def call() -> None:
                assert await plugin.send_data(b"x" * 50_000) == b"y" * 50_000

            nursery.start_soon(call)
            packet = await server.peers[0].receive_packet()
            await server.peers[0].respond(packet.request_id, b"y" * 50_000)


@pytest.mark.parametrize("flaw", ["wrong host", "unknown authority", "expired", "system's authorities"])
async def test_untrusted_server_is_refused_at_once(flaw: Any, clock: MockClock) -> None:
    """The token would otherwise go to an attacker in between; and a retry does not change a certificate."""
    authority = trustme.CA()
    host = "other.example" if flaw == "wrong host" else "127.0.0.1"
    long_ago = datetime.now(UTC) - timedelta(days=10)
    past: dict[str, Any] = (
        {"not_before": long_ago, "not_after": long_ago + timedelta(days=1)} if flaw == "expired" else {}
    )
    server = tls_server(authority.issue_cert(host, **past))
    opts: dict[str, Any] = {}
    if flaw == "system's authorities":
        opts["ssl_context"] = ssl.create_default_context()
    else:
        opts["ssl_context"] = trusting(trustme.CA() if flaw == "unknown authority" else authority)
    async with serving(server) as url:
        start = trio.current_time()
        with pytest.raises(UnreachableError, match="certificate") as caught:
            async with open_btp({"server": url.replace("btp+ws:", "btp+wss:"), **opts}):
                raise AssertionError("connected")
        assert trio.current_time() - start < 1
    assert not isinstance(caught.value, ConnectTimeoutError)
    assert caught.value.name == "UnreachableError"
    assert len(server.times) == 1
    assert server.peers == []


async def test_servers_are_verified_without_a_context_of_ours() -> None:
    """The system's certificates are files: reading them on Trio's thread would delay every other task."""
    made = set()
    make = ssl.create_default_context

    def create() -> ssl.SSLContext:
        made.add(threading.current_thread())
        return make()

    server = tls_server(trustme.CA().issue_cert("127.0.0.1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", create)
        async with serving(server) as url:
            with pytest.raises(UnreachableError, match="certificate"):
                async with open_btp({"server": url.replace("btp+ws:", "btp+wss:")}):
                    raise AssertionError("connected")
    assert len(made) == 1
    assert threading.main_thread() not in made


async def test_server_that_says_goodbye_and_stays_is_left(mock_clock: MockClock) -> None:
    """A client that redials would otherwise keep the socket of each such connection."""
    goodbye, ended = trio.Event(), trio.Event()

    async def say_goodbye(_: Server, stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        await peer.let_in()
        await goodbye.wait()
        await peer.send(peer.frame((1000).to_bytes(2), CLOSE))
        await peer.receive_close()
        await peer.wait_eof()
        ended.set()

    with trio.CancelScope() as scope:
        async with serving(Server(say_goodbye, Server.accept)) as url, open_btp({"server": url}) as plugin:
            await next_event(plugin.events, Connected)
            goodbye.set()
            await next_event(plugin.events, Disconnected)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not ended.is_set()
            mock_clock.jump(2)
            await trio.testing.wait_all_tasks_blocked(0.05)
            # The clock stands still, so that nothing can be waited for at the end.
            scope.cancel()
    assert ended.is_set()
