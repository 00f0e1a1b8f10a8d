"""What an end says about its journal: only what is understood completely makes a link KEYED."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ledger_plugin import negotiation
from trio_ledger_plugin.negotiation import (
    MAX_NUMBER,
    MAX_OTHERS,
    MAX_RETENTION,
    MIN_RETENTION,
    JournalOffer,
    PeerJournal,
    PeerNumbers,
    read_offer,
)

DAY = 24 * 60 * 60
GOOD: dict[str, Any] = {
    "retention": 7 * DAY,
    "journal": "9f2c52a1f0c14c0f8f6f6a1d2b7d1c55",
    "age": 81233.5,
    "numbers": True,
    "peer": {"journal": "41aa9c0be6d94e0a8a54b0b0a1f6a7de", "sent": 12, "acked": 11, "received": 3, "credited": 2},
    "others": [],
}


def encode(value):
    return json.dumps(value).encode()


def read(**changes):
    """Read the good offer with some fields changed; ``...`` removes one."""
    return read_offer(encode({name: value for name, value in {**GOOD, **changes}.items() if value is not ...}))


def read_peer(**changes):
    told = {name: value for name, value in {**GOOD["peer"], **changes}.items() if value is not ...}
    offer = read(peer=told)
    assert offer is not None
    return offer


@pytest.mark.parametrize("others", [..., None, {}, [None], [GOOD["peer"]] * 5, [GOOD["peer"], {}]])
def test_odd_others_are_not_all_but_the_offer_stands(others):
    """What is not told completely allows no conclusion from what is missing."""
    assert read(others=others).others is None


def test_journal_is_found_among_the_others():
    offer = read(others=[{**GOOD["peer"], "journal": "another", "sent": 5}])
    assert [offer.find(journal) and offer.find(journal).sent for journal in ("another", offer.peer.journal, "x")] == [
        *(5, 12, None)
    ]


@pytest.mark.parametrize("told", [..., None, False, 0, 1, "true", [True]])
def test_end_that_does_not_say_that_it_uses_numbers_gets_none(told):
    """It could take the transfer for another one under the same key."""
    assert not read(numbers=told).numbers


def test_documented_offer_is_read():
    """It is the one on the page about money."""
    numbers = PeerNumbers(GOOD["peer"]["journal"], 12, 11, 3, 2)
    assert read() == JournalOffer(7 * DAY, GOOD["journal"], 81233.5, numbers, tells_peer=True, others=())


@pytest.mark.parametrize(
    "data",
    [
        *(None, b"", b" ", b"{", b"}", b"{}", b"[]", b"null", b"0", b"604800", b'"604800"', b"true"),
        *(b"\xff\xfe", b"{'retention': 1}", b"\x00", b'{"retention": 604800,}'),
        pytest.param(b"[" * 1000, id="deep"),
        pytest.param(b'{"a":' * 200, id="deep objects"),
        pytest.param(b'{"retention":' + b"9" * 900 + b"}", id="a number of 900 digits"),
        pytest.param(encode({**GOOD, "more": "x" * 2048}), id="long"),
        pytest.param(encode([GOOD]), id="list"),
        pytest.param(encode(json.dumps(GOOD)), id="text"),
    ],
)
def test_what_is_no_offer_is_none(data):
    assert read_offer(data) is None


@pytest.mark.parametrize("name", ["retention", "journal", "age"])
def test_missing_or_odd_field_makes_it_no_offer(name):
    odd: list[Any] = [..., None, True, False, [], {}, [1], -1, -0.5, 10**19, 10**400, 1e999, float("nan"), -1e999]
    odd += [604800, 604800.0] if name == "journal" else ["604800", GOOD["journal"]]
    for value in odd:
        assert read(**{name: value}) is None, value


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E400"])
@pytest.mark.parametrize("name", ["retention", "age"])
def test_number_that_is_not_finite_makes_it_no_offer(name, text):
    """Python's json reads them; compared with an age, NaN is neither more nor less."""
    data = encode({**GOOD, name: "here"}).replace(b'"here"', text.encode())
    assert text.encode() in data
    assert read_offer(data) is None


@pytest.mark.parametrize("journal", ["", "x" * 65, "ü", "a\nb", "\x1b[2J", "\x00", "\ud800", "\u202e"])
def test_journal_is_a_short_printable_id(journal):
    """It is written to the log and to the store."""
    assert read(journal=journal) is None
    assert read_peer(journal=journal).peer is None


@pytest.mark.parametrize("journal", ["x", "x" * 64, "an id with spaces"])
def test_every_short_printable_id_is_a_journal(journal):
    offer = read(journal=journal)
    assert offer is not None
    assert offer.journal == journal


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        (DAY - 1, None),
        (DAY - 0.001, None),
        (0, None),
        (DAY, DAY),
        (DAY + 0.9, DAY),
        (30 * DAY, 30 * DAY),
        (30 * DAY + 1, 30 * DAY),
        (10**9, 30 * DAY),
        (1e300, 30 * DAY),
        (2**53 - 1, 30 * DAY),
    ],
)
def test_retention_is_at_least_a_day_and_counts_for_a_month(told, kept):
    """A peer's number must not decide for how long this end keeps trying."""
    assert (MIN_RETENTION, MAX_RETENTION) == (DAY, 30 * DAY)
    offer = read(retention=told)
    assert (None if offer is None else offer.retention) == kept
    assert offer is None or type(offer.retention) is int


@pytest.mark.parametrize(
    "peer",
    [
        *([], {}, "x", 5, True, [GOOD["peer"]]),
        *(
            {**GOOD["peer"], name: odd}
            for name in ("sent", "acked", "received", "credited")
            for odd in (None, True, 1.0, -1, "1", 2**53)
        ),
        *({name: value for name, value in GOOD["peer"].items() if name != gone} for gone in GOOD["peer"]),
    ],
)
def test_odd_numbers_are_no_numbers_but_the_offer_stands(peer):
    """A journal that could not be compared is not one that has lost anything."""
    offer = read(peer=peer)
    assert offer == JournalOffer(7 * DAY, GOOD["journal"], 81233.5, None, tells_peer=False, others=())


def test_null_says_that_no_journal_is_known_and_absence_says_nothing():
    assert [(offer.peer, offer.tells_peer) for offer in (read(peer=None), read(peer=...)) if offer is not None] == [
        (None, True),
        (None, False),
    ]


def test_unknown_fields_are_ignored():
    """A later version may say more."""
    assert read(more={"deep": [1, 2]}) == read()
    assert read_peer(more=1) == read()


ids = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=64)
numbers = st.integers(0, MAX_NUMBER)
ages = st.floats(0, 1e12).map(lambda age: round(age, 3))


@given(
    st.integers(MIN_RETENTION, MAX_RETENTION),
    ids,
    ages,
    st.none() | st.builds(PeerNumbers, ids, numbers, numbers, numbers, numbers),
    st.booleans(),
    st.none() | st.lists(st.builds(PeerNumbers, ids, numbers), max_size=MAX_OTHERS).map(tuple),
)
def test_offers_round_trip(retention, journal, age, peer, tells_peer, others):
    offer = JournalOffer(retention, journal, age, peer if tells_peer else None, tells_peer, others)
    data = encode(offer.as_json())
    assert read_offer(data) == offer


def test_longest_offer_is_short_enough_to_be_read():
    """An end would not understand what the same program says at the other end."""
    most = PeerNumbers("~" * 64, MAX_NUMBER, MAX_NUMBER, MAX_NUMBER, MAX_NUMBER)
    for character in '~"\\':
        offer = JournalOffer(MAX_RETENTION, character * 64, 123456789012.345, most, True, (most,) * MAX_OTHERS)
        assert read_offer(encode(offer.as_json())) == offer


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


def check(offer):
    assert offer is None or (
        MIN_RETENTION <= offer.retention <= MAX_RETENTION
        and offer.age >= 0
        and 1 <= len(offer.journal) <= 64
        and (offer.peer is None or offer.tells_peer)
        and read_offer(encode(offer.as_json())) is not None
    )


@given(st.binary(max_size=200) | json_values.map(encode))
def test_any_data_is_read_or_refused(data):
    check(read_offer(data))


@given(
    st.dictionaries(st.sampled_from([*GOOD, "more"]), json_values),
    st.dictionaries(st.sampled_from([*GOOD["peer"]]), json_values),
)
def test_any_change_of_an_offer_is_read_or_refused(changes, peer_changes):
    check(read(**{"peer": {**GOOD["peer"], **peer_changes}, **changes}))


def test_age_goes_on_from_what_the_peer_said(monkeypatch):
    now = 50.0
    monkeypatch.setattr(negotiation, "clock", lambda: now)
    offer = JournalOffer(DAY, "id", 1000.0)
    journal = PeerJournal.of(offer, said=offer)
    assert (journal.id, journal.retention, journal.age(), journal.said) == ("id", DAY, 1000.0, offer)
    now = 80.5
    assert journal.age() == 1030.5
    # The clock cannot be set, but a machine may lie.
    now = 0.0
    assert journal.age() == 1000.0
