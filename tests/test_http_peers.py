"""Peers that cannot run here, as scripts of what they were seen to do: Rafiki, interledger-rs, quilt."""

from __future__ import annotations

import pytest
import trio
from support.http import FULFILL, PREPARE, TOKEN, ok, open_http, raw_server, sending, serving, take_request, talk

from trio_ledger_plugin import NotAcceptedError, RemoteError
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.testing.conformance.assertions import Recorder, refusing

MEDIA_TYPE = b"content-type: application/octet-stream"
# Rafiki's own answers: status 200 with a Reject for anything that is ILP.
REJECTS = {
    "unknown destination": ilp.Reject("F02", "test.rafiki", "unknown destination account"),
    "amount too large": ilp.Reject("F08", "test.rafiki", "packet size too large.", bytes(16)),
    "expires too soon": ilp.Reject("R02", "test.rafiki", "source expires too soon"),
    "rate limited": ilp.Reject("T05", "test.rafiki", "too many requests"),
}


def text(status, body):
    return ok(body.encode(), "Content-Type: text/plain; charset=utf-8", "Connection: keep-alive", status=status)


async def rafiki(stream):
    """Answer as Rafiki's connector does, in its order: token, content type, body."""
    async with stream:
        while True:
            head, body = await take_request(stream)
            lines = head.lower().split(b"\r\n")
            token = next((line for line in lines if line.startswith(b"authorization: bearer ")), None)
            if token is None:
                await stream.send_all(text("401 Unauthorized", "Bearer token required in Authorization header"))
            elif not token.endswith(b"canary-http-outgoing"):
                await stream.send_all(text("401 Unauthorized", "Access Denied - Invalid Token"))
            elif MEDIA_TYPE not in lines:
                await stream.send_all(text("400 Bad Request", "Expected Content-Type of application/octet-stream"))
            elif body[:1] != b"\x0c":
                await stream.send_all(text("500 Internal Server Error", "Internal Server Error"))
            else:
                packet = ilp.decode(body)
                assert isinstance(packet, ilp.Prepare)
                named = packet.destination.rpartition(".")[2].replace("-", " ")
                answer = ilp.encode(REJECTS[named]) if named in REJECTS else FULFILL
                await stream.send_all(ok(answer, "Content-Type: application/octet-stream", "Keep-Alive: timeout=5"))


async def test_rafiki_answers_our_packets():
    async with raw_server(rafiki) as url, open_http(sending(url)) as plugin:
        assert await plugin.send_data(PREPARE) == FULFILL
        for name, reject in REJECTS.items():
            prepare = ilp.make_prepare(1, f"test.rafiki.{name.replace(' ', '-')}", bytes(32), 30)
            assert ilp.decode(await plugin.send_data(ilp.encode(prepare))) == reject
        with pytest.raises(RemoteError) as caught:
            await plugin.send_data(b"no packet")
        assert caught.value.code == "T00"


async def test_rafiki_refuses_a_wrong_token():
    async with raw_server(rafiki) as url, open_http(sending(url, outgoing={"static_token": "wrong"})) as plugin:
        for _ in range(2):
            with pytest.raises(NotAcceptedError):
                await plugin.send_data(PREPARE)
        assert plugin.is_connected()


# What the clients send, line by line.
AXIOS = [
    "Accept: application/json, text/plain, */*",
    "Accept-Encoding: gzip, compress, deflate, br",
    "User-Agent: axios/1.16.0",
    "Connection: keep-alive",
]
OKHTTP = [
    "Accept: application/octet-stream",
    "Cache-Control: private, max-age=0, no-cache",
    "Pragma: no-cache",
    "ILP-Operator-Address: test.quilt",
]
NODE_FETCH = [
    "Content-Type: application/ilp+octet-stream",
    "ILP-Peer-Name: 0",
    "Accept: */*",
    "Accept-Encoding: gzip,deflate",
    "User-Agent: node-fetch/1.0 (+https://github.com/bitinn/node-fetch)",
    "Connection: keep-alive",
]
REQWEST = ["Accept: */*"]


def write_post(lines, body=PREPARE):
    usual = [] if any(line.startswith("Content-Type") for line in lines) else ["Content-Type: application/octet-stream"]
    head = [
        "POST / HTTP/1.1",
        f"Authorization: Bearer {TOKEN}",
        *usual,
        *lines,
        f"Content-Length: {len(body)}",
        "Host: u",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.mark.parametrize("lines", [AXIOS, OKHTTP, NODE_FETCH, REQWEST], ids=["Rafiki", "quilt", "npm", "rs"])
async def test_request_of_a_peer_is_served(lines):
    async def fulfill(data):
        return FULFILL

    async with open_http(serving(), data_handler=fulfill) as plugin:
        status, head, body = await talk(plugin.address, write_post(lines))
    assert (status, body) == (200, FULFILL)
    # quilt compares the first content type exactly.
    assert b"\r\nContent-Type: application/octet-stream\r\n" in head


async def test_failing_handler_is_no_error_of_our_own_to_rafiki():
    """Rafiki makes T00 of every status but 200."""
    async with open_http(serving(), data_handler=refusing(OSError()), log=Recorder()) as plugin:
        status, _, body = await talk(plugin.address, write_post(AXIOS))
    assert status == 200
    assert isinstance(ilp.decode(body), ilp.Reject)


async def test_silent_rafiki_is_given_up_before_its_own_limit(clock):
    async def silent(stream):
        await take_request(stream)
        await trio.sleep_forever()

    async with raw_server(silent) as url, open_http(sending(url, response_timeout=30)) as plugin:
        began = trio.current_time()
        with pytest.raises(TimeoutError):
            await plugin.send_data(PREPARE)
        assert trio.current_time() - began == pytest.approx(30, abs=0.1)
