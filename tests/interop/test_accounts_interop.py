"""What clients of ilp-plugin-mini-accounts would lose: the real ilp-plugin-btp dials our many-account server."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import AccountConnected, AccountDisconnected, Connected, PluginServices, open_plugin
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.codec import ildcp, ilp
from trio_ledger_plugin.stores import MemoryStore

from .node import NodeCallError, NodePeer, open_node_peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.interop

HOST = "example.host"
OPTIONS = {
    "plugin": "ilp-plugin-mini-accounts",
    "port": 0,
    "debugHostIldcpInfo": {"clientAddress": HOST, "assetScale": 9, "assetCode": "XRP"},
}


@asynccontextmanager
async def serving(store: Any = None, **how: Any) -> AsyncIterator[AccountsPlugin]:
    async with open_plugin(OPTIONS, PluginServices(store=store), **how) as plugin:
        assert isinstance(plugin, AccountsPlugin)
        yield plugin


async def enter(peer: NodePeer, plugin: AccountsPlugin, userinfo: str) -> None:
    """Connect as ilp-plugin-btp does, with ``name:token``."""
    await peer.connect(plugin.address.replace("://", f"://{userinfo}@"))


async def told_address(peer: NodePeer) -> str:
    answer = ildcp.decode(await peer.send_data(ildcp.encode(ildcp.IldcpRequest())))
    assert isinstance(answer, ildcp.IldcpResponse)
    assert (answer.asset_scale, answer.asset_code) == (9, "XRP")
    return answer.client_address


async def reverse(data: bytes) -> bytes:
    return data[::-1]


async def test_clients_get_their_addresses_and_exchange_requests_both_ways() -> None:
    token = "0123456789abcdef"
    generated = urlsafe_b64encode(sha256(token.encode()).digest()).decode().rstrip("=")
    async with AsyncExitStack() as stack:
        plugin = await stack.enter_async_context(serving(MemoryStore(), data_handler=reverse))
        alice, unnamed = [await stack.enter_async_context(open_node_peer()) for _ in range(2)]
        await enter(alice, plugin, "alice:secret")
        await enter(unnamed, plugin, f":{token}")
        assert await told_address(alice) == f"{HOST}.alice"
        assert await told_address(unnamed) == f"{HOST}.{generated}"
        # Theirs to us.
        assert await alice.send_many(200, 300) == 200
        assert await unnamed.send_many(200, 300) == 200
        # Ours to each: by name as it is, and by the address of a Prepare.
        await alice.handle_data("reverse")
        assert await plugin.account("alice").send_data(b"live") == b"evil"
        expires_at = datetime.now(UTC) + timedelta(seconds=20)
        prepare = ilp.encode(ilp.Prepare(1, expires_at, bytes(32), f"{HOST}.{generated}.app"))
        await unnamed.handle_data("throw", name="UnreachableError", message="not now")
        with pytest.raises(Exception, match="T00 UnreachableError"):
            await plugin.send_data(prepare)
        assert (await unnamed.stats())["handled"] == 1
        assert (await alice.stats())["handled"] == 1


async def test_two_clients_of_one_account_execute_a_request_once() -> None:
    async with AsyncExitStack() as stack:
        plugin = await stack.enter_async_context(serving(MemoryStore()))
        peers = [await stack.enter_async_context(open_node_peer()) for _ in range(2)]
        for peer in peers:
            await enter(peer, plugin, "alice:secret")
            await peer.handle_data("echo")
        for _ in range(10):
            assert await plugin.account("alice").send_data(b"once") == b"once"
        assert [(await peer.stats())["handled"] for peer in peers] == [0, 10]
        await peers[1].kill()
        await wait_all_tasks_blocked()
        assert await plugin.account("alice").send_data(b"once") == b"once"
        assert (await peers[0].stats())["handled"] == 1


async def test_a_wrong_token_for_a_victims_name_receives_nothing() -> None:
    async with AsyncExitStack() as stack:
        plugin = await stack.enter_async_context(serving(MemoryStore()))
        victim, thief = [await stack.enter_async_context(open_node_peer()) for _ in range(2)]
        await enter(victim, plugin, "alice:secret")
        await victim.handle_data("echo")
        with pytest.raises(NodeCallError):
            await enter(thief, plugin, "alice:guess")
        for _ in range(10):
            assert await plugin.account("alice").send_data(b"private") == b"private"
        assert (await thief.stats())["handled"] == 0
        assert (await thief.stats())["connected"] is False


async def test_money_reaches_its_account_and_names_the_sender() -> None:
    credited: list[str] = []

    async def credit(amount: str) -> None:
        credited.append(amount)

    async with serving(MemoryStore(), money_handler=credit) as plugin, open_node_peer() as peer:
        await enter(peer, plugin, "alice:secret")
        await peer.send_money("250")
        await plugin.account("alice").send_money("75")
        assert (await peer.stats())["received"] == "75"
        assert credited == ["250"]


async def test_account_events() -> None:
    async with serving(MemoryStore()) as plugin:
        async with open_node_peer() as peer:
            await enter(peer, plugin, "alice:secret")
            await peer.disconnect()
            events = [await plugin.events.receive() for _ in range(3)]
            assert events == [Connected(), AccountConnected("alice"), AccountDisconnected("alice")]
        await trio.lowlevel.checkpoint()
