"""Opening handshakes that fail, and connections that end: no task waits for ever, and nothing else ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from support.peers import Peer, frame, read_head, shake_hands, upgrade_request, upgrade_response, welcome
from support.tasks import open_tasks
from trio.testing import MockClock

from trio_ledger_plugin.errors import UnreachableError
from trio_ledger_plugin.net.unreachable import PermanentlyUnreachableError
from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.runtime.budget import Budget, Limits
from trio_ledger_plugin.websocket.connection import ReaderTask, accept_websocket, open_websocket
from trio_ledger_plugin.websocket.requests import BadHandshakeError, Handshake

OPTIONS = PluginOptions()


class Receiver:
    """Receives messages, and raises at one of them, as no link should."""

    replies_blocked = 0
    is_open = True
    turns = Budget(Limits())

    async def wait_ready(self) -> None:
        """Return at once."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.left: list[str] = []
        self.ends: list[tuple[bool, str]] = []

    def receive(self, message: bytes) -> None:
        if message == b"raise":
            raise RuntimeError("a bug")
        self.messages.append(message)

    def receive_text(self) -> None:
        """Ignore it."""

    def too_big(self) -> None:
        """Ignore it."""

    def peer_left(self, reason: str) -> None:
        self.left.append(reason)

    def on_end(self, cancelled: bool, error: Exception | None) -> None:
        self.ends.append((cancelled, "" if error is None else str(error)))


async def open_against(answer: bytes, *, end: bool = False) -> None:
    """Open a client's WebSocket with a server that answers with these bytes."""
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:

        async def server() -> None:
            await read_head(far)
            await far.send_all(answer)
            if end:
                await far.send_eof()

        error: UnreachableError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server)
            try:
                await open_websocket(near, tasks, OPTIONS, host="host", resource="/")
            except UnreachableError as raised:
                error = raised
        assert error is not None
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
    raise error


def http(status: int, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Said So\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


@pytest.mark.parametrize("body", [b"", b"some words"])
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, UnreachableError),
        (403, UnreachableError),
        (429, UnreachableError),
        (400, PermanentlyUnreachableError),
        (404, PermanentlyUnreachableError),
        (500, UnreachableError),
        (503, UnreachableError),
        (301, PermanentlyUnreachableError),
        (302, UnreachableError),
        (307, UnreachableError),
        (200, UnreachableError),
    ],
)
async def test_refused_handshake_says_whether_a_retry_can_help(
    status: Any, error: Any, body: Any, autojump_clock: MockClock
) -> None:
    """Giving up on a restarting server, or for the sake of a proxy, is an outage."""
    with pytest.raises(error, match=str(status)) as caught:
        await open_against(http(status, body))
    assert isinstance(caught.value, PermanentlyUnreachableError) == (error is PermanentlyUnreachableError)
    assert caught.value.name == "UnreachableError"


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 101", b"HTTP/1.1 500 Some", b"SSH-2.0-OpenSSH_9.6\r\n\r\n", b"\x82\x00\x00\x00"],
)
async def test_a_handshake_that_ends_early_fails_at_once(answer: Any, autojump_clock: MockClock) -> None:
    """trio-websocket alone waits for ever when the connection ends in the handshake."""
    start = trio.current_time()
    with pytest.raises(UnreachableError):
        await open_against(answer, end=True)
    assert trio.current_time() == start


async def test_a_wrong_accept_key_is_no_websocket_server(autojump_clock: MockClock) -> None:
    answer = upgrade_response(b"Sec-WebSocket-Key: c29tZXRoaW5nIGVsc2U=\r\n\r\n")
    with pytest.raises(UnreachableError):
        await open_against(answer)


async def test_a_head_without_end_is_cut_off(autojump_clock: MockClock) -> None:
    """A server that sends for ever must not fill the memory."""
    with pytest.raises(UnreachableError):
        await open_against(b"HTTP/1.1 101 Yes\r\n" + b"X-Filler: abcdefgh\r\n" * 1000)


async def test_a_cancelled_handshake_closes_its_stream() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: open_websocket(near, tasks, OPTIONS, host="host", resource="/path?query"))
                head = await read_head(far)
                scope.cancel()
        assert head.startswith(b"GET /path?query HTTP/1.1\r\n")
        assert b"\r\nHost: host\r\n" in head
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
        await trio.testing.wait_all_tasks_blocked()


# The server's side.


async def accept(near: trio.abc.Stream, tasks: Any, status: int | None = None) -> Any:
    seen: list[Handshake] = []

    def refuse(handshake: Handshake) -> int | None:
        seen.append(handshake)
        return status

    websocket = await accept_websocket(near, tasks, OPTIONS, peer="192.0.2.1", refuse=refuse)
    return websocket, seen


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
        upgrade_request().replace(b"Version: 13", b"Version: 8"),
        upgrade_request().replace(b"Sec-WebSocket-Key", b"X-Key"),
        b"GET / HTTP/1.1\r\n" + b"X-Filler: abcdefgh\r\n" * 1000,
    ],
)
async def test_invalid_handshake_is_refused(request_bytes: Any, autojump_clock: MockClock) -> None:
    """Garbage must end its own connection, and nothing else."""
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        await far.send_all(request_bytes)
        await far.send_eof()
        with pytest.raises(BadHandshakeError), trio.fail_after(1):
            await accept(near, tasks)
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
        assert tasks.running


async def test_refused_handshake_gets_its_status() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        await far.send_all(upgrade_request(origin="https://page.example"))
        with pytest.raises(BadHandshakeError, match="403"):
            await accept(near, tasks, status=403)
        assert (await read_head(far)).startswith(b"HTTP/1.1 403 ")


async def test_an_accepted_handshake_is_described() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        await far.send_all(upgrade_request(origin="https://page.example").replace(b"GET / ", b"GET /ilp?x=1 "))
        websocket, seen = await accept(near, tasks)
        assert [handshake.head.first_line for handshake in seen] == ["GET /ilp?x=1 HTTP/1.1"]
        assert [handshake.origin for handshake in seen] == ["https://page.example"]
        assert websocket.peer == "192.0.2.1"


@pytest.mark.parametrize("status", [None, 403])
async def test_client_gone_before_the_response_ends_only_its_connection(status: Any) -> None:
    """Otherwise the error of the failed send would end the task that accepts connections, and the plugin."""
    near, far = trio.testing.memory_stream_pair()

    async def gone() -> None:
        raise trio.BrokenResourceError("reset by peer")

    near.send_stream.send_all_hook = gone
    async with open_tasks() as tasks:
        await far.send_all(upgrade_request())
        with pytest.raises(BadHandshakeError):
            await accept(near, tasks, status=status)
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()


# After the handshake.


@asynccontextmanager
async def connected() -> AsyncIterator[Any]:
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks:
        opened: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def run_server() -> None:
                opened.append((await accept(near, tasks))[0])

            nursery.start_soon(run_server)
            peer = await shake_hands(far)
        yield opened[0], peer, tasks


async def test_error_in_the_reader_ends_only_its_connection(autojump_clock: MockClock) -> None:
    """An error of one connection must not end the plugin (trio-websocket's ends the whole server)."""
    async with connected() as (websocket, peer, tasks):
        receiver = Receiver()
        websocket.open(receiver, receiver.on_end)
        await peer.send(peer.frame(b"good"), peer.frame(b"raise"), peer.frame(b"after"))
        await peer.wait_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert receiver.messages == [b"good"]
        assert receiver.ends == [(False, "a bug")]
        assert tasks.running


async def test_connection_that_ended_before_opening_reports_its_end() -> None:
    """The end came before the callback was set; the task that opens it must not wait for ever."""
    async with connected() as (websocket, _, _):
        websocket.abort()
        await trio.testing.wait_all_tasks_blocked()
        receiver = Receiver()
        websocket.open(receiver, receiver.on_end)
        assert receiver.ends == [(False, "")]


async def test_connection_that_ends_during_opening_reports_its_end() -> None:
    """A callback that is set at that moment would never be called, and its task would wait for ever."""
    ends: list[tuple[bool, Exception | None]] = []

    class Closing(trio.abc.AsyncResource):
        async def aclose(self) -> None:
            reader.call_at_end(lambda cancelled, error: ends.append((cancelled, error)))
            await trio.lowlevel.checkpoint()

    async with open_tasks() as tasks:
        reader = ReaderTask(tasks, Closing(), lambda *_: None)
        reader.start_soon(trio.lowlevel.checkpoint)
        await reader.ended.wait()
    assert ends == [(False, None)]


async def test_end_of_the_plugin_is_reported_as_cancelled() -> None:
    """Calls then fail because of this side, not because of the peer."""
    async with connected() as (websocket, peer, tasks):
        receiver = Receiver()
        websocket.open(receiver, receiver.on_end)
        tasks.cancel()
        await tasks.wait_ended()
        assert receiver.ends == [(True, "")]
        await peer.wait_eof()


@pytest.mark.parametrize("end", ["close", "eof"])
async def test_a_client_sees_the_servers_end(end: Any, autojump_clock: MockClock) -> None:
    near, far = trio.testing.memory_stream_pair()
    async with open_tasks() as tasks, trio.open_nursery() as nursery:
        servers: list[Peer] = []

        async def serve() -> None:
            servers.append(await welcome(far))

        nursery.start_soon(serve)
        websocket = await open_websocket(near, tasks, OPTIONS, host="host", resource="/")
        receiver = Receiver()
        websocket.open(receiver, receiver.on_end)
        if end == "close":
            await far.send_all(frame(b"\x03\xe8", 8))
            await trio.testing.wait_all_tasks_blocked()
            assert receiver.left
            with trio.move_on_after(1) as scope:
                await websocket.ping()
            assert scope.cancelled_caught
        await far.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert receiver.ends == [(False, "")]
        assert receiver.left
