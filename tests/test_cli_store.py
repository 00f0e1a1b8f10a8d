"""The commands for stores: what they say, and that a copy has every row."""

import json
import re
from functools import partial

import pytest
from support.ledgers import open_journal
from support.old_store import fill
from support.programs import assert_one_error, run, serving

from trio_ledger_plugin.cli import main
from trio_ledger_plugin.stores import open_sqlite_store


@pytest.fixture
def url(postgres_server):
    """The URL of an empty database."""
    postgres_server.new_database()
    name = postgres_server.execute("SELECT max(oid), datname FROM pg_database GROUP BY 2 ORDER BY 1 DESC LIMIT 1")[0][1]
    return f"postgresql:///{name}?host={postgres_server.folder}&user=postgres&port={postgres_server.port}"


@pytest.fixture
async def old(tmp_path):
    async with open_sqlite_store(tmp_path / "money.db") as store:
        await store.transaction(partial(fill, rows=2000))
        await store.put("key", "value")
    return tmp_path / "money.db"


async def test_group_without_a_command_names_its_commands():
    """The error would be the whole help on one line."""
    code, out, err = await run("store")
    assert (code, out) == (2, "")
    assert err == "error: give a command: check or copy; see trio-ledger-plugin store --help\n"


async def test_file_is_checked(old):
    code, out, _ = await run("store", "check", str(old), "--json")
    found = json.loads(out)
    assert (code, found["sound"], found["integrity"], found["oldest_to_send"]) == (0, True, "ok", None)
    assert found["ledgers"]["main"]["age"] > 0
    code, out, _ = await run("store", "check", str(old))
    assert code == 0
    assert re.fullmatch(
        r"sound: yes\nintegrity: ok\noldest to send: none\noldest to deliver: none\n"
        r"ledger main: in use for \d+ s so far, journal [0-9a-f]{32}\n",
        out,
    )


async def test_ids_of_ledgers_are_shown_as_they_are(tmp_path):
    """An id is any text, and what a terminal obeys may be in it."""
    async with open_sqlite_store(tmp_path / "money.db") as store:
        for ledger_id in ("my_wallet", "a\x1b[2Jb"):
            async with open_journal(store, ledger_id=ledger_id):
                pass
    _, out, _ = await run("store", "check", str(tmp_path / "money.db"), "--json")
    assert set(json.loads(out)["ledgers"]) == {"my_wallet", "a\x1b[2Jb"}
    _, out, _ = await run("store", "check", str(tmp_path / "money.db"))
    assert "\nledger my_wallet: in use for " in out
    assert "\nledger a\\x1b[2Jb: in use for " in out


async def test_database_errors_name_options_of_the_command_line(url):
    """The user of a command cannot call open_postgres_store()."""
    code, out, err = await run("serve", "--port", "0", "--store", url)
    assert (code, out) == (1, "")
    assert_one_error(err)
    assert "open the store with --replication trusted if the storage itself replicates" in err
    assert "or with --replication none if" in err
    store = ("--store", url, "--replication", "none")
    async with serving(*store) as server:
        await server.wait_for("(try it)")
        code, out, err = await run("serve", "--port", "0", *store)
        assert (code, out) == (2, "")
        assert_one_error(err)
        assert err.endswith("in this database; end that one first, or let 'serve --standby' wait for it\n")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "--standby needs --store with the URL of a PostgreSQL database"),
        (["--store", "file.db"], "--standby needs --store with the URL of a PostgreSQL database"),
        (
            ["--http", "--store", "postgresql:///ledger"],
            "--standby is for BTP: over HTTP there is no ledger to wait for",
        ),
    ],
)
def test_standby_without_a_shared_ledger_is_a_mistake(args, text, capsys):
    """It would be explained in terms of Python, or not at all."""
    for more in ([], ["--accounts"]):
        assert main(["serve", "--standby", *more, *args]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert_one_error(err)
        assert text in err


async def test_store_is_copied_exactly_and_only_once(old, url):
    code, out, err = await run("store", "copy", str(old), url, "--replication", "none")
    assert (code, err) == (0, ""), err
    assert "2003 rows were copied" in out
    before = await run("transfers", str(old), "--json")
    after = await run("transfers", url, "--json")
    assert json.loads(before[1]) == json.loads(after[1])
    code, _, err = await run("store", "copy", str(old), url, "--replication", "none")
    assert code == 1
    assert_one_error(err)
    assert "not empty" in err
    code, out, _ = await run("store", "check", url, "--json")
    assert (code, json.loads(out)["synchronous_standby_names"]) == (0, "")


async def test_database_that_cannot_be_reached_is_one_error():
    code, _, err = await run("transfers", "postgresql://user:canary7f3a@127.0.0.1:1/none")
    assert code != 0
    assert_one_error(err)


async def test_transfers_of_an_empty_database_are_none(url):
    code, _, err = await run("transfers", url)
    assert (code, err) == (1, "error: there are no transfers in this store\n")
