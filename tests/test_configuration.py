"""Asking for the plugin's own address and asset: the request, the response, and the errors."""

from datetime import UTC, datetime
from typing import Any

import pytest

from trio_ledger_plugin import DecodeError, NotConnectedError, RemoteError, create_plugin, fetch_ildcp, loopback_pair
from trio_ledger_plugin.codec import ildcp, ilp

RESPONSE = ildcp.IldcpResponse("example.parent.child", 9, "XRP")


async def test_parents_configuration_is_returned() -> None:
    """Amounts in the wrong scale are wrong by powers of ten."""
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


async def test_reject_raises_remote_error() -> None:
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
async def test_other_response_raises_decode_error(answer: Any) -> None:
    async def parent(data: bytes) -> bytes:
        response: bytes = answer
        return response

    async with loopback_pair() as (child, other):
        other.register_data_handler(parent)
        with pytest.raises(DecodeError):
            await fetch_ildcp(child)


async def test_plugin_that_is_not_connected_raises(nursery: Any) -> None:
    plugin = create_plugin({"plugin": "loopback"}, nursery=nursery)
    with pytest.raises(NotConnectedError):
        await fetch_ildcp(plugin)
