"""How many connections an account may have, and what is left for others."""

import gc
import os
import sys
import weakref

import pytest
import trio
from support.accounts import ask, enter, hashed, leave, open_accounts, options, start_asking
from support.peers import PING, TOKEN, Peer, dial
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_ledger_plugin import AccountConnected, AccountConnectedAgain, open_plugin
from trio_ledger_plugin.accounts.account import AccountPlugin
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.net.descriptors import links_limit, unauthenticated_limit
from trio_ledger_plugin.runtime.exchange import REST_SECONDS
from trio_ledger_plugin.stores import MemoryStore
from trio_ledger_plugin.testing.conformance.assertions import echo, read_events


async def refused(server: AccountsPlugin, token: str) -> bytes:
    """Fail to connect, for now, and return the reason."""
    peer = await dial(server.address)
    error = await peer.authenticate(token)
    assert (error.code, error.name) == ("T00", "UnreachableError")
    await leave(peer)
    data: bytes = error.data
    return data


async def test_further_link_replaces_the_oldest_idle_one(clock: MockClock) -> None:
    async with open_accounts(options(max_links_per_account=3), data_handler=echo) as server:
        peers = [await enter(server, token="a") for _ in range(3)]
        other = await enter(server, token="b")
        newest = await enter(server, token="a")
        await leave(peers[0])
        assert [each.connections for each in server.accounts() if each.name == hashed("a")] == [3]
        for peer in (*peers[1:], newest, other):
            await ask(peer, b"?")
            await peer.aclose()
        assert server.statistics().links_replaced == 1
        assert read_events(server)[1:4] == [
            AccountConnected(hashed("a")),
            AccountConnectedAgain(hashed("a"), 2),
            AccountConnectedAgain(hashed("a"), 3),
        ]


async def test_account_whose_links_are_all_busy_gets_no_further_one(clock: MockClock) -> None:
    """Otherwise it could have any number: a link with a request that hangs is never idle."""

    async def hang(data: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with open_accounts(options(max_links_per_account=2, handler_timeout=100.0), data_handler=hang) as server:
        peers = [await enter(server, token="a") for _ in range(2)]
        for peer in peers:
            await peer.send_request(2, b"?")
        await wait_all_tasks_blocked()
        assert b"too many connections" in await refused(server, "a")
        assert server.accounts()[0].links_refused == server.statistics().links_refused == 1
        good = await enter(server, token="b")
        for peer in (*peers, good):
            await peer.aclose()


async def test_some_links_are_kept_for_accounts_without_any(clock: MockClock) -> None:
    async with open_accounts(options(max_links=8), data_handler=echo) as server:
        greedy = [await enter(server, token="a") for _ in range(7)]
        # The eighth is kept for another account: this one replaces the account's own oldest.
        greedy.append(await enter(server, token="a"))
        await leave(greedy.pop(0))
        await wait_all_tasks_blocked()
        good = [await enter(server, token="b")]
        # Now it is full. A third account takes an idle link of the one that has most.
        good.append(await enter(server, token="c"))
        await leave(greedy.pop(0))
        await wait_all_tasks_blocked()
        assert sorted(each.connections for each in server.accounts()) == [1, 1, 6]
        for peer in (*greedy, *good):
            await ask(peer, b"?")
            await peer.aclose()


async def test_full_server_of_single_links_refuses_for_now(clock: MockClock) -> None:
    async with open_accounts(options(max_links=2), data_handler=echo) as server:
        peers = [await enter(server, token=token) for token in "ab"]
        assert b"the server has too many" in await refused(server, "c")
        await peers[0].aclose()
        await wait_all_tasks_blocked()
        peers.append(await enter(server, token="c"))
        for peer in peers[1:]:
            await peer.aclose()


async def test_reconnecting_fast_leaves_few_sockets(clock: MockClock) -> None:
    """A replaced link does its closing handshake while the next is accepted; they count until they are closed."""
    async with open_accounts(options(max_links_per_account=2)) as server:
        peers = [await enter(server, token="a") for _ in range(30)]
        budget = server.context.budget
        assert budget.links <= 6
        await trio.sleep(5)
        assert budget.links == 2
        for peer in peers:
            await peer.aclose()
        await trio.sleep(5)
        assert budget.links == 0


async def test_lost_links_handlers_count_after_the_account_has_left(clock: MockClock) -> None:
    """40 reconnections left 2,520 handlers running."""
    running = 0

    async def hang(data: bytes) -> bytes:
        nonlocal running
        running += 1
        try:
            await trio.sleep(20)
        finally:
            running -= 1
        return b""

    async with open_accounts(options(max_handlers=5), data_handler=hang) as server:
        for _ in range(10):
            peer = await enter(server, token="a")
            for n in range(2, 12):
                await peer.send_request(n, b"?")
            await wait_all_tasks_blocked()
            await peer.aclose()
            await wait_all_tasks_blocked()
            gc.collect()
        assert running == server.statistics().handlers_running == 5
        assert server.accounts() == ()
        await trio.sleep(30)
        assert server.statistics().handlers_running == 0
        peer = await enter(server, token="a")
        await peer.send_request(2, b"?")
        await wait_all_tasks_blocked()
        assert server.accounts()[0].handlers_running == running == 1
        await peer.aclose()


async def test_limits_show_in_the_snapshots(clock: MockClock) -> None:
    async def hang(data: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    opts = options(max_handlers=2, max_backlog_bytes=500)
    async with open_accounts(opts, data_handler=hang) as server, trio.open_nursery() as nursery:
        peer = await enter(server, token="a")
        for n in range(2, 8):
            await peer.send_request(n, bytes(10))
        # After the first refusal the account is read slowly.
        await trio.sleep(10 * REST_SECONDS)
        (account,) = server.accounts()
        assert (account.handlers_running, account.handler_bytes, account.backlog_bytes) == (2, 20, 420)
        assert (account.requests_received, account.requests_refused) == (6, 2)
        statistics = server.statistics()
        assert (statistics.handlers_running, statistics.backlog_bytes, statistics.requests_refused) == (2, 420, 2)
        assert statistics.links == 1
        nursery.start_soon(start_asking, server.account(hashed("a")))
        await wait_all_tasks_blocked()
        assert server.accounts()[0].calls_in_flight == 1
        nursery.cancel_scope.cancel()
        await peer.aclose()


@pytest.mark.parametrize("links", [1, 40])
async def test_account_whose_requests_are_refused_is_read_slowly(clock: MockClock, links: int) -> None:
    """To read what is refused takes the server's time as well, and others would wait for it."""

    async def hang(data: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    opts = options(max_handlers=1, max_backlog_bytes=1, max_links_per_account=40, handler_timeout=1000.0)
    async with open_accounts(opts, data_handler=hang) as server, trio.open_nursery() as nursery:
        peers = [await enter(server, token="a") for _ in range(links)]
        refused: list[float] = []

        async def flood(peer: Peer) -> None:
            packets = [btp.Message(number, (btp.ProtocolData("ilp", 0, b"?"),)) for number in range(2, 66)]
            await peer.send(*(peer.frame(btp.encode(packet)) for packet in packets))
            while True:
                assert (await peer.receive_packet()).code == "T00"
                refused.append(trio.current_time())

        for peer in peers:
            nursery.start_soon(flood, peer)
        while len(refused) < 63:  # noqa: ASYNC110 (nothing else tells)
            await trio.sleep(0.01)
        # In batches of at most 16 frames, and one batch for all its connections.
        assert max(refused.count(time) for time in refused) <= 17
        assert refused[62] - refused[0] >= 3 * REST_SECONDS - 1e-6
        # Another account is read at once.
        other = await enter(server, token="b")
        began = trio.current_time()
        await other.send(other.frame(b"", PING))
        await other.receive()
        assert trio.current_time() - began < 1e-6
        nursery.cancel_scope.cancel()
        for each in (*peers, other):
            await each.aclose()


async def test_calls_count_over_all_links_of_an_account(clock: MockClock) -> None:
    async with open_accounts(options(max_in_flight=3, close_timeout=0.1)) as server, trio.open_nursery() as nursery:
        account = server.account(hashed("a"))
        first = await enter(server, token="a")
        for _ in range(2):
            nursery.start_soon(start_asking, account)
        await wait_all_tasks_blocked()
        second = await enter(server, token="a")
        for _ in range(4):
            nursery.start_soon(start_asking, account)
        await wait_all_tasks_blocked()
        assert server.statistics().calls_in_flight == 3
        for _ in range(2):
            await first.respond((await first.receive_packet()).request_id, b"")
        await wait_all_tasks_blocked()
        assert server.statistics().calls_in_flight == 3
        for _ in range(4):
            await second.respond((await second.receive_packet()).request_id, b"")
        await wait_all_tasks_blocked()
        assert server.statistics().calls_in_flight == server.context.budget.calls == 0
        for peer in (first, second):
            await peer.aclose()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on descriptors that can be read")
def test_descriptors_are_left_for_other_purposes() -> None:
    import resource  # noqa: PLC0415 (not there on Windows)

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert (unauthenticated_limit(), links_limit()) == (48, 144)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("links", [1, 16])
async def test_flooding_links_of_an_account_have_one_turn_between_them(links: int) -> None:
    """An account's share of the server must not grow with its sockets."""
    served: list[str] = []

    async def note(data: bytes) -> bytes:
        served.append(data.decode())
        return b""

    async with open_accounts(data_handler=note) as server:
        flood = [await enter(server, token="flood") for _ in range(links)]
        good = await enter(server, token="good")
        # All at once: the server runs in this thread too.
        for peer in flood:
            write(peer, [b"flood"] * 64)
        write(good, [b"good"])
        with trio.fail_after(10):
            while "good" not in served:
                await trio.lowlevel.checkpoint()
        # What was read before the good peer's request is at most what one link can bring meanwhile.
        assert served.index("good") <= 3 * 16
        for peer in (*flood, good):
            await peer.aclose()


def write(peer: Peer, requests: list[bytes]) -> None:
    assert isinstance(peer.stream, trio.SocketStream)
    frames = [peer.frame(btp.encode_ilp(btp.MESSAGE, n, data)) for n, data in enumerate(requests, 2)]
    os.write(peer.stream.socket.fileno(), b"".join(frames))


# Getters.


async def test_asking_for_an_account_leaves_nothing() -> None:
    """A router that looks up each of a million customers would keep them all."""
    async with open_accounts(store=MemoryStore()) as server:

        def look_up(count: int) -> int:
            for n in range(count):
                assert not server.account(f"customer-{n}").is_connected()
            gc.collect()
            return sum(isinstance(each, AccountPlugin) for each in gc.get_objects())

        assert look_up(10) <= 1
        assert look_up(2000) <= 1
        assert len(server._asked) <= 1


class _CollectingName(str):
    """A name that lets a garbage collection happen at the worst moment: whenever an account is looked up by it."""

    __slots__ = ()

    def __hash__(self) -> int:
        gc.collect()
        return super().__hash__()


async def test_server_closes_while_a_looked_up_account_is_collected() -> None:
    async with open_accounts(store=MemoryStore()) as server:
        gc.disable()
        try:
            assert not server.account(_CollectingName("passing")).is_connected()
            server.begin_closing()
        finally:
            gc.enable()
        gc.collect()
        assert not server._asked


async def test_account_that_is_used_stays() -> None:
    async with open_accounts(store=MemoryStore()) as server:
        server.account("handled").register_data_handler(echo)
        events = server.account("watched").events
        held = server.account("held")
        gone = weakref.ref(server.account("gone"))
        gc.collect()
        assert gone() is None
        assert server.account("held") is held
        for name in ("handled", "watched", "held"):
            peer = await enter(server, name)
            if name == "handled":
                assert (await ask(peer, b"own")).protocol_data[0].data == b"own"
            await peer.aclose()
        await wait_all_tasks_blocked()
        assert [type(events.receive_nowait()).__name__ for _ in range(2)] == ["Connected", "Disconnected"]
        statistics = server.statistics()
        assert statistics.requests_received == 1
        server.account("handled").deregister_data_handler()
        gc.collect()
        assert server.statistics().requests_received == 1
        peer = await enter(server, "held")
        assert held.is_connected()
        assert server.statistics().requests_received == 1
        await peer.aclose()


# disconnect().


async def test_disconnected_account_stays_out_until_connect(clock: MockClock) -> None:
    """LPI2: disconnect() unsubscribes. The client was back after 4 ms."""
    async with open_accounts(store=MemoryStore()) as server:
        peer = await enter(server, "alice")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave, peer)
            await server.account("alice").disconnect()
        gc.collect()
        for _ in range(3):
            peer = await dial(server.address)
            error = await peer.authenticate(account="alice")
            assert (error.code, error.data) == ("T00", b"the account was disconnected by this end; try again later")
            await leave(peer)
        assert server.accounts() == ()
        bob = await enter(server, "bob")
        await server.account("alice").connect()
        peer = await enter(server, "alice")
        for each in (peer, bob):
            await each.aclose()


async def test_client_of_a_disconnected_account_tries_again_slowly(clock: MockClock) -> None:
    async with open_accounts() as server:
        account = server.account(hashed("a"))
        url = server.address.replace("//", "//:a@")
        async with open_plugin({"server": url, "redial_max_delay": 4.0}) as client:
            await account.wait_connected()
            await account.disconnect()
            began = trio.current_time()
            await trio.sleep(60)
            tries = server.statistics().links_refused
            assert 5 < tries < 60
            assert not client.is_connected()
            await account.connect()
            await client.wait_connected()
            assert trio.current_time() - began < 70


@pytest.mark.parametrize("store", [None, MemoryStore()])
async def test_newcomer_is_refused_while_all_connections_are_being_closed(store: MemoryStore | None) -> None:
    """Peers that do not take part in the closing handshake must not end the server for all."""
    async with open_accounts(options(max_links=2), store=store, data_handler=echo) as server:
        rude = [await enter(server, token=token) for token in "ab"]
        for peer in rude:
            for _ in range(9):
                await peer.send(peer.frame(b"rubbish"))
        while server.accounts():
            await trio.lowlevel.checkpoint()
        assert b"too many connections" in await refused(server, "c")
        for peer in rude:
            await peer.aclose()


@pytest.mark.parametrize("how", ["asks", "breaks the protocol", "is silent", "is sent away"])
async def test_ended_connection_is_freed_without_a_collection(how: str) -> None:
    """A server whose clients come and go would grow, and stop for full collections."""
    async with open_accounts(options(max_links_per_account=1), data_handler=echo) as server:

        async def come_and_go() -> None:
            peer = await dial(server.address)
            if how == "breaks the protocol":
                await peer.send(peer.frame(b"?", 3))
            elif how != "is silent":
                await peer.authenticate(TOKEN)
                await ask(peer, b"?")
            if how == "is sent away":
                (account,) = server.accounts()
                await server.account(account.name).disconnect()
                await leave(peer)
                await server.account(account.name).connect()
            await peer.aclose()

        def left() -> list[str]:
            return [name for each in gc.get_objects() if (name := type(each).__name__) in ("Link", "FrameStream")]

        await come_and_go()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await come_and_go()
            with trio.move_on_after(3):
                while left():  # noqa: ASYNC110 (what is freed tells nobody)
                    await trio.sleep(0.05)
            assert left() == []
        finally:
            gc.enable()
