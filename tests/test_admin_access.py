"""Who may ask the admin page's server, and how it speaks HTTP."""

from __future__ import annotations

import json
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme
from support.admin import ask, get_json, open_bank, request
from support.http import dial, read_response
from support.peers import open_btp
from support.programs import CANARY

from trio_ledger_plugin import BtpOptions, InvalidFieldsError, ListenerOptions, loopback_pair
from trio_ledger_plugin.admin import Admin, open_admin
from trio_ledger_plugin.testing.conformance.assertions import echo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ADMIN_TOKEN = f"{CANARY}-admin"
BEARER = f"Authorization: Bearer {ADMIN_TOKEN}"


@asynccontextmanager
async def watching(**how: Any) -> AsyncIterator[Admin]:
    """Open the page of a plugin."""
    async with loopback_pair() as (plugin, _), open_admin(plugin, **how) as admin:
        yield admin


# Who may ask.


async def test_page_and_its_data_are_served_on_this_machine():
    async with watching() as admin:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", admin.address)
        status, head, body = await ask(admin, "/")
        assert status == 200
        assert "Content-Type: text/html; charset=utf-8\r\n" in head
        assert b"<title>" in body
        assert (await get_json(admin, "/api/overview"))["plugins"] == ["loopback"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "admin.example"])  # noqa: S104 (what is refused)
async def test_other_machines_need_a_token(host):
    """Everyone in the network could settle transfers."""
    async with loopback_pair() as (plugin, _):
        with pytest.raises(InvalidFieldsError, match=r"token: missing; on .* other machines can reach"):
            async with open_admin(plugin, host):
                pytest.fail("opened")


async def test_nothing_but_the_page_is_answered_without_the_token(clock):
    async with watching(host="0.0.0.0", token=ADMIN_TOKEN) as admin:  # noqa: S104 (with a token)
        address = admin.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 (likewise)

        async def status_of(path: str, *lines: str) -> int:
            stream = await dial(address)
            async with stream:
                await stream.send_all(request(path, *lines))
                return (await read_response(stream))[0]

        for path in ("/health", "/metrics", "/api/overview", "/api/accounts", "/api/doubts", "/api/settle", "/other"):
            assert await status_of(path) == 401, path
            assert await status_of(path, "Authorization: Bearer wrong") == 401, path
            assert await status_of(path, f"Authorization: Basic {ADMIN_TOKEN}") == 401, path
            assert await status_of(path, f"Authorization: {ADMIN_TOKEN}") == 401, path
            assert await status_of(path, BEARER) in (200, 404, 405), path
        assert await status_of("/") == 200


async def test_wrong_token_is_answered_late_and_logged(clock, caplog):
    """A token could be guessed at the speed of the network."""
    async with watching(token=ADMIN_TOKEN) as admin:
        seconds = []
        for _ in range(9):
            began = trio.current_time()
            status, head, _ = await ask(admin, "/health", f"Authorization: Bearer {CANARY}-wrong")
            assert status == 401
            assert "WWW-Authenticate: Bearer\r\n" in head
            seconds.append(trio.current_time() - began)
        assert seconds == pytest.approx([0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1.0], abs=0.05)
        began = trio.current_time()
        assert (await ask(admin, "/health", BEARER))[0] == 200
        # The page asks without a token at first.
        assert (await ask(admin, "/health"))[0] == 401
        assert trio.current_time() - began < 0.2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning == "refused a request to the admin page from 127.0.0.1: the token is wrong"
    assert CANARY not in caplog.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "localhost:9000", "LOCALHOST", "[::1]:9000", "192.0.2.7"]
)
async def test_names_of_this_machine_are_answered(host):
    async with watching() as admin:
        assert (await ask(admin, "/health", f"Host: {host}"))[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "", "[::1", "-"]
)
async def test_name_of_another_site_is_refused(host):
    """A page that has its name resolved to 127.0.0.1 could read everything (DNS rebinding)."""
    async with watching() as admin:
        for path in ("/", "/health", "/api/overview"):
            assert (await ask(admin, path, f"Host: {host}"))[0] == 421


async def test_further_names_can_be_given():
    async with watching(names=["Admin.example"]) as admin:
        assert (await ask(admin, "/health", "Host: admin.example:8443"))[0] == 200
        assert (await ask(admin, "/health", "Host: other.example"))[0] == 421


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Origin: https://evil.example", 403),
        ("Origin: null", 403),
        ("Origin: http://127.0.0.1:9001", 403),
        ("Origin: http://localhost:9000", 403),
        ("Origin: http://127.0.0.1:9000", 404),
        ("Origin: https://127.0.0.1:9000", 404),
        ("Sec-Fetch-Site: cross-site", 403),
        ("Sec-Fetch-Site: same-site", 403),
        ("Sec-Fetch-Site: same-origin", 404),
        ("Sec-Fetch-Site: none", 404),
    ],
)
async def test_page_of_another_site_may_not_settle(line, status, tmp_path):
    """Any page that an operator opens in another tab could settle transfers (CSRF)."""
    wish = {"plugin": "0", "account": "bob", "key": "unknown", "outcome": "applied"}
    async with open_bank(tmp_path / "money.db") as (server, _), open_admin(server) as admin:
        answer = await ask(admin, "/api/settle", line, method="POST", body=json.dumps(wish).encode())
        assert answer[0] == status, answer


async def test_form_of_another_site_cannot_settle():
    """Browsers send some types across sites without asking first."""
    async with watching() as admin:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            assert (await ask(admin, "/api/settle", f"Content-Type: {kind}", method="POST", body=b"{}"))[0] == 415


async def test_every_response_forbids_what_the_page_does_not_need():
    async with watching() as admin:
        for path in ("/", "/health", "/metrics", "/nothing", "/api/overview"):
            _, head, _ = await ask(admin, path)
            for line in ("Cache-Control: no-store", "X-Content-Type-Options: nosniff", "Referrer-Policy: no-referrer"):
                assert f"{line}\r\n" in head
            assert "Content-Security-Policy: default-src 'none';" in head
            assert "frame-ancestors 'none'" in head
            assert "unsafe" not in head
            assert "Set-Cookie" not in head


async def test_page_loads_nothing_from_elsewhere():
    async with watching() as admin:
        text = (await ask(admin, "/"))[2].decode()
    assert re.findall(r"(?:src|href)=\"(?!/|#|data:)[^\"]*", text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)[^\s\"'`]*", text) == []
    assert re.findall(r"@import|url\(|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text) == []


async def test_no_secret_is_in_any_answer():
    """The token of a client, of the server or of the page would be on every screen."""
    listener = BtpOptions(listener=ListenerOptions(port=0, secret=f"{CANARY}-listener"))
    async with open_btp(listener, data_handler=echo) as server:
        url = server.address.replace("://", f"://:{CANARY}-listener@")
        async with (
            open_btp(BtpOptions(server=url)) as client,
            open_admin([server, client], token=ADMIN_TOKEN) as admin,
        ):
            await client.send_data(b"hello")
            await server.disconnect()
            for path in ("/", "/health", "/metrics", "/api/overview?plugin=0", "/api/overview?plugin=1"):
                for line in (BEARER, f"Authorization: Bearer {CANARY}-wrong"):
                    _, head, body = await ask(admin, path, line)
                    assert CANARY not in head + body.decode()


# What it speaks.


async def test_secret_of_any_plugin_is_hidden_in_the_log(monkeypatch, caplog):
    """The page has one log, which knows the secrets of the first plugin alone."""
    listener = BtpOptions(listener=ListenerOptions(port=0, secret=f"{CANARY}'\"\n"))

    def fail() -> None:
        raise ZeroDivisionError(f"{CANARY}'\"\n")

    async with loopback_pair() as (first, _), open_btp(listener) as second:
        monkeypatch.setattr(second, "counted", fail)
        async with open_admin([first, second]) as admin:
            for _ in range(5):
                assert (await ask(admin, "/api/overview?plugin=1"))[0] == 500
    # Once, and then the number of the others.
    assert caplog.text.count("the admin page cannot answer /api/overview: ZeroDivisionError(") == 2
    assert CANARY not in caplog.text


async def test_connection_serves_one_request_after_the_other():
    async with watching() as admin, await dial(admin.address) as stream:
        for _ in range(3):
            await stream.send_all(request("/health") + request("/nothing") + request("/", method="HEAD"))
            assert (await read_response(stream))[0] == 200
            assert (await read_response(stream))[0] == 404
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(1)
            assert int(re.findall(rb"Content-Length: (\d+)", head)[0]) > 10_000
        await stream.send_all(request("/health", "Connection: close"))
        assert (await read_response(stream))[0] == 200
        assert await stream.receive_some(1) == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"GET /" + b"a" * 20_000, 431),
        (request("/api/settle", method="PUT", body=b"{}"), 405),
        (request("/health", method="DELETE"), 405),
        (request("/api/settle", method="POST", body=bytes(16 * 1024 + 1)), 413),
        (request("/api/settle", method="POST", body=b"[" * 16_000), 400),
        (request("/api/settle", method="POST", body=b'{"plugin": 0}'), 400),
        (request("/api/overview?plugin=1"), 404),
        (request("/api/overview?plugin=-1"), 404),
        (request("/api/overview?plugin=x"), 404),
        (request("/api/accounts"), 404),
        (request("/../etc/passwd"), 404),
    ],
)
async def test_wrong_request_gets_its_status(data, status):
    async with watching() as admin, await dial(admin.address) as stream:
        await stream.send_all(data)
        assert (await read_response(stream))[0] == status


async def test_body_in_chunks_is_read():
    head = request("/api/settle", "Transfer-Encoding: chunked", "Content-Type: application/json", method="PUT")
    async with watching() as admin, await dial(admin.address) as stream:
        await stream.send_all(head.replace(b"PUT", b"POST") + b"2\r\n{}\r\n0\r\n\r\n")
        status, _, body = await read_response(stream)
        assert (status, body) == (400, b"the body is an object with the texts plugin, account, key, outcome")


@pytest.mark.parametrize(("data", "seconds"), [(b"", 75), (b"GET / HT", 10), (request("/health"), 75)])
async def test_silent_client_is_closed(clock, data, seconds):
    async with watching() as admin, await dial(admin.address) as stream:
        if data.endswith(b"\r\n\r\n"):
            await stream.send_all(data)
            await read_response(stream)
        began = trio.current_time()
        if data and not data.endswith(b"\r\n\r\n"):
            await stream.send_all(data)
        assert await stream.receive_some(1) == b""
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.2)


async def test_silent_connections_make_way_for_a_new_one():
    """A program that opens connections and sends nothing could keep the operator out."""
    async with watching() as admin, trio.open_nursery() as nursery:
        silent = [await dial(admin.address) for _ in range(300)]
        assert (await ask(admin, "/health"))[0] == 200
        for stream in silent:
            nursery.start_soon(stream.aclose)


async def test_page_is_served_over_tls():
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    async with watching(host="localhost", ssl_context=server_context) as admin:
        assert admin.address.startswith("https://localhost:")
        stream = await trio.open_ssl_over_tcp_stream(
            "localhost", int(admin.address.rstrip("/").rpartition(":")[2]), ssl_context=client_context
        )
        await stream.send_all(request("/health"))
        assert (await read_response(stream))[0] == 200
        await stream.aclose()
