"""Looks of the admin page: how often, and what callers get."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.admin import ask, get_json, leave_in_doubt, open_bank, settle

from trio_ledger_plugin import loopback_pair
from trio_ledger_plugin.admin import open_admin
from trio_ledger_plugin.admin.pace import LONGEST_REST, Looks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio.testing import MockClock


@asynccontextmanager
async def looking(look: Callable[[], Awaitable[float]]) -> AsyncIterator[Looks]:
    async with loopback_pair() as (plugin, _), trio.open_nursery() as nursery:
        looks = Looks(look, 1.0, "this test", plugin.log)
        nursery.start_soon(looks.run)
        yield looks
        nursery.cancel_scope.cancel()


class Slow:
    """Looks that take three seconds each."""

    def __init__(self) -> None:
        self.began: list[float] = []

    async def look(self) -> float:
        self.began.append(trio.current_time())
        await trio.sleep(3)
        return 3.0


async def test_who_asks_during_a_look_causes_no_other(autojump_clock):
    """The page asks again and again while the accounts are looked at, and each look would come twice."""
    slow = Slow()
    async with looking(slow.look) as looks:
        for _ in range(5):
            await looks.wait(0.03)
        await looks.wait()
        await trio.sleep(LONGEST_REST - 1)
        assert len(slow.began) == 1
        await trio.sleep(2)
        await looks.wait()
        assert len(slow.began) == 2


async def test_who_expires_a_look_under_way_gets_another(autojump_clock):
    slow = Slow()
    async with looking(slow.look) as looks:
        began = trio.current_time()
        looks.ask()
        await trio.sleep(1)
        looks.expire()
        await looks.wait()
        assert [each - began for each in slow.began] == [0, 3]
        assert trio.current_time() - began == 6


async def test_look_is_good_enough_however_late_its_callers_run(mock_clock: MockClock):
    """In a server under so much load that a turn takes a second, each turn would have a look, and no answer."""
    count = 0

    async def look() -> float:
        nonlocal count
        count += 1
        await trio.lowlevel.checkpoint()
        return 0.0

    async def wait(looks: Looks) -> None:
        await looks.wait()
        mock_clock.jump(2)

    async with looking(look) as looks, trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(wait, looks)
    assert count == 1


async def test_failure_stays_known_during_the_next_look(autojump_clock, caplog):
    """A caller that does not wait for the next look would hear that all is well."""

    async def look() -> float:
        await trio.sleep(3)
        raise ZeroDivisionError("by this test")

    async with looking(look) as looks:
        assert await looks.wait(0.03)
        assert not await looks.wait()
        # A look that fails rests as long as any other.
        await trio.sleep(LONGEST_REST - 1)
        assert not await looks.wait(0.0)
        await trio.sleep(2)
        for _ in range(20):
            assert not await looks.wait(0.03)
        await trio.sleep(1)
    assert caplog.text.count("the admin page cannot look at this test: ZeroDivisionError('by this test')") == 1


async def test_cancelled_caller_leaves_the_look_to_others(autojump_clock):
    slow = Slow()
    async with looking(slow.look) as looks, trio.open_nursery() as nursery:
        nursery.start_soon(looks.wait)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert len(slow.began) == 1


async def test_stores_that_hang_together_delay_as_one(tmp_path, clock, caplog):
    """Two stores on one disk made /health wait for 10 seconds, and it then had no reasons."""
    async with (
        open_bank(tmp_path / "a.db", 4) as (first, disk),
        open_bank(tmp_path / "b.db", 4) as (second, other_disk),
        open_admin({"first": first, "second": second}) as admin,
    ):
        disk.may_begin = other_disk.may_begin = trio.Event()
        began = trio.current_time()
        status, _, body = await ask(admin, "/health")
        assert (status, body.count(b"the store fails or does not answer; the log says why")) == (503, 2)
        assert trio.current_time() - began == pytest.approx(5, abs=0.5)
        assert caplog.text.count("the journal did not answer the admin page in 5 s") == 2
        await trio.sleep(LONGEST_REST + 1)
        began = trio.current_time()
        assert (await ask(admin, "/metrics"))[0] == 200
        assert trio.current_time() - began == pytest.approx(5, abs=0.5)
        disk.may_begin.set()


async def test_page_is_not_healthy_before_the_store_has_answered(tmp_path, clock):
    """Who opens the page because something is wrong would see that all is well."""
    async with open_bank(tmp_path / "money.db", 4) as (server, store), open_admin({"bank": server}) as admin:
        store.may_begin = trio.Event()
        said = (await get_json(admin, "/api/overview"))["health"]
        assert said == {"status": "ok", "reasons": [], "warnings": ["bank: the store has not answered yet"]}
        store.may_begin.set()
        await ask(admin, "/health")
        assert (await get_json(admin, "/api/overview"))["health"]["warnings"] == []


async def test_journal_that_cannot_be_read_is_a_reason(tmp_path, monkeypatch, clock):
    """A fault in one plugin's journal would take the page and the metrics of all plugins away."""

    async def fail(transfers: Any) -> None:
        raise ZeroDivisionError("by this test")

    monkeypatch.setattr("trio_ledger_plugin.admin.money._read", fail)
    async with (
        open_bank(tmp_path / "money.db", 4) as (server, _),
        loopback_pair() as (plugin, _),
        open_admin({"well": plugin, "bank": server}) as admin,
    ):
        status, _, body = await ask(admin, "/health")
        assert (status, body.count(b"bank: the store fails")) == (503, 1)
        assert (await get_json(admin, "/api/overview"))["name"] == "well"
        assert b'store_failed{plugin="bank"} 1' in (await ask(admin, "/metrics"))[2]


async def test_fault_of_what_is_watched_does_not_end_the_block(tmp_path, monkeypatch, clock, caplog):
    """A server would end because it is watched."""

    def fail(*args: Any, **more: Any) -> None:
        raise ZeroDivisionError("by this test")

    async with open_bank(tmp_path / "money.db", 4) as (server, _):
        monkeypatch.setattr(server, "counted", fail)
        monkeypatch.setattr(type(server.transfers), "walk", fail)
        async with open_admin(server) as admin:
            await trio.sleep(30)
            assert (await ask(admin, "/health"))[0] == 503
    for text in ("cannot read the statistics", "cannot count the transfers", "cannot look at the journal"):
        assert caplog.text.count(f"the admin page {text}: ZeroDivisionError(") >= 1


async def test_metrics_leave_out_accounts_that_cannot_be_seen(tmp_path, monkeypatch, clock):
    """The number of the last look that succeeded would look like today's, and no metric at all like a dead server."""

    async def fail(server: Any, stopwatch: Any) -> None:
        raise ZeroDivisionError("by this test")

    async with open_bank(tmp_path / "money.db", 4) as (server, _), open_admin(server) as admin:
        assert b"accounts_connected{" in (await ask(admin, "/metrics"))[2]
        monkeypatch.setattr("trio_ledger_plugin.admin.accounts.take_snapshots", fail)
        await trio.sleep(LONGEST_REST + 1)
        status, _, body = await ask(admin, "/metrics")
        assert (status, b"accounts_connected{" in body, b"store_failed{" in body) == (200, False, True)


async def test_settled_is_said_however_long_that_took(tmp_path, monkeypatch, clock):
    """An operator who reads of a failure settles again, or pays again."""
    async with open_bank(tmp_path / "money.db", 4) as (server, store), open_admin(server) as admin:
        await leave_in_doubt(server, 250, "key")
        confirm = type(server.transfers).confirm

        async def confirm_slowly(*args: Any, **more: Any) -> None:
            await trio.sleep(7)
            await confirm(*args, **more)
            store.may_begin = trio.Event()

        monkeypatch.setattr(type(server.transfers), "confirm", confirm_slowly)
        assert await settle(admin, "key", "applied") == (200, '{"settled":true}')
        store.may_begin.set()


async def test_settled_is_said_though_the_journal_cannot_be_read(tmp_path, monkeypatch, clock):
    async def fail(transfers: Any) -> None:
        raise ZeroDivisionError("by this test")

    async with open_bank(tmp_path / "money.db", 4) as (server, _), open_admin(server) as admin:
        await leave_in_doubt(server, 250, "key")
        monkeypatch.setattr("trio_ledger_plugin.admin.money._read", fail)
        assert await settle(admin, "key", "applied") == (200, '{"settled":true}')
