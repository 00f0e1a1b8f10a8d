"""A busy loop pauses for the threads of a store, which could not get the interpreter's lock otherwise."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.ledgers import until
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin.stores import interpreter, open_sqlite_store, worker
from trio_ledger_plugin.stores.interpreter import IDLE_TURNS, PATIENCE, WORK, Pauses, StoreJobs

if TYPE_CHECKING:
    from pathlib import Path


class _Clock:
    """Stands for the module ``time``: time passes only when the test says so."""

    def __init__(self) -> None:
        self.now: float = 1000.0
        self.pauses: int = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(interpreter, "time", clock)
    return clock


def turn(clock: _Clock, pauses: Pauses, seconds: float, each: float = 0.0001) -> int:
    """Have a busy loop turn for so long; return how often it paused."""
    before, ends = clock.pauses, clock.now + seconds
    while clock.now < ends:
        clock.now += each
        pauses.before_io_wait(0)
    return clock.pauses - before


async def test_loop_pauses_for_a_job_that_takes_long(clock: _Clock) -> None:
    pauses = Pauses()
    jobs = StoreJobs(pauses)
    jobs.begin()
    assert turn(clock, pauses, PATIENCE - 0.0002) == 0
    assert 5 <= turn(clock, pauses, 10 * WORK) <= 10
    jobs.end(1)
    assert turn(clock, pauses, 0.05) == 0


async def test_each_end_of_jobs_is_progress(clock: _Clock) -> None:
    """A store that works is one whose thread gets the lock."""
    pauses = Pauses()
    jobs = StoreJobs(pauses)
    for _ in range(3):
        jobs.begin()
    for _ in range(2):
        assert turn(clock, pauses, PATIENCE - 0.0002) == 0
        jobs.end(1)
    assert turn(clock, pauses, 2 * PATIENCE) > 0


async def test_jobs_that_follow_one_another_are_waited_for_as_well(clock: _Clock) -> None:
    pauses = Pauses()
    jobs = StoreJobs(pauses)
    jobs.begin()
    paused = 0
    for _ in range(20):
        jobs.begin()
        paused += turn(clock, pauses, PATIENCE / 4)
    assert paused >= 5


async def test_database_that_hangs_hardly_slows_the_loop(clock: _Clock) -> None:
    pauses = Pauses()
    StoreJobs(pauses).begin()
    turn(clock, pauses, 1.0)
    # One in a tenth of the second that it has taken already, and then ever fewer.
    assert turn(clock, pauses, 1.0) <= 10
    assert turn(clock, pauses, 60.0) <= 50


async def test_many_stores_share_the_pauses(clock: _Clock) -> None:
    """A loop that pauses for each of fifty slow disks in turn would do nothing else."""
    pauses = Pauses()
    stores = [StoreJobs(pauses) for _ in range(50)]
    for jobs in stores:
        jobs.begin()
        # They are due at different times.
        turn(clock, pauses, 0.0001)
    assert 5 <= turn(clock, pauses, 10 * WORK) <= 10
    # All of them hang. Then one hangs no longer, and is not taken for one that does.
    turn(clock, pauses, 1.0)
    assert turn(clock, pauses, 60.0) <= 100
    stores[0].end(1)
    stores[0].begin()
    assert 5 <= turn(clock, pauses, PATIENCE + 10 * WORK) <= 11


async def test_pause_for_one_store_brings_none_forward(clock: _Clock) -> None:
    pauses = Pauses()
    slow, other = StoreJobs(pauses), StoreJobs(pauses)
    slow.begin()
    turn(clock, pauses, PATIENCE)
    other.begin()
    due = other.due
    assert turn(clock, pauses, WORK) > 0
    assert other.due >= due


async def test_loop_without_jobs_is_left_alone(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being called takes 1 us in each turn."""
    called = 0
    inner = Pauses.before_io_wait

    def count(pauses: Pauses, timeout: float) -> None:
        nonlocal called
        called += 1
        inner(pauses, timeout)

    monkeypatch.setattr(Pauses, "before_io_wait", count)
    jobs = StoreJobs(Pauses())
    for _ in range(2):
        jobs.begin()
        jobs.end(1)
        called = 0
        for _ in range(2 * IDLE_TURNS):
            await trio.lowlevel.checkpoint()
        assert called == IDLE_TURNS


async def test_busy_loop_pauses_while_a_transaction_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = 0

    class Counting:
        monotonic = staticmethod(time.monotonic)

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal pauses
            pauses += 1
            time.sleep(seconds)

    async def be_busy() -> None:
        while True:
            os.getppid()
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(interpreter, "time", Counting)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_busy)
        async with open_sqlite_store(tmp_path / "ledger.db") as store:

            def take_long(_: Any) -> None:
                time.sleep(0.05)

            async def give_up() -> None:
                with trio.move_on_after(0.01):
                    await store.transaction(take_long)

            await store.transaction(take_long)
            assert pauses >= 3
            # A job whose callers have given up counts no longer.
            async with trio.open_nursery() as callers:
                callers.start_soon(store.transaction, take_long)
                await trio.sleep(0.01)
                callers.start_soon(give_up)
                callers.start_soon(give_up)
            await trio.sleep(0.05)
            before = pauses
            await trio.sleep(0.05)
            assert pauses == before
        nursery.cancel_scope.cancel()


async def test_closed_store_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk may hang for longer than a store waits at its end."""
    monkeypatch.setattr(worker, "CLOSING", 0.05)
    pauses, over = interpreter.current_pauses(), threading.Event()
    try:
        with trio.move_on_after(0.1) as scope:
            async with (
                open_sqlite_store(tmp_path / "ledger.db") as store,
                open_sqlite_store(tmp_path / "b.db") as other,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(store.transaction, lambda _: over.wait(10))
                nursery.start_soon(other.transaction, lambda _: over.wait(10))
                await wait_all_tasks_blocked()
                assert len(pauses._waiting) == 2
        assert scope.cancelled_caught
        assert not pauses._waiting
    finally:
        over.set()
    await until(lambda: not any(".db" in thread.name for thread in threading.enumerate()))
    assert not pauses._waiting
