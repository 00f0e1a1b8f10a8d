"""An application with its own server hands connections to a plugin, which treats them like its own."""

from __future__ import annotations

import ssl
from base64 import urlsafe_b64encode
from contextlib import asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
import trio_websocket
import trustme
from support.calls import start
from support.cancellation import cancelled_at, each_checkpoint
from support.events import names
from support.leftovers import Baseline, all_tasks, open_files
from support.peers import PING, TEXT, TOKEN, Peer, dial, dial_in, read_head, shake_hands, upgrade_request
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_ledger_plugin import (
    ConnectionLostError,
    InvalidFieldsError,
    LedgerPlugin,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    PluginServices,
    create_plugin,
    open_plugin,
)
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.btp.server import BtpServer
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo, outcome_of, read_events
from trio_ledger_plugin.testing.scripted_peer import dial_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

KIB = 1024
INFO = {"clientAddress": "example.host", "assetScale": 9, "assetCode": "XRP"}
ACCOUNT = urlsafe_b64encode(sha256(TOKEN.encode()).digest()).decode().rstrip("=")
WAYS = ["stream", "websocket"]
BOTH_WAYS = pytest.mark.parametrize("way", WAYS)
BOTH_PLUGINS = pytest.mark.parametrize("kind", ["btp", "btp-accounts"])


def options(kind: str = "btp", *, port: int | None = None, **more: Any) -> dict[str, Any]:
    if kind == "btp":
        return {"plugin": "btp", "listener": {"port": port, "secret": TOKEN}, **more}
    return {"plugin": "btp-accounts", "port": port, "debugHostIldcpInfo": INFO, **more}


def end_of(plugin: LedgerPlugin, token: str = TOKEN) -> LedgerPlugin:
    """Return the plugin that sends to the client with this token."""
    if isinstance(plugin, AccountsPlugin):
        return plugin.account(urlsafe_b64encode(sha256(token.encode()).digest()).decode().rstrip("="))
    return plugin


class Application:
    """An application with its own server, which hands every connection to a plugin."""

    def __init__(self, plugin: BtpServer) -> None:
        self.plugin = plugin
        self.url = ""
        self.scopes: list[trio.CancelScope] = []
        # The outcome of serving each connection: None, or the exception.
        self.outcomes: list[Any] = []
        self._news = trio.Event()

    @property
    def serving(self) -> int:
        return len(self.scopes) - len(self.outcomes)

    async def serve(self, hand_over: Callable[[], Awaitable[None]]) -> None:
        with trio.CancelScope() as scope:
            self.scopes.append(scope)
            try:
                outcome: Any = await outcome_of(hand_over)
            except trio.Cancelled:
                outcome = "cancelled"
                raise
            finally:
                self.outcomes.append(outcome)
                self._news.set()
                self._news = trio.Event()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        await self.serve(partial(self.plugin.serve_stream, stream))

    async def serve_websocket(self, request: trio_websocket.WebSocketRequest) -> None:
        connection = await request.accept()
        await self.serve(partial(self.plugin.serve_websocket, connection))

    async def run(self, way: str, *, task_status: Any, **how: Any) -> None:
        if way == "stream":
            async with trio.open_nursery() as nursery:
                listeners = await nursery.start(partial(trio.serve_tcp, self.serve_stream, 0, host="127.0.0.1"))
                self.url = f"btp+ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
                task_status.started()
        else:
            async with trio.open_nursery() as nursery:
                server = await nursery.start(
                    partial(trio_websocket.serve_websocket, self.serve_websocket, "127.0.0.1", 0, None, **how)
                )
                self.url = f"btp+ws://127.0.0.1:{server.port}"
                task_status.started()

    def url_for(self, token: str = TOKEN, account: str = "") -> str:
        return self.url.replace("//", f"//{account}:{token}@")

    async def wait_served(self, count: int) -> None:
        """Wait until this many connections have ended."""
        while len(self.outcomes) < count:
            await self._news.wait()


@asynccontextmanager
async def embedded(
    way: str, opts: dict[str, Any], *, server: dict[str, Any] | None = None, log: Any = None, **how: Any
) -> AsyncIterator[Application]:
    """Run a plugin without a port behind an application's server; check that nothing is left of either."""
    before, files = all_tasks(), open_files()
    async with trio.open_nursery() as nursery:
        async with open_plugin(opts, PluginServices(log=log), **how) as plugin:
            assert isinstance(plugin, BtpServer)
            application = Application(plugin)

            async def run(*, task_status: Any) -> None:
                await application.run(way, task_status=task_status, **(server or {}))

            await nursery.start(run)
            yield application
        with trio.fail_after(2):
            await application.wait_served(len(application.scopes))
        nursery.cancel_scope.cancel()
    await wait_all_tasks_blocked()
    assert all_tasks() <= before
    with trio.move_on_after(2):
        while open_files() > files:  # noqa: ASYNC110 (a closed file gives no signal)
            await trio.sleep(0.001)
    assert open_files() <= files


# Requests and money.


@BOTH_PLUGINS
@BOTH_WAYS
async def test_requests_and_money_go_both_ways(way: str, kind: str) -> None:
    """A connection from the application must do everything that the plugin's own connections do."""
    received: list[str] = []

    async def take(amount: str) -> None:
        received.append(amount)

    async with (
        embedded(way, options(kind), data_handler=echo, money_handler=take) as application,
        open_plugin({"server": application.url_for()}, data_handler=echo, money_handler=take) as client,
    ):
        server = end_of(application.plugin)
        for one in (client, server):
            for size in (0, 1, 125, 126, 300, 4 * KIB, 60 * KIB):
                assert await one.send_data(bytes([size % 256]) * size) == bytes([size % 256]) * size

        async def ask(one: LedgerPlugin, number: int) -> None:
            data = b"%d" % number * 100
            assert await one.send_data(data) == data

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(ask, client, number)
                nursery.start_soon(ask, server, number)
        await client.send_money("250")
        await server.send_money("7")
        assert received == ["250", "7"]
        assert application.plugin.statistics().bytes_received > 60 * KIB
        assert application.plugin.statistics().bytes_sent > 60 * KIB
        await client.aclose()
        await application.wait_served(1)
        assert application.outcomes == [None]


@BOTH_WAYS
async def test_a_plugin_without_a_port_opens_none(way: str) -> None:
    async with embedded(way, options()) as application:
        assert application.plugin.address == ""
        assert not application.plugin.is_connected()
        peer = await dial_in(application.url)
        await application.plugin.wait_connected()
        await peer.aclose()


@BOTH_PLUGINS
@BOTH_WAYS
async def test_plugins_own_port_works_at_the_same_time(way: str, kind: str) -> None:
    async with embedded(way, options(kind, port=0), data_handler=echo) as application:
        assert application.plugin.address != ""
        own_url = application.plugin.address.replace("//", "//:other@" if kind != "btp" else f"//:{TOKEN}@")
        async with open_plugin({"server": application.url_for()}) as client:
            assert await client.send_data(b"over the application's port") == b"over the application's port"
            if kind == "btp":
                await client.aclose()
            async with open_plugin({"server": own_url}) as own:
                assert await own.send_data(b"over its own") == b"over its own"


async def test_tls_stream_of_the_application_is_served() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    async with open_plugin(options(max_unauthenticated=1), data_handler=echo) as plugin, trio.open_nursery() as nursery:
        assert isinstance(plugin, BtpServer)
        serve = partial(trio.serve_ssl_over_tcp, plugin.serve_stream, 0, context, host="127.0.0.1")
        listeners = await nursery.start(serve)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        opts = {"server": f"btp+wss://:{TOKEN}@127.0.0.1:{port}", "ssl_context": trusting}
        async with open_plugin(opts, data_handler=echo) as client:
            assert await client.send_data(b"x" * 60 * KIB) == b"x" * 60 * KIB
            assert await plugin.send_data(b"y" * 60 * KIB) == b"y" * 60 * KIB
        nursery.cancel_scope.cancel()


# Authentication.


@pytest.mark.parametrize(("kind", "account", "token"), [("btp", "", "wrong"), ("btp-accounts", "bob", TOKEN)])
@BOTH_WAYS
async def test_wrong_token_gets_an_error_reply(way: str, kind: str, account: str, token: str) -> None:
    log = Recorder()
    async with embedded(way, options(kind), log=log) as application:
        read_events(application.plugin)
        with pytest.raises(NotAcceptedError):
            async with open_plugin({"server": application.url_for(token, account)}):
                raise AssertionError("let in")
        await application.wait_served(1)
        assert application.outcomes == [None]
        assert read_events(application.plugin) == []
        assert TOKEN not in "".join(log.lines)


@BOTH_WAYS
async def test_refusal_ends_with_a_closing_handshake(way: str) -> None:
    """If the socket were closed with bytes in transit, the system would discard the refusal."""
    async with embedded(way, options()) as application:
        peer = await dial(application.url)
        assert isinstance(await peer.authenticate("wrong"), btp.Error)
        assert await peer.receive_close() == 1000
        for late in (peer.frame(b"on its way") * 10, peer.frame(b"\x03\xe8", 8)):
            await wait_all_tasks_blocked(0.01)
            await peer.send(late)
        assert await peer.stream.receive_some() == b""
        await peer.aclose()


@BOTH_WAYS
async def test_disconnect_drops_unauthenticated_while_a_handler_runs(way: str) -> None:
    async def ponder(data: bytes) -> bytes:
        await trio.sleep_forever()

    opts = options(close_timeout=0.1)
    async with embedded(way, opts, data_handler=ponder) as application, trio.open_nursery() as nursery:
        peer, unauthenticated = await dial_in(application.url), await dial(application.url)
        await peer.send_request(7, b"ask")
        await wait_all_tasks_blocked(0.01)
        nursery.start_soon(application.plugin.disconnect)
        assert await peer.receive_close() == 1000
        await peer.aclose()
        with trio.fail_after(3):
            await unauthenticated.wait_eof()
            await application.wait_served(2)


@BOTH_PLUGINS
@pytest.mark.parametrize(
    ("way", "silent", "seconds"),
    [("stream", "at once", 5), ("stream", "after the handshake", 5), ("websocket", "after the handshake", 5)],
)
async def test_client_that_does_not_authenticate_is_dropped(
    way: str, silent: str, seconds: float, kind: str, clock: MockClock
) -> None:
    """Otherwise each silent socket costs the application a task and a file for ever."""
    async with embedded(way, options(kind)) as application:
        stream = await dial_stream(application.url)
        begun = trio.current_time()
        if silent == "after the handshake":
            await shake_hands(stream)
        await Peer(stream, client=True).wait_eof()
        await application.wait_served(1)
        assert trio.current_time() - begun == pytest.approx(seconds, abs=0.5)
        assert application.outcomes == [None]


@BOTH_WAYS
async def test_limit_counts_connections_of_port_and_application(way: str) -> None:
    """A limit that a second way in can bypass is no limit."""
    async with embedded(way, options(port=0, max_unauthenticated=2)) as application:
        unauthenticated = [await dial(application.plugin.address), await dial(application.url)]
        third = await dial_stream(application.url)
        if way == "websocket":
            await shake_hands(third)
        await Peer(third, client=True).wait_eof()
        await unauthenticated[0].aclose()
        await wait_all_tasks_blocked(0.01)
        await (await dial_in(application.url)).aclose()
        await unauthenticated[1].aclose()


@BOTH_WAYS
async def test_limits_use_the_address_that_the_application_gives(way: str) -> None:
    """Behind a proxy every client has the address of the proxy."""
    async with open_plugin(options(max_unauthenticated_per_address=1)) as plugin:
        assert isinstance(plugin, BtpServer)
        async with trio.open_nursery() as nursery:

            async def hand_over(peer: str) -> Peer:
                near, far = trio.testing.memory_stream_pair()
                if way == "stream":
                    nursery.start_soon(partial(plugin.serve_stream, near, peer=peer))
                else:
                    nursery.start_soon(accept, near, peer)
                return await shake_hands(far)

            async def accept(near: trio.abc.Stream, peer: str) -> None:
                async with trio.open_nursery() as inner:
                    request = await trio_websocket.wrap_server_stream(inner, near)
                    await plugin.serve_websocket(await request.accept(), peer=peer)

            first = await hand_over("192.0.2.7")
            other = await hand_over("192.0.2.8")
            newcomer = await hand_over("192.0.2.7")
            await first.wait_eof()
            await other.authenticate()
            await wait_all_tasks_blocked()
            assert plugin.is_connected()
            assert plugin.statistics().unauthenticated_dropped == 1
            await newcomer.aclose()
            nursery.cancel_scope.cancel()


async def test_failures_delay_the_replies_to_their_address(clock: MockClock) -> None:
    async with embedded("websocket", options(max_failures_per_minute=1)) as application:
        begun = trio.current_time()
        for _ in range(3):
            peer = await dial(application.url)
            await peer.authenticate("wrong")
            await peer.wait_eof()
        assert trio.current_time() - begun > 0.7


async def test_origin_is_checked_by_the_server_of_the_handshake() -> None:
    """A web page must not get in through a stream; a trio-websocket server has its own check."""
    async with embedded("stream", options()) as application:
        stream = await dial_stream(application.url)
        await stream.send_all(upgrade_request(origin="https://page.example"))
        assert (await read_head(stream)).startswith(b"HTTP/1.1 403 ")
        await Peer(stream, client=True).wait_eof()
        await application.wait_served(1)
    async with embedded("websocket", options()) as application:
        stream = await dial_stream(application.url)
        await stream.send_all(upgrade_request(origin="https://page.example"))
        assert (await read_head(stream)).startswith(b"HTTP/1.1 101 ")
        peer = Peer(stream, client=True)
        assert isinstance(await peer.authenticate(), btp.Response)
        await peer.aclose()


@BOTH_WAYS
async def test_newer_connection_replaces_the_older(way: str) -> None:
    async with embedded(way, options()) as application, trio.open_nursery() as nursery:
        old = await dial_in(application.url)
        lost = await start(nursery, application.plugin.send_data, b"lost")
        await old.receive_packet()
        new = await dial_in(application.url)
        assert await old.receive_close() == 1000
        await old.aclose()
        await application.wait_served(1)
        assert isinstance(lost[0], ConnectionLostError)
        assert application.plugin.is_connected()
        assert application.serving == 1
        await new.aclose()


async def test_accounts_cannot_reply_to_each_others_calls() -> None:
    async with embedded("websocket", options("btp-accounts")) as application, trio.open_nursery() as nursery:
        peers = {token: await dial_in(application.url, token) for token in ("alice", "bob")}
        calls = {token: await start(nursery, end_of(application.plugin, token).send_data, b"ask") for token in peers}
        asked = {token: await peer.receive_packet() for token, peer in peers.items()}
        await peers["bob"].respond(asked["alice"].request_id, b"forged")
        await peers["bob"].respond(asked["bob"].request_id, b"bob's own")
        await wait_all_tasks_blocked(0.01)
        assert calls == {"alice": [], "bob": [b"bob's own"]}
        assert application.plugin.statistics().unexpected_responses == 1
        await peers["alice"].respond(asked["alice"].request_id, b"alice's own")
        await wait_all_tasks_blocked(0.01)
        assert calls["alice"] == [b"alice's own"]
        for peer in peers.values():
            await peer.aclose()


# The end of a connection.


@BOTH_PLUGINS
@BOTH_WAYS
@pytest.mark.parametrize("how", ["disconnect", "aclose"])
async def test_end_of_the_plugin_ends_the_serving_call(way: str, kind: str, how: str) -> None:
    async with embedded(way, options(kind, close_timeout=0.2)) as application, trio.open_nursery() as nursery:
        peer, unauthenticated = await dial_in(application.url), await dial(application.url)
        outcome = await start(nursery, end_of(application.plugin).send_data, b"lost")
        await peer.receive_packet()
        nursery.start_soon(getattr(application.plugin, how))
        if how == "disconnect":
            assert await peer.receive_close() == 1000
        await peer.wait_eof()
        await unauthenticated.wait_eof()
        await application.wait_served(2)
        assert application.outcomes == [None, None]
        assert isinstance(outcome[0], PluginClosedError)
        late = await dial_stream(application.url)
        await late.send_all(upgrade_request())
        if way == "websocket":
            await read_head(late)
        await late.aclose()
        await application.wait_served(3)
        if how == "aclose":
            assert isinstance(application.outcomes[2], PluginClosedError)
        else:
            assert isinstance(application.outcomes[2], NotConnectedError)
            await application.plugin.connect()
            again = await dial_in(application.url)
            await again.aclose()


@BOTH_PLUGINS
@BOTH_WAYS
async def test_cancelling_the_caller_ends_only_its_connection(way: str, kind: str) -> None:
    async with embedded(way, options(kind), data_handler=echo) as application, trio.open_nursery() as nursery:
        peer = await dial_in(application.url)
        outcome = await start(nursery, end_of(application.plugin).send_data, b"lost")
        await peer.receive_packet()
        application.scopes[0].cancel()
        await wait_all_tasks_blocked(0.01)
        assert application.outcomes == ["cancelled"]
        assert isinstance(outcome[0], ConnectionLostError)
        assert "cancelled" in str(outcome[0])
        await peer.wait_eof()
        other = await dial_in(application.url)
        await other.send_request(7, b"still there?")
        assert (await other.receive_packet()).request_id == 7
        await other.aclose()


@BOTH_WAYS
async def test_plugin_works_after_cancellation_at_any_checkpoint(way: str) -> None:
    async with open_plugin(options(), data_handler=echo) as plugin, trio.open_nursery() as users:
        assert isinstance(plugin, BtpServer)

        async def use(far: trio.abc.Stream) -> None:
            try:
                peer = await shake_hands(far)
                assert isinstance(await peer.authenticate(), btp.Response)
                await peer.send_request(7, b"x")
                await peer.receive_packet()
            except (EOFError, trio.BrokenResourceError):
                pass
            finally:
                await trio.aclose_forcefully(far)

        async def attempt(step: int) -> Any:
            near, far = trio.testing.memory_stream_pair()
            # The application's nursery is not cancelled: trio-websocket's reader in it must end by itself.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(use, far)
                if way == "stream":
                    was_cancelled = await cancelled_at(step, lambda: plugin.serve_stream(near))
                else:
                    request = await trio_websocket.wrap_server_stream(nursery, near)
                    connection = await request.accept()
                    was_cancelled = await cancelled_at(step, lambda: plugin.serve_websocket(connection))
            with pytest.raises(trio.ClosedResourceError):
                await near.send_all(b"")
            await wait_all_tasks_blocked()
            assert not plugin.is_connected()
            return was_cancelled

        with trio.fail_after(20):
            await attempt(1000)
            before = Baseline(plugin)
            await each_checkpoint(attempt)
            await before.settle()
            await attempt(1000)
        users.cancel_scope.cancel()


@BOTH_WAYS
async def test_shared_nursery_ends_plugin_and_application(way: str) -> None:
    before = all_tasks()
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(options(), nursery=nursery)
        assert isinstance(plugin, BtpServer)
        await plugin.connect()
        application = Application(plugin)
        await nursery.start(partial(application.run, way))
        peer = await dial_in(application.url)
        outcome = await start(nursery, outcome_of, plugin.send_data, b"lost")
        await peer.receive_packet()
        nursery.cancel_scope.cancel()
    assert outcome == []
    await peer.wait_eof()
    assert all_tasks() <= before


@BOTH_WAYS
@pytest.mark.parametrize("when", ["before authentication", "authenticated"])
async def test_peer_that_closes_its_socket_is_no_error(way: str, when: str) -> None:
    async with embedded(way, options()) as application:
        peer = await (dial if when == "before authentication" else dial_in)(application.url)
        await peer.aclose()
        await application.wait_served(1)
        assert application.outcomes == [None]
        assert names(read_events(application.plugin)) == (
            [] if when == "before authentication" else ["Connected", "Disconnected"]
        )


# Bad peers.


@BOTH_PLUGINS
@BOTH_WAYS
async def test_message_past_the_plugins_limit_ends_the_connection(way: str, kind: str, clock: MockClock) -> None:
    async with embedded(way, options(kind)) as application:
        peer = await dial_in(application.url)
        await peer.send(peer.frame(bytes(64 * KIB + 1)))
        assert await peer.receive_close() == 1009
        await application.wait_served(1)
        await peer.wait_eof()


async def test_message_past_the_applications_limit_ends_the_connection() -> None:
    """trio-websocket alone waits for ever for a peer that sends one and then nothing."""
    async with embedded("websocket", options(), server={"max_message_size": 20 * KIB}) as application:
        peer = await dial_in(application.url)
        with trio.fail_after(2), suppress(trio.BrokenResourceError):
            await peer.send(peer.frame(bytes(30 * KIB)))
            await application.wait_served(1)
        assert application.outcomes == [None]
        await peer.wait_eof()


@BOTH_WAYS
async def test_unauthenticated_client_may_send_little(way: str, clock: MockClock) -> None:
    async with embedded(way, options()) as application:
        for message in (bytes(9 * KIB), None):
            peer = await dial(application.url)
            await peer.send(peer.frame(b"hello", TEXT) if message is None else peer.frame(message))
            assert await peer.receive_close() == (1008 if message is None else 1009)
            await peer.wait_eof()
        await application.wait_served(2)
        assert application.outcomes == [None, None]


async def test_protocol_error_before_authentication_gets_a_close(clock: MockClock) -> None:
    """On a stream that does not take bytes at once, such as TLS, the client would see only the end."""
    async with open_plugin(options()) as plugin, trio.open_nursery() as nursery:
        assert isinstance(plugin, BtpServer)
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(plugin.serve_stream, near)
        peer = await shake_hands(far)
        await peer.send(peer.frame(b"x", rsv=4))
        assert await peer.receive_close() == 1002


@BOTH_PLUGINS
@BOTH_WAYS
async def test_a_peer_that_never_reads_is_found(way: str, kind: str, clock: MockClock) -> None:
    """Memory stays bounded until then, and every caller gets an error for its request."""
    async with embedded(way, options(kind)) as application, trio.open_nursery() as nursery:
        stream = await dial_stream(application.url)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 16 * KIB)
        peer = await shake_hands(stream)
        await peer.authenticate()
        server = end_of(application.plugin)
        outcomes = [await start(nursery, server.send_data, bytes(60 * KIB)) for _ in range(120)]
        assert application.plugin.statistics().calls_in_flight < 120
        begun = trio.current_time()
        await application.wait_served(1)
        assert 9 < trio.current_time() - begun < 13
        await wait_all_tasks_blocked(0.01)
        assert {type(outcome[0]) for outcome in outcomes} == {ConnectionLostError, NotConnectedError}
        await peer.aclose()


@BOTH_PLUGINS
@BOTH_WAYS
async def test_a_half_open_link_is_found_by_a_ping(way: str, kind: str, clock: MockClock) -> None:
    opts = options(kind, response_timeout=100.0)
    async with embedded(way, opts) as application, trio.open_nursery() as nursery:
        peer = await dial_in(application.url)
        begun = trio.current_time()
        outcome = await start(nursery, end_of(application.plugin).send_data, b"into the void")
        await application.wait_served(1)
        assert trio.current_time() - begun == pytest.approx(40, abs=1)
        await wait_all_tasks_blocked(0.01)
        assert isinstance(outcome[0], ConnectionLostError)
        assert not any("._ping" in task.name for task in all_tasks())
        await peer.aclose()


async def test_a_peer_that_asks_faster_than_it_reads_is_slowed_down(clock: MockClock) -> None:
    """Otherwise its requests pile up and have to be refused."""
    opts = options(max_send_queue_bytes=64 * KIB, send_timeout=100.0)
    async with embedded("websocket", opts, data_handler=echo) as application:
        stream = await dial_stream(application.url)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 256 * KIB)
        peer = await shake_hands(stream)
        await peer.authenticate()
        begun = trio.current_time()
        for number in range(120):
            await peer.send_request(number, bytes(32 * KIB))
        assert trio.current_time() - begun > 0.5
        answers = [await peer.receive_packet() for _ in range(120)]
        assert {type(packet) for packet in answers} == {btp.Response}
        await peer.aclose()


async def test_unread_messages_do_not_block_the_applications_nursery() -> None:
    """trio-websocket's reader waits for room in its queue, and would wait for ever once the plugin has gone."""
    async with embedded("websocket", options(max_handlers=1), server={"message_queue_size": 0}) as application:
        peer = await dial_in(application.url)
        await peer.send(*(peer.frame(btp.encode_ilp(btp.MESSAGE, number, b"")) for number in range(2000)))
        application.scopes[0].cancel()
        await peer.wait_eof()
        await application.wait_served(1)
        with trio.fail_after(2):
            while any("_reader_task" in task.name for task in all_tasks()):
                await wait_all_tasks_blocked(0.001)


class Odd(trio.abc.Stream):
    """A stream of an application that raises exceptions that Trio's streams do not raise."""

    def __init__(self, stream: trio.abc.Stream, error: Exception) -> None:
        self.stream, self.error, self.broken = stream, error, False

    async def send_all(self, data: Any) -> None:
        if self.broken:
            raise self.error
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.stream.aclose()


@pytest.mark.parametrize("error", [OSError("odd"), RuntimeError("odd"), trio.BusyResourceError("used elsewhere")])
async def test_unexpected_error_of_a_stream_ends_only_its_connection(error: Exception) -> None:
    async with open_plugin(options()) as plugin:
        assert isinstance(plugin, BtpServer)
        near, far = trio.testing.memory_stream_pair()
        odd = Odd(near, error)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, odd)
            peer = await shake_hands(far)
            await peer.authenticate()
            odd.broken = True
            with pytest.raises(ConnectionLostError):
                await plugin.send_data(b"x")
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, near)
            await (await shake_hands(far)).authenticate()
            await plugin.wait_connected()
            await far.aclose()


async def test_stream_with_a_broken_sending_half_is_closed(autojump_clock: MockClock) -> None:
    """The peer still sends, so that pings find it alive, and every call would time out."""
    async with open_plugin(options(), data_handler=echo) as plugin:
        assert isinstance(plugin, BtpServer)
        near, far = trio.testing.memory_stream_pair()
        # For example two pipes to a child process, of which one breaks.
        half = Odd(near, trio.BrokenResourceError("the pipe is closed"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, half)
            peer = await shake_hands(far)
            await peer.authenticate()
            half.broken = True

            async def talk() -> None:
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    for number in range(10, 100):
                        await peer.send_request(number, b"x")
                        await trio.sleep(1)

            nursery.start_soon(talk)
            began = trio.current_time()
            with pytest.raises(ConnectionLostError):
                await plugin.send_data(b"x")
            assert trio.current_time() - began <= 20
            assert not plugin.is_connected()


async def test_peer_that_ignores_pings_uses_constant_memory(autojump_clock: MockClock) -> None:
    """Each ping is remembered until its pong arrives: a link that lives for months would grow."""
    async with open_plugin(options(), data_handler=echo) as plugin:
        assert isinstance(plugin, BtpPlugin)
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, near)
            peer = await shake_hands(far)
            await peer.authenticate()
            for number in range(100):
                await peer.send_request(number + 10, b"x")
                await trio.sleep(15)
            assert plugin.is_connected()
            link: Any = plugin._link
            assert len(link._transport._connection._pings) == 1
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["peer", "plugin", "cancelled"])
async def test_stream_that_cannot_be_closed_ends_only_its_connection(way: str) -> None:
    """Its socket may be gone already: one connection would end the application's server for all clients."""

    class Stuck(Odd):
        async def aclose(self) -> None:
            await self.stream.aclose()
            raise self.error

    async with open_plugin(options()) as plugin:
        assert isinstance(plugin, BtpServer)
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def serve() -> None:
                with scope:
                    await plugin.serve_stream(Stuck(near, OSError("the socket is gone")))

            nursery.start_soon(serve)
            peer = await shake_hands(far)
            await peer.authenticate()
            if way == "peer":
                await peer.aclose()
            elif way == "plugin":
                await plugin.disconnect()
                await plugin.connect()
            else:
                scope.cancel()
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, near)
            await (await shake_hands(far)).authenticate()
            await plugin.wait_connected()
            await far.aclose()


async def test_pings_during_the_closing_handshake_log_no_error(clock: MockClock, caplog: Any) -> None:
    """A peer could fill the log with lines that look like bugs of this package."""
    async with open_plugin(options()) as plugin:
        assert isinstance(plugin, BtpServer)
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, near)
            peer = await shake_hands(far)
            await peer.authenticate()
            nursery.start_soon(plugin.disconnect)
            await wait_all_tasks_blocked()
            await peer.send(*(peer.frame(b"x", PING) for _ in range(20)))
            with suppress(EOFError, trio.BrokenResourceError):
                while True:
                    await peer.receive()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


# Mistakes of the application.


async def test_only_streams_and_accepted_connections_are_served() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_plugin(options()) as plugin, trio.open_nursery() as nursery:
        assert isinstance(plugin, BtpServer)
        with pytest.raises(TypeError, match=r"trio\.abc\.Stream"):
            await plugin.serve_stream(b"a stream")  # type: ignore[arg-type]  # what is tested
        with pytest.raises(TypeError, match="WebSocketConnection"):
            await plugin.serve_websocket(near)  # type: ignore[arg-type]  # what is tested
        with pytest.raises(TypeError, match="peer is text"):
            await plugin.serve_stream(near, peer=("127.0.0.1", 80))  # type: ignore[arg-type]  # what is tested
        requests: list[Any] = []

        async def accept() -> None:
            request = await trio_websocket.wrap_server_stream(nursery, near)
            requests.append(await request.accept())

        nursery.start_soon(accept)
        dialed = await trio_websocket.wrap_client_stream(nursery, far, "host", "/")  # type: ignore[arg-type]  # as Trio's
        with pytest.raises(TypeError, match="dialed"):
            await plugin.serve_websocket(dialed)
        nursery.cancel_scope.cancel()


@BOTH_PLUGINS
async def test_unconnected_plugin_raises_and_leaves_the_stream_open(kind: str) -> None:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(options(kind), nursery=nursery)
        assert isinstance(plugin, BtpServer)
        with pytest.raises(NotConnectedError, match="connect"):
            await plugin.serve_stream(near)
        await near.send_all(b"whole")
        assert await far.receive_some() == b"whole"
        await plugin.connect()
        await plugin.aclose()
        with pytest.raises(PluginClosedError):
            await plugin.serve_stream(near)


async def test_failed_plugin_raises() -> None:
    near, _ = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(options(), nursery=nursery)
        assert isinstance(plugin, BtpServer)
        try:
            await plugin.connect()
            plugin._connector._on_failed = lambda failure: None
            plugin.fail(OSError("for good"))
            with pytest.raises(PluginFailedError):
                await plugin.serve_stream(near)
        finally:
            nursery.cancel_scope.cancel()


async def test_client_plugin_serves_no_connections() -> None:
    near, _ = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        plugin = create_plugin({"server": f"btp+ws://:{TOKEN}@127.0.0.1:1"}, nursery=nursery)
        assert isinstance(plugin, BtpServer)
        with pytest.raises(InvalidFieldsError, match="listener"):
            await plugin.serve_stream(near)
