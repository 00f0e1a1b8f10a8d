"""What a user of moneyd would lose: our client at a real ilp-plugin-mini-accounts, the server that moneyd runs."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import sha256

import pytest
import trio

from trio_ledger_plugin import (
    Connected,
    Disconnected,
    NotAcceptedError,
    NotConnectedError,
    RemoteError,
    fetch_ildcp,
    open_plugin,
)
from trio_ledger_plugin.codec import ildcp, ilp

from .mini_accounts import MiniAccounts, serving, url_of
from .network import FULFILL, HOST, REJECT, Receiver, client, offer, send
from .node import NodeCallError, open_node

pytestmark = pytest.mark.interop


async def test_client_gets_its_address_and_asset() -> None:
    """Below its name where it gives one, else below the hash of its token; their plugin answers, not their host."""
    token = "a-token-without-a-name"
    hashed = urlsafe_b64encode(sha256(token.encode()).digest()).decode().rstrip("=")
    async with serving() as (server, url):
        async with open_plugin(client(url, "alice")) as plugin:
            assert await fetch_ildcp(plugin) == ildcp.IldcpResponse(f"{HOST}.alice", 6, "USD")
        async with open_plugin(client(url, "", token)) as plugin:
            assert await fetch_ildcp(plugin) == ildcp.IldcpResponse(f"{HOST}.{hashed}", 6, "USD")
        assert await server.handled() == []


@pytest.mark.parametrize("answer", [FULFILL, REJECT], ids=["fulfill", "reject"])
async def test_requests_and_their_answers_pass_both_ways_unchanged(answer: ilp.Packet) -> None:
    alice = Receiver(answer)
    async with (
        serving(answer) as (server, url),
        open_plugin(client(url, "alice"), data_handler=alice.handle) as plugin,
    ):
        ours, theirs = offer("test.shop"), offer(f"{HOST}.alice.order.7")
        assert await send(plugin, ours) == answer
        assert await server.handled() == [ours]
        assert await server.send_data(theirs) == answer
        assert alice.packets == [theirs]


async def test_a_request_for_another_client_is_not_given_to_ours() -> None:
    alice = Receiver()
    async with serving() as (server, url), open_plugin(client(url, "alice"), data_handler=alice.handle):
        with pytest.raises(NodeCallError, match="No clients connected for account bob"):
            await server.send_data(offer(f"{HOST}.bob"))
        assert alice.packets == []


async def test_a_wrong_token_is_refused_at_once() -> None:
    async with serving() as (_, url):
        async with open_plugin(client(url, "alice")):
            pass
        with pytest.raises(NotAcceptedError), trio.fail_after(1):
            async with open_plugin(client(url, "alice", "guess")):
                pass


async def test_money_to_their_server_is_refused() -> None:
    """ilp-plugin-mini-accounts leaves money to the plugins built upon it: alone it applies none, and says so."""
    async with serving() as (_, url), open_plugin(client(url, "alice")) as plugin:
        with pytest.raises(RemoteError) as caught:
            await plugin.send_money("250")
        assert caught.value.code == "F00"
        assert await send(plugin, offer("test.shop")) == FULFILL


async def test_our_client_is_back_after_their_server_was_killed() -> None:
    async with open_node(MiniAccounts) as first, open_node(MiniAccounts) as second:
        port = await first.listen(FULFILL)
        async with open_plugin(client(url_of(port), "alice")) as plugin:
            assert await plugin.events.receive() == Connected()
            await first.kill()
            assert isinstance(await plugin.events.receive(), Disconnected)
            with pytest.raises(NotConnectedError):
                await send(plugin, offer("test.shop"))
            await second.listen(FULFILL, port)
            with trio.fail_after(5):
                assert await plugin.events.receive() == Connected()
            assert await send(plugin, offer("test.shop")) == FULFILL
