"""``serve --admin``, as users run it."""

from __future__ import annotations

import json
import signal
import sys

import pytest
from support.admin import request
from support.http import dial, read_response, talk
from support.ports import free_port
from support.programs import CANARY, assert_one_error, posix, run, running, serving

pytestmark = pytest.mark.slow

PAGE = r"the admin page: (http://[0-9.:]+/)"


@posix
@pytest.mark.parametrize("mode", [[], ["--accounts"], ["--http"], ["--http", "--accounts"]], ids=" ".join)
async def test_page_is_served_beside_the_server(mode: list[str]) -> None:
    async with serving("--admin", "0", *mode) as server:
        page = await server.wait_for(PAGE)
        status, _, body = await talk(page, request("/health"))
        assert (status, json.loads(body)["reasons"]) == (200, [])
        # A browser that keeps its connection does not delay the end.
        async with await dial(page) as stream:
            await stream.send_all(request("/api/overview"))
            overview = json.loads((await read_response(stream))[2])
            assert overview["has_accounts"] == ("--accounts" in mode)
            code, took = await server.end(signal.SIGTERM)
        assert code == 0
        assert took < 1.5


@posix
async def test_page_for_others_asks_for_the_token() -> None:
    token = f"{CANARY}-admin"
    options = ("--admin", "0", "--admin-host", "0.0.0.0", "--admin-name", "admin.example")  # noqa: S104 (with a token)
    async with serving("--json", *options, TRIO_LEDGER_PLUGIN_ADMIN_TOKEN=token) as server:
        page = (await server.wait_for(r'"admin": "(\S+?)"')).replace("0.0.0.0", "127.0.0.1")  # noqa: S104 (as above)
        name = "Host: admin.example"
        assert (await talk(page, request("/health", name)))[0] == 401
        assert (await talk(page, request("/health", name, f"Authorization: Bearer {token}")))[0] == 200
        await server.end(signal.SIGTERM)
    assert CANARY not in server.output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--admin", "0", "--admin-host", "0.0.0.0"), "--admin-token: missing; on 0.0.0.0 other machines can reach"),  # noqa: S104 (refused)
        (
            ("--admin", "0", "--admin-token", f"{CANARY} x"),
            "--admin-token: got text that is not shown, must be",
        ),
        (("--admin-host", "::1"), "--admin-host needs --admin"),
        (("--admin-name", "x"), "--admin-name needs --admin"),
        (("--admin-token", CANARY), "--admin-token needs --admin"),
        (("--admin", "65536"), "--admin"),
    ],
)
async def test_wrong_option_is_named(options: tuple[str, ...], text: str) -> None:
    code, stdout, stderr = await run("serve", "--port", "0", *options)
    assert (code, stdout) == (2, "")
    assert_one_error(stderr)
    assert text in stderr


async def test_port_in_use_is_named() -> None:
    async with serving("--admin", "0") as server:
        port = (await server.wait_for(PAGE)).rstrip("/").rpartition(":")[2]
        code, _, stderr = await run("serve", "--port", str(free_port()), "--admin", port)
        assert code == 1
        assert_one_error(stderr)
        assert f"cannot listen on 127.0.0.1 port {port}" in stderr
        assert "choose another with --admin" in stderr


async def test_missing_extra_is_one_sentence() -> None:
    program = "import sys; sys.modules['prometheus_client'] = None; from trio_ledger_plugin.cli import main; main()"
    async with running(sys.executable, "-c", program, "serve", "--port", "0", "--admin", "0") as process:
        await process.wait_for(r"(error: --admin: the admin page is an extra; in a clone: pip install '.\[admin\]')")
