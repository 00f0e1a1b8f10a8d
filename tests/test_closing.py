"""The end of a plugin whose peer floods it: calls are answered, and the peer gets a Close, within close_timeout."""

from contextlib import suppress
from math import inf
from typing import Any

import pytest
import trio
from support.peers import CLOSE, TOKEN, Peer, dial_in, listening, open_btp, serving, welcome

from trio_ledger_plugin import create_plugin, open_plugin
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.errors import PluginClosedError
from trio_ledger_plugin.testing.conformance.assertions import echo


class Flooder:
    """A peer that sends requests all the time, and answers calls after a delay."""

    def __init__(self, peer: Peer, delay: float) -> None:
        self.peer = peer
        self.delay = delay
        self.answers: list[bytes] = []
        self.code: int | None = None
        self.ended = trio.Event()
        assert isinstance(peer.stream, trio.SocketStream)
        # Otherwise its own answer would wait behind megabytes of its flood.
        peer.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 8192)

    async def run(self) -> None:
        """Flood until the other end closes."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            while self.code is None:
                frame = await self.peer.receive()
                if frame.opcode == CLOSE:
                    self.code = frame.close_code
                elif isinstance(packet := btp.decode(frame.payload), btp.Message) and self.delay < inf:
                    nursery.start_soon(self._answer, packet.request_id)
            nursery.cancel_scope.cancel()
        await self.peer.aclose()
        self.ended.set()

    async def _answer(self, request_id: int) -> None:
        await trio.sleep(self.delay)
        self.answers.append(self.peer.frame(btp.encode_ilp(btp.RESPONSE, request_id, b"answer")))

    async def _send(self) -> None:
        requests = [self.peer.frame(btp.encode_ilp(btp.MESSAGE, number, b"flood")) for number in range(50)]
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                answers, self.answers = self.answers, []
                await self.peer.send(*answers, *requests)
                # The scripted peer reads far more slowly than it writes.
                await trio.sleep(0.002)


@pytest.mark.parametrize("delay", [0.2, inf], ids=["answered", "unanswered"])
@pytest.mark.parametrize("side", ["listener", "client"])
async def test_flooded_plugin_drains_and_says_goodbye(side: str, delay: float) -> None:
    """Otherwise its own payments are in doubt, and the peer takes the end for a fault of the network."""
    flooders: list[Flooder] = []
    answers: list[object] = []

    async def attack(peer: Peer) -> None:
        flooders.append(Flooder(peer, delay))
        await flooders[0].run()

    async def let_in(stream: trio.SocketStream) -> None:
        peer = await welcome(stream)
        await peer.let_in()
        await attack(peer)

    async def call(plugin: BtpPlugin) -> None:
        try:
            answers.append(await plugin.send_data(b"call"))
        except PluginClosedError as error:
            answers.append(type(error))

    async def run(options: dict[str, Any]) -> float:
        async with open_btp(options | {"close_timeout": 2.0}, data_handler=echo) as plugin:
            if side == "listener":
                nursery.start_soon(attack, await dial_in(plugin.address))
            await plugin.wait_connected()
            nursery.start_soon(call, plugin)
            await trio.sleep(0.1)
            began = trio.current_time()
        return trio.current_time() - began

    async with trio.open_nursery() as nursery:
        if side == "listener":
            took = await run(listening())
        else:
            async with serving(let_in) as url:
                took = await run({"server": url})
                with trio.fail_after(1):
                    await flooders[0].ended.wait()
    assert flooders[0].code == 1000
    assert answers == [b"answer" if delay < inf else PluginClosedError]
    assert took < 2.5


@pytest.mark.parametrize("plugin", ["btp", "btp-accounts"])
@pytest.mark.parametrize("ends", ["disconnect", "aclose"])
async def test_redial_during_a_disconnect_is_refused_with_503(plugin: str, ends: str, caplog: Any) -> None:
    """Whenever a server was stopped in order, the log of each client would suspect its token."""
    info = {"client_address": "example.host", "asset_scale": 9, "asset_code": "XRP"}
    options = listening() if plugin == "btp" else {"plugin": plugin, "port": 0, "debug_host_ildcp_info": info}
    async with trio.open_nursery() as nursery:
        async with open_plugin(options, nursery=nursery) as server:
            url = server.address.replace("://", f"://:{TOKEN}@")
            client = create_plugin({"server": url}, nursery=nursery)
            await client.connect()
            await getattr(server, ends)()
            with trio.fail_after(5):
                while not any("cannot connect" in each.message for each in caplog.records):  # noqa: ASYNC110 (no event)
                    await trio.sleep(0.01)
        failed = next(each.message for each in caplog.records if "cannot connect" in each.message)
        assert failed.endswith("the WebSocket handshake was refused for now: HTTP 503; trying again")
        await client.aclose()
