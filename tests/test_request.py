"""A data handler can ask where its request came from."""

import pytest
import trio
from support.accounts import ask, enter, hashed, open_accounts
from support.peers import linked

from trio_ledger_plugin import IncomingRequest, current_request, loopback_pair


async def test_handler_knows_account_link_and_address(nursery):
    seen = []

    async def handle(data):
        seen.append(current_request())
        return b""

    async with open_accounts(data_handler=handle) as server:
        first, second, other = [await enter(server, token=token) for token in ("a", "a", "b")]
        for peer in (first, second, other, first):
            await ask(peer, b"x")
        for peer in (first, second, other):
            await peer.aclose()
        assert [request.account for request in seen] == [hashed("a"), hashed("a"), hashed("b"), hashed("a")]
        assert {request.peer for request in seen} == {"127.0.0.1"}
        assert seen[0] == seen[3]
        assert len({request.link for request in seen}) == 3


async def test_tasks_of_a_handler_keep_its_request(nursery):
    """A task that outlives its handler must not speak for the next request of the same worker."""
    later = trio.Event()
    seen = []

    async def look():
        before = current_request()
        await later.wait()
        seen.append((before, current_request()))

    async def handle(data):
        nursery.start_soon(look)
        await trio.lowlevel.checkpoint()
        return b""

    async with open_accounts(data_handler=handle) as server:
        for token in ("a", "b"):
            peer = await enter(server, token=token)
            await ask(peer, b"x")
            await peer.aclose()
        later.set()
        await trio.testing.wait_all_tasks_blocked()
    assert {(before.account, after.account) for before, after in seen} == {(hashed(name),) * 2 for name in "ab"}


async def test_plugin_with_one_peer_has_no_account(nursery):
    async def handle(data):
        return repr(current_request()).encode()

    async with linked(data_handler=handle) as (_, peer):
        answer = (await ask(peer, b"x")).protocol_data[0].data
        assert answer.startswith(b"IncomingRequest(account='', link=")
        assert answer.endswith(b", peer='127.0.0.1')")


async def test_loopback_has_no_address(nursery):
    async def handle(data):
        request = current_request()
        assert isinstance(request, IncomingRequest)
        return f"{request.account}|{request.peer}".encode()

    async with loopback_pair() as (left, right):
        right.register_data_handler(handle)
        assert await left.send_data(b"") == b"|"


async def test_outside_a_handler_there_is_no_request():
    with pytest.raises(RuntimeError, match="inside a data handler only"):
        current_request()
