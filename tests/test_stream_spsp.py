"""Payment pointers, SPSP queries over real TLS, and the endpoint; each fault gets one clear error."""

from __future__ import annotations

import base64
import json
import os
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trustme

from trio_ledger_plugin import DecodeError, InvalidFieldsError, RemoteError, UnreachableError, loopback_pair
from trio_ledger_plugin.stream import Receiver, SpspEndpoint, fetch_spsp, open_receiver, pay, resolve_payment_pointer
from trio_ledger_plugin.stream.spsp import decode_base64

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = bytes(range(32))
ADDRESS = "example.receiver"
CANARY = base64.b64encode(b"canary!!" * 4).decode()


@pytest.mark.parametrize(
    ("pointer", "url"),
    [
        ("$wallet.example", "https://wallet.example/.well-known/pay"),
        ("$wallet.example/", "https://wallet.example/.well-known/pay"),
        ("$wallet.example/alice", "https://wallet.example/alice"),
        ("$wallet.example/a/b", "https://wallet.example/a/b"),
        ("$wallet.example/a%20b", "https://wallet.example/a%20b"),
    ],
)
def test_pointer_stands_for_a_url(pointer, url):
    assert resolve_payment_pointer(pointer) == url


@pytest.mark.parametrize(
    ("pointer", "said"),
    [
        ("wallet.example/alice", "begins with \\$"),
        ("$", "host name"),
        ("$/alice", "host name"),
        ("$wállet.example", "in ASCII"),
        ("$wallet.example:8080/alice", "no port"),
        ("$user@wallet.example/alice", "no user name"),
        ("$wallet.example/alice?x=1", "no query"),
        ("$wallet.example/alice#x", "no fragment"),
        ("$wallet.example/al ice", "without spaces"),
        ("$wallet.example\r\nHost", "host name"),
    ],
)
async def test_bad_pointer_gets_a_clear_error(pointer, said):
    with pytest.raises(InvalidFieldsError, match=said):
        resolve_payment_pointer(pointer)
    if pointer.startswith("$"):
        with pytest.raises(InvalidFieldsError, match=said):
            await fetch_spsp(pointer)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://wallet.example/alice", "need https://"),
        ("HTTP://wallet.example/alice", "need https://"),
        ("ftp://wallet.example/alice", "payment pointer"),
        ("https://user@wallet.example/alice", "without @"),
        ("https://wallet.example/alice#x", "without @ and #"),
        ("https:///alice", "payment pointer"),
        ("https://wallet.example:port/", "payment pointer"),
        ("https://wallet.example/\r\nX: y", "payment pointer"),
        ("", "payment pointer"),
    ],
)
async def test_bad_url_gets_a_clear_error(url, said):
    with pytest.raises(InvalidFieldsError, match=said):
        await fetch_spsp(url)


@pytest.mark.parametrize("secret", [bytes(range(32)), b"\xff" * 32, b"\xfb\xef" * 16])
def test_all_forms_of_base64_are_read(secret):
    """Rafiki leaves out the padding and uses the other alphabet."""
    standard, url = base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode()
    for text in (standard, url, standard.rstrip("="), url.rstrip("=")):
        assert decode_base64(text) == secret


@pytest.mark.parametrize("text", ["====", "a", "ab c", "äöü", 7, None])
def test_what_is_not_base64_is_none(text):
    assert decode_base64(text) is None


@asynccontextmanager
async def serving(handler: Any, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serve a handler of streams on this machine, and yield the URL."""
    async with trio.open_nursery() as nursery:
        (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        listener = plain if context is None else trio.SSLListener(plain, context, https_compatible=True)
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        port = plain.socket.getsockname()[1]
        yield f"http{'' if context is None else 's'}://127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


def answering(response: bytes) -> Any:
    async def handler(stream: trio.abc.Stream) -> None:
        await stream.receive_some(10_000)
        await stream.send_all(response)
        await stream.aclose()

    return handler


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def valid(**changes: object) -> bytes:
    return json.dumps({"destination_account": f"{ADDRESS}.x", "shared_secret": CANARY} | changes).encode()


@pytest.mark.parametrize(
    ("response", "error", "said"),
    [
        (
            http("404 Not Found", b'{"id":"InvalidReceiverError"}'),
            RemoteError,
            "F02 InvalidReceiverError.*no such receiver",
        ),
        (
            http("302 Found", b"", "Location: https://other.example/bob"),
            RemoteError,
            "redirects to https://other.example/bob",
        ),
        (http("406 Not Acceptable"), RemoteError, "no SPSP endpoint"),
        (http("500 Oops"), RemoteError, "T00.*status 500"),
        (http("429 Slow"), RemoteError, "T00.*status 429"),
        (http("200 OK", b"<html>"), DecodeError, "not JSON"),
        (http("200 OK", b"[" * 60_000), DecodeError, "not JSON"),
        (http("200 OK", b"[]"), DecodeError, "not a JSON object"),
        (http("200 OK", valid(destination_account="nowhere")), DecodeError, "destination_account"),
        (http("200 OK", valid(shared_secret="c2hvcnQ=")), DecodeError, "shared_secret of 32 bytes"),
        (http("200 OK", valid(shared_secret=CANARY + "!")), DecodeError, "shared_secret of 32 bytes"),
        (http("200 OK", bytes(70_000)), DecodeError, "more than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000, DecodeError, "not HTTP, is too long"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", DecodeError, "incomplete"),
        (b"220 smtp.example\r\n", DecodeError, "not HTTP"),
        (b"", DecodeError, "incomplete"),
    ],
)
async def test_bad_answer_gets_a_clear_error(response, error, said):
    async with serving(answering(response)) as url:
        with pytest.raises(error, match=said) as caught:
            await fetch_spsp(f"{url}/alice")
        assert CANARY not in str(caught.value)


async def test_silent_and_absent_endpoints_are_unreachable():
    async def silent(stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with serving(silent) as url:
        with pytest.raises(UnreachableError, match=r"no answer from .* within 0.2 s"):
            await fetch_spsp(url, within=0.2)
    with pytest.raises(UnreachableError, match="cannot connect"):
        await fetch_spsp(url)


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def test_credentials_come_over_tls():
    server, client = contexts()
    receiver = Receiver(secret=SECRET, address=ADDRESS)
    async with serving(SpspEndpoint(receiver).serve_stream, server) as url:
        credentials = await fetch_spsp(f"{url}/alice", ssl_context=client)
        assert credentials.destination_account.startswith(f"{ADDRESS}.")
        other = await fetch_spsp(f"{url}/alice", ssl_context=client)
        assert other.shared_secret != credentials.shared_secret


async def test_untrusted_certificate_and_missing_tls_are_clear_errors():
    server, client = contexts()
    endpoint = SpspEndpoint(Receiver(secret=SECRET, address=ADDRESS))
    async with serving(endpoint.serve_stream, server) as url:
        with pytest.raises(UnreachableError, match=r"certificate of https://127.* is not trusted"):
            await fetch_spsp(url)
    async with serving(endpoint.serve_stream) as url:
        with pytest.raises(UnreachableError, match="TLS with https://") as caught:
            await fetch_spsp(url.replace("http", "https"), ssl_context=client)
        assert "btp" not in str(caught.value)


async def test_whole_payment_by_url_with_a_tag_and_receipts():
    tags = {"/alice": "account 17"}
    seen: list[Any] = []
    async with (
        loopback_pair() as (payer, end),
        open_receiver(end, secret=SECRET, address=ADDRESS, on_packet=seen.append) as receiver,
        serving(SpspEndpoint(receiver, tags.get).serve_stream) as url,
    ):
        paid = await pay(payer, f"{url}/alice", send=1000)
        assert paid.delivered == 1000
        assert seen[0].tag == "account 17"
        with pytest.raises(RemoteError, match="InvalidReceiverError"):
            await pay(payer, f"{url}/bob", send=1000)
        with_receipts = await fetch_spsp(f"{url}/alice", receipt_nonce=bytes(16), receipt_secret=os.urandom(32))
        assert with_receipts.receipts_enabled
        assert len((await pay(payer, with_receipts, send=1000)).receipt) == 58


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"receipt_nonce": bytes(16)}, "or neither"),
        ({"receipt_secret": bytes(32)}, "or neither"),
        ({"receipt_nonce": bytes(17), "receipt_secret": bytes(32)}, "receipt_nonce has 17 bytes"),
        ({"receipt_nonce": bytes(16), "receipt_secret": b"canary"}, "receipt_secret has 6 bytes"),
        ({"receipt_nonce": bytes(16), "receipt_secret": bytes(33)}, "receipt_secret has 33 bytes"),
    ],
)
async def test_bad_receipt_arguments_get_clear_errors(arguments, said):
    with pytest.raises(InvalidFieldsError, match=said) as caught:
        await fetch_spsp("$wallet.example", **arguments)
    assert "canary" not in str(caught.value)


async def ask(
    endpoint: SpspEndpoint, method: str = "GET", path: str = "/", **headers: str
) -> tuple[int, Any, dict[bytes, bytes]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await endpoint({"type": "http", "method": method, "path": path, "headers": pairs}, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"]), dict(sent[0]["headers"])


async def test_asgi_application_answers_queries():
    endpoint = SpspEndpoint(Receiver(secret=SECRET, address=ADDRESS), {"/alice": "a"}.get)
    good = {"path": "/alice", "accept": "application/spsp4+json, */*"}
    status, body, headers = await ask(endpoint, **good)
    assert status == 200
    assert len(base64.b64decode(body["shared_secret"], validate=True)) == 32
    assert body["receipts_enabled"] is False
    assert headers[b"Cache-Control"] == b"no-store"
    assert headers[b"Content-Type"] == b"application/spsp4+json"
    assert (await ask(endpoint, "POST", **good))[0] == 405
    assert (await ask(endpoint, path="/alice", accept="text/html"))[0] == 406
    status, body, _ = await ask(endpoint, path="/bob", accept="application/spsp+json")
    assert (status, body["id"]) == (404, "InvalidReceiverError")
    nonce, secret = base64.b64encode(bytes(16)).decode(), base64.b64encode(bytes(32)).decode()
    assert (await ask(endpoint, **good, receipt_nonce=nonce, receipt_secret=secret))[1]["receipts_enabled"]
    for bad in ({"receipt_nonce": nonce}, {"receipt_nonce": "!", "receipt_secret": secret}):
        assert (await ask(endpoint, **good, **bad))[0] == 400


async def test_error_of_find_tag_is_a_500_and_the_endpoint_lives_on(caplog):
    def find(path: str) -> str | None:
        if path == "/bad":
            raise ZeroDivisionError("internal canary")
        return path

    async with serving(SpspEndpoint(Receiver(secret=SECRET, address=ADDRESS), find).serve_stream) as url:
        with pytest.raises(RemoteError, match=r"T00.*status 500"):
            await fetch_spsp(f"{url}/bad")
        await fetch_spsp(f"{url}/good")
    assert "internal canary" in caplog.text


async def test_endpoint_survives_bad_clients():
    endpoint = SpspEndpoint(Receiver(secret=SECRET, address=ADDRESS))
    async with serving(endpoint.serve_stream) as url:
        port = int(url.rpartition(":")[2])
        for data in (b"", b"rubbish\r\n\r\n", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(data)
            await stream.send_eof()
            with trio.fail_after(5):
                with suppress(trio.BrokenResourceError):
                    await stream.receive_some(1000)
            await stream.aclose()
        await fetch_spsp(url)
