"""One task reads for many: no message may be lost, and no connection may end another."""

from __future__ import annotations

import socket as stdlib
import struct
import sys
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from time import perf_counter

import pytest
import trio
import trio.testing
from support.tasks import make_tasks

from trio_ledger_plugin.net.shared_reader import READ_BYTES, SocketReaders, can_share

if sys.platform != "win32":
    import resource

ALONE = object()
pytestmark = pytest.mark.skipif(not can_share(), reason="needs epoll")


@contextmanager
def pair():
    near, far = stdlib.socketpair()
    near.setblocking(False)
    with far, trio.socket.from_stdlib_socket(near) as socket:
        yield socket, far


@pytest.fixture
async def readers(nursery):
    tasks = make_tasks(nursery)
    await tasks.start()
    return SocketReaders(tasks)


async def test_reader_sleeps_while_its_bytes_are_taken(readers, nursery):
    """A client's messages would be lost between the shared task and the task that waits."""
    seen = []

    def take(data):
        seen.append(data)
        return data != b"last"

    with pair() as (socket, peer):
        with trio.fail_after(5):
            nursery.start_soon(send, peer, seen, [b"first", b"second", b"last"])
            assert await readers.read(socket, take, ALONE) == b"last"
        assert seen == [b"first", b"second", b"last"]
        # No task waits: bytes that arrive now are not read.
        peer.send(b"later")
        await trio.testing.wait_all_tasks_blocked()
        assert await socket.recv(10) == b"later"


async def send(peer, seen, pieces):
    for number, piece in enumerate(pieces):
        while len(seen) < number:
            await trio.lowlevel.checkpoint()
        peer.send(piece)


async def test_end_of_one_connection_wakes_only_its_own_task(readers, nursery):
    """A link would outlive its connection, or end with another one's."""
    with pair() as (socket, peer), pair() as (other, other_peer):
        taken = []

        def keep(data):
            taken.append(data)
            return True

        nursery.start_soon(readers.read, other, keep, ALONE)
        await trio.testing.wait_all_tasks_blocked()
        peer.close()
        with trio.fail_after(5):
            assert await readers.read(socket, lambda _: True, ALONE) == b""
            other_peer.send(b"still here")
            while not taken:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_end_that_came_with_the_last_bytes_is_read(readers):
    """The system reports both at once and not again: a link would outlive its connection."""
    taken = []

    def take(data):
        taken.append(data)
        return True

    with pair() as (socket, peer):
        peer.send(b"last")
        peer.close()
        with trio.fail_after(5):
            assert await readers.read(socket, take, ALONE) == b""
    assert taken == [b"last"]


async def test_end_that_comes_while_the_bytes_wait_for_their_turn_is_read(readers, nursery):
    taken = []

    with pair() as (socket, peer), pair() as (other, other_peer):

        def keep(data):
            taken.append(data)
            return True

        def end_the_other(_):
            # Both sockets were reported; the other one is read next, in the same round.
            peer.close()
            return True

        nursery.start_soon(readers.read, other, end_the_other, object())
        await trio.testing.wait_all_tasks_blocked()
        other_peer.send(b"x")
        peer.send(b"last")
        with trio.fail_after(5):
            assert await readers.read(socket, keep, ALONE) == b""
        assert taken == [b"last"]
        nursery.cancel_scope.cancel()


async def test_more_than_one_read_holds_is_read(readers, nursery):
    """The system reports it once; what a first read leaves would wait until the peer sends more."""
    taken = 0

    def take(data):
        nonlocal taken
        taken += len(data)
        return taken < 3 * READ_BYTES

    with pair() as (socket, peer):
        peer.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 4 * READ_BYTES)
        peer.send(bytes(3 * READ_BYTES))
        with trio.fail_after(5):
            await readers.read(socket, take, ALONE)
    assert taken == 3 * READ_BYTES


async def test_broken_connection_raises_broken_resource_error(readers):
    listener = stdlib.create_server(("127.0.0.1", 0))
    with listener, stdlib.create_connection(listener.getsockname()) as peer:
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        with trio.socket.from_stdlib_socket(accepted) as socket:
            peer.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await readers.read(socket, lambda _: True, ALONE)


async def test_error_on_the_bytes_of_one_ends_only_that_connection(readers, nursery):
    """An application's log that raises on one client's garbage would end the server."""

    def complain(_):
        raise ValueError("the log is closed")

    taken = []

    def keep(data):
        taken.append(data)
        return True

    with pair() as (socket, peer), pair() as (other, other_peer):
        nursery.start_soon(readers.read, other, keep, ALONE)
        peer.send(b"nonsense")
        with trio.fail_after(5):
            with pytest.raises(ValueError, match="the log is closed"):
                await readers.read(socket, complain, ALONE)
            other_peer.send(b"still here")
            while not taken:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def test_closing_wakes_the_waiting_task(readers, nursery):
    """A link that is closed from this side would leave its task behind for ever."""
    with pair() as (socket, _):

        async def close():
            await trio.testing.wait_all_tasks_blocked()
            readers.closing(socket)
            readers.closing(socket)

        nursery.start_soon(close)
        with trio.fail_after(5), pytest.raises(trio.ClosedResourceError):
            await readers.read(socket, lambda _: True, ALONE)
        socket.close()
        with pytest.raises(trio.ClosedResourceError):
            await readers.read(socket, lambda _: True, ALONE)


async def test_cancelling_leaves_the_bytes_unread(readers):
    """Bytes would be read for a task that is gone, and be lost."""
    with pair() as (socket, peer):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(readers.read, socket, lambda _: True, ALONE)
            await trio.testing.wait_all_tasks_blocked()
            waiting.cancel_scope.cancel()
        peer.send(b"kept")
        await trio.testing.wait_all_tasks_blocked()
        assert await socket.recv(10) == b"kept"


async def test_connection_that_closes_another_affects_no_third(readers, nursery):
    """When two clients send at once and one has the other disconnected, the server would end."""
    with pair() as (first, first_peer), pair() as (second, second_peer):
        ended = []

        async def wait(socket, other):
            def take(_):
                readers.closing(other)
                return True

            try:
                await readers.read(socket, take, ALONE)
            except trio.ClosedResourceError:
                ended.append(socket)

        nursery.start_soon(wait, first, second)
        nursery.start_soon(wait, second, first)
        first_peer.send(b"x")
        second_peer.send(b"x")
        with trio.fail_after(5):
            while not ended:
                await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert len(ended) == 1
        nursery.cancel_scope.cancel()


async def test_turns_go_round_by_account(readers, nursery):
    """150 sockets of one account had 150 turns for the one of another."""
    order = []

    def taking(name, messages):
        def take(data):
            order.append(name)
            readers.messages += messages
            return True

        return take

    with ExitStack() as stack:
        peers = []
        for name, messages, sockets in (("flood", 16, 10), ("few", 1, 10), ("alone", 1, 1)):
            turns = object()
            for _ in range(sockets):
                socket, peer = stack.enter_context(pair())
                nursery.start_soon(readers.read, socket, taking(name, messages), turns)
                peers.append(peer)
        await trio.testing.wait_all_tasks_blocked()
        for peer in peers:
            peer.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    # An account's turn is 16 messages, from as many of its sockets as have them.
    assert order == ["flood", *["few"] * 10, "alone", *["flood"] * 9]


async def test_other_tasks_run_after_a_millisecond_of_work(readers, nursery):
    served, seen = 0, []

    def work(data):
        nonlocal served
        served += 1
        until = perf_counter() + 0.0011
        while perf_counter() < until:
            pass
        return True

    with ExitStack() as stack:
        peers = []
        for _ in range(20):
            socket, peer = stack.enter_context(pair())
            nursery.start_soon(readers.read, socket, work, object())
            peers.append(peer)
        await trio.testing.wait_all_tasks_blocked()
        for peer in peers:
            peer.send(b"x")
        with trio.fail_after(5):
            while served < 20:
                await trio.lowlevel.checkpoint()
                seen.append(served)
        nursery.cancel_scope.cancel()
    # Trio may run the reader before the other tasks in one turn, and after them in the next.
    assert max(after - before for before, after in pairwise(seen)) <= 2


async def test_task_reads_by_itself_without_a_free_descriptor(readers):
    """A server that is short of descriptors for a moment would lose every connection that waits for bytes."""
    seen = []

    def take(data):
        seen.append(data)
        return data != b"last"

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pair() as (socket, peer):
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, peer, seen, [b"first", b"last"])
                with trio.fail_after(5):
                    assert await readers.read(socket, take, ALONE) == b"last"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        peer.close()
        assert await readers.read(socket, take, ALONE) == b""
    assert seen == [b"first", b"last"]
