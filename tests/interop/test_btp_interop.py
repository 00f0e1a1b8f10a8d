"""What a user of the JavaScript plugin on the other end would lose: every promise, against the real ilp-plugin-btp."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trio

import trio_ledger_plugin
from trio_ledger_plugin import (
    Connected,
    ConnectionLostError,
    ConnectOptions,
    Disconnected,
    LedgerPlugin,
    NotAcceptedError,
    RemoteError,
    TransferInDoubtError,
    open_plugin,
)
from trio_ledger_plugin.testing.conformance.assertions import echo

from .node import NodeCallError, NodePeer, open_node_peer
from .options import TOKEN, client_options, listener_options, node_url

pytestmark = pytest.mark.interop

WRONG = "canary-7c1e55b0"
SIZES = (0, 1, 127, 128, 255, 256, 32767, 60000)
MAX_AMOUNT = str(2**64 - 1)
BTP_CODES = {
    "UnreachableError": "T00",
    "NotAcceptedError": "F00",
    "InvalidFieldsError": "F01",
    "TransferNotFoundError": "F03",
    "InvalidFulfillmentError": "F04",
    "DuplicateIdError": "F05",
    "AlreadyRolledBackError": "F06",
    "AlreadyFulfilledError": "F07",
    "InsufficientBalanceError": "F08",
}

DataHandler = Callable[[bytes], Awaitable[bytes]]
MoneyHandler = Callable[[str], Awaitable[None]]


@pytest.fixture(params=["we dial", "node dials"])
def dialer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def open_pair(
    dialer: str,
    *,
    data_handler: DataHandler | None = None,
    money_handler: MoneyHandler | None = None,
    settlement: bool = True,
) -> AsyncIterator[tuple[LedgerPlugin, NodePeer]]:
    """Connect our plugin and a Node peer, either of them the one who dials; both have said that they are connected."""
    async with open_node_peer() as peer:
        if dialer == "we dial":
            opts = client_options(await peer.listen(TOKEN, settlement=settlement))
        else:
            opts = listener_options()
        async with open_plugin(opts, data_handler=data_handler, money_handler=money_handler) as plugin:
            if dialer == "node dials":
                await peer.connect(node_url(plugin), settlement=settlement)
            await peer.expect("connect")
            assert isinstance(await next_event(plugin), Connected)
            yield plugin, peer


async def next_event(plugin: LedgerPlugin, within: float = 5) -> object:
    with trio.fail_after(within):
        return await plugin.events.receive()


def pattern(size: int) -> bytes:
    return bytes((size + 31 * i) % 256 for i in range(size))


def is_recent(time: datetime | None) -> bool:
    return time is not None and abs(datetime.now(UTC) - time) < timedelta(minutes=1)


def chained(error: BaseException | None) -> Iterator[BaseException]:
    """Walk an error, what caused it, what it came up under, and the members of groups."""
    waiting, seen = [error], set()
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        waiting += [current.__cause__, current.__context__]
        if isinstance(current, BaseExceptionGroup):
            waiting += current.exceptions


async def test_data_of_every_length_form_passes_unchanged_both_ways(dialer: str) -> None:
    async with open_pair(dialer, data_handler=echo) as (plugin, peer):
        await peer.handle_data("echo")
        for size in SIZES:
            data = pattern(size)
            assert await plugin.send_data(data) == data
            assert await peer.send_data(data) == data
        assert (await peer.stats())["handled"] == len(SIZES)


async def test_empty_answer_is_an_answer_and_not_an_error(dialer: str) -> None:
    async def nothing(data: bytes) -> bytes:
        return b""

    async with open_pair(dialer, data_handler=nothing) as (_, peer):
        assert await peer.send_data(b"a question") == b""


async def test_each_of_500_calls_at_once_both_ways_gets_its_own_answer(dialer: str) -> None:
    async def reverse(data: bytes) -> bytes:
        for _ in range(data[-1] % 7):
            await trio.lowlevel.checkpoint()
        return data[::-1]

    async with open_pair(dialer, data_handler=reverse) as (plugin, peer):
        await peer.handle_data("reverse")
        matched: list[bool] = []

        async def call(number: int) -> None:
            data = number.to_bytes(4, "big") + bytes([number % 256]) * 296
            matched.append(await plugin.send_data(data) == data[::-1])

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(call, number)
            assert await peer.send_many(500, 300) == 500
        assert matched == [True] * 500


async def test_handlers_that_call_back_before_they_answer_do_not_deadlock(dialer: str) -> None:
    """Either end's handler peels one byte off and sends the rest back, so a call of eight bytes nests eight deep."""
    peeled: list[int] = []

    async def peel(data: bytes) -> bytes:
        peeled.append(len(data))
        return data[:1] + await plugin.send_data(data[1:]) if data else data

    async with open_pair(dialer, data_handler=peel) as (plugin, peer):
        await peer.handle_data("callback")
        assert await plugin.send_data(b"nest 8->") == b"nest 8->"
        assert peeled == [7, 5, 3, 1]
        peeled.clear()
        assert await peer.send_data(b"nest 8<-") == b"nest 8<-"
        assert peeled == [8, 6, 4, 2, 0]


async def test_error_of_their_handler_arrives_complete(dialer: str) -> None:
    async with open_pair(dialer) as (plugin, peer):
        for name, code in BTP_CODES.items():
            await peer.handle_data("throw", name=name, message=f"about {name}")
            with pytest.raises(RemoteError) as caught:
                await plugin.send_data(b"request")
            assert (caught.value.code, caught.value.name) == (code, name)
            assert json.loads(caught.value.data) == {"message": f"about {name}"}
            assert is_recent(caught.value.triggered_at)


async def test_an_error_of_our_handler_arrives_under_its_own_code(dialer: str) -> None:
    async def refuse(data: bytes) -> bytes:
        raise getattr(trio_ledger_plugin, data.decode())("no")

    async with open_pair(dialer, data_handler=refuse) as (plugin, peer):
        for name, code in BTP_CODES.items():
            with pytest.raises(NodeCallError) as caught:
                await peer.send_data(name.encode())
            assert (caught.value.code, caught.value.name) == (code, name)
            assert is_recent(caught.value.triggered_at)
        assert plugin.is_connected()


async def test_bug_in_our_handler_is_logged_but_not_sent(dialer: str, caplog: pytest.LogCaptureFixture) -> None:
    async def stumble(data: bytes) -> bytes:
        raise ValueError(data.decode())

    async with open_pair(dialer, data_handler=stumble) as (_, peer):
        words = []
        for secret in ("internal-alpha", "internal-beta"):
            with pytest.raises(NodeCallError) as caught:
                await peer.send_data(secret.encode())
            error = caught.value
            assert BTP_CODES[error.name or ""] == error.code
            assert "internal" not in error.data
            assert "ValueError" not in error.data
            words.append(re.findall(r"[\w-]+", error.data))
    assert len(words[0]) == len(words[1])
    correlation = [pair for pair in zip(*words, strict=True) if pair[0] != pair[1]]
    assert len(correlation) == 1, "all but one word, the correlation id, is fixed"
    for identifier in correlation[0]:
        assert identifier in caplog.text


async def test_request_without_a_handler_is_refused(dialer: str) -> None:
    async with open_pair(dialer) as (plugin, peer):
        with pytest.raises(RemoteError) as ours:
            await plugin.send_data(b"anyone?")
        assert ours.value.code == "F00"
        assert json.loads(ours.value.data) == {"message": "no request handler registered"}
        with pytest.raises(NodeCallError) as theirs:
            await peer.send_data(b"anyone?")
        assert (theirs.value.code, theirs.value.name) == ("T00", "UnreachableError")
        await peer.handle_data("echo")
        plugin.register_data_handler(echo)
        assert await plugin.send_data(b"now") == await peer.send_data(b"now") == b"now"


async def test_wrong_token_is_refused_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with open_node_peer() as peer:
        opts = client_options(await peer.listen(TOKEN), token=WRONG)
        with trio.fail_after(1), pytest.raises(NotAcceptedError) as caught:
            async with open_plugin(opts, connect=ConnectOptions(timeout=30_000)):
                pytest.fail("connected with a wrong token")
        await peer.expect("disconnect")
    shown = [f"{error!s} {error!r} {error.args} {vars(error)}" for error in chained(caught.value)]
    assert WRONG not in " ".join(shown)
    assert WRONG not in caplog.text


async def test_refused_client_does_not_disturb_the_listener(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with open_pair("node dials", data_handler=echo) as (plugin, peer), open_node_peer() as stranger:
        await peer.handle_data("silent")
        outcomes: list[bytes] = []

        async def call() -> None:
            outcomes.append(await plugin.send_data(b"in flight"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await peer.expect("held")
            with trio.fail_after(2), pytest.raises(NodeCallError) as caught:
                await stranger.connect(node_url(plugin, WRONG))
            assert caught.value.message == "connection aborted"
            assert await peer.send_data(b"still here") == b"still here"
            assert outcomes == []
            with pytest.raises(trio.WouldBlock):
                plugin.events.receive_nowait()
            nursery.cancel_scope.cancel()
        assert (await peer.stats())["connected"] is True
    assert WRONG not in caplog.text


async def test_money_reaches_their_ledger_exactly(dialer: str) -> None:
    async with open_pair(dialer) as (plugin, peer):
        await plugin.send_money("250")
        await plugin.send_money(1)
        await plugin.send_money(MAX_AMOUNT)
        stats = await peer.stats()
        assert (stats["received"], stats["transfers"]) == (str(251 + int(MAX_AMOUNT)), 3)


async def test_money_reaches_our_handler_as_decimal_text(dialer: str) -> None:
    amounts: list[str] = []

    async def credit(amount: str) -> None:
        amounts.append(amount)

    async with open_pair(dialer, money_handler=credit) as (_, peer):
        for amount in ("250", "1", MAX_AMOUNT):
            await peer.send_money(amount)
        assert amounts == ["250", "1", MAX_AMOUNT]


async def test_money_without_settlement_is_an_error(dialer: str) -> None:
    async with open_pair(dialer, settlement=False) as (plugin, _):
        with pytest.raises(RemoteError) as caught:
            await plugin.send_money("250")
        assert caught.value.code == "F00"


async def test_money_that_a_handler_refuses_is_refused_to_the_sender(dialer: str) -> None:
    async def refuse(amount: str) -> None:
        raise trio_ledger_plugin.InsufficientBalanceError(amount)

    async with open_pair(dialer, money_handler=refuse) as (plugin, peer):
        with pytest.raises(NodeCallError) as theirs:
            await peer.send_money("250")
        assert theirs.value.code == "F08"
        await peer.handle_money("throw", name="InsufficientBalanceError", message="no")
        with pytest.raises(RemoteError) as ours:
            await plugin.send_money("250")
        assert ours.value.code == "F08"
        assert (await peer.stats())["received"] == "0"


async def test_money_without_a_handler_is_refused(dialer: str) -> None:
    async with open_pair(dialer) as (_, peer):
        with pytest.raises(NodeCallError) as caught:
            await peer.send_money("250")
        assert caught.value.code in BTP_CODES.values()


async def test_a_killed_peer_fails_every_call_in_flight_within_100_ms(dialer: str) -> None:
    async with open_pair(dialer) as (plugin, peer):
        await peer.handle_data("silent")
        await peer.handle_money("silent")
        failed_at: list[float] = []

        async def call() -> None:
            with pytest.raises(ConnectionLostError):
                await plugin.send_data(b"in flight")
            failed_at.append(trio.current_time())

        async def pay() -> None:
            with pytest.raises(TransferInDoubtError) as caught:
                await plugin.send_money("250")
            assert caught.value.amount == "250"
            failed_at.append(trio.current_time())

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(call)
                nursery.start_soon(pay)
                await peer.expect("held", count=51)
                killed_at = trio.current_time()
                await peer.kill()
        assert len(failed_at) == 51
        assert max(failed_at) - killed_at < 0.1
        assert isinstance(await next_event(plugin), Disconnected)
        if dialer == "node dials":
            assert not plugin.is_connected()


async def test_our_client_is_back_within_a_second_of_a_short_outage() -> None:
    async with open_node_peer() as first, open_node_peer() as second:
        port = await first.listen(TOKEN)
        async with open_plugin(client_options(port), data_handler=echo) as plugin:
            assert isinstance(await next_event(plugin), Connected)
            killed_at = trio.current_time()
            await first.kill()
            assert isinstance(await next_event(plugin), Disconnected)
            await second.listen(TOKEN, port=port)
            listening_at = trio.current_time()
            assert listening_at - killed_at < 1, "the outage itself took too long to prove anything"
            assert isinstance(await next_event(plugin, within=1), Connected)
            assert plugin.is_connected()
            await second.handle_data("echo")
            assert await plugin.send_data(b"again") == await second.send_data(b"again") == b"again"


async def test_listener_reports_a_returning_client() -> None:
    async with open_node_peer() as second, open_pair("node dials", data_handler=echo) as (plugin, first):
        await first.kill()
        assert isinstance(await next_event(plugin), Disconnected)
        assert not plugin.is_connected()
        await second.connect(node_url(plugin))
        assert isinstance(await next_event(plugin), Connected)
        assert plugin.is_connected()
        await second.handle_data("echo")
        assert await plugin.send_data(b"again") == await second.send_data(b"again") == b"again"


async def test_disconnect_is_an_event_on_the_other_side(dialer: str) -> None:
    async with open_pair(dialer) as (plugin, peer):
        await plugin.disconnect()
        assert isinstance(await next_event(plugin), Disconnected)
        assert not plugin.is_connected()
        await peer.expect("disconnect")
    async with open_pair(dialer) as (plugin, peer):
        await peer.disconnect()
        await peer.expect("disconnect")
        assert isinstance(await next_event(plugin), Disconnected)
