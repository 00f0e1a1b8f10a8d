"""Transfers, their keys and a peer's retention: what is accepted here decides who can be made to pay twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ledger_plugin import MoneyLevel, Transfer, current_transfer
from trio_ledger_plugin.transfer import MIN_RETENTION, is_key, read_retention


@pytest.mark.parametrize("text", ["k", "k" * 64, "a b", "~!@#", "0", "a\nb", "\x00", "\x7f"])
def test_key_is_1_to_64_ascii_characters(text):
    assert is_key(text)


@pytest.mark.parametrize("text", ["", "k" * 65, "ü", "\x80", "\ufffd", "k\u200b"])
def test_other_text_is_not_a_key(text):
    assert not is_key(text)


@given(st.text(max_size=80))
def test_every_key_round_trips_in_a_packet(text):
    if is_key(text):
        assert text.encode("ascii").decode("ascii") == text
        assert 1 <= len(text.encode()) <= 64


@pytest.mark.parametrize("seconds", [MIN_RETENTION, MIN_RETENTION + 1, 9_999_999_999])
def test_retention_of_a_day_or_more_is_accepted(seconds):
    assert read_retention(str(seconds).encode()) == seconds


@given(st.binary(max_size=20))
def test_retention_is_at_least_a_day_or_none(text):
    seconds = read_retention(text)
    assert seconds is None or seconds >= MIN_RETENTION


@pytest.mark.parametrize(
    "text", [None, b"", b"86399", b"-86400", b"+86400", b"86400.0", b" 86400", b"8_6400", b"9" * 11]
)
def test_unreadable_retention_is_none(text):
    assert read_retention(text) is None


def test_transfer_repr_shows_no_digest():
    assert "secret" not in repr(Transfer("5", "alice", key="k", level=MoneyLevel.KEYED, digest=b"secret"))


def test_current_transfer_fails_outside_a_money_handler():
    with pytest.raises(RuntimeError, match="money handler only"):
        current_transfer()
