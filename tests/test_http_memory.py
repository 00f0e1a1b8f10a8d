"""What a peer can make an end keep in memory, however much it sends."""

from __future__ import annotations

import tracemalloc
from contextlib import contextmanager

import pytest
import trio
from support.http import PREPARE, dial, open_http, post, raw_server, read_response, sending, serving, take_request

from trio_ledger_plugin import DecodeError

# What an end may keep before the peer has shown its credentials, and after that; the test's own buffers included.
BEFORE, AFTER = 256 * 1024, 8 * 1024 * 1024
FLOOD = b"a" * 65536


@contextmanager
def keeping_at_most(limit):
    tracemalloc.start()
    try:
        yield
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most <= limit, f"{most:,} bytes"


async def flood(stream, start, *, seconds=1.0):
    """Send without an end, until the other end closes or stops to read."""
    try:
        with trio.move_on_after(seconds):
            await stream.send_all(start)
            while True:
                await stream.send_all(FLOOD)
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST / HTTP/1.1\r\nHost: u\r\nX: ",
        post(b"", "Content-Length: 1000000000", token="wrong"),
        post(b"", "Content-Length: -", "Transfer-Encoding: chunked", token="wrong"),
        b"GET / HTTP/1.1\r\nHost: u\r\nContent-Length: 1000000000\r\n\r\n",
    ],
)
async def test_flood_before_the_credentials_is_not_kept(start):
    async with open_http(serving()) as plugin, await dial(plugin.address) as stream:
        await trio.sleep(0.01)
        with keeping_at_most(BEFORE):
            await flood(stream, start)


@pytest.mark.parametrize(
    "start",
    [
        post(b"", "Content-Length: 1000000000"),
        post(b"", "Content-Length: -", "Transfer-Encoding: chunked") + b"40000000\r\n",
        post(b"", "Content-Length: -", "Transfer-Encoding: chunked") + b"1;",
        post(b"x"),
    ],
)
async def test_flood_after_the_credentials_is_bounded(start):
    async def hang(data):
        await trio.sleep_forever()

    options = serving(close_timeout=0.05)
    async with open_http(options, data_handler=hang) as plugin, await dial(plugin.address) as stream:
        with keeping_at_most(AFTER):
            await flood(stream, start)


async def test_small_requests_far_ahead_are_bounded():
    """Each response would let 64 KiB more into the memory."""

    async def answer(data):
        await trio.sleep(0.0001)
        return data

    async with open_http(serving(), data_handler=answer) as plugin, await dial(plugin.address) as stream:
        with keeping_at_most(AFTER), trio.move_on_after(3):
            async with trio.open_nursery() as nursery:

                async def read_all():
                    while await stream.receive_some(65536):
                        pass

                nursery.start_soon(read_all)
                requests = post(b"x") * 500
                while True:
                    await stream.send_all(requests)


async def test_many_small_chunks_cost_no_more_than_one():
    async def echo(data):
        return data

    chunked = post(b"1\r\nx\r\n" * 60_000 + b"0\r\n\r\n", "Content-Length: -", "Transfer-Encoding: chunked")
    async with open_http(serving(), data_handler=echo) as plugin, await dial(plugin.address) as stream:
        with keeping_at_most(AFTER), trio.fail_after(10):
            await stream.send_all(chunked)
            assert (await read_response(stream))[2] == b"x" * 60_000


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 67108864\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4000000\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"HTTP/1.1 500 Error\r\nContent-Length: 67108864\r\n\r\n",
        b"",
    ],
)
async def test_answer_without_an_end_is_not_taken(start):
    """ilp-plugin-http takes 64 MiB."""

    async def script(stream):
        async with stream:
            await take_request(stream)
            await flood(stream, start)

    async with raw_server(script) as url, open_http(sending(url)) as plugin:
        with keeping_at_most(AFTER), trio.fail_after(5), pytest.raises(Exception, match="answer") as caught:
            await plugin.send_data(PREPARE)
    if b"500" not in start:
        assert isinstance(caught.value, DecodeError)
