"""A long history slows nothing down: what reads or changes all of it works in short transactions."""

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, cast

import pytest
import trio
from support.ledgers import HeldStore, open_journal, settle, states
from support.old_store import make_old_store

from trio_ledger_plugin.money.history import START
from trio_ledger_plugin.money.turns import BACKGROUND
from trio_ledger_plugin.stores import open_sqlite_store

if TYPE_CHECKING:
    from trio_ledger_plugin.money.journaled import JournaledMoney

pytestmark = pytest.mark.slow

ROWS = 200_000
OVER = 50_000
# How much of the processor's time one transaction may take: others wait for it, and for the disk.
SECONDS = 0.025


class TimedStore(HeldStore):
    """A store that measures the processor's time of each transaction."""

    longest = 0.0

    async def transaction(self, work):
        def timed(connection):
            assert threading.current_thread() is not threading.main_thread()
            began = time.thread_time()
            try:
                return work(connection)
            finally:
                self.longest = max(self.longest, time.thread_time() - began)

        return await super().transaction(timed)


@pytest.fixture(scope="module")
def long_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "money.db"
    trio.run(partial(make_old_store, path, ROWS, over=OVER))
    return path


async def test_opening_takes_no_longer_than_with_an_empty_journal(long_path):
    began = time.perf_counter()
    async with open_sqlite_store(long_path) as store, open_journal(store):
        assert time.perf_counter() - began < 1


async def test_no_transaction_of_a_walk_a_listing_or_the_totals_is_long(long_path):
    async with open_sqlite_store(long_path) as inner:
        store = TimedStore(inner)
        async with open_journal(store) as plugin:
            await settle(store)
            store.longest = 0.0
            entries = 0
            async for _ in plugin.transfers.walk():
                entries += 1
            totals = await plugin.transfers.totals()
            assert entries in (ROWS, ROWS - OVER)
            assert (totals.sent, totals.received) == (7 * ROWS // 2, 7 * ROWS // 2)
            assert 0 < store.longest < SECONDS


async def test_no_transaction_that_forgets_is_long(tmp_path):
    path = tmp_path / "money.db"
    await make_old_store(path, OVER, over=OVER)
    async with open_sqlite_store(path) as inner:
        store = TimedStore(inner)
        async with open_journal(store) as plugin:
            journal = cast("JournaledMoney", plugin.money).journal
            after: tuple[float, int] | None = START
            while after is not None:
                after = await journal.run(BACKGROUND, journal.sql.history.forget, after)
            assert await states(plugin) == {}
            assert 0 < store.longest < SECONDS
