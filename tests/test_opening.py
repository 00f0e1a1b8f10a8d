"""open_plugin raises the error that happened, without a group, and no part of the plugin outlives the block."""
# ruff: noqa: PT012, SIM117 (whole blocks are what raises here, and their order is what matters)

import math
from datetime import UTC, datetime

import pytest
import trio
import trio.testing
from support import peers
from support.calls import sleeping
from support.events import names
from support.leftovers import FORMS, all_tasks, nursery_of
from support.scripted import ScriptedOptions, ScriptedPlugin, after, broken_after, hang, install, open_scripted, refused

from trio_ledger_plugin import (
    ConnectOptions,
    ConnectTimeoutError,
    DataHandlerAlreadyRegisteredError,
    Failed,
    InvalidFieldsError,
    NotAcceptedError,
    PluginClosedError,
    PluginFailedError,
    PluginServices,
    create_plugin,
    open_plugin,
)
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing.conformance.assertions import echo
from trio_ledger_plugin.testing.scripted_peer import ScriptError

pytestmark = pytest.mark.usefixtures("_scripted_is_installed")


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def _scripted_is_installed(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)


@pytest.fixture(params=FORMS)
async def given(request):
    """The nursery to pass, or None; at its end, the fixture checks that no task is left."""
    before = all_tasks()
    async with nursery_of(request.param) as made:
        yield made
    assert all_tasks() <= before


async def accept(amount):
    pass


async def test_the_block_gets_a_connected_plugin(given):
    async with open_scripted(data_handler=echo, money_handler=accept, nursery=given) as plugin:
        assert plugin.is_connected()
        with pytest.raises(DataHandlerAlreadyRegisteredError):
            plugin.register_data_handler(echo)
    assert not plugin.is_connected()
    assert names([event async for event in plugin.events]) == ["Connected", "Disconnected"]


async def test_handlers_are_registered_before_the_first_request(given):
    async def script(plugin, task_status):
        plugin.link_up()
        plugin.ask(1, b"early")
        task_status.started()
        await trio.sleep_forever()

    async with open_scripted(script, data_handler=echo, nursery=given) as plugin:
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.replies == {1: b"early"}


class BodyError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [BodyError("b"), ExceptionGroup("g", [BodyError()]), KeyboardInterrupt(), SystemExit(3)]
)
async def test_error_of_the_body_is_raised_unchanged(given, error):
    with pytest.raises(type(error)) as caught:
        async with open_scripted(nursery=given):
            raise error
    assert caught.value is error
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("error", [NotAcceptedError("n"), OSError("in use"), InvalidFieldsError("missing")])
async def test_error_of_the_connection_is_raised_unchanged(given, error):
    with pytest.raises(type(error)) as caught:
        async with open_scripted(refused(error), nursery=given):
            pytest.fail("the block ran")
    assert caught.value is error


async def test_timeout_of_the_connection(given, autojump_clock):
    begun = trio.current_time()
    with pytest.raises(ConnectTimeoutError):
        async with open_scripted(hang, connect=ConnectOptions(timeout=1500), nursery=given):
            pytest.fail("the block ran")
    assert trio.current_time() - begun == pytest.approx(1.5)


async def test_fatal_failure_ends_only_the_block(given, autojump_clock):
    cause = NotAcceptedError("not any more")
    sibling_ended = []

    async def sibling():
        await trio.sleep(10)
        sibling_ended.append(trio.current_time())

    begun = trio.current_time()
    async with trio.open_nursery() as siblings:
        (given or siblings).start_soon(sibling)
        with pytest.raises(PluginFailedError) as caught:
            async with open_scripted(broken_after(2, cause), nursery=given) as plugin:
                await trio.sleep_forever()
        assert trio.current_time() - begun == pytest.approx(2)
        assert caught.value.__cause__ is cause
        events = [event async for event in plugin.events]
        assert names(events) == ["Connected", "Disconnected", "Failed"]
        assert events[-1] == Failed(cause)
        await trio.sleep(20)
    assert sibling_ended == [begun + 10]


async def test_failure_that_a_call_of_the_body_raises_is_reported_once(given, autojump_clock):
    cause = OSError("broken")
    with pytest.raises(PluginFailedError) as caught:
        async with open_scripted(broken_after(1, cause), nursery=given) as plugin:
            await plugin.send_data(b"")
    assert caught.value.__cause__ is cause


async def test_failure_in_many_tasks_of_the_body_is_raised_once(given, autojump_clock):
    cause = OSError("broken")
    with pytest.raises(PluginFailedError) as caught:
        async with open_scripted(broken_after(1, cause), nursery=given) as plugin:
            async with trio.open_nursery() as body:
                body.start_soon(plugin.send_data, b"1")
                body.start_soon(plugin.send_data, b"2")
                body.start_soon(trio.sleep_forever)
    assert caught.value.__cause__ is cause


async def test_other_error_of_the_body_is_not_lost(given, autojump_clock):
    async def clean_up():
        try:
            await trio.sleep_forever()
        finally:
            raise BodyError

    with pytest.raises(ExceptionGroup) as caught:
        async with open_scripted(broken_after(1, OSError()), nursery=given) as plugin:
            async with trio.open_nursery() as body:
                body.start_soon(plugin.send_data, b"1")
                body.start_soon(clean_up)
    assert caught.group_contains(BodyError)


async def test_body_that_handles_the_failed_call_still_gets_the_failure(given, autojump_clock):
    with pytest.raises(PluginFailedError):
        async with open_scripted(broken_after(1, OSError()), nursery=given) as plugin:
            with pytest.raises(PluginFailedError):
                await plugin.send_data(b"")


async def test_error_of_the_body_has_precedence_over_a_failure(given, autojump_clock):
    with pytest.raises(BodyError):
        async with open_scripted(broken_after(1, OSError()), nursery=given):
            try:
                await trio.sleep_forever()
            finally:
                raise BodyError


async def test_failure_while_closing_is_raised(given, autojump_clock):
    with pytest.raises(PluginFailedError):
        async with open_scripted(broken_after(2, OSError()), data_handler=sleeping(4), nursery=given) as plugin:
            plugin.ask(1, b"")
            await trio.sleep(1)


async def test_cancelling_the_block_drains_nothing(given, autojump_clock):
    ends = []

    async def handle(data):
        try:
            await trio.sleep(4)
        finally:
            ends.append(trio.current_time())

    begun = trio.current_time()
    with trio.move_on_after(1) as scope:
        async with open_scripted(data_handler=handle, nursery=given) as plugin:
            plugin.ask(1, b"")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == begun + 1
    assert ends == [begun + 1]


async def test_error_of_a_cancelled_body_is_not_lost(given, autojump_clock):
    """Not even when a handler shields itself for longer than the plugin waits."""

    async def linger(data):
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    with pytest.raises(BodyError), trio.move_on_after(1):
        async with open_scripted(data_handler=linger, nursery=given) as plugin:
            plugin.ask(1, b"")
            try:
                await trio.sleep_forever()
            finally:
                raise BodyError
    await trio.sleep(5)


@pytest.mark.parametrize("_again", range(6))
async def test_opening_under_a_cancellation_leaves_nothing(given, _again):
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_scripted(nursery=given):
            pytest.fail("the block ran")
    assert scope.cancelled_caught


async def test_a_normal_exit_drains_and_is_bounded(given, autojump_clock):
    for seconds, took in ((3, 3), (100, 5)):
        begun = trio.current_time()
        async with open_scripted(data_handler=sleeping(seconds), nursery=given) as plugin:
            plugin.ask(1, b"")
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() - begun == pytest.approx(took)


async def test_a_body_may_close_or_disconnect_the_plugin_itself(given):
    async with open_scripted(nursery=given) as plugin:
        await plugin.disconnect()
        await plugin.connect()
        await plugin.aclose()
        with pytest.raises(PluginClosedError):
            await plugin.connect()


async def test_plugins_nest_and_follow_each_other(given):
    for _ in range(2):
        async with (
            open_scripted(nursery=given) as outer,
            open_scripted(nursery=given) as inner,
        ):
            assert outer.is_connected()
            assert inner.is_connected()


async def test_a_nursery_cancelled_under_the_block_leaves_the_block_running():
    """Its calls fail as closed; the block continues, since it is in another task."""
    opened, checked = trio.Event(), trio.Event()
    outcome = []

    async def block(nursery):
        async with open_scripted(nursery=nursery) as plugin:
            opened.set()
            with pytest.raises(PluginClosedError):
                await plugin.send_data(b"")
            assert not plugin.is_connected()
            with pytest.raises(PluginClosedError):
                await plugin.wait_connected()
            outcome.extend(names([event async for event in plugin.events]))
        checked.set()

    async with trio.open_nursery() as outer:
        async with trio.open_nursery() as nursery:
            outer.start_soon(block, nursery)
            await opened.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await checked.wait()
    assert outcome == ["Connected", "Disconnected"]


@pytest.mark.parametrize("nursery_given", [3, "nursery", object()])
async def test_a_wrong_nursery_is_a_type_error(nursery_given):
    with pytest.raises(TypeError, match="nursery is a"):
        async with open_scripted(nursery=nursery_given):
            pytest.fail("the block ran")
    with pytest.raises(TypeError, match="nursery is a"):
        create_plugin(ScriptedOptions(), nursery=nursery_given)


@pytest.mark.parametrize("opts", [None, 5, "loopback", []])
async def test_wrong_options_are_type_errors(given, opts):
    with pytest.raises(TypeError, match="opts is"):
        async with open_plugin(opts, nursery=given):
            pytest.fail("the block ran")


async def test_wrong_services_are_a_type_error(given):
    with pytest.raises(TypeError, match="services is a PluginServices"):
        async with open_plugin(ScriptedOptions(), {"store": None}, nursery=given):  # type: ignore[call-overload] # on purpose
            pytest.fail("the block ran")


async def test_wrong_handler_is_a_type_error(given):
    for handlers in ({"data_handler": 5}, {"money_handler": "m"}):
        with pytest.raises(TypeError, match="handler is an async function"):
            async with open_scripted(nursery=given, **handlers):
                pytest.fail("the block ran")


async def test_wrong_connect_options_are_a_type_error(given):
    with pytest.raises(TypeError, match="ConnectOptions"):
        async with open_scripted(connect=5000, nursery=given):
            pytest.fail("the block ran")


async def test_bad_fields_are_all_named(given):
    with pytest.raises(InvalidFieldsError) as caught:
        async with open_plugin({"plugin": "scripted", "respnseTimeout": 5, "max_handlers": 0}, nursery=given):
            pytest.fail("the block ran")
    assert "responseTimeout" in str(caught.value)
    assert "max_handlers" in str(caught.value)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
async def test_interruption_in_a_task_of_the_plugin_is_not_lost(interruption):
    """Ctrl-C is raised in the task that runs; here in a handler."""

    async def handle(data):
        raise interruption

    # Caught here: an exception that is no error would not fail the test.
    for calling in (False, True):
        caught: BaseException | None = None
        try:
            async with open_scripted(data_handler=handle) as plugin:
                plugin.ask(1, b"")
                if calling:
                    await plugin.send_data(b"")
                await trio.sleep_forever()
        except BaseException as raised:  # noqa: BLE001 (checked below)
            caught = raised
        assert type(caught) is interruption


# With a network.


async def test_credentials_refused_on_a_redial_end_the_block(given):
    async with peers.open_btp({"listener": {"port": 0, "secret": "old"}}) as listener:
        address = listener.address
        server = address.replace("//", "//alice:old@")
        with pytest.raises(PluginFailedError) as caught, trio.fail_after(10):
            async with open_plugin({"server": server}, nursery=given) as plugin:
                await listener.disconnect()
                port = int(address.rpartition(":")[2])
                async with peers.open_btp({"listener": {"port": port, "secret": "new"}}):
                    await trio.sleep_forever()
    assert isinstance(caught.value.__cause__, NotAcceptedError)
    events = [event async for event in plugin.events]
    assert names(events) == ["Connected", "Disconnected", "Failed"]
    assert events[-1] == Failed(caught.value.__cause__)


async def test_disconnecting_plugins_do_not_connect_again(given):
    """Neither end makes a new link during the closing handshake."""
    async with peers.open_btp({"listener": {"port": 0, "secret": "s"}}, nursery=given) as listener:
        server = listener.address.replace("//", "//alice:s@")
        async with open_plugin({"server": server}, nursery=given) as client:
            await listener.wait_connected()
            await client.disconnect()
        assert names([event async for event in client.events]) == ["Connected", "Disconnected"]
        async with open_plugin({"server": server}, nursery=given) as client:
            await listener.wait_connected()
            await listener.disconnect()
            await trio.sleep(0.05)
            assert not client.is_connected()
        assert names([event async for event in client.events]) == ["Connected", "Disconnected"]
        await listener.aclose()
    assert names([event async for event in listener.events]) == ["Connected", "Disconnected"] * 2


async def test_draining_listener_accepts_no_peer(given):
    """A new link would be dropped at once, and the draining one with it."""
    begun, finish = trio.Event(), trio.Event()

    async def handle(data):
        begun.set()
        await finish.wait()
        return data

    async with peers.open_btp(peers.listening(), data_handler=handle, nursery=given) as listener:
        first = await peers.dial_in(listener.address)
        await first.send_request(1, b"slow")
        await begun.wait()
        async with trio.open_nursery() as closing:
            closing.start_soon(listener.aclose)
            with pytest.raises(ScriptError, match="503"), trio.fail_after(5):
                await peers.dial(listener.address)
            finish.set()
            assert (await first.receive_packet()).request_id == 1
            await first.aclose()


@pytest.mark.parametrize("_again", range(4))
async def test_cancelled_nursery_ends_calls_over_a_network_as_closed(_again):
    errors = []

    async def call(plugin):
        with pytest.raises(PluginClosedError) as caught:
            await plugin.send_data(b"")
        errors.append(caught.value)

    async with (
        peers.open_btp({"listener": {"port": 0, "secret": "s"}}, data_handler=sleeping(math.inf)) as listener,
        trio.open_nursery() as callers,
    ):
        async with trio.open_nursery() as nursery:
            plugin = create_plugin({"server": listener.address.replace("//", "//alice:s@")}, nursery=nursery)
            await plugin.connect()
            for _ in range(3):
                callers.start_soon(call, plugin)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        listener.tasks.cancel()
    assert len(errors) == 3


async def test_link_broken_by_early_requests_is_not_reported_as_up():
    """Otherwise the plugin says for ever that it is connected, and has no link."""
    first = True

    async def serve(stream):
        nonlocal first
        peer = await peers.welcome(stream)
        request = await peer.receive_packet()
        early = [peers.frame(btp.encode(btp.Message(number, ()))) for number in range(8)] if first else []
        first = False
        await peer.send(*early, peers.frame(btp.encode(btp.Response(request.request_id))))
        await peer.wait_eof()

    # The replies to eight early requests do not fit this queue.
    opts = {"max_send_queue_bytes": 1, "max_error_reply_bytes": 1}
    async with peers.serving(serve) as server, open_plugin({"server": server, **opts}) as plugin:
        with trio.fail_after(5):
            seen = [await plugin.events.receive() for _ in range(3)]
        assert names(seen) == ["Connected", "Disconnected", "Connected"]
        assert plugin.is_connected()


@pytest.mark.parametrize(
    "bad", [b"\x09rubbish", btp.encode(btp.Error(0, "T00", "UnreachableError", NOW))], ids=["rubbish", "T00"]
)
async def test_packets_after_a_refusal_do_not_open_the_link(bad):
    """A link that connect() has given up must not open later."""
    first = True

    async def serve(stream):
        nonlocal first
        peer = await peers.welcome(stream)
        request = await peer.receive_packet()
        answer = peers.frame(btp.encode(btp.Response(request.request_id)))
        refusal = peers.frame(bad[:1] + request.request_id.to_bytes(4, "big") + bad[5:])
        await peer.send(*([refusal, answer] if first else [answer]))
        first = False
        await peer.wait_eof()

    async with peers.serving(serve) as server, open_plugin({"server": server}) as plugin:
        assert not first
        await trio.sleep(0.05)
        assert names([plugin.events.receive_nowait()]) == ["Connected"]
        with pytest.raises(trio.WouldBlock):
            plugin.events.receive_nowait()


async def test_the_smallest_queue_still_lets_requests_through():
    async with peers.open_btp({**peers.listening(), "max_send_queue_bytes": 1}, data_handler=echo) as listener:
        server = listener.address.replace("//", f"//alice:{peers.TOKEN}@")
        async with open_plugin({"server": server, "max_send_queue_bytes": 1}) as plugin:
            with trio.fail_after(5):
                for data in (b"", bytes(60_000)):
                    assert await plugin.send_data(data) == data


# create_plugin.


async def test_created_plugin_is_not_connected_and_has_no_task():
    async with trio.open_nursery() as nursery:
        before = all_tasks()
        plugin = create_plugin({"plugin": "scripted"}, PluginServices(), nursery=nursery)
        assert not plugin.is_connected()
        assert all_tasks() == before
        await plugin.connect()
        assert plugin.is_connected()
        await plugin.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert all_tasks() == before


async def test_failure_of_a_created_plugin_is_raised_by_its_nursery(autojump_clock):
    cause = NotAcceptedError("not any more")
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            plugin = create_plugin(ScriptedOptions(script=broken_after(1, cause)), nursery=nursery)
            await plugin.connect()
            await trio.sleep_forever()
    (failure,) = caught.value.exceptions
    assert isinstance(failure, PluginFailedError)
    assert failure.__cause__ is cause
    assert names([event async for event in plugin.events])[-1] == "Failed"


async def test_failed_attempt_of_a_created_plugin_fails_only_connect():
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(ScriptedOptions(script=refused(NotAcceptedError("no"))), nursery=nursery)
        with pytest.raises(NotAcceptedError):
            await plugin.connect()


async def test_nursery_ends_once_its_created_plugins_have_disconnected(autojump_clock):
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            plugin = create_plugin(ScriptedOptions(script=after(1)), nursery=nursery)
            await plugin.connect()
            assert isinstance(plugin, ScriptedPlugin)
            plugin.register_data_handler(echo)
            plugin.ask(1, b"")
            await trio.sleep(0.1)
            await plugin.disconnect()


async def test_nursery_ends_after_a_cancelled_connect(autojump_clock):
    for delay in (0.0, 0.5):
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                plugin = create_plugin(ScriptedOptions(script=hang), nursery=nursery)
                with trio.move_on_after(delay):
                    await plugin.connect()


async def test_interruption_of_the_closing(monkeypatch):
    async def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        async with open_scripted(nursery=None) as plugin:
            await plugin.aclose()
            monkeypatch.setattr(plugin, "aclose", interrupted)
            raise ValueError("the body's own")
    assert isinstance(caught.value.__cause__, ValueError)


async def test_error_of_the_closing_does_not_replace_the_blocks_own(monkeypatch):
    async def broken() -> None:
        raise OSError("the disk is gone")

    with pytest.raises(ValueError, match="the body's own") as caught:
        async with open_scripted(nursery=None) as plugin:
            await plugin.aclose()
            monkeypatch.setattr(plugin, "aclose", broken)
            raise ValueError("the body's own")
    assert caught.value.__notes__ == ["closing the plugin failed as well: OSError: the disk is gone"]
