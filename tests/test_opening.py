"""What leaves open_plugin is what happened, bare; and nothing of the plugin outlives the block."""

import pytest
import trio
from scripted import (
    FORMS,
    ScriptedOptions,
    after,
    all_tasks,
    broken_after,
    hang,
    install,
    names,
    nursery_of,
    refused,
)

from trio_ledger_plugin import (
    ConnectOptions,
    ConnectTimeoutError,
    DataHandlerAlreadyRegisteredError,
    InvalidFieldsError,
    NotAcceptedError,
    PluginClosedError,
    PluginFailedError,
    PluginServices,
    create_plugin,
    open_plugin,
)

pytestmark = pytest.mark.usefixtures("_scripted_is_installed")


@pytest.fixture
def _scripted_is_installed(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)


@pytest.fixture(params=FORMS)
async def nursery(request):
    """The nursery to give, or None; whoever asks for it learns of all that is left at the end."""
    before = all_tasks()
    async with nursery_of(request.param) as given:
        yield given
    assert all_tasks() <= before


async def echo(data):
    return data


async def accept(amount):
    pass


async def test_the_block_gets_a_connected_plugin(nursery):
    async with open_plugin(ScriptedOptions(), data_handler=echo, money_handler=accept, nursery=nursery) as plugin:
        assert plugin.is_connected()
        with pytest.raises(DataHandlerAlreadyRegisteredError):
            plugin.register_data_handler(echo)
    assert not plugin.is_connected()
    assert names([event async for event in plugin.events]) == ["Connected", "Disconnected"]


async def test_handlers_are_there_before_the_first_request(nursery):
    async def script(plugin, task_status):
        plugin.link_up()
        plugin.ask(1, b"early")
        task_status.started()
        await trio.sleep_forever()

    async with open_plugin(ScriptedOptions(script=script), data_handler=echo, nursery=nursery) as plugin:
        await trio.testing.wait_all_tasks_blocked()
        assert plugin.replies == {1: b"early"}


class BodyError(Exception):
    pass


@pytest.mark.parametrize("error", [BodyError("b"), ExceptionGroup("g", [BodyError()]), KeyboardInterrupt(), SystemExit(3)])
async def test_the_bodys_error_leaves_as_itself(nursery, error):
    with pytest.raises(type(error)) as caught:
        async with open_plugin(ScriptedOptions(), nursery=nursery):
            raise error
    assert caught.value is error
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("error", [NotAcceptedError("n"), OSError("in use"), InvalidFieldsError("missing")])
async def test_an_error_of_the_connection_leaves_as_itself(nursery, error):
    with pytest.raises(type(error)) as caught:
        async with open_plugin(ScriptedOptions(script=refused(error)), nursery=nursery):
            pytest.fail("the block ran")
    assert caught.value is error


async def test_the_timeout_of_the_connection(nursery, autojump_clock):
    begun = trio.current_time()
    with pytest.raises(ConnectTimeoutError):
        async with open_plugin(ScriptedOptions(script=hang), connect=ConnectOptions(timeout=1500), nursery=nursery):
            pytest.fail("the block ran")
    assert trio.current_time() - begun == pytest.approx(1.5)


async def test_a_fatal_failure_ends_the_block_and_nothing_else(nursery, autojump_clock):
    cause = NotAcceptedError("not any more")
    sibling_ended = []

    async def sibling():
        await trio.sleep(10)
        sibling_ended.append(trio.current_time())

    begun = trio.current_time()
    async with trio.open_nursery() as siblings:
        (nursery or siblings).start_soon(sibling)
        with pytest.raises(PluginFailedError) as caught:
            async with open_plugin(ScriptedOptions(script=broken_after(2, cause)), nursery=nursery) as plugin:
                await trio.sleep_forever()
        assert trio.current_time() - begun == pytest.approx(2)
        assert caught.value.__cause__ is cause
        events = [event async for event in plugin.events]
        assert names(events) == ["Connected", "Disconnected", "Failed"]
        assert events[-1].error is cause
        await trio.sleep(20)
    assert sibling_ended == [begun + 10]


async def test_a_failure_that_the_body_met_in_a_call_is_told_once(nursery, autojump_clock):
    cause = OSError("broken")
    with pytest.raises(PluginFailedError) as caught:
        async with open_plugin(ScriptedOptions(script=broken_after(1, cause)), nursery=nursery) as plugin:
            await plugin.send_data(b"")
    assert caught.value.__cause__ is cause


async def test_a_failure_that_many_tasks_of_the_body_met_is_told_once_and_bare(nursery, autojump_clock):
    cause = OSError("broken")
    with pytest.raises(PluginFailedError) as caught:
        async with open_plugin(ScriptedOptions(script=broken_after(1, cause)), nursery=nursery) as plugin:
            async with trio.open_nursery() as body:
                body.start_soon(plugin.send_data, b"1")
                body.start_soon(plugin.send_data, b"2")
                body.start_soon(trio.sleep_forever)
    assert caught.value.__cause__ is cause


async def test_an_error_of_the_bodys_own_among_them_is_not_lost(nursery, autojump_clock):
    async def clean_up():
        try:
            await trio.sleep_forever()
        finally:
            raise BodyError

    with pytest.raises(ExceptionGroup) as caught:
        async with open_plugin(ScriptedOptions(script=broken_after(1, OSError())), nursery=nursery) as plugin:
            async with trio.open_nursery() as body:
                body.start_soon(plugin.send_data, b"1")
                body.start_soon(clean_up)
    assert caught.group_contains(BodyError)


async def test_a_body_that_handles_the_failed_call_still_learns_of_it(nursery, autojump_clock):
    with pytest.raises(PluginFailedError):
        async with open_plugin(ScriptedOptions(script=broken_after(1, OSError())), nursery=nursery) as plugin:
            with pytest.raises(PluginFailedError):
                await plugin.send_data(b"")


async def test_the_bodys_error_wins_over_a_failure(nursery, autojump_clock):
    with pytest.raises(BodyError):
        async with open_plugin(ScriptedOptions(script=broken_after(1, OSError())), nursery=nursery):
            try:
                await trio.sleep_forever()
            finally:
                raise BodyError


async def test_a_failure_while_closing_is_told(nursery, autojump_clock):
    with pytest.raises(PluginFailedError):
        async with open_plugin(
            ScriptedOptions(script=broken_after(2, OSError())), data_handler=lambda data: trio.sleep(4), nursery=nursery
        ) as plugin:
            plugin.ask(1, b"")
            await trio.sleep(1)


async def test_cancelling_the_block_drains_nothing(nursery, autojump_clock):
    ends = []

    async def handle(data):
        try:
            await trio.sleep(4)
        finally:
            ends.append(trio.current_time())

    begun = trio.current_time()
    with trio.move_on_after(1) as scope:
        async with open_plugin(ScriptedOptions(), data_handler=handle, nursery=nursery) as plugin:
            plugin.ask(1, b"")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == begun + 1
    assert ends == [begun + 1]


async def test_an_error_of_a_cancelled_body_is_not_lost(nursery, autojump_clock):
    """Not even when a handler shields itself for longer than the plugin waits for it."""

    async def linger(data):
        with trio.CancelScope(shield=True):
            await trio.sleep(3)

    with pytest.raises(BodyError), trio.move_on_after(1):
        async with open_plugin(ScriptedOptions(), data_handler=linger, nursery=nursery) as plugin:
            plugin.ask(1, b"")
            try:
                await trio.sleep_forever()
            finally:
                raise BodyError
    await trio.sleep(5)


@pytest.mark.parametrize("_again", range(6))
async def test_opening_under_a_cancellation_leaves_nothing(nursery, _again):
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_plugin(ScriptedOptions(), nursery=nursery):
            pytest.fail("the block ran")
    assert scope.cancelled_caught


async def test_a_normal_exit_drains_and_is_bounded(nursery, autojump_clock):
    for seconds, took in ((3, 3), (100, 5)):
        begun = trio.current_time()
        async with open_plugin(
            ScriptedOptions(), data_handler=lambda data, seconds=seconds: trio.sleep(seconds), nursery=nursery
        ) as plugin:
            plugin.ask(1, b"")
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() - begun == pytest.approx(took)


async def test_a_body_may_close_or_disconnect_the_plugin_itself(nursery):
    async with open_plugin(ScriptedOptions(), nursery=nursery) as plugin:
        await plugin.disconnect()
        await plugin.connect()
        await plugin.aclose()
        with pytest.raises(PluginClosedError):
            await plugin.connect()


async def test_plugins_nest_and_follow_each_other(nursery):
    for _ in range(2):
        async with (
            open_plugin(ScriptedOptions(), nursery=nursery) as outer,
            open_plugin(ScriptedOptions(), nursery=nursery) as inner,
        ):
            assert outer.is_connected()
            assert inner.is_connected()


async def test_a_nursery_cancelled_under_the_block_leaves_the_block_running():
    """Its calls fail as closed; the block goes on, since it is in another task."""
    opened, checked = trio.Event(), trio.Event()
    outcome = []

    async def block(nursery):
        async with open_plugin(ScriptedOptions(), nursery=nursery) as plugin:
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
    with pytest.raises(TypeError, match="nursery is a trio.Nursery"):
        async with open_plugin(ScriptedOptions(), nursery=nursery_given):
            pytest.fail("the block ran")
    with pytest.raises(TypeError, match="nursery is a trio.Nursery"):
        create_plugin(ScriptedOptions(), nursery=nursery_given)


@pytest.mark.parametrize("opts", [None, 5, "loopback", []])
async def test_wrong_options_are_type_errors_and_bare(nursery, opts):
    with pytest.raises(TypeError, match="opts is"):
        async with open_plugin(opts, nursery=nursery):
            pytest.fail("the block ran")


async def test_wrong_services_are_a_type_error(nursery):
    with pytest.raises(TypeError, match="services is a PluginServices"):
        async with open_plugin(ScriptedOptions(), {"store": None}, nursery=nursery):
            pytest.fail("the block ran")


async def test_a_wrong_handler_is_a_type_error_and_bare(nursery):
    for handlers in ({"data_handler": 5}, {"money_handler": "m"}):
        with pytest.raises(TypeError, match="handler is an async function"):
            async with open_plugin(ScriptedOptions(), nursery=nursery, **handlers):
                pytest.fail("the block ran")


async def test_wrong_connect_options_are_a_type_error_and_bare(nursery):
    with pytest.raises(TypeError, match="ConnectOptions"):
        async with open_plugin(ScriptedOptions(), connect=5000, nursery=nursery):
            pytest.fail("the block ran")


async def test_bad_fields_are_all_named(nursery):
    with pytest.raises(InvalidFieldsError) as caught:
        async with open_plugin({"plugin": "scripted", "respnseTimeout": 5, "max_handlers": 0}, nursery=nursery):
            pytest.fail("the block ran")
    assert "responseTimeout" in str(caught.value)
    assert "max_handlers" in str(caught.value)


# create_plugin


async def test_a_created_plugin_is_not_connected_and_costs_no_task():
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


async def test_the_failure_of_a_created_plugin_leaves_through_its_nursery(autojump_clock):
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


async def test_a_created_plugins_failed_attempt_is_connects_matter_only():
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(ScriptedOptions(script=refused(NotAcceptedError("no"))), nursery=nursery)
        with pytest.raises(NotAcceptedError):
            await plugin.connect()


async def test_a_nursery_ends_by_itself_once_its_created_plugins_have_disconnected(autojump_clock):
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            plugin = create_plugin(ScriptedOptions(script=after(1)), nursery=nursery)
            await plugin.connect()
            plugin.register_data_handler(echo)
            plugin.ask(1, b"")
            await trio.sleep(0.1)
            await plugin.disconnect()


async def test_a_nursery_ends_by_itself_after_a_cancelled_connect(autojump_clock):
    for delay in (0.0, 0.5):
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                plugin = create_plugin(ScriptedOptions(script=hang), nursery=nursery)
                with trio.move_on_after(delay):
                    await plugin.connect()
