"""Frames split and written without I/O, compared with an independent splitter and with wsproto."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.frames import FRAGMENTS, LIMIT, reader, split_by_reader, split_by_the_book
from support.peers import BINARY, CLOSE, KEY, PING, PONG, TEXT, frame
from wsproto.frame_protocol import FrameProtocol, Opcode

from trio_ledger_plugin.websocket import frames
from trio_ledger_plugin.websocket.frames import FrameKind, OtherFrame, binary_frame, masked_binary_frame

SIZES = [0, 1, 3, 4, 5, 125, 126, 127, 511, 512, 513, 1000, 65535, 65536, 65539]


def every_kind(mask: bytes | None) -> dict[str, list[bytes]]:
    """One sequence of frames of each kind."""

    def f(payload: bytes = b"", opcode: int = BINARY, **how: Any) -> bytes:
        return frame(payload, opcode, mask=mask, **how)

    return {
        "plain": [f(b"plain")],
        "plain of 2 length bytes": [f(bytes(range(200)))],
        "empty": [f()],
        "text": [f(b"text", TEXT)],
        "two fragments": [f(b"frag", fin=False), f(b"ment", 0)],
        "text fragments with a ping between": [
            f(b"fr", TEXT, fin=False),
            f(b"!", PING),
            f(fin=False, opcode=0),
            f(b"", 0),
        ],
        "ping": [f(b"ping", PING)],
        "pong": [f(b"x" * 125, PONG)],
        "close": [f(b"\x03\xe8", CLOSE)],
    }


ILLEGAL: dict[str, dict[str, Any]] = {
    "reserved bit": {"rsv": 4},
    "other reserved bit": {"rsv": 1},
    "unknown opcode": {"opcode": 3},
    "unknown control opcode": {"opcode": 11},
    "length of 2 bytes where 1 does": {"form": 2},
    "length of 8 bytes where 1 does": {"form": 8},
    "fragmented ping": {"opcode": PING, "fin": False},
    "ping with a long length": {"opcode": PING, "form": 2},
    "close past 125 bytes": {"opcode": CLOSE, "payload": bytes(126)},
    "continuation of nothing": {"opcode": 0},
}


@pytest.mark.parametrize("masked", [True, False], ids=["server", "client"])
def test_every_mixture_splits_the_same_at_every_byte(masked: Any) -> None:
    """A frame lost, doubled or moved at a split is a request that never gets its reply."""
    kinds = every_kind(KEY if masked else None)
    for first in kinds.values():
        for second in kinds.values():
            data = b"".join(first + second)
            expected = split_by_the_book(data, masked=masked)
            assert split_by_reader(reader(masked=masked), [data]) == expected
            assert split_by_reader(reader(masked=masked), [data[i : i + 1] for i in range(len(data))]) == expected
            for at in range(1, len(data)):
                assert split_by_reader(reader(masked=masked), [data[:at], data[at:]]) == expected


@pytest.mark.parametrize("masked", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("what", ILLEGAL)
def test_illegal_frame_is_found_in_any_position(what: Any, masked: Any) -> None:
    """If one were accepted, the reader would misread every byte behind it."""
    mask = KEY if masked else None
    bad = frame(mask=mask, **{"payload": b"abc", **ILLEGAL[what]})
    good = frame(b"good", mask=mask)
    for data in (bad, good + bad + good):
        expected = split_by_the_book(data, masked=masked)
        assert expected[-1] is FrameKind.ILLEGAL
        assert split_by_reader(reader(masked=masked), [data]) == expected
        assert split_by_reader(reader(masked=masked), [data[i : i + 1] for i in range(len(data))]) == expected


@pytest.mark.parametrize(("masked", "mask"), [(True, None), (False, KEY)])
def test_frame_masked_like_the_other_role_is_illegal(masked: Any, mask: Any) -> None:
    """RFC 6455, section 5.1: a proxy could be made to cache what an unmasked client sends."""
    assert split_by_reader(reader(masked=masked), [frame(b"abc", mask=mask)]) == [FrameKind.ILLEGAL]


def test_a_length_past_63_bits_is_illegal() -> None:
    data = b"\x82\x7f" + (2**63).to_bytes(8, "big")
    frames = reader(masked=False, limit=2**64)
    assert split_by_reader(frames, [data]) == [FrameKind.ILLEGAL]


def test_a_length_below_64_kib_in_eight_bytes_is_illegal() -> None:
    assert split_by_reader(reader(masked=False), [frame(bytes(200), form=8)]) == [FrameKind.ILLEGAL]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [LIMIT + 1, 65535, 65536, 2**40])
def test_too_big_message_is_refused_at_its_header(size: Any, masked: Any) -> None:
    """Waiting for its end would let an unauthenticated peer fill the memory."""
    mask = KEY if masked else None
    header = frame(bytes(size) if size < 2**20 else b"", mask=mask, form=8 if size >= 65536 else 2)
    header = header[: 2 + (8 if size >= 65536 else 2)]
    if size >= 2**20:
        header = header[:2] + size.to_bytes(8, "big")
    assert split_by_reader(reader(masked=masked), [header[:-1]]) == []
    assert split_by_reader(reader(masked=masked), [header]) == [FrameKind.TOO_BIG]


def test_fragments_count_together() -> None:
    """A million small fragments must not pass a limit that one big frame does not."""
    many = [frame(b"a", fin=False)] + [frame(b"", 0, fin=False)] * (FRAGMENTS - 1)
    assert split_by_reader(reader(masked=False), [*many[:-1], frame(b"", 0)])[-1] == (
        FrameKind.MESSAGE_END,
        frame(b"", 0),
    )
    assert split_by_reader(reader(masked=False), [*many, frame(b"", 0)])[-1] is FrameKind.TOO_BIG
    half = bytes(LIMIT // 2)
    assert split_by_reader(reader(masked=False), [frame(half, fin=False), frame(half, 0)])[-1] != FrameKind.TOO_BIG
    assert (
        split_by_reader(reader(masked=False), [frame(half, fin=False), frame(half + b"x", 0)])[-1] is FrameKind.TOO_BIG
    )


def test_counts_restart_with_each_message() -> None:
    """A peer that always sends in fragments must not be cut off after its fourth message."""
    message = [frame(b"a" * 300, fin=False), frame(b"b" * 300, 0, fin=False), frame(b"c" * 300, 0)]
    assert FrameKind.TOO_BIG not in split_by_reader(reader(masked=False), message * 5)


def test_the_limit_can_be_raised_between_frames() -> None:
    """Authentication allows larger messages at once, including those that arrived with it."""
    frames = reader(masked=False, limit=10)
    frames.feed(frame(b"small") + frame(bytes(100)))
    assert frames.lift(16) == [b"small"]
    frames.max_message = 100
    assert frames.lift(16) == [bytes(100)]


def test_lift_takes_at_most_the_requested_number() -> None:
    """One flooding peer would keep all others waiting."""
    frames = reader(masked=False)
    frames.feed(frame(b"a") * 5)
    assert frames.lift(3) == [b"a"] * 3
    assert frames.lift(3) == [b"a"] * 2
    assert frames.lift(3) == []


def test_nothing_is_lifted_while_a_fragmented_message_is_open() -> None:
    """A binary frame inside another message is illegal; lifting it would reorder the messages."""
    frames = reader(masked=False)
    frames.feed(frame(b"a", fin=False) + frame(b"b"))
    assert frames.lift(16) == []
    first = frames.take_other()
    assert first is not None
    assert first.kind is FrameKind.FRAGMENT
    assert frames.lift(16) == []
    assert frames.take_other() == OtherFrame(FrameKind.ILLEGAL, frame(b"b"))


def test_rest_is_returned_once() -> None:
    """What follows a Close belongs to trio-websocket, byte for byte."""
    frames = reader(masked=False)
    frames.feed(frame(b"a") + b"rest")
    assert frames.lift(16) == [b"a"]
    assert frames.take_rest() == b"rest"
    assert frames.take_rest() == b""


def test_illegal_frame_contains_all_bytes_behind_it() -> None:
    """trio-websocket handles it, and must see it whole."""
    frames = reader(masked=False)
    data = frame(b"abc", rsv=2) + frame(b"behind")
    frames.feed(data)
    assert frames.lift(16) == []
    assert frames.take_other() == OtherFrame(FrameKind.ILLEGAL, data)


any_frames = st.builds(
    frame,
    st.binary(max_size=20) | st.sampled_from([120, 125, 126, 127, 200, 600, LIMIT, LIMIT + 1]).map(bytes),
    st.sampled_from([BINARY] * 4 + [0, TEXT, PING, PONG, CLOSE, 5, 12]),
    fin=st.sampled_from([True, True, True, False]),
    rsv=st.sampled_from([0] * 9 + [1]),
    mask=st.just(KEY),
)


@settings(deadline=None)
@given(st.lists(any_frames, max_size=12), st.data(), st.sampled_from([1, 2, 16]))
def test_any_stream_splits_as_rfc_6455_says(frames: Any, data: Any, most: Any) -> None:
    """From any bytes in any pieces, the reader must get the frames that RFC 6455 defines."""
    whole = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    chunks = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert split_by_reader(reader(masked=True), chunks, most) == split_by_the_book(whole, masked=True)


@settings(deadline=None)
@given(st.binary(max_size=64), st.booleans())
@example(b"\x82\x7e\x00", False)
@example(b"\x82\x7e\xff", False)
@example(b"\x82\xff\xff\xff\xff", True)
def test_any_bytes_split_as_rfc_6455_says(data: Any, masked: Any) -> None:
    """Garbage must neither raise nor count as a message."""
    assert split_by_reader(reader(masked=masked), [data]) == split_by_the_book(data, masked=masked)


@pytest.mark.parametrize("size", SIZES)
def test_written_frames_equal_those_of_wsproto(size: Any) -> None:
    """A frame that others cannot read closes the connection."""
    payload = bytes(i * 7 % 251 for i in range(size))
    server = FrameProtocol(client=False, extensions=[])
    assert binary_frame(payload) == bytes(server.send_data(payload)) == frame(payload)

    masked = masked_binary_frame(payload)
    server.receive_bytes(masked)
    parts = list(server.received_frames())
    assert b"".join(part.payload for part in parts if isinstance(part.payload, bytes)) == payload
    assert parts[-1].message_finished
    assert {part.opcode for part in parts} == {Opcode.BINARY}


@pytest.mark.parametrize("size", SIZES)
def test_frames_of_wsproto_are_lifted_whole(size: Any) -> None:
    payload = bytes(i * 7 % 251 for i in range(size))
    frames = reader(masked=True, limit=70_000)
    frames.feed(bytes(FrameProtocol(client=True, extensions=[]).send_data(payload)))
    assert frames.lift(16) == [payload]
    frames.feed(masked_binary_frame(payload))
    assert frames.lift(16) == [payload]


def test_mask_keys_do_not_repeat() -> None:
    """A page that could predict the key could choose the bytes on the wire (RFC 6455, section 10.3)."""
    keys = [masked_binary_frame(b"")[2:6] for _ in range(3000)]
    assert len(set(keys)) > 2990


@pytest.mark.skipif(find_spec("websockets") is None, reason='needs the extra "speed"')
@given(st.binary(max_size=70_000), st.binary(min_size=4, max_size=4))
def test_masking_in_c_and_in_python_have_the_same_result(payload: bytes, key: bytes) -> None:
    """Whether the extra "speed" is installed must not change a byte."""
    speedups = import_module("websockets.speedups")
    assert frames._xor is speedups.apply_mask
    assert frames._xor(payload, key) == frames.mask_in_python(payload, key)


@given(st.binary(max_size=2000), st.binary(min_size=4, max_size=4))
def test_masking_in_python_is_that_of_the_specification(payload: bytes, key: bytes) -> None:
    masked = bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))
    assert frames.mask_in_python(payload, key) == masked
