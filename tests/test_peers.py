"""The journals of peers: an old copy of either journal is noticed, before anything is sent to it again."""

import json
from math import inf

import pytest
from support.journals import PEER_RETENTION, REFUSAL, Book, accept, connect, journal_of, refuse

from trio_ledger_plugin import negotiation
from trio_ledger_plugin.money import peers
from trio_ledger_plugin.money.peers import Lost, Meeting
from trio_ledger_plugin.negotiation import MAX_RETENTION, JournalOffer, PeerJournal, PeerNumbers
from trio_ledger_plugin.transfer import TransferState


class End(Book):
    """One end of an account, in a database that can be copied and restored."""

    def __init__(self):
        super().__init__()
        self.peer_age = 0.0

    def offer(self, peer=None):
        """Return what this end says about its journal, with the numbers of the transfers with the peer's."""
        numbers = self.journal.peers.numbers(self.connection, "", peer)
        age = self.journal.save_age(self.connection)
        return JournalOffer(PEER_RETENTION, self.journal.id, age, numbers, tells_peer=True)

    def meet(self, offer, said=None):
        return self.journal.peers.meet(self.connection, "", PeerJournal(offer, said, inf))

    def copy(self):
        copy = connect()
        self.connection.backup(copy)
        return copy

    def restore(self, copy):
        self.connection.close()
        self.connection = copy
        self.reopen()


@pytest.fixture
def client():
    client = End()
    yield client
    client.connection.close()


@pytest.fixture
def server():
    server = End()
    yield server
    server.connection.close()


def link(client, server):
    """Authenticate a link; return what the client finds out, and what the server does."""
    said = client.offer()
    answer = server.offer(client.journal.id)
    return client.meet(answer, said), server.meet(said, answer)


def arrive(payer, payee, sent):
    """Carry a transfer to the payee, and return the number of the receipt."""
    key, amount, number = sent.transfer.key, int(sent.transfer.amount), sent.transfer.number
    received = payee.receive(key, amount=amount, peer=payer.journal.id, number=number, apply=accept)
    assert received.refusal is None
    return received.receipt


def pay(payer, payee, *keys):
    for key in keys:
        sent = payer.begin(key, peer=payee.journal.id)
        payer.answer(sent, receipt=arrive(payer, payee, sent))


def named(find, end, peer, lost):
    """Return the keys of the transfers that an end finds in its journal and that the peer has lost."""
    return [key for key, _ in find(end.connection, "", peer.journal.id, lost)]


NOTHING = Meeting(), Meeting()


def test_complete_journals_are_never_doubted(client, server):
    """A false alarm would put open transfers in doubt, which an operator must settle."""
    for number in range(3):
        assert link(client, server) == NOTHING
        pay(client, server, f"out {number}", f"other {number}")
        pay(server, client, f"in {number}")
        # One whose reply is lost, one that is lost itself, one that is refused, and one that is withdrawn.
        arrive(client, server, client.begin(f"reply lost {number}", peer=server.journal.id))
        client.begin(f"lost {number}", peer=server.journal.id)
        client.answer(client.begin(f"refused {number}", peer=server.journal.id), REFUSAL)
        withdrawn = client.begin(f"withdrawn {number}", peer=server.journal.id)
        assert client.journal.outgoing.withdraw(client.connection, withdrawn)
        client.now += 100.0
        server.now += 100.0
    assert link(client, server) == NOTHING
    for book in (client, server):
        book.reopen()
    assert link(client, server) == NOTHING
    assert client.state("lost 0") is TransferState.SENT


@pytest.mark.parametrize("lost", [1, 3])
@pytest.mark.parametrize("older", ["client", "server"])
def test_restored_copy_of_the_payee_is_noticed_at_both_ends(client, server, older, lost):
    """The payer would send its open transfers again, to a journal that has forgotten that it applied them."""
    payer, payee = (server, client) if older == "client" else (client, server)
    link(client, server)
    pay(payer, payee, "before")
    copy = payee.copy()
    pay(payer, payee, *(f"k{number}" for number in range(lost)))
    payer.begin("open", amount=7, peer=payee.journal.id)
    payee.restore(copy)
    found = dict(zip(("client", "server"), link(client, server), strict=True))
    restored = found.pop(older)
    [other] = found.values()
    assert (
        f"its journal is an old copy: it does not know {lost} transfers that it has acknowledged, and 0"
        in other.trouble
    )
    assert (other.lost_credits.count, other.missing, other.doubts, other.amount) == (lost, 0, 1, 7)
    assert named(payer.journal.peers.credits_lost, payer, payee, other.lost_credits) == [
        f"k{number}" for number in reversed(range(lost))
    ]
    assert f"this journal is an old copy: it does not know {lost} transfers" in restored.trouble
    assert (restored.lost_credits.count, restored.missing) == (0, lost)
    assert payer.state("open") is TransferState.IN_DOUBT
    # It is reported once, and new transfers are sent as usual.
    pay(payer, payee, "after")
    assert link(client, server) == NOTHING


@pytest.mark.parametrize("undone", ["nothing", "refused", "withdrawn"])
@pytest.mark.parametrize("older", ["client", "server"])
def test_restored_copy_of_the_payer_is_noticed_at_both_ends(client, server, older, undone):
    """It would pay again what it has paid since the copy; one missing transfer is enough to notice it."""
    payer, payee = (client, server) if older == "client" else (server, client)
    link(client, server)
    pay(payer, payee, "before")
    for number in range(3):
        # A transfer that was not applied does not hide one that was.
        if undone == "refused":
            payer.answer(payer.begin(f"k{number}", peer=payee.journal.id), REFUSAL)
        elif undone == "withdrawn":
            payer.journal.outgoing.withdraw(payer.connection, payer.begin(f"k{number}", peer=payee.journal.id))
    copy = payer.copy()
    pay(payer, payee, "since")
    payer.restore(copy)
    found = dict(zip(("client", "server"), link(client, server), strict=True))
    restored = found.pop(older)
    [other] = found.values()
    assert "this journal is an old copy: it does not know 0" in restored.trouble
    assert "and 1 that it has sent" in restored.trouble
    assert "its journal is an old copy: it does not know 0" in other.trouble
    assert "and 1 that it has sent" in other.trouble
    assert named(payee.journal.peers.sendings_lost, payee, payer, other.lost_sendings) == ["since"]
    pay(payer, payee, "after")
    assert link(client, server) == NOTHING


def test_restored_copy_with_an_open_transfer_leaves_it_in_doubt(client, server):
    link(client, server)
    sent = client.begin("open", amount=7, peer=server.journal.id)
    copy = client.copy()
    client.answer(sent, receipt=arrive(client, server, sent))
    pay(client, server, "since")
    client.restore(copy)
    assert link(client, server)[0].doubts == 1
    assert client.state("open") is TransferState.IN_DOUBT
    # The operator's word does not count for the peer's journal.
    client.settle("open", TransferState.ACKED)
    assert link(client, server) == NOTHING


def test_transfer_in_flight_hides_no_loss_of_the_payee(client, server):
    """Sums would agree: the copy knows one that the payer has no reply to, instead of one that it has."""
    link(client, server)
    slow = client.begin("slow", peer=server.journal.id)
    arrive(client, server, slow)
    copy = server.copy()
    pay(client, server, "lost")
    server.restore(copy)
    of_client, of_server = link(client, server)
    assert (of_client.lost_credits.count, of_server.missing, of_client.doubts) == (1, 1, 1)
    assert named(client.journal.peers.credits_lost, client, server, of_client.lost_credits) == ["lost"]


def test_repeated_reply_has_the_number_of_the_first(client, server):
    link(client, server)
    sent = client.begin("k", peer=server.journal.id)
    first = arrive(client, server, sent)
    pay(client, server, "later")
    assert [first, arrive(client, server, sent)] == [1, 1]


def test_transfer_that_never_arrived_hides_no_loss_of_the_payer(client, server):
    link(client, server)
    client.begin("never arrives", peer=server.journal.id)
    copy = client.copy()
    pay(client, server, "lost")
    client.restore(copy)
    of_client, of_server = link(client, server)
    assert "and 1 that it has sent" in of_client.trouble
    assert of_server.lost_sendings.count == 1
    assert named(server.journal.peers.sendings_lost, server, client, of_server.lost_sendings) == ["lost"]
    assert client.state("never arrives") is TransferState.IN_DOUBT


def test_numbers_go_on_behind_what_the_peer_knows(client, server):
    """A number that is used twice would hide the loss of the next copy."""
    link(client, server)
    copy = client.copy()
    pay(client, server, "a", "b")
    pay(server, client, "c", "d", "e")
    client.restore(copy)
    link(client, server)
    assert client.begin("next", peer=server.journal.id).transfer.number == 3
    assert client.receive("next", peer=server.journal.id, number=4).receipt == 4


@pytest.mark.parametrize("replaced", ["client", "server"])
def test_replaced_journal_is_noticed_and_its_keys_are_new(client, server, replaced):
    link(client, server)
    pay(client, server, "bill 1")
    pay(server, client, "bill 2")
    for payer, payee in ((client, server), (server, client)):
        payer.begin("open", peer=payee.journal.id)
    ends = {"client": client, "server": server}
    ends[replaced].restore(connect())
    found = dict(zip(("client", "server"), link(client, server), strict=True))
    [other] = found.keys() - {replaced}
    assert found[replaced] == Meeting()
    assert "it was replaced" in found[other].trouble
    assert found[other].doubts == 1
    assert link(client, server) == NOTHING
    pay(ends[replaced], ends[other], "bill 1", "bill 2")
    assert ends[other].totals().received == 15


def test_numbers_of_a_journal_are_known_again_when_it_returns(client, server):
    """An end that is restored after all must be compared with what it has sent and credited."""
    link(client, server)
    pay(client, server, "a", "b")
    first = server.copy()
    second = connect()
    server.restore(second)
    assert "replaced" in link(client, server)[0].trouble
    pay(client, server, "c")
    server.connection = first
    server.reopen()
    assert client.journal.peers.numbers(client.connection, "", server.journal.id) == PeerNumbers(
        server.journal.id, 2, 2, 0, 0
    )
    assert "replaced" in link(client, server)[0].trouble
    assert client.journal.peers.numbers(client.connection, "", None) == PeerNumbers(server.journal.id, 2, 2)
    assert link(client, server) == NOTHING
    second.close()


def test_younger_journal_is_a_restored_one(book):
    """Nothing was exchanged since the copy, but the keys of the time between may be missing."""
    book.journal.peers.meet(book.connection, "", journal_of("first", 500.0))
    book.peer_age = 500.0
    book.begin("open", amount=7)
    meeting = book.journal.peers.meet(book.connection, "", journal_of("first", 440.0))
    assert meeting == Meeting(
        "its journal is 60 s younger than before: it was restored from a copy", doubts=1, amount=7
    )
    assert book.state("open") is TransferState.IN_DOUBT
    # From then on, its new age is the one that counts.
    assert book.journal.peers.meet(book.connection, "", journal_of("first", 440.0)) == Meeting()
    assert book.journal.peers.meet(book.connection, "", journal_of("first", 439.9995)) == Meeting()


@pytest.mark.parametrize(
    ("theirs", "tells"),
    [(None, False), (PeerNumbers("another journal", 0, 0, 0), True)],
    ids=["says nothing", "of another journal"],
)
def test_peer_that_counts_nothing_for_this_journal_is_trusted(book, theirs, tells):
    """Its store did not answer in time, or it knew an earlier journal of this end."""
    book.pay("k")
    said = JournalOffer(PEER_RETENTION, book.journal.id, 0.0, PeerNumbers("first", 1, 1, 0), tells_peer=True)
    offer = JournalOffer(PEER_RETENTION, "first", 1000.0, theirs, tells)
    assert book.journal.peers.meet(book.connection, "", PeerJournal(offer, said, inf)) == Meeting()


def test_peer_that_knows_no_journal_has_lost_everything(book):
    book.pay("k")
    said = JournalOffer(PEER_RETENTION, book.journal.id, 0.0, PeerNumbers("first", 1, 1, 0), tells_peer=True)
    offer = JournalOffer(PEER_RETENTION, "first", 1000.0, None, tells_peer=True)
    meeting = book.journal.peers.meet(book.connection, "", PeerJournal(offer, said, inf))
    assert (meeting.lost_credits.count, "it does not know 1 transfers" in meeting.trouble) == (1, True)


def test_accounts_have_peers_of_their_own(book):
    book.pay("k", account="alice", peer="first")
    book.pay("k", account="bob", peer="second")
    numbers = book.journal.peers.numbers
    assert numbers(book.connection, "alice", None) == PeerNumbers("first", 1)
    assert numbers(book.connection, "bob", "second") == PeerNumbers("second", 1)
    assert numbers(book.connection, "bob", "first") is None
    assert numbers(book.connection, "eve", None) is None
    assert book.journal.peers.meet(book.connection, "bob", journal_of("second")) == Meeting()


def test_journals_that_were_left_long_ago_are_forgotten(book):
    """A peer that shows another journal on each link would fill the store."""
    for number in range(4):
        book.journal.peers.use(book.connection, "", f"journal {number}", 0.0)
        book.now += MAX_RETENTION / 2 + 1
    assert book.select("SELECT journal FROM lpi_peers ORDER BY journal") == [("journal 1",), ("journal 2",)]


def test_number_of_journals_that_are_remembered_is_limited(book):
    for number in range(3 * peers.MAX_OLDER):
        book.journal.peers.use(book.connection, "", f"journal {number}", 0.0)
        book.now += 1
    kept = book.select("SELECT journal FROM lpi_peers ORDER BY age")
    assert kept == [(f"journal {number}",) for number in range(2 * peers.MAX_OLDER - 1, 3 * peers.MAX_OLDER - 1)]


def acknowledge(book, key, receipt, **which):
    book.answer(book.begin(key, **which), receipt=receipt)


def credits_lost(book, count, after=0, journal="first", account=""):
    return book.journal.peers.credits_lost(book.connection, account, journal, Lost(count, after))


def sendings_lost(book, count, after=0, journal="first"):
    return book.journal.peers.sendings_lost(book.connection, "", journal, Lost(count, after))


def test_lost_transfers_are_named_newest_first(book):
    for number in range(8):
        acknowledge(book, f"k{number}", number + 1, amount=number + 1)
        book.receive(f"r{number}", amount=number + 1, number=number + 1, apply=accept)
    acknowledge(book, "another account", 9, account="alice")
    acknowledge(book, "another journal", 9, peer="second")
    book.pay("without a receipt")
    book.begin("open")
    book.receive("refused", number=9, apply=refuse)
    assert credits_lost(book, 2, 6) == [("k7", "8"), ("k6", "7")]
    assert sendings_lost(book, 2, 6) == [("r7", "8"), ("r6", "7")]
    assert [key for key, _ in credits_lost(book, 100)] == ["k7", "k6", "k5", "k4", "k3"]
    assert [key for key, _ in sendings_lost(book, 100)] == ["r7", "r6", "r5", "r4", "r3"]
    assert credits_lost(book, 0) == sendings_lost(book, 0) == []
    assert credits_lost(book, 9, journal="third") == sendings_lost(book, 9, journal="third") == []


def test_search_for_lost_transfers_is_limited(book, monkeypatch):
    """It must not read a history of millions while money waits."""
    monkeypatch.setattr(peers, "SLICE", 2)
    monkeypatch.setattr(peers, "SLICES", 3)
    acknowledge(book, "far back", 1)
    acknowledge(book, "near", 2)
    for number in range(5):
        book.receive(f"k{number}", apply=accept)
    assert credits_lost(book, 5) == [("near", "5")]


def test_peer_that_claims_enormous_numbers_is_still_served(client, server):
    """They must not make the next transfer's number overflow, which some databases refuse."""
    link(client, server)
    most = negotiation.MAX_NUMBER
    numbers = PeerNumbers(server.journal.id, most, most, most, most)
    claim = JournalOffer(PEER_RETENTION, client.journal.id, 1e6, numbers, True)
    told = negotiation.read_offer(json.dumps(claim.as_json()).encode())
    assert told == claim
    assert "this journal is an old copy" in server.meet(told, server.offer(client.journal.id)).trouble
    pay(client, server, "a")
    pay(server, client, "b")
    known = server.journal.peers.numbers(server.connection, "", client.journal.id)
    assert known == PeerNumbers(client.journal.id, most + 1, 1, 1, most + 1)
    assert {type(number) for number in (known.sent, known.credited)} == {int}
