"""The end that serves: whose requests it takes, what it answers, and what a bad peer cannot do to it."""

from __future__ import annotations

import time
from functools import partial

import pytest
import trio
from support.calls import sleeping
from support.http import (
    FULFILL,
    PREPARE,
    TOKEN,
    dial,
    open_http,
    post,
    read_response,
    read_until,
    sending,
    serving,
    status_of,
    talk,
)
from support.leftovers import Baseline, open_files
from support.ports import free_port, has_ipv6
from support.programs import serving as program_serving
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from trio_ledger_plugin import (
    InsufficientBalanceError,
    InvalidFieldsError,
    InvalidServicesError,
    MoneyHandlerAlreadyRegisteredError,
    NotConnectedError,
    PluginClosedError,
)
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.http import jwt
from trio_ledger_plugin.http.asgi import _AsgiResponder
from trio_ledger_plugin.net import listen
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import Recorder, refusing

SECRET = "canary-http-secret"


async def fulfill(data):
    return FULFILL


def make_jwt(*, lifetime=30, subject=None, now=None):
    return jwt.sign(SECRET.encode(), time.time() if now is None else now, lifetime, subject)


async def test_prepare_gets_its_answer():
    got = []

    async def answer(data):
        got.append(data)
        return FULFILL

    async with open_http(serving(), data_handler=answer) as plugin:
        status, head, body = await talk(plugin.address, post())
    assert (status, body, got) == (200, FULFILL, [PREPARE])
    lines = head.decode().split("\r\n")
    assert "Content-Type: application/octet-stream" in lines
    assert "Keep-Alive: timeout=75" in lines
    assert any(line.startswith("Date: ") for line in lines)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post(), 200),
        (post(b""), 200),
        (post(b"no packet"), 200),
        (post(PREPARE, "Content-Type: application/ilp+octet-stream"), 200),
        (post(PREPARE, "Content-Type: application/octet-stream; charset=binary"), 200),
        (post(PREPARE, "Content-Type: -"), 200),
        (post(PREPARE, "Content-Type: text/plain"), 415),
        (post(PREPARE, "Content-Encoding: gzip"), 415),
        (post(PREPARE, f"Authorization: bearer {TOKEN}"), 200),
        (post(PREPARE, f"Authorization: Bearer   {TOKEN}"), 200),
        (post(token="wrong"), 401),
        (post(token=None), 401),
        (post(PREPARE, "Authorization: Bearer"), 401),
        (post(PREPARE, f"Authorization: {TOKEN}"), 401),
        (post(PREPARE, f"Authorization: Basic {TOKEN}"), 401),
        (post(version="1.0"), 200),
        (post(bytes(65472)), 200),
        (post(bytes(65473)), 413),
        (post(PREPARE, "Host: -"), 400),
        (post(PREPARE, "X: a\r\n b"), 400),
        (post(PREPARE, "Content-Length: 1\r\nContent-Length: 2"), 400),
        (post(PREPARE, "Expect: gold"), 417),
        (post(PREPARE, "X: " + "a" * 100_000), 431),
        (b"GET / HTTP/1.1\r\nHost: u\r\n\r\n", 200),
        (b"HEAD /any HTTP/1.1\r\nHost: u\r\n\r\n", 200),
        (b"PUT / HTTP/1.1\r\nHost: u\r\nAuthorization: Bearer canary-http-incoming\r\n\r\n", 405),
        (b"rubbish\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n", 400),
    ],
)
async def test_request_has_its_status(request_, status):
    async with open_http(serving(), data_handler=fulfill) as plugin:
        with trio.fail_after(5):
            assert await status_of(plugin.address, request_) == status
            # Nothing of it is left.
            assert await status_of(plugin.address, post()) == 200


async def test_every_address_has_the_same_port():
    """A client that dials localhost may try IPv6 first."""
    async with open_http(serving(incoming={"host": "*"})) as plugin:
        assert plugin.address.startswith("http://localhost:")
        for address in ("127.0.0.1", "[::1]") if await has_ipv6() else ("127.0.0.1",):
            url = plugin.address.replace("localhost", address)
            assert await status_of(url, b"GET /health HTTP/1.1\r\nHost: u\r\n\r\n") == 200


async def test_health_needs_no_token():
    async with open_http(serving()) as plugin:
        status, _, body = await talk(plugin.address, b"GET /health HTTP/1.1\r\nHost: u\r\n\r\n")
    assert (status, body) == (200, b"OK")


async def test_path_is_checked_if_there_is_one():
    async with open_http(serving(incoming={"path": "/ilp"}), data_handler=fulfill) as plugin:
        assert await status_of(plugin.address, post()) == 200
        assert await status_of(plugin.address, post().replace(b"/ilp", b"/ilp?x=1")) == 200
        assert await status_of(plugin.address, post().replace(b"/ilp", b"/other")) == 404


async def test_bare_token_needs_an_option():
    request = post(PREPARE, f"Authorization: {TOKEN}")
    for incoming in ({"allow_bare_token": True}, {"static_token": "", "secretToken": TOKEN}):
        async with open_http(serving(incoming=incoming), data_handler=fulfill) as plugin:
            assert await status_of(plugin.address, request) == 200
            assert await status_of(plugin.address, post()) == 200
            assert await status_of(plugin.address, post(PREPARE, "Authorization: wrong")) == 401


async def test_jwt_or_token_is_accepted():
    async with open_http(serving(incoming={"jwt_secret": SECRET}), data_handler=fulfill) as plugin:
        for token, status in [
            (TOKEN, 200),
            (make_jwt(), 200),
            (make_jwt(subject="any"), 200),
            (make_jwt(now=time.time() - 3600), 401),
            (make_jwt() + "x", 401),
            ("wrong", 401),
        ]:
            assert await status_of(plugin.address, post(token=token)) == status, token


async def test_subject_of_a_jwt_is_checked():
    incoming = {"static_token": "", "jwt_secret": SECRET, "jwt_subject": "alice"}
    async with open_http(serving(incoming=incoming), data_handler=fulfill) as plugin:
        assert await status_of(plugin.address, post(token=make_jwt(subject="alice"))) == 200
        assert await status_of(plugin.address, post(token=make_jwt(subject="bob"))) == 401
        assert await status_of(plugin.address, post(token=make_jwt())) == 401


async def test_jwt_is_judged_again_after_it_has_expired(monkeypatch):
    """A verdict that is kept for a connection must not outlive the token."""
    now = time.time()
    token = make_jwt(now=now)
    monkeypatch.setattr("trio_ledger_plugin.http.gate.time.time", lambda: now)
    monkeypatch.setattr("trio_ledger_plugin.http.credentials.time.time", lambda: now)
    incoming = {"static_token": "", "jwt_secret": SECRET}
    async with (
        open_http(serving(incoming=incoming), data_handler=fulfill) as plugin,
        await dial(plugin.address) as stream,
    ):
        for later, status in ((0, 200), (20, 200), (20, 401)):
            now += later
            await stream.send_all(post(token=token))
            assert (await read_response(stream))[0] == status


async def test_refusal_says_how_to_authenticate_and_nothing_else():
    log = Recorder()
    async with open_http(serving(), log=log) as plugin:
        _, head, body = await talk(plugin.address, post(token="canary-guess"))
    assert b"\r\nWWW-Authenticate: Bearer\r\n" in head
    assert b"\r\nConnection: close\r\n" in head
    assert b"canary" not in head + body
    assert "canary" not in str(log.lines)
    assert any("refused a request" in line for line in log.lines)


# Connections.


async def test_connection_serves_requests_in_turn():
    async with open_http(serving(), data_handler=fulfill) as plugin, await dial(plugin.address) as stream:
        for _ in range(5):
            await stream.send_all(post())
            assert (await read_response(stream))[2] == FULFILL


async def test_requests_sent_ahead_are_answered_in_order():
    async def echo(data):
        await trio.sleep(0.001)
        return data

    async with open_http(serving(), data_handler=echo) as plugin, await dial(plugin.address) as stream:
        await stream.send_all(b"".join(post(b"%d" % number) for number in range(50)))
        assert [(await read_response(stream))[2] for _ in range(50)] == [b"%d" % number for number in range(50)]


async def test_path_and_method_are_checked_on_every_request():
    """The credentials of a connection are not looked at again, but what is asked for is."""
    async with open_http(serving(incoming={"path": "/ilp"}), data_handler=fulfill) as plugin:
        for wrong, status in ((post().replace(b"/ilp", b"/x"), 404), (post().replace(b"POST", b"PUT"), 405)):
            async with await dial(plugin.address) as stream:
                await stream.send_all(post())
                assert (await read_response(stream))[0] == 200
                await stream.send_all(wrong)
                assert (await read_response(stream))[0] == status


async def test_requests_sent_ahead_are_answered_after_the_end():
    async def echo(data):
        await trio.sleep(0.001)
        return data

    async with open_http(serving(), data_handler=echo) as plugin, await dial(plugin.address) as stream:
        await stream.send_all(b"".join(post(b"%d" % number) for number in range(20)))
        await stream.send_eof()
        assert [(await read_response(stream))[2] for _ in range(20)] == [b"%d" % number for number in range(20)]
        assert await stream.receive_some() == b""


async def test_requests_far_ahead_wait_in_the_network():
    """A peer that never reads would fill the memory."""
    arrived = trio.Event()

    async def hang(data):
        arrived.set()
        await trio.sleep_forever()

    async with open_http(serving(close_timeout=0.1), data_handler=hang) as plugin, await dial(plugin.address) as stream:
        with trio.move_on_after(0.5) as scope:
            for _ in range(1000):
                await stream.send_all(post(bytes(60_000)))
        assert scope.cancelled_caught
        assert arrived.is_set()
        assert plugin.statistics().requests_received == 1


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_request_may_come_in_pieces(size):
    async with open_http(serving(), data_handler=fulfill) as plugin, await dial(plugin.address) as stream:
        for _ in range(2):
            data = post()
            for start in range(0, len(data), size):
                await stream.send_all(data[start : start + size])
                await trio.lowlevel.checkpoint()
            assert (await read_response(stream))[0] == 200


async def test_chunks_are_one_request():
    async def echo(data):
        return data

    chunked = post(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", "Content-Length: -", "Transfer-Encoding: chunked")
    async with open_http(serving(), data_handler=echo) as plugin, await dial(plugin.address) as stream:
        for _ in range(2):
            await stream.send_all(chunked)
            assert (await read_response(stream))[2] == b"hello!"


async def test_expectation_is_met_once_the_head_is_accepted():
    async with open_http(serving(), data_handler=fulfill) as plugin:
        async with await dial(plugin.address) as stream:
            request = post(PREPARE, "Expect: 100-continue")
            await stream.send_all(request[: -len(PREPARE)])
            assert await read_until(stream, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(PREPARE)
            assert (await read_response(stream))[0] == 200
        async with await dial(plugin.address) as stream:
            await stream.send_all(post(PREPARE, "Expect: 100-continue", token="wrong")[: -len(PREPARE)])
            assert (await read_response(stream))[0] == 401


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_connection_ends_if_the_client_says_so(version):
    """nginx speaks HTTP/1.0 and closes, unless it is told otherwise."""
    async with open_http(serving(), data_handler=fulfill) as plugin, await dial(plugin.address) as stream:
        await stream.send_all(post(PREPARE, "Connection: close", version=version))
        status, head, _ = await read_response(stream)
        assert status == 200
        assert b"\r\nConnection: close\r\n" in head
        assert await stream.receive_some() == b""


async def test_client_may_close_its_side_first():
    async with open_http(serving(), data_handler=sleeping(0.05)) as plugin, await dial(plugin.address) as stream:
        await stream.send_all(post(b"x"))
        await stream.send_eof()
        assert (await read_response(stream))[2] == b"x"


async def test_refusal_is_read_before_the_reset():
    """A server that closes while the client still sends loses the reason."""
    async with open_http(serving(), data_handler=fulfill) as plugin, await dial(plugin.address) as stream:
        await stream.send_all(post(bytes(300_000)))
        assert (await read_response(stream))[0] == 413


# Handlers.


async def test_error_of_a_handler_is_a_reject():
    """Peers make one and the same error of every status."""
    for error, code in ((InsufficientBalanceError("x"), "T04"), (OSError("canary"), "F00")):
        async with open_http(serving(), data_handler=refusing(error), log=Recorder()) as plugin:
            status, head, body = await talk(plugin.address, post())
        packet = ilp.decode(body)
        assert isinstance(packet, ilp.Reject)
        assert (status, packet.code, packet.triggered_by) == (200, code, "")
        assert b"canary" not in head + body


async def test_reject_names_the_own_address():
    info = {"client_address": "test.me", "asset_scale": 9, "asset_code": "XRP"}
    async with open_http(serving(ildcp=info), data_handler=refusing(OSError()), log=Recorder()) as plugin:
        packet = ilp.decode((await talk(plugin.address, post()))[2])
    assert isinstance(packet, ilp.Reject)
    assert packet.triggered_by == "test.me"


async def test_error_for_other_data_is_a_status():
    async with open_http(serving(), data_handler=refusing(OSError("canary")), log=Recorder()) as plugin:
        status, _, body = await talk(plugin.address, post(b"no packet"))
    assert status == 400
    assert b"canary" not in body


async def test_missing_handler_is_a_bad_gateway():
    async with open_http(serving()) as plugin:
        assert await status_of(plugin.address, post()) == 502
        plugin.register_data_handler(fulfill)
        assert await status_of(plugin.address, post()) == 200


async def test_slow_handler_is_answered_for(clock):
    async with open_http(serving(handler_timeout=3), data_handler=sleeping(1000)) as plugin:
        began = trio.current_time()
        status, _, body = await talk(plugin.address, post())
        packet = ilp.decode(body)
        assert isinstance(packet, ilp.Reject)
        assert (status, packet.code) == (200, "T01")
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)
        assert await status_of(plugin.address, post(b"no packet")) == 503


async def test_too_many_waiting_requests_are_unavailable():
    options = serving(max_handlers=1, max_backlog_bytes=1000, close_timeout=0.1)
    async with open_http(options, data_handler=sleeping(1000)) as plugin, trio.open_nursery() as nursery:
        statuses = []

        async def ask():
            statuses.append(await status_of(plugin.address, post(bytes(300))))

        for _ in range(5):
            nursery.start_soon(ask)
        with trio.fail_after(2):
            while len(statuses) < 2:  # noqa: ASYNC110 (a list has no event)
                await trio.sleep(0.01)
        # One runs and two wait.
        assert statuses == [503] * 2
        nursery.cancel_scope.cancel()


async def test_handler_goes_on_when_its_connection_is_lost():
    arrived, go_on, done = trio.Event(), trio.Event(), trio.Event()

    async def slow(data):
        arrived.set()
        await go_on.wait()
        done.set()
        return FULFILL

    async with open_http(serving(), data_handler=slow) as plugin:
        stream = await dial(plugin.address)
        await stream.send_all(post())
        await arrived.wait()
        await trio.aclose_forcefully(stream)
        go_on.set()
        with trio.fail_after(1):
            await done.wait()
        assert await status_of(plugin.address, post()) == 200


async def test_closing_finishes_the_requests_in_hand():
    arrived, go_on = trio.Event(), trio.Event()

    async def slow(data):
        arrived.set()
        await go_on.wait()
        return FULFILL

    async with open_http(serving(), data_handler=slow) as plugin, trio.open_nursery() as nursery:
        stream = await dial(plugin.address)
        await stream.send_all(post())
        await arrived.wait()
        nursery.start_soon(plugin.aclose)
        await wait_all_tasks_blocked(0.01)
        go_on.set()
        status, head, _ = await read_response(stream)
        assert status == 200
        assert b"\r\nConnection: close\r\n" in head
        await stream.aclose()


# Bad peers.


@pytest.mark.parametrize("start", [b"", b"POST / HTTP/1.1\r\n", post()[:40]])
async def test_silent_connection_is_closed(start, clock):
    async with open_http(serving(auth_timeout=5)) as plugin, await dial(plugin.address) as stream:
        began = trio.current_time()
        await stream.send_all(start)
        assert await stream.receive_some() == b""
        assert trio.current_time() - began <= 6.5


async def test_silent_connection_is_closed_after_a_reconnection(clock):
    async with open_http(serving(auth_timeout=5), data_handler=fulfill) as plugin:
        async with await dial(plugin.address) as stream:
            await stream.send_all(post())
            assert (await read_response(stream))[0] == 200
            await plugin.disconnect()
        await plugin.connect()
        async with await dial(plugin.address) as stream:
            began = trio.current_time()
            assert await stream.receive_some() == b""
            assert trio.current_time() - began <= 6.5


async def test_body_that_trickles_is_not_waited_for(clock):
    async with open_http(serving(), data_handler=fulfill) as plugin, await dial(plugin.address) as stream:
        began = trio.current_time()
        await stream.send_all(post()[:-1])
        assert await stream.receive_some() == b""
        assert trio.current_time() - began <= 32


async def test_idle_connection_is_kept_for_longer_than_clients_do(clock):
    async with open_http(serving(), data_handler=fulfill) as plugin, await dial(plugin.address) as stream:
        for _ in range(3):
            await stream.send_all(post())
            assert (await read_response(stream))[0] == 200
            await trio.sleep(70)
        began = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - began <= 7


async def test_burst_of_connections_is_served():
    """A Node peer opens as many connections as it has calls in flight."""
    options = serving(max_unauthenticated_per_address=4, max_unauthenticated=4)
    async with open_http(options, data_handler=fulfill) as plugin:
        statuses = []

        async def ask():
            statuses.append(await status_of(plugin.address, post()))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(60):
                    nursery.start_soon(ask)
        assert statuses == [200] * 60


async def test_connection_for_each_request_is_accepted_at_once(clock, monkeypatch):
    """Many clients keep no connection; the rate is for connections that come to nothing."""
    monkeypatch.setattr(listen, "FAILURES", 2)
    async with open_http(serving(max_failures_per_minute=100), data_handler=fulfill) as plugin:
        began = trio.current_time()
        for _ in range(30):
            assert await status_of(plugin.address, post()) == 200
        assert trio.current_time() - began < 1 / listen.FAILURES_A_SECOND
        for _ in range(30):
            assert await status_of(plugin.address, post(version="1.0", token="wrong")) == 401
        assert trio.current_time() - began >= 25 / listen.FAILURES_A_SECOND


async def test_connections_that_have_ended_leave_no_timers():
    async with open_http(serving(), data_handler=fulfill) as plugin:
        timers = plugin.context.timers
        for _ in range(200):
            assert await status_of(plugin.address, post()) == 200
        assert len(timers._due) < 180


async def test_many_requests_are_forgotten_as_fast_as_few():
    """All the connections of a peer may be lost at once, while its requests are served."""

    async def seconds_for(count):
        async with open_http(serving(), data_handler=sleeping(9)) as plugin:
            (link,) = plugin.exchanges()
            responders = [_AsgiResponder() for _ in range(count)]
            for responder in responders:
                link.serve(responder, b"")
            began = time.process_time()
            for responder in reversed(responders):
                link.forget(responder)
            return time.process_time() - began

    assert await seconds_for(4000) < 40 * max(await seconds_for(400), 0.0005)


async def test_guesses_get_their_answers_later_and_later(clock):
    async with open_http(serving(max_failures_per_minute=3)) as plugin:
        delays = []
        for _ in range(6):
            began = trio.current_time()
            assert await status_of(plugin.address, post(token="wrong")) == 401
            delays.append(round(trio.current_time() - began, 1))
        assert delays[:3] == [0, 0, 0]
        assert delays[3] < delays[4] < delays[5]


async def test_shared_reader_serves_many_connections():
    """From 32 connections on, one task reads for all."""
    async with open_http(serving(), data_handler=fulfill) as plugin:
        streams = [await dial(plugin.address) for _ in range(50)]
        for _ in range(3):
            for stream in streams:
                await stream.send_all(post())
            for stream in streams:
                assert (await read_response(stream))[0] == 200
        await streams[0].send_all(post(token="wrong"))
        assert (await read_response(streams[0]))[0] == 401
        for stream in streams:
            await stream.aclose()
        assert await status_of(plugin.address, post()) == 200


async def test_malformed_requests_are_counted():
    async with open_http(serving(), data_handler=fulfill) as plugin, await dial(plugin.address) as stream:
        await stream.send_all(post() + b"rubbish\r\n\r\n")
        assert (await read_response(stream))[0] == 200
        assert (await read_response(stream))[0] == 400
        assert plugin.statistics().malformed_packets == 1


@pytest.mark.parametrize("busy", [False, True])
async def test_nothing_is_left_behind(busy):
    arrived = trio.Event()

    async def slow(data):
        arrived.set()
        await trio.sleep_forever()

    baseline = Baseline()
    async with open_http(serving(close_timeout=0.05), data_handler=slow if busy else fulfill) as plugin:
        streams = [await dial(plugin.address) for _ in range(40)]
        for stream in streams:
            await stream.send_all(post())
        if busy:
            await arrived.wait()
        else:
            for stream in streams:
                await read_response(stream)
    for stream in streams:
        while await stream.receive_some():
            pass
        await stream.aclose()
    await baseline.settle()


async def test_port_in_use_is_an_error_of_connect():
    async with open_http(serving()) as plugin:
        port = int(plugin.address.rpartition(":")[2])
        before = open_files()
        with pytest.raises(OSError, match=f"127.0.0.1 port {port}"):
            async with open_http(serving(incoming={"port": port})):
                pass
        assert open_files() == before


async def test_disconnected_server_listens_again():
    port = free_port()
    async with open_http(serving(incoming={"port": port}), data_handler=fulfill) as plugin:
        for _ in range(2):
            assert await status_of(plugin.address, post()) == 200
            await plugin.disconnect()
            with pytest.raises(OSError, match="connect"):
                await dial(plugin.address)
            await plugin.connect()


# External connections.


async def test_application_may_hand_over_a_stream():
    async with open_http(serving(incoming={"port": None}), data_handler=fulfill) as plugin:
        assert plugin.address == ""
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.serve_stream, theirs)
            for _ in range(2):
                await ours.send_all(post())
                assert (await read_response(ours))[2] == FULFILL
            await ours.aclose()


async def test_handed_over_stream_is_refused_like_any_other():
    async with open_http(serving(incoming={"port": None}), data_handler=fulfill) as plugin:
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(plugin.serve_stream, theirs, peer="192.0.2.1"))
            await ours.send_all(post(token="wrong"))
            assert (await read_response(ours))[0] == 401


class Breaking(trio.abc.Stream):
    """A stream over which nothing can be sent, and which says so as a socket does."""

    def __init__(self, stream):
        self._stream = stream

    async def send_all(self, data):
        raise ConnectionResetError("reset by the peer")

    async def wait_send_all_might_not_block(self):
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes=None):
        return await self._stream.receive_some(max_bytes)

    async def aclose(self):
        await self._stream.aclose()


@pytest.mark.parametrize("request_", [b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", post()], ids=["a health check", "a packet"])
async def test_stream_that_raises_an_error_of_its_own_ends_alone(request_):
    """The application's stream may raise what its socket does, and the other clients are not to blame."""

    ours, theirs = memory_stream_pair()
    async with (
        open_http(serving(incoming={"port": None}), data_handler=fulfill) as plugin,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(plugin.serve_stream, Breaking(theirs))
        await ours.send_all(request_)
        await wait_all_tasks_blocked()
        await ours.aclose()
        plugin.check_usable()


async def test_stream_of_a_plugin_that_cannot_serve_is_left_alone():
    ours, theirs = memory_stream_pair()
    async with open_http(sending("http://localhost:1")) as plugin:
        with pytest.raises(InvalidFieldsError, match="only sends"):
            await plugin.serve_stream(theirs)
    async with open_http(serving()) as plugin:
        with pytest.raises(TypeError):
            await plugin.serve_stream("stream")
        await plugin.disconnect()
        with pytest.raises(NotConnectedError):
            await plugin.serve_stream(theirs)
    with pytest.raises(PluginClosedError):
        await plugin.serve_stream(theirs)
    await ours.send_all(b"x")
    assert await theirs.receive_some() == b"x"


async def test_money_handler_is_never_called_and_the_log_says_so():
    """An application would wait for money that cannot come."""
    log = Recorder()

    async def take(amount):
        raise AssertionError

    async with open_http(serving(), log=log, money_handler=take, data_handler=fulfill) as plugin:
        assert (await talk(plugin.address, post()))[2] == FULFILL
        with pytest.raises(MoneyHandlerAlreadyRegisteredError):
            plugin.register_money_handler(take)
    assert log.lines.count("the money handler is never called: ILP over HTTP carries no money") == 1


async def test_transactional_money_handler_is_refused_for_the_right_reason(tmp_path):
    """The user would look for what is wrong with the store."""

    async def wrong(connection, transfer):
        raise AssertionError

    async with open_sqlite_store(tmp_path / "a.db") as store, open_http(serving(), store=store) as plugin:
        with pytest.raises(InvalidServicesError, match="has no journal here: ILP over HTTP carries no money"):
            plugin.register_transactional_money_handler(lambda connection, transfer: None)
        with pytest.raises(TypeError, match="plain function"):
            plugin.register_transactional_money_handler(wrong)


async def test_serving_command_registers_no_money_handler():
    """Its user could do nothing about the warning."""
    for mode in ([], ["--accounts"]):
        async with program_serving("--http", *mode) as server:
            await server.wait_for("(listening on http)")
            await server.wait_for("(try it)")
        assert "money" not in server.output
