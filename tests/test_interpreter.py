"""A busy loop pauses for the threads of a store, which could not get the interpreter's lock otherwise."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import trio

from trio_ledger_plugin.stores import interpreter, open_sqlite_store
from trio_ledger_plugin.stores.interpreter import PATIENCE, WORK, LockSharing, Pauses

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


def turn(clock: _Clock, sharing: LockSharing, seconds: float, each: float = 0.0001) -> int:
    """Have a busy loop turn for so long; return how often it paused."""
    before, ends = clock.pauses, clock.now + seconds
    while clock.now < ends:
        clock.now += each
        sharing.before_io_wait(0)
    return clock.pauses - before


def test_loop_pauses_for_a_job_that_takes_long(clock: _Clock) -> None:
    sharing = LockSharing(Pauses())
    assert turn(clock, sharing, 0.1) == 0
    sharing.begin_job()
    assert turn(clock, sharing, PATIENCE - 0.0002) == 0
    assert 5 <= turn(clock, sharing, 10 * WORK) <= 10
    sharing.end_jobs(1)
    assert turn(clock, sharing, 0.1) == 0


def test_each_end_of_jobs_is_progress(clock: _Clock) -> None:
    """A store that works is one whose thread gets the lock."""
    sharing = LockSharing(Pauses())
    for _ in range(3):
        sharing.begin_job()
    for _ in range(2):
        assert turn(clock, sharing, PATIENCE - 0.0002) == 0
        sharing.end_jobs(1)
    assert turn(clock, sharing, 2 * PATIENCE) > 0


def test_database_that_hangs_hardly_slows_the_loop(clock: _Clock) -> None:
    sharing = LockSharing(Pauses())
    sharing.begin_job()
    turn(clock, sharing, 1.0)
    # One in a tenth of the second that it has taken already, and then ever fewer.
    assert turn(clock, sharing, 1.0) <= 10
    assert turn(clock, sharing, 60.0) <= 50


def test_many_stores_share_the_pauses(clock: _Clock) -> None:
    """A loop that pauses for each of fifty slow disks in turn would do nothing else."""
    pauses = Pauses()
    stores = [LockSharing(pauses) for _ in range(50)]
    for sharing in stores:
        sharing.begin_job()
    clock.now += 2 * PATIENCE
    before, turns = clock.pauses, 1000
    for _ in range(turns):
        clock.now += WORK / 10
        for sharing in stores:
            sharing.before_io_wait(0)
    assert 0 < clock.pauses - before <= turns / 10 + 1


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


async def test_closed_store_leaves_the_loop_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[float] = []
    monkeypatch.setattr(LockSharing, "before_io_wait", lambda _, timeout: called.append(timeout))
    async with open_sqlite_store(tmp_path / "ledger.db"):
        await trio.sleep(0.001)
    assert called
    called.clear()
    await trio.sleep(0.001)
    assert not called
