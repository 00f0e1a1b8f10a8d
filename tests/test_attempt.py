"""Several callers of connect() share one attempt, and its end reaches each of them."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import PluginClosedError
from trio_ledger_plugin.runtime.attempt import ConnectAttempt


async def test_success_wakes_every_waiter():
    ready = []
    connection = ConnectAttempt(lambda: ready.append(1))
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(connection.wait_settled)
        await wait_all_tasks_blocked()
        connection.started()
        connection.started()
    assert ready == [1]
    assert connection.is_settled
    await connection.wait_settled()


async def test_failure_reaches_every_waiter_and_later_ones():
    connection = ConnectAttempt(lambda: None)
    caught: list[PluginClosedError] = []

    async def wait():
        with pytest.raises(PluginClosedError, match="first") as raised:
            await connection.wait_settled()
        caught.append(raised.value)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        error = PluginClosedError("first")
        error.__cause__ = OSError("why")
        connection.settle(error)
        connection.settle(OSError("second"))
    await wait()
    # A shared error would collect the tracebacks of all tasks.
    assert len(set(map(id, caught))) == 4
    assert {each.__cause__ for each in caught} == {error.__cause__}


async def test_last_cancelled_caller_cancels_the_attempt():
    connection = ConnectAttempt(lambda: None)
    scopes = [trio.CancelScope(), trio.CancelScope()]

    async def wait(scope):
        with scope:
            await connection.wait_settled()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run, trio.sleep_forever)
        for scope in scopes:
            nursery.start_soon(wait, scope)
        await wait_all_tasks_blocked()
        scopes[0].cancel()
        await wait_all_tasks_blocked()
        assert not connection.is_abandoned
        scopes[1].cancel()
    assert connection.is_abandoned


async def test_cancelled_caller_after_the_success_cancels_nothing():
    connection = ConnectAttempt(lambda: None)
    connection.started()
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.wait_settled()
    assert scope.cancelled_caught
    assert not connection.is_abandoned


async def test_success_after_the_cancellation_does_not_count():
    """A new caller would take a link for connected that is about to be closed."""
    ready = []
    connection = ConnectAttempt(lambda: ready.append(1))
    connection.cancel()
    connection.started()
    assert not ready
    assert not connection.is_settled
