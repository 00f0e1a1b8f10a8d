"""``transfers``: without it an operator could neither see nor settle transfers in doubt."""

import json
import signal

import pytest
import trio
from support.programs import CANARY, assert_one_error, posix, run, serving

from trio_ledger_plugin import (
    MoneyLevel,
    PluginServices,
    RemoteError,
    TransferInDoubtError,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.loopback import LoopbackOptions
from trio_ledger_plugin.stores import open_sqlite_store

# Programs, each of which starts anew.
pytestmark = pytest.mark.slow


@pytest.fixture
async def db(tmp_path):
    """A store with one transfer of each kind: acknowledged, rejected, in doubt, received."""
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store, trio.open_nursery() as nursery:
        mine = LoopbackOptions(name="cli", response_timeout=0.2)

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


async def test_plain_lines_end_with_the_totals(db):
    code, out, err = await run("transfers", str(db))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 5
    assert "in_doubt" in lines[2]
    assert lines[2].endswith("plain  lost")
    assert lines[-1] == "sent 10, received 18446744073709551615, in doubt 30"


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (("--state", "in_doubt"), ["lost"]),
        (("--direction", "out", "--state", "acked"), ["fine"]),
        (("--account", "nobody"), []),
    ],
)
async def test_options_narrow_the_list(db, args, keys):
    assert [row["key"] for row in (await listed(db, *args))["transfers"]] == keys


async def test_store_of_a_newer_version_is_one_error(tmp_path):
    path = tmp_path / "newer.db"
    async with open_sqlite_store(path) as store, loopback_pair(PluginServices(store=store)) as (first, _):
        await first.send_money(1)
        await store.transaction(lambda connection: connection.execute("UPDATE lpi_schema SET version = 99").rowcount)
    for args in ((), ("--confirm", "key")):
        code, out, err = await run("transfers", str(path), *args)
        assert (code, out) == (1, "")
        assert_one_error(err)
        assert "a newer version of trio_ledger_plugin made them" in err


async def test_listing_leaves_no_file_behind(doubt):
    before = sorted(doubt.parent.iterdir())
    assert (await listed(doubt))["totals"]["in_doubt"] == "30"
    assert sorted(doubt.parent.iterdir()) == before


async def test_settling_is_refused_while_the_store_is_open(db):
    code, out, err = await run("transfers", str(db), "--confirm", "lost")
    assert (code, out) == (1, "")
    assert_one_error(err)
    assert "in use" in err
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


@pytest.mark.parametrize(("action", "state", "sent"), [("--confirm", "acked", "30"), ("--reject", "rejected", "0")])
async def test_transfer_in_doubt_is_settled_once(doubt, action, state, sent):
    for _ in range(2):
        code, out, err = await run("transfers", str(doubt), action, "lost")
        assert (code, err) == (0, "")
        assert "lost" in out
    told = await listed(doubt)
    assert told["totals"] == {"sent": sent, "received": "0", "in_doubt": "0"}
    assert [row["state"] for row in told["transfers"]] == [state]
    other = "--reject" if action == "--confirm" else "--confirm"
    code, _, err = await run("transfers", str(doubt), other, "lost")
    assert code == 1
    assert f"is {state}" in err


async def test_keyed_account_can_be_plain_again(tmp_path):
    path = tmp_path / "wallet.db"
    async with open_sqlite_store(path) as store, loopback_pair(PluginServices(store=store)) as (first, _):
        await first.send_money(1)
    code, out, err = await run("transfers", str(path), "--reset-level")
    assert (code, err) == (0, "")
    assert "PLAIN" in out
    async with open_sqlite_store(path) as store, trio.open_nursery() as nursery:

        async def on_money(_amount):
            pass

        options = LoopbackOptions(name="cli")
        async with (
            open_plugin(options, money_handler=on_money, nursery=nursery),
            open_plugin(options, PluginServices(store=store), nursery=nursery) as plugin,
        ):
            await plugin.send_money(2)
            assert (await plugin.transfers.totals()).sent == 3


@pytest.mark.parametrize(
    ("args", "right"),
    [
        (("--confirm", "a", "--reject", "b"), "exclude"),
        (("--confirm", "a", "--state", "acked"), "for listing"),
        (("--state", "lost"), "in_doubt"),
    ],
)
async def test_conflicting_transfers_options_are_refused(db, args, right):
    code, out, err = await run("transfers", str(db), *args)
    assert (code, out) == (2, "")
    assert_one_error(err)
    assert right in err


async def test_file_without_transfers(tmp_path):
    (tmp_path / "text").write_text("no database, but long enough to have a header of its own" * 20)
    async with open_sqlite_store(tmp_path / "empty.db"):
        pass
    for name, right in (("text", "not an SQLite database"), ("empty.db", "no transfers")):
        code, out, err = await run("transfers", str(tmp_path / name))
        assert (code, out) == (1, "")
        assert_one_error(err)
        assert right in err
    code, _, err = await run("transfers", str(tmp_path / "missing.db"))
    assert code == 2
    assert_one_error(err)


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
                    assert plugin.peer_retention() is not None
                    await plugin.send_money(amount)
                await server.wait_for(rf"received money.*: ({amount})")
                assert (await server.end(signal.SIGINT))[0] == 0
                assert CANARY not in server.output
    told = await listed(path)
    assert told["totals"] == {"sent": "0", "received": "12", "in_doubt": "0"}
    assert {row["account"] for row in told["transfers"]} == ({"alice"} if mode else {""})
    assert {row["state"] for row in told["transfers"]} == {"delivered"}
