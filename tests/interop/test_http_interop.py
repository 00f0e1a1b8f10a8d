"""What peers of ilp-plugin-http would lose: the real one as client, server and host of many; proxies before ours."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.ports import free_port, wait_open

from trio_ledger_plugin import NotAcceptedError, PluginServices, RemoteError, fetch_ildcp, open_plugin
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.http.endpoint import HttpEndpoint
from trio_ledger_plugin.stores import MemoryStore

from .connector import CONNECTOR
from .connector import running as running_connector
from .http_node import open_http_peer
from .network import FULFILL, PREIMAGE, Receiver, offer, send
from .node import NodeCallError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.interop

HOST = "test.host"
INFO = {"clientAddress": HOST, "assetScale": 9, "assetCode": "XRP"}
CREDENTIALS = {
    "bearer": ({"staticToken": "tok"}, {"staticToken": "tok"}),
    "jwt": ({"jwtSecret": "secret"}, {"jwtSecret": "secret"}),
    "old bare token": ({"secretToken": "tok"}, {"secretToken": "tok"}),
    "old bare jwt": ({"secret": "secret"}, {"secret": "secret", "tokenExpiry": 10_000}),
}
BOTH = pytest.mark.parametrize(("incoming", "outgoing"), list(CREDENTIALS.values()), ids=list(CREDENTIALS))


async def reverse(data: bytes) -> bytes:
    return data[::-1]


@asynccontextmanager
async def serving(options: dict[str, Any], handler: Any = reverse, store: Any = None) -> AsyncIterator[HttpEndpoint]:
    async with open_plugin(
        {"plugin": "ilp-plugin-http", **options}, PluginServices(store=store), data_handler=handler
    ) as plugin:
        assert isinstance(plugin, HttpEndpoint)
        yield plugin


def sending(url: str, outgoing: dict[str, Any]) -> Any:
    return open_plugin({"plugin": "ilp-plugin-http", "outgoing": {"url": url, **outgoing}})


@BOTH
async def test_their_client_reaches_our_server(incoming: Any, outgoing: Any) -> None:
    async with serving({"incoming": {"port": 0, **incoming}}) as plugin, open_http_peer() as peer:
        await peer.open(outgoing={"url": plugin.address, **outgoing})
        assert await peer.send_data(b"live") == b"evil"
        # As many connections as calls, all at once.
        assert await peer.send_many(300, 300) == 300
        assert await peer.send_data(bytes(32_000)) == bytes(32_000)


@BOTH
async def test_our_client_reaches_their_server(incoming: Any, outgoing: Any) -> None:
    async with open_http_peer() as peer:
        url = await peer.open(incoming=incoming)
        await peer.handle_data("reverse")
        async with sending(url, outgoing) as plugin:
            assert await plugin.send_data(b"live") == b"evil"
            async with trio.open_nursery() as nursery:
                for number in range(200):
                    nursery.start_soon(check_reversed, plugin, b"%d" % number * 50)
        assert (await peer.stats())["handled"] == 201


async def check_reversed(plugin: Any, data: bytes) -> None:
    assert await plugin.send_data(data) == data[::-1]


async def test_our_client_after_a_pause_that_their_server_does_not_wait_for() -> None:
    """Node closes an idle connection after five to six seconds; the next call must not meet its end."""
    async with open_http_peer() as peer:
        url = await peer.open(incoming={"staticToken": "tok"})
        await peer.handle_data("reverse")
        async with sending(url, {"staticToken": "tok"}) as plugin:
            for pause in (0, 3, 6.2):
                await trio.sleep(pause)
                assert await plugin.send_data(b"live") == b"evil"


async def test_their_refusals_have_our_errors() -> None:
    async with open_http_peer() as peer:
        url = await peer.open(incoming={"staticToken": "tok"})
        async with sending(url, {"staticToken": "tok"}) as plugin:
            with pytest.raises(RemoteError, match="T00 UnreachableError: HTTP 502") as caught:
                await plugin.send_data(b"x")
            await peer.handle_data("throw", message="no")
            with pytest.raises(RemoteError, match="T00 UnreachableError: HTTP 500"):
                await plugin.send_data(b"x")
            with pytest.raises(RemoteError, match="F00 NotAcceptedError: HTTP 413"):
                await plugin.send_data(bytes(40_000))
            assert caught.value.code == "T00"
        async with sending(url, {"staticToken": "wrong"}) as plugin:
            with pytest.raises(NotAcceptedError, match="HTTP 401"):
                await plugin.send_data(b"x")


async def test_our_refusals_reach_their_client() -> None:
    async def fail(data: bytes) -> bytes:
        raise OSError("canary")

    async with serving({"incoming": {"port": 0, "staticToken": "tok"}}, fail) as plugin, open_http_peer() as peer:
        await peer.open(outgoing={"url": plugin.address, "staticToken": "tok"})
        answer = ilp.decode(await peer.send_data(ilp.encode(offer("test.us"))))
        assert isinstance(answer, ilp.Reject)
        # Their codec reads it too.
        told = await peer.do("decode", hex=ilp.encode(answer).hex())
        assert told["data"]["code"] == "F00"
        with pytest.raises(NodeCallError, match="code=400"):
            await peer.send_data(b"no packet")
        plugin.deregister_data_handler()
        with pytest.raises(NodeCallError, match="code=502"):
            await peer.send_data(b"x")


# Many accounts.


async def test_their_children_have_accounts_at_our_server() -> None:
    options = {"multi": True, "ildcp": INFO, "incoming": {"port": 0}}
    store = MemoryStore()
    async with AsyncExitStack() as stack:
        alice, thief = [await stack.enter_async_context(open_http_peer()) for _ in range(2)]
        at_alice = await alice.open(incoming={"staticToken": "ours"})
        outgoing = {"url": f"{at_alice}/ilp/%", "staticToken": "ours"}
        plugin = await stack.enter_async_context(serving({**options, "outgoing": outgoing}, store=store))
        # The real one cannot be given a new URL, so it is opened again.
        child = await stack.enter_async_context(open_http_peer())
        await child.open(outgoing={"url": plugin.address, "staticToken": "secret", "name": "alice"})
        await thief.open(outgoing={"url": plugin.address, "staticToken": "other", "name": "alice"})
        assert await child.send_many(50, 300) == 50
        with pytest.raises(NodeCallError, match="code=401"):
            await thief.send_data(b"x")
        await alice.handle_data("fulfill", hex=ilp.encode(ilp.Fulfill(PREIMAGE)).hex())
        prepare = ilp.make_prepare(1, f"{HOST}.alice.x", sha256(PREIMAGE).digest(), 10)
        assert ilp.decode(await plugin.send_data(ilp.encode(prepare))) == ilp.Fulfill(PREIMAGE)


async def test_our_client_is_a_child_of_their_host() -> None:
    receiver = Receiver()
    async with AsyncExitStack() as stack:
        child = await stack.enter_async_context(
            serving({"incoming": {"port": 0, "path": "/ilp/zed", "staticToken": "in"}}, receiver.handle)
        )
        peer = await stack.enter_async_context(open_http_peer())
        url = await peer.open(
            multi=True,
            ildcp=INFO,
            incoming={"staticToken": "all"},
            outgoing={"url": f"{child.address}/ilp/%", "staticToken": "in"},
        )
        plugin = await stack.enter_async_context(sending(url, {"staticToken": "all", "name": "zed"}))
        assert (await fetch_ildcp(plugin)).client_address == f"{HOST}.zed"
        packet = offer(f"{HOST}.zed.order.7")
        assert ilp.decode(await peer.send_data(ilp.encode(packet))) == FULFILL
        assert receiver.packets == [packet]


async def test_our_client_is_a_child_of_a_connector_over_http() -> None:
    """The connector hosts ilp-plugin-http with many children, and forwards between two of ours."""
    port = free_port()
    receiver = Receiver()
    async with AsyncExitStack() as stack:
        bob = await stack.enter_async_context(
            serving({"incoming": {"port": 0, "path": "/bob", "staticToken": "in"}}, receiver.handle)
        )
        web = {
            "relation": "child",
            "plugin": "ilp-plugin-http",
            "assetCode": "XRP",
            "assetScale": 9,
            "sendRoutes": False,
            "options": {
                "multi": True,
                "incoming": {"port": {"port": port, "host": "127.0.0.1"}, "staticToken": "all"},
                "outgoing": {"url": f"{bob.address}/%", "staticToken": "in", "name": "connector"},
            },
        }
        await stack.enter_async_context(running_connector(ilpAddress=CONNECTOR, accounts={"web": web}))
        url = f"http://127.0.0.1:{port}"
        alice = await stack.enter_async_context(sending(url, {"staticToken": "all", "name": "alice"}))
        assert (await fetch_ildcp(alice)).client_address == f"{CONNECTOR}.web.alice"
        packet = offer(f"{CONNECTOR}.web.bob.order.7")
        assert await send(alice, packet) == FULFILL
        assert len(receiver.packets) == 1


# What stands between.

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx")


@needs_curl
@pytest.mark.parametrize(
    "how",
    [
        ["--data-binary", "@-"],
        ["--data-binary", "@-", "--http1.0"],
        ["--data-binary", "@-", "--http1.1", "-H", "Expect: 100-continue"],
        ["-X", "POST", "-T", "-", "-H", "Transfer-Encoding: chunked"],
    ],
)
async def test_curl_is_answered(how: list[str]) -> None:
    async with serving({"incoming": {"port": 0, "staticToken": "tok"}}) as plugin:
        headers = ["-H", "Authorization: Bearer tok", "-H", "Content-Type: application/octet-stream"]
        done = await trio.run_process(
            ["curl", "-sS", "--fail", "--max-time", "5", *headers, *how, plugin.address],
            stdin=b"0123456789" * 3000,
            capture_stdout=True,
        )
    assert done.stdout == (b"0123456789" * 3000)[::-1]


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream u {{ server {upstream}; {keepalive} }}
    server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://u; {lines} }} }}
}}
"""
KEPT = {"keepalive": "keepalive 8;", "lines": 'proxy_http_version 1.1; proxy_set_header Connection "";'}


@needs_nginx
@pytest.mark.parametrize("kept", [False, True], ids=["as it is, HTTP/1.0", "kept alive"])
async def test_nginx_stands_in_front(kept: bool, tmp_path: Path) -> None:
    async with serving({"incoming": {"port": 0, "staticToken": "tok"}}) as plugin:
        port = free_port()
        lines = KEPT if kept else {"keepalive": "", "lines": ""}
        upstream = plugin.address.removeprefix("http://")
        (tmp_path / "conf").write_text(NGINX.format(folder=tmp_path, upstream=upstream, port=port, **lines))
        command = ["nginx", "-c", str(tmp_path / "conf"), "-p", str(tmp_path)]
        process = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
        try:
            await wait_open(port)
            with trio.fail_after(10):
                async with sending(f"http://127.0.0.1:{port}/ilp", {"staticToken": "tok"}) as client:
                    async with trio.open_nursery() as nursery:
                        for number in range(50):
                            nursery.start_soon(check_reversed, client, b"%d" % number * 30)
                    with pytest.raises(NotAcceptedError):
                        async with sending(f"http://127.0.0.1:{port}/ilp", {"staticToken": "no"}) as other:
                            await other.send_data(b"x")
        finally:
            process.terminate()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await process.wait()
