"""The program over HTTP, as users run it."""

from __future__ import annotations

import json
import signal

import pytest
import trustme
from support.http import status_of
from support.ports import free_port
from support.programs import CANARY, assert_one_error, on_a_terminal, posix, run, serving

pytestmark = pytest.mark.slow

ADDRESS = r"(http://[0-9.:]+)"


async def test_ping_of_a_server_over_http():
    async with serving("--http", "--reply", "fulfill", "--secret", CANARY, "--json") as server:
        address = await server.wait_for(f'"address": "{ADDRESS}"')
        url = address.replace("://", f"://alice:{CANARY}@")
        code, stdout, stderr = await run("ping", f"{url}/ilp", "--count", "5", "--interval", "0", "--json")
        assert (code, stderr) == (0, "")
        told = json.loads(stdout)
        assert (told["sent"], told["answers"], told["address"]) == (5, {"fulfill": 5}, f"{address}/ilp")
        code, stdout, stderr = await run("ping", address, "--count", "2", TRIO_LEDGER_PLUGIN_SECRET=CANARY)
        assert (code, stderr) == (0, "")
        code, stdout, stderr = await run("ping", address, TRIO_LEDGER_PLUGIN_SECRET="wrong")
        assert code == 4
        assert_one_error(stderr)
        assert CANARY not in server.output


@posix
async def test_server_over_http_ends_with_what_it_did():
    async with serving("--http", "--json") as server:
        address = await server.wait_for(f'"address": "{ADDRESS}"')
        assert await status_of(address, b"GET / HTTP/1.1\r\nHost: u\r\n\r\n") == 200
        code, took = await server.end(signal.SIGTERM)
    assert code == 0
    assert took < 1.5
    assert json.loads(server.output.splitlines()[-1])["event"] == "closed"


@posix
async def test_server_over_http_does_not_say_that_it_is_connected():
    """No client had come; the plugin's event only says that the server listens."""
    async with serving("--http", "--secret", CANARY) as server:
        address = await server.wait_for(f"listening on {ADDRESS}")
        code, _, stderr = await run("ping", address, "--count", "1", TRIO_LEDGER_PLUGIN_SECRET=CANARY)
        assert (code, stderr) == (0, "")
        await server.end(signal.SIGTERM)
    assert "closed; 1 requests" in server.output
    assert "connected" not in server.output
    shown = await on_a_terminal("serve", "--http", "--port", "0", until="in all, 0 refused")
    assert "0 requests/s" in shown
    assert "connected" not in shown


async def test_server_of_many_accounts_over_http():
    async with serving("--http", "--accounts", "--account-mode", "username", "--address", "test.me") as server:
        address = await server.wait_for(f"listening on {ADDRESS}")
        url = address.replace("://", "://alice:tok@")
        code, stdout, stderr = await run("ildcp", url, "--json")
        assert (code, stderr) == (0, "")
        assert json.loads(stdout)["client_address"] == "test.me.alice"
        code, _, stderr = await run("ildcp", url.replace("tok", "other"))
        assert code == 4
        assert_one_error(stderr)


async def test_unreachable_server_is_reported():
    url = f"http://:{CANARY}@127.0.0.1:{free_port()}"
    for args in (("ping", url, "--json"), ("ildcp", url)):
        code, stdout, stderr = await run(*args)
        assert (code, stdout) == (3, "")
        assert_one_error(stderr)
        assert "Connection refused" in stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["ping", "http://localhost"], "TRIO_LEDGER_PLUGIN_SECRET"),
        (["ping", f"http://:{CANARY}@connector.example"], "--allow-insecure"),
        (["ping", f"https://:{CANARY}@"], "names no host"),
        (["serve", "--http", "--accounts", "--allow-origin", "https://x.example"], "--allow-origin"),
        (["serve", "--http", "--accounts", "--client-url", f"https://:{CANARY}@x.example/"], "--client-url"),
        (["serve", "--accounts", "--client-url", f"https://:{CANARY}@x.example/%"], "needs --http"),
    ],
)
async def test_wrong_arguments_are_one_line(args, text):
    code, stdout, stderr = await run(*args)
    assert (code, stdout) == (2, "")
    assert_one_error(stderr)
    assert text in stderr


async def test_conformance_of_the_plugins_over_http():
    checks = [word for name in ("version_is_2", "connect_connects") for word in ("--check", name)]
    for plugin, pairs in (("http", 1), ("http-accounts", 2)):
        code, stdout, stderr = await run("conformance", plugin, *checks)
        assert (code, stderr) == (0, "")
        assert f"PASS: {2 * pairs} passed, 0 failed" in stdout


async def test_ping_verifies_the_server(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    args = ("--http", "--tls-cert", str(tmp_path / "server.pem"), "--secret", CANARY, "--host", "localhost")
    async with serving(*args) as server:
        port = await server.wait_for(r"listening on https://localhost:(\d+)")
        url = f"https://:{CANARY}@localhost:{port}/ilp"
        code, stdout, stderr = await run("ping", url, "--count", "1", SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        assert (code, stderr) == (0, "")
        code, stdout, stderr = await run("ping", url, "--count", "1")
        assert (code, stdout) == (3, "")
        assert_one_error(stderr)
        assert "is not trusted" in stderr
