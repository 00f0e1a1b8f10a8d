"""The journal compared with a model of it in plain Python: in any order of operations, no unit is lost or made."""

import sqlite3
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trio_ledger_plugin import (
    InvalidFieldsError,
    MoneyLevel,
    MoneyLevelError,
    NotAcceptedError,
    RemoteError,
    StoreError,
    Transfer,
    TransferNotFoundError,
    UnreachableError,
)
from trio_ledger_plugin.errors import wire_error
from trio_ledger_plugin.money import journal as module
from trio_ledger_plugin.money.journal import Journal
from trio_ledger_plugin.stores.schema import add_functions
from trio_ledger_plugin.transfer import TransferDirection, TransferState

KEYED, PLAIN = MoneyLevel.KEYED, MoneyLevel.PLAIN
OUT, IN = TransferDirection.OUT, TransferDirection.IN
MAX_KEYS = 4
RETENTION = 1000.0
REFUSAL = RemoteError("F00", "NotAcceptedError", data=b"{}")

accounts = st.sampled_from(["", "alice", "bob"])
keys = st.sampled_from(["a", "b", "c", "d", "e", "f"])
amounts = st.sampled_from([1, 7, 2**63, 2**64 - 1])
levels = st.sampled_from([KEYED, PLAIN])


def connect():
    connection = sqlite3.connect(":memory:", isolation_level=None)
    add_functions(connection)
    return connection


def transfer_of(account, key, amount, level):
    return Transfer(str(amount), account, key=key, level=level, digest=f"{amount}".encode() if level is KEYED else b"")


class Row:
    def __init__(self, amount, level, state, since):
        self.amount = amount
        self.level = level
        self.state = state
        self.since = since
        self.refusal = None


class JournalMachine(RuleBasedStateMachine):
    """Every operation on the journal, and on a dictionary."""

    def __init__(self):
        super().__init__()
        self.connection = connect()
        self.now = 0.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "monotonic", lambda: self.now)
        self.journal = Journal("main", max_keys=MAX_KEYS)
        self.journal.open(self.connection, settle=True)
        self.neighbour = Journal("other", max_keys=MAX_KEYS)
        self.neighbour.receive(self.connection, transfer_of("alice", "a", 5, KEYED), None, plain_allowed=True)
        self.connection.execute("CREATE TABLE mine (account TEXT, key TEXT)")
        self.rows: dict[Any, Any] = {}
        self.written: list[tuple[str, str]] = []
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.levels: dict[str, MoneyLevel] = {}

    def teardown(self):
        self.patch.undo()
        self.connection.close()

    def level_of(self, account):
        return self.levels.get(account, PLAIN)

    # Outgoing transfers.

    @rule(account=accounts, key=keys, amount=amounts, level=levels, plain_allowed=st.booleans())
    def begin(self, account, key, amount, level, plain_allowed):
        transfer = transfer_of(account, key, amount, level)
        window = None if level is PLAIN else (1e9, 1e9 + 500)
        known = self.rows.get((account, OUT, key))
        try:
            found: Any = self.journal.begin(self.connection, transfer, window, plain_allowed=plain_allowed)
        except MoneyLevelError:
            assert known is None
            assert level is PLAIN
            assert self.level_of(account) is KEYED or not plain_allowed
            return
        if known is not None:
            assert (found.amount, found.state.value, found.level) == (known.amount, known.state, known.level)
            return
        assert found is None
        assert level is KEYED or (plain_allowed and self.level_of(account) is PLAIN)
        self.rows[account, OUT, key] = Row(amount, level, "sent", self.now)
        if level is KEYED:
            self.levels[account] = KEYED

    def move(self, account, key, before, after):
        row = self.rows.get((account, OUT, key))
        if row is None or row.state not in before:
            return
        row.state, row.since = after, self.now
        if after == "acked":
            self.sent[account] = self.sent.get(account, 0) + row.amount

    def own(self, account, key):
        row = self.rows.get((account, OUT, key))
        return transfer_of(account, key, 1 if row is None else row.amount, PLAIN)

    @rule(account=accounts, key=keys, error=st.sampled_from([None, REFUSAL]))
    def answered(self, account, key, error):
        self.journal.answered(self.connection, self.own(account, key), error)
        self.move(account, key, ("sent", "in_doubt"), "acked" if error is None else "rejected")

    @rule(account=accounts, key=keys)
    def doubt(self, account, key):
        self.journal.doubt(self.connection, self.own(account, key))
        self.move(account, key, ("sent",), "in_doubt")

    @rule(account=accounts, key=keys)
    def withdraw(self, account, key):
        self.journal.withdraw(self.connection, self.own(account, key))
        row = self.rows.get((account, OUT, key))
        if row is not None and row.state in ("sent", "in_doubt"):
            del self.rows[account, OUT, key]

    @rule(account=accounts, key=keys, confirmed=st.booleans())
    def reconcile(self, account, key, confirmed):
        row: Any = self.rows.get((account, OUT, key))
        after = "acked" if confirmed else "rejected"
        settle = self.journal.confirm if confirmed else self.journal.reject
        try:
            settle(self.connection, account, key)
        except TransferNotFoundError:
            assert row is None
        except InvalidFieldsError:
            assert row.state not in ("in_doubt", after)
        else:
            assert row.state in ("in_doubt", after)
            self.move(account, key, ("in_doubt",), after)

    @rule(account=accounts)
    def reset_level(self, account):
        self.journal.reset_level(self.connection, account)
        self.levels[account] = PLAIN
        for (whose, direction, _), row in self.rows.items():
            if whose == account and direction is OUT and row.state == "sent":
                row.state = "in_doubt"

    @rule(settle=st.booleans())
    def open_again(self, settle):
        """Open again as after a crash: the ledger's age is the one that was saved last."""
        waiting = self.journal.open(self.connection, settle=settle)
        if settle:
            for row in self.rows.values():
                if row.state == "sent" and row.level is PLAIN:
                    row.state = "in_doubt"
        expected = {account for (account, _, _), row in self.rows.items() if row.state == "sent" and row.level is KEYED}
        assert expected <= waiting
        if settle:
            assert waiting == expected

    # Incoming transfers.

    def kept(self, account):
        return sum(1 for (whose, direction, _) in self.rows if (whose, direction) == (account, IN))

    @rule(
        account=accounts,
        key=keys,
        amount=amounts,
        level=levels,
        plain_allowed=st.booleans(),
        verdict=st.sampled_from(["outbox", "accept", "refuse", "later"]),
    )
    def receive(self, account, key, amount, level, plain_allowed, verdict):
        if level is PLAIN:
            key = f"made {key} {len(self.rows)} {self.now}"
        transfer = transfer_of(account, key, amount, level)
        error = {"refuse": NotAcceptedError("no"), "later": UnreachableError("later")}.get(verdict)
        ran = []

        def apply(connection, received):
            connection.execute("INSERT INTO mine VALUES (?, ?)", (received.account, received.key))
            ran.append(received)
            return error

        known = self.rows.get((account, IN, key))
        reply = self.journal.receive(
            self.connection, transfer, None if verdict == "outbox" else apply, plain_allowed=plain_allowed
        )
        wire: Any = None if reply is None else wire_error(reply)
        if level is PLAIN and (self.level_of(account) is KEYED or not plain_allowed):
            assert wire[0] == "F00"
            assert ran == []
        elif known is not None:
            assert ran == []
            if known.amount != amount:
                assert wire[0] == "F05"
            else:
                assert wire == known.refusal
        elif self.kept(account) >= MAX_KEYS:
            assert wire[0] == "T00"
            assert ran == []
        else:
            assert bool(ran) is (verdict != "outbox")
            if level is KEYED:
                self.levels[account] = KEYED
            assert wire == (None if error is None else wire_error(error))
            if verdict != "later":
                state = {"outbox": "applied", "accept": "delivered", "refuse": "refused"}[verdict]
                row = self.rows[account, IN, key] = Row(amount, level, state, self.now)
                row.refusal = wire
                if verdict == "accept":
                    self.written.append((account, key))
                if error is None:
                    self.received[account] = self.received.get(account, 0) + amount

    @rule(which=st.integers(0, 5))
    def delivered(self, which):
        waiting = self.journal.undelivered(self.connection, 0, 100)
        numbers = [number for number, _ in waiting]
        assert numbers == sorted(numbers)
        expected = {(account, key) for (account, direction, key), row in self.rows.items() if row.state == "applied"}
        assert {(transfer.account, transfer.key) for _, transfer in waiting} == expected
        if which < len(waiting):
            number, transfer = waiting[which]
            self.journal.delivered(self.connection, number)
            self.rows[transfer.account, IN, transfer.key].state = "delivered"

    @rule(seconds=st.sampled_from([1.0, RETENTION / 2, RETENTION + 1]))
    def let_time_pass(self, seconds):
        self.now += seconds

    @rule()
    def purge(self):
        after: int | None = 0
        while after is not None:
            after = self.journal.purge(self.connection, after, RETENTION)
        left = {key for key, _ in self.entries().items()}
        for place, row in list(self.rows.items()):
            if place not in left:
                # It may keep a transfer for longer than promised, never for less time.
                assert row.state in ("acked", "rejected", "delivered", "refused")
                assert self.now - row.since > RETENTION
                del self.rows[place]

    # Invariants.

    def entries(self):
        entries = self.journal.page(self.connection, None, None, None, 0)
        return {(entry.account, entry.direction, entry.key): entry for entry in entries}

    @invariant()
    def the_journal_says_what_the_model_says(self):
        found = {place: (entry.amount, entry.level, entry.state.value) for place, entry in self.entries().items()}
        assert found == {place: (row.amount, row.level, row.state) for place, row in self.rows.items()}

    @invariant()
    def no_unit_is_lost_or_made(self):
        for account in ("", "alice", "bob"):
            totals = self.journal.totals(self.connection, account)
            open_ones = [
                row.amount
                for (whose, _, _), row in self.rows.items()
                if whose == account and row.state in ("sent", "in_doubt")
            ]
            assert totals.sent == self.sent.get(account, 0)
            assert totals.received == self.received.get(account, 0)
            assert totals.in_doubt == sum(open_ones)
        assert self.journal.totals(self.connection, None).received == sum(self.received.values())

    @invariant()
    def as_many_keys_are_counted_as_are_kept(self):
        for account in ("", "alice", "bob"):
            row = self.connection.execute(
                "SELECT keys_kept, level FROM lpi_accounts WHERE ledger = 'main' AND account = ?", (account,)
            ).fetchone()
            assert (0 if row is None else row[0]) == self.kept(account)
            assert (PLAIN if row is None else MoneyLevel(row[1])) is self.level_of(account)

    @invariant()
    def what_a_handler_wrote_is_there_exactly_when_its_transfer_counts(self):
        written = self.connection.execute("SELECT account, key FROM mine").fetchall()
        assert sorted(written) == sorted(self.written)

    @invariant()
    def another_ledger_is_left_alone(self):
        assert self.neighbour.totals(self.connection, None).received == 5

    @precondition(lambda self: self.rows)
    @rule()
    def what_is_to_be_sent_again_is_what_was_sent_at_keyed(self):
        for account in ("", "alice", "bob"):
            page = self.journal.unanswered(self.connection, account, 0)
            expected = {
                (key, str(row.amount))
                for (whose, direction, key), row in self.rows.items()
                if (whose, direction, row.state, row.level) == (account, OUT, "sent", KEYED)
            }
            assert {(transfer.key, transfer.amount) for _, transfer, _ in page} == expected
            assert all(window == (1e9, 1e9 + 500) for _, _, window in page)


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def connection():
    connection = connect()
    yield connection
    connection.close()


@pytest.fixture
def journal(connection):
    journal = Journal("main", max_keys=10_000)
    journal.open(connection, settle=True)
    return journal


def test_second_opening_changes_nothing(connection, journal):
    journal.begin(connection, transfer_of("", "k", 5, KEYED), (1.0, 2.0), plain_allowed=True)
    assert journal.open(connection, settle=True) == {""}
    assert journal.find(connection, "", OUT, "k").state is TransferState.SENT


def test_file_of_a_newer_version_is_refused(connection, journal):
    connection.execute("UPDATE lpi_schema SET version = 99 WHERE component = 'transfers'")
    with pytest.raises(StoreError, match="newer version"):
        journal.open(connection, settle=True)


def test_running_again_after_a_failed_commit_is_harmless(connection, journal):
    transfer = transfer_of("", "k", 5, KEYED)
    assert journal.begin(connection, transfer, (1.0, 2.0), plain_allowed=True) is None
    for _ in range(2):
        journal.answered(connection, transfer, None)
        assert journal.receive(connection, transfer, None, plain_allowed=True) is None
    journal.doubt(connection, transfer)
    journal.withdraw(connection, transfer)
    journal.answered(connection, transfer, REFUSAL)
    totals = journal.totals(connection, "")
    assert (totals.sent, totals.received, totals.in_doubt) == (5, 5, 0)
    assert journal.find(connection, "", OUT, "k").state is TransferState.ACKED


def test_entry_contains_all_that_is_known(connection, journal):
    journal.begin(connection, transfer_of("alice", "k", 2**64 - 1, KEYED), (100.0, 200.0), plain_allowed=True)
    journal.answered(connection, transfer_of("alice", "k", 2**64 - 1, KEYED), REFUSAL)
    entry = journal.find(connection, "alice", OUT, "k")
    assert (entry.account, entry.direction, entry.key, entry.amount) == ("alice", OUT, "k", 2**64 - 1)
    assert (entry.level, entry.state, entry.window) == (KEYED, TransferState.REJECTED, (100.0, 200.0))
    assert (entry.error.code, entry.error.name, entry.error.data) == ("F00", "NotAcceptedError", b"{}")
    assert entry.created.timestamp() == 100.0
    assert entry.changed > entry.created


def test_pages_cover_the_whole_journal(connection, journal):
    for number in range(2 * module.PAGE + 1):
        journal.receive(connection, transfer_of("", f"k{number}", 1, KEYED), None, plain_allowed=True)
    seen, after = [], 0
    while page := journal.page(connection, None, IN, TransferState.APPLIED, after):
        seen += [entry.key for entry in page]
        after = page[-1].number
    assert seen == [f"k{number}" for number in range(2 * module.PAGE + 1)]
    assert journal.page(connection, None, OUT, None, 0) == []
    assert journal.page(connection, "nobody", None, None, 0) == []


def test_late_settled_transfer_is_kept_for_the_full_retention(connection, journal, monkeypatch):
    """If it were removed at once, a program that asks for it under its key would send it again."""
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    journal.open(connection, settle=True)
    transfer = transfer_of("", "k", 5, PLAIN)
    journal.begin(connection, transfer, None, plain_allowed=True)
    journal.doubt(connection, transfer)
    now = 2 * RETENTION
    journal.purge(connection, 0, RETENTION)
    journal.confirm(connection, "", "k")
    journal.purge(connection, 0, RETENTION)
    assert journal.find(connection, "", OUT, "k").state is TransferState.ACKED
    now = 3 * RETENTION + 1
    journal.purge(connection, 0, RETENTION)
    assert journal.find(connection, "", OUT, "k") is None
    assert journal.totals(connection, "").sent == 5


def test_unfinished_transfers_are_never_removed(connection, journal, monkeypatch):
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    journal.open(connection, settle=True)
    for key in ("sent", "in_doubt"):
        journal.begin(connection, transfer_of("", key, 5, KEYED), (1.0, 2.0), plain_allowed=True)
    journal.doubt(connection, transfer_of("", "in_doubt", 5, KEYED))
    journal.receive(connection, transfer_of("", "applied", 5, KEYED), None, plain_allowed=True)
    now = 100 * RETENTION
    journal.purge(connection, 0, RETENTION)
    assert {entry.key for entry in journal.page(connection, None, None, None, 0)} == {"sent", "in_doubt", "applied"}


def test_setting_the_clock_removes_no_key(connection, journal, monkeypatch):
    journal.receive(connection, transfer_of("", "k", 5, KEYED), lambda *_: None, plain_allowed=True)
    monkeypatch.setattr(module, "time", lambda: 1e12)
    journal.purge(connection, 0, RETENTION)
    assert journal.find(connection, "", IN, "k") is not None


@pytest.mark.parametrize("saved", [True, False], ids=["closed in peace", "killed"])
def test_old_keys_are_removed_even_with_frequent_restarts(connection, monkeypatch, saved):
    """Its keys would otherwise fill the account, and money would be refused."""
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    for number in range(4):
        journal = Journal("main", max_keys=100)
        journal.open(connection, settle=True)
        now += RETENTION / 2
        for key in (f"{number}", f"{number} again"):
            journal.receive(connection, transfer_of("", key, 5, KEYED), lambda *_: None, plain_allowed=True)
        if saved:
            journal.save_age(connection)
        # The machine restarts too: its monotonic clock begins at 0.
        now = 0.0
    journal = Journal("main", max_keys=100)
    journal.open(connection, settle=True)
    now += 1
    journal.purge(connection, 0, RETENTION)
    kept = {entry.key[0] for entry in journal.page(connection, None, None, None, 0)}
    assert kept == {"2", "3"}
