"""The end that listens: which peers get in, and what others can do to the connected peer (nothing)."""

import logging
import os
import select
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from support.events import next_event
from support.peers import (
    CLOSE,
    TEXT,
    TOKEN,
    Peer,
    dial,
    dial_in,
    frame,
    linked,
    listening,
    open_btp,
    read_head,
    shake_hands,
    upgrade_request,
)
from support.ports import has_ipv6
from trio.testing import MockClock

from trio_ledger_plugin import BtpOptions, ListenerOptions, PluginServices, open_plugin
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.btp.client import TRY_SECONDS
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.errors import ConnectionLostError
from trio_ledger_plugin.events import Connected, Disconnected
from trio_ledger_plugin.log import StdlibLog
from trio_ledger_plugin.net import listen
from trio_ledger_plugin.net.listen import FAILURES, FAILURES_A_SECOND
from trio_ledger_plugin.options.load import options_from_mapping
from trio_ledger_plugin.runtime.plugin_log import PluginLog
from trio_ledger_plugin.runtime.timers import Timers
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo
from trio_ledger_plugin.testing.scripted_peer import dial_stream


async def assert_serves(peer: Peer, request_id: int = 99) -> None:
    await peer.send_request(request_id, b"still there?")
    assert await peer.receive_packet() == btp.Response(request_id, (btp.ProtocolData("ilp", 0, b"still there?"),))


# Listening.


async def test_port_0_takes_a_free_port_and_the_address_contains_it() -> None:
    async with open_btp(listening()) as one, open_btp(listening()) as other:
        assert one.address.startswith("btp+ws://127.0.0.1:")
        assert not one.address.endswith(":0")
        assert one.address != other.address
        assert TOKEN not in one.address
        assert not one.is_connected()


async def test_a_port_in_use_is_named() -> None:
    """An operator who starts a second process must see the port and the address."""
    async with open_btp(listening()) as plugin:
        port = int(plugin.address.rpartition(":")[2])
        with pytest.raises(OSError, match=f"127.0.0.1 port {port}"):
            async with open_btp({"listener": {"port": port, "secret": TOKEN}}):
                raise AssertionError("opened")
        peer = await dial_in(plugin.address)
        await peer.aclose()


async def test_listening_on_an_address_of_another_machine_fails() -> None:
    with pytest.raises(OSError, match=r"192\.0\.2\.1 port 7768"):
        async with open_btp({"listener": {"port": 7768, "secret": TOKEN, "host": "192.0.2.1"}}):
            raise AssertionError("opened")


async def test_a_port_is_free_again_after_the_block(clock: MockClock) -> None:
    async with open_btp(listening()) as plugin:
        port = int(plugin.address.rpartition(":")[2])
        peer = await dial_in(plugin.address)
    await peer.wait_eof()
    async with open_btp({"listener": {"port": port, "secret": TOKEN}}):
        pass


# Authentication.


@pytest.mark.parametrize("account", ["", "alice", "böb"])
async def test_peer_with_the_token_is_accepted_under_any_name(account: Any) -> None:
    async with open_btp(listening(), data_handler=echo) as plugin:
        peer = await dial(plugin.address)
        assert await peer.authenticate(account=account) == btp.Response(1)
        await next_event(plugin.events, Connected)
        assert plugin.is_connected()
        await assert_serves(peer)
        await peer.aclose()
        await next_event(plugin.events, Disconnected)


@pytest.mark.parametrize("split", [None, 1, 7])
async def test_frames_right_behind_the_auth_frame_are_served(split: Any) -> None:
    """interledger-rs never waits for the reply."""
    async with open_btp(listening(), data_handler=echo) as plugin:
        peer = await dial(plugin.address)
        data = peer.frame(auth_message(1, "", TOKEN, {}))
        data += b"".join(peer.frame(btp.encode_ilp(btp.MESSAGE, i, b"%d" % i)) for i in range(2, 12))
        for at in range(0, len(data), split or len(data)):
            await peer.send(data[at : at + (split or len(data))])
        answers = [await peer.receive_packet() for _ in range(11)]
        assert answers[0] == btp.Response(1)
        assert {answer.request_id for answer in answers[1:]} == set(range(2, 12))
        await peer.aclose()


async def test_new_connection_replaces_the_old_one() -> None:
    """A peer whose network changed comes back before its old connection is known to be dead."""
    async with open_btp(listening(), data_handler=echo) as plugin, trio.open_nursery() as nursery:
        old = await dial_in(plugin.address)
        await next_event(plugin.events, Connected)

        async def call() -> None:
            with pytest.raises(ConnectionLostError, match="replaced"):
                await plugin.send_data(b"lost")

        nursery.start_soon(call)
        await old.receive_packet()
        new = await dial_in(plugin.address)
        await next_event(plugin.events, Disconnected)
        await next_event(plugin.events, Connected)
        assert await old.receive_close() == 1000
        await assert_serves(new)
        await old.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.is_connected()
        await new.aclose()


# Unauthenticated peers.


@pytest.mark.parametrize("token", ["wrong", "", TOKEN + "x", TOKEN[:-1]])
async def test_wrong_token_gets_an_error_reply(token: Any, clock: MockClock) -> None:
    log = Recorder()
    async with open_btp(listening(), PluginServices(log=log)) as plugin:
        peer = await dial(plugin.address)
        packet = await peer.authenticate(token)
        assert (packet.request_id, packet.code, packet.name) == (1, "F00", "NotAcceptedError")
        assert packet.data == b"invalid auth_token"
        assert TOKEN.encode() not in packet.data
        received = await peer.receive()
        assert received.opcode == CLOSE
        await peer.wait_eof()
        assert not plugin.is_connected()
        assert TOKEN not in "".join(log.lines)


async def unauthenticated_wrong_token(address: str) -> None:
    peer = await dial(address)
    await peer.authenticate("wrong")
    await peer.aclose()


async def unauthenticated_floods(address: str) -> None:
    peer = await dial(address)
    await peer.send(peer.frame(auth_message(1, "", "wrong", {})), peer.frame(btp.encode(btp.Transfer(2, 5))) * 50)
    await peer.wait_eof()


async def unauthenticated_opens_and_closes(address: str) -> None:
    await (await dial_stream(address)).aclose()


async def unauthenticated_resets(address: str) -> None:
    await reset(await dial_stream(address))


async def unauthenticated_resets_in_the_handshake(address: str) -> None:
    stream = await dial_stream(address)
    await stream.send_all(upgrade_request())
    await reset(stream)


async def unauthenticated_garbage(address: str) -> None:
    stream = await dial_stream(address)
    await stream.send_all(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n" * 100)
    await Peer(stream, client=True).wait_eof()


async def unauthenticated_no_websocket(address: str) -> None:
    stream = await dial_stream(address)
    await stream.send_all(b"POST / HTTP/1.1\r\nHost: x\r\n\r\n")
    head = await read_head(stream)
    assert head.startswith(b"HTTP/1.1 405 ")
    await trio.aclose_forcefully(stream)


async def unauthenticated_garbage_after_the_handshake(address: str) -> None:
    peer = await dial(address)
    await peer.send(peer.frame(b"garbage"))
    await peer.wait_eof()


async def unauthenticated_transfer_first(address: str) -> None:
    peer = await dial(address)
    await peer.send_packet(btp.Transfer(5, 10))
    packet = await peer.receive_packet()
    assert (packet.request_id, packet.code) == (5, "F00")
    await peer.wait_eof()


async def unauthenticated_text(address: str) -> None:
    peer = await dial(address)
    await peer.send(peer.frame(b"hello", TEXT))
    await peer.wait_eof()


async def unauthenticated_too_big(address: str) -> None:
    peer = await dial(address)
    await peer.send(peer.frame(bytes(9000)))
    await peer.wait_eof()


async def unauthenticated_illegal_frame(address: str) -> None:
    peer = await dial(address)
    await peer.send(frame(b"unmasked"))
    await peer.wait_eof()


async def unauthenticated_closes_politely(address: str) -> None:
    peer = await dial(address)
    await peer.send(peer.frame(b"\x03\xe8", CLOSE))
    assert await peer.receive_close() == 1000
    await peer.wait_eof()


async def reset(stream: trio.SocketStream) -> None:
    """Close with a reset, as a scanner does."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


UNAUTHENTICATED = {name[16:]: f for name, f in list(globals().items()) if name.startswith("unauthenticated_")}


@pytest.mark.parametrize("behaviour", UNAUTHENTICATED)
async def test_connected_peer_is_not_affected_by_unauthenticated_ones(behaviour: Any, clock: MockClock) -> None:
    """Any client that can reach the port could otherwise cut the connection, or fill the application's events."""
    async with linked(data_handler=echo) as (plugin, peer):
        await next_event(plugin.events, Connected)
        await assert_serves(peer)
        before = plugin.statistics()
        for _ in range(4):
            await UNAUTHENTICATED[behaviour](plugin.address)
        await trio.sleep(1)
        assert plugin.statistics() == before
        assert plugin.is_connected()
        await assert_serves(peer, 100)
        with pytest.raises(trio.WouldBlock):
            plugin.events.receive_nowait()


async def test_peer_has_five_seconds_for_the_handshake(clock: MockClock) -> None:
    """Silent sockets must not pile up."""
    async with linked(data_handler=echo) as (plugin, peer):
        start = trio.current_time()
        silent = await dial_stream(plugin.address)
        slow = await dial_stream(plugin.address)
        async with trio.open_nursery() as nursery:

            async def trickle() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    for byte in upgrade_request():
                        await slow.send_all(bytes([byte]))
                        await trio.sleep(0.5)

            nursery.start_soon(trickle)
            await Peer(silent, client=True).wait_eof()
            assert trio.current_time() == start + 5
            await Peer(slow, client=True).wait_eof()
            assert trio.current_time() == start + 5
        assert plugin.is_connected()
        await assert_serves(peer)


async def test_peer_has_five_seconds_for_its_credentials(clock: MockClock) -> None:
    async with open_btp(listening()) as plugin:
        start = trio.current_time()
        peer = await dial(plugin.address)
        late = await dial(plugin.address)
        with trio.move_on_after(4.5):
            await peer.receive()
        assert await late.authenticate() == btp.Response(1)
        await peer.wait_eof()
        assert trio.current_time() == start + 5
        await late.send(late.frame(b"", 9))
        await trio.sleep(10)
        assert plugin.is_connected()
        await late.aclose()


async def test_guesses_are_delayed_and_the_right_token_is_not(clock: MockClock) -> None:
    """Guessing must cost time, and the peer must get in during many guesses."""
    async with open_btp(listening()) as plugin:
        waits = []
        for _ in range(8):
            start = trio.current_time()
            peer = await dial(plugin.address)
            await peer.authenticate("guess")
            waits.append(trio.current_time() - start)
            await peer.aclose()
        assert max(waits[:5]) < 0.1
        assert 0.1 < waits[5] < waits[6] < waits[7]
        start = trio.current_time()
        peer = await dial_in(plugin.address)
        assert trio.current_time() - start < 0.1
        await peer.aclose()


async def test_newcomer_takes_the_place_of_the_longest_silent(clock: MockClock) -> None:
    """Silent sockets must not keep the peer out, however many they are."""
    async with open_btp(listening(max_unauthenticated=3), data_handler=echo) as plugin:
        patient = await dial(plugin.address)
        silent = []
        for _ in range(20):
            silent.append(await dial_stream(plugin.address))
            await trio.testing.wait_all_tasks_blocked()
        newcomer = await dial_in(plugin.address)
        await assert_serves(newcomer)
        for stream in silent[:17]:
            await Peer(stream, client=True).wait_eof()
        # It did its handshake before, but waited longer than the others.
        await patient.wait_eof()
        assert plugin.statistics().unauthenticated_dropped == 19
        for stream in silent[17:]:
            await stream.aclose()
        await newcomer.aclose()


async def test_connections_that_come_to_nothing_are_accepted_at_a_rate(clock: MockClock) -> None:
    """A program that dials without end would otherwise take the time in which connected peers are served."""
    async with open_btp(listening(), data_handler=echo) as plugin:

        async def dial_and_leave(times: int) -> float:
            began = trio.current_time()
            for _ in range(times):
                stream = await dial_stream(plugin.address)
                await stream.aclose()
            peer = await dial_in(plugin.address)
            await assert_serves(peer)
            await peer.aclose()
            return trio.current_time() - began

        assert await dial_and_leave(FAILURES) < 0.01
        assert await dial_and_leave(40) >= 38 / FAILURES_A_SECOND


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have queues of other lengths")
async def test_newcomers_wait_behind_few_others_in_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a queue that takes longer than clients wait, all would give up before their turn."""
    assert listen.BACKLOG / FAILURES_A_SECOND < 0.6 * TRY_SECONDS
    monkeypatch.setattr(listen, "BACKLOG", 16)
    async with open_btp(listening()) as plugin:
        port = int(plugin.address.rpartition(":")[2])
        # The server does not run meanwhile, so that nothing leaves the queue.
        with ExitStack() as stack:
            flood = [stack.enter_context(socket.socket()) for _ in range(60)]
            for each in flood:
                each.setblocking(False)
                with suppress(BlockingIOError):
                    each.connect(("127.0.0.1", port))
            in_queue = select.select([], flood, [], 0)[1]
            assert 10 < len(in_queue) < 20
        peer = await dial_in(plugin.address)
        await peer.aclose()


async def test_progress_keeps_a_place(clock: MockClock) -> None:
    """Of two peers, the one that does nothing makes way."""
    async with open_btp(listening(max_unauthenticated=2)) as plugin:
        stream = await dial_stream(plugin.address)
        await trio.testing.wait_all_tasks_blocked()
        silent = await dial_stream(plugin.address)
        await trio.testing.wait_all_tasks_blocked()
        busy = await shake_hands(stream)
        another = await dial_stream(plugin.address)
        await Peer(silent, client=True).wait_eof()
        assert await busy.authenticate() == btp.Response(1)
        await busy.aclose()
        await another.aclose()


async def test_silent_peer_is_told_that_its_time_is_over(clock: MockClock) -> None:
    """RFC-0023: the server answers with an Error if authentication takes too long."""
    async with open_btp(listening()) as plugin:
        peer = await dial(plugin.address)
        error = await peer.receive_packet()
        assert trio.current_time() == 5
        assert (error.code, error.data) == ("F00", b"no auth packet within 5 s")
        await peer.wait_eof()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on descriptors that can be lowered")
async def test_a_listener_survives_running_out_of_descriptors(clock: MockClock) -> None:
    """A flood of sockets, or a leak elsewhere in the program, must not end the plugin."""
    import resource  # noqa: PLC0415 (not there on Windows)

    log = Recorder()
    async with open_btp(listening(), PluginServices(log=log), data_handler=echo) as plugin:
        peer = await dial_in(plugin.address)
        waiting = trio.socket.socket()
        free = os.dup(0)
        os.close(free)
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
        try:
            await waiting.connect(("127.0.0.1", int(plugin.address.rpartition(":")[2])))
            await trio.sleep(1)
            await assert_serves(peer)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert any("cannot accept" in line for line in log.lines)
        assert len(log.lines) < 20
        newer = await shake_hands(trio.SocketStream(waiting))
        assert await newer.authenticate() == btp.Response(1)
        await peer.wait_eof()
        await newer.aclose()


@pytest.mark.parametrize("origin", ["https://page.example", "null"])
async def test_a_browser_is_refused(origin: Any) -> None:
    """A script on any page could otherwise talk to the plugin on this machine."""
    async with open_btp(listening()) as plugin:
        stream = await dial_stream(plugin.address)
        await stream.send_all(upgrade_request(origin=origin))
        assert (await read_head(stream)).startswith(b"HTTP/1.1 403 ")
        await Peer(stream, client=True).wait_eof()


async def test_browser_of_a_listed_origin_is_accepted() -> None:
    listener = {"port": 0, "secret": TOKEN, "allowedOrigins": ["https://page.example"]}
    async with open_btp({"listener": listener}) as plugin:
        for origin, status in (("https://page.example", b"101"), ("https://other.example", b"403")):
            stream = await dial_stream(plugin.address)
            await stream.send_all(upgrade_request(origin=origin))
            assert (await read_head(stream)).startswith(b"HTTP/1.1 " + status)
            await stream.aclose()


@pytest.mark.parametrize("port", [0, None])
async def test_every_address_has_the_same_port(port: Any, nursery: trio.Nursery) -> None:
    """A client that dials localhost may try IPv6 first."""
    if port is None:
        probe = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = probe[0].socket.getsockname()[1]
        await probe[0].aclose()
    options = BtpOptions(listener=ListenerOptions(port, TOKEN, host=None))
    async with open_btp(options, data_handler=echo) as plugin:
        assert plugin.address.startswith("btp+ws://localhost:")
        number = int(plugin.address.rpartition(":")[2])
        families = ["127.0.0.1", "::1"] if await has_ipv6() else ["127.0.0.1"]
        for address in families:
            peer = await shake_hands(await trio.open_tcp_stream(address, number))
            assert await peer.authenticate() == btp.Response(1)
            await assert_serves(peer)
            await peer.aclose()


ANYWHERE = "0.0.0.0"  # noqa: S104 (the mistake that the test is about)


@pytest.mark.parametrize("plugin", ["btp", "http"])
@pytest.mark.parametrize(
    ("host", "how", "warns"),
    [
        (ANYWHERE, "clear", True),
        ("*", "clear", True),
        ("127.0.0.1", "clear", False),
        ("::1", "clear", False),
        (ANYWHERE, "tls", False),
        (ANYWHERE, "192.0.2.1", False),
        # This one encrypts nothing for clients that connect from other machines.
        (ANYWHERE, "127.0.0.1", True),
        (ANYWHERE, "::1", True),
    ],
)
async def test_server_for_others_without_tls_warns(
    plugin: str, host: str, how: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Tokens would cross the network in the clear, and nobody had said so."""
    if host == "::1" and not await has_ipv6():
        pytest.skip("no IPv6 here")
    end: dict[str, object] = {"port": 0, "host": host, "secret" if plugin == "btp" else "static_token": TOKEN}
    if how == "tls":
        end["ssl_context"] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    options: dict[str, object] = {"plugin": plugin, "listener" if plugin == "btp" else "incoming": end}
    if how not in ("clear", "tls"):
        options["trusted_proxies"] = [how]
    async with open_plugin(options) as server:
        warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
        location = server.address.partition("://")[2]
    wanted = f"listening on {location} without TLS: whoever is on the way to a client can read its token; give the "
    wanted += "server a certificate, or listen on 127.0.0.1 behind a proxy that has one"
    assert warned == [wanted] * warns


def test_star_means_every_address_in_a_mapping() -> None:
    """There, null means that the field is not given."""
    options = options_from_mapping(BtpOptions, {"listener": {"port": 0, "secret": "s", "host": "*"}})
    assert options.listener is not None
    assert options.listener.host is None


async def test_unauthenticated_peers_are_dropped_when_the_plugin_closes(clock: MockClock) -> None:
    async with open_btp(listening()) as plugin:
        peer = await dial(plugin.address)
        stream = await dial_stream(plugin.address)
    await peer.wait_eof()
    await Peer(stream, client=True).wait_eof()


# TLS.


@asynccontextmanager
async def listening_with_tls() -> AsyncIterator[Any]:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with open_btp({"listener": {"port": 0, "secret": TOKEN, "ssl_context": server}}, data_handler=echo) as plugin:
        yield plugin, client


async def test_a_listener_speaks_tls(clock: MockClock) -> None:
    async with listening_with_tls() as (plugin, context):
        assert plugin.address.startswith("btp+wss://127.0.0.1:")
        url = plugin.address.replace("//", f"//alice:{TOKEN}@")
        async with open_btp({"server": url, "ssl_context": context}) as client:
            assert await client.send_data(b"x" * 60_000) == b"x" * 60_000
            await next_event(plugin.events, Connected)
            await client.disconnect()
            await next_event(plugin.events, Disconnected)


@pytest.mark.parametrize(
    "end", [{"plugin": "btp", "listener": {"secret": TOKEN}}, {"plugin": "http", "incoming": {"static_token": TOKEN}}]
)
async def test_context_without_certificate_is_named_in_the_log(
    end: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """OpenSSL only says "no shared cipher", and the client cannot know the reason."""
    caplog.set_level(logging.DEBUG)
    where = {"port": 0, "ssl_context": ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)}
    options = {name: {**value, **where} if isinstance(value, dict) else value for name, value in end.items()}
    async with open_plugin(options) as server:
        port = int(server.address.rpartition(":")[2])
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port)
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)
    assert any("has the ssl_context a certificate (load_cert_chain)?" in record.message for record in caplog.records)


@pytest.mark.parametrize("what", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello" * 10])
async def test_connection_without_tls_does_not_affect_others(what: Any, clock: MockClock) -> None:
    async with listening_with_tls() as (plugin, context):
        secured: Any = trio.SSLStream(
            await dial_stream(plugin.address), context, server_hostname="127.0.0.1", https_compatible=True
        )
        peer = await shake_hands(secured)
        assert await peer.authenticate() == btp.Response(1)
        for _ in range(3):
            stream = await dial_stream(plugin.address)
            if what:
                await stream.send_all(what)
                await Peer(stream, client=True).wait_eof()
            else:
                await reset(stream)
        await assert_serves(peer)
        await peer.aclose()


async def test_log_has_address_and_end_of_each_connection(clock: MockClock, caplog: Any) -> None:
    """When two clients replace each other, an operator would see that a client connects, but not which one."""
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    async with open_btp(listening()) as plugin:
        first = await dial_in(plugin.address)
        second = await dial_in(plugin.address)
        await first.wait_eof()
        await second.aclose()
        for kind in (Connected, Disconnected) * 2:
            await next_event(plugin.events, kind)
    messages = [record.getMessage() for record in caplog.records]
    ended = "the connection with 127.0.0.1 ended: "
    came = "connected with 127.0.0.1"
    assert messages == [came, ended + "replaced by a new connection", came, ended + "the peer closed the connection"]


async def test_error_in_serving_one_connection_does_not_end_the_others(caplog: Any) -> None:
    """A mistake of this package that one peer can cause must not be a way to end the server."""

    async def serve(stream: trio.SocketStream, _peer: str) -> bool:
        data = await stream.receive_some(1)
        if data == b"?":
            raise ValueError("a mistake")
        await stream.send_all(data)
        return False

    listener = listen.Listener(PluginLog(StdlibLog(), (), Timers()), "127.0.0.1", 0, serve, lambda: None, is_clear=True)
    async with trio.open_nursery() as nursery:
        bound = trio.Event()
        nursery.start_soon(listener.run, bound.set)
        await bound.wait()
        port = int(listener.location.rpartition(":")[2])
        good, bad = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        await bad.send_all(b"?")
        assert await bad.receive_some(1) == b""
        await good.send_all(b"!")
        assert await good.receive_some(1) == b"!"
        for stream in (good, bad):
            await stream.aclose()
        nursery.cancel_scope.cancel()
    assert [record.message.splitlines()[0] for record in caplog.records] == [
        "serving 127.0.0.1 failed: ValueError('a mistake')"
    ]
