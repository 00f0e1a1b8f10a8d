"""A packet whose text is not decoded yet behaves like one with the text."""

import copy
import pickle
from typing import Any

import attrs
import pytest

from trio_ledger_plugin.codec import ildcp, ilp
from trio_ledger_plugin.codec.lazy_text import with_text
from trio_ledger_plugin.codec.oer import PIECE, octets
from trio_ledger_plugin.errors import DecodeError

LONG = "a" * 8000 + "\N{GRINNING FACE}é"


def read_reject(message: str) -> Any:
    return ilp.decode(ilp.encode(ilp.Reject("F00", "g.a", message, b"data")))


def read_response(asset_code: str) -> Any:
    return ildcp.decode(ildcp.encode(ildcp.IldcpResponse("g.a", 9, asset_code)))


READERS = {
    "a Reject": (read_reject, "message", lambda text: ilp.Reject("F00", "g.a", text, b"data")),
    "an ILDCP response": (read_response, "asset_code", lambda text: ildcp.IldcpResponse("g.a", 9, text)),
}
readers = pytest.mark.parametrize(("read", "name", "make"), READERS.values(), ids=READERS.keys())


def is_read(packet: Any, name: str) -> bool:
    """Whether the text has been decoded."""
    try:
        type(packet).__dict__[name].__get__(packet)
    except AttributeError:
        return False
    return True


@readers
def test_long_text_is_decoded_once_when_it_is_read(read, name, make):
    """Otherwise a peer could fill the memory of a program that never reads the text."""
    packet = read(LONG)
    assert not is_read(packet, name)
    assert getattr(packet, name) == LONG
    assert is_read(packet, name)
    assert getattr(packet, name) is getattr(packet, name)


@readers
@pytest.mark.parametrize("text", ["", "short: é\N{GRINNING FACE}", "a" * 5000], ids=["none", "short", "ASCII"])
def test_short_or_ascii_text_is_decoded_at_once(read, name, make, text):
    packet = read(text)
    assert is_read(packet, name)
    assert packet == make(text)


@readers
@pytest.mark.parametrize(
    "use",
    [
        lambda read, made: read == made,
        lambda read, made: made == read,
        lambda read, made: hash(read) == hash(made),
        lambda read, made: repr(read) == repr(made),
        lambda read, made: attrs.asdict(read) == attrs.asdict(made),
        lambda read, made: attrs.astuple(read) == attrs.astuple(made),
        lambda read, made: attrs.evolve(read) == made,
        lambda read, made: copy.copy(read) == made,
        lambda read, made: copy.deepcopy(read) == made,
        lambda read, made: pickle.loads(pickle.dumps(read)) == made,  # noqa: S301  # it was written here
        lambda read, made: read != attrs.evolve(made, **{attrs.fields(type(made))[2].name: "another"}),
    ],
    ids=["==", "reversed", "hash", "repr", "asdict", "astuple", "evolve", "copy", "deepcopy", "pickle", "!="],
)
def test_undecoded_packet_behaves_like_a_decoded_one(read, name, make, use):
    """Programs compare, copy and store packets; none of them knows that a text is not decoded yet."""
    packet = read(LONG)
    assert not is_read(packet, name)
    assert use(packet, make(LONG))


def test_undecoded_packet_matches_patterns():
    match read_reject(LONG):
        case ilp.Reject("F00", _, message):
            assert message == LONG
        case _:
            pytest.fail("a Reject is no Reject")


def test_undecoded_packet_can_be_encoded_again():
    packet = read_reject(LONG)
    assert ilp.encode(packet) == ilp.encode(ilp.Reject("F00", "g.a", LONG, b"data"))


@readers
def test_undecoded_packet_is_frozen(read, name, make):
    packet = read(LONG)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(packet, name, "another")
    assert getattr(packet, name) == LONG


@readers
@pytest.mark.parametrize("text", ["", LONG], ids=["read", "not read"])
def test_other_attributes_raise_an_attribute_error(read, name, make, text):
    """A typing error must not read as a text."""
    packet = read(text)
    with pytest.raises(AttributeError, match="has no attribute 'messages'"):
        packet.messages  # noqa: B018  # that it raises is the test
    assert not hasattr(packet, "__array__")


@pytest.mark.parametrize("at", [0, PIECE - 3, PIECE - 2, PIECE - 1, PIECE, 3 * PIECE - 1, 8000])
def test_characters_across_two_pieces_are_decoded(at):
    text = "a" * at + "\N{GRINNING FACE}" + "b" * (8001 - at)
    assert read_reject(text).message == text


@pytest.mark.parametrize("at", [0, PIECE - 1, PIECE, 8000])
@pytest.mark.parametrize(
    "bad", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\xf4\x90\x80\x80"], ids=bytes.hex
)
def test_invalid_utf8_is_refused_when_the_packet_is_decoded(bad, at):
    """If it were found only when the text is read, the error would come where no program expects it."""
    message = b"a" * at + bad + b"b" * (8000 - at)
    with pytest.raises(DecodeError, match="a Reject's message is not UTF-8 text"):
        ilp.decode(b"\x0e" + octets(b"F00\x00" + octets(message, "message") + b"\x00", "packet"))


def test_packets_do_not_share_their_text():
    one, other = ilp.Reject("F00", ""), ilp.Reject("F00", "")
    with_text(one, "message", ("1" + LONG).encode())
    with_text(other, "message", ("2" + LONG).encode())
    assert (one.message[0], other.message[0]) == ("1", "2")
