"""What is in a journal: it is read and forgotten in slices, and no key is forgotten too early."""

from datetime import UTC, datetime

import pytest
from support.journals import IN, KEYED, OUT, PLAIN, PROMISED, RETENTION, accept, forget_in_slices, refuse, rows_of

from trio_ledger_plugin import TransferNotFoundError
from trio_ledger_plugin.money import history, incoming, outgoing
from trio_ledger_plugin.money.incoming import PLAIN_SECONDS
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.transfer import TransferState

# Reading.


def test_pages_cover_the_whole_journal(book):
    expected = [f"k{number}" for number in range(2 * history.PAGE + 1)]
    for key in expected:
        book.receive(key)
    assert [entry.key for entry in book.walk(direction=IN, state=TransferState.APPLIED)] == expected
    assert book.walk(direction=OUT) == []
    assert book.walk(account="nobody") == []
    assert book.walk(state=TransferState.IN_DOUBT) == []


def test_page_reads_a_limited_number_of_rows(book, monkeypatch):
    """A walk that needs a long read would delay the money of everybody else."""
    monkeypatch.setattr(history, "PAGE", 10)
    for number in range(35):
        book.receive(f"k{number}", account="alice" if number == 34 else "bob")
    # Only the last slice has one of alice's, but each slice ends after as many rows.
    pages = [[entry.key for entry in page] for page in book.pages(account="alice")]
    assert pages == [[], [], [], ["k34"], []]


@pytest.mark.parametrize("state", [None, TransferState.IN_DOUBT])
def test_walk_keeps_no_snapshot_and_loses_no_place(book, monkeypatch, state):
    """A pager that shows the list for an hour must not keep the store's log growing, nor skip or repeat a row."""
    monkeypatch.setattr(history, "PAGE", 3)

    def add(*names):
        for name in names:
            book.journal.outgoing.doubt(book.connection, book.begin(name).number)

    add(*"abcdef")
    found, pages = [], 0
    for page in book.pages(state=state):
        found += [entry.key for entry in page]
        pages += 1
        if pages == 1:
            # Between two pages, rows before and after the place are removed, and others are added.
            for key in "ade":
                book.connection.execute("DELETE FROM lpi_transfers WHERE key = ?", (key,))
            add("g")
    assert found == list("abcfg")
    assert pages <= 4


def test_gaps_between_numbers_cost_no_pages(book, monkeypatch):
    """Numbers are never used again: where much was forgotten, there are large gaps."""
    monkeypatch.setattr(history, "PAGE", 3)
    book.receive("first")
    if book.dialect is SQLITE:
        book.connection.execute("UPDATE sqlite_sequence SET seq = 10000000")
    else:
        book.connection.execute("SELECT setval(pg_get_serial_sequence('lpi_transfers', 'id'), 10000000)")
    book.receive("last")
    assert [[entry.key for entry in page] for page in book.pages()] == [["first"], ["last"], []]


def test_page_since_a_time_has_later_entries_only(book, monkeypatch):
    for second in (100, 200, 300):
        monkeypatch.setattr(outgoing, "time", lambda second=second: float(second))
        book.begin(f"at {second}")
    since = datetime.fromtimestamp(200, UTC)
    assert [entry.key for entry in book.walk(since=since)] == ["at 200", "at 300"]


@pytest.mark.parametrize("digits", [0.6043905, 0.6043909, 0.6043914])
def test_page_since_the_time_of_an_entry_has_that_entry(book, monkeypatch, digits):
    """A time in a listing is rounded to microseconds; given back, it may be later than the stored one."""
    monkeypatch.setattr(outgoing, "time", lambda: 1_764_497_200 + digits)
    book.begin("key")
    [entry] = book.walk()
    assert book.walk(since=entry.created) == [entry]


def test_transfers_in_doubt_are_counted_in_slices(book, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 3)
    for number in range(7):
        book.journal.outgoing.doubt(book.connection, book.begin(f"k{number}", amount=number + 1).number)
    first = book.journal.history.in_doubt(book.connection, 0)
    second = book.journal.history.in_doubt(book.connection, first[2])
    last = book.journal.history.in_doubt(book.connection, second[2])
    assert [first[:2], second[:2], last] == [(3, 6), (3, 15), (1, 7, None)]


# Settling by hand.


def test_settling_an_unknown_transfer_is_an_error(book):
    book.receive("received")
    before = rows_of(book.connection, "main")
    for key, account in (("k", ""), ("received", ""), ("k", "alice")):
        with pytest.raises(TransferNotFoundError, match=f"no transfer was sent under the key '{key}'; nothing"):
            book.settle(key, TransferState.ACKED, account)
    assert rows_of(book.connection, "main") == before


# Forgetting.


def test_late_settled_transfer_is_kept_for_the_full_retention(book):
    """If it were removed at once, a program that asks for it under its key would send it again."""
    sent = book.begin("k", level=PLAIN)
    book.journal.outgoing.doubt(book.connection, sent.number)
    book.now = 2 * RETENTION
    book.forget()
    book.settle("k", TransferState.ACKED)
    book.forget()
    book.now = 3 * RETENTION
    book.forget()
    assert book.state("k") is TransferState.ACKED
    book.now = 3 * RETENTION + 1
    book.forget()
    assert book.state("k") is None
    assert book.totals().sent == 5


def test_unfinished_transfers_are_never_removed(book):
    book.begin("sent")
    book.journal.outgoing.doubt(book.connection, book.begin("in_doubt").number)
    book.receive("applied")
    book.receive("applied at PLAIN", account="alice", level=PLAIN)
    book.journal.history.note_handler(book.connection)
    book.now = 100 * RETENTION
    book.forget()
    assert book.keys == ["sent", "in_doubt", "applied", "applied at PLAIN"]


def test_setting_the_clock_removes_no_key(book, monkeypatch):
    book.receive("k", apply=accept)
    for module in (history, incoming, outgoing):
        monkeypatch.setattr(module, "time", lambda: 1e12)
    book.forget()
    assert book.keys == ["k"]


def test_promise_is_stored_with_the_row(book):
    book.now = 50.0
    book.receive("applied")
    book.receive("delivered", apply=accept)
    book.receive("refused", apply=refuse)
    book.pay("acked")
    book.begin("sent")
    promises = {
        key: (keep_for, forget_at)
        for key, keep_for, forget_at in book.select("SELECT key, keep_for, forget_at FROM lpi_transfers")
    }
    received, paid = (PROMISED, 50.0 + PROMISED), (RETENTION, 50.0 + RETENTION)
    assert promises == {
        "applied": received,
        "delivered": received,
        "refused": received,
        "acked": paid,
        "sent": (RETENTION, None),
    }


def test_shorter_retention_shortens_no_earlier_promise(book):
    """The peer may send a transfer again for as long as it was promised that its key is known."""
    sent = book.begin("paid")
    book.receive("received", apply=accept)
    book.journal.save_age(book.connection)
    book.reopen(key_retention=1.0, promised=1.0)
    book.answer(sent)
    book.receive("received later", apply=accept)
    book.now = 2.0
    book.forget()
    assert book.keys == ["paid", "received"]
    book.now = PROMISED + 1
    book.forget()
    assert book.keys == ["paid"]
    book.now = RETENTION + 1
    book.forget()
    assert book.keys == []


def test_plain_transfers_stay_only_until_their_commit_is_certain(book):
    """They have no key that the peer could send again, and would only fill the account."""
    book.receive("in the transaction", level=PLAIN, apply=accept)
    waiting = book.receive("for the handler", level=PLAIN).credited
    book.journal.incoming.delivered(book.connection, waiting)
    assert book.keys == ["in the transaction"]
    book.now = PLAIN_SECONDS + 1
    book.forget()
    assert book.keys == []
    assert book.totals().received == 10


def test_keys_are_forgotten_a_slice_at_a_time(book, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 3)
    book.reopen(max_keys=7)
    for number in range(7):
        book.receive(f"k{number}", apply=accept)
    waits = book.receive("waits", account="alice").credited
    book.journal.history.note_handler(book.connection)
    book.now = PROMISED + 1
    left = [len(book.keys) for _ in forget_in_slices(book.connection, book.journal)]
    # What waits for its handler is passed over, and does not stop the others.
    assert left == [5, 2, 1]
    assert book.keys == ["waits"]
    for number in range(7):
        assert book.receive(f"new {number}", apply=accept).refusal is None
    book.journal.incoming.delivered(book.connection, waits)
    assert book.forget() == 1
    assert book.keys == [f"new {number}" for number in range(7)]


def test_many_equal_promises_are_forgotten_completely(book, monkeypatch):
    """Transfers of one batch have the same age; a slice that ended among them must not lose the others."""
    monkeypatch.setattr(history, "PAGE", 2)
    for number in range(5):
        book.receive(f"k{number}", level=KEYED, apply=accept)
    book.now = PROMISED + 1
    assert book.forget() == 3
    assert book.keys == []


def test_numbers_are_not_reused_once_all_are_forgotten(book):
    book.receive("k", apply=accept)
    withdrawn = book.begin("withdrawn")
    book.journal.outgoing.withdraw(book.connection, withdrawn)
    book.now = PROMISED + 1
    book.forget()
    assert book.keys == []
    assert book.begin("next").number > withdrawn.number


@pytest.mark.parametrize("handler", [accept, refuse], ids=["credited", "refused"])
@pytest.mark.parametrize("saved", [True, False], ids=["closed in peace", "killed"])
def test_old_keys_are_removed_even_with_frequent_restarts(book, saved, handler):
    """Its keys would otherwise fill the account, and money would be refused."""
    for number in range(4):
        book.reopen(promised=RETENTION)
        book.now += RETENTION / 2
        for key in (f"{number}", f"{number} again"):
            book.receive(key, apply=handler)
        if saved:
            book.journal.save_age(book.connection)
        # The machine restarts too: its monotonic clock begins at 0.
        book.now = 0.0
    book.reopen(promised=RETENTION)
    book.now += 1
    book.forget()
    assert {key[0] for key in book.keys} == {"2", "3"}
