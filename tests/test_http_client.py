"""The end that sends: what goes over the wire, and what each answer, and each fault, means for the caller."""

from __future__ import annotations

import gzip
import math
import ssl
import time
from functools import partial

import pytest
import trio
from support.calls import start
from support.cancellation import cancelled_at, each_checkpoint
from support.http import (
    FULFILL,
    OWN_TOKEN,
    PREPARE,
    dial,
    ok,
    open_http,
    post,
    raw_server,
    sending,
    stay_silent,
    take_request,
)
from support.leftovers import Baseline, open_files
from support.ports import free_port
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    ConnectionLostError,
    DecodeError,
    MoneyLevelError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    RemoteError,
    ResponseTimeoutError,
)
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.http import jwt
from trio_ledger_plugin.http.options import OutgoingOptions
from trio_ledger_plugin.http.pool import ConnectionPool, _Turn
from trio_ledger_plugin.testing import FaultKind, open_fault_proxy
from trio_ledger_plugin.testing.conformance.assertions import Recorder
from trio_ledger_plugin.testing.faults import Direction, Fault


class Script:
    """A server that gives the same answer to every request, and keeps what came."""

    def __init__(self, answer=None, *, close=False):
        self.answer = ok() if answer is None else answer
        self.close = close
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0

    async def __call__(self, stream):
        self.connections += 1
        async with stream:
            while True:
                self.requests.append(await take_request(stream))
                await stream.send_all(self.answer)
                if self.close:
                    return


def header(head, name):
    return next((line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(name)), None)


async def test_request_on_the_wire():
    """Rafiki refuses every other media type, and every peer wants the token in this form."""
    script = Script()
    async with raw_server(script) as url, open_http(sending(url, outgoing={"name": "alice"})) as plugin:
        assert await plugin.send_data(PREPARE) == FULFILL
        host = url.split("/")[2]
    ((head, body),) = script.requests
    assert head.decode().split("\r\n") == [
        "POST /ilp HTTP/1.1",
        f"Host: {host}",
        "Accept: application/octet-stream",
        "Content-Type: application/octet-stream",
        "ILP-Peer-Name: alice",
        f"Authorization: Bearer {OWN_TOKEN}",
        f"Content-Length: {len(PREPARE)}",
        "",
        "",
    ]
    assert body == PREPARE


async def test_name_is_the_number_of_the_port_by_default():
    script = Script()
    async with raw_server(script) as url:
        options = sending(url, incoming={"port": 0, "static_token": "x"})
        async with open_http(options) as plugin:
            await plugin.send_data(PREPARE)
        async with open_http(sending(url)) as plugin:
            await plugin.send_data(PREPARE)
    assert [header(head, b"ilp-peer-name") for head, _ in script.requests] == [b"0", None]


async def test_destination_is_sent_if_asked_for():
    script = Script()
    options = {"send_ilp_destination": True}
    async with raw_server(script) as url, open_http(sending(url, outgoing=options)) as plugin:
        await plugin.send_data(PREPARE)
        await plugin.send_data(b"no packet")
    assert [header(head, b"ilp-destination") for head, _ in script.requests] == [b"example.bob", None]


async def test_old_names_send_a_bare_token():
    script = Script()
    async with raw_server(script) as url:
        for old in ({"secretToken": "tok"}, {"secret": "s"}):
            async with open_http({"plugin": "http", "outgoing": {"url": url, **old}}) as plugin:
                await plugin.send_data(PREPARE)
    first, second = (header(head, b"authorization") for head, _ in script.requests)
    assert first == b"tok"
    assert jwt.verify(second.decode(), b"s", time.time()).subject is None


async def test_jwt_is_renewed_after_half_of_its_life(monkeypatch):
    """A peer whose clock is a little ahead would refuse the old one."""
    now = 1_700_000_000.0
    monkeypatch.setattr("trio_ledger_plugin.http.credentials.time.time", lambda: now)
    script = Script()
    options = {"static_token": "", "jwt_secret": "s", "jwt_expiry": 30, "jwt_subject": "alice"}
    async with raw_server(script) as url, open_http(sending(url, outgoing=options)) as plugin:
        for now in (1_700_000_000.0, 1_700_000_014.9, 1_700_000_015.0, 1_600_000_000.0):
            await plugin.send_data(PREPARE)
            token = header(script.requests[-1][0], b"authorization").removeprefix(b"Bearer ").decode()
            assert jwt.verify(token, b"s", now).subject == "alice"
    assert len({header(head, b"authorization") for head, _ in script.requests}) == 3


ZIPPED = gzip.compress(FULFILL)


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (ok(status="401 Unauthorized"), NotAcceptedError, None),
        (ok(status="403 Forbidden"), NotAcceptedError, None),
        (ok(b"no", status="400 Bad Request"), RemoteError, "F00"),
        (ok(status="404 Not Found"), RemoteError, "F00"),
        (ok(status="413 Too Large"), RemoteError, "F00"),
        (ok(b"", "Location: /x", status="301 Moved"), RemoteError, "F00"),
        (ok(status="304 Not Modified"), RemoteError, "F00"),
        (ok(status="429 Too Many"), RemoteError, "T00"),
        (ok(status="500 Error"), RemoteError, "T00"),
        (ok(status="502 Bad Gateway"), RemoteError, "T00"),
        (ok(status="503 Unavailable"), RemoteError, "T00"),
        (ok(b"", status="202 Accepted"), DecodeError, None),
        (ok(b"", status="204 No Content"), DecodeError, None),
        (ok(status="206 Partial Content"), DecodeError, None),
        (ok(ZIPPED, "Content-Encoding: gzip"), DecodeError, None),
        (ok(b"<html>"), DecodeError, None),
        (ok(b""), DecodeError, None),
        (b"\x16\x03\x01rubbish\r\n\r\n", DecodeError, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", DecodeError, None),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, DecodeError, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n" + bytes(100_000), DecodeError, None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4000000\r\n" + bytes(100_000), DecodeError, None),
        (b"HTTP/1.0 200 OK\r\n\r\n" + bytes(100_000), DecodeError, None),
    ],
)
async def test_answer_that_is_no_packet_has_its_error(answer, kind, code):
    script = Script(answer, close=not answer.startswith(b"HTTP/1.1 "))
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        with trio.fail_after(5), pytest.raises(kind) as caught:
            await plugin.send_data(PREPARE)
        assert type(caught.value) is kind
        if code is not None:
            assert caught.value.code == code
        assert plugin.is_connected()
        assert plugin.calls_in_flight() == 0
    assert len(script.requests) == 1


async def test_text_of_a_refusal_is_in_the_error():
    async with raw_server(Script(ok(b"not today\x1b[0m", status="400 Bad"))) as url, open_http(sending(url)) as plugin:
        with pytest.raises(RemoteError, match=r"F00 NotAcceptedError: HTTP 400: not today\\x1b\[0m"):
            await plugin.send_data(PREPARE)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            ok(b"GET and HEAD only\n", status="405 Not Allowed"),
            "HTTP 405: GET and HEAD only; is ILP over HTTP served",
        ),
        (ok(b"\n<!DOCTYPE html><p>long", status="501 Unsupported"), "HTTP 501: a page; is ILP over HTTP served"),
        (ok(b"<html>", status="502 Bad Gateway"), "HTTP 502: a page$"),
    ],
)
async def test_url_of_another_server_is_suspected_and_its_page_left_out(answer, said):
    async with raw_server(Script(answer)) as url, open_http(sending(url)) as plugin:
        with pytest.raises(RemoteError, match=said):
            await plugin.send_data(PREPARE)


async def test_redirect_is_not_followed():
    """The token would go to another host."""
    elsewhere = Script()
    async with raw_server(elsewhere) as other:
        script = Script(ok(b"", f"Location: {other}", status="307 Temporary Redirect"))
        async with raw_server(script) as url, open_http(sending(url)) as plugin:
            with pytest.raises(RemoteError):
                await plugin.send_data(PREPARE)
    assert (len(script.requests), elsewhere.connections) == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(FULFILL), FULFILL),
        b"HTTP/1.1 100 Continue\r\n\r\n" + ok(),
        ok(FULFILL, "Content-Type: text/html", "Content-Encoding: identity"),
    ],
)
async def test_answer_of_another_form_is_taken(answer):
    async with raw_server(Script(answer)) as url, open_http(sending(url)) as plugin:
        for _ in range(3):
            assert await plugin.send_data(PREPARE) == FULFILL


async def test_answer_until_the_end_of_the_connection_is_taken():
    script = Script(b"HTTP/1.0 200 OK\r\n\r\n" + FULFILL, close=True)
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        for _ in range(2):
            assert await plugin.send_data(PREPARE) == FULFILL
    assert script.connections == 2


async def test_data_other_than_packets_pass_unchanged():
    async with raw_server(Script(ok(b"anything"))) as url, open_http(sending(url)) as plugin:
        assert await plugin.send_data(b"something") == b"anything"


# Connections.


async def test_one_connection_serves_calls_in_turn():
    script = Script()
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        for _ in range(5):
            await plugin.send_data(PREPARE)
    assert (len(script.requests), script.connections) == (5, 1)


async def test_refusals_leave_the_connection_in_use():
    script = Script(ok(b"later", status="503 Unavailable"))
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        for _ in range(3):
            with pytest.raises(RemoteError):
                await plugin.send_data(PREPARE)
    assert script.connections == 1


async def test_connection_that_the_server_closed_is_not_used():
    """The first call after a pause would fail at every Node peer."""
    script = Script(close=True)
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        for _ in range(5):
            assert await plugin.send_data(PREPARE) == FULFILL
            await trio.sleep(0.01)
    assert script.connections == 5


@pytest.mark.parametrize(
    ("promise", "pause", "connections"), [(None, 3.9, 1), (None, 4.1, 2), (3, 1.9, 1), (3, 2.1, 2)]
)
async def test_idle_connection_is_used_while_the_server_keeps_it(promise, pause, connections, clock):
    """The least of the option and what the server promises, less a second."""
    lines = [] if promise is None else [f"Keep-Alive: timeout={promise}"]
    script = Script(ok(FULFILL, *lines))
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        await plugin.send_data(PREPARE)
        await trio.sleep(pause)
        await plugin.send_data(PREPARE)
    assert script.connections == connections


async def test_idle_connections_are_closed(clock):
    async with raw_server(Script()) as url, open_http(sending(url)) as plugin:
        before = open_files()
        await plugin.send_data(PREPARE)
        assert open_files() == before + 2
        await trio.sleep(9)
        assert open_files() == before


async def test_calls_share_a_bounded_number_of_connections():
    script = Script()
    async with raw_server(script) as url, open_http(sending(url, outgoing={"max_connections": 3})) as plugin:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(plugin.send_data, PREPARE)
        assert (await plugin.send_data(PREPARE)) == FULFILL
    assert (len(script.requests), script.connections) == (51, 3)


async def test_call_that_waits_for_a_connection_may_be_cancelled():
    options = {"max_connections": 1}
    async with raw_server(stay_silent) as url, open_http(sending(url, outgoing=options)) as plugin:
        with trio.CancelScope() as both:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plugin.send_data, PREPARE)
                await wait_all_tasks_blocked(0.01)
                with trio.move_on_after(0.01) as scope:
                    await plugin.send_data(PREPARE)
                assert scope.cancelled_caught
                both.cancel()
        assert plugin.statistics().calls_in_flight == 0


async def test_many_waiting_calls_are_cancelled_as_fast_as_few():
    """A caller of thousands gives up all of them at once, and the program stands still meanwhile."""

    def seconds_for(count):
        url = OutgoingOptions(url="http://localhost/", static_token="token").parsed
        pool = ConnectionPool(url, None, limit=1, idle_seconds=1, dial_seconds=1)
        turns = [_Turn(pool) for _ in range(count)]
        for turn in turns:
            pool.waiting[turn] = None
        began = time.process_time()
        for turn in reversed(turns):
            turn.abandon(None)
        assert not pool.waiting
        return time.process_time() - began

    assert seconds_for(8000) < 40 * seconds_for(800)


@pytest.mark.parametrize("how", ["disconnect", "aclose"])
async def test_every_waiting_call_ends_with_the_plugin(how):
    async with raw_server(stay_silent) as url:
        options = sending(url, outgoing={"max_connections": 1}, close_timeout=0.05)
        async with open_http(options) as plugin, trio.open_nursery() as nursery:
            outcomes = [await start(nursery, plugin.send_data, PREPARE) for _ in range(3)]
            with trio.fail_after(2):
                await getattr(plugin, how)()
                await wait_all_tasks_blocked()
            assert [type(outcome[0]) for outcome in outcomes] == [PluginClosedError] * 3


async def test_disconnected_plugin_connects_again():
    async with raw_server(Script()) as url, open_http(sending(url)) as plugin:
        for _ in range(2):
            assert await plugin.send_data(PREPARE) == FULFILL
            await plugin.disconnect()
            with pytest.raises(NotConnectedError):
                await plugin.send_data(PREPARE)
            await plugin.connect()


async def test_timers_of_earlier_connections_end(clock):
    """A program that disconnects and connects again for months would slow down."""
    arrived = trio.Event()

    async def hang(data):
        arrived.set()
        await trio.sleep_forever()

    incoming = {"port": 0, "static_token": "t"}
    options = sending("http://127.0.0.1:1", incoming=incoming, handler_timeout=math.inf, close_timeout=0.1)
    async with open_http(options, data_handler=hang) as plugin:
        # While a handler runs, the plugin's tasks go on.
        async with await dial(plugin.address) as stream:
            await stream.send_all(post(token="t"))
            await arrived.wait()
        for _ in range(10):
            await plugin.disconnect()
            await plugin.connect()
        await trio.sleep(60)
        assert len(plugin.context.timers._due) <= 5


# Faults.


async def test_unreachable_peer_means_that_nothing_was_sent():
    async with open_http(sending(f"http://127.0.0.1:{free_port()}")) as plugin:
        with pytest.raises(NotConnectedError, match="Connection refused; nothing was sent"):
            await plugin.send_data(PREPARE)


async def test_peer_that_is_slow_to_connect_means_that_nothing_was_sent(clock):
    async with raw_server(stay_silent) as url:
        outgoing = {"url": url.replace("http://", "https://"), "ssl_context": ssl.create_default_context()}
        async with open_http(sending(url, outgoing=outgoing, connect_timeout=3)) as plugin:
            began = trio.current_time()
            with pytest.raises(NotConnectedError, match="did not answer within 3 s; nothing was sent"):
                await plugin.send_data(PREPARE)
            assert trio.current_time() - began == pytest.approx(3, abs=0.1)


@pytest.mark.slow
async def test_answer_cut_at_every_byte_is_a_lost_connection():
    """The peer may have acted, whatever part of its answer came."""
    answer = ok(FULFILL, "Content-Type: application/octet-stream")
    rest = [answer[:size] for size in range(len(answer) + 1)]

    async def script(stream):
        async with stream:
            await take_request(stream)
            await stream.send_all(rest.pop(0))

    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        for _ in answer:
            with trio.fail_after(2), pytest.raises(ConnectionLostError):
                await plugin.send_data(PREPARE)
        assert await plugin.send_data(PREPARE) == FULFILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FaultKind.CUT, FaultKind.RESET])
async def test_request_cut_at_every_byte_is_a_lost_connection(kind):
    """Nothing is sent again: the peer may have read the whole of it."""
    script = Script()
    async with raw_server(script) as url:
        port = int(url.split(":")[2].split("/")[0])
        async with open_http(sending(url)) as plugin:
            await plugin.send_data(PREPARE)
        length = sum(map(len, script.requests[0]))
        for at in range(length):
            faults = [Fault(kind, Direction.TO_TARGET, at_byte=at)]
            async with open_fault_proxy(("127.0.0.1", port), faults=faults) as proxy:
                assert proxy.address is not None
                async with open_http(sending("http://{}:{}/ilp".format(*proxy.address))) as plugin:
                    with trio.fail_after(2), pytest.raises(ConnectionLostError):
                        await plugin.send_data(PREPARE)
                    assert plugin.statistics().calls_in_flight == 0
    assert len(script.requests) == 1


async def test_peer_that_never_answers_is_a_timeout(clock):
    """The connection is closed: a late answer could be taken for that of the next call."""
    ended = trio.Event()

    async def script(stream):
        await take_request(stream)
        assert await stream.receive_some() == b""
        ended.set()

    async with raw_server(script) as url, open_http(sending(url, response_timeout=7)) as plugin:
        began = trio.current_time()
        with pytest.raises(ResponseTimeoutError):
            await plugin.send_data(PREPARE)
        assert trio.current_time() - began == pytest.approx(7, abs=0.01)
        await ended.wait()


async def test_answer_that_trickles_is_a_timeout(clock):
    async def script(stream):
        await take_request(stream)
        for byte in ok():
            await stream.send_all(bytes([byte]))
            await trio.sleep(1)

    async with raw_server(script) as url, open_http(sending(url, response_timeout=7)) as plugin:
        began = trio.current_time()
        with pytest.raises(ResponseTimeoutError):
            await plugin.send_data(PREPARE)
        assert trio.current_time() - began <= 9


async def test_answer_in_the_socket_counts_at_the_deadline():
    """A process that was stopped must not drop an answer that came in time."""
    answered = trio.Event()

    async def script(stream):
        await take_request(stream)
        await stream.send_all(ok())
        answered.set()
        await trio.sleep_forever()

    async with raw_server(script) as url, open_http(sending(url, response_timeout=0.2)) as plugin:

        class Stop(trio.abc.Instrument):
            def after_task_step(self, task):
                if answered.is_set():
                    trio.lowlevel.remove_instrument(self)
                    time.sleep(0.4)

        trio.lowlevel.add_instrument(Stop())
        assert await plugin.send_data(PREPARE) == FULFILL


@pytest.mark.slow
async def test_cancelling_at_each_checkpoint_leaves_nothing():
    script = Script(ok(FULFILL, "Connection: close"), close=True)
    async with raw_server(script) as url, open_http(sending(url, outgoing={"max_connections": 1})) as plugin:
        baseline = Baseline()

        async def attempt(step):
            cancelled = await cancelled_at(step, partial(plugin.send_data, PREPARE))
            assert plugin.statistics().calls_in_flight == 0
            assert await plugin.send_data(PREPARE) == FULFILL
            return cancelled

        await each_checkpoint(attempt)
        await baseline.settle()


async def test_token_is_in_no_log_and_no_error():
    log = Recorder()
    async with raw_server(Script(ok(status="401 Unauthorized"))) as url, open_http(sending(url), log=log) as plugin:
        with pytest.raises(NotAcceptedError) as caught:
            await plugin.send_data(PREPARE)
        seen = f"{caught.value!r} {plugin.options!r} {plugin.statistics()!r} {log.lines}"
    assert "canary" not in seen


async def test_money_is_refused_before_anything_is_sent():
    """The reference reports success, and no money moves."""
    script = Script()
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        with pytest.raises(MoneyLevelError, match="ILP over HTTP carries no money"):
            await plugin.send_money("5")
        with pytest.raises(TypeError):
            await plugin.send_money(1.5)
        with pytest.raises(ValueError, match="amount"):
            await plugin.send_money("0")
    assert script.connections == 0


async def test_plugin_without_a_peer_to_send_to_says_so():
    options = {"plugin": "http", "incoming": {"port": 0, "static_token": "t"}}
    async with open_http(options) as plugin:
        with pytest.raises(NotConnectedError, match=r"no outgoing\.url"):
            await plugin.send_data(PREPARE)


async def test_calls_are_counted():
    async with raw_server(Script()) as url, open_http(sending(url)) as plugin:
        for _ in range(3):
            await plugin.send_data(PREPARE)
        counts = plugin.statistics()
    assert (counts.requests_sent, counts.responses_received, counts.errors_received) == (3, 3, 0)
    assert counts.bytes_sent > 3 * len(PREPARE)
    assert counts.bytes_received == 3 * len(FULFILL)


async def test_reject_is_an_answer():
    reject = ilp.encode(ilp.Reject("F02", "test.peer", "no"))
    async with raw_server(Script(ok(reject))) as url, open_http(sending(url)) as plugin:
        assert await plugin.send_data(PREPARE) == reject


async def test_finished_calls_are_not_counted_any_longer():
    """The account would seem to be in use for ever, and have fewer than no calls in flight."""
    script = Script(ok())
    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        budget = plugin.context.budget
        for _ in range(3):
            assert await plugin.send_data(PREPARE) == FULFILL
        assert budget.calls == 0
        assert not budget.in_use
