"""What a payer of a JavaScript peer would lose: each transfer journalled, sent once, and an honest word in doubt."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trio_ledger_plugin import (
    LedgerPlugin,
    MoneyLevel,
    PluginServices,
    RemoteError,
    TransferInDoubtError,
    TransferState,
    current_transfer,
    fetch_ildcp,
    open_plugin,
)
from trio_ledger_plugin.stores import SqliteStore, open_sqlite_store

from .connector import CONNECTOR, running
from .mini_accounts import serving
from .network import FULFILL, client, offer, send
from .node import NodePeer, open_node_peer
from .options import TOKEN, client_options, listener_options, node_url

pytestmark = pytest.mark.interop


@pytest.fixture(params=["we dial", "node dials"])
def dialer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with open_sqlite_store(tmp_path / "money.db") as store:
        yield store


@asynccontextmanager
async def paired(dialer: str, store: SqliteStore) -> AsyncIterator[tuple[LedgerPlugin, NodePeer]]:
    """Connect a plugin with a journal and a Node peer, which supports only PLAIN."""
    services = PluginServices(store=store)
    async with open_node_peer() as peer:
        if dialer == "we dial":
            async with open_plugin(client_options(await peer.listen(TOKEN)), services) as plugin:
                yield plugin, peer
        else:
            async with open_plugin(listener_options(), services) as plugin:
                await peer.connect(node_url(plugin))
                await plugin.wait_connected()
                yield plugin, peer


async def journal(plugin: LedgerPlugin) -> dict[str, tuple[int, str, str]]:
    return {entry.key: (entry.amount, entry.level.value, entry.state.value) async for entry in plugin.transfers.walk()}


async def test_an_acknowledged_transfer_is_in_the_journal(dialer: str, store: SqliteStore) -> None:
    async with paired(dialer, store) as (plugin, peer):
        assert plugin.peer_journal() is None
        await plugin.send_money("250", idempotency_key="k")
        await plugin.send_money("250", idempotency_key="k")
        assert await journal(plugin) == {"k": (250, MoneyLevel.PLAIN.value, TransferState.ACKED.value)}
        assert (await plugin.transfers.totals()).sent == 250
        stats = await peer.stats()
        assert (stats["received"], stats["transfers"]) == ("250", 1)


async def test_a_refused_transfer_is_in_the_journal(dialer: str, store: SqliteStore) -> None:
    async with paired(dialer, store) as (plugin, peer):
        await peer.handle_money("throw", name="InsufficientBalanceError", message="no")
        for _ in range(2):
            with pytest.raises(RemoteError) as caught:
                await plugin.send_money("250", idempotency_key="k")
            assert (caught.value.code, caught.value.name) == ("F08", "InsufficientBalanceError")
        assert await journal(plugin) == {"k": (250, "plain", "rejected")}
        assert (await peer.stats())["received"] == "0"


async def test_a_lost_answer_leaves_a_transfer_in_doubt_and_unsent(store: SqliteStore) -> None:
    """The peer is killed with the transfer in its hands, and one that comes in its place must not get it again."""
    async with open_node_peer() as first, open_node_peer() as second:
        port = await first.listen(TOKEN)
        await first.handle_money("silent")
        async with open_plugin(client_options(port), PluginServices(store=store)) as plugin:
            await first.expect("connect")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_kill_when_held, first)
                with pytest.raises(TransferInDoubtError) as caught:
                    await plugin.send_money("250", idempotency_key="k")
            assert (caught.value.key, caught.value.amount) == ("k", "250")
            await second.listen(TOKEN, port=port)
            await plugin.wait_connected()
            with pytest.raises(TransferInDoubtError):
                await plugin.send_money("250", idempotency_key="k")
            await plugin.send_money("1", idempotency_key="another")
            assert (await second.stats())["received"] == "1"
            assert (await second.stats())["transfers"] == 1
            assert await journal(plugin) == {"k": (250, "plain", "in_doubt"), "another": (1, "plain", "acked")}
        async with open_plugin(client_options(port), PluginServices(store=store)) as plugin:
            totals = await plugin.transfers.totals()
            assert (totals.sent, totals.in_doubt) == (1, 250)
            await plugin.transfers.confirm("k")
            totals = await plugin.transfers.totals()
            assert (totals.sent, totals.in_doubt) == (251, 0)
            await plugin.send_money("250", idempotency_key="k")
            assert (await second.stats())["transfers"] == 1


async def _kill_when_held(peer: NodePeer) -> None:
    await peer.expect("held")
    await peer.kill()


async def test_their_money_is_credited_once_each_time_it_is_sent(dialer: str, store: SqliteStore) -> None:
    keys: list[str | None] = []
    came = trio.Event()

    async def credit(amount: str) -> None:
        keys.append(current_transfer().key)
        if len(keys) == 2:
            came.set()

    async with paired(dialer, store) as (plugin, peer):
        plugin.register_money_handler(credit)
        for _ in range(2):
            await peer.send_money("250")
        with trio.fail_after(5):
            await came.wait()
        assert len(set(keys)) == 2
        assert (await plugin.transfers.totals()).received == 500


async def test_the_offer_of_keys_does_not_disturb_mini_accounts(store: SqliteStore) -> None:
    async with serving() as (_, url), open_plugin(client(url, "alice"), PluginServices(store=store)) as plugin:
        assert await send(plugin, offer("test.elsewhere")) == FULFILL
        assert plugin.peer_journal() is None
        with pytest.raises(RemoteError):
            await plugin.send_money("250", idempotency_key="k")
        assert await journal(plugin) == {"k": (250, "plain", "rejected")}


async def test_the_offer_of_keys_does_not_disturb_a_connector(store: SqliteStore) -> None:
    async with (
        running(ilpAddress=CONNECTOR) as url,
        open_plugin(client(url, "alice"), PluginServices(store=store)) as alice,
    ):
        assert (await fetch_ildcp(alice)).client_address == f"{CONNECTOR}.children.alice"
        assert alice.peer_journal() is None
