"""``transfers``: without it an operator could neither see nor settle transfers in doubt."""

import json
import re
import signal
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone

import pytest
import trio
from support.admin import leave_in_doubt, open_bank
from support.ledgers import PEER_OFFER
from support.programs import CANARY, assert_one_error, posix, run, serving

from trio_ledger_plugin import (
    MoneyLevel,
    PluginServices,
    RemoteError,
    Transfer,
    TransferInDoubtError,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.loopback import LoopbackOptions
from trio_ledger_plugin.money.room import Room
from trio_ledger_plugin.money.sql import SqlJournal
from trio_ledger_plugin.money.tables import COMPONENT, STEPS
from trio_ledger_plugin.negotiation import PeerJournal
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.stores.schema import migrate

# Each test starts programs.
pytestmark = pytest.mark.slow

HEADER = ["created", "(UTC)", "dir", "state", "amount", "level", "key"]


async def take(_amount):
    """Take the money."""


@pytest.fixture
async def db(tmp_path):
    """An open store with one transfer of each kind: acknowledged, rejected, in doubt, received."""
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store, trio.open_nursery() as nursery:
        mine = LoopbackOptions(name="cli", response_timeout=0.2, accept_money="journal")

        async def on_money(amount):
            if amount == "30":
                await trio.sleep_forever()
            if amount == "20":
                raise ValueError("no")

        other = LoopbackOptions(name="cli", close_timeout=0.1)
        async with (
            open_plugin(other, money_handler=on_money, nursery=nursery) as peer,
            open_plugin(mine, PluginServices(store=store), nursery=nursery) as plugin,
        ):
            await plugin.send_money(10, idempotency_key="fine")
            with pytest.raises(RemoteError):
                await plugin.send_money(20, idempotency_key="refused")
            with pytest.raises(TransferInDoubtError):
                await plugin.send_money(30, idempotency_key="lost")
            await peer.send_money(2**64 - 1)
        yield path


async def send(store, account, *keys, level=MoneyLevel.PLAIN, amount=10, ledger="main"):
    """Enter transfers as if a plugin were sending them when it is killed."""
    journal = SqlJournal(ledger, SQLITE, room=Room(), key_retention=1e6, promised=1e6)
    peer = PeerJournal.of(PEER_OFFER) if level is MoneyLevel.KEYED else None

    def enter(connection):
        journal.open(connection, settle=False)
        for key in keys:
            transfer = Transfer(str(amount), account, key=key, level=level)
            journal.outgoing.begin(connection, transfer, peer, plain_allowed=True)

    await store.transaction(enter)


@pytest.fixture
async def accounts(tmp_path):
    """The store of a server with three accounts, one of which has a name that could forge lines."""
    path = tmp_path / "server.db"
    async with open_sqlite_store(path) as store:
        await send(store, "alice", "a1", "a2", level=MoneyLevel.KEYED)
        await send(store, "bob", "b1", "\x1b[2J\n")
        await send(store, "eve\n\u202efdp", "e1")
        await send(store, "", "w1", ledger="wallet")
    return path


async def failed(code, db, *args):
    """Run the command, which fails; return its error."""
    got, out, err = await run("transfers", str(db), *args)
    assert (got, out) == (code, "")
    assert_one_error(err)
    return err


async def listed(db, *args):
    code, out, err = await run("transfers", str(db), "--json", *args)
    assert (code, err) == (0, "")
    return json.loads(out)


async def test_transfers_of_an_open_store_with_exact_totals(db):
    told = await listed(db)
    assert told["totals"] == {"sent": "10", "received": "18446744073709551615", "in_doubt": "30"}
    rows = [(row["key"], row["direction"], row["state"], row["amount"]) for row in told["transfers"]]
    assert rows[:3] == [
        ("fine", "out", "acked", "10"),
        ("refused", "out", "rejected", "20"),
        ("lost", "out", "in_doubt", "30"),
    ]
    assert rows[3][1:] == ("in", "applied", "18446744073709551615")
    assert {row["level"] for row in told["transfers"]} == {MoneyLevel.PLAIN.value}
    assert "F00" in told["transfers"][1]["error"]


async def test_lines_are_between_a_header_and_the_totals(db):
    code, out, err = await run("transfers", str(db))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 6
    assert lines[0].split() == HEADER
    assert "in_doubt" in lines[3]
    assert lines[3].endswith("plain  lost")
    assert {line.index("plain  ") for line in lines[1:4]} == {lines[0].index("level")}
    assert lines[-1] == "sent 10, received 18446744073709551615, in doubt 30"


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (("--state", "in_doubt"), ["lost"]),
        (("--direction", "out", "--state", "acked"), ["fine"]),
        (("--account", ""), None),
        (("--limit", "2"), ["fine", "refused"]),
        (("--limit", "1", "--state", "in_doubt"), ["lost"]),
        (("--since", "2020-02-20"), None),
        (("--since", "2999-01-01"), []),
    ],
)
async def test_options_narrow_the_list(db, args, keys):
    everything = await listed(db)
    told = await listed(db, *args)
    assert [row["key"] for row in told["transfers"]] == (
        [row["key"] for row in everything["transfers"]] if keys is None else keys
    )
    assert told["totals"] == everything["totals"]


async def test_since_is_a_time_in_utc_as_the_lines_show_it(db):
    created = datetime.fromisoformat((await listed(db, "--limit", "1"))["transfers"][0]["created"])
    _, out, _ = await run("transfers", str(db), "--limit", "1", TZ="America/New_York")
    [shown] = re.findall(r"^\d{4}\S+ \S+Z", out, re.MULTILINE)
    assert datetime.fromisoformat(shown) == created.replace(microsecond=0)
    later = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%S")
    elsewhere = created.astimezone(timezone(timedelta(hours=2))).isoformat()
    for since, number in ((shown, 4), (shown[:-1], 4), (created.isoformat(), 4), (elsewhere, 4), (later, 0)):
        _, out, _ = await run("transfers", str(db), "--since", since, TZ="America/New_York")
        assert len(out.splitlines()) == number + 2, since
    said = await failed(2, db, "--since", "yesterday")
    assert "'--since': it is a time such as 2026-11-29 or '2026-11-29 08:47:22', in UTC" in said


async def test_long_journal_is_listed_completely_and_in_order(tmp_path):
    keys = [f"key {number:04}" for number in range(1200)]
    async with open_sqlite_store(tmp_path / "long.db") as store:
        await send(store, "alice", *keys[:700])
        await send(store, "bob", "another")
        await send(store, "alice", *keys[700:])
    told = await listed(tmp_path / "long.db", "--account", "alice")
    assert [row["key"] for row in told["transfers"]] == keys
    assert told["totals"]["in_doubt"] == "12000"
    told = await listed(tmp_path / "long.db", "--limit", "501", "--direction", "out")
    assert len(told["transfers"]) == 501
    _, out, _ = await run("transfers", str(tmp_path / "long.db"), "--json")
    # A row is written as soon as it is read.
    assert len(out.splitlines()) == 1202


async def test_totals_of_each_account(accounts):
    told = await listed(accounts, "--totals")
    assert told["totals"] == {"sent": "0", "received": "0", "in_doubt": "50"}
    assert [(row["account"], row["level"], row["in_doubt"]) for row in told["accounts"]] == [
        ("alice", "keyed", "20"),
        ("bob", "plain", "20"),
        ("eve\n\u202efdp", "plain", "10"),
    ]
    code, out, err = await run("transfers", str(accounts), "--totals")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split() for line in (lines[0], lines[2])] == [
        ["account", "level", "sent", "received", "in", "doubt"],
        ["bob", "plain", "0", "0", "20"],
    ]
    assert lines[-1] == "sent 0, received 0, in doubt 50"


async def test_totals_of_one_account(accounts):
    told = await listed(accounts, "--totals", "--account", "bob")
    assert told["totals"] == {"sent": "0", "received": "0", "in_doubt": "20"}
    assert [row["account"] for row in told["accounts"]] == ["bob"]


async def test_names_and_keys_cannot_forge_lines(accounts):
    for args in ((), ("--totals",)):
        _, out, _ = await run("transfers", str(accounts), *args)
        assert r"eve\n\u202efdp" in out
        assert not set(out) & set("\x1b\u202e")
    assert len((await run("transfers", str(accounts)))[1].splitlines()) == 7
    assert r"eve\n\u202efdp" in await failed(2, accounts, "--account", "nobody")
    assert (await run("transfers", str(accounts), "--account", "bob", "--reject", "\x1b[2J\n"))[:2] == (
        0,
        r"transfer '\x1b[2J\n' is rejected" + "\n",
    )


async def test_unknown_ledger_or_account_lists_what_there_is(accounts):
    assert "--ledger takes one of: 'main', 'wallet'" in await failed(2, accounts, "--ledger", "mine")
    assert "--account takes one of: 'alice', 'bob', " in await failed(2, accounts, "--account", "Alice")
    assert "none that has a name" in await failed(2, accounts, "--ledger", "wallet", "--account", "alice")
    for action in (("--totals",), ("--confirm", "b1"), ("--reset-level",)):
        assert "no account 'Alice'" in await failed(2, accounts, "--account", "Alice", *action)
    assert len((await listed(accounts, "--ledger", "wallet"))["transfers"]) == 1


async def test_store_of_a_newer_version_is_one_error(tmp_path):
    path = tmp_path / "newer.db"
    async with open_sqlite_store(path) as store, loopback_pair(PluginServices(store=store)) as (first, second):
        second.register_money_handler(take)
        await first.send_money(1)
        await store.transaction(lambda connection: connection.execute("UPDATE lpi_schema SET version = 99").rowcount)
    for args in ((), ("--confirm", "key")):
        assert "a newer version of trio_ledger_plugin made them" in await failed(1, path, *args)


async def test_store_of_an_earlier_version_must_be_opened_once(tmp_path):
    path = tmp_path / "earlier.db"
    async with open_sqlite_store(path) as store:
        await store.transaction(lambda connection: migrate(connection, COMPONENT, STEPS[:1]))
        await store.transaction(lambda connection: connection.execute("INSERT INTO lpi_ledgers VALUES ('main', 5)"))
    for args in ((), ("--confirm", "key"), ("--totals",)):
        assert "open the file once with a program that uses this version" in await failed(1, path, *args)
    async with (
        open_sqlite_store(path) as store,
        open_plugin(LoopbackOptions(name="cli")),
        open_plugin(LoopbackOptions(name="cli"), PluginServices(store=store)),
    ):
        pass
    assert await listed(path) == {"totals": {"sent": "0", "received": "0", "in_doubt": "0"}, "transfers": []}


async def test_listing_leaves_no_file_behind(doubt):
    before = sorted(doubt.parent.iterdir())
    for args in ((), ("--totals",)):
        assert (await listed(doubt, *args))["totals"]["in_doubt"] == "30"
    assert sorted(doubt.parent.iterdir()) == before


async def test_settling_is_refused_while_the_store_is_open(db):
    assert "in use" in await failed(1, db, "--confirm", "lost")
    assert (await listed(db))["totals"]["in_doubt"] == "30"


@pytest.fixture
async def doubt(tmp_path):
    """The store of a program that has ended, with one transfer in doubt."""
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store, trio.open_nursery() as nursery:

        async def on_money(_amount):
            await trio.sleep_forever()

        other = LoopbackOptions(name="cli", close_timeout=0.1)
        mine = LoopbackOptions(name="cli", response_timeout=0.05)
        async with (
            open_plugin(other, money_handler=on_money, nursery=nursery),
            open_plugin(mine, PluginServices(store=store), nursery=nursery) as plugin,
        ):
            with pytest.raises(TransferInDoubtError):
                await plugin.send_money(30, idempotency_key="lost")
    return path


SETTLED = pytest.mark.parametrize(
    ("action", "state", "sent"), [("--confirm", "acked", "30"), ("--reject", "rejected", "0")]
)


@SETTLED
async def test_transfer_in_doubt_is_settled_once(doubt, action, state, sent):
    code, out, err = await run("transfers", str(doubt), action, "lost")
    assert (code, err) == (0, "")
    assert "lost" in out
    told = await listed(doubt)
    assert told["totals"] == {"sent": sent, "received": "0", "in_doubt": "0"}
    assert [row["state"] for row in told["transfers"]] == [state]
    for again in ("--confirm", "--reject"):
        assert f"'lost' is {state} already; nothing was changed" in await failed(1, doubt, again, "lost")
    assert await listed(doubt) == told


@SETTLED
async def test_transfer_that_is_sent_again_can_be_settled(tmp_path, action, state, sent):
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store:
        await send(store, "", "stuck", level=MoneyLevel.KEYED, amount=30)
    assert (await listed(path))["transfers"][0]["state"] == "sent"
    code, out, _ = await run("transfers", str(path), "--json", action, "stuck")
    assert code == 0
    assert list(json.loads(out)) == ["done"]
    told = await listed(path)
    assert told["totals"] == {"sent": sent, "received": "0", "in_doubt": "0"}
    assert told["transfers"][0]["state"] == state
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM lpi_to_send").fetchone() == (0,)


@pytest.mark.parametrize(
    ("args", "right"),
    [
        (("--confirm", "b2", "--account", "bob"), "no transfer was sent under the key 'b2'; nothing was changed"),
        (("--reject", "b1"), "each with its account"),
        (("--confirm", ""), "no transfer was sent under the key ''"),
        (("--reset-level", "--account", "bob"), "account 'bob' is not at KEYED; nothing was changed"),
        (("--reset-level",), "--account names one of a server's accounts"),
    ],
)
async def test_action_that_changes_nothing_fails(accounts, args, right):
    told = await listed(accounts)
    assert right in await failed(1, accounts, *args)
    assert right in await failed(1, accounts, *args, "--json")
    assert (await listed(accounts))["totals"] == told["totals"]


async def test_reset_level_puts_open_transfers_in_doubt(accounts):
    assert (await run("transfers", str(accounts), "--account", "alice", "--reset-level"))[0] == 0
    told = await listed(accounts, "--account", "alice")
    assert {row["state"] for row in told["transfers"]} == {"in_doubt"}
    assert told["totals"]["in_doubt"] == "20"
    assert (await listed(accounts, "--totals", "--account", "alice"))["accounts"][0]["level"] == "plain"


async def test_keyed_account_can_be_plain_again(tmp_path):
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store, loopback_pair(PluginServices(store=store)) as (first, second):
        second.register_money_handler(take)
        await first.send_money(1)
    code, out, err = await run("transfers", str(path), "--reset-level")
    assert (code, err) == (0, "")
    assert "PLAIN" in out
    options = LoopbackOptions(name="cli")
    async with (
        open_sqlite_store(path) as store,
        open_plugin(options, money_handler=take),
        open_plugin(options, PluginServices(store=store)) as plugin,
    ):
        await plugin.send_money(2)
        assert (await plugin.transfers.totals()).sent == 3


@pytest.mark.parametrize(
    ("args", "right"),
    [
        (("--confirm", "a", "--reject", "b"), "exclude"),
        (("--confirm", "a", "--state", "acked"), "for listing"),
        (("--confirm", "a", "--limit", "1"), "for listing"),
        (("--totals", "--since", "2020-01-01"), "for listing"),
        (("--totals", "--reset-level"), "for listing"),
        (("--limit", "0"), "--limit"),
        (("--state", "lost"), "in_doubt"),
    ],
)
async def test_conflicting_transfers_options_are_refused(db, args, right):
    assert right in await failed(2, db, *args)


async def test_file_without_transfers(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to have a header of its own" * 20)
    async with open_sqlite_store(tmp_path / "empty.db"):
        pass
    for name, right in (("text", "not an SQLite database"), ("empty.db", "no transfers")):
        for args in ((), ("--totals",), ("--confirm", "key")):
            assert right in await failed(1, tmp_path / name, *args)
    await failed(2, tmp_path / "missing.db")


@posix
@pytest.mark.parametrize("mode", [(), ("--accounts", "--names", "username")])
async def test_server_with_a_store_keeps_transfers_over_a_restart(tmp_path, mode):
    path = tmp_path / "server.db"
    async with open_sqlite_store(tmp_path / "client.db") as store:
        for amount in (5, 7):
            secret = {} if mode else {"TRIO_LEDGER_PLUGIN_SECRET": CANARY}
            async with serving("--port", "0", "--store", str(path), *mode, **secret) as server:
                address = await server.wait_for(r"listening on (\S+),")
                options = {"server": address.replace("://", f"://alice:{CANARY}@")}
                async with open_plugin(options, PluginServices(store=store)) as plugin:
                    assert plugin.peer_journal() is not None
                    await plugin.send_money(amount)
                await server.wait_for(rf"received money.*: ({amount})")
                assert (await server.end(signal.SIGINT))[0] == 0
                assert CANARY not in server.output
    told = await listed(path)
    assert told["totals"] == {"sent": "0", "received": "12", "in_doubt": "0"}
    assert {row["account"] for row in told["transfers"]} == ({"alice"} if mode else {""})
    assert {row["state"] for row in told["transfers"]} == {"delivered"}


@posix
@pytest.mark.parametrize("mode", [(), ("--json",)])
async def test_serve_reports_transfers_in_doubt_with_the_command(tmp_path, mode):
    """Two lines said the same, and what to do was said in Python."""
    async with open_bank(tmp_path / "money.db") as (server, _):
        await leave_in_doubt(server, 250, "k1")
        await leave_in_doubt(server, 250, "k2")
    args = ("--accounts", "--account-mode", "username", "--store", str(tmp_path / "money.db"))
    async with serving(*args, *mode) as program:
        await program.wait_for("(2 transfers of 500 in all are in doubt)")
        await program.wait_for("(transfers_in_doubt)" if mode else "(--reject KEY)")
        assert (await program.end(signal.SIGINT))[0] == 0
    assert program.output.count("are in doubt") == 1
    advice = (
        "find out what the peer has applied, and settle it on the page of --admin or, once the server has ended, with "
        "'trio-ledger-plugin transfers STORE --confirm KEY' or '--reject KEY'"
    )
    assert f"2 transfers of 500 in all are in doubt: {advice}" in program.output
    assert program.output.count('"event": "transfers_in_doubt", "count": 2, "amount": "500"') == len(mode)
