"""The base of plugins with requests and replies: a call belongs to the link that it was sent on."""

from itertools import count

import pytest
import trio
import trio.testing
from support.calls import start

from trio_ledger_plugin import (
    ConnectionLostError,
    DecodeError,
    LedgerPlugin,
    PluginClosedError,
    PluginServices,
    ResponseTimeoutError,
    TransferInDoubtError,
    UnreachableError,
)
from trio_ledger_plugin.exchange import ExchangePlugin
from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.runtime.exchange import Exchange


class Wire(ExchangePlugin):
    """Keeps what it is to send; the test plays the peer."""

    broken = None

    def __init__(self, *args):
        super().__init__(*args)
        self.requests, self.replies = [], []

    async def run_connection(self, *, task_status):
        task_status.started()
        self.link_up()
        await trio.sleep_forever()

    def send_request(self, number, request):
        if self.broken is not None:
            raise self.broken
        self.requests.append((number, request))

    def send_reply(self, number, reply):
        self.replies.append((number, reply))


@pytest.fixture
async def wire(nursery):
    plugin = Wire(PluginOptions(response_timeout=5, max_in_flight=2), PluginServices(), nursery)
    await plugin.connect()
    yield plugin
    await plugin.aclose()


async def test_request_that_cannot_be_sent_leaves_nothing_behind(wire):
    wire.broken = UnreachableError("no room")
    for _ in range(5):
        with pytest.raises(UnreachableError, match="no room"):
            await wire.send_data(b"?")
    assert wire.calls_in_flight() == 0
    assert wire.statistics().requests_sent == 0
    wire.broken = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.send_data, b"?")
        await trio.testing.wait_all_tasks_blocked()
        ((number, request),) = wire.requests
        assert request == b"?"
        wire.receive_reply(number, b"!")


async def test_reply_to_a_request_of_an_earlier_link_is_dropped(wire):
    """Its number may belong to another request on the new link."""
    go_on = trio.Event()

    async def slow(data):
        await go_on.wait()
        return data

    wire.register_data_handler(slow)
    wire.receive_request(1, b"old")
    await trio.testing.wait_all_tasks_blocked()
    wire.peer_left("it was cut")
    wire.link_up()
    wire.receive_request(1, b"new")
    go_on.set()
    await trio.testing.wait_all_tasks_blocked()
    assert wire.replies == [(1, b"new")]


async def test_calls_of_a_replaced_link_fail(wire):
    async def ask():
        with pytest.raises(ConnectionLostError, match="another link"):
            await wire.send_data(b"?")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        wire.link_up()
    assert wire.is_connected()
    assert wire.calls_in_flight() == 0


async def test_request_numbers_are_unique(wire):
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(wire.send_data, b"?")
            await trio.testing.wait_all_tasks_blocked()
            wire.receive_reply(wire.requests[-1][0], b"!")
    assert len({number for number, _ in wire.requests}) == 100


async def test_unreadable_reply_leaves_a_transfer_in_doubt(wire, nursery):
    """A caller that gets a refusal pays again, and the peer may have applied the transfer."""
    outcomes = await start(nursery, wire.send_money, "5")
    wire.receive_reply(wire.requests[0][0], DecodeError("rubbish"))
    await trio.testing.wait_all_tasks_blocked()
    (error,) = outcomes
    assert isinstance(error, TransferInDoubtError)
    assert error.amount == "5"
    assert isinstance(error.__cause__, DecodeError)


async def test_unreadable_reply_to_a_request_raises_decode_error(wire, nursery):
    outcomes = await start(nursery, wire.send_data, b"?")
    wire.receive_reply(wire.requests[0][0], DecodeError("rubbish"))
    await trio.testing.wait_all_tasks_blocked()
    assert isinstance(outcomes[0], DecodeError)


@pytest.mark.parametrize(
    ("loss", "error"),
    [
        (lambda wire: wire.peer_left("it was cut"), ConnectionLostError),
        (lambda wire: wire.fail_calls(lambda: PluginClosedError("closed")), PluginClosedError),
        (lambda wire: None, ResponseTimeoutError),
    ],
    ids=["lost", "closed", "too late"],
)
async def test_transfer_without_a_reply_is_in_doubt(wire, nursery, autojump_clock, loss, error):
    """Every plugin with requests and replies treats the loss of a reply in the same way."""
    outcomes = await start(nursery, wire.send_money, "5")
    loss(wire)
    await trio.sleep(6)
    assert isinstance(outcomes[0], TransferInDoubtError)
    assert isinstance(outcomes[0].__cause__, error)


async def test_link_lost_while_a_request_is_sent_fails_its_call(wire, monkeypatch):
    """The caller is not waiting yet when its call fails, and would wait for ever."""

    def lose(number, request):
        wire.peer_left("it broke")

    monkeypatch.setattr(wire, "send_request", lose)
    with trio.fail_after(5), pytest.raises(ConnectionLostError):
        await wire.send_data(b"?")


class SilentExchange(Exchange):
    """Sends nothing."""

    def send_request(self, request_id, request):
        pass

    def send_reply(self, request_id, reply):
        pass


class Direct(LedgerPlugin):
    """Attaches its exchanges itself, without an ``ExchangePlugin``."""

    async def run_connection(self, *, task_status):
        task_status.started()
        await trio.sleep_forever()


@pytest.fixture
async def direct(nursery):
    plugin = Direct(PluginOptions(response_timeout=5), PluginServices(), nursery)
    await plugin.connect()
    yield plugin
    await plugin.aclose()


async def test_replaced_exchange_fails_its_calls(direct, nursery, autojump_clock):
    """A caller would wait for ever, since nothing else knows of the exchange."""
    first, second = SilentExchange(direct.context, count(1)), SilentExchange(direct.context, count(1))
    direct.attach(first)
    outcomes = await start(nursery, direct.send_data, b"?")
    direct.attach(second)
    await trio.testing.wait_all_tasks_blocked()
    (error,) = outcomes
    assert isinstance(error, ConnectionLostError)
    assert "another link took its place" in str(error)
    direct.detach(first, "late")
    assert direct.is_connected()


async def test_detached_exchange_fails_its_calls(direct, nursery, autojump_clock):
    exchange = SilentExchange(direct.context, count(1))
    direct.attach(exchange)
    outcomes = await start(nursery, direct.send_data, b"?")
    direct.detach(exchange, "gone")
    await trio.testing.wait_all_tasks_blocked()
    (error,) = outcomes
    assert isinstance(error, ConnectionLostError)
    assert "gone" in str(error)
    assert not direct.is_connected()


async def test_attached_exchange_has_the_response_timeout(direct, autojump_clock):
    direct.attach(SilentExchange(direct.context, count(1)))
    began = trio.current_time()
    with pytest.raises(ResponseTimeoutError):
        await direct.send_data(b"?")
    assert trio.current_time() == began + 5


async def test_ended_is_called_in_the_final_state(nursery):
    """An error that it raises must not keep the events open."""
    states = []

    class Clumsy(Direct):
        def ended(self, failure):
            states.append(self.is_connected())
            raise ValueError("the author's")

    plugin = Clumsy(PluginOptions(), PluginServices(), nursery)
    await plugin.connect()
    plugin.attach(SilentExchange(plugin.context, count(1)))
    with pytest.raises(ValueError, match="the author's"):
        await plugin.aclose()
    assert states == [False]
    assert [type(event).__name__ async for event in plugin.events] == ["Connected", "Disconnected"]
