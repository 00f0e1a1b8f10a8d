"""Faults between two plugins in one process: an hour passes at once, and a seed always gives the same faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.leftovers import all_tasks

from trio_ledger_plugin import (
    Connected,
    Disconnected,
    InvalidFieldsError,
    PluginFailedError,
    PluginServices,
    RemoteError,
    ResponseTimeoutError,
    TransferInDoubtError,
)
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing import Message, MessageKind, RandomDelivery, open_faulty_loopback
from trio_ledger_plugin.testing.conformance.assertions import echo, ignore, read_events

if TYPE_CHECKING:
    from trio.testing import MockClock

REQUEST, TRANSFER, REPLY = MessageKind.REQUEST, MessageKind.TRANSFER, MessageKind.REPLY


@pytest.fixture(autouse=True)
async def _nothing_is_left():
    before = all_tasks()
    yield
    assert all_tasks() <= before


def script(fates: dict[tuple[MessageKind, bytes], Any]) -> Any:
    return lambda parcel: fates.get((parcel.kind, parcel.content), (0.0,))


async def test_without_faults_it_is_a_normal_pair() -> None:
    async with open_faulty_loopback(lambda parcel: (0.0,)) as pair:

        async def answer(data: bytes) -> bytes:
            return data[::-1]

        amounts: list[str] = []

        async def take(amount: str) -> None:
            amounts.append(amount)

        pair.first.register_data_handler(answer)
        pair.second.register_data_handler(answer)
        pair.second.register_money_handler(take)
        assert await pair.first.send_data(b"ab") == b"ba"
        assert await pair.second.send_data(b"cd") == b"dc"
        await pair.first.send_money("5")
        assert amounts == ["5"]
        assert pair.happened == [
            (Message(kind, sender, content, 0), (0.0,))
            for kind, sender, content in [
                (REQUEST, "first", b"ab"),
                (REPLY, "second", b"ab"),
                (REQUEST, "second", b"cd"),
                (REPLY, "first", b"cd"),
                (TRANSFER, "first", b"5"),
                (REPLY, "second", b"5"),
            ]
        ]
    assert read_events(pair.first) == [Connected(), Disconnected("the peer disconnected")]


async def test_lost_request_is_not_served_but_a_lost_reply_is(autojump_clock: MockClock) -> None:
    served: list[bytes] = []

    async def serve(data: bytes) -> bytes:
        served.append(data)
        return data

    fates = script({(REQUEST, b"lost"): (), (REPLY, b"unheard"): ()})
    async with open_faulty_loopback(fates, response_timeout=10) as pair:
        pair.second.register_data_handler(serve)
        for data in (b"lost", b"unheard"):
            began = trio.current_time()
            with pytest.raises(ResponseTimeoutError):
                await pair.first.send_data(data)
            assert trio.current_time() - began == pytest.approx(10)
        assert served == [b"unheard"]


async def test_reply_is_delayed_as_the_script_says(autojump_clock: MockClock) -> None:
    fates = script({(REQUEST, b"x"): (2.0,), (REPLY, b"x"): (3.0,)})
    async with open_faulty_loopback(fates) as pair:
        pair.second.register_data_handler(echo)
        began = trio.current_time()
        assert await pair.first.send_data(b"x") == b"x"
        assert trio.current_time() - began == pytest.approx(5)


async def test_late_requests_are_overtaken(autojump_clock: MockClock) -> None:
    served: list[bytes] = []

    async def serve(data: bytes) -> bytes:
        served.append(data)
        return data

    fates = script({(REQUEST, b"1"): (2.0,), (REQUEST, b"2"): (1.0,)})
    async with open_faulty_loopback(fates) as pair, trio.open_nursery() as nursery:
        pair.second.register_data_handler(serve)
        for data in (b"1", b"2", b"3"):
            nursery.start_soon(pair.first.send_data, data)
    assert served == [b"3", b"2", b"1"]


async def test_duplicate_is_served_twice_and_answered_once(autojump_clock: MockClock) -> None:
    served: list[bytes] = []

    async def serve(data: bytes) -> bytes:
        served.append(data)
        return data

    async with open_faulty_loopback(script({(REQUEST, b"x"): (0.0, 1.0), (REPLY, b"y"): (0.0, 1.0)})) as pair:
        pair.second.register_data_handler(serve)
        assert await pair.first.send_data(b"x") == b"x"
        assert await pair.first.send_data(b"y") == b"y"
        await trio.sleep(2)
        assert served == [b"x", b"y", b"x"]
        assert pair.first.statistics().unexpected_responses == 2


async def test_plain_money_is_credited_at_most_once(autojump_clock: MockClock) -> None:
    """A test would blame an application for a double payment that no network can cause."""
    amounts: list[str] = []

    async def take(amount: str) -> None:
        amounts.append(amount)

    fates = script({(TRANSFER, b"1"): (0.0, 1.0), (TRANSFER, b"2"): (), (REPLY, b"3"): ()})
    async with open_faulty_loopback(fates) as pair:
        pair.second.register_money_handler(take)
        await pair.first.send_money("1")
        for amount in ("2", "3"):
            with pytest.raises(TransferInDoubtError):
                await pair.first.send_money(amount)
        await trio.sleep(100)
    assert amounts == ["1", "3"]


async def test_duplicate_keyed_money_is_credited_once(tmp_path) -> None:
    async with (
        open_sqlite_store(tmp_path / "1") as store,
        open_sqlite_store(tmp_path / "2") as peer_store,
        open_faulty_loopback(
            lambda parcel: (0.0, 0.01),
            services=PluginServices(store=store),
            peer_services=PluginServices(store=peer_store),
        ) as pair,
    ):
        pair.second.register_money_handler(ignore)
        for _ in range(5):
            await pair.first.send_money("7")
        await trio.sleep(0.05)
        assert (await pair.second.transfers.totals()).received == 35
        assert (await pair.first.transfers.totals()).sent == 35


async def test_messages_in_transit_are_lost_with_the_connection(autojump_clock: MockClock) -> None:
    served: list[bytes] = []

    async def serve(data: bytes) -> bytes:
        served.append(data)
        return data

    async with open_faulty_loopback(script({(REQUEST, b"late"): (10.0,)})) as pair, trio.open_nursery() as nursery:
        pair.second.register_data_handler(serve)
        nursery.start_soon(call, pair.first, b"late", {})
        await trio.sleep(1)
        await pair.first.disconnect()
        await pair.first.connect()
        assert await pair.first.send_data(b"new") == b"new"
        await trio.sleep(20)
    assert served == [b"new"]


async def call(plugin: Any, data: bytes, outcomes: dict[bytes, str]) -> None:
    try:
        await plugin.send_data(data)
        outcomes[data] = "answered"
    except Exception as error:  # noqa: BLE001 (kept for the test)
        outcomes[data] = type(error).__name__


async def weather(seed: int) -> Any:
    """Make many concurrent calls both ways for an hour, and return everything observable."""
    outcomes: dict[bytes, str] = {}
    fates = RandomDelivery(seed=seed, lose=0.1, double=0.1, delay=0.5, max_delay=60)
    async with open_faulty_loopback(fates, response_timeout=30) as pair, trio.open_nursery() as nursery:
        for plugin in (pair.first, pair.second):
            plugin.register_data_handler(echo)
        for number in range(120):
            for plugin, name in ((pair.first, b"first"), (pair.second, b"second")):
                nursery.start_soon(call, plugin, b"%s %d" % (name, number), outcomes)
            await trio.sleep(30)
        await trio.sleep(100)
    return outcomes, sorted((str(parcel), fate) for parcel, fate in pair.happened)


async def test_same_seed_gives_the_same_hour_of_faults(autojump_clock: MockClock) -> None:
    """A found fault could not be reproduced."""
    began = trio.current_time()
    first = await weather(1)
    assert trio.current_time() - began > 3600
    assert first == await weather(1)
    assert first != await weather(2)
    outcomes = list(first[0].values())
    assert len(outcomes) == 240
    assert {"answered", "ResponseTimeoutError"} == set(outcomes)
    assert {len(fate) for _, fate in first[1]} == {0, 1, 2}


async def test_error_of_the_block_has_the_seed() -> None:
    with pytest.raises(OSError, match="of the block") as caught:
        async with open_faulty_loopback(RandomDelivery(seed=77)):
            raise OSError("of the block")
    assert caught.value.__notes__ == ["faulty loopback: RandomDelivery(seed=77)"]
    with pytest.raises(OSError, match="of the block") as caught:
        async with open_faulty_loopback(lambda parcel: ()):
            raise OSError("of the block")
    assert not hasattr(caught.value, "__notes__")


async def test_failure_is_not_in_a_group() -> None:
    with pytest.raises(PluginFailedError):
        async with open_faulty_loopback() as pair:
            pair.first.fail(OSError("fatal"))


async def test_limits_are_checked_options_of_both() -> None:
    with pytest.raises(InvalidFieldsError, match="max_handlers"):
        async with open_faulty_loopback(max_handlers=0):
            pytest.fail("the block ran")
    async with open_faulty_loopback(lambda parcel: (0.0,), max_message_bytes=100) as pair:
        assert pair.first.options.max_data_bytes == pair.second.options.max_data_bytes == 36
        with pytest.raises(RemoteError):
            await pair.second.send_data(b"")


@pytest.mark.parametrize("wrong", [{"lose": -0.1}, {"lose": 0.5, "double": 0.6}, {"max_delay": -1.0}])
async def test_wrong_odds_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="sum of at most 1"):
        RandomDelivery(**wrong)


async def test_default_seeds_differ() -> None:
    assert len({RandomDelivery().seed for _ in range(5)}) > 1
