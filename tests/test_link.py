"""One link with a scripted peer, on a mock clock: every deadline to the second, every request answered once."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
import trio_websocket
from support.events import next_event
from support.peers import BINARY, PING, PONG, TEXT, Peer, shake_hands
from trio.testing import MockClock

from trio_ledger_plugin.btp.link import Link
from trio_ledger_plugin.btp.options import BtpOptions, ListenerOptions
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.btp.session import request_ids
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.errors import (
    ConnectionLostError,
    DecodeError,
    InsufficientBalanceError,
    NotConnectedError,
    RemoteError,
    ResponseTimeoutError,
    TransferInDoubtError,
)
from trio_ledger_plugin.events import Connected, Disconnected
from trio_ledger_plugin.secret import Secret
from trio_ledger_plugin.services import PluginServices
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo
from trio_ledger_plugin.transfer import current_transfer
from trio_ledger_plugin.websocket.connection import Accepted, accept_websocket
from trio_ledger_plugin.websocket.interface import WebSocketTransport
from trio_ledger_plugin.websocket.messages import MessageStream

KIB = 1024
NOON = datetime(2018, 8, 31, 12, 0, 0, 899_000, tzinfo=UTC)


@pytest.fixture(autouse=True, params=["frame stream", "message stream"])
def _stream(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test on both streams: a peer must not be able to tell the difference."""
    monkeypatch.setattr(LinkedPlugin, "fast", request.param == "frame stream")


class LinkedPlugin(BtpPlugin):
    """A BTP plugin with one connection, a stream in memory whose peer is authenticated already."""

    fast: ClassVar[bool] = True
    near: Any
    websocket: WebSocketTransport

    async def run_connection(self, *, task_status: trio.TaskStatus[None]) -> None:
        if self.fast:
            self.websocket = await accept_websocket(
                self.near, self.tasks, self.options, peer="peer", refuse=lambda handshake: None
            )
            await self._run_link(task_status)
        else:
            async with trio.open_nursery() as nursery:
                request = await trio_websocket.wrap_server_stream(nursery, self.near)
                accepted = Accepted(await request.accept())
                self.websocket = MessageStream(accepted, self.tasks, self.options, "peer")
                try:
                    await self._run_link(task_status)
                finally:
                    nursery.cancel_scope.cancel()

    async def _run_link(self, task_status: trio.TaskStatus[None]) -> None:
        link = Link(self.context, request_ids(), self.websocket, self._detach_link)
        link.begin(lambda message: None)
        self._attach_link(link)
        task_status.started()
        try:
            await trio.sleep_forever()
        finally:
            link.abort("the end")


@asynccontextmanager
async def linked(
    *, data: Any = None, money: Any = None, streams: Any = trio.testing.memory_stream_pair, **options: Any
) -> AsyncIterator[Any]:
    near, far = streams()
    log = Recorder()
    listener = ListenerOptions(port=0, secret=Secret("not used"))
    async with trio.open_nursery() as nursery:
        plugin = LinkedPlugin(
            BtpOptions(listener=listener, **options), PluginServices(log=log), nursery, lambda failure: None
        )
        plugin.near = near
        if data:
            plugin.register_data_handler(data)
        if money:
            plugin.register_money_handler(money)
        peers: list[Peer] = []

        async def dial() -> None:
            peers.append(await shake_hands(far))

        nursery.start_soon(dial)
        await plugin.connect()
        await next_event(plugin.events, Connected)
        while not peers:
            await trio.testing.wait_all_tasks_blocked()
        yield plugin, peers[0], log
        nursery.cancel_scope.cancel()


async def swallow(peer: Peer) -> None:
    """Read for ever, without a reply."""
    try:
        while True:
            await peer.receive()
    except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def collect(peer: Peer, packets: list[Any]) -> None:
    """Keep the packets that arrive, answering pings, until the link ends."""
    try:
        while True:
            opcode, payload = await peer.receive()
            if opcode == PING:
                await peer.send(peer.frame(payload, PONG))
            elif opcode == BINARY:
                packets.append(btp.decode(payload))
    except (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def fails(error: type[Exception], call: Any, *args: Any, at: float | None = None) -> None:
    with pytest.raises(error):
        await call(*args)
    if at is not None:
        assert trio.current_time() == at


# Dead links.


async def test_a_half_open_link_is_found_after_ping_and_pong_deadline(autojump_clock: MockClock) -> None:
    """Otherwise a request on a dead link would wait for its own 35 s, and so would all later ones."""
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(swallow, peer)
        start = trio.current_time()
        await trio.sleep(30)
        for _ in range(5):
            nursery.start_soon(partial(fails, ConnectionLostError, plugin.send_data, b"ask", at=start + 40))
        await next_event(plugin.events, Disconnected)
        assert trio.current_time() == start + 40
        assert not plugin.is_connected()


async def test_peer_that_answers_pings_stays_connected(autojump_clock: MockClock) -> None:
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(collect, peer, [])
        await trio.sleep(1000)
        assert plugin.is_connected()
        await peer.aclose()


async def test_any_bytes_are_a_sign_of_life(autojump_clock: MockClock) -> None:
    """A slow line full of replies delays the pong behind them."""
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(swallow, peer)
        for _ in range(12):
            await trio.sleep(15)
            await peer.respond(1, b"to nothing")
        assert plugin.is_connected()
        await peer.aclose()


@pytest.mark.parametrize("last", [1, 19, 20.5, 22, 39, 40.5])
async def test_dead_link_is_found_within_40_s_of_its_last_byte(last: Any, autojump_clock: MockClock) -> None:
    """A reply between the ping and the death of the link must not delay its detection."""
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(swallow, peer)
        start = trio.current_time()
        for at in (10, 20.2, last):
            if start + at > trio.current_time():
                await trio.sleep_until(start + at)
                await peer.respond(1, b"to nothing")
        heard = trio.current_time()
        await next_event(plugin.events, Disconnected)
        assert trio.current_time() <= heard + 40


@pytest.mark.parametrize("interval", [1.0, 7.5])
async def test_ping_interval_and_pong_timeout_are_options(interval: Any, autojump_clock: MockClock) -> None:
    async with linked(ping_interval=interval, pong_timeout=3.0) as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(swallow, peer)
        start = trio.current_time()
        await next_event(plugin.events, Disconnected)
        assert trio.current_time() == start + interval + 3


@pytest.mark.parametrize("how", ["eof", "close frame", "illegal frame"])
async def test_calls_fail_at_once_when_the_link_dies(how: Any, autojump_clock: MockClock) -> None:
    """The JavaScript plugin lets them wait for 35 s."""
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        start = trio.current_time()
        errors: list[Exception] = []

        async def call() -> None:
            with pytest.raises(ConnectionLostError) as caught:
                await plugin.send_data(b"ask")
            errors.append(caught.value)

        for _ in range(50):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        if how == "eof":
            await peer.aclose()
        else:
            await peer.send(peer.frame(b"\x03\xe8", 8) if how == "close frame" else peer.frame(b"x", 5))
        await next_event(plugin.events, Disconnected)
        assert trio.current_time() == start
        await fails(NotConnectedError, plugin.send_data, b"ask")
        await trio.testing.wait_all_tasks_blocked()
        assert len({id(error) for error in errors}) == 50
        assert plugin.statistics().calls_in_flight == 0


async def test_a_transfer_on_a_dying_link_is_in_doubt(autojump_clock: MockClock) -> None:
    """It may have been applied; any other error invites a second transfer."""
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:

        async def pay() -> None:
            with pytest.raises(TransferInDoubtError) as caught:
                await plugin.send_money("250")
            assert caught.value.key
            assert caught.value.amount == "250"

        nursery.start_soon(pay)
        packet = await peer.receive_packet()
        assert (packet.type, packet.amount) == (btp.TRANSFER, 250)
        await peer.aclose()


# Calls to the peer.


async def test_replies_reach_their_own_calls_in_any_order(autojump_clock: MockClock) -> None:
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:

        async def call(data: bytes) -> None:
            assert await plugin.send_data(data) == b"re:" + data

        for i in range(20):
            nursery.start_soon(call, b"%d" % i)
        asked = [await peer.receive_packet() for _ in range(20)]
        for packet in reversed(asked):
            await peer.respond(packet.request_id, b"re:" + packet.protocol_data[0].data)


@pytest.mark.parametrize("timeout", [35.0, 1.5])
async def test_a_call_times_out_to_the_second(timeout: Any, autojump_clock: MockClock) -> None:
    async with linked(response_timeout=timeout) as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(collect, peer, [])
        await trio.sleep(3.25)
        for delay in (0.0, 0.5, 0.75):
            await trio.sleep(delay)
            at = trio.current_time() + timeout
            nursery.start_soon(partial(fails, ResponseTimeoutError, plugin.send_data, b"ask", at=at))
        await trio.sleep(timeout + 1)
        assert plugin.statistics().calls_in_flight == 0
        assert plugin.is_connected()
        await peer.aclose()


async def test_late_and_repeated_replies_are_ignored_and_counted(autojump_clock: MockClock) -> None:
    """A reply that reaches the wrong call is another caller's money."""
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(fails, ResponseTimeoutError, plugin.send_data, b"slow")
        slow = await peer.receive_packet()
        await trio.sleep(36)
        nursery.start_soon(fails, RemoteError, plugin.send_data, b"next")
        packet = await peer.receive_packet()
        assert packet.request_id != slow.request_id
        await peer.respond(slow.request_id, b"late")
        await peer.send_packet(btp.Response(packet.request_id + 7))
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.statistics().calls_in_flight == 1
        error = btp.Error(packet.request_id, "F08", "InsufficientBalanceError", NOON, b"none left")
        await peer.send_packet(error)
        await peer.send_packet(error)
        await peer.respond(packet.request_id, b"twice")
        await trio.testing.wait_all_tasks_blocked()
        counted = plugin.statistics()
        assert (counted.unexpected_responses, counted.errors_received, counted.requests_sent) == (4, 1, 2)
        assert plugin.is_connected()


async def test_cancelled_call_does_not_affect_the_link(autojump_clock: MockClock) -> None:
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        with trio.move_on_after(1) as scope:
            await plugin.send_data(b"given up")
        assert scope.cancelled_caught
        assert plugin.statistics().calls_in_flight == 0
        given_up = await peer.receive_packet()

        async def call() -> None:
            assert await plugin.send_data(b"next") == b"right"

        nursery.start_soon(call)
        packet = await peer.receive_packet()
        await peer.respond(given_up.request_id, b"wrong")
        await peer.respond(packet.request_id, b"right")


async def test_a_response_without_ilp_is_empty(autojump_clock: MockClock) -> None:
    """ilp-plugin-btp sends it when its handler returns no data."""
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:

        async def call() -> None:
            assert await plugin.send_data(b"ask") == b""

        nursery.start_soon(call)
        await peer.send_packet(btp.Response((await peer.receive_packet()).request_id))


async def test_illegal_reply_fails_its_call_at_once(autojump_clock: MockClock) -> None:
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(fails, DecodeError, plugin.send_data, b"ask")
        request_id = (await peer.receive_packet()).request_id
        await peer.send(peer.frame(b"\x01" + request_id.to_bytes(4, "big") + bytes.fromhex("0a01020161000001610000")))


async def test_callers_beyond_the_limit_wait_for_their_turn(autojump_clock: MockClock) -> None:
    """No call may be lost or stranded when more wait than may be in flight."""
    async with linked(max_in_flight=3) as (plugin, peer, _), trio.open_nursery() as nursery:
        done: list[bytes] = []

        async def call(data: bytes) -> None:
            done.append(await plugin.send_data(data))

        for i in range(10):
            nursery.start_soon(call, b"%d" % i)
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.statistics().calls_in_flight == 3
        for _ in range(10):
            packet = await peer.receive_packet()
            assert plugin.statistics().calls_in_flight <= 3
            await peer.respond(packet.request_id, packet.protocol_data[0].data)
        await trio.testing.wait_all_tasks_blocked()
        assert len(done) == 10


async def test_waiting_callers_learn_that_nothing_was_sent(
    autojump_clock: MockClock,
) -> None:
    async with linked(max_in_flight=1) as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(fails, ConnectionLostError, plugin.send_data, b"sent")
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(fails, NotConnectedError, plugin.send_data, b"not sent")
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.statistics().requests_sent == 1
        await peer.aclose()


# Requests from the peer.


async def test_requests_are_answered_under_their_ids(autojump_clock: MockClock) -> None:
    async with linked(data=echo) as (_, peer, _):
        for request_id in (0, 5, 2**32 - 1):
            await peer.send_request(request_id, b"%d" % request_id)
            assert await peer.receive_packet() == btp.Response(
                request_id, (btp.ProtocolData("ilp", 0, b"%d" % request_id),)
            )


async def test_a_thousand_requests_at_once_get_a_thousand_answers(autojump_clock: MockClock) -> None:
    async with linked(data=echo) as (plugin, peer, _):
        await peer.send(*(peer.frame(btp.encode_ilp(btp.MESSAGE, i, b"x" * 300)) for i in range(1000)))
        answered = {(await peer.receive_packet()).request_id for _ in range(1000)}
        assert answered == set(range(1000))
        assert plugin.statistics().responses_sent == 1000


async def test_request_without_a_handler_may_be_retried(autojump_clock: MockClock) -> None:
    """The F codes forbid a retry, and the handler may be registered a moment later."""
    async with linked() as (_, peer, _):
        await peer.send_request(7, b"ask")
        packet = await peer.receive_packet()
        assert (packet.type, packet.request_id) == (btp.ERROR, 7)
        assert (packet.code, packet.name) == ("T00", "UnreachableError")


async def test_a_transfer_without_a_handler_is_refused(autojump_clock: MockClock) -> None:
    """An acknowledged transfer would be credited to no account."""
    async with linked() as (_, peer, _):
        await peer.send_packet(btp.Transfer(7, 100))
        packet = await peer.receive_packet()
        assert (packet.request_id, packet.code, packet.name) == (7, "T00", "UnreachableError")


async def test_transfer_of_zero_is_refused(autojump_clock: MockClock) -> None:
    async def money(amount: str) -> None:
        raise AssertionError("must not be called")

    async with linked(money=money) as (plugin, peer, _):
        await peer.send_packet(btp.Transfer(7, 0))
        packet = await peer.receive_packet()
        assert (packet.request_id, packet.code, packet.name) == (7, "F01", "InvalidFieldsError")
        assert plugin.statistics().errors_sent == 1


async def test_a_transfer_reaches_the_money_handler_and_is_acknowledged(autojump_clock: MockClock) -> None:
    seen: list[Any] = []

    async def money(amount: str) -> None:
        seen.append((amount, current_transfer().amount))

    async with linked(money=money) as (_, peer, _):
        await peer.send_packet(btp.Transfer(7, 2**64 - 1))
        assert await peer.receive_packet() == btp.Response(7)
        assert seen == [(str(2**64 - 1), str(2**64 - 1))]


async def test_a_transfer_repeated_in_flight_is_applied_once(autojump_clock: MockClock) -> None:
    """Applied twice, it would create money."""
    seen: list[str] = []
    go = trio.Event()

    async def money(amount: str) -> None:
        seen.append(amount)
        await go.wait()

    async with linked(money=money) as (_, peer, _), trio.open_nursery() as nursery:
        packets: list[Any] = []
        nursery.start_soon(collect, peer, packets)
        for _ in range(3):
            await peer.send_packet(btp.Transfer(7, 100))
        await trio.testing.wait_all_tasks_blocked()
        go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert seen == ["100"]
        assert packets == [btp.Response(7)]
        await peer.aclose()


@pytest.mark.parametrize(
    "packet", ["060000000110010203696c7000010103696c70000102", "0600000001110103016100010101620001020161010161"]
)
async def test_repeated_entries_are_answered_with_an_error(packet: Any, autojump_clock: MockClock) -> None:
    """The packet can be read but is illegal (RFC-0023): its sender must not wait for ever."""
    async with linked(data=echo) as (_, peer, _):
        await peer.send(peer.frame(bytes.fromhex(packet)))
        answer = await peer.receive_packet()
        assert (answer.request_id, answer.code, answer.name) == (1, "F01", "InvalidFieldsError")


async def test_an_unknown_sub_protocol_gets_an_error(autojump_clock: MockClock) -> None:
    """An empty response would say that the request was carried out."""
    async with linked(data=echo) as (_, peer, _):
        await peer.send_packet(btp.Message(7, (btp.ProtocolData("info", 0, b"?"),)))
        answer = await peer.receive_packet()
        assert (answer.request_id, answer.code, answer.name) == (7, "F00", "NotAcceptedError")
        await peer.send_packet(btp.Message(8))
        assert await peer.receive_packet() == btp.Response(8)


async def test_handler_past_its_deadline_gets_one_error_reply(autojump_clock: MockClock) -> None:
    """Silence costs the peer its own timeout; a second reply could match another request of the peer."""

    async def stubborn(data: bytes) -> bytes:
        if data == b"polite":
            await trio.sleep(100)
        else:
            with trio.CancelScope(shield=True):
                await trio.sleep(100)
        return b"too late"

    async with linked(data=stubborn) as (plugin, peer, _), trio.open_nursery() as nursery:
        packets: list[Any] = []
        nursery.start_soon(collect, peer, packets)
        await trio.sleep(2)
        await peer.send_request(1, b"polite")
        await trio.sleep(1)
        await peer.send_request(2, b"stubborn")
        await trio.sleep(28.9)
        assert packets == []
        await trio.sleep(0.2)
        assert [(p.request_id, p.code) for p in packets] == [(1, "T00")]
        await trio.sleep(1)
        assert [(p.request_id, p.code) for p in packets] == [(1, "T00"), (2, "T00")]
        await trio.sleep(200)
        assert len(packets) == 2
        assert plugin.statistics().handlers_running == 0
        await peer.send_request(1, b"again")
        await trio.sleep(31)
        assert len(packets) == 3
        await trio.sleep(100)
        await peer.aclose()


async def test_a_money_handler_past_its_deadline_is_left_to_finish(autojump_clock: MockClock) -> None:
    """An error would claim that the transfer was not applied, which the plugin cannot know."""

    async def money(amount: str) -> None:
        await trio.sleep(100)

    async with linked(money=money) as (_, peer, _), trio.open_nursery() as nursery:
        packets: list[Any] = []
        nursery.start_soon(collect, peer, packets)
        await peer.send_packet(btp.Transfer(7, 100))
        await trio.sleep(99)
        assert packets == []
        await trio.sleep(2)
        assert packets == [btp.Response(7)]
        await peer.aclose()


async def test_error_of_a_handler_shows_the_peer_no_internal_text(autojump_clock: MockClock) -> None:
    async def broken(data: bytes) -> Any:
        if data == b"known":
            raise InsufficientBalanceError("no more than 5")
        if data == b"rubbish":
            return "text"
        raise RuntimeError("password is hunter2")

    async with linked(data=broken) as (_, peer, log):
        await peer.send_request(1, b"known")
        packet = await peer.receive_packet()
        assert (packet.code, packet.name) == ("F08", "InsufficientBalanceError")
        assert json.loads(packet.data) == {"message": "no more than 5"}
        for data in (b"rubbish", b"secret"):
            await peer.send_request(2, data)
            packet = await peer.receive_packet()
            assert (packet.request_id, packet.code) == (2, "F00")
            assert b"hunter2" not in packet.data
            reference = json.loads(packet.data)["message"].split()[-1]
            assert any(reference in line for line in log.lines)


async def test_response_too_long_for_a_message_becomes_an_error(autojump_clock: MockClock) -> None:
    async def long(data: bytes) -> bytes:
        return bytes(64 * KIB)

    async with linked(data=long) as (_, peer, _):
        await peer.send_request(1, b"ask")
        packet = await peer.receive_packet()
        assert (packet.type, packet.request_id) == (btp.ERROR, 1)


async def test_requests_past_the_waiting_limit_are_refused_for_now(autojump_clock: MockClock) -> None:
    """Memory is bounded, and the peer may retry."""
    go = trio.Event()

    async def slow(data: bytes) -> bytes:
        await go.wait()
        return data

    async with linked(data=slow, max_handlers=2, max_backlog_bytes=5 * KIB) as (plugin, peer, _):
        for i in range(10):
            await peer.send_request(i, bytes(2 * KIB))
        refused = []
        for _ in range(6):
            packet = await peer.receive_packet()
            assert (packet.code, packet.name) == ("T00", "UnreachableError")
            refused.append(packet.request_id)
        assert plugin.statistics().handlers_running == 2
        await peer.send(peer.frame(b"alive?", PING))
        assert await peer.receive() == (PONG, b"alive?")
        go.set()
        served = [(await peer.receive_packet()).request_id for _ in range(4)]
        assert sorted(refused + served) == list(range(10))
        await peer.send_request(3, b"again")
        assert (await peer.receive_packet()).request_id == 3


async def test_a_handler_outlives_its_link_and_its_reply_is_dropped(autojump_clock: MockClock) -> None:
    finished = trio.Event()

    async def slow(data: bytes) -> bytes:
        await trio.sleep(5)
        finished.set()
        return data

    async with linked(data=slow) as (plugin, peer, _):
        await peer.send_request(1, b"ask")
        await trio.testing.wait_all_tasks_blocked()
        await peer.aclose()
        await next_event(plugin.events, Disconnected)
        await finished.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.statistics().handlers_running == 0
        assert plugin.statistics().responses_sent == 0


# Peers that break the rules.


@pytest.mark.parametrize("kind", ["garbage", "text"])
async def test_too_many_unreadable_messages_close_the_link(kind: Any, autojump_clock: MockClock) -> None:
    async with linked() as (plugin, peer, log):
        bad = peer.frame(b"\x01", TEXT) if kind == "text" else peer.frame(b"\x09garbage\r\n\x1b[31m")
        for _ in range(8):
            await peer.send(bad)
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.is_connected()
        assert plugin.statistics().malformed_packets == 8
        await peer.send(bad)
        assert await peer.receive_close() == 1008
        await next_event(plugin.events, Disconnected)
        assert plugin.statistics().malformed_packets == 9
        assert all(line.isprintable() for line in log.lines)


async def test_error_while_reading_is_logged_and_ends_only_that_link(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """An operator who sees only "the connection ended" would look for the cause at the peer."""

    def stumble(self: Link, message: bytes) -> None:
        raise RuntimeError(f"a bug in our own code over {message!r}")

    async with linked() as (plugin, peer, log):
        monkeypatch.setattr(Link, "receive", stumble)
        await peer.send(peer.frame(b"anything"))
        assert (await next_event(plugin.events, Disconnected)).reason == "the connection ended"
        assert [line for line in log.lines if "a bug in our own code" in line and "reading from peer failed" in line]


async def test_unreadable_messages_of_different_minutes_are_not_added_up(
    autojump_clock: MockClock,
) -> None:
    async with linked() as (plugin, peer, _), trio.open_nursery() as nursery:
        nursery.start_soon(collect, peer, [])
        for _ in range(5):
            await peer.send(peer.frame(b"garbage") * 8)
            await trio.sleep(61)
        assert plugin.is_connected()
        assert plugin.statistics().malformed_packets == 40
        await peer.aclose()


async def test_a_message_past_the_limit_closes_the_link(autojump_clock: MockClock) -> None:
    async with linked() as (plugin, peer, _):
        await peer.send(peer.frame(bytes(64 * KIB + 1)))
        assert await peer.receive_close() == 1009
        await next_event(plugin.events, Disconnected)


async def test_a_peer_that_never_reads_is_found_after_the_send_timeout(autojump_clock: MockClock) -> None:
    """The send queue stays bounded all the time, and every caller gets an error for its request."""
    async with (
        linked(streams=trio.testing.lockstep_stream_pair) as (plugin, _, _),
        trio.open_nursery() as nursery,
    ):
        start = trio.current_time()
        outcomes: list[type] = []

        async def call() -> None:
            try:
                await plugin.send_data(bytes(60 * KIB))
            except (ConnectionLostError, NotConnectedError) as error:
                outcomes.append(type(error))

        for _ in range(100):
            nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.websocket.writer.queued <= KIB * KIB + 64 * KIB
        sent = plugin.statistics().requests_sent
        assert sent < 20
        await next_event(plugin.events, Disconnected)
        assert trio.current_time() == start + 10
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes.count(ConnectionLostError) == sent
        assert len(outcomes) == 100
        assert plugin.websocket.writer.queued == 0


async def test_a_peer_that_asks_and_never_reads_is_cut_off(autojump_clock: MockClock) -> None:
    """Refusals cannot wait for room: they may take little, and then the link is closed."""
    most = 0

    async with linked(
        streams=trio.testing.lockstep_stream_pair, data=echo, max_handlers=4, max_backlog_bytes=64 * KIB
    ) as (plugin, peer, _):
        with trio.move_on_after(9):
            try:
                for i in range(100_000):
                    await peer.send_request(i, bytes(32 * KIB))
                    most = max(most, plugin.websocket.writer.queued)
            except trio.BrokenResourceError:
                pass
        await next_event(plugin.events, Disconnected)
        assert 0 < most <= KIB * KIB + 64 * KIB + 64 * KIB


@pytest.mark.parametrize("packet", [btp.Transfer(7, 0), btp.Message(7)], ids=["refusals", "empty responses"])
async def test_peer_that_fills_the_queue_with_replies_is_cut_off(packet: Any, autojump_clock: MockClock) -> None:
    """The reader writes these replies and cannot wait: past their own limit the link is closed at once."""
    async with linked(streams=trio.testing.lockstep_stream_pair, max_send_queue_bytes=64 * KIB) as (plugin, peer, _):
        start = trio.current_time()
        batch = peer.frame(btp.encode(packet)) * 100
        most = 0
        with suppress(trio.BrokenResourceError):
            for _ in range(1000):
                await peer.send(batch)
                most = max(most, plugin.websocket.writer.queued)
        await next_event(plugin.events, Disconnected)
        assert trio.current_time() == start
        assert 64 * KIB < most <= 64 * KIB + 64 * KIB


async def test_a_slow_steady_reader_is_served(autojump_clock: MockClock) -> None:
    """64 KiB a second is slow, but no fault."""
    async with linked(streams=trio.testing.lockstep_stream_pair) as (plugin, peer, _), trio.open_nursery() as nursery:
        answered = 0

        async def call() -> None:
            nonlocal answered
            await plugin.send_data(bytes(60 * KIB))
            answered += 1

        for _ in range(60):
            nursery.start_soon(call)
        while answered < 60:
            opcode, payload = await peer.receive()
            await trio.sleep(1)
            if opcode == PING:
                await peer.send(peer.frame(payload, PONG))
            else:
                await peer.respond(btp.decode(payload).request_id, b"")
            await trio.testing.wait_all_tasks_blocked()
        assert plugin.is_connected()


@pytest.mark.parametrize("since", [5.0, 9.7, 9.95])
async def test_closing_handshake_has_its_full_time(since: float, autojump_clock: MockClock) -> None:
    """A timer that is due anyway must not cut it short, and with it what was sent last."""
    async with linked() as (plugin, peer, _):
        await trio.sleep(since)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.disconnect)
            assert await peer.receive_close() == 1000
            await peer.wait_eof()
        assert trio.current_time() - began == pytest.approx(1.0)
