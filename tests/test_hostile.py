"""What unauthenticated and hostile peers can do to a server: cost little, learn nothing, and be disconnected soon."""

import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from support.frame_streams import open_frame_stream
from support.peers import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    TOKEN,
    Peer,
    dial,
    dial_in,
    frame,
    listening,
    open_btp,
    shake_hands,
    upgrade_request,
)
from trio.testing import MockClock

from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.testing.conformance.assertions import echo
from trio_ledger_plugin.testing.scripted_peer import dial_stream

KIB = 1024
MIB = 1024 * KIB
# ``nox -s outcomes`` runs ten thousand.
GUESSES = int(os.environ.get("TRIO_LEDGER_PLUGIN_GUESSES", "1000"))
SERVER = Path(__file__).parent / "faults" / "server.py"

posix = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")


@pytest.fixture
def clock() -> MockClock:
    """A clock that jumps when nothing has happened for a while; sockets on this machine are faster."""
    return MockClock(autojump_threshold=0.05)


# Many unauthenticated connections.


@pytest.fixture
def many_files() -> Iterator[None]:
    """Allow as many open files as two thousand connections need, both ends of which are in this process."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < 4400:
        pytest.skip(f"the system allows {before[1]} open files at the most, and 4,400 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 4400), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
@pytest.mark.parametrize("says", ["nothing", "half a head", "half a frame"])
async def test_two_thousand_silent_sockets_are_gone_in_eight_seconds(
    says: Any, many_files: Any, clock: MockClock
) -> None:
    """They would otherwise use up every descriptor of the program, and its peer could not connect."""
    async with open_btp(listening(), data_handler=echo) as plugin:
        good = await dial_in(plugin.address)
        await good.send_request(0, b"so that the handler's task is there")
        await good.receive_packet()
        tasks = trio.lowlevel.current_statistics().tasks_living
        streams = [await dial_stream(plugin.address) for _ in range(2000)]
        start = trio.current_time()

        async def be_silent(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                if says == "half a head":
                    await stream.send_all(upgrade_request()[:50])
                elif says != "nothing":
                    await stream.send_all(upgrade_request() + (b"\x82\xff" if says == "half a frame" else b""))
            await Peer(stream, client=True).wait_eof()

        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(be_silent, stream)
            await good.send_request(1, b"still there?")
            assert (await good.receive_packet()).request_id == 1
        assert trio.current_time() - start <= 8
        await trio.sleep(3)
        # One more task may run, which reads for all connections where there are many.
        assert trio.lowlevel.current_statistics().tasks_living <= tasks + 1
        await good.send_request(2, b"still there?")
        assert (await good.receive_packet()).request_id == 2
        await good.aclose()


async def test_guesses_learn_nothing_and_do_not_delay_the_right_token(autojump_clock: MockClock) -> None:
    """A client with the token must get in at once, and a client that guesses must wait longer and longer."""
    options: dict[str, Any] = {"listener": {"port": None, "secret": TOKEN}, "max_unauthenticated": 2000}
    options["trusted_proxies"] = ["192.0.2.1"]
    answers: set[bytes] = set()
    waits: list[float] = []
    async with open_btp(options, data_handler=echo) as plugin:

        async def guess(token: str) -> None:
            near, far = trio.testing.memory_stream_pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve, near)
                began = trio.current_time()
                await far.send_all(upgrade_request() + quick(auth_message(1, "", token, {})))
                heard = b""
                while b"invalid auth_token" not in heard:
                    data = bytes(await far.receive_some())
                    assert data, heard
                    heard += data
                waits.append(trio.current_time() - began)
                # Only the time in the reply may differ.
                answers.add(re.sub(rb"\d{14}\.\d{3}Z", b"", heard))
                await far.aclose()

        async def serve(stream: trio.abc.Stream) -> None:
            await plugin.serve_stream(stream, peer="192.0.2.1")

        for at in range(0, GUESSES, 1000):
            async with trio.open_nursery() as nursery:
                for number in range(at, min(at + 1000, GUESSES)):
                    # Some are prefixes of the right token.
                    token = TOKEN[: number % len(TOKEN)] + ("" if number % 3 else str(number))
                    nursery.start_soon(guess, token)
                async with trio.open_nursery() as one:
                    near, far = trio.testing.memory_stream_pair()
                    one.start_soon(serve, near)
                    began = trio.current_time()
                    peer = await shake_hands(far)
                    assert await peer.authenticate() == btp.Response(1)
                    assert trio.current_time() == began
                    await peer.aclose()
    assert len(waits) == GUESSES
    assert len(answers) == 1, "an answer tells how near a guess was"
    assert TOKEN[:4].encode() not in answers.pop()
    assert waits[0] < 0.1
    assert min(waits[100:]) >= 1.5
    assert max(waits) < 6


# What a connection can cost. RFC 6455 allows a mask of zeros, which costs the attacker nothing.


def quick(payload: bytes, opcode: int = BINARY, *, fin: bool = True) -> bytes:
    plain = frame(payload, opcode, fin=fin)
    return plain[:1] + bytes([plain[1] | 0x80]) + plain[2 : len(plain) - len(payload)] + bytes(4) + payload


def requests(size: int, count: int) -> list[bytes]:
    return [quick(btp.encode_ilp(btp.MESSAGE, number, bytes(size))) for number in range(count)]


BEFORE = {
    "fragments": [quick(bytes(8000), fin=False), quick(b"a", 0, fin=False) * 62],
    "an announced terabyte": [b"\x82\xff" + (2**40).to_bytes(8, "big") + bytes(4), bytes(300_000)],
    "pings": [quick(b"x" * 125, PING) * 500] * 20,
}
AFTER = {
    "fragments": ("echo", [quick(bytes(65_000), fin=False), quick(b"a", 0, fin=False) * 62], 256 * KIB),
    "pings": ("echo", [quick(b"x" * 125, PING) * 500] * 40, 256 * KIB),
    "transfers": ("echo", [quick(btp.encode(btp.Transfer(number, 5))) * 20 for number in range(1000)], 2 * MIB),
    "small requests": ("slow", [b"".join(requests(10, 500))] * 20, 8 * MIB),
    # 4 MiB of requests are with handlers, 2 MiB wait, 1 MiB is queued to be sent.
    "large requests": ("slow", requests(64_000, 400), 8 * MIB),
    # 4 MiB of replies wait for room, 1 MiB is queued to be sent.
    "large answers that it does not read": ("large", [b"".join(requests(10, 500))] * 10, 8 * MIB),
}
CONNECTIONS = 12


class Served:
    """A server process under attack."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self.address = ""

    async def read_line(self) -> str:
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            data = await self._process.stdout.receive_some(1)
            assert data, "the server has ended"
            line += data
        return line.decode().strip()

    async def figures(self) -> Any:
        assert self._process.stdin is not None
        await self._process.stdin.send_all(b"\n")
        return json.loads(await self.read_line())

    async def enter(self, token: str) -> Peer:
        peer = await dial(self.address)
        await peer.send(peer.frame(auth_message(1, "", token, {})))
        assert await peer.receive_packet() == btp.Response(1)
        return peer


@asynccontextmanager
async def serving(handler: str) -> AsyncIterator[Served]:
    process = await trio.lowlevel.open_process(
        [sys.executable, str(SERVER), handler], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        served = Served(process)
        served.address = await served.read_line()
        for number in range(3):
            # The first connections also pay for what a process allocates once.
            peer = await served.enter(f"warm-{number}")
            await peer.send(*requests(1000, 50))
            await peer.aclose()
        yield served
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


async def attack(handler: str, pieces: list[bytes], *, let_in: bool) -> float:
    """Return the highest cost of one of several hostile connections in bytes, while a good one is served."""
    async with serving(handler) as served:
        before: int = (await served.figures())["resident"]
        most = 0

        async def send(peer: Peer) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for piece in pieces:
                    await peer.send(piece)
                await trio.sleep_forever()

        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            for number in range(CONNECTIONS):
                peer = await (served.enter(f"hostile-{number}") if let_in else dial(served.address))
                stack.push_async_callback(peer.aclose)
                nursery.start_soon(send, peer)
            # Until its memory stops growing.
            steady = 0
            while steady < 4:
                await trio.sleep(0.12)
                resident = (await served.figures())["resident"]
                steady = steady + 1 if resident <= most * 1.01 else 0
                most = max(most, resident)
            good = await served.enter("good")
            stack.push_async_callback(good.aclose)
            await good.send(good.frame(b"?", PING))
            assert (await good.receive()).payload == b"?"
            nursery.cancel_scope.cancel()
    return (most - before) / CONNECTIONS


@posix
@pytest.mark.slow
@pytest.mark.parametrize("how", BEFORE)
async def test_unauthenticated_connection_costs_at_most_256_kib(how: Any) -> None:
    """There may be a thousand of them at once."""
    assert await attack("echo", BEFORE[how], let_in=False) <= 256 * KIB


@posix
@pytest.mark.slow
@pytest.mark.parametrize("how", AFTER)
async def test_cost_of_a_hostile_peer_is_bounded(how: Any) -> None:
    """One client of a server of many accounts could otherwise end it for all."""
    handler, pieces, most = AFTER[how]
    assert await attack(handler, pieces, let_in=True) <= most


# Peers that break the WebSocket protocol.

ILLEGAL = {
    "a reserved bit": ({"payload": b"x", "rsv": 4}, 1002),
    "an unknown opcode": ({"payload": b"x", "opcode": 5}, 1002),
    "a ping of 126 bytes": ({"payload": bytes(126), "opcode": PING}, 1002),
    "a continuation of nothing": ({"payload": b"x", "opcode": 0}, 1002),
    "a length in the wrong form": ({"payload": b"x", "form": 2}, 1002),
    "a Close with a code that may not be sent": ({"payload": b"\x03\xed", "opcode": CLOSE}, 1002),
    "text that is not UTF-8": ({"payload": b"\xff", "opcode": TEXT}, 1007),
    "the beginning of text that is not UTF-8": ({"payload": b"\xff", "opcode": TEXT, "fin": False}, 1007),
}


@pytest.mark.parametrize("server", [True, False], ids=["server", "client"])
@pytest.mark.parametrize("what", ILLEGAL)
async def test_peer_that_breaks_the_protocol_gets_a_close_code(
    what: Any, server: Any, autojump_clock: MockClock
) -> None:
    """Its author would otherwise look for the mistake elsewhere (RFC 6455, section 7.1.7)."""
    how, code = ILLEGAL[what]
    async with open_frame_stream(server=server) as (link, _, peer):
        await peer.send(peer.frame(b"before"), peer.frame(**how))
        assert await peer.receive_close() == code
        assert link.messages == [b"before"]
        assert link.left
