"""The totals of each account: exact at any size, and each account's and ledger's are its own."""

import pytest
from support.journals import IN, KEYED, PLAIN, REFUSAL, accept, refuse

from trio_ledger_plugin import Totals
from trio_ledger_plugin.errors import wire_error
from trio_ledger_plugin.money import history
from trio_ledger_plugin.transfer import TransferState

MOST = 2**64 - 1


def test_unknown_account_has_zero_totals(book):
    assert book.totals("nobody") == Totals(0, 0, 0)
    assert book.accounts() == {}
    assert not book.journal.history.knows(book.connection, "nobody")


def test_sums_are_exact_beyond_the_integers_of_sqlite(book):
    """Totals that were rounded would be an error of billions."""
    for number in range(100):
        book.pay(f"k{number}", amount=MOST)
        book.receive(f"k{number}", amount=MOST, apply=accept)
        book.begin(f"open {number}", amount=MOST)
    assert book.totals() == Totals(100 * MOST, 100 * MOST, 100 * MOST)


def test_sums_of_accounts_and_ledgers_are_independent(book):
    main = book.journal
    book.pay("k", account="alice", amount=1)
    book.receive("k", account="bob", amount=2)
    other = book.reopen("other")
    book.receive("k", account="alice", amount=4, level=PLAIN)
    assert book.totals("alice") == Totals(0, 4, 0)
    assert book.totals("bob") == Totals(0, 0, 0)
    assert {name: each.level for name, each in book.accounts().items()} == {"alice": PLAIN}
    book.journal = main
    assert [book.totals(name) for name in ("alice", "bob")] == [Totals(1, 0, 0), Totals(0, 2, 0)]
    assert other.id not in ("", main.id)
    assert main.history.ledgers(book.connection) == ["main", "other"]


def test_every_account_is_on_one_page_of_totals(book, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 3)
    names = ["", *(f"account {number}" for number in range(7))]
    for name in reversed(names):
        book.receive("k", account=name, amount=len(name) + 1)
    assert list(book.accounts()) == names
    assert [each.totals.received for each in book.accounts().values()] == [len(name) + 1 for name in names]


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda book, sent: None, (0, 0, 7)),
        (lambda book, sent: book.answer(sent), (7, 0, 0)),
        (lambda book, sent: book.answer(sent, REFUSAL), (0, 0, 0)),
        (lambda book, sent: book.journal.outgoing.doubt(book.connection, sent.number), (0, 0, 7)),
        (lambda book, sent: book.journal.outgoing.withdraw(book.connection, sent), (0, 0, 0)),
        (lambda book, sent: book.settle("k", TransferState.ACKED), (7, 0, 0)),
        (lambda book, sent: book.settle("k", TransferState.REJECTED), (0, 0, 0)),
    ],
    ids=["open", "acknowledged", "refused", "in doubt", "withdrawn", "confirmed", "rejected"],
)
def test_sent_transfer_counts_where_its_state_says(book, end, expected):
    end(book, book.begin("k", amount=7))
    assert book.totals() == Totals(*expected)


@pytest.mark.parametrize("level", [KEYED, PLAIN])
def test_refused_transfer_counts_nowhere(book, level):
    """The account's level would otherwise forbid to go on at PLAIN, although no money went at KEYED."""
    assert wire_error(book.receive("k", level=level, apply=refuse).refusal)[0] == "F00"
    assert book.totals() == Totals(0, 0, 0)
    assert book.accounts().get("", None) is None or book.level() is PLAIN


def test_forgotten_transfers_still_count(book):
    book.pay("k", amount=1)
    book.receive("k", amount=2, apply=accept)
    book.now = 1e7
    book.forget()
    assert book.walk() == []
    assert book.totals() == Totals(1, 2, 0)


def test_number_of_kept_keys_is_bounded_for_each_account(book):
    """One account that sends without end would otherwise fill the disk of all."""
    book.reopen(max_keys=2)
    refusals = [book.receive(f"k{number}", account="alice", apply=accept).refusal for number in range(3)]
    assert refusals[:2] == [None, None]
    assert wire_error(refusals[2])[0] == "T00"
    assert [entry.key for entry in book.walk(direction=IN)] == ["k0", "k1"]
    assert book.totals("alice") == Totals(0, 10, 0)
    assert book.receive("k", account="bob", apply=accept).refusal is None
    # What is known is still answered.
    assert book.receive("k1", account="alice", apply=accept).refusal is None
    book.now = 701
    book.forget()
    assert book.receive("k2", account="alice", apply=accept).refusal is None


def test_plain_transfers_count_as_kept_while_they_wait(book):
    book.reopen(max_keys=1)
    assert book.receive("made here", level=PLAIN, apply=accept).refusal is None
    waiting = book.receive("waits", level=PLAIN).credited
    assert wire_error(book.receive("too much", level=PLAIN).refusal)[0] == "T00"
    book.journal.incoming.delivered(book.connection, waiting)
    assert book.receive("next", level=PLAIN).refusal is None
