"""Promises of docs/explanation/reliability.md that no other module tests; and the tests named there exist."""

import ast
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.accounts import FULFILL, HOST, answer, enter, open_accounts, prepare
from support.events import next_event
from support.ledgers import HeldStore
from support.peers import CLOSE, TOKEN, Peer, dial_in, listening, open_btp, serving, welcome
from support.tasks import open_tasks
from trio.testing import MockClock

import trio_ledger_plugin.ilp.routing
from trio_ledger_plugin import Connected, ConnectionLostError, Disconnected, PluginServices
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.stores import MemoryStore, open_sqlite_store
from trio_ledger_plugin.testing import open_fault_proxy
from trio_ledger_plugin.testing.conformance.assertions import echo
from trio_ledger_plugin.websocket.writer import FrameWriter

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "explanation" / "reliability.md"


def test_tests_named_on_the_page_exist():
    """If a test were renamed or deleted, its promise would no longer be checked."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) >= 50
    functions = {}
    for file, name in named:
        if file not in functions:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            functions[file] = {
                node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        assert name in functions[file], f"{file} has no {name}"


@pytest.mark.parametrize("how", ["cut", "reset"])
async def test_lost_link_fails_every_call_within_100_ms(how: Any) -> None:
    """Over TCP and with the real clock; the JavaScript plugin lets calls wait for 35 s."""
    asked = 0
    all_asked, over = trio.Event(), trio.Event()

    async def hang(data: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked == 200:
            all_asked.set()
        await over.wait()
        return data

    async with open_btp(listening(), data_handler=hang) as server:
        port = int(server.address.rpartition(":")[2])
        async with open_fault_proxy(("127.0.0.1", port)) as proxy:
            assert proxy.address is not None
            url = f"btp+ws://alice:{TOKEN}@127.0.0.1:{proxy.address[1]}"
            async with open_btp({"server": url}) as client:
                failed: list[float] = []

                async def call() -> None:
                    with pytest.raises(ConnectionLostError):
                        await client.send_data(b"ask")
                    failed.append(trio.current_time())

                with trio.fail_after(10):
                    async with trio.open_nursery() as nursery:
                        for _ in range(200):
                            nursery.start_soon(call)
                        await all_asked.wait()
                        cut = trio.current_time()
                        getattr(proxy, how)()
                assert len(failed) == 200
                assert max(failed) - cut <= 0.1
        over.set()


async def test_client_reports_garbage_and_reconnects(clock: MockClock) -> None:
    """A server after a bad update may work again in a minute."""
    codes: list[int] = []

    async def serve(stream: trio.SocketStream) -> None:
        peer: Peer = await welcome(stream)
        await peer.let_in()
        if not codes:
            await peer.send(peer.frame(b"garbage") * 9)
            codes.append(await peer.receive_close())
            await peer.send(peer.frame(b"\x03\xf0", CLOSE))
        else:
            packet = await peer.receive_packet()
            await peer.respond(packet.request_id, b"well again")
            await peer.wait_eof()

    async with serving(serve) as url, open_btp({"server": url}) as plugin:
        for kind in (Connected, Disconnected, Connected):
            await next_event(plugin.events, kind)
        assert await plugin.send_data(b"ask") == b"well again"
        assert codes == [1008]
        assert plugin.statistics().malformed_packets == 9


@pytest.mark.parametrize("jump", [timedelta(hours=1), timedelta(days=-400)], ids=["forward", "back"])
async def test_clock_jump_neither_expires_nor_extends_packets(
    jump: Any, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is set would refuse packets that it was paid for, or pay for expired ones."""
    shift = timedelta()

    class ShiftedTime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + shift

    monkeypatch.setattr(trio_ledger_plugin.ilp.routing, "datetime", ShiftedTime)
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        peer = await enter(plugin, "alice")
        outcomes: list[bytes] = []
        both = trio.Event()

        async def send() -> None:
            outcomes.append(await plugin.send_data(prepare(f"{HOST}.alice", 20)))
            if len(outcomes) == 2:
                both.set()

        nursery.start_soon(send)
        nursery.start_soon(send)
        await trio.sleep(1)
        shift = jump
        await trio.sleep(9)
        await answer(peer, FULFILL)
        await trio.sleep(1)
        assert outcomes == [FULFILL]
        began = trio.current_time()
        await both.wait()
        assert trio.current_time() - began < 10
        assert outcomes[1] != FULFILL
        await peer.aclose()


async def test_data_continues_while_the_store_fails(tmp_path: Path) -> None:
    """Money is refused while the store fails; packets move no money, and need no store."""

    async with open_sqlite_store(tmp_path / "store.db") as inner:
        store = HeldStore(inner)
        async with open_btp(listening(), PluginServices(store=store), data_handler=echo) as plugin:
            peer = await dial_in(plugin.address)
            store.refuses = True
            await peer.send_packet(btp.Transfer(1, 5))
            packet = await peer.receive_packet()
            assert (packet.request_id, packet.code[0]) == (1, "T")
            for number in range(2, 50):
                await peer.send_request(number, b"still there?")
                assert (await peer.receive_packet()).request_id == number
            await peer.aclose()
            store.refuses = False
            assert (await plugin.transfers.totals()).received == 0


async def test_two_tasks_can_flush_the_same_writer(autojump_clock: MockClock) -> None:
    """Draining and closing both flush if a refused connection breaks the protocol; neither may break the other."""
    near, _far = trio.testing.lockstep_stream_pair()
    async with open_tasks() as tasks:
        writer = FrameWriter(near, tasks, 10.0)
        writer.write(b"never taken")
        with trio.move_on_after(1) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.flush)
                nursery.start_soon(writer.flush)
        assert scope.cancelled_caught
        writer.stop()
