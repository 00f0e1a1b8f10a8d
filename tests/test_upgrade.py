"""A store that an earlier version wrote: opening it keeps every transfer, every total and every key.

``support/store_1.sql`` has transfers in every state, sent and received, at KEYED and at PLAIN.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from support.accounts import enter, open_accounts
from support.journals import KEYED, PLAIN, connect, new_journal, read_pages, rows_of
from support.ledgers import Handler, HeldStore, open_payer, settle, states, sums, until

from trio_ledger_plugin import (
    DuplicateIdError,
    MoneyLevelError,
    NotAcceptedError,
    RemoteError,
    Totals,
    TransferInDoubtError,
    TransfersInDoubt,
    current_transfer,
)
from trio_ledger_plugin.errors import wire_error
from trio_ledger_plugin.money.tables import COMPONENT, STEPS
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.schema import VALUES, migrate
from trio_ledger_plugin.transfer import Transfer, TransferDirection, TransferState

DUMP = (Path(__file__).parent / "support" / "store_1.sql").read_text(encoding="utf-8")
LEDGERS = ("idle", "main", "wallet")
ACCOUNTS = {"main": ("alice", "bob", "carol", "dave"), "wallet": ("",)}
MONTH = 30 * 24 * 3600.0
MOST = 2**64 - 1
# What the earlier version said about this store.
TOTALS = {
    ("main", "alice"): Totals(2 * MOST, 2 * MOST + 12, 7),
    ("main", "bob"): Totals(40, 240, 110),
    ("main", "carol"): Totals(0, 0, 100),
    ("main", "dave"): Totals(0, 0, 200),
    ("wallet", ""): Totals(4000, 7000, 11_000),
}
LEVELS = {"alice": KEYED, "bob": PLAIN, "carol": KEYED, "dave": PLAIN, "": KEYED}
WAITING = {"a waits": MOST, "0f4b1a3e-6f0a-4c53-9f0e-0f5a6b2b8d02": 80, "a waits as well": 7}


@pytest.fixture
def earlier():
    """A connection to the store as the earlier version left it."""
    with closing(connect()) as connection:
        connection.executescript(DUMP)
        yield connection


@pytest.fixture
def upgraded(earlier):
    """The store after its first opening by this version; nothing has happened in it yet."""
    journal_in(earlier, "main")
    return earlier


def journal_in(connection, ledger, *, settle=False):
    journal = new_journal(lambda: 0.0, ledger)
    connection.execute("BEGIN")
    journal.open(connection, settle=settle)
    connection.execute("COMMIT")
    return journal


def old_transfers():
    """Return the rows of the earlier version, by number."""
    with closing(connect()) as connection:
        connection.executescript(DUMP)
        connection.row_factory = sqlite3.Row
        return {row["id"]: dict(row) for row in connection.execute("SELECT * FROM lpi_transfers")}


def new_transfers(connection):
    cursor = connection.execute("SELECT * FROM lpi_transfers")
    names = [column[0] for column in cursor.description]
    return {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}


def test_dump_has_transfers_of_every_kind():
    kinds = {(row["direction"], row["level"], row["state"]) for row in old_transfers().values()}
    received = {("in", level, state) for level in ("keyed", "plain") for state in ("applied", "delivered")}
    sent = {
        ("out", level, state) for level in ("keyed", "plain") for state in ("sent", "in_doubt", "acked", "rejected")
    }
    assert kinds == sent | received | {("in", "keyed", "refused")}
    assert str(Path.home()) not in DUMP


def test_every_transfer_keeps_what_it_was(upgraded):
    old, new = old_transfers(), new_transfers(upgraded)
    # Received at PLAIN and finished: no peer has a key for it.
    gone = {
        number
        for number, row in old.items()
        if (row["direction"], row["level"]) == ("in", "plain") and row["state"] != "applied"
    }
    assert len(gone) == 2
    assert new.keys() == old.keys() - gone
    for number, row in new.items():
        before = {name: old[number][name] for name in row.keys() & old[number].keys() - {"resend_until"}}
        if before["state"] == "sent":
            before["state"] = "in_doubt"
        assert {name: row[name] for name in before} == before
        assert (row["origin"], row["peer_journal"], row["resend_until"]) == ("", None, None)
        assert row["keep_for"] == (MONTH if row["direction"] == "in" else MONTH * 7 / 30)
        is_open = row["state"] in ("sent", "in_doubt")
        assert row["forget_at"] == (None if is_open else old[number]["remembered_from"] + row["keep_for"])


def test_queues_have_what_waits_for_a_handler_and_nothing_else(upgraded):
    assert upgraded.execute("SELECT * FROM lpi_to_send").fetchall() == []
    waiting = [
        (row["id"], row["ledger"], row["account"], 0.0, 0)
        for row in new_transfers(upgraded).values()
        if row["state"] == "applied"
    ]
    assert len(waiting) == 4
    assert upgraded.execute("SELECT * FROM lpi_to_deliver ORDER BY id").fetchall() == waiting


def test_totals_and_levels_are_those_of_before(upgraded):
    for ledger, names in ACCOUNTS.items():
        history = journal_in(upgraded, ledger).history
        accounts = {each.account: each for each in history.accounts(upgraded, None)}
        assert set(accounts) == set(names)
        for name in names:
            assert history.totals(upgraded, name) == accounts[name].totals == TOTALS[ledger, name]
            assert accounts[name].level is LEVELS[name]


def test_ledgers_keep_their_ages_and_get_ids(upgraded):
    found = dict(upgraded.execute("SELECT ledger, age FROM lpi_ledgers").fetchall())
    # The wallet's was never recorded; its last transfer has one.
    assert found == {"idle": 10.0, "main": 430.0, "wallet": 160.0}
    ids = [journal for (journal,) in upgraded.execute("SELECT journal FROM lpi_ledgers")]
    assert len(set(ids)) == 3
    assert {len(each) for each in ids} == {32}
    assert {journal_in(upgraded, ledger).id for ledger in LEDGERS} == set(ids)


def test_number_of_kept_keys_is_counted_again(upgraded):
    found = upgraded.execute("SELECT account, keys_kept FROM lpi_accounts WHERE ledger = 'main'").fetchall()
    assert found == [("alice", 5), ("bob", 1), ("carol", 0), ("dave", 0)]


def test_upgraded_tables_are_those_of_a_new_store(upgraded):
    """Statements and their plans would otherwise be tested on other tables than some stores have."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_stat%' ORDER BY name"
    with closing(connect()) as new:
        migrate(new, "values", VALUES[:1])
        journal_in(new, "main")
        assert upgraded.execute(query).fetchall() == new.execute(query).fetchall()
        versions = dict(upgraded.execute("SELECT component, version FROM lpi_schema"))
        assert versions == {"values": 1, COMPONENT: len(STEPS)}


@pytest.mark.parametrize("settle", [False, True])
def test_second_opening_changes_nothing(upgraded, settle):
    for ledger in LEDGERS:
        journal_in(upgraded, ledger, settle=settle)
    before = list(upgraded.iterdump())
    for ledger in LEDGERS:
        journal_in(upgraded, ledger, settle=settle)
    assert list(upgraded.iterdump()) == before


def test_upgrade_is_done_wholly_or_not_at_all(earlier):
    """A program that is killed in the middle must find what it has had."""
    before, upgrade = list(earlier.iterdump()), STEPS[1]
    for number in range(len(upgrade)):
        earlier.execute("BEGIN")
        with pytest.raises(sqlite3.OperationalError, match="syntax"):
            migrate(earlier, COMPONENT, (STEPS[0], (*upgrade[:number], "NONSENSE")))
        earlier.execute("ROLLBACK")
        assert list(earlier.iterdump()) == before
    journal_in(earlier, "main")
    assert new_transfers(earlier) != {}


def test_settling_by_hand_ends_the_doubts_and_keeps_the_level(upgraded):
    """The earlier version did not count what went at KEYED; one rejected transfer must not make the account PLAIN."""
    journal = journal_in(upgraded, "main")
    journal.history.settle(upgraded, "alice", "a open", TransferState.REJECTED)
    journal.history.settle(upgraded, "alice", "a doubt", TransferState.ACKED)
    journal.history.settle(upgraded, "carol", "c open", TransferState.REJECTED)
    journal.history.settle(upgraded, "dave", "d open", TransferState.REJECTED)
    accounts = {each.account: each for each in journal.history.accounts(upgraded, None)}
    assert accounts["alice"].totals == Totals(2 * MOST + 3, 2 * MOST + 12, 0)
    assert [accounts[name].totals for name in ("carol", "dave")] == [Totals(0, 0, 0)] * 2
    assert {name: each.level for name, each in accounts.items()} == {name: LEVELS[name] for name in accounts}
    transfer = Transfer("1", "carol", key="plain")
    with pytest.raises(MoneyLevelError, match="reset the account's level"):
        journal.outgoing.begin(upgraded, transfer, None, plain_allowed=True)
    received = journal.incoming.receive(upgraded, Transfer("1", "alice", key="p"), None, plain_allowed=True)
    assert wire_error(received.refusal)[0] == "F00"


def test_keys_are_forgotten_when_the_longest_promise_ends(upgraded):
    journal = journal_in(upgraded, "main", settle=True)

    def keys_at(age):
        upgraded.execute("UPDATE lpi_ledgers SET age = ? WHERE ledger = 'main'", (age,))
        journal = journal_in(upgraded, "main")
        journal.history.forget(upgraded)
        return {entry.key for page in read_pages(upgraded, journal) for entry in page}

    everything = keys_at(430.0)
    assert len(everything) == 20
    week = MONTH * 7 / 30
    assert everything - keys_at(week + 301.0) == {
        *("a paid", "a refused", "a confirmed", "a rejected"),
        *("b paid", "b refused", "b confirmed", "b rejected"),
    }
    # What is in doubt or waits for a handler is never forgotten.
    assert keys_at(2 * MONTH) == {"a doubt", "a open", "b doubt", "b open", "c open", "d open", *WAITING}
    assert journal.history.totals(upgraded, "alice") == TOTALS["main", "alice"]


# The same with whole plugins.


@pytest.fixture
async def store(tmp_path):
    """The earlier store as a file, open."""
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(DUMP)
    async with open_sqlite_store(path) as inner:
        yield HeldStore(inner)


async def test_known_keys_get_their_recorded_outcome(store):
    """A program that asks again under its invoice's number would pay the invoice twice."""
    async with open_payer(store, ledger_id="wallet") as payer:
        await settle(store)
        await payer.send_money(1000, idempotency_key="w paid")
        await payer.send_money(3000, idempotency_key="w confirmed")
        with pytest.raises(RemoteError, match="F00") as refused:
            await payer.send_money(2000, idempotency_key="w refused")
        assert refused.value.data == b'{"message":"no"}'
        with pytest.raises(NotAcceptedError, match="settled by hand"):
            await payer.send_money(4000, idempotency_key="w rejected")
        for key, amount in (("w doubt", 5000), ("w open", 6000)):
            with pytest.raises(TransferInDoubtError, match=key):
                await payer.send_money(amount, idempotency_key=key)
        with pytest.raises(DuplicateIdError):
            await payer.send_money(1, idempotency_key="w paid")
        assert payer.sent == []
        assert await sums(payer) == (4000, 7000, 11_000)


async def test_unanswered_transfers_are_in_doubt_and_reported(store, caplog):
    async with open_payer(store, ledger_id="wallet") as payer:
        await settle(store)
        assert payer.sent == []
        assert await states(payer, direction=TransferDirection.OUT, state=TransferState.IN_DOUBT) == {
            "w doubt": "in_doubt",
            "w open": "in_doubt",
        }
        events = []
        while payer.events.statistics().current_buffer_used:
            events.append(payer.events.receive_nowait())
        assert TransfersInDoubt(2, 11_000) in events
    assert "2 transfers of 11000 in all are in doubt" in caplog.text


async def test_waiting_transfers_are_delivered_once(store):
    handled: list[tuple[str, str, str]] = []
    may_end = trio.Event()

    async def on_money(amount):
        transfer = current_transfer()
        handled.append((transfer.account, str(transfer.key), amount))
        await may_end.wait()

    async with open_accounts(store=store, money_handler=on_money) as server:
        await until(lambda: len(handled) == 3)
        may_end.set()
        await settle(store)
        received = await states(server, direction=TransferDirection.IN)
    expected = {("bob" if amount == 80 else "alice", key, str(amount)) for key, amount in WAITING.items()}
    assert set(handled) == expected
    # One at PLAIN does not stay.
    assert received == {
        **dict.fromkeys(("a received", "a accepted", "a waits", "a waits as well"), "delivered"),
        "a refused by the handler": "refused",
    }
    async with open_accounts(store=store, money_handler=on_money) as server:
        await settle(store)
        assert await server.transfers.totals() == Totals(2 * MOST + 40, 2 * MOST + 252, 417)
    assert len(handled) == 3


async def test_waiting_transfers_go_to_a_transactional_handler(store):
    seen: list[str] = []

    def on_money(_connection, transfer):
        seen.append(str(transfer.key))

    async with open_payer(store, ledger_id="wallet") as payer:
        payer.register_transactional_money_handler(on_money)
        await settle(store)
        assert await states(payer, direction=TransferDirection.IN) == {"w waits": "delivered"}
    assert seen == ["w waits"]


async def test_client_enters_with_its_earlier_token(store):
    async with open_accounts(store=store) as server:
        client = await enter(server, "alice")
        assert server.account("alice").is_connected()
        await client.aclose()


async def test_new_transfers_go_on_at_keyed_only(store):
    async with open_payer(store, ledger_id="wallet", retention=None) as payer:
        await settle(store)
        with pytest.raises(MoneyLevelError):
            await payer.send_money(7)
    async with open_payer(store, ledger_id="wallet") as payer, trio.open_nursery() as nursery:
        payer.register_money_handler(Handler())
        nursery.start_soon(payer.send_money, 7)
        await until(lambda: payer.sent)
        payer.answer()
        await settle(store)
        assert await sums(payer) == (4007, 7000, 11_000)


async def test_file_is_upgraded_once_for_all_ledgers(store, tmp_path):
    async with open_payer(store, ledger_id="main"), open_payer(store, ledger_id="wallet"):
        await settle(store)

    def read(connection):
        return [rows_of(connection, ledger) for ledger in LEDGERS]

    before = await store.transaction(read)
    async with open_payer(store, ledger_id="wallet"):
        await settle(store)
    after = await store.transaction(read)
    # Only the age goes on.
    assert after[0] == before[0]
    assert [rows[1:] for rows in after] == [rows[1:] for rows in before]
