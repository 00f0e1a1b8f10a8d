"""``watch_events`` and ``watch_requests``: what a program sees of a plugin without changing what others see."""

import pytest
import trio
from support.http import open_http, sending, serving
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    Connected,
    Disconnected,
    EventsDropped,
    InsufficientBalanceError,
    RemoteError,
    loopback_pair,
)
from trio_ledger_plugin.events import AccountConnected, EventStream
from trio_ledger_plugin.loopback import LoopbackPlugin
from trio_ledger_plugin.testing.conformance.assertions import echo


async def test_watcher_gets_every_event_and_takes_none_away():
    """With a clone of the channel, the application would miss the events that the watcher gets."""
    async with loopback_pair() as (alice, bob):
        with alice.watch_events() as first, alice.watch_events() as second:
            await bob.disconnect()
            await bob.connect()
            await wait_all_tasks_blocked()
            expected = [Disconnected("the peer disconnected"), Connected()]
            for channel in (first, second):
                assert [channel.receive_nowait() for _ in expected] == expected
        assert [alice.events.receive_nowait() for _ in range(3)] == [Connected(), *expected]


async def test_watchers_channel_ends_with_its_block():
    async with loopback_pair() as (alice, bob):
        with alice.watch_events() as events:
            pass
        await bob.disconnect()
        with pytest.raises(trio.EndOfChannel):
            events.receive_nowait()


async def test_watchers_channel_ends_with_the_plugin():
    async with loopback_pair() as (alice, _):
        with alice.watch_events() as events:
            await alice.aclose()
            assert [event async for event in events] == [Disconnected("closed")]


async def test_slow_watcher_loses_events_and_others_do_not():
    stream = EventStream()
    with stream.watch() as watched:
        for number in range(100):
            stream.publish(AccountConnected(str(number)))
            assert stream.receiver.receive_nowait() == AccountConnected(str(number))
        assert watched.receive_nowait() == EventsDropped(37)
        assert stream.dropped == 0


async def refuse(data: bytes) -> bytes:
    raise InsufficientBalanceError("no")


class Replies:
    """What the two functions are called with."""

    def __init__(self):
        self.handled = []
        self.answered = []

    def watch(self, plugin):
        def on_handled(began, reply):
            self.handled.append((began, reply))

        def on_answered(began, reply):
            self.answered.append((began, reply))

        return plugin.watch_requests(on_handled, on_answered)


async def test_replies_of_both_directions_are_watched():
    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(echo)
        at_alice, at_bob = Replies(), Replies()
        with at_alice.watch(alice), at_bob.watch(bob):
            await alice.send_data(b"hello")
            bob.deregister_data_handler()
            bob.register_data_handler(refuse)
            with pytest.raises(RemoteError):
                await alice.send_data(b"hello")
        assert [reply if isinstance(reply, bytes) else reply.code for _, reply in at_bob.handled] == [b"hello", "F08"]
        assert [reply if isinstance(reply, bytes) else reply.code for _, reply in at_alice.answered] == [
            b"hello",
            "F08",
        ]
        assert at_alice.handled == at_bob.answered == []
        with pytest.raises(RemoteError):
            await alice.send_data(b"not watched")
        assert len(at_alice.answered) == len(at_bob.handled) == 2


async def test_replies_that_are_not_wanted_are_not_passed_on():
    """Passing each on would cost a busy server more than all else that the admin page does."""

    async def answer(data: bytes) -> bytes:
        if data == b"raise":
            raise InsufficientBalanceError("no")
        return data

    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(answer)
        replies = Replies()
        with replies.watch(bob):
            bob.context.workers.passed_byte = 14
            for data in (b"\x0d", b"", b"\x0e\x03F02", b"plain"):
                await alice.send_data(data)
            with pytest.raises(RemoteError):
                await alice.send_data(b"raise")
        passed = [reply if isinstance(reply, bytes) else reply.code for _, reply in replies.handled]
        assert passed == [b"", b"\x0e\x03F02", "F08"]
        with replies.watch(bob):
            await alice.send_data(b"plain")
        assert len(replies.handled) == 4


async def test_watched_request_began_when_its_handler_was_called(autojump_clock):
    async def slow(data: bytes) -> bytes:
        await trio.sleep(3)
        return data

    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(slow)
        replies = Replies()
        with replies.watch(bob):
            began = trio.current_time()
            await alice.send_data(b"")
        assert replies.handled == [(began, b"")]
        assert trio.current_time() == began + 3


async def test_handler_past_its_deadline_is_watched_once(autojump_clock):
    """A histogram without the slowest requests would look good when all is bad."""

    async def stubborn(data: bytes) -> bytes:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
        return data

    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(stubborn)
        replies = Replies()
        with replies.watch(bob):
            began = trio.current_time()
            with pytest.raises(RemoteError, match="too long"):
                await alice.send_data(b"")
            await trio.sleep(200)
        ((when, reply),) = replies.handled
        assert (when, reply.code) == (began, "T00")


async def test_requests_are_watched_by_one_at_a_time():
    async with loopback_pair() as (alice, _):
        assert isinstance(alice, LoopbackPlugin)
        with Replies().watch(alice), pytest.raises(RuntimeError, match="watched already"), Replies().watch(alice):
            pytest.fail("watched twice")
        with Replies().watch(alice):
            pass


async def test_calls_and_requests_over_http_are_watched():
    replies = Replies()
    async with open_http(serving(), data_handler=echo) as server:
        options = sending(server.address, outgoing={"static_token": "canary-http-incoming"})
        async with open_http(options) as client:
            at_client = Replies()
            with replies.watch(server), at_client.watch(client):
                assert await client.send_data(b"hello") == b"hello"
                server.deregister_data_handler()
                server.register_data_handler(refuse)
                with pytest.raises(RemoteError):
                    await client.send_data(b"hello")
    assert [reply if isinstance(reply, bytes) else reply.code for _, reply in replies.handled] == [b"hello", "F08"]
    assert [reply if isinstance(reply, bytes) else reply.code for _, reply in at_client.answered] == [b"hello", "F00"]
