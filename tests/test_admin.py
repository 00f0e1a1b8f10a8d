"""The admin page's data: health, accounts, money, metrics, and how often they are looked at."""

from __future__ import annotations

import itertools
import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import fields
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.accounts import enter, open_accounts, options
from support.admin import ask, get_accounts, get_json, leave_in_doubt, open_bank, request, settle
from support.http import dial, read_response
from support.pages import ROOT
from support.peers import TOKEN, open_btp
from support.ports import free_port, has_ipv6

from trio_ledger_plugin import (
    BtpOptions,
    InsufficientBalanceError,
    InvalidFieldsError,
    ListenerOptions,
    PluginServices,
    RemoteError,
    TransferState,
    UnreachableError,
    loopback_pair,
)
from trio_ledger_plugin.accounts.looking import take_snapshots
from trio_ledger_plugin.admin import Admin, open_admin
from trio_ledger_plugin.admin.meter import BOUNDS, MOST_CODES, ReplyMeter, quantile
from trio_ledger_plugin.admin.metrics import METRICS, PREFIX
from trio_ledger_plugin.admin.pace import LONGEST_REST, PAGE_SECONDS, REST, Cached, rest_after
from trio_ledger_plugin.admin.watched import Watched
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.statistics import Statistics
from trio_ledger_plugin.stores import MemoryStore, open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import echo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_ledger_plugin import LedgerPlugin
    from trio_ledger_plugin.accounts.account import AccountSnapshot
    from trio_ledger_plugin.accounts.looking import Stopwatch


# Opening and closing.


async def test_error_of_the_block_is_raised_as_itself():
    async with loopback_pair() as (plugin, _):
        with pytest.raises(KeyError, match="own"):
            async with open_admin(plugin):
                raise KeyError("own")
        async with open_admin(plugin):
            pass


async def test_port_in_use_is_an_oserror():
    async with loopback_pair() as (plugin, other), open_admin(plugin) as admin:
        port = int(admin.address.rstrip("/").rpartition(":")[2])
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
            async with open_admin(other, port=port):
                pytest.fail("opened")
        async with open_admin(other, port=free_port()):
            pass


async def test_cancelled_block_closes_the_port():
    async with loopback_pair() as (plugin, _):
        with trio.move_on_after(5) as scope:
            async with open_admin(plugin) as admin:
                scope.cancel()
                await trio.sleep_forever()
        with pytest.raises(OSError, match="all attempts"):
            await dial(admin.address)


async def test_end_of_the_block_closes_open_connections():
    """A browser that was not closed would hold the program's files open."""
    async with loopback_pair() as (plugin, _):
        async with open_admin(plugin) as admin:
            streams = [await dial(admin.address) for _ in range(3)]
            await streams[0].send_all(request("/health"))
            await read_response(streams[0])
        for stream in streams:
            with suppress(trio.BrokenResourceError):
                assert await stream.receive_some(1) == b""
            await stream.aclose()


async def test_arguments_are_checked():
    async with loopback_pair() as (plugin, _):
        for wrong, error, text in (
            ({"plugins": []}, InvalidFieldsError, "plugins: empty"),
            ({"plugins": ["x"]}, TypeError, "plugins are LedgerPlugins"),
            ({"plugins": {"x": 7}}, TypeError, "plugins are LedgerPlugins"),
            ({"plugins": plugin, "port": -1}, InvalidFieldsError, "port"),
            ({"plugins": plugin, "token": "two words"}, InvalidFieldsError, "token: "),
        ):
            with pytest.raises(error, match=text):
                async with open_admin(**wrong):
                    pytest.fail("opened")
        with pytest.raises(RuntimeError, match="watched already"):
            async with open_admin([plugin, plugin]):
                pytest.fail("opened")


async def test_page_at_every_address_needs_a_token():
    async with loopback_pair() as (plugin, _):
        everywhere: tuple[Any, ...] = ("*", None)
        for host in everywhere:
            with pytest.raises(InvalidFieldsError, match="token: missing"):
                async with open_admin(plugin, host):
                    pytest.fail("opened")
        async with open_admin(plugin, "*", token="a-token") as admin:
            assert admin.address.startswith("http://localhost:")
        if await has_ipv6():
            async with open_admin(plugin, "[::1]") as admin:
                assert admin.address.startswith("http://[::1]:")


async def test_plugins_have_the_names_that_were_given():
    async with loopback_pair() as (alice, bob):
        async with open_admin({"the shop": alice, "the bank": bob}) as admin:
            assert (await get_json(admin, "/api/overview?plugin=1"))["name"] == "the bank"
        async with open_admin([alice, bob]) as admin:
            assert (await get_json(admin, "/api/overview"))["plugins"] == ["loopback", "loopback 2"]


# Health.


async def health(admin: Admin) -> tuple[int, dict[str, Any]]:
    status, _, body = await ask(admin, "/health")
    return status, json.loads(body)


async def test_health_follows_the_connection():
    async with loopback_pair() as (alice, bob), open_admin({"alice": alice}) as admin:
        assert await health(admin) == (200, {"status": "ok", "reasons": [], "warnings": []})
        await bob.disconnect()
        assert await health(admin) == (503, {"status": "failing", "reasons": ["alice: not connected"], "warnings": []})
        await bob.connect()
        assert (await health(admin))[0] == 200
        await alice.aclose()
        assert (await health(admin))[1]["reasons"] == ["alice: the plugin is closed; open a new one"]


async def test_failed_plugin_stays_on_the_page_with_its_reason():
    """The page would vanish at the moment when it is needed."""
    async with open_accounts() as server:
        bob = server.account("bob")
        async with open_admin({"bob": bob}) as admin:
            bob.fail(ConnectionError("the ledger is gone"))
            status, said = await health(admin)
            assert status == 503
            assert "the ledger is gone" in said["reasons"][0]
            events = (await get_json(admin, "/api/overview"))["events"]
            assert [event["text"] for event in events] == ["failed: the ledger is gone"]


async def test_listener_without_its_client_is_healthy():
    """A supervisor would restart the server again and again, since no client has connected yet."""
    listener = BtpOptions(listener=ListenerOptions(port=0, secret=TOKEN))
    async with open_btp(listener) as server, open_admin({"mine": server}) as admin:
        assert await health(admin) == (
            200,
            {"status": "ok", "reasons": [], "warnings": ["mine: no client is connected"]},
        )


async def test_doubts_are_a_warning_and_a_failing_store_a_reason(tmp_path, clock):
    async with open_bank(tmp_path / "money.db", 4) as (server, store), open_admin({"bank": server}) as admin:
        await leave_in_doubt(server, 250)
        await trio.sleep(2)
        assert await health(admin) == (
            200,
            {"status": "ok", "reasons": [], "warnings": ["bank: 1 transfer is in doubt"]},
        )
        store.refuses = True
        await trio.sleep(11)
        status, said = await health(admin)
        assert (status, said["reasons"]) == (503, ["bank: the store fails or does not answer; the log says why"])
        store.refuses = False
        await trio.sleep(11)
        assert (await health(admin))[0] == 200


async def test_slow_store_with_much_to_read_has_not_failed(tmp_path, monkeypatch, clock):
    """A thousand pages of transfers in doubt take a healthy store longer than it may take for one answer."""
    async with open_bank(tmp_path / "money.db", 4) as (server, store), open_admin({"bank": server}) as admin:
        await leave_in_doubt(server, 250)
        transaction = store.transaction

        async def slow_transaction(work: Any) -> Any:
            await trio.sleep(2)
            return await transaction(work)

        monkeypatch.setattr(store, "transaction", slow_transaction)
        await trio.sleep(61)
        began = trio.current_time()
        assert (await health(admin))[1]["warnings"] == ["bank: 1 transfer is in doubt"]
        assert trio.current_time() - began > 5
        monkeypatch.undo()


async def test_store_that_hangs_delays_one_answer(tmp_path, clock):
    """A hanging disk would make the page hang, which is needed most then."""
    async with open_bank(tmp_path / "money.db", 4) as (server, store), open_admin(server) as admin:
        store.may_begin = trio.Event()
        began = trio.current_time()
        assert (await health(admin))[0] == 503
        assert trio.current_time() - began == pytest.approx(5, abs=0.3)
        began = trio.current_time()
        assert (await health(admin))[0] == 503
        assert (await get_json(admin, "/api/overview"))["has_journal"]
        assert trio.current_time() - began < 0.3
        store.may_begin.set()


async def test_two_questions_at_once_both_get_the_truth(tmp_path):
    """While one look was under way, the store of a healthy server counted as failed for whoever else asked."""
    async with open_bank(tmp_path / "money.db", 4) as (server, store), open_admin(server) as admin:
        store.may_begin = trio.Event()
        said: list[int] = []

        async def look() -> None:
            said.append((await health(admin))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(look)
            await trio.sleep(0.2)
            assert said == []
            store.may_begin.set()
        assert said == [200, 200, 200]


async def test_page_does_not_wait_for_the_store(tmp_path, clock):
    async with open_bank(tmp_path / "money.db", 4) as (server, store), open_admin(server) as admin:
        assert (await get_json(admin, "/api/overview"))["money"]["sent"] == "0"
        store.may_begin = trio.Event()
        await trio.sleep(61)
        began = trio.current_time()
        assert (await get_json(admin, "/api/overview"))["money"]["failed"] is False
        assert (await get_json(admin, "/api/doubts"))["total"] == 0
        assert trio.current_time() - began < 0.3
        await trio.sleep(6)
        overview = await get_json(admin, "/api/overview")
        assert overview["money"]["failed"] is True
        assert overview["health"]["status"] == "failing"
        store.may_begin.set()


async def test_failed_look_fails_its_answers_alone(monkeypatch, caplog, clock):
    """The server, which is only watched, would end with the page."""

    async def fail(server: Any, stopwatch: Stopwatch) -> list[AccountSnapshot]:
        raise ZeroDivisionError("by this test")

    async with open_accounts() as server, open_admin(server) as admin:
        with monkeypatch.context() as patch:
            patch.setattr("trio_ledger_plugin.admin.accounts.take_snapshots", fail)
            for _ in range(2):
                status, _, body = await ask(admin, "/api/accounts")
                assert (status, body) == (500, b"the answer failed; the log says why")
        assert "ZeroDivisionError('by this test')" in caplog.text
        assert (await health(admin))[0] == 200
        await trio.sleep(2)
        assert (await get_accounts(admin))["total"] == 0


# Accounts.


async def test_accounts_are_searched_sorted_and_paged():
    async with open_accounts(options(generateAccount=False), store=MemoryStore(), data_handler=echo) as server:
        names = [f"shop{number:02}" for number in range(7)] + ["Alice", "bob"]
        peers = [await enter(server, name, f"token of {name}") for name in names]
        for number, peer in enumerate(peers):
            for _ in range(number):
                await peer.send_request(7, b"hello")
                await peer.receive_packet()
        async with open_admin(server) as admin:

            async def page(query: str) -> tuple[list[str], int, int, int]:
                answer = await get_accounts(admin, query)
                assert answer["total"] == 9
                rows = [row["name"] for row in answer["rows"]]
                return rows, answer["found"], answer["page"], answer["pages"]

            assert await page("") == (["Alice", "bob", *names[:7]], 9, 0, 1)
            assert await page("order=desc") == ([*names[6::-1], "bob", "Alice"], 9, 0, 1)
            assert await page("search=LIC") == (["Alice"], 1, 0, 1)
            assert await page("search=nothing") == ([], 0, 0, 1)
            assert await page("sort=requests_received&order=desc&rows=2") == (["bob", "Alice"], 9, 0, 5)
            assert await page("sort=requests_received&rows=4&page=1") == ([*names[4:7], "Alice"], 9, 1, 3)
            assert await page("rows=4&page=99") == ([names[6]], 9, 2, 3)
            assert await page("rows=0&page=x&sort=unknown") == (["Alice"], 9, 0, 9)
            assert len((await page("rows=100000"))[0]) == 9
            for sort in ("connected", "connections", "rate", "requests_sent", "bytes_received", "in_use", "refused"):
                assert len((await page(f"sort={sort}"))[0]) == 9
        for peer in peers:
            await peer.aclose()


async def test_row_has_what_the_account_has_done():
    async with open_accounts(data_handler=echo) as server, open_admin(server) as admin:
        peer = await enter(server)
        for _ in range(3):
            await peer.send_request(7, b"hello")
            await peer.receive_packet()
        (row,) = (await get_accounts(admin))["rows"]
        (account,) = server.accounts()
        assert row.pop("rate") > 0
        assert row == {
            "name": account.name,
            "connected": 0,
            "connections": 1,
            "requests_received": 3,
            "requests_sent": 0,
            "bytes_received": account.bytes_received,
            "bytes_sent": account.bytes_sent,
            "in_use": 0,
            "refused": 0,
        }
        events = (await get_json(admin, "/api/overview"))["events"]
        assert [(event["kind"], event["text"]) for event in events] == [
            ("AccountConnected", f"{account.name} connected")
        ]
        await peer.aclose()


async def test_page_does_not_wait_for_all_accounts(monkeypatch, autojump_clock):
    """The first answer about ten thousand accounts came after the server had looked at all of them."""
    monkeypatch.setattr("trio_ledger_plugin.admin.accounts.take_snapshots", take_seconds)
    async with open_accounts() as server, open_admin(server) as admin:
        began = trio.current_time()
        answer = await get_json(admin, "/api/accounts")
        assert (answer["age"], answer["total"], answer["rows"]) == (None, 0, [])
        assert trio.current_time() - began == pytest.approx(PAGE_SECONDS)
        # What wants the number of accounts, and not the page, waits for it.
        assert "ledger_plugin_accounts_connected" in (await ask(admin, "/metrics"))[2].decode()
        assert trio.current_time() - began == pytest.approx(3)
        assert (await get_json(admin, "/api/accounts"))["age"] == 0


async def take_seconds(server: Any, stopwatch: Stopwatch) -> list[AccountSnapshot]:
    await trio.sleep(3)
    return await take_snapshots(server, stopwatch)


# Money.


async def test_transfers_in_doubt_are_listed_and_settled(tmp_path, caplog):
    caplog.set_level("INFO")
    async with open_bank(tmp_path / "money.db") as (server, _), open_admin(server) as admin:
        await leave_in_doubt(server, 250, "the first")
        await leave_in_doubt(server, 2**64 - 1, "the second")
        doubts = await get_json(admin, "/api/doubts")
        assert doubts["total"] == 2
        assert [(row["account"], row["key"], row["amount"], row["level"]) for row in doubts["rows"]] == [
            ("bob", "the first", "250", "plain"),
            ("bob", "the second", str(2**64 - 1), "plain"),
        ]
        assert await settle(admin, "the first", "applied") == (200, '{"settled":true}')
        assert await settle(admin, "the second", "not applied") == (200, '{"settled":true}')
        money = (await get_json(admin, "/api/overview"))["money"]
        assert (money["sent"], money["received"], money["unsettled"], money["doubts"]) == ("250", "0", "0", 0)
        states = {entry.key: entry.state async for entry in server.transfers.walk()}
        assert states == {"the first": TransferState.ACKED, "the second": TransferState.REJECTED}
    assert "the transfer the first of account bob was settled on the admin page as applied" in caplog.text


async def test_transfer_that_cannot_be_settled_is_refused(tmp_path):
    async with open_bank(tmp_path / "money.db") as (server, store), open_admin(server) as admin:
        await leave_in_doubt(server, 250, "key")
        assert (await settle(admin, "unknown", "applied"))[0] == 404
        assert (await settle(admin, "key", "applied", account="carol"))[0] == 404
        assert (await settle(admin, "key", "perhaps"))[0] == 400
        assert (await settle(admin, "key", "applied", plugin="1"))[0] == 404
        store.refuses = True
        assert await settle(admin, "key", "applied") == (503, "the disk is full")
        store.refuses = False
        assert (await settle(admin, "key", "applied"))[0] == 200
        assert await settle(admin, "key", "not applied") == (
            409,
            "transfer 'key' is acked already; nothing was changed",
        )
        assert (await server.transfers.totals()).sent == 250


async def test_plugin_without_a_journal_has_no_money():
    async with loopback_pair() as (alice, _), open_admin(alice) as admin:
        overview = await get_json(admin, "/api/overview")
        assert (overview["has_journal"], overview["money"]) == (False, None)
        assert await get_json(admin, "/api/doubts") == {"total": 0, "page": 0, "pages": 1, "rows": []}
        assert (await settle(admin, "key", "applied", account=""))[0] == 409


async def test_plugin_with_one_peer_is_settled_without_an_account(tmp_path):
    async with (
        open_sqlite_store(tmp_path / "money.db") as store,
        loopback_pair(PluginServices(store=store)) as (alice, _),
        open_admin(alice) as admin,
    ):
        assert (await settle(admin, "key", "applied", account=""))[0] == 404
        assert (await get_json(admin, "/api/overview"))["has_journal"]


async def test_transfers_are_counted_by_state(tmp_path, clock):
    async with open_bank(tmp_path / "money.db", 4) as (server, _), open_admin(server) as admin:
        for number in range(3):
            await leave_in_doubt(server, 10, f"key {number}")
        await settle(admin, "key 1", "applied")
        await trio.sleep(11)
        assert (await get_json(admin, "/api/overview"))["money"]["states"] == {"out in_doubt": 2, "out acked": 1}


# Metrics.


async def metrics(admin: Admin) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the values by the names of the metrics and by their labels: the plugin, and others in their order."""
    status, head, body = await ask(admin, "/metrics")
    assert status == 200
    assert "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n" in head
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = sorted(sample.labels.items(), key=lambda label: (label[0] != "plugin", label[0]))
            values.setdefault(sample.name, {})[tuple(value for _, value in labels)] = sample.value
    return values


async def test_metrics_have_the_statistics(clock):
    async with loopback_pair() as (alice, bob), open_admin({"a": alice, "b": bob}) as admin:
        bob.register_data_handler(echo)
        for _ in range(20):
            await alice.send_data(b"hello")
        # However long the first look took.
        await trio.sleep(LONGEST_REST + 1)
        found = await metrics(admin)
        assert found["ledger_plugin_requests_sent_total"] == {("a",): 20, ("b",): 0}
        assert found["ledger_plugin_responses_sent_total"] == {("a",): 0, ("b",): 20}
        assert found["ledger_plugin_connected"] == {("a",): 1, ("b",): 1}
        assert found["ledger_plugin_usable"] == {("a",): 1, ("b",): 1}
        names = {name.removeprefix(PREFIX).removesuffix("_total") for name in found}
        assert {each.name for each in fields(Statistics)} <= names
        # So few that all are timed.
        durations = found["ledger_plugin_request_duration_seconds_count"]
        assert durations == {("a", "handled"): 0, ("a", "answered"): 20, ("b", "handled"): 20, ("b", "answered"): 0}


async def test_errors_are_counted_by_code():
    async def choosy(data: bytes) -> bytes:
        if data == b"poor":
            raise InsufficientBalanceError("no")
        return data

    reject = ilp.encode(ilp.Reject("F02", "example.bob", "no route"))
    long_reject = ilp.encode(ilp.Reject("T04", "example.bob", "x" * 300))
    async with loopback_pair() as (alice, bob), open_admin({"a": alice, "b": bob}) as admin:
        bob.register_data_handler(choosy)
        for data in (b"", b"poor", reject, reject, long_reject, b"\x0e", b"\x0e\x03bad", b"\x0e\xff"):
            if data == b"poor":
                with pytest.raises(RemoteError):
                    await alice.send_data(data)
            else:
                await alice.send_data(data)
        expected = {"F08": 1, "F02": 2, "T04": 1, "other": 3}
        assert (await get_json(admin, "/api/overview?plugin=1"))["errors"] == {"handled": expected, "answered": {}}
        found = (await metrics(admin))["ledger_plugin_errors_total"]
        assert found == {
            (name, code, direction): number
            for name, direction in (("a", "answered"), ("b", "handled"))
            for code, number in expected.items()
        }


async def test_metrics_have_the_money(tmp_path, clock):
    async with open_bank(tmp_path / "money.db", 4) as (server, _), open_admin({"bank": server}) as admin:
        await leave_in_doubt(server, 250, "key")
        await leave_in_doubt(server, 100)
        assert (await settle(admin, "key", "applied"))[0] == 200
        await trio.sleep(11)
        found = await metrics(admin)
        assert found["ledger_plugin_money_total"] == {("bank", "out"): 250, ("bank", "in"): 0}
        assert found["ledger_plugin_money_unsettled"] == {("bank",): 100}
        assert found["ledger_plugin_transfers_in_doubt"] == {("bank",): 1}
        assert found["ledger_plugin_transfers"] == {("bank", "out", "acked"): 1, ("bank", "out", "in_doubt"): 1}
        assert found["ledger_plugin_oldest_doubt_seconds"]["bank",] >= 0
        assert found["ledger_plugin_store_failed"] == {("bank",): 0}
        assert found["ledger_plugin_store_latency_seconds"]["bank",] >= 0
        assert found["ledger_plugin_accounts_connected"] == {("bank",): 1}
        assert found["ledger_plugin_watched_seconds"]["bank",] > 10
        assert found["ledger_plugin_budget_used_ratio"]["bank", "handlers_running"] == 0
        assert found["process_start_time_seconds"]


async def test_labels_are_escaped():
    """A name with a quote and a line break could forge other metrics."""
    name = 'x"} 1\nforged{y="\\'
    async with loopback_pair() as (alice, _), open_admin({name: alice}) as admin:
        found = await metrics(admin)
        assert found["ledger_plugin_connected"] == {(name,): 1}
        assert "forged" not in found


def rows_of_the_documentation() -> Iterator[tuple[str, str]]:
    page = (ROOT / "docs" / "how-to" / "watch.md").read_text()
    for line in page.splitlines():
        if found := re.match(rf"\| `({PREFIX}\w+)` \| (\w+) \| (.*) \|", line):
            yield found[1], found[2]


async def test_documentation_has_a_row_for_each_metric():
    """An operator would set an alert for a metric that is not there."""
    rows = list(rows_of_the_documentation())
    assert sorted(rows) == sorted((family.shown_name, family.kind) for family in METRICS)


# What it costs.


def test_frequent_requests_are_timed_in_part_and_all_errors_count(autojump_clock):
    """Timing each request would cost a busy server more than all else that the page does."""

    class Counting(ReplyMeter):
        calls = 0

        def count(self, began: float, reply: Any) -> None:
            self.calls += 1
            super().count(began, reply)

    async def main() -> None:
        numbers = itertools.count()

        async def answer(_: bytes) -> bytes:
            number = next(numbers)
            if number % 10 == 1:
                raise UnreachableError("no")
            return b"\x0e\x03F02" if number % 10 == 0 else b"\x0d"

        async def ask(plugin: LedgerPlugin, times: int, seconds: float) -> int:
            """Send requests at regular times, and return how many were timed."""
            before = sum(watched.handled.counts)
            for _ in range(times):
                with suppress(RemoteError):
                    await plugin.send_data(b"")
                await trio.sleep(seconds)
            return sum(watched.handled.counts) - before

        async with loopback_pair() as (alice, bob), trio.open_nursery() as nursery:
            bob.register_data_handler(answer)
            watched = Watched("bob", bob)
            watched.handled = meter = Counting()
            with watched.watching():
                nursery.start_soon(watched.time_requests)
                assert await ask(alice, 500, 0.01) == 500
                await ask(alice, 1000, 0.001)
                meter.calls = 0
                timed = await ask(alice, 8000, 0.001)
                assert 400 < timed < 600
                # The errors, which are a fifth, and what is timed.
                assert meter.calls < 1600 + timed
                assert watched.handled.errors == {"F02": 950, "T00": 950}
                await trio.sleep(2)
                assert await ask(alice, 50, 0.1) == 50
                nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)


def test_meter_keeps_how_long_requests_took(autojump_clock):
    async def main() -> None:
        meter = ReplyMeter()
        for _ in range(3):
            meter.count(trio.current_time() - 0.002, b"\x0d")
        meter.is_timing = False
        meter.count(trio.current_time() - 0.002, b"\x0e\x03F02")
        assert meter.counts[BOUNDS.index(0.0025)] == sum(meter.counts) == 3
        assert meter.seconds == pytest.approx(0.006)
        assert meter.errors == {"F02": 1}

    trio.run(main, clock=autojump_clock)


def test_peer_cannot_make_more_codes_than_are_kept():
    """A peer that sends a new code with each error would fill the memory, and the metrics."""

    async def main() -> None:
        meter = ReplyMeter()
        for number in range(1000):
            meter.count(0.0, RemoteError(f"X{number:03}", "name"))
        meter.count(0.0, RemoteError('F"0', "name"))
        assert len(meter.errors) == MOST_CODES + 1
        assert meter.errors["other"] == 1001 - MOST_CODES

    trio.run(main)


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ({}, 0.5, None),
        ({0: 1}, 0.5, 0.00025),
        ({0: 1, 1: 1}, 0.5, 0.0005),
        ({2: 4}, 0.5, 0.00175),
        ({0: 99, 14: 1}, 0.99, 0.0005),
        ({15: 1}, 0.5, 30.0),
    ],
)
def test_quantile_is_within_its_bucket(counts, share, seconds):
    histogram = [counts.get(number, 0) for number in range(len(BOUNDS) + 1)]
    assert quantile(histogram, share) == (None if seconds is None else pytest.approx(seconds))


async def test_value_is_computed_again_after_a_rest(clock):
    computed = []

    def compute() -> int:
        computed.append(trio.current_time())
        return len(computed)

    cached = Cached(compute, 2.0)
    assert [cached.get() for _ in range(3)] == [1, 1, 1]
    await trio.sleep(1.9)
    assert cached.get() == 1
    await trio.sleep(0.2)
    assert cached.get() == 2


def test_rest_grows_with_what_a_look_costs():
    assert rest_after(0.0, 1.0) == 1.0
    assert rest_after(0.1, 1.0) == 0.1 * REST
    assert rest_after(10.0, 1.0) == LONGEST_REST
    assert rest_after(10.0, 90.0) == 90.0


async def test_points_have_rates_and_durations(clock):
    async with loopback_pair() as (alice, bob), open_admin({"b": bob}) as admin:
        bob.register_data_handler(echo)
        await trio.sleep(2.1)
        for _ in range(100):
            await alice.send_data(b"hello")
        await trio.sleep(4.5)
        points = (await get_json(admin, "/api/overview"))["points"]
        assert len(points) == 3
        received = [point[1] for point in points]
        assert received == pytest.approx([0, 50, 0], abs=1)
        assert [point[4] is None for point in points] == [True, False, True]
