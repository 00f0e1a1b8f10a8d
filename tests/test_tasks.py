"""A plugin's task group opens when needed, ends when closed, and leaves nothing in the caller's nursery."""
# ruff: noqa: PT012 (whole blocks are what raises here)

from contextvars import ContextVar
from functools import partial
from math import inf

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import PluginClosedError, StoreError
from trio_ledger_plugin.runtime.tasks import TaskGroup, run_all, run_to_end
from trio_ledger_plugin.runtime.timers import Timers

VARIABLE: ContextVar[str] = ContextVar("variable")


class Group:
    """A task group, and the ends that it reports."""

    def __init__(self, nursery, fatal=None):
        self.ends = []
        self.fatal = fatal
        self.is_busy = False
        self.timers = Timers()
        self.tasks = TaskGroup(nursery, self.timers, self._ended, lambda: self.is_busy)

    def _ended(self, crash, cancelled):
        self.ends.append((crash, cancelled))
        return self.fatal


def is_running(group):
    return group.tasks.running


async def left_in(nursery):
    await wait_all_tasks_blocked()
    return [task.name for task in nursery.child_tasks]


async def test_nothing_runs_before_it_is_needed():
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        assert await left_in(nursery) == []
        assert not group.tasks.running
        await group.tasks.wait_ended()
        with pytest.raises(RuntimeError, match="have ended"):
            group.tasks.spawn(trio.sleep_forever)


async def test_two_starters_share_one_task_group():
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        async with trio.open_nursery() as starters:
            starters.start_soon(group.tasks.start)
            starters.start_soon(group.tasks.start)
        assert len(await left_in(nursery)) == 1
        group.tasks.cancel()
        await group.tasks.wait_ended()
        assert await left_in(nursery) == []
        assert group.ends == [(None, True)]


async def test_it_ends_although_idle_tasks_still_run():
    """Idle workers wait for ever: they must not keep the task group, and with it the caller's nursery, open."""
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        group.is_busy = True
        await group.tasks.start()
        group.tasks.spawn(trio.sleep_forever)
        group.tasks.close_when_idle()
        await wait_all_tasks_blocked()
        assert group.tasks.running
        group.is_busy = False
        group.tasks.wake()
        await group.tasks.wait_ended()
        assert group.ends == [(None, False)]


async def test_it_opens_again_only_after_its_previous_end():
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        release = trio.Event()

        async def shielded():
            with trio.CancelScope(shield=True):
                await release.wait()

        group.tasks.spawn(shielded)
        group.tasks.close_when_idle()
        await wait_all_tasks_blocked()
        assert not is_running(group)
        group.tasks.closing_when_idle = False
        async with trio.open_nursery() as starters:
            starters.start_soon(group.tasks.start)
            await wait_all_tasks_blocked()
            assert not is_running(group)
            release.set()
        assert is_running(group)
        assert group.ends == [(None, False)]
        group.tasks.cancel()


@pytest.mark.parametrize("_again", range(8))
async def test_cancelling_it_before_its_first_step_leaves_nothing(_again):
    """A task group that is started and cancelled at the same moment must not stay for ever."""
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        with trio.CancelScope() as scope:
            scope.cancel()
            await group.tasks.start()
        group.tasks.cancel()
        await group.tasks.wait_ended()
        assert await left_in(nursery) == []


async def test_cancellation_by_the_caller_differs_from_its_own_end():
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        nursery.cancel_scope.cancel()
    assert group.ends == [(None, True)]


async def test_ended_nursery_raises_plugin_closed_error():
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
    with pytest.raises(PluginClosedError, match="nursery"):
        await group.tasks.start()
    await group.tasks.wait_ended()


async def test_crash_ends_all_tasks_and_a_fatal_one_is_raised():
    async def crash():
        raise OSError("broken")

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            group = Group(nursery, fatal=LookupError("fatal"))
            await group.tasks.start()
            group.tasks.spawn(trio.sleep_forever)
            group.tasks.spawn(crash)
    assert [str(error) for error in caught.value.exceptions] == ["fatal"]
    assert caught.group_contains(LookupError, depth=1)
    reported = group.ends[0][0]
    assert isinstance(reported, ExceptionGroup)
    assert isinstance(reported.exceptions[0], OSError)


async def test_crash_that_is_not_fatal_stays_inside():
    async def crash():
        raise OSError("broken")

    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        group.tasks.spawn(crash)
        await group.tasks.wait_ended()
        assert await left_in(nursery) == []


class Recorded:
    def __init__(self, pause):
        self.pause = pause
        self.times = []

    def fire(self, now):
        self.times.append(now)
        return now + self.pause


async def test_timers_fire_at_their_time(autojump_clock):
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        start = trio.current_time()
        periodic, later, once = Recorded(inf), Recorded(10), Recorded(inf)
        group.timers.periodic.append(periodic)
        await group.tasks.start()
        group.timers.schedule(later, start + 5)
        await trio.sleep(2)
        group.timers.schedule(once, start + 3)
        await trio.sleep(30)
        group.tasks.cancel()
        await group.tasks.wait_ended()
    assert periodic.times == [start]
    assert once.times == [start + 3]
    assert later.times == [start + 5, start + 15, start + 25]


async def test_timers_end_with_the_task_group(autojump_clock):
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        timer = Recorded(1)
        await group.tasks.start()
        group.timers.schedule(timer, trio.current_time() + 1)
        group.tasks.cancel()
        await group.tasks.wait_ended()
        await group.tasks.start()
        await trio.sleep(5)
        group.tasks.cancel()
    assert timer.times == []


async def commit(group, seconds, done):
    """Commit something, and then send the reply."""
    with group.tasks.committing():
        await trio.sleep(seconds)
    await trio.sleep(0.01)
    done.append(trio.current_time())


@pytest.mark.parametrize("how", ["its own end", "the nursery's"])
async def test_end_waits_for_a_commit_and_its_reply(how, autojump_clock):
    """Cut off in between, the peer would be in doubt about money that counts."""
    done: list[float] = []
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        group.tasks.spawn(commit, group, 0.2, done)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        if how == "its own end":
            group.tasks.cancel()
        else:
            nursery.cancel_scope.cancel()
    assert done == [pytest.approx(start + 0.21)]
    assert trio.current_time() - start <= 0.26


async def test_hanging_commit_delays_the_end_by_less_than_half_a_second(autojump_clock):
    done: list[float] = []
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        group.tasks.spawn(commit, group, 60, done)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert done == []
    assert trio.current_time() - start < 0.5


async def test_successive_commits_do_not_delay_the_end(autojump_clock):
    """A peer that sends transfers without a pause could otherwise keep a program from ending."""
    done: list[float] = []

    async def flood():
        while True:
            await commit(group, 0.1, done)

    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        for _ in range(3):
            group.tasks.spawn(flood)
            await trio.sleep(0.03)
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start < 0.5


async def test_end_without_a_commit_is_immediate(autojump_clock):
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        group.tasks.spawn(trio.sleep, 60)
        with group.tasks.committing():
            pass
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == start
    assert group.ends == [(None, True)]


async def test_commits_that_begin_later_are_not_waited_for(autojump_clock):
    """On a busy server there is always one, and closing one account's plugin would take all of its time."""
    done: list[float] = []

    async def keep_committing(group: Group) -> None:
        while True:
            await commit(group, 2, done)

    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        group.tasks.spawn(keep_committing, group)
        await trio.sleep(1)
        group.tasks.spawn(keep_committing, group)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        with trio.fail_after(10):
            await group.tasks.wait_committed()
        assert trio.current_time() - start == 2
        group.tasks.cancel()


async def test_waiting_for_commits_ends_with_the_last(autojump_clock):
    done: list[float] = []
    async with trio.open_nursery() as nursery:
        group = Group(nursery)
        await group.tasks.start()
        await group.tasks.wait_committed()
        for seconds in (1, 3, 2):
            group.tasks.spawn(commit, group, seconds, done)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        await group.tasks.wait_committed()
        assert trio.current_time() - start == 3
        group.tasks.cancel()


async def test_interruption_of_one_of_many_is_in_no_group():
    async def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await run_all([trio.sleep_forever, interrupted])


async def test_error_of_one_of_many_keeps_its_cause():
    async def fail():
        raise StoreError("failed") from OSError("the disk is full")

    with pytest.raises(StoreError) as caught:
        await run_all([trio.sleep_forever, fail])
    assert str(caught.value.__cause__) == "the disk is full"


async def test_cancellation_of_many_ends_its_scope():
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_all([trio.sleep_forever, trio.sleep_forever])
    assert scope.cancelled_caught


async def test_work_is_done_in_a_task_that_has_done_other_work(nursery):
    group = Group(nursery).tasks
    await group.start()
    tasks = []

    async def work(_scope):
        tasks.append(trio.lowlevel.current_task())
        await trio.lowlevel.checkpoint()

    for _ in range(3):
        group.spawn_again(work)
        await wait_all_tasks_blocked()
    assert len(tasks) == 3
    assert len(set(tasks)) == 1
    for _ in range(2):
        group.spawn_again(work)
    await wait_all_tasks_blocked()
    assert len(set(tasks)) == 2
    group.cancel()
    await group.wait_ended()
    with pytest.raises(RuntimeError):
        group.spawn_again(work)


async def test_work_sets_context_variables_for_itself_alone(nursery):
    """A money handler would find what the handler of another transfer has set."""
    group = Group(nursery).tasks
    await group.start()
    found, tasks = [], []

    async def work(_scope):
        tasks.append(trio.lowlevel.current_task())
        found.append(VARIABLE.get(None))
        VARIABLE.set("set by earlier work")
        await trio.lowlevel.checkpoint()
        assert VARIABLE.get() == "set by earlier work"

    for _ in range(3):
        group.spawn_again(work)
        await wait_all_tasks_blocked()
    assert len(set(tasks)) == 1
    assert found == [None] * 3
    group.cancel()
    await group.wait_ended()


async def test_work_that_was_given_to_a_task_meets_the_cancellation(nursery):
    """It could be lost otherwise, and its owner would wait for it."""
    group = Group(nursery).tasks
    await group.start()
    ended = []

    async def work(name, _scope):
        try:
            await trio.lowlevel.checkpoint()
        finally:
            ended.append(name)

    group.spawn_again(partial(work, "first"))
    await wait_all_tasks_blocked()
    group.spawn_again(partial(work, "second"))
    group.cancel()
    await group.wait_ended()
    assert ended == ["first", "second"]


async def test_work_can_be_cancelled_alone_and_its_task_is_not_used_again(nursery):
    group = Group(nursery).tasks
    await group.start()
    tasks, cancelled = [], []

    async def work(scope):
        tasks.append(trio.lowlevel.current_task())
        if len(tasks) == 1:
            scope.cancel()
        await trio.lowlevel.checkpoint()
        cancelled.append(scope.cancel_called)

    for _ in range(3):
        group.spawn_again(work)
        await wait_all_tasks_blocked()
    assert cancelled == [False, False]
    assert tasks[1] is tasks[2] is not tasks[0]
    group.cancel()
    await group.wait_ended()


@pytest.mark.parametrize(("seconds", "ended_at"), [(3, 3), (30, 11)])
async def test_cancelled_function_has_some_time_to_end(autojump_clock, seconds, ended_at):
    done = []

    async def function():
        await trio.sleep(seconds)
        done.append("to the end")

    start = trio.current_time()
    with trio.move_on_after(1) as scope:
        await run_to_end(function, 10)
        done.append("and returned")
    assert scope.cancelled_caught
    assert trio.current_time() - start == pytest.approx(ended_at)
    assert done == (["to the end"] if seconds == 3 else [])


async def test_function_that_is_not_cancelled_takes_its_time(autojump_clock):
    await run_to_end(partial(trio.sleep, 100), 1)

    async def fail():
        await trio.sleep(100)
        raise StoreError("the disk is full")

    with pytest.raises(StoreError, match="disk"):
        await run_to_end(fail, 1)
