"""Hypothesis strategies and the recorded vectors, shared by the tests."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from trio_ledger_plugin.codec import btp, ilp, stream

# A busy machine is no failing test.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")

VECTORS = Path(__file__).parents[1] / "vectors"


def vectors(name: str) -> list[Any]:
    """The vectors of one file as pytest parameters, each under its own id."""
    return [pytest.param(v, id=v["id"]) for v in json.loads((VECTORS / f"{name}.json").read_text())["vectors"]]


def same_octets(value: bytes, recorded: Any, field: str = "data") -> bool:
    """Whether bytes are the recorded ones, which stand there as hex or, where long, as size and digest."""
    if field in recorded:
        return bool(value.hex() == recorded[field])
    digest = hashlib.sha256(value).hexdigest()
    return bool(len(value) == recorded[f"{field}Len"] and digest == recorded[f"{field}Sha256"])


def recorded_time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


request_ids = st.integers(0, 2**32 - 1)
amounts = st.integers(0, 2**64 - 1)
ia5_texts = st.text(st.characters(max_codepoint=0x7F), max_size=40)

# Sizes around the borders of the length forms, which random lists seldom reach.
payloads = st.binary(max_size=300) | st.sampled_from([119, 120, 127, 128, 246, 247, 255, 256, 65525, 65526, 65536]).map(
    lambda size: bytes(i % 251 for i in range(size))
)

moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001  # Hypothesis wants them naive
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
)
# BTP never writes a last digit of zero.
btp_moments = moments.map(
    lambda moment: moment if moment.microsecond // 1000 % 10 else moment + timedelta(milliseconds=1)
)

entries = st.lists(
    st.builds(btp.ProtocolData, ia5_texts, st.integers(0, 255), st.binary(max_size=40) | payloads),
    max_size=5,
    unique_by=lambda entry: entry.protocol_name,
).map(tuple)

btp_packets = st.one_of(
    st.builds(btp.Response, request_ids, entries),
    st.builds(btp.Message, request_ids, entries),
    st.builds(btp.Transfer, request_ids, amounts, entries),
    st.builds(
        btp.Error,
        request_ids,
        st.text(st.characters(max_codepoint=0x7F), min_size=3, max_size=3),
        ia5_texts,
        btp_moments,
        st.binary(max_size=300),
        entries,
    ),
)

segments = st.text("abcXYZ019_~-", min_size=1, max_size=12)
schemes = st.sampled_from(["g", "private", "example", "peer", "self", "test", "test1", "test2", "test3", "local"])
addresses = st.builds(
    lambda scheme, rest: ".".join([scheme, *rest]), schemes, st.lists(segments, min_size=1, max_size=5)
)
digests = st.binary(min_size=32, max_size=32)
ilp_data = st.binary(max_size=300) | st.sampled_from([bytes(32_766), bytes(32_767)])

ilp_packets = st.one_of(
    st.builds(ilp.Prepare, amounts, moments, digests, addresses, ilp_data),
    st.builds(ilp.Fulfill, digests, ilp_data),
    st.builds(
        ilp.Reject,
        st.text(st.characters(max_codepoint=0x7F), min_size=3, max_size=3),
        addresses | st.just(""),
        st.text(max_size=300),
        ilp_data,
    ),
)

wide_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
stream_frames = st.one_of(
    st.builds(stream.ConnectionClose, st.integers(0, 255), wide_texts),
    st.builds(stream.ConnectionNewAddress, st.just("") | addresses),
    st.builds(stream.ConnectionMaxData, amounts),
    st.builds(stream.ConnectionDataBlocked, amounts),
    st.builds(stream.ConnectionMaxStreamId, amounts),
    st.builds(stream.ConnectionStreamIdBlocked, amounts),
    st.builds(stream.ConnectionAssetDetails, wide_texts, st.integers(0, 255)),
    st.builds(stream.StreamClose, amounts, st.integers(0, 255), wide_texts),
    st.builds(stream.StreamMoney, amounts, amounts),
    st.builds(stream.StreamMaxMoney, amounts, amounts, amounts),
    st.builds(stream.StreamMoneyBlocked, amounts, amounts, amounts),
    st.builds(stream.StreamData, amounts, amounts, st.binary(max_size=300)),
    st.builds(stream.StreamMaxData, amounts, amounts),
    st.builds(stream.StreamDataBlocked, amounts, amounts),
    st.builds(stream.StreamReceipt, amounts, st.binary(min_size=58, max_size=58)),
    st.builds(stream.UnknownFrame, st.sampled_from([0, 8, 15, 24, 255]), st.binary(max_size=300)),
)
stream_packets = st.builds(
    stream.Packet,
    amounts,
    st.sampled_from([stream.PREPARE, stream.FULFILL, stream.REJECT]),
    amounts,
    st.lists(stream_frames, max_size=8).map(tuple),
)
