"""The home of a plugin's tasks opens when needed, ends when told, and leaves nothing in the caller's nursery."""
# ruff: noqa: PT012 (whole blocks are what raises here)

from math import inf

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import PluginClosedError
from trio_ledger_plugin.runtime.tasks import TaskGroup
from trio_ledger_plugin.runtime.timers import Timers


class Home:
    """A home and what it told of its ends."""

    def __init__(self, nursery, fatal=None):
        self.ends = []
        self.fatal = fatal
        self.is_busy = False
        self.timers = Timers()
        self.tasks = TaskGroup(nursery, self.timers, self._ended, lambda: self.is_busy)

    def _ended(self, crash, cancelled):
        self.ends.append((crash, cancelled))
        return self.fatal


def is_running(home):
    return home.tasks.running


async def left_in(nursery):
    await wait_all_tasks_blocked()
    return [task.name for task in nursery.child_tasks]


async def test_nothing_runs_before_it_is_needed():
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        assert await left_in(nursery) == []
        assert not home.tasks.running
        await home.tasks.wait_ended()
        with pytest.raises(RuntimeError, match="have ended"):
            home.tasks.spawn(trio.sleep_forever)


async def test_two_starters_share_one_home():
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        async with trio.open_nursery() as starters:
            starters.start_soon(home.tasks.start)
            starters.start_soon(home.tasks.start)
        assert len(await left_in(nursery)) == 1
        home.tasks.cancel()
        await home.tasks.wait_ended()
        assert await left_in(nursery) == []
        assert home.ends == [(None, True)]


async def test_it_ends_by_itself_with_the_idle_tasks_still_in_it():
    """Idle workers wait for ever: they must not keep the home, and with it the caller's nursery, open."""
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        home.is_busy = True
        await home.tasks.start()
        home.tasks.spawn(trio.sleep_forever)
        home.tasks.close_when_idle()
        await wait_all_tasks_blocked()
        assert home.tasks.running
        home.is_busy = False
        home.tasks.wake()
        await home.tasks.wait_ended()
        assert home.ends == [(None, False)]


async def test_it_opens_again_only_when_the_one_before_has_ended():
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        release = trio.Event()

        async def shielded():
            with trio.CancelScope(shield=True):
                await release.wait()

        home.tasks.spawn(shielded)
        home.tasks.close_when_idle()
        await wait_all_tasks_blocked()
        assert not is_running(home)
        home.tasks.closing_when_idle = False
        async with trio.open_nursery() as starters:
            starters.start_soon(home.tasks.start)
            await wait_all_tasks_blocked()
            assert not is_running(home)
            release.set()
        assert is_running(home)
        assert home.ends == [(None, False)]
        home.tasks.cancel()


@pytest.mark.parametrize("_again", range(8))
async def test_cancelling_it_before_its_first_step_leaves_nothing(_again):
    """A home that is asked for and given up at the same moment must not stay for ever."""
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        with trio.CancelScope() as scope:
            scope.cancel()
            await home.tasks.start()
        home.tasks.cancel()
        await home.tasks.wait_ended()
        assert await left_in(nursery) == []


async def test_the_callers_cancellation_is_told_apart_from_an_end_of_its_own():
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        nursery.cancel_scope.cancel()
    assert home.ends == [(None, True)]


async def test_a_nursery_that_has_ended_is_a_closed_plugin():
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
    with pytest.raises(PluginClosedError, match="nursery"):
        await home.tasks.start()
    await home.tasks.wait_ended()


async def test_a_crash_ends_all_tasks_and_what_is_fatal_leaves_through_the_nursery():
    async def crash():
        raise OSError("broken")

    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            home = Home(nursery, fatal=LookupError("fatal"))
            await home.tasks.start()
            home.tasks.spawn(trio.sleep_forever)
            home.tasks.spawn(crash)
    assert [str(error) for error in caught.value.exceptions] == ["fatal"]
    assert caught.group_contains(LookupError, depth=1)
    crash_told = home.ends[0][0]
    assert isinstance(crash_told, ExceptionGroup)
    assert isinstance(crash_told.exceptions[0], OSError)


async def test_a_crash_that_is_not_fatal_stays_inside():
    async def crash():
        raise OSError("broken")

    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        home.tasks.spawn(crash)
        await home.tasks.wait_ended()
        assert await left_in(nursery) == []


class Visited:
    def __init__(self, pause):
        self.pause = pause
        self.times = []

    def fire(self, now):
        self.times.append(now)
        return now + self.pause


async def test_deadlines_are_visited_at_their_time(autojump_clock):
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        start = trio.current_time()
        resident, later, once = Visited(inf), Visited(10), Visited(inf)
        home.timers.periodic.append(resident)
        await home.tasks.start()
        home.timers.schedule(later, start + 5)
        await trio.sleep(2)
        home.timers.schedule(once, start + 3)
        await trio.sleep(30)
        home.tasks.cancel()
        await home.tasks.wait_ended()
    assert resident.times == [start]
    assert once.times == [start + 3]
    assert later.times == [start + 5, start + 15, start + 25]


async def test_visits_end_with_the_home(autojump_clock):
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        swept = Visited(1)
        await home.tasks.start()
        home.timers.schedule(swept, trio.current_time() + 1)
        home.tasks.cancel()
        await home.tasks.wait_ended()
        await home.tasks.start()
        await trio.sleep(5)
        home.tasks.cancel()
    assert swept.times == []


async def commit(home, seconds, done):
    """Commit something, and then tell the peer."""
    with home.tasks.committing():
        await trio.sleep(seconds)
    await trio.sleep(0.01)
    done.append(trio.current_time())


@pytest.mark.parametrize("how", ["its own end", "the nursery's"])
async def test_the_end_waits_for_a_commit_and_for_what_the_peer_is_told(how, autojump_clock):
    """Cut off in between, the peer would be in doubt about money that counts."""
    done: list[float] = []
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        home.tasks.spawn(commit, home, 0.2, done)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        if how == "its own end":
            home.tasks.cancel()
        else:
            nursery.cancel_scope.cancel()
    assert done == [pytest.approx(start + 0.21)]
    assert trio.current_time() - start <= 0.26


async def test_a_commit_that_hangs_holds_the_end_up_for_less_than_half_a_second(autojump_clock):
    done: list[float] = []
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        home.tasks.spawn(commit, home, 60, done)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert done == []
    assert trio.current_time() - start < 0.5


async def test_commits_one_after_the_other_do_not_put_off_the_end(autojump_clock):
    """A peer that sends transfers without a pause could otherwise keep a program from ending."""
    done: list[float] = []

    async def flood():
        while True:
            await commit(home, 0.1, done)

    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        for _ in range(3):
            home.tasks.spawn(flood)
            await trio.sleep(0.03)
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start < 0.5


async def test_without_a_commit_the_end_comes_at_once(autojump_clock):
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        home.tasks.spawn(trio.sleep, 60)
        with home.tasks.committing():
            pass
        start = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == start
    assert home.ends == [(None, True)]


async def test_commits_that_begin_later_are_not_waited_for(autojump_clock):
    """On a busy server there is always one, and closing one account's plugin would take all of its time."""
    done: list[float] = []

    async def keep_committing(home: Home) -> None:
        while True:
            await commit(home, 2, done)

    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        home.tasks.spawn(keep_committing, home)
        await trio.sleep(1)
        home.tasks.spawn(keep_committing, home)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        with trio.fail_after(10):
            await home.tasks.wait_committed()
        assert trio.current_time() - start == 2
        home.tasks.cancel()


async def test_waiting_for_commits_ends_with_the_last(autojump_clock):
    done: list[float] = []
    async with trio.open_nursery() as nursery:
        home = Home(nursery)
        await home.tasks.start()
        await home.tasks.wait_committed()
        for seconds in (1, 3, 2):
            home.tasks.spawn(commit, home, seconds, done)
        await wait_all_tasks_blocked()
        start = trio.current_time()
        await home.tasks.wait_committed()
        assert trio.current_time() - start == 3
        home.tasks.cancel()
