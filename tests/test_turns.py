"""Accounts take turns at the store: one that sends without end delays others by a bounded number of jobs."""

import pytest
import trio
from support.ledgers import Payer, open_payer, settle, sums, until
from support.stores import hold_thread
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin.log import StdlibLog
from trio_ledger_plugin.money.journal import JOBS_AT_ONCE, Journal
from trio_ledger_plugin.money.turns import BACKGROUND, SHARED_SECONDS, Turns
from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.runtime.plugin_log import PluginLog
from trio_ledger_plugin.runtime.timers import Timers
from trio_ledger_plugin.stores import open_sqlite_store


class Desk:
    """Takes turns for jobs that each end when the test says so."""

    def __init__(self, limit, share=100):
        self.turns = Turns(limit, share)
        self.begun: list[str] = []
        self.scopes: dict[str, trio.CancelScope] = {}
        self._may_end: dict[str, trio.Event] = {}

    async def job(self, name):
        """Run one job of the account with the first letter of its name."""
        self._may_end[name] = trio.Event()
        with trio.CancelScope() as scope:
            self.scopes[name] = scope
            account = name if name == BACKGROUND else name[0]
            if not self.turns.take_now(account):
                await self.turns.wait(account)
            try:
                self.begun.append(name)
                await self._may_end[name].wait()
            finally:
                self.turns.give_back(account)

    async def end(self, *names):
        for name in names:
            self._may_end[name].set()
            await wait_all_tasks_blocked()


async def start(nursery, desk, *names):
    for name in names:
        nursery.start_soon(desk.job, name)
        await wait_all_tasks_blocked()


async def test_jobs_up_to_the_limit_begin_at_once():
    desk = Desk(2)
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, "a1", "a2", "a3")
        assert desk.begun == ["a1", "a2"]
        await desk.end("a2")
        assert desk.begun == ["a1", "a2", "a3"]
        await desk.end("a1", "a3")
        # Every turn was given back.
        await start(nursery, desk, "b1", "b2", "b3")
        assert desk.begun[3:] == ["b1", "b2"]
        nursery.cancel_scope.cancel()


async def test_accounts_take_turns_whatever_their_queues():
    """An account with a thousand payments would otherwise make one with a single payment wait for all of them."""
    desk = Desk(1)
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, "a1", "a2", "a3", "a4", "b1", "b2", "c1")
        order: list[str] = []
        while len(order) < 7:
            order.append(desk.begun[-1])
            await desk.end(desk.begun[-1])
        assert order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]
        # A new job of an account that has just had a turn comes after the others, not after their queues.
        await start(nursery, desk, "a5", "a6", "b3")
        await desk.end("a5")
        await start(nursery, desk, "c2")
        await desk.end("a6", "b3")
        assert desk.begun[7:] == ["a5", "a6", "b3", "c2"]
        await desk.end("c2")


async def test_account_that_is_not_alone_has_a_share(mock_clock):
    """One that fills every commit would make another one wait for two of them, instead of for two short ones."""
    desk = Desk(8, share=2)
    busy = [f"a{number}" for number in range(20)]
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, *busy)
        # It is alone, and its jobs share a commit.
        assert desk.begun == busy[:8]
        await start(nursery, desk, "b1")
        await desk.end("a0")
        assert desk.begun[8:] == ["b1"]
        await desk.end(*busy[1:7], "b1")
        assert desk.begun[9:] == ["a8"]
        # Another one finds room at once.
        await start(nursery, desk, "b2", "c1")
        assert desk.begun[10:] == ["b2", "c1"]
        await desk.end("b2", "c1")
        mock_clock.jump(SHARED_SECONDS)
        # Alone again, it has every place.
        await desk.end("a7")
        assert sorted(desk.begun[12:]) == sorted(busy[9:16])
        nursery.cancel_scope.cancel()


async def test_jobs_that_no_account_waits_for_leave_an_account_alone():
    desk = Desk(8, share=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.job, BACKGROUND)
        await wait_all_tasks_blocked()
        await start(nursery, desk, *(f"a{number}" for number in range(5)))
        assert len(desk.begun) == 6
        nursery.cancel_scope.cancel()


async def test_cancelled_job_that_waits_takes_no_turn():
    desk = Desk(1)
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, "a1", "a2", "b1", "b2", "c1")
        for name in ("a2", "b1", "c1"):
            desk.scopes[name].cancel()
        await wait_all_tasks_blocked()
        await desk.end("a1")
        assert desk.begun == ["a1", "b2"]
        await desk.end("b2")
        # No turn is lost: the next job begins at once, and the one after it waits.
        await start(nursery, desk, "d1", "d2")
        assert desk.begun[2:] == ["d1"]
        await desk.end("d1", "d2")
        assert desk.begun[2:] == ["d1", "d2"]


async def test_cancelled_jobs_take_no_memory_while_the_store_hangs():
    desk = Desk(1)
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, "a1", *(f"b{number}" for number in range(10)))
        for number in range(9):
            desk.scopes[f"b{number}"].cancel()
        await wait_all_tasks_blocked()
        assert [len(waiting) for waiting in desk.turns._waiting.values()] == [1]
        await desk.end("a1", "b9")
        assert desk.begun == ["a1", "b9"]


async def test_accounts_without_jobs_take_no_memory_while_the_store_hangs():
    """Anybody can have an account, and hang up again."""
    desk = Desk(1)
    accounts = "bcdefgh"
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, "a1", *(f"{account}1" for account in accounts))
        for account in accounts:
            desk.scopes[f"{account}1"].cancel()
        await wait_all_tasks_blocked()
        assert desk.turns._waiting == {}
        await start(nursery, desk, "i1")
        await desk.end("a1", "i1")
        assert desk.begun == ["a1", "i1"]


async def test_turn_given_to_a_job_that_is_cancelled_is_not_lost():
    """The job is cancelled in the moment in which it gets its turn."""
    desk = Desk(1)
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, "a1", "a2", "b1")
        desk._may_end["a1"].set()
        await trio.lowlevel.checkpoint()
        desk.scopes["a2"].cancel()
        await wait_all_tasks_blocked()
        assert desk.begun[-1] == "b1"
        await desk.end("b1")
        await start(nursery, desk, "c1", "c2")
        assert desk.begun[-1] == "c1"
        await desk.end("c1", "c2")
        assert desk.begun[-1] == "c2"


async def test_last_cancelled_job_leaves_no_turn_taken():
    desk = Desk(1)
    async with trio.open_nursery() as nursery:
        await start(nursery, desk, "a1", "a2")
        desk.scopes["a2"].cancel()
        desk.scopes["a1"].cancel()
        await wait_all_tasks_blocked()
        await start(nursery, desk, "b1", "b2")
        assert desk.begun == ["a1", "b1"]
        nursery.cancel_scope.cancel()


# At a real store.


@pytest.fixture
async def journal(tmp_path):
    async with open_sqlite_store(tmp_path / "money.db") as store:
        journal = Journal(store, PluginOptions(), PluginLog(StdlibLog(), (), Timers()))
        journal.claim()
        await journal.open()
        yield store, journal
        journal.release()


async def test_other_accounts_wait_for_a_bounded_number_of_jobs(journal):
    store, journal = journal
    done: list[str] = []

    async def run(account):
        await journal.run(account, lambda _connection: done.append(account))

    async with trio.open_nursery() as nursery, hold_thread(store):
        for _ in range(10 * JOBS_AT_ONCE):
            nursery.start_soon(run, "busy")
        await wait_all_tasks_blocked()
        for account in ("alice", "bob", BACKGROUND):
            nursery.start_soon(run, account)
        await wait_all_tasks_blocked()
    assert len(done) == 10 * JOBS_AT_ONCE + 3
    # Behind the jobs that were in the store, and among the ones admitted next.
    assert max(done.index(account) for account in ("alice", "bob", BACKGROUND)) < 2 * JOBS_AT_ONCE


async def test_token_is_looked_up_while_one_account_pays_without_end(journal):
    """No client could authenticate while one account sends as fast as the store can take it."""
    store, journal = journal
    await store.put("alice:token", "digest")
    done = 0
    over = trio.Event()

    def work(_connection):
        nonlocal done
        done += 1

    async def pay():
        while not over.is_set():
            await journal.run("busy", work)

    async with trio.open_nursery() as nursery, hold_thread(store):
        for _ in range(10 * JOBS_AT_ONCE):
            nursery.start_soon(pay)
        await wait_all_tasks_blocked()
        before = done

        async def look_up():
            nonlocal before
            assert await store.get("alice:token") == "digest"
            before = done - before
            over.set()

        nursery.start_soon(look_up)
        await wait_all_tasks_blocked()
    # Jobs that were in the store before it, or came while its result was on the way back.
    assert before <= 2 * JOBS_AT_ONCE
    assert done > before


async def test_payments_of_one_plugin_are_all_done(store):
    """More at once than there are turns; none is forgotten, and none waits for another's reply."""
    count = 3 * JOBS_AT_ONCE
    async with open_payer(store, response_timeout=30) as payer, trio.open_nursery() as nursery:
        assert isinstance(payer, Payer)
        await settle(store)
        for number in range(count):
            nursery.start_soon(lambda key: payer.send_money(1, idempotency_key=key), f"k{number}")
        await until(lambda: len(payer.sent) == count)
        for _ in range(count):
            payer.answer()
        await until(lambda: len(nursery.child_tasks) == 0)
        assert await sums(payer) == (count, 0, 0)
