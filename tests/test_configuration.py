"""Asking for one's own address and asset: what is asked, what is told, and what goes wrong under its right name."""

from datetime import UTC, datetime
from typing import Any

import pytest

from trio_ledger_plugin import DecodeError, NotConnectedError, RemoteError, create_plugin, fetch_ildcp, loopback_pair
from trio_ledger_plugin.codec import ildcp, ilp

RESPONSE = ildcp.IldcpResponse("example.parent.child", 9, "XRP")


async def test_the_parents_answer_is_told() -> None:
    """Amounts read by another scale are wrong by powers of ten."""
    asked: list[Any] = []

    async def parent(data: bytes) -> bytes:
        asked.append(ildcp.decode(data))
        return ildcp.encode(RESPONSE)

    async with loopback_pair() as (child, other):
        other.register_data_handler(parent)
        assert await fetch_ildcp(child) == RESPONSE
    assert isinstance(asked[0], ildcp.IldcpRequest)
    assert asked[0].amount == 0
    assert asked[0].expires_at > datetime.now(UTC)


async def test_a_reject_is_the_peers_error() -> None:
    async def parent(data: bytes) -> bytes:
        return ilp.encode(ilp.Reject("T01", "example.parent", "no uplink"))

    async with loopback_pair() as (child, other):
        other.register_data_handler(parent)
        with pytest.raises(RemoteError, match=r"T01.*no uplink") as caught:
            await fetch_ildcp(child)
    assert caught.value.code == "T01"


@pytest.mark.parametrize(
    "answer", [b"", b"rubbish", ildcp.encode(ildcp.IldcpRequest()), ilp.encode(ilp.Fulfill(bytes(32)))]
)
async def test_an_answer_that_is_none_is_not_read_as_one(answer: Any) -> None:
    async def parent(data: bytes) -> bytes:
        response: bytes = answer
        return response

    async with loopback_pair() as (child, other):
        other.register_data_handler(parent)
        with pytest.raises(DecodeError):
            await fetch_ildcp(child)


async def test_a_plugin_that_is_not_connected_is_told_so(nursery: Any) -> None:
    plugin = create_plugin({"plugin": "loopback"}, nursery=nursery)
    with pytest.raises(NotConnectedError):
        await fetch_ildcp(plugin)
