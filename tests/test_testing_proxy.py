"""The fault proxy injects the requested faults and nothing else; otherwise tests would blame the plugin."""

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import Any

import pytest
import trio
from support.peers import TOKEN, shake_hands
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from trio_ledger_plugin import NotConnectedError, open_plugin
from trio_ledger_plugin.events import Disconnected
from trio_ledger_plugin.testing import Direction, Fault, FaultKind, FaultProxy, RandomFaults, open_fault_proxy
from trio_ledger_plugin.testing.proxy import LINGER_ZERO

BACK = Direction.FROM_TARGET
ALPHABET = bytes(range(65, 91))


class Pipe:
    """A proxy without a port between two memory streams."""

    def __init__(self, nursery: trio.Nursery, proxy: FaultProxy, targets: list[trio.abc.Stream]) -> None:
        self._nursery = nursery
        self.proxy = proxy
        self._targets = targets

    async def connect(self) -> tuple[Any, Any]:
        """Return the client's and the target's end of a new connection."""
        mine, proxied = memory_stream_pair()
        before = len(self._targets)
        self._nursery.start_soon(self.proxy.serve_stream, proxied)
        await wait_all_tasks_blocked()
        return mine, self._targets[before]


@asynccontextmanager
async def piped(faults: Any = ()) -> AsyncIterator[Pipe]:
    targets: list[trio.abc.Stream] = []

    async def target() -> trio.abc.Stream:
        ours, theirs = memory_stream_pair()
        targets.append(theirs)
        return ours

    async with open_fault_proxy(target, faults=faults, port=None) as proxy, trio.open_nursery() as nursery:
        yield Pipe(nursery, proxy, targets)
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(data) async for data in stream])


async def read_now(stream: trio.abc.ReceiveStream) -> bytes:
    """Return the bytes so far."""
    data = b""
    with trio.move_on_after(0):
        await wait_all_tasks_blocked()
    while True:
        with trio.move_on_after(0.001) as waiting:
            got = await stream.receive_some()
            data += got
            if not got:
                return data
        if waiting.cancelled_caught:
            return data


# Without faults.


async def test_bytes_and_ends_pass_both_ways(autojump_clock):
    async with piped() as pipe:
        mine, theirs = await pipe.connect()
        await mine.send_all(ALPHABET)
        await mine.send_eof()
        assert await read_all(theirs) == ALPHABET
        # Half closed: the answer still comes.
        await theirs.send_all(b"answer")
        await theirs.send_eof()
        assert await read_all(mine) == b"answer"
        await wait_all_tasks_blocked()
        assert (pipe.proxy.connections, pipe.proxy.opened) == ((), 1)


async def test_a_connection_counts_its_bytes(autojump_clock):
    async with piped() as pipe:
        mine, theirs = await pipe.connect()
        await mine.send_all(ALPHABET)
        await theirs.send_all(b"abc")
        await read_now(theirs)
        (connection,) = pipe.proxy.connections
        assert connection.number == 0
        assert [connection.bytes_passed(direction) for direction in Direction] == [26, 3]


# The schedule.


@pytest.mark.parametrize("kind", [FaultKind.CUT, FaultKind.RESET])
@pytest.mark.parametrize("at_byte", [0, 1, 10, 25, 26])
async def test_cut_comes_at_its_byte(kind, at_byte, autojump_clock):
    async with piped([Fault(kind, at_byte=at_byte)]) as pipe:
        mine, theirs = await pipe.connect()
        if at_byte:
            await mine.send_all(ALPHABET)
        assert await read_all(theirs) == ALPHABET[:at_byte]
        assert await read_all(mine) == b""


async def test_a_fault_counts_the_bytes_of_its_own_direction(autojump_clock):
    async with piped([Fault(FaultKind.CUT, BACK, at_byte=3)]) as pipe:
        mine, theirs = await pipe.connect()
        await mine.send_all(ALPHABET)
        assert await read_now(theirs) == ALPHABET
        await theirs.send_all(ALPHABET)
        assert await read_all(mine) == ALPHABET[:3]


async def test_fault_applies_to_its_connection(autojump_clock):
    async with piped([Fault(FaultKind.CUT, at_byte=1, connection=1)]) as pipe:
        first, first_target = await pipe.connect()
        second, second_target = await pipe.connect()
        for stream in (first, second):
            await stream.send_all(ALPHABET)
        assert await read_now(first_target) == ALPHABET
        assert await read_all(second_target) == ALPHABET[:1]
        assert [connection.number for connection in pipe.proxy.connections] == [0]


@pytest.mark.parametrize("pieces", [[26], [1] * 26, [5, 1, 20]])
async def test_drop_and_duplicate_apply_to_their_bytes(pieces, autojump_clock):
    """For any chunks."""
    faults = [Fault(FaultKind.DUPLICATE, at_byte=12, size=3), Fault(FaultKind.DROP, at_byte=4, size=2)]
    async with piped(faults) as pipe:
        mine, theirs = await pipe.connect()
        rest = ALPHABET
        for size in pieces:
            await mine.send_all(rest[:size])
            rest = rest[size:]
            await wait_all_tasks_blocked()
        assert await read_now(theirs) == b"ABCDGHIJKLMNOMNOPQRSTUVWXYZ"
        (connection,) = pipe.proxy.connections
        assert [fault.kind for fault in connection.happened] == [FaultKind.DROP, FaultKind.DUPLICATE]


async def test_slice_splits_later_bytes(autojump_clock):
    """A reader that expects whole messages would never get a partial one."""
    async with open_fault_proxy(("", 0), faults=[Fault(FaultKind.SLICE, at_byte=4, size=3)], port=None) as proxy:
        sent: list[bytes] = []

        class Sink(trio.abc.Stream):
            async def send_all(self, data: Any) -> None:
                sent.append(bytes(data))

            async def wait_send_all_might_not_block(self) -> None:
                """Never waits."""

            async def receive_some(self, max_bytes: int | None = None) -> bytes:
                await trio.sleep_forever()

            async def aclose(self) -> None:
                sent.append(b"closed")

        async def target() -> trio.abc.Stream:
            return Sink()

        proxy._target = target
        mine, proxied = memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(proxy.serve_stream, proxied)
            await mine.send_all(b"headabcdefgh")
            await mine.send_eof()
            await wait_all_tasks_blocked()
            assert sent == [b"head", b"abc", b"def", b"gh", b"closed"]
            nursery.cancel_scope.cancel()


async def test_slice_during_a_send_loses_nothing(autojump_clock):
    """A plugin's test would fail because of bytes that the proxy lost."""
    faults = [Fault(FaultKind.SLICE, at_byte=0, size=10), Fault(FaultKind.SLICE, after=0.35, size=4)]
    mine, proxied = memory_stream_pair()
    inner, theirs = memory_stream_pair()

    class Tardy(trio.abc.Stream):
        async def send_all(self, data: Any) -> None:
            await trio.sleep(0.1)
            await inner.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            """Never waits."""

        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            return await inner.receive_some(max_bytes)

        async def aclose(self) -> None:
            await inner.aclose()

    async def target() -> trio.abc.Stream:
        return Tardy()

    async with open_fault_proxy(target, faults=faults, port=None) as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(proxy.serve_stream, proxied)
        data = bytes(range(100))
        await mine.send_all(data)
        await mine.send_eof()
        came = b""
        while more := await theirs.receive_some():
            came += more
        assert came == data
        nursery.cancel_scope.cancel()


async def test_timed_stall_loses_nothing(autojump_clock):
    async with piped([Fault(FaultKind.STALL, at_byte=4, seconds=30)]) as pipe:
        mine, theirs = await pipe.connect()
        began = trio.current_time()
        await mine.send_all(ALPHABET)
        assert await theirs.receive_some() == ALPHABET[:4]
        assert trio.current_time() == began
        assert await theirs.receive_some() == ALPHABET[4:]
        assert trio.current_time() - began == pytest.approx(30)


async def test_delay_holds_every_byte(autojump_clock):
    async with piped([Fault(FaultKind.DELAY, BACK, at_byte=0, seconds=0.25)]) as pipe:
        mine, theirs = await pipe.connect()
        for _ in range(2):
            began = trio.current_time()
            await theirs.send_all(b"x")
            assert await mine.receive_some() == b"x"
            assert trio.current_time() - began == pytest.approx(0.25)


async def test_fault_comes_at_its_time(autojump_clock):
    async with piped([Fault(FaultKind.CUT, after=7)]) as pipe:
        began = trio.current_time()
        mine, theirs = await pipe.connect()
        await theirs.send_all(b"x")
        assert await read_all(mine) == b"x"
        assert trio.current_time() - began == pytest.approx(7)
        assert await read_all(theirs) == b""


async def test_connection_does_not_wait_for_its_faults(autojump_clock):
    async with piped([Fault(FaultKind.CUT, after=3600)]) as pipe:
        began = trio.current_time()
        mine, theirs = await pipe.connect()
        await mine.aclose()
        await theirs.aclose()
        await wait_all_tasks_blocked()
        assert pipe.proxy.connections == ()
        assert trio.current_time() - began < 1


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"at_byte": 1, "after": 1},
        {"at_byte": -1},
        {"after": -0.1},
        {"at_byte": 0, "size": 0},
        {"at_byte": 0, "seconds": -1},
        {"at_byte": 0, "connection": -1},
    ],
)
def test_impossible_fault_is_refused(wrong):
    """A test would pass because its fault never happened."""
    with pytest.raises(ValueError, match="fault"):
        Fault(FaultKind.STALL, **wrong)


def test_a_delay_without_end_is_refused():
    with pytest.raises(ValueError, match="stall"):
        Fault(FaultKind.DELAY, at_byte=0, seconds=inf)


# By hand.


async def test_cut_closes_all_connections_and_allows_new_ones(autojump_clock):
    async with piped() as pipe:
        ends = [*await pipe.connect(), *await pipe.connect()]
        pipe.proxy.cut()
        for end in ends:
            assert await read_all(end) == b""
        assert pipe.proxy.connections == ()
        mine, theirs = await pipe.connect()
        await mine.send_all(b"x")
        assert await theirs.receive_some() == b"x"


async def test_stall_lasts_until_resume_for_new_connections_too(autojump_clock):
    async with piped() as pipe:
        mine, theirs = await pipe.connect()
        pipe.proxy.stall()
        late, late_target = await pipe.connect()
        await mine.send_all(b"mine")
        await theirs.send_all(b"theirs")
        await late.send_all(b"late")
        with trio.move_on_after(3600):
            await theirs.receive_some()
            raise AssertionError("it came through the stall")
        pipe.proxy.resume()
        assert await theirs.receive_some() == b"mine"
        assert await mine.receive_some() == b"theirs"
        assert await late_target.receive_some() == b"late"


async def test_resume_ends_every_stall(autojump_clock):
    async with piped([Fault(FaultKind.STALL, at_byte=1, seconds=inf)]) as pipe:
        mine, theirs = await pipe.connect()
        await mine.send_all(b"xy")
        assert await theirs.receive_some() == b"x"
        await wait_all_tasks_blocked()
        pipe.proxy.stall()
        pipe.proxy.stall()
        await wait_all_tasks_blocked()
        pipe.proxy.resume()
        with trio.fail_after(1):
            assert await theirs.receive_some() == b"y"


async def test_longer_of_two_stalls_counts(autojump_clock):
    faults = [Fault(FaultKind.STALL, after=after, seconds=seconds) for after, seconds in ((1, 10), (2, 30), (3, 1))]
    async with piped(faults) as pipe:
        began = trio.current_time()
        mine, theirs = await pipe.connect()
        await trio.sleep(1.5)
        await mine.send_all(b"x")
        assert await theirs.receive_some() == b"x"
        assert trio.current_time() - began == pytest.approx(32)


async def test_stall_without_traffic_ends_in_time(autojump_clock):
    async with piped([Fault(FaultKind.STALL, after=1, seconds=1)]) as pipe:
        mine, theirs = await pipe.connect()
        await trio.sleep(10)
        began = trio.current_time()
        await mine.send_all(b"x")
        assert await theirs.receive_some() == b"x"
        assert trio.current_time() == began


async def test_one_direction_can_be_stalled_alone(autojump_clock):
    async with piped() as pipe:
        mine, theirs = await pipe.connect()
        pipe.proxy.connections[0].stall(BACK)
        await mine.send_all(b"request")
        await theirs.send_all(b"answer")
        assert await read_now(theirs) == b"request"
        assert await read_now(mine) == b""
        pipe.proxy.connections[0].resume(BACK)
        assert await mine.receive_some() == b"answer"


async def test_stall_holds_the_end_of_the_stream(autojump_clock):
    """A plugin must detect by its own deadlines that its peer is gone, as on a network that drops everything."""
    async with piped() as pipe:
        mine, theirs = await pipe.connect()
        pipe.proxy.stall()
        await mine.aclose()
        with trio.move_on_after(60) as waiting:
            await theirs.receive_some()
        assert waiting.cancelled_caught
        pipe.proxy.resume()
        assert await read_all(theirs) == b""


async def test_a_stalled_connection_can_be_cut(autojump_clock):
    async with piped() as pipe:
        mine, theirs = await pipe.connect()
        pipe.proxy.stall()
        await mine.send_all(b"x")
        pipe.proxy.cut()
        assert await read_all(theirs) == b""


# At random.


async def story(seed: int, kinds: Any, sizes: list[int]) -> tuple[bytes, list[str]]:
    """Send bytes in pieces of these sizes; return the received bytes and the faults."""
    data = bytes(number % 251 for number in range(20_000))
    async with piped(RandomFaults(seed=seed, mean_bytes=700, kinds=kinds, max_seconds=2)) as pipe:
        mine, theirs = await pipe.connect()
        (connection,) = pipe.proxy.connections
        at = 0
        while at < len(data):
            size = sizes[at % len(sizes)]
            await mine.send_all(data[at : at + size])
            at += size
        await mine.send_eof()
        return await read_all(theirs), [str(fault) for fault in connection.happened]


async def test_seed_gives_the_same_faults_for_any_chunks(autojump_clock):
    kinds = (FaultKind.STALL, FaultKind.SLICE, FaultKind.DROP, FaultKind.DUPLICATE)
    first = await story(5, kinds, [20_000])
    assert await story(5, kinds, [1, 700, 13]) == first
    assert len(first[1]) > 10
    assert (await story(6, kinds, [20_000]))[1] != first[1]


async def test_default_random_faults_change_no_byte(autojump_clock):
    came, happened = await story(5, (FaultKind.STALL, FaultKind.DELAY, FaultKind.SLICE), [999])
    assert came == bytes(number % 251 for number in range(20_000))
    assert happened


def test_connections_and_directions_have_their_own_faults():
    faults = RandomFaults(seed=1)
    drawn = [[next(faults.draw(number, direction)).at_byte for direction in Direction] for number in range(3)]
    assert len({at for pair in drawn for at in pair}) == 6


async def test_error_in_the_block_is_bare_and_has_the_seed():
    """A random failure that cannot be reproduced is useless."""
    with pytest.raises(KeyError) as caught:  # noqa: PT012 (it is raised in a block)
        async with open_fault_proxy(("127.0.0.1", 9), faults=RandomFaults(seed=77)) as proxy:
            assert proxy.seed == 77
            raise KeyError("mine")
    assert caught.value.__notes__ == ["fault proxy: RandomFaults(seed=77)"]


def test_default_seed_is_known_and_differs():
    assert RandomFaults(seed=None).seed != RandomFaults().seed


@pytest.mark.parametrize("wrong", [{"mean_bytes": 0}, {"max_seconds": inf}, {"max_seconds": -1}, {"kinds": ()}])
def test_impossible_random_faults_are_refused(wrong):
    with pytest.raises(ValueError, match="mean_bytes"):
        RandomFaults(seed=1, **wrong)


# Sockets.


@asynccontextmanager
async def tcp_target() -> AsyncIterator[tuple[tuple[str, int], trio.MemoryReceiveChannel[trio.SocketStream]]]:
    """Give an address, and the connections to it."""
    opened, accepted = trio.open_memory_channel[trio.SocketStream](10)

    async def accept(stream: trio.SocketStream) -> None:
        await opened.send(stream)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listener = (await nursery.start(partial(trio.serve_tcp, accept, 0, host="127.0.0.1")))[0]
        yield ("127.0.0.1", listener.socket.getsockname()[1]), accepted
        nursery.cancel_scope.cancel()


async def test_reset_over_tcp():
    with trio.fail_after(10):
        async with tcp_target() as (target, accepted), open_fault_proxy(target) as proxy:
            assert proxy.address is not None
            mine = await trio.open_tcp_stream(*proxy.address)
            theirs = await accepted.receive()
            async with mine, theirs:
                await mine.send_all(b"x" * 1000)
                assert await theirs.receive_some() == b"x" * 1000
                await theirs.send_all(b"y")
                assert await mine.receive_some() == b"y"
                proxy.reset()
                for end in (mine, theirs):
                    with pytest.raises(trio.BrokenResourceError) as caught:
                        await end.receive_some()
                    assert isinstance(caught.value.__cause__, OSError)
                    assert caught.value.__cause__.errno == errno.ECONNRESET


async def test_cut_over_tcp_is_an_end_of_stream():
    with trio.fail_after(10):
        async with tcp_target() as (target, accepted), open_fault_proxy(target) as proxy:
            assert proxy.address is not None
            async with await trio.open_tcp_stream(*proxy.address) as mine, await accepted.receive() as theirs:
                proxy.cut()
                assert await mine.receive_some() == b""
                assert await theirs.receive_some() == b""


async def test_cut_while_the_target_is_dialled(autojump_clock):
    """A cut right after the client has connected would sometimes be missed."""

    async def target() -> trio.abc.Stream:
        await trio.sleep(60)
        raise AssertionError("it was not cut")

    async with open_fault_proxy(target, port=None) as proxy, trio.open_nursery() as nursery:
        mine, proxied = memory_stream_pair()
        nursery.start_soon(proxy.serve_stream, proxied)
        await wait_all_tasks_blocked()
        assert len(proxy.connections) == 1
        proxy.cut()
        assert await read_all(mine) == b""


async def test_broken_end_breaks_the_other_side():
    with trio.fail_after(10):
        async with tcp_target() as (target, accepted), open_fault_proxy(target) as proxy:
            assert proxy.address is not None
            async with await trio.open_tcp_stream(*proxy.address) as mine, await accepted.receive() as theirs:
                mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ZERO)
                await mine.aclose()
                with pytest.raises(trio.BrokenResourceError):
                    await theirs.receive_some()


async def test_client_of_an_unreachable_target_is_reset():
    with trio.fail_after(10):
        async with tcp_target() as (target, _):
            pass
        async with open_fault_proxy(target) as proxy:
            assert proxy.address is not None
            async with await trio.open_tcp_stream(*proxy.address) as mine:
                with pytest.raises(trio.BrokenResourceError):
                    await mine.receive_some()


async def test_port_in_use_is_a_bare_error():
    async with open_fault_proxy(("127.0.0.1", 9)) as proxy:
        assert proxy.address is not None
        with pytest.raises(OSError, match="in use"):
            async with open_fault_proxy(("127.0.0.1", 9), port=proxy.address[1]):
                """Never reached."""


async def test_leaving_the_block_closes_the_port_and_the_connections():
    with trio.fail_after(10):
        async with tcp_target() as (target, accepted):
            async with open_fault_proxy(target) as proxy:
                address = proxy.address
                assert address is not None
                mine = await trio.open_tcp_stream(*address)
                theirs = await accepted.receive()
            assert await mine.receive_some() == b""
            assert await theirs.receive_some() == b""
            with pytest.raises(OSError, match=r"[Cc]onnect"):
                await trio.open_tcp_stream(*address)
            await mine.aclose()
            await theirs.aclose()


async def test_cancelling_closes_both_sides(autojump_clock):
    mine, proxied = memory_stream_pair()
    ours, theirs = memory_stream_pair()

    async def target() -> trio.abc.Stream:
        return ours

    with trio.move_on_after(5):
        async with open_fault_proxy(target, port=None) as proxy:
            await proxy.serve_stream(proxied)
    assert await read_all(mine) == b""
    assert await read_all(theirs) == b""


# With a plugin.


async def events_until_lost(events: Any) -> None:
    async for event in events:
        if isinstance(event, Disconnected):
            return


async def test_plugin_over_memory_streams_detects_silence(autojump_clock):
    """This is the purpose of the proxy: minutes of network faults in no time."""
    options = {"plugin": "btp", "listener": {"port": None, "secret": TOKEN}, "ping_interval": 20, "pong_timeout": 20}
    async with open_plugin(options) as plugin, trio.open_nursery() as guests:
        serve: Any = plugin

        async def target() -> trio.abc.Stream:
            ours, theirs = memory_stream_pair()
            guests.start_soon(serve.serve_stream, theirs)
            return ours

        async with open_fault_proxy(target, port=None) as proxy, trio.open_nursery() as nursery:
            mine, proxied = memory_stream_pair()
            nursery.start_soon(proxy.serve_stream, proxied)
            peer = await shake_hands(mine)
            await peer.authenticate()
            await plugin.wait_connected()
            proxy.stall()
            began = trio.current_time()
            await events_until_lost(plugin.events)
            assert 20 <= trio.current_time() - began <= 45
            with pytest.raises(NotConnectedError):
                await plugin.send_money(1)
            nursery.cancel_scope.cancel()
