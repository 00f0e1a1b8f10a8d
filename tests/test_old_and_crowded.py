"""Money at a server as it is after months: a long history, a crowd, a reader, a wrong clock, and a restored copy.

Each of these has hidden faults that the others did not show. Here are all at once: 1,000,000 remembered transfers and
an age of eight days, 150 connections of one account that ask as fast as they can, a program that reads the store and
holds its snapshot, and a system clock that steps by weeks in both directions while transfers are under way.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.accounts import open_accounts, options
from support.ledgers import DAY
from support.old_store import make_old_store
from support.peers import Peer, dial

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing import ScriptError
from trio_ledger_plugin.testing.conformance.assertions import echo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_ledger_plugin.btp.accounts import AccountsPlugin

pytestmark = pytest.mark.slow

ROWS = 1_000_000
CROWD = 150
PAYMENTS = 100
AT_ONCE = 20
# The median time of a transfer; beside the crowd, on a machine that has other things to do as well.
SECONDS = 1.0


@pytest.fixture(scope="module")
def old_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("old") / "server.db"
    trio.run(partial(make_old_store, path, ROWS, account="another"))
    return path


@pytest.fixture
def stepping_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system's clock step with each reading, from three weeks back to six ahead."""
    random = Random(14)

    def read() -> float:
        return time.time() + random.choice([-20, -1, 0, 1, 40]) * DAY

    patched = 0
    for name, module in tuple(sys.modules.items()):
        if name.startswith("trio_ledger_plugin.money") and callable(getattr(module, "time", None)):
            monkeypatch.setattr(module, "time", read)
            patched += 1
    assert patched == 3, "the journal reads the time in these modules"


class Crowd:
    """150 clients of one account, which connect again when they are sent away."""

    def __init__(self, server: AccountsPlugin) -> None:
        self._server = server
        self.refused = 0
        self.answered = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(CROWD):
                nursery.start_soon(self._come_again)

    async def _come_again(self) -> None:
        while True:
            # A connection that another one has replaced.
            with suppress(ScriptError, trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                peer = await dial(self._server.address)
                try:
                    await self._ask(peer)
                finally:
                    with trio.move_on_after(0.1, shield=True):
                        await peer.aclose()
            await trio.sleep(0.05)

    async def _ask(self, peer: Peer) -> None:
        if not isinstance(await peer.authenticate("crowd", account="crowd"), btp.Response):
            self.refused += 1
            return
        for number in count(2):
            await peer.send_request(number, b"?")
            await peer.receive_packet()
            self.answered += 1


@asynccontextmanager
async def open_server(path: Path, received: list[int]) -> AsyncIterator[AccountsPlugin]:
    async def take(amount: str) -> None:
        received.append(int(amount))

    how: dict[str, Any] = {"data_handler": echo, "money_handler": take}
    async with open_sqlite_store(path) as store, open_accounts(options(), store=store, **how) as server:
        yield server


@asynccontextmanager
async def open_payer(path: Path, server: AccountsPlugin) -> AsyncIterator[Any]:
    url = server.address.replace("//", "//payer:sesame@")
    async with open_sqlite_store(path) as store, open_plugin({"server": url}, PluginServices(store=store)) as payer:
        yield payer


async def pay(payer: Any, amounts: range) -> list[float]:
    """Send a transfer of each amount, some at once, and return how long each took."""
    left, seconds = iter(amounts), list[float]()

    async def lane() -> None:
        for amount in left:
            began = trio.current_time()
            await payer.send_money(amount, idempotency_key=f"bill {amount}")
            seconds.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(lane)
    return sorted(seconds)


async def wait_until(condition: Any, seconds: float = 30.0) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 (a log sets no event)
            await trio.sleep(0.02)


def copy_of(path: Path, to: Path) -> None:
    """Make a backup while the store is open, as an operator does."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def restore(copy: Path, path: Path) -> None:
    """Put a backup in a store's place, as the documentation says."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm", f"{path.name}.lock"):
        path.with_name(name).unlink(missing_ok=True)
    shutil.copy(copy, path)


async def test_each_bill_is_paid_once_and_what_a_copy_lost_is_found(
    old_file: Path, tmp_path: Path, stepping_clock: None, caplog: pytest.LogCaptureFixture
) -> None:
    path, payers, copy = tmp_path / "server.db", tmp_path / "payer.db", tmp_path / "copy.db"
    shutil.copy(old_file, path)
    first, last = range(1, PAYMENTS + 1), range(PAYMENTS + 1, PAYMENTS + 11)
    received: list[int] = []
    with closing(sqlite3.connect(path)) as reader:
        async with open_server(path, received) as server, open_payer(payers, server) as payer:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM lpi_transfers").fetchone()[0] == ROWS
            crowd = Crowd(server)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(crowd.run)
                await wait_until(lambda: crowd.answered > CROWD and crowd.refused)
                assert max(each.connections for each in server.accounts() if each.name == "crowd") == 16
                seconds = await pay(payer, first)
                assert seconds[len(seconds) // 2] < SECONDS
                # Each bill again, under its key: nothing is paid.
                await pay(payer, first)
                await trio.to_thread.run_sync(copy_of, path, copy)
                await pay(payer, last)
                nursery.cancel_scope.cancel()
            await wait_until(lambda: len(received) == PAYMENTS + len(last))
            totals = await payer.transfers.totals()
            assert (totals.sent, totals.in_doubt) == (sum(first) + sum(last), 0)
    assert sorted(received) == [*first, *last]
    restore(copy, path)
    caplog.clear()
    async with open_server(path, received) as server, open_payer(payers, server) as payer:
        await wait_until(lambda: "this journal is an old copy" in caplog.text)
        await wait_until(lambda: "its journal is an old copy" in caplog.text)
        assert any(f"'bill {amount}'" in caplog.text for amount in last), "the lost transfers are named"
        # What the copy knows is not paid again, nor is what it has lost: the payer has its acknowledgement.
        await pay(payer, range(1, PAYMENTS + 11))
        await pay(payer, range(1_000, 1_010))
        await wait_until(lambda: len(received) == PAYMENTS + len(last) + 10)
    assert sorted(received) == [*first, *last, *range(1_000, 1_010)]
