"""A token through everything that a client and a listener do: it is in the auth frame, and nowhere else.

Otherwise a reader of a log, a traceback or a frame of another connection could take over the account.
"""

import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import trio
from support.collector import Collector
from support.peers import PING, PONG, TEXT, TOKEN, Peer, dial, listening, open_btp, serving, welcome
from trio.testing import MockClock

from trio_ledger_plugin import ConnectOptions, LedgerPluginError, PluginServices
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.codec import btp

NOON = datetime(2018, 8, 31, 12, 0, 0, 899_000, tzinfo=UTC)
OPTIONS = {"redial_max_delay": 0.01, "response_timeout": 0.2}


async def broken(data: bytes) -> bytes:
    raise RuntimeError("a handler's own trouble")


class Server:
    """A scripted server that handles credentials badly, then accepts the client, and keeps every frame."""

    def __init__(self, ways: list[str]) -> None:
        self.ways = ways
        self.frames: list[bytes] = []
        self.connections = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        self.connections += 1
        way = self.ways.pop(0) if self.ways else "good"
        auth = (await peer.receive()).payload
        assert auth.count(TOKEN.encode()) == 1
        request_id = int.from_bytes(auth[1:5], "big")
        entries = (btp.ProtocolData("auth_token", 1, TOKEN.encode()),)
        if way == "refuses":
            error = btp.Error(request_id, "F00", "NotAcceptedError", NOON, f"no {TOKEN}".encode(), entries)
            await peer.send_packet(error)
        elif way == "not now":
            await peer.send_packet(btp.Error(request_id, "T00", "Busy", NOON, TOKEN.encode(), entries))
        elif way == "garbage":
            await peer.send(peer.frame(b"\x01" + auth[1:5] + b"\x7f" + TOKEN.encode()))
        elif way == "text":
            await peer.send(peer.frame(TOKEN.encode(), TEXT))
        elif way == "good":
            await peer.send_packet(btp.Response(request_id, entries))
            await self._be_good(peer)
        await peer.wait_eof()

    async def _be_good(self, peer: Peer) -> None:
        await peer.send_request(1, b"served by a broken handler")
        await peer.send_packet(btp.Transfer(2, 5))
        await peer.send(peer.frame(b"garbage"), peer.frame(b"x", TEXT), peer.frame(b"", PING))
        with suppress(EOFError, trio.BrokenResourceError):
            while True:
                opcode, payload = await peer.receive()
                self.frames.append(payload)
                if opcode == PING:
                    await peer.send(peer.frame(payload, PONG))


async def test_client_shows_its_token_only_to_the_server(clock: MockClock, caplog: Any, capfd: Any) -> None:
    caplog.set_level(logging.DEBUG)
    collector = Collector(TOKEN.encode())
    services = PluginServices(log=collector)
    for way in ("refuses", "closes"):
        scripted = Server([way] * 3)
        async with serving(scripted.serve) as url:
            await collector.fail(enter, {"server": url, **OPTIONS}, services)
        assert scripted.connections > 0
    scripted = Server(["not now", "garbage", "text", "good", "not now", "garbage", "good"])
    async with serving(scripted.serve) as url:
        # Once with the application's log, once with the default one.
        for log in (services, None):
            async with open_btp({"server": url, **OPTIONS}, log, data_handler=broken) as plugin:
                await collector.use(plugin)
                await plugin.disconnect()
                await collector.use(plugin)
        scripted.ways = ["good", "refuses"]
        async with trio.open_nursery() as nursery:
            with suppress(LedgerPluginError):
                async with open_btp({"server": url, **OPTIONS}, services, nursery=nursery) as plugin:
                    await collector.use(plugin)
                    assert plugin._link is not None
                    plugin._link.abort("cut")
                    await trio.sleep(60)
            await collector.use(plugin)
    collector.show(*scripted.frames)
    assert scripted.frames
    collector.check(caplog, capfd)


async def enter(options: Any, services: Any) -> None:
    async with open_btp(options, services, connect=ConnectOptions(timeout=3000)):
        raise AssertionError("opened")


async def test_listener_never_shows_its_secret(clock: MockClock, caplog: Any, capfd: Any) -> None:
    """Not even to a peer that sent it, in the wrong place."""
    caplog.set_level(logging.DEBUG)
    collector = Collector(TOKEN.encode())
    entry = btp.ProtocolData
    auth = entry("auth", 0, b"")
    wrong = [
        auth_message(1, TOKEN, "wrong", {}),
        auth_message(1, "", TOKEN + "\r\n", {TOKEN: TOKEN}),
        auth_message(1, "", TOKEN, {})[:-3],
        btp.encode(btp.Message(1, (entry(TOKEN, 0, TOKEN.encode()),))),
        btp.encode(btp.Message(1, (auth, entry("auth_token", 2, TOKEN.encode())))),
        btp.encode(btp.Message(1, (auth, entry("auth_token", 1, TOKEN.encode()), entry("auth_username", 1, b"\xff")))),
        btp.encode(btp.Transfer(1, 5, (auth, entry("auth_token", 1, TOKEN.encode())))),
        TOKEN.encode(),
    ]
    for log in (PluginServices(log=collector), None):
        async with open_btp(listening(**OPTIONS), log, data_handler=broken) as plugin:
            for packet in wrong:
                peer = await dial(plugin.address)
                await peer.send(peer.frame(packet))
                with suppress(EOFError):
                    while True:
                        collector.show((await peer.receive()).payload)
                await peer.aclose()
            peer = await dial(plugin.address)
            collector.show(await peer.authenticate())
            async with trio.open_nursery() as nursery:

                async def answer(peer: Peer = peer) -> None:
                    with suppress(EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
                        while True:
                            collector.show((await peer.receive()).payload)

                nursery.start_soon(answer)
                await peer.send_request(2, b"served by a broken handler")
                await peer.send_packet(btp.Message(3, (auth, entry("auth_token", 1, TOKEN.encode()))))
                await peer.send(peer.frame(auth_message(4, "", TOKEN, {})[:-2]))
                await collector.use(plugin)
                await peer.aclose()
            await collector.use(plugin)
        await collector.use(plugin)
    collector.check(caplog, capfd)
