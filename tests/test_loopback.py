"""Two plugins in one process are peers with every rule of a real link; only the network is missing."""
# ruff: noqa: PT012, SIM117 (whole blocks are what raises here, and their order is what matters)

import math
from contextlib import suppress

import pytest
import trio
from support.calls import sleep_on, sleeping, start
from support.events import names
from support.leftovers import FORMS, all_tasks, nursery_of
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    Connected,
    ConnectionLostError,
    Disconnected,
    InsufficientBalanceError,
    InvalidFieldsError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    RemoteError,
    ResponseTimeoutError,
    TransferInDoubtError,
    current_transfer,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.loopback import LoopbackPlugin, _open_plugins
from trio_ledger_plugin.testing.conformance.assertions import echo, read_events


@pytest.fixture(params=FORMS)
async def given(request):
    before = all_tasks()
    async with nursery_of(request.param) as made:
        yield made
    assert all_tasks() <= before
    with suppress(LookupError):
        assert _open_plugins.get() == {}, "a name is remembered after its plugins have gone"


def loopback(name="pair", **options):
    return {"plugin": "loopback", "name": name, **options}


async def test_pair_sends_requests_both_ways(given):
    async with loopback_pair(nursery=given) as (first, second):
        assert isinstance(first, LoopbackPlugin)
        assert first.is_connected()
        assert second.is_connected()
        first.register_data_handler(echo)
        second.register_data_handler(echo)
        assert await first.send_data(b"a") == b"a"
        assert await second.send_data(b"b") == b"b"
        assert await second.send_data(b"") == b""


async def test_money_reaches_its_handler(given):
    transfers = []

    async def credit(amount):
        if amount == "13":
            raise InsufficientBalanceError("unlucky")
        transfers.append((amount, current_transfer().amount, current_transfer().account))

    async with loopback_pair(nursery=given) as (first, second):
        second.register_money_handler(credit)
        await first.send_money("250")
        await first.send_money(2**64 - 1)
        with pytest.raises(RemoteError) as caught:
            await first.send_money("13")
        assert (caught.value.code, caught.value.name) == ("F08", "InsufficientBalanceError")
        assert b"unlucky" in caught.value.data
        assert caught.value.triggered_at is not None
        assert caught.value.triggered_at.tzinfo is not None
        with pytest.raises(RemoteError, match="no money handler"):
            await second.send_money("1")
    assert transfers == [("250", "250", ""), (str(2**64 - 1), str(2**64 - 1), "")]


async def test_missing_and_failing_handlers_give_errors(given):
    async def fail(data):
        raise OSError("internal canary")

    async with loopback_pair(nursery=given) as (first, second):
        with pytest.raises(RemoteError) as caught:
            await first.send_data(b"")
        assert (caught.value.code, caught.value.name) == ("T00", "UnreachableError")
        second.register_data_handler(fail)
        with pytest.raises(RemoteError) as caught:
            await first.send_data(b"")
        assert caught.value.code == "F00"
        assert b"canary" not in caught.value.data


async def test_first_plugin_waits_for_the_second(given):
    async with open_plugin(loopback(), nursery=given) as first:
        assert not first.is_connected()
        with pytest.raises(NotConnectedError):
            await first.send_data(b"")
        async with open_plugin(loopback(), nursery=given) as second:
            assert first.is_connected()
            assert second.is_connected()
        assert read_events(first) == [Connected(), Disconnected("the peer disconnected")]
        async with open_plugin(loopback(), nursery=given):
            assert first.is_connected()


async def test_names_keep_pairs_apart_and_a_third_is_refused(given):
    async with (
        open_plugin(loopback("a"), data_handler=echo, nursery=given),
        open_plugin(loopback("b"), nursery=given) as other,
        open_plugin(loopback("a"), nursery=given) as second,
    ):
        assert not other.is_connected()
        with pytest.raises(InvalidFieldsError, match="'a'; two plugins are connected under it"):
            async with open_plugin(loopback("a"), nursery=given):
                pytest.fail("the block ran")
        assert await second.send_data(b"still") == b"still"


@pytest.mark.parametrize("limit", [1, 10])
async def test_disconnect_is_a_loss_for_the_peer_and_closed_locally(given, limit):
    async with (
        open_plugin(
            loopback(max_in_flight=limit),
            data_handler=sleeping(math.inf),
            money_handler=sleep_on,
            nursery=given,
        ) as stays,
        open_plugin(
            loopback(max_in_flight=limit),
            data_handler=sleeping(math.inf),
            money_handler=sleep_on,
            nursery=given,
        ) as leaves,
        trio.open_nursery() as callers,
    ):
        lost = [await start(callers, stays.send_data, b"%d" % number) for number in range(2)]
        closed = [await start(callers, leaves.send_data, b"%d" % number) for number in range(2)]
        await leaves.disconnect()
        await wait_all_tasks_blocked()
        second = NotConnectedError if limit == 1 else ConnectionLostError
        assert [type(outcome[0]) for outcome in lost] == [ConnectionLostError, second]
        assert [type(outcome[0]) for outcome in closed] == [PluginClosedError] * 2
        assert stays.statistics().calls_in_flight == leaves.statistics().calls_in_flight == 0
        for plugin in (stays, leaves):
            plugin.tasks.cancel()


@pytest.mark.parametrize("who", ["peer", "self"])
async def test_money_is_in_doubt_only_once_it_was_sent(given, who):
    async with (
        open_plugin(loopback(max_in_flight=1), nursery=given) as payer,
        open_plugin(loopback(), money_handler=sleep_on, nursery=given) as payee,
        trio.open_nursery() as callers,
    ):
        sent = await start(callers, payer.send_money, "1")
        unsent = await start(callers, payer.send_money, "2")
        await (payee if who == "peer" else payer).disconnect()
        await wait_all_tasks_blocked()
        assert isinstance(sent[0], TransferInDoubtError)
        assert sent[0].amount == "1"
        assert sent[0].key
        assert isinstance(unsent[0], NotConnectedError if who == "peer" else PluginClosedError)
        assert payee.statistics().requests_received == 1
        payee.tasks.cancel()


async def test_late_reply_reaches_no_other_call(given, autojump_clock):
    async def late(data):
        await trio.sleep(3)
        return data

    async with (
        open_plugin(loopback(response_timeout=2.0), nursery=given) as asks,
        open_plugin(loopback(), data_handler=late, nursery=given) as answers,
    ):
        begun = trio.current_time()
        with pytest.raises(ResponseTimeoutError):
            await asks.send_data(b"first")
        assert trio.current_time() - begun == pytest.approx(2)
        with pytest.raises(ResponseTimeoutError):
            await asks.send_data(b"second")
        await trio.sleep(5)
        assert asks.statistics().unexpected_responses == 2
        assert answers.statistics().handlers_running == 0


async def test_a_handler_outlives_the_link_and_its_reply_is_dropped(given, autojump_clock):
    finished = []

    async def slow(data):
        await trio.sleep(2)
        finished.append(data)
        return data

    async with open_plugin(loopback(), data_handler=slow, nursery=given) as server:
        async with open_plugin(loopback(), nursery=given) as client:
            async with trio.open_nursery() as callers:
                call = await start(callers, client.send_data, b"x")
                await client.disconnect()
            assert isinstance(call[0], PluginClosedError)
        async with open_plugin(loopback(), nursery=given) as next_client:
            await trio.sleep(3)
            assert next_client.statistics().calls_in_flight == 0
        assert finished == [b"x"]
        assert server.is_connected() is False


async def test_waiting_requests_are_dropped_with_their_sender(given, autojump_clock):
    served = []

    async def slow(data):
        served.append(data)
        await trio.sleep(1)
        return data

    async with open_plugin(loopback(max_handlers=1), data_handler=slow, nursery=given) as server:
        async with open_plugin(loopback(), nursery=given) as client:
            async with trio.open_nursery() as callers:
                calls = [await start(callers, client.send_data, b"%d" % number) for number in range(3)]
                await client.disconnect()
        await trio.sleep(5)
        assert served == [b"0"]
        assert server.statistics().handlers_running == 0
        assert [type(call[0]) for call in calls] == [PluginClosedError] * 3


async def test_waiting_requests_are_dropped_when_their_receiver_disconnects(given, autojump_clock):
    served = []

    async def slow(data):
        served.append(data)
        await trio.sleep(1)
        return data

    async with (
        open_plugin(loopback(max_handlers=1), data_handler=slow, nursery=given) as server,
        open_plugin(loopback(), nursery=given) as client,
        trio.open_nursery() as callers,
    ):
        calls = [await start(callers, client.send_data, b"%d" % number) for number in range(3)]
        await server.disconnect()
        await trio.sleep(5)
        assert served == [b"0"]
        assert [type(call[0]) for call in calls] == [ConnectionLostError] * 3


async def test_requests_past_the_waiting_limit_may_be_retried(given):
    async with (
        open_plugin(
            loopback(max_handlers=1, max_backlog_bytes=1), data_handler=sleeping(math.inf), nursery=given
        ) as server,
        open_plugin(loopback(), nursery=given) as client,
        trio.open_nursery() as callers,
    ):
        running = await start(callers, client.send_data, b"")
        with pytest.raises(RemoteError) as caught:
            await client.send_data(b"")
        assert (caught.value.code, caught.value.name) == ("T00", "UnreachableError")
        # A cancelled caller may be refused as well.
        with trio.CancelScope() as scope:
            scope.cancel()
            await client.send_data(b"")
        await wait_all_tasks_blocked()
        assert client.statistics().calls_in_flight == 1
        server.tasks.cancel()
        await wait_all_tasks_blocked()
        assert isinstance(running[0], ConnectionLostError)


async def test_a_thousand_calls_at_once_get_a_thousand_answers(given):
    async with loopback_pair(nursery=given) as (first, second):
        second.register_data_handler(echo)
        answers = []

        async def call(number):
            answers.append((number, await first.send_data(b"%d" % number)))

        async with trio.open_nursery() as callers:
            for number in range(1000):
                callers.start_soon(call, number)
        assert sorted(answers) == [(number, b"%d" % number) for number in range(1000)]
        statistics = first.statistics()
        assert (statistics.requests_sent, statistics.responses_received) == (1000, 1000)
        assert second.statistics().responses_sent == 1000


async def test_handlers_that_call_each_other_do_not_deadlock(given):
    async with (
        open_plugin(loopback(max_handlers=50), nursery=given) as first,
        open_plugin(loopback(max_handlers=50), nursery=given) as second,
    ):

        def forward(plugin):
            async def handle(data):
                return await plugin.send_data(data[1:]) if data else b"bottom"

            return handle

        first.register_data_handler(forward(first))
        second.register_data_handler(forward(second))
        assert await first.send_data(bytes(80)) == b"bottom"


async def test_a_response_that_is_too_long_is_an_error(given):
    async def long(data):
        return bytes(1000)

    async with (
        open_plugin(loopback(max_message_bytes=500), data_handler=long, nursery=given),
        open_plugin(loopback(max_message_bytes=500), nursery=given) as client,
    ):
        with pytest.raises(RemoteError, match="too long"):
            await client.send_data(b"")


async def test_closing_drains_and_disconnects_the_peer(given, autojump_clock):
    async def slow(data):
        await trio.sleep(2)
        return data

    async with open_plugin(loopback(), data_handler=slow, nursery=given) as server:
        async with trio.open_nursery() as callers:
            async with open_plugin(loopback(), nursery=given) as client:
                answer = await start(callers, client.send_data, b"in flight")
            assert answer == [b"in flight"]
        assert names(read_events(server)) == ["Connected", "Disconnected"]


async def test_closing_plugin_gets_no_new_peer(given, autojump_clock):
    """The new peer's Connected would be followed by refusals and a loss at once."""
    async with open_plugin(loopback(), data_handler=sleeping(3), nursery=given) as closing:
        async with trio.open_nursery() as callers:
            async with open_plugin(loopback(), nursery=given) as peer:
                call = await start(callers, peer.send_data, b"")
                callers.start_soon(closing.aclose)
                await wait_all_tasks_blocked()
                await peer.disconnect()
            assert isinstance(call[0], PluginClosedError)
            async with open_plugin(loopback(), nursery=given) as newcomer:
                assert not newcomer.is_connected()
                await trio.sleep(5)
                async with open_plugin(loopback(), nursery=given):
                    assert newcomer.is_connected()


async def test_failure_of_one_plugin_ends_only_its_own_block(given):
    cause = OSError("broken")
    async with open_plugin(loopback(), nursery=given) as survivor:
        with pytest.raises(PluginFailedError) as caught:
            async with open_plugin(loopback(), nursery=given) as failing:
                failing.fail(cause)
                await trio.sleep_forever()
        assert caught.value.__cause__ is cause
        assert not survivor.is_connected()
        assert names(read_events(survivor)) == ["Connected", "Disconnected"]
        async with open_plugin(loopback(), data_handler=echo, nursery=given):
            assert await survivor.send_data(b"lives on") == b"lives on"


async def test_pairs_leave_no_name_behind(given):
    for _ in range(3):
        async with loopback_pair(nursery=given):
            assert len(_open_plugins.get()) == 1
        assert _open_plugins.get() == {}


async def test_caller_that_gets_closed_error_finds_plugin_disconnected() -> None:
    async def never(_: bytes) -> bytes:
        await trio.sleep_forever()

    async def hold(*, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        async with trio.open_nursery() as inner:
            task_status.started(inner)
            await trio.sleep_forever()

    async with trio.open_nursery() as outer:
        nursery = await outer.start(hold)
        async with (
            open_plugin({"plugin": "loopback"}, data_handler=never),
            open_plugin({"plugin": "loopback"}, nursery=nursery) as plugin,
        ):
            call = await start(outer, plugin.send_data, b"x")
            nursery.cancel_scope.cancel()
            while not call:
                await trio.lowlevel.checkpoint()
            assert isinstance(call[0], PluginClosedError)
            assert not plugin.is_connected()
