"""The frame stream in place of trio-websocket: the same messages in the same order, pings, pongs and closing."""

from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from support.frame_streams import LIMIT, OPTIONS, Link, connect, open_frame_stream, read_with_trio_websocket
from support.peers import (
    BINARY,
    CLOSE,
    KEY,
    PING,
    PONG,
    TEXT,
    Peer,
    frame,
    read_head,
    upgrade_request,
    upgrade_response,
)
from support.tasks import open_tasks
from trio.testing import MockClock

from trio_ledger_plugin.websocket.connection import accept_websocket, open_websocket


def kinds(mask: bytes | None) -> dict[str, bytes]:
    def f(payload: bytes = b"", opcode: int = BINARY, **how: Any) -> bytes:
        return frame(payload, opcode, mask=mask, **how)

    return {
        "plain": f(b"plain") + f(b"plainer"),
        "long": f(bytes(range(200))),
        "empty": f(),
        "text": f("tëxt".encode(), TEXT),
        "fragments": f(b"fr", fin=False) + f(b"ag", 0, fin=False) + f(b"ments", 0),
        "text fragments around a ping": f(b"\xc3", TEXT, fin=False) + f(b"!", PING) + f(b"\xab", 0),
        "ping": f(b"ping", PING),
        "pong": f(b"pong", PONG),
    }


def endings(mask: bytes | None) -> dict[str, bytes]:
    def f(payload: bytes = b"", opcode: int = BINARY, **how: Any) -> bytes:
        return frame(payload, opcode, mask=mask, **how)

    return {
        "close": f(b"\x03\xe8", CLOSE),
        "close without a code": f(b"", CLOSE),
        "close with an illegal code": f(b"\x00\x01", CLOSE),
        "bad text": f(b"\xff", TEXT),
        "bad fragment": f(b"fr", fin=False) + f(b"new"),
        "bad continuation": f(b"fr", 0),
        "reserved": f(b"x", rsv=4),
        "opcode": f(b"x", 5),
        "wrong form": f(b"x", form=2),
        "wrong mask": frame(b"x", mask=None if mask else KEY),
        "big": f(bytes(LIMIT + 1)),
        "big in fragments": f(bytes(LIMIT), fin=False) + f(b"x", 0),
    }


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("first", kinds(None))
async def test_every_mixture_and_split_gives_the_same_messages(first: Any, server: Any) -> None:
    """A message that overtakes another, or is lost or doubled, is a request with a wrong reply or none."""
    async with open_frame_stream(server=server) as (link, _, peer):
        mixtures = kinds(peer.mask)
        for second in mixtures.values():
            data = mixtures[first] + second + peer.frame(b"end")
            expected = await read_with_trio_websocket(data, server=server)
            assert expected[-1] == b"end"
            pieces = [[data], [data[i : i + 1] for i in range(len(data))]]
            pieces += [[data[:at], data[at:]] for at in range(1, len(data), 1 if len(data) < 60 else 7)]
            for chunks in pieces:
                link.messages.clear()
                for chunk in chunks:
                    await peer.send(chunk)
                    if len(chunks) == 2:
                        await trio.testing.wait_all_tasks_blocked()
                await trio.testing.wait_all_tasks_blocked()
                assert link.messages == expected


@pytest.mark.parametrize("split", ["whole", "bytewise", "in two"])
@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("last", endings(None))
async def test_stream_ends_at_the_same_frame_as_in_trio_websocket(
    last: Any, server: Any, split: Any, autojump_clock: MockClock
) -> None:
    """Frames after a Close or an illegal frame are ignored, and messages before it count."""
    mask = KEY if server else None
    mixtures = kinds(mask)
    before = mixtures["plain"] + mixtures["fragments"] + mixtures["text"] + mixtures["plain"]
    data = before + endings(mask)[last] + frame(b"after", mask=mask) * 3
    expected = await read_with_trio_websocket(data, server=server)
    assert len(expected) == 6
    async with open_frame_stream(server=server) as (link, _, peer):
        step = {"whole": len(data), "bytewise": 1 if len(data) < LIMIT else 999, "in two": len(before) + 1}[split]
        with suppress(trio.BrokenResourceError):
            for at in range(0, len(data), step):
                await peer.send(data[at : at + step])
        await trio.testing.wait_all_tasks_blocked()
        assert link.messages == expected
        assert link.refused == (last.startswith("big"))
        with suppress(trio.BrokenResourceError):
            await peer.stream.send_eof()
        await link.ended.wait()
        assert link.left
        assert link.messages == expected


mixed_frames = st.lists(
    st.sampled_from(list(kinds(KEY).values())) | st.binary(max_size=30).map(lambda b: frame(b, mask=KEY))
)


@settings(max_examples=30, deadline=None)
@given(mixed_frames, st.data())
async def test_any_mixture_in_any_pieces_gives_the_same_messages(frames: Any, data: Any) -> None:
    whole = b"".join(frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    waits = data.draw(st.booleans())
    expected = await read_with_trio_websocket(whole, server=True)
    async with open_frame_stream() as (link, _, peer):
        for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            if stop > start:
                await peer.send(whole[start:stop])
            if waits:
                await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert link.messages == expected


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
async def test_frames_right_behind_the_head_are_not_lost(server: Any) -> None:
    """A client that does not wait for the response sends them at once (WIRE: interledger-rs)."""
    near, far = trio.testing.memory_stream_pair()
    peer = Peer(far, client=server)
    frames = peer.frame(b"one") + peer.frame(b"two")
    async with open_tasks() as tasks, trio.open_nursery() as nursery:
        if server:
            await far.send_all(upgrade_request() + frames)
            websocket = await accept_websocket(near, tasks, OPTIONS, peer="peer", refuse=lambda handshake: None)
        else:

            async def run_peer() -> None:
                await far.send_all(upgrade_response(await read_head(far)) + frames)

            nursery.start_soon(run_peer)
            websocket = await open_websocket(near, tasks, OPTIONS, host="host", resource="/")
        await trio.testing.wait_all_tasks_blocked()
        link = Link()
        websocket.open(link, link.on_end)
        await trio.testing.wait_all_tasks_blocked()
        assert link.messages == [b"one", b"two"]


async def test_head_in_single_bytes_is_accepted() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        data = upgrade_request() + frame(b"first", mask=KEY)

        async def run_peer() -> None:
            for i in range(len(data)):
                await far.send_all(data[i : i + 1])
                await trio.testing.wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_peer)
            websocket = await accept_websocket(near, tasks, OPTIONS, peer="peer", refuse=lambda handshake: None)
            link = Link()
            websocket.open(link, link.on_end)
        await trio.testing.wait_all_tasks_blocked()
        assert link.messages == [b"first"]


async def test_status_line_without_a_reason_is_accepted(autojump_clock: MockClock) -> None:
    """HTTP allows it; a connection to such a server would otherwise hang after its handshake."""
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks, trio.open_nursery() as nursery:

        async def run_peer() -> None:
            head = upgrade_response(await read_head(far), status_line="HTTP/1.1 101")
            await far.send_all(head + frame(b"first"))

        nursery.start_soon(run_peer)
        websocket = await open_websocket(near, tasks, OPTIONS, host="host", resource="/")
        link = Link()
        websocket.open(link, link.on_end)
        await trio.testing.wait_all_tasks_blocked()
        assert link.messages == [b"first"]


# Pings, pongs and closing.


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
async def test_the_peers_close_is_answered(server: Any, autojump_clock: MockClock) -> None:
    """A peer that gets no Close waits for it, and reports an abnormal end."""
    async with open_frame_stream(server=server) as (link, _, peer):
        await peer.send(peer.frame(b"last"), peer.frame(b"\x03\xe8", CLOSE), peer.frame(b"after"))
        assert (await peer.receive()).close_code == 1000
        assert link.messages == [b"last"]
        assert link.left
        if not server:
            await peer.aclose()
        await link.ended.wait()
        assert trio.current_time() < 1


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
async def test_own_close_comes_last_and_ends_with_the_peers(server: Any, autojump_clock: MockClock) -> None:
    async with open_frame_stream(server=server) as (link, websocket, peer), trio.open_nursery() as nursery:
        websocket.writer.write(websocket.frame(b"last"))
        start = trio.current_time()
        nursery.start_soon(websocket.close, 1008, "too much")
        assert await peer.receive() == (BINARY, b"last")
        received = await peer.receive()
        assert (received.close_code, received.payload[2:]) == (1008, b"too much")
        await peer.send(peer.frame(received.payload, CLOSE))
        await link.ended.wait()
        assert trio.current_time() == start


async def test_peer_that_does_not_close_is_dropped_after_a_second(autojump_clock: MockClock) -> None:
    """Closing a plugin must not hang on a peer that is gone."""
    async with open_frame_stream() as (link, websocket, peer):
        start = trio.current_time()
        await websocket.close(1000, "")
        assert trio.current_time() == start + 1
        assert link.ended.is_set()
        assert (await peer.receive()).close_code == 1000
        await peer.wait_eof()


async def test_peer_that_neither_reads_nor_closes_is_dropped_too(autojump_clock: MockClock) -> None:
    async with open_frame_stream(make_streams=trio.testing.lockstep_stream_pair) as (link, websocket, _):
        start = trio.current_time()
        websocket.writer.write(websocket.frame(bytes(1000)))
        await websocket.close(1000, "")
        assert trio.current_time() <= start + 2
        assert link.ended.is_set()


@pytest.mark.parametrize("how", ["eof", "broken"])
async def test_lost_connection_ends_the_link(how: Any) -> None:
    async with open_frame_stream() as (link, _, peer):
        await peer.send(peer.frame(b"last"))
        if how == "eof":
            await peer.stream.send_eof()
        else:
            await peer.aclose()
        await link.ended.wait()
        assert link.messages == [b"last"]
        assert link.left


async def test_pings_are_answered_while_messages_flood() -> None:
    """Otherwise a peer that floods and pings would consider this end dead."""
    async with open_frame_stream() as (link, _, peer):
        flood = peer.frame(b"x" * 50) * 1000
        await peer.send(flood, peer.frame(b"alive?", PING), flood)
        assert await peer.receive() == (PONG, b"alive?")
        await trio.testing.wait_all_tasks_blocked()
        assert len(link.messages) == 2000


async def test_a_flood_leaves_time_for_others() -> None:
    """One flooding peer must not delay the others."""
    async with open_frame_stream() as (link, _, peer):
        turns: list[int] = []

        async def other() -> None:
            while len(link.messages) < 3200:
                turns.append(len(link.messages))
                await trio.lowlevel.checkpoint()

        await peer.send(peer.frame(b"x") * 3200)
        with trio.fail_after(5):
            await other()
        assert max(after - before for before, after in pairwise(turns)) <= 64


async def test_only_the_newest_pong_waits_for_a_peer_that_does_not_read() -> None:
    """Endless pings from such a peer must not fill the memory."""
    async with open_frame_stream(make_streams=trio.testing.lockstep_stream_pair) as (_, websocket, peer):
        websocket.writer.write(websocket.frame(b"in the way"))
        for i in range(100):
            await peer.send(peer.frame(b"%d" % i, PING))
        await trio.testing.wait_all_tasks_blocked()
        assert await peer.receive() == (BINARY, b"in the way")
        assert await peer.receive() == (PONG, b"99")
        await peer.send(peer.frame(b"again", PING))
        assert await peer.receive() == (PONG, b"again")


async def test_ping_ends_with_its_pong(autojump_clock: MockClock) -> None:
    async with open_frame_stream() as (_, websocket, peer), trio.open_nursery() as nursery:
        nursery.start_soon(websocket.ping)
        ping = await peer.receive()
        assert ping.opcode == PING
        await peer.send(peer.frame(b"x"), peer.frame(ping.payload, PONG))
    async with open_frame_stream() as (_, websocket, peer):
        await peer.aclose()
        with trio.move_on_after(30) as scope:
            await websocket.ping()
        assert scope.cancelled_caught


async def test_64_fragments_are_a_message_and_65_are_too_many(autojump_clock: MockClock) -> None:
    """A million one-byte fragments cost trio-websocket 54 MiB."""
    async with open_frame_stream() as (link, _, peer):
        for count in (64, 65):
            await peer.send(peer.frame(b"a", fin=False))
            await peer.send(*(peer.frame(b"a", 0, fin=i == count - 2) for i in range(count - 1)))
        await trio.testing.wait_all_tasks_blocked()
        assert link.messages == [b"a" * 64]
        assert link.refused == 1


async def test_a_message_past_the_limits_is_refused_at_its_header(
    autojump_clock: MockClock,
) -> None:
    async with open_frame_stream() as (link, websocket, peer):
        await peer.send(peer.frame(bytes(LIMIT)), peer.frame(bytes(LIMIT + 1))[:14])
        await trio.testing.wait_all_tasks_blocked()
        assert [len(message or b"") for message in link.messages] == [LIMIT]
        assert link.refused == 1
        await peer.send(bytes(200_000))
        await trio.testing.wait_all_tasks_blocked()
        assert link.refused == 1
        await websocket.close(1009, "")
        received = [await peer.receive()]
        assert received[0].close_code == 1009


async def test_messages_are_small_before_authentication() -> None:
    """An unauthenticated peer must not be able to make this end hold 64 KiB for it."""
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        websocket, peer = await connect(tasks, near, far, server=True)
        link = Link()
        websocket.open(link, link.on_end)
        await peer.send(peer.frame(bytes(OPTIONS.max_unauthenticated_bytes)))
        await peer.send(peer.frame(bytes(OPTIONS.max_unauthenticated_bytes + 1)))
        await trio.testing.wait_all_tasks_blocked()
        assert len(link.messages) == 1
        assert link.refused == 1


async def test_message_behind_the_auth_packet_may_be_large() -> None:
    """A message that is served after authentication may have any size (WIRE: interledger-rs does not wait)."""
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        websocket, peer = await connect(tasks, near, far, server=True)
        link = Link()

        def receive(message: bytes) -> None:
            link.messages.append(message)
            websocket.authenticated()

        link.receive = receive  # type: ignore[method-assign]  # accepts the first message
        websocket.open(link, link.on_end)
        await peer.send(peer.frame(b"auth"), peer.frame(bytes(LIMIT)), peer.frame(b"next"))
        await trio.testing.wait_all_tasks_blocked()
        assert link.messages == [b"auth", bytes(LIMIT), b"next"]


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
async def test_abort_sends_no_close(server: Any) -> None:
    async with open_frame_stream(server=server) as (link, websocket, peer):
        websocket.abort()
        await link.ended.wait()
        assert link.left
        with pytest.raises(EOFError):
            await peer.receive()


async def test_a_cancelled_close_closes_at_once() -> None:
    async with open_frame_stream() as (link, websocket, peer):
        with trio.CancelScope() as scope:
            scope.cancel()
            await websocket.close(1000, "")
        await link.ended.wait()
        await peer.wait_eof()
