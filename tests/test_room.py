"""What peers can make a ledger keep: bounded for each account and for all, in rows and in bytes."""

import pytest
from support.journals import IN, KEYED, PLAIN, Book, accept, journal_of, refuse

from trio_ledger_plugin import RemoteError
from trio_ledger_plugin.errors import wire_error
from trio_ledger_plugin.money import history
from trio_ledger_plugin.money.outgoing import MAX_ERROR_BYTES
from trio_ledger_plugin.money.room import Room
from trio_ledger_plugin.negotiation import JournalOffer, PeerJournal, PeerNumbers

# The longest names that the protocol allows.
LONGEST_NAME, LONGEST_KEY, LONGEST_JOURNAL = "n" * 255, "k" * 64, "j" * 64


def receive_all(book, account, most=1000):
    """Send transfers until one is refused; return how many were credited."""
    for number in range(most):
        refusal = book.receive(f"k{number}", account=account, apply=accept).refusal
        if refusal is not None:
            assert wire_error(refusal)[0] == "T00"
            return number
    return most


def test_accounts_that_take_all_they_can_leave_room(book):
    """Accounts are free: a limit for each account alone would not keep the disk from filling."""
    book.reopen(max_keys=100, max_ledger_keys=64)
    credited = [receive_all(book, f"account {number}") for number in range(4)]
    assert credited == [32, 16, 8, 4]
    assert book.journal.room.keys == 60
    assert book.receive("k", account="a newcomer").refusal is None
    # What is known is still answered.
    assert book.receive("k0", account="account 0", apply=accept).refusal is None


def test_forgetting_makes_room_again(book):
    book.reopen(max_ledger_keys=10)
    assert receive_all(book, "alice") == 5
    book.now = 701
    book.forget()
    assert book.journal.room.keys == 0
    assert receive_all(book, "alice") == 5


def test_delivered_plain_transfer_takes_no_room(book):
    book.reopen(max_ledger_keys=2)
    waiting = book.receive("made here", level=PLAIN).credited
    assert wire_error(book.receive("next", level=PLAIN).refusal)[0] == "T00"
    book.journal.incoming.delivered(book.connection, waiting)
    assert book.journal.room.keys == 0
    assert book.receive("next", level=PLAIN).refusal is None
    assert book.receive("handled at once", level=PLAIN, apply=accept).refusal is None
    assert book.journal.room.keys == 1


@pytest.mark.parametrize("level", [KEYED, PLAIN])
def test_number_of_accounts_is_bounded(book, level):
    book.reopen(max_accounts=2)
    for name in ("alice", "bob"):
        assert book.receive("k", account=name, level=level, apply=accept).refusal is None
    assert wire_error(book.receive("k", account="carol", level=level, apply=accept).refusal)[0] == "T00"
    assert book.receive("k2", account="bob", level=level, apply=accept).refusal is None
    assert sorted(book.accounts()) == ["alice", "bob"]
    assert book.walk(direction=IN, account="carol") == []


def test_connecting_enters_no_account(book):
    """Tokens are free, so names would be as well."""
    for number in range(5):
        peer = journal_of(f"journal {number}")
        assert book.journal.peers.meet(book.connection, f"account {number}", peer).trouble == ""
    assert book.accounts() == {}
    book.receive("k", account="account 1", peer="journal 1")
    assert list(book.accounts()) == ["account 1"]


def test_peer_that_claims_to_be_known_takes_a_place(book):
    """This journal may be an old copy, and then has to remember what it learns; but anybody can say so."""
    book.reopen(max_accounts=1)
    told = PeerNumbers(book.journal.id, sent=3, acked=3)
    peer = PeerJournal(JournalOffer(100_000, "first", 5.0, told, tells_peer=True), JournalOffer(100_000, "x", 1.0))
    missing = [book.journal.peers.meet(book.connection, name, peer).missing for name in ("alice", "mallory", "alice")]
    assert missing == [3, 0, 0]
    assert list(book.accounts()) == ["alice"]


def test_refused_account_is_forgotten_with_its_refusal(book):
    assert wire_error(book.receive("k", account="mallory", apply=refuse).refusal)[0] == "F00"
    assert list(book.accounts()) == ["mallory"]
    book.now = 701
    book.forget()
    assert book.accounts() == {}
    assert book.journal.room.keys == book.journal.room.accounts == 0


def test_account_for_which_there_is_no_room_leaves_nothing(book):
    book.reopen(max_ledger_keys=1)
    assert book.receive("k", account="alice").refusal is None
    for number in range(3):
        assert wire_error(book.receive("k", account=f"account {number}").refusal)[0] == "T00"
    assert list(book.accounts()) == ["alice"]
    assert book.journal.room.accounts == 1


def test_error_of_a_peer_is_kept_in_part(book):
    """It is the peer that says how long it is."""
    book.answer(book.begin("k"), RemoteError("F00", "NotAcceptedError", data=b"x" * 8192))
    (entry,) = book.walk()
    assert entry.error is not None
    assert entry.error.data == b"x" * MAX_ERROR_BYTES


@pytest.mark.parametrize("apply", [None, accept])
def test_bytes_of_a_remembered_transfer_are_bounded(apply):
    """The limits are numbers of rows; docs/explanation/money.md says how many bytes that is at most."""
    book, account, rows = Book(), LONGEST_NAME, 2000
    assert book.receive("first", account=account, peer=LONGEST_JOURNAL, apply=apply).refusal is None
    pages = book.select("PRAGMA page_count")[0][0]
    for number in range(rows):
        key = f"{number:08}{LONGEST_KEY}"[:64]
        book.receive(key, account=account, amount=2**64 - 1, peer=LONGEST_JOURNAL, apply=apply)
    grown = (book.select("PRAGMA page_count")[0][0] - pages) * book.select("PRAGMA page_size")[0][0]
    assert book.select("SELECT count(*) FROM lpi_transfers")[0][0] == rows + 1
    assert grown / rows < 2048
    book.connection.close()


def test_what_changes_during_a_count_is_counted_once(book, monkeypatch):
    """A server that is never at rest would drift from the truth with each count."""
    monkeypatch.setattr(history, "KEYS_PAGE", 2)
    for name in "bdfh":
        for number in range(3):
            book.receive(f"k{number}", account=name, apply=accept)
    book.journal.room.keys = book.journal.room.accounts = 99
    count = book.journal.history.count
    after = count(book.connection, None)
    assert after == "d"
    # In the part that was counted, in the one that was not, and in both a new account and a known one.
    for name in "abgh":
        book.receive("new", account=name, apply=accept)
    assert (book.journal.room.keys, book.journal.room.accounts) == (103, 101)
    while after is not None:
        after = count(book.connection, after)
    assert (book.journal.room.keys, book.journal.room.accounts) == (16, 6)
    book.receive("later", account="a", apply=accept)
    assert (book.journal.room.keys, book.journal.room.accounts) == (17, 6)


class Transaction:
    """A connection on which nothing is run."""

    def __init__(self):
        self.when_undone = []

    def undo(self):
        while self.when_undone:
            self.when_undone.pop()()


def test_page_of_an_undone_transaction_is_counted_once():
    """A page that fails once would count twice, or would be all that was counted."""
    pages = [[("a", 3), ("b", 3)], [("c", 3), ("d", 3)], [("e", 3)]]
    room = Room()
    for number, page in enumerate(pages):
        for is_undone in (True, False):
            transaction = Transaction()
            room.add(transaction, "b", keys=1)
            room.count(transaction, page, is_first=not number, is_last=number == 2)
            room.add(transaction, "c", keys=1, accounts=1)
            if is_undone:
                transaction.undo()
    # What changed in accounts that were counted before: "b" twice, and "c" twice.
    assert (room.keys, room.accounts) == (15 + 2 + 2, 5 + 2)
