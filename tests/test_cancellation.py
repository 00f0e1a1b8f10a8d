"""Cancelling a public call at any of its checkpoints ends only that call: nothing is left, and the plugin goes on."""

from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import product
from typing import Any

import pytest
import trio
from support.cancellation import cancelled_at, each_checkpoint
from support.leftovers import FORMS, Baseline, nursery_of, open_files
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    ConnectOptions,
    ConnectTimeoutError,
    NotConnectedError,
    PluginClosedError,
    TransferInDoubtError,
    create_plugin,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.testing.conformance.assertions import echo


async def accept(amount):
    pass


# A task that writes ends this long after it has become idle; the default would keep it until after the test.
SEND_TIMEOUT = 0.5
LISTENER: dict[str, object] = {
    "plugin": "btp",
    "listener": {"port": 0, "secret": "s"},
    "send_timeout": SEND_TIMEOUT,
}


HTTP_SERVER: dict[str, Any] = {"plugin": "http", "incoming": {"port": 0, "static_token": "s"}}
PEERS = {"btp": LISTENER, "http": HTTP_SERVER, "loopback": {"plugin": "loopback", "name": "cancelled"}}


@asynccontextmanager
async def open_peer(kind, nursery=None):
    """Open a peer that echoes; yield the options of the plugin that connects to it."""
    opts: Any = PEERS[kind]
    async with open_plugin(opts, data_handler=echo, money_handler=accept, nursery=nursery) as peer:
        if isinstance(peer, BtpPlugin):
            server = peer.address.replace("//", "//alice:s@")
            opts = {"plugin": "btp", "server": server, "send_timeout": SEND_TIMEOUT}
        elif kind == "http":
            opts = {"plugin": "http", "outgoing": {"url": peer.address, "static_token": "s"}}
        await wait_all_tasks_blocked()
        yield opts, peer


KINDS = pytest.mark.parametrize("kind", ["loopback", "btp", "http"])


@KINDS
async def test_connect(kind):
    async with trio.open_nursery() as nursery, open_peer(kind) as (opts, peer):
        before = Baseline(peer)

        async def attempt(step):
            plugin = create_plugin(opts, nursery=nursery)
            was_cancelled = await cancelled_at(step, plugin.connect)
            if not plugin.is_connected():
                await before.settle()
                await plugin.connect()
            assert await plugin.send_data(b"works") == b"works"
            await plugin.disconnect()
            await before.settle()
            return was_cancelled

        await each_checkpoint(attempt)


@pytest.mark.parametrize("kind", ["btp", "http"])
async def test_connect_of_a_listener(kind):
    async with trio.open_nursery() as nursery:
        before = Baseline()

        async def attempt(step):
            plugin = create_plugin(PEERS[kind], nursery=nursery)
            was_cancelled = await cancelled_at(step, plugin.connect)
            await plugin.aclose()
            await before.settle()
            return was_cancelled

        await each_checkpoint(attempt)


@pytest.mark.parametrize("milliseconds", [0.001, 1, 50, 120, 400, 1000, 3000, 20_000])
async def test_connect_without_a_server(autojump_clock, milliseconds):
    """A deadline cancels the attempt while it dials or pauses between attempts."""
    async with trio.open_nursery() as nursery:
        with trio.socket.socket() as taken:
            await taken.bind(("127.0.0.1", 0))
            before = Baseline()
            plugin = create_plugin({"server": f"btp+ws://a:s@127.0.0.1:{taken.getsockname()[1]}"}, nursery=nursery)
            for _ in range(3):
                begun = trio.current_time()
                with pytest.raises(ConnectTimeoutError):
                    await plugin.connect(ConnectOptions(timeout=milliseconds))
                assert trio.current_time() - begun == pytest.approx(milliseconds / 1000)
                assert not plugin.is_connected()
                await wait_all_tasks_blocked()
                assert before.left() == []
            assert open_files() == before.files


@KINDS
async def test_disconnect(kind):
    async with trio.open_nursery() as nursery, open_peer(kind) as (opts, peer):
        before = Baseline(peer)

        async def attempt(step):
            plugin = create_plugin(opts, nursery=nursery)
            await plugin.connect()
            await plugin.send_data(b"")
            was_cancelled = await cancelled_at(step, plugin.disconnect)
            assert not plugin.is_connected()
            with pytest.raises(NotConnectedError):
                await plugin.send_data(b"")
            await before.settle()
            await plugin.connect()
            assert await plugin.send_data(b"again") == b"again"
            await plugin.disconnect()
            await before.settle()
            return was_cancelled

        await each_checkpoint(attempt)


@KINDS
@pytest.mark.parametrize("waiting", [False, True], ids=["idle", "a call in flight"])
async def test_aclose(kind, waiting):
    async with trio.open_nursery() as nursery, open_peer(kind) as (opts, peer):
        before = Baseline(peer)

        async def attempt(step):
            plugin = create_plugin(opts, nursery=nursery)
            await plugin.connect()
            await plugin.send_data(b"")
            async with trio.open_nursery() as callers:
                if waiting:

                    async def call():
                        with suppress(PluginClosedError):
                            assert await plugin.send_data(b"last") == b"last"

                    callers.start_soon(call)
                    await trio.lowlevel.checkpoint()
                was_cancelled = await cancelled_at(step, plugin.aclose)
            with pytest.raises(PluginClosedError):
                await plugin.connect()
            assert plugin.statistics().calls_in_flight == 0
            await plugin.aclose()
            await before.settle()
            return was_cancelled

        await each_checkpoint(attempt)


@pytest.mark.parametrize(
    ("kind", "call"), [("http", "send_data"), *product(("loopback", "btp"), ("send_data", "send_money"))]
)
async def test_sending(kind, call):
    async with open_peer(kind) as (opts, peer), open_plugin(opts) as plugin:
        await plugin.send_data(b"warm")
        before = Baseline(peer)

        async def attempt(step):
            argument = b"data" if call == "send_data" else "5"
            was_cancelled = await cancelled_at(step, lambda: getattr(plugin, call)(argument))
            assert plugin.statistics().calls_in_flight == 0
            assert await plugin.send_data(b"works") == b"works"
            return was_cancelled

        await each_checkpoint(attempt)
        if kind == "http":
            # A cancelled call closes its connection, and the next one opens another.
            await plugin.disconnect()
        await before.settle()


@KINDS
async def test_waiting_for_a_slot(kind):
    """A caller that gives up takes no slot with it: the others still get theirs."""
    async with open_peer(kind) as (opts, _), open_plugin({**opts, "max_in_flight": 1}) as plugin:
        await plugin.send_data(b"warm")

        async def attempt(step):
            answers = []

            async def call():
                answers.append(await plugin.send_data(b"mine"))

            with trio.fail_after(5):
                async with trio.open_nursery() as others:
                    others.start_soon(call)
                    await trio.lowlevel.checkpoint()
                    others.start_soon(call)
                    was_cancelled = await cancelled_at(step, lambda: plugin.send_data(b"cancelled"))
                    others.start_soon(call)
            assert answers == [b"mine"] * 3
            assert plugin.statistics().calls_in_flight == 0
            return was_cancelled

        await each_checkpoint(attempt)


async def test_wait_connected():
    async with open_plugin({"plugin": "loopback", "name": "alone"}) as plugin:
        assert await cancelled_at(1, plugin.wait_connected)
        async with open_plugin({"plugin": "loopback", "name": "alone"}):
            await plugin.wait_connected()
            assert await cancelled_at(1, plugin.wait_connected)


@pytest.mark.parametrize("form", FORMS)
@KINDS
async def test_open_plugin_entered_used_and_left(kind, form):
    """Cancel in the entry of the block, in a call inside it, and in its exit."""
    async with open_peer(kind) as (opts, peer):
        before = Baseline(peer)

        async def attempt(step):
            async with nursery_of(form) as nursery:

                async def use():
                    async with open_plugin(opts, data_handler=echo, nursery=nursery) as plugin:
                        assert await plugin.send_data(b"hello") == b"hello"

                was_cancelled = await cancelled_at(step, use)
            await before.settle()
            return was_cancelled

        await each_checkpoint(attempt)
        async with open_plugin(opts) as plugin:
            assert await plugin.send_data(b"the peer is well") == b"the peer is well"


@pytest.mark.parametrize("kind", ["btp", "http"])
@pytest.mark.parametrize("form", FORMS)
async def test_open_plugin_of_a_listener(form, kind):
    before = Baseline()

    async def attempt(step):
        async with nursery_of(form) as nursery:

            async def use():
                async with open_plugin(PEERS[kind], nursery=nursery):
                    await trio.lowlevel.checkpoint()

            was_cancelled = await cancelled_at(step, use)
        await before.settle()
        return was_cancelled

    await each_checkpoint(attempt)


@pytest.mark.parametrize("form", FORMS)
async def test_loopback_pair(form):
    before = Baseline()

    async def attempt(step):
        async with nursery_of(form) as nursery:

            async def use():
                async with loopback_pair(nursery=nursery) as (first, second):
                    second.register_data_handler(echo)
                    assert await first.send_data(b"hello") == b"hello"

            was_cancelled = await cancelled_at(step, use)
        await before.settle()
        return was_cancelled

    await each_checkpoint(attempt)


@KINDS
async def test_plugins_nursery_is_cancelled_at_any_moment(kind):
    """Calls of other tasks end as closed; a call made while the link closes was not sent."""
    async with AsyncExitStack() as stack:
        opts, peer = await stack.enter_async_context(open_peer(kind))
        before = Baseline(peer)

        async def attempt(step):
            errors = []

            async def use(plugin):
                try:
                    await plugin.connect()
                    for _ in range(3):
                        await plugin.send_data(b"x")
                        if kind != "http":
                            await plugin.send_money("1")
                except Exception as error:  # noqa: BLE001 (checked below)
                    errors.append(error)

            async def run(plugin):
                with trio.fail_after(5):
                    async with trio.open_nursery() as users:
                        users.start_soon(use, plugin)
                        users.start_soon(use, plugin)

            async def run_nursery(*, task_status):
                async with trio.open_nursery() as nursery:
                    task_status.started((create_plugin(opts, nursery=nursery), nursery))
                    await trio.sleep_forever()

            async with trio.open_nursery() as outer:
                plugin, nursery = await outer.start(run_nursery)
                await_ = trio.lowlevel.checkpoint

                async def cancel():
                    for _ in range(step):
                        await await_()
                    nursery.cancel_scope.cancel()

                async with trio.open_nursery() as both:
                    both.start_soon(cancel)
                    both.start_soon(run, plugin)
            assert all(
                isinstance(error, PluginClosedError | NotConnectedError)
                or (isinstance(error, TransferInDoubtError) and isinstance(error.__cause__, PluginClosedError))
                for error in errors
            ), errors
            assert plugin.statistics().calls_in_flight == 0
            await before.settle()

        for step in (*range(40), *range(40, 120, 7)):
            await attempt(step)
