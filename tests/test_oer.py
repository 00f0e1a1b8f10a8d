"""The OER parts: lengths are canonical, and are used only if so many bytes follow."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import moments

from trio_ledger_plugin.codec import oer
from trio_ledger_plugin.errors import DecodeError, InvalidFieldsError

NO_BYTES: Any = "text"


@pytest.mark.parametrize(
    ("length", "written"),
    [(0, "00"), (127, "7f"), (128, "8180"), (255, "81ff"), (256, "820100"), (65535, "82ffff"), (65536, "83010000")],
)
def test_length_takes_its_shortest_form(length: int, written: str) -> None:
    """In another form, every peer would drop the packet as unreadable."""
    assert oer.length_prefix(length).hex() == written
    data = bytes.fromhex(written) + bytes(length)
    assert oer.read_length(data, 0) == (length, len(written) // 2)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("", "ends before a length"),
        ("80", "1 to 8 bytes, not 0"),
        ("89010000000000000000", "1 to 8 bytes, not 9"),
        ("8180", "128 bytes, but 0 follow"),
        ("8201", "takes 2 bytes, but 1 are left"),
        ("817f" + "00" * 127, "127 is not in its shortest form"),
        ("820080" + "00" * 128, "128 is not in its shortest form"),
        ("8500000000ff" + "00" * 255, "255 is not in its shortest form"),
        ("88ffffffffffffffff00", "18446744073709551615 bytes, but 1 follow"),
        ("0200", "2 bytes, but 1 follow"),
    ],
)
def test_wrong_length_is_refused_with_a_reason(written: str, complaint: str) -> None:
    """A lenient reader would give one packet two meanings; a trusting one could be made to allocate any size."""
    with pytest.raises(DecodeError, match=complaint):
        oer.read_octets(bytes.fromhex(written), 0)


@given(st.binary(max_size=300), st.binary(max_size=20), st.binary(max_size=20))
def test_octets_round_trip_between_other_bytes(value: Any, before: bytes, after: bytes) -> None:
    """With a wrong offset, every later field would be read from the wrong place."""
    written = oer.octets(value, "data")
    assert oer.read_octets(before + written + after, len(before)) == (value, len(before) + len(written))


@given(st.integers(0, 2**64 - 1))
def test_integers_round_trip(value: Any) -> None:
    assert oer.read_uint(b"-" + oer.uint(value, 8, "amount"), 1, 8) == (value, 9)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (-1, "amount is negative: it must be an integer from 0 to 255"),
        (256, "amount is too large: it must be an integer from 0 to 255"),
        pytest.param(10**5000, "amount is too large", id="huge"),
        ("1", "amount is str"),
        (1.0, "amount is float"),
        (None, "amount is NoneType"),
    ],
)
def test_integer_out_of_range_is_named(value: Any, complaint: str) -> None:
    """A wrapped amount is money lost: 2**64 must never become 0."""
    with pytest.raises(InvalidFieldsError, match=complaint):
        oer.uint(value, 1, "amount")


def test_octets_too_long_or_of_wrong_type_are_refused() -> None:
    with pytest.raises(InvalidFieldsError, match="data has 4 bytes: at most 3 are allowed"):
        oer.octets(b"1234", "data", 3)
    with pytest.raises(InvalidFieldsError, match="data is str: it must be bytes"):
        oer.octets(NO_BYTES, "data")
    assert oer.octets(memoryview(b"123"), "data", 3) == oer.octets(bytearray(b"123"), "data") == b"\x03123"


@pytest.mark.parametrize("value", ["é", "\x80", b"ilp", None])
def test_text_outside_ascii_is_never_written(value: Any) -> None:
    """JavaScript peers mask the high bit, so such text could become a reserved name there."""
    with pytest.raises(InvalidFieldsError, match="name must be text of ASCII characters only"):
        oer.ia5(value, "name")


@pytest.mark.parametrize("value", [None, "text", 3, object()])
def test_only_bytes_are_decoded(value: Any) -> None:
    """``bytes(3)`` is three zero bytes: an integer must not pass for a packet."""
    with pytest.raises(DecodeError, match="a packet is bytes"):
        oer.as_bytes(value)


@given(moments)
def test_times_round_trip(moment: Any) -> None:
    assert oer.read_time(oer.time_digits(moment, "time").encode()) == moment


def test_time_is_written_in_utc() -> None:
    """An expiry written in local time would end hours early or late."""
    moment = datetime(2017, 12, 24, 18, 14, 32, 279_000, tzinfo=timezone(timedelta(hours=2)))
    assert oer.time_digits(moment, "time") == "20171224161432279"


@pytest.mark.parametrize(
    ("microsecond", "digits"),
    [(279_499, "32279"), (279_500, "32280"), (999_499, "32999"), (999_500, "33000"), (0, "32000")],
)
def test_time_is_rounded_to_milliseconds(microsecond: int, digits: str) -> None:
    """Cut off, an expiry loses half a millisecond on average at every node that writes it again."""
    moment = datetime(2017, 12, 24, 16, 14, 32, microsecond, tzinfo=UTC)
    assert oer.time_digits(moment, "time", rounded=True) == f"201712241614{digits}"


@pytest.mark.parametrize(
    "moment",
    [
        datetime(2017, 12, 24),  # noqa: DTZ001  # the naive time is what is tested
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
        "20171224161432279",
        None,
    ],
)
def test_naive_or_impossible_time_is_refused(moment: Any) -> None:
    with pytest.raises(InvalidFieldsError, match="triggered_at must be an aware datetime"):
        oer.time_digits(moment, "triggered_at")


def test_time_that_rounds_to_the_year_10000_is_cut_off() -> None:
    assert oer.time_digits(datetime.max.replace(tzinfo=UTC), "time", rounded=True) == "99991231235959999"


@pytest.mark.parametrize(
    "digits",
    [
        b"",
        b"2017122416143227",
        b"201712241614322790",
        b"20171324161432279",
        b"20170229161432279",
        b"00000101000000000",
        b"20171224240000000",
        b"20171224161460000",
        b"+0171224161432279",
        b" 0171224161432279",
        "\N{FULLWIDTH DIGIT TWO}01712241614322".encode(),
    ],
)
def test_invalid_time_is_refused(digits: bytes) -> None:
    """JavaScript turns a 13th month into the next year: the two ends would disagree on when a packet expires."""
    with pytest.raises(DecodeError, match="is not a time"):
        oer.read_time(digits)


def test_decode_errors_name_no_request() -> None:
    """An unreadable packet must not get a reply (RFC-0023), so its error names no request."""
    with pytest.raises(DecodeError) as caught:
        oer.read_ia5(b"\xe9", "a name")
    assert (caught.value.packet_type, caught.value.request_id) == (None, None)
