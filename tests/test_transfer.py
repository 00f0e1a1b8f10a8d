"""Transfers and their keys: what is accepted here decides who can be made to pay twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ledger_plugin import InvalidFieldsError, MoneyLevel, Transfer, current_transfer
from trio_ledger_plugin.transfer import TRANSITIONS, TransferState, check_amount, check_key, is_key


@pytest.mark.parametrize("text", ["k", "k" * 64, "a b", "~!@#", "0", "a\nb", "\x7f"])
def test_key_is_1_to_64_ascii_characters(text):
    assert is_key(text)
    assert check_key(text) == text


@pytest.mark.parametrize("text", ["", "k" * 65, "ü", "\x80", "\ufffd", "k\u200b", "\x00", "a\x00b"])
def test_other_text_is_not_a_key(text):
    """Some databases end text at NUL: two keys would be the same one."""
    assert not is_key(text)
    with pytest.raises(InvalidFieldsError, match="1 to 64 ASCII"):
        check_key(text)


@given(st.text(max_size=80))
def test_every_key_round_trips_in_a_packet(text):
    if is_key(text):
        assert text.encode("ascii").decode("ascii") == text
        assert 1 <= len(text.encode()) <= 64


def test_missing_key_is_generated_and_another_type_refused():
    assert len({check_key(None) for _ in range(100)}) == 100
    assert is_key(check_key(None))
    with pytest.raises(TypeError, match="text, not int"):
        check_key(5)


@given(st.integers(-(2**70), 2**70))
def test_amount_is_1_to_2_64_as_text_or_int(number):
    for amount in (number, str(number)):
        if 1 <= number < 2**64:
            assert check_amount(amount) == str(number)
        else:
            with pytest.raises(InvalidFieldsError, match="1 to"):
                check_amount(amount)


@pytest.mark.parametrize("amount", ["", "1.0", "+1", " 1", "1_0", "٣", "1e3", "0x1", "9" * 5000])
def test_amount_in_another_notation_is_refused(amount):
    with pytest.raises(InvalidFieldsError, match="in digits"):
        check_amount(amount)


@pytest.mark.parametrize("amount", [True, 1.0, None, b"1"])
def test_amount_of_another_type_is_refused(amount):
    with pytest.raises(TypeError, match="amount is decimal text or an int"):
        check_amount(amount)


def test_every_state_is_in_the_table_and_final_ones_stay():
    assert set(TRANSITIONS) == set(TransferState)
    final = {state for state, following in TRANSITIONS.items() if not following}
    assert final == {TransferState(name) for name in ("acked", "rejected", "delivered", "refused")}


def test_transfer_repr_shows_no_digest():
    assert "secret" not in repr(Transfer("5", "alice", key="k", level=MoneyLevel.KEYED, digest=b"secret"))


def test_current_transfer_fails_outside_a_money_handler():
    with pytest.raises(RuntimeError, match="money handler only"):
        current_transfer()
