"""A call has one outcome and leaves nothing behind; a caller that waits for a slot gets one or an error."""

from itertools import count

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import ConnectionLostError, NotConnectedError, PluginClosedError, ResponseTimeoutError
from trio_ledger_plugin.parking import park
from trio_ledger_plugin.runtime.budget import Budget, Limits
from trio_ledger_plugin.runtime.calls import QUIET_TURNS, CallTable


class Caller:
    """Makes calls in a table, each in a task, and keeps their outcomes by request id."""

    def __init__(self, nursery, *, limit=10, timeout=10.0):
        self.table = CallTable(count(1), Budget(Limits()), limit=limit, timeout=timeout)
        self.outcomes = {}
        self._nursery = nursery
        self._calls = count(1)

    async def call(self):
        request_id = next(self._calls)
        scope = trio.CancelScope()
        self._nursery.start_soon(self._run, request_id, scope)
        await wait_all_tasks_blocked()
        return request_id, scope

    async def _run(self, request_id, scope):
        with scope:
            try:
                await self.table.wait_for_slot()
                self.table.check_open()
                # Under the caller's own number: a caller that stops waiting for a slot takes no id.
                given, call = self.table.open()
                self.table.pending[request_id] = self.table.pending.pop(given)
                try:
                    self.outcomes[request_id] = await park(call)
                finally:
                    self.table.forget(request_id)
            except Exception as error:  # noqa: BLE001 (kept for the test)
                self.outcomes[request_id] = error


async def test_reply_wakes_only_its_caller(nursery):
    caller = Caller(nursery)
    first, second = (await caller.call())[0], (await caller.call())[0]
    caller.table.pending.pop(second).answer(b"two")
    await wait_all_tasks_blocked()
    assert caller.outcomes == {second: b"two"}
    assert list(caller.table.pending) == [first]


async def test_second_reply_or_failure_does_nothing(nursery):
    caller = Caller(nursery)
    request_id, _ = await caller.call()
    call = caller.table.pending[request_id]
    call.answer(b"one")
    call.answer(b"two")
    call.fail(OSError())
    await wait_all_tasks_blocked()
    assert caller.outcomes == {request_id: b"one"}
    assert not caller.table.pending


async def test_reply_to_a_cancelled_caller_does_nothing(nursery):
    caller = Caller(nursery)
    request_id, scope = await caller.call()
    call = caller.table.pending[request_id]
    scope.cancel()
    await wait_all_tasks_blocked()
    assert not caller.table.pending
    call.answer(b"late")
    await wait_all_tasks_blocked()
    assert caller.outcomes == {}


async def test_closing_fails_each_call_with_its_own_error(nursery):
    caller = Caller(nursery)
    for _ in range(3):
        await caller.call()
    caller.table.close(lambda: ConnectionLostError("lost"))
    assert not caller.table.pending
    await wait_all_tasks_blocked()
    errors = list(caller.outcomes.values())
    assert [type(error) for error in errors] == [ConnectionLostError] * 3
    assert len(set(map(id, errors))) == 3


@pytest.mark.parametrize(
    ("in_flight", "unsent"), [(ConnectionLostError, NotConnectedError), (PluginClosedError, PluginClosedError)]
)
async def test_caller_waiting_for_a_slot_learns_that_nothing_was_sent(nursery, in_flight, unsent):
    """A payer must not treat a transfer that was never sent as in doubt, nor "you closed it" as "it broke"."""
    caller = Caller(nursery, limit=1)
    first, _ = await caller.call()
    second, _ = await caller.call()
    caller.table.close(lambda: in_flight("ended"))
    await wait_all_tasks_blocked()
    assert type(caller.outcomes[first]) is in_flight
    assert type(caller.outcomes[second]) is unsent
    assert caller.table.closed


async def test_first_reason_to_close_counts(nursery):
    caller = Caller(nursery, limit=1)
    await caller.call()
    second, _ = await caller.call()
    caller.table.close(lambda: PluginClosedError("by us"))
    caller.table.close(lambda: ConnectionLostError("and then the link went"))
    await wait_all_tasks_blocked()
    assert type(caller.outcomes[second]) is PluginClosedError


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_calls_stay_below_the_limit_and_each_gets_its_turn(nursery, limit):
    caller = Caller(nursery, limit=limit)
    for _ in range(20):
        await caller.call()
        assert len(caller.table.pending) <= limit
    for _ in range(20):
        request_id = next(iter(caller.table.pending))
        caller.table.pending.pop(request_id).answer(b"")
        await wait_all_tasks_blocked()
        assert len(caller.table.pending) <= limit
    assert len(caller.outcomes) == 20


async def test_cancelled_caller_gives_its_slot_to_the_next(nursery):
    caller = Caller(nursery, limit=1)
    _, scope = await caller.call()
    second, _ = await caller.call()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert list(caller.table.pending) == [second]


async def test_caller_that_stops_waiting_takes_no_slot(nursery):
    caller = Caller(nursery, limit=1)
    first, _ = await caller.call()
    _, scope = await caller.call()
    third, _ = await caller.call()
    scope.cancel()
    caller.table.pending.pop(first).answer(b"")
    await wait_all_tasks_blocked()
    assert list(caller.table.pending) == [third]


async def test_unused_slot_can_be_passed_on(nursery):
    """Otherwise a caller waits for ever beside an empty table."""
    table = CallTable(count(1), Budget(Limits()), limit=1, timeout=10)
    holder = Caller(nursery, limit=1)
    holder.table = table
    first, _ = await holder.call()
    leaving = trio.Event()

    async def take_and_leave():
        await table.wait_for_slot()
        await leaving.wait()
        table.wake_next()

    nursery.start_soon(take_and_leave)
    await wait_all_tasks_blocked()
    second, _ = await holder.call()
    table.pending.pop(first).answer(b"")
    await wait_all_tasks_blocked()
    leaving.set()
    await wait_all_tasks_blocked()
    assert list(table.pending) == [second]


async def test_draining_takes_no_slot_from_callers(nursery):
    caller = Caller(nursery, limit=1)
    first, _ = await caller.call()
    drained = []

    async def drain():
        await caller.table.drain()
        drained.append(1)

    nursery.start_soon(drain)
    await wait_all_tasks_blocked()
    second, _ = await caller.call()
    caller.table.pending.pop(first).answer(b"")
    await wait_all_tasks_blocked()
    assert second in caller.table.pending
    caller.table.pending.pop(second).answer(b"")
    await wait_all_tasks_blocked()
    assert drained
    await caller.table.drain()


def expire(table, now):
    """Call expire() once a turn, as the timers do, until it asks for a later time."""
    while (then := table.expire(now)) <= now:
        pass
    return then


async def test_answers_that_are_still_read_keep_calls_that_are_due(nursery, autojump_clock):
    """After a pause of the process the answers lie in the socket; a payment would be in doubt that was answered."""
    caller = Caller(nursery, timeout=10)
    now = trio.current_time() + 10
    calls = [(await caller.call())[0] for _ in range(3)]
    for answered in calls[:2]:
        for _ in range(QUIET_TURNS):
            assert caller.table.expire(now) == now
        caller.table.pending.pop(answered).answer(b"yes")
    assert calls[2] in caller.table.pending
    expire(caller.table, now)
    await wait_all_tasks_blocked()
    assert [caller.outcomes[call] for call in calls[:2]] == [b"yes", b"yes"]
    assert isinstance(caller.outcomes[calls[2]], ResponseTimeoutError)


async def test_calls_expire_although_others_become_due_all_the_time(nursery, autojump_clock):
    """At ten thousand calls a second, some are due at each turn; a peer that is dead must be noticed nevertheless."""
    caller = Caller(nursery, timeout=10)
    first, _ = await caller.call()
    for _ in range(QUIET_TURNS + 2):
        await trio.sleep(1)
        await caller.call()
        caller.table.expire(trio.current_time() + 10)
    await wait_all_tasks_blocked()
    assert isinstance(caller.outcomes[first], ResponseTimeoutError)


async def test_calls_expire_in_order_each_at_its_deadline(nursery, autojump_clock):
    caller = Caller(nursery, timeout=10)
    start = trio.current_time()
    first, _ = await caller.call()
    await trio.sleep(4)
    second, _ = await caller.call()
    assert caller.table.expire(start + 9.9) == pytest.approx(start + 10)
    assert not caller.outcomes
    assert expire(caller.table, start + 10) == pytest.approx(start + 14)
    await wait_all_tasks_blocked()
    assert isinstance(caller.outcomes[first], ResponseTimeoutError)
    assert isinstance(caller.outcomes[first], TimeoutError)
    assert list(caller.table.pending) == [second]


async def test_empty_table_is_checked_before_a_new_call_can_expire(nursery):
    assert CallTable(count(1), Budget(Limits()), limit=1, timeout=10).expire(100.0) == 110.0


async def test_id_in_flight_is_skipped():
    """Two calls with one id would get each other's replies."""
    table = CallTable(iter([4, 4, 4, 5]), Budget(Limits()), limit=10, timeout=10)
    assert [table.open()[0], table.open()[0]] == [4, 5]


async def test_outcome_before_the_wait_is_kept():
    """A link can be lost while it sends, before the caller sleeps."""
    table = CallTable(count(1), Budget(Limits()), limit=10, timeout=10)
    _, answered = table.open()
    _, failed = table.open()
    answered.answer(b"yes")
    failed.fail(ConnectionLostError("gone"))
    assert answered.early is not None
    assert answered.early.unwrap() == b"yes"
    assert failed.early is not None
    with pytest.raises(ConnectionLostError):
        failed.early.unwrap()
