"""The configurations of docs/how-to/reverse-proxy.md, run: nginx and HAProxy in front of a server."""

import logging
import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import trio
import trustme
from support.pages import ROOT
from support.peers import TOKEN, open_btp
from support.ports import free_port, wait_open

from trio_ledger_plugin import BtpOptions, ConnectOptions, ListenerOptions
from trio_ledger_plugin.testing.conformance.assertions import echo

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "how-to" / "reverse-proxy.md").read_text()
# Set in continuous integration: a missing proxy is an error there.
REQUIRED = "TRIO_LEDGER_PLUGIN_REQUIRE_PROXIES" in os.environ
CLIENT = "203.0.113.7"

MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder};
    proxy_temp_path {folder};
    fastcgi_temp_path {folder};
    uwsgi_temp_path {folder};
    scgi_temp_path {folder};
    {servers}
}}
"""


def find(program: str) -> str:
    path = which(program) or which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None and not REQUIRED:
        pytest.skip(f"{program} is not installed")
    assert path is not None, f"{program} is not installed"
    return path


def configuration(after: str, folder: Path, changes: dict[str, str]) -> Path:
    """Return the first configuration after a heading, in a file, with the ports and files of this test."""
    text = PAGE.partition(f"\n## {after}\n")[2].partition("```")[2].partition("\n")[2].partition("```")[0]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    if after == "nginx":
        text = MAIN.format(folder=folder, servers=text)
    path = folder / "proxy.conf"
    path.write_text(text)
    return path


@asynccontextmanager
async def running(*command: str, port: int) -> AsyncIterator[None]:
    """Run a proxy until the end of the block, which begins when its port is open."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(trio.run_process, command)
        await wait_open(port)
        yield
        nursery.cancel_scope.cancel()
    assert process.returncode is not None


def certificate(folder: Path) -> ssl.SSLContext:
    """Write a certificate and its key, and return the context that trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return trusting


async def check(port: int, to: int, trusting: ssl.SSLContext | None, caplog: Any, **listener: Any) -> None:
    """Connect through a proxy while the server is still down, and check what both ends see."""
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    scheme = "btp+wss" if trusting else "btp+ws"
    client = BtpOptions(
        server=f"{scheme}://:{TOKEN}@localhost:{port}/ilp",
        ssl_context=trusting,
        headers={"X-Forwarded-For": CLIENT},
        ping_interval=0.2,
    )
    server = BtpOptions(listener=ListenerOptions(to, TOKEN, **listener), trusted_proxies=("127.0.0.1",))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def serve_later() -> None:
                await trio.sleep(1)
                async with open_btp(server, data_handler=echo) as plugin:
                    await plugin.wait_connected()
                    assert await plugin.send_data(b"from the server" * 2000) == b"from the server" * 2000
                    connected.set()
                    await done.wait()

            connected, done = trio.Event(), trio.Event()
            nursery.start_soon(serve_later)
            async with open_btp(client, connect=ConnectOptions(20_000), data_handler=echo) as plugin:
                assert await plugin.send_data(bytes(32_000)) == bytes(32_000)
                await connected.wait()
                await trio.sleep(1)
                assert plugin.statistics().redials == 0
            done.set()


def lines_of(caplog: Any) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("proxy", ["nginx", "HAProxy"])
async def test_proxy_for_http(proxy: str, tmp_path: Path, caplog: Any) -> None:
    """A reader copies the configuration, and the handshake fails, or all clients have one address."""
    program = find(proxy.lower())
    trusting = certificate(tmp_path)
    port, to = free_port(), free_port()
    pem = "/etc/ssl/connector.example.pem"
    changes = {"127.0.0.1:7768": f"127.0.0.1:{to}", pem: str(tmp_path / "both.pem")}
    if proxy == "nginx":
        changes |= {"listen 443 ssl": f"listen 127.0.0.1:{port} ssl"}
        changes |= {"/etc/ssl/connector.example.key": str(tmp_path / "both.pem")}
        command = [program, "-p", str(tmp_path), "-e", "stderr", "-c"]
    else:
        changes |= {":443 ssl": f"127.0.0.1:{port} ssl"}
        command = [program, "-db", "-f"]
    async with running(*command, str(configuration(proxy, tmp_path, changes)), port=port):
        await check(port, to, trusting, caplog)
    lines = lines_of(caplog)
    assert re.search(r"cannot connect .*: HTTP 50[23]", lines)
    assert f"connected with {CLIENT}" in lines
    if proxy == "HAProxy":
        assert "looked whether this server is there: a health check" in lines


async def test_proxy_for_tcp(tmp_path: Path, caplog: Any) -> None:
    program = find("haproxy")
    port, to = free_port(), free_port()
    changes = {"127.0.0.1:7768": f"127.0.0.1:{to}", ":7769": f"127.0.0.1:{port}"}
    path = configuration("A proxy for TCP", tmp_path, changes)
    async with running(program, "-db", "-f", str(path), port=port):
        await check(port, to, None, caplog, proxy_protocol=True)
    # HAProxy's header names this machine, which is trusted, and so what the client's own header says counts.
    assert f"connected with {CLIENT}" in lines_of(caplog)
