"""A server of many accounts: authentication, routing, and what unauthenticated clients get (nothing)."""

from __future__ import annotations

import gc
import logging
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.accounts import (
    CONDITION,
    FULFILL,
    HOST,
    PREIMAGE,
    answer,
    ask,
    code_of,
    enter,
    hashed,
    leave,
    open_accounts,
    options,
    prepare,
)
from support.calls import start
from support.events import names, next_event
from support.leftovers import all_tasks
from support.peers import TOKEN, Peer, dial, read_head, shake_hands, upgrade_request
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_ledger_plugin import (
    AccountConnected,
    AccountConnectedAgain,
    AccountDisconnected,
    Connected,
    ConnectionLostError,
    ConnectOptions,
    DecodeError,
    Disconnected,
    Failed,
    InvalidFieldsError,
    InvalidServicesError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginFailedError,
    PluginServices,
    RemoteError,
    ResponseTimeoutError,
    TransferInDoubtError,
    create_plugin,
    current_transfer,
)
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.btp.options import AccountsOptions, HostInfo
from trio_ledger_plugin.codec import btp, ildcp, ilp
from trio_ledger_plugin.registry import resolve_plugin
from trio_ledger_plugin.stores import MemoryStore
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo, read_events
from trio_ledger_plugin.testing.scripted_peer import dial_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_ledger_plugin.accounts.account import AccountPlugin

HOST_INFO = HostInfo(client_address=HOST, asset_scale=9, asset_code="XRP")
SERVICES = PluginServices()


# Options and opening.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", 70000),
        ("allowedOrigins", "https://wallet.example"),
        ("allowedOrigins", ["("]),
        ("generateAccount", "yes"),
        ("debugHostIldcpInfo", {"clientAddress": "no address", "assetScale": 9, "assetCode": "XRP"}),
        ("debugHostIldcpInfo", {"clientAddress": HOST, "assetScale": 256, "assetCode": "XRP"}),
        ("debugHostIldcpInfo", {"clientAddress": HOST}),
    ],
)
async def test_wrong_option_is_named(field: Any, value: Any) -> None:
    with pytest.raises(InvalidFieldsError, match=field):
        async with open_accounts(options(**{field: value})):
            raise AssertionError("opened")


async def test_options_of_mini_accounts_work_unchanged() -> None:
    opts = {**options(currencyScale=6), "plugin": "ilp-plugin-mini-accounts"}
    with pytest.warns(UserWarning, match="currencyScale"):
        plugin_class, found = resolve_plugin(opts)
    assert plugin_class is AccountsPlugin
    assert found == AccountsOptions(port=0, debug_host_ildcp_info=HOST_INFO)
    assert AccountsOptions().port == 3000


async def test_usernames_need_a_store() -> None:
    """Without one, any client could take a name after a restart."""
    with pytest.raises(InvalidServicesError, match="store"):
        async with open_accounts(options(generateAccount=False)):
            raise AssertionError("opened")


async def test_server_is_connected_while_it_listens() -> None:
    async with open_accounts() as plugin:
        assert plugin.is_connected()
        await next_event(plugin.events, Connected)
        assert not plugin.address.endswith(":0")
    assert names(read_events(plugin)) == ["Disconnected"]


# The server's own address.


async def test_server_gets_its_address_from_the_data_handler() -> None:
    """A connector behind the server is its parent; mini-accounts asks it in the same way."""
    asked = []

    async def host(data: bytes) -> bytes:
        asked.append(ildcp.decode(data))
        return ildcp.encode(ildcp.IldcpResponse("example.asked", 2, "EUR"))

    async with open_accounts({"plugin": "btp-accounts", "port": 0}, data_handler=host) as plugin:
        peer = await enter(plugin)
        packet = await ask(peer, ildcp.encode(ildcp.IldcpRequest()))
        response = ildcp.decode(packet.protocol_data[0].data)
        assert response == ildcp.IldcpResponse(f"example.asked.{hashed(TOKEN)}", 2, "EUR")
        await peer.aclose()
    assert len(asked) == 1


async def break_down(data: bytes) -> bytes:
    raise OSError("the parent is gone")


async def refuse_ildcp(data: bytes) -> bytes:
    return ilp.encode(ilp.Reject("T01", HOST, "no parent"))


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (None, InvalidFieldsError),
        (refuse_ildcp, RemoteError),
        (echo, DecodeError),
        (break_down, NotAcceptedError),
    ],
)
async def test_server_without_an_address_does_not_open(handler: Any, error: Any) -> None:
    with pytest.raises(error):
        async with open_accounts({"plugin": "btp-accounts", "port": 0}, data_handler=handler):
            raise AssertionError("opened")


# Authentication.


async def test_token_names_the_account_without_a_store() -> None:
    async with open_accounts() as plugin:
        for account in ("", hashed(TOKEN)):
            peer = await enter(plugin, account)
            assert plugin.account(hashed(TOKEN)).is_connected()
            await peer.aclose()
        peer = await dial(plugin.address)
        refusal = await peer.authenticate(account="alice")
        assert (refusal.code, refusal.name) == ("F00", "NotAcceptedError")
        await leave(peer)


async def test_stored_digest_of_a_token_needs_the_stores_key() -> None:
    """A reader of a copy of the store must not be able to try tokens of a list against it."""
    found = []
    for _ in range(2):
        store = MemoryStore()
        async with open_accounts(store=store) as plugin:
            for name in ("alice", "bob"):
                await (await enter(plugin, name)).aclose()
        found += [await store.get(f"{name}:token:main") for name in ("alice", "bob")]
        assert await store.get("alice:hashed-token") is None
    assert all(digest is not None and digest.startswith("hmac-sha256:") for digest in found)
    assert len(set(found)) == 4


async def test_account_named_by_its_token_is_not_stored() -> None:
    """The name itself proves the token, and would be its plain digest."""
    store = MemoryStore()
    async with open_accounts(store=store) as plugin:
        await (await enter(plugin, "")).aclose()
        await (await enter(plugin, hashed(TOKEN))).aclose()
    assert [await store.get(f"{hashed(TOKEN)}:{end}") for end in ("token:main", "hashed-token")] == [None, None]


async def refused(plugin: Any, account: Any, token: Any) -> bool:
    peer = await dial(plugin.address)
    answer = await peer.authenticate(token, account=account)
    await leave(peer)
    return bool(answer.code == "F00")


async def test_entry_of_mini_accounts_is_taken_over_by_its_token() -> None:
    """Another token must get the name neither before nor afterwards, at no server of the store."""
    store = MemoryStore()
    await store.put("alice:hashed-token", hashed(TOKEN))
    for ledger in ("main", "other", "main"):
        async with open_accounts(options(ledger_id=ledger), store=store) as plugin:
            assert await refused(plugin, "alice", "wrong")
            await (await enter(plugin, "alice")).aclose()
            assert await refused(plugin, "alice", "wrong")
        shared = await store.get("alice:hashed-token")
        assert shared is not None
        assert shared.startswith("hmac-sha256:")


async def test_servers_share_names_only_with_the_same_ledger_id() -> None:
    """Two servers with one store are two services; a name at one says nothing about the other."""
    store = MemoryStore()
    async with open_accounts(options(ledger_id="one"), store=store) as plugin:
        await (await enter(plugin, "alice")).aclose()
    async with open_accounts(options(ledger_id="two"), store=store) as plugin:
        await (await enter(plugin, "alice", "other")).aclose()
    for ledger, right, wrong in (("one", TOKEN, "other"), ("two", "other", TOKEN)):
        async with open_accounts(options(ledger_id=ledger), store=store) as plugin:
            assert await refused(plugin, "alice", wrong)
            await (await enter(plugin, "alice", right)).aclose()


async def test_ledger_id_with_any_character_keeps_names_apart() -> None:
    store = MemoryStore()
    for ledger in ("a\0", "a%00"):
        async with open_accounts(options(ledger_id=ledger), store=store) as plugin:
            await (await enter(plugin, "alice", ledger)).aclose()
    async with open_accounts(options(ledger_id="a\0"), store=store) as plugin:
        assert await refused(plugin, "alice", "a%00")


async def test_unusable_key_in_the_store_admits_nobody() -> None:
    store = MemoryStore()
    await store.put("lpi:token-key", "")
    async with open_accounts(store=store) as plugin:
        peer = await dial(plugin.address)
        await peer.send(peer.frame(auth_message(1, "alice", TOKEN, {})))
        await leave(peer)
    assert await store.get("alice:token:main") is None


async def test_plain_text_token_in_the_store_is_replaced_by_its_digest() -> None:
    """Early versions of mini-accounts stored it; their clients must still get in, and the plain text must go."""
    store = MemoryStore()
    await store.put("alice:token", TOKEN)
    async with open_accounts(store=store) as plugin:
        unauthenticated = await dial(plugin.address)
        assert (await unauthenticated.authenticate("wrong", account="alice")).code == "F00"
        await leave(unauthenticated)
        peer = await enter(plugin, "alice")
        assert (await store.get("alice:hashed-token") or "").startswith("hmac-sha256:")
        assert await store.get("alice:token") is None
        await peer.aclose()


async def test_name_still_belongs_to_its_owner_after_a_restart() -> None:
    store = MemoryStore()
    async with open_accounts(store=store) as plugin:
        await (await enter(plugin, "alice")).aclose()
    async with open_accounts(store=store) as plugin:
        thief = await dial(plugin.address)
        assert (await thief.authenticate("wrong", account="alice")).data == b"invalid auth_token"
        await leave(thief)
        await (await enter(plugin, "alice")).aclose()


@pytest.mark.parametrize("account", ["a.b", "böb", "a b", "x" * 256, hashed("somebody else's")])
async def test_invalid_account_name_is_refused(account: Any) -> None:
    """A name with a dot would be below another account, and a hash belongs to the token that it was made from."""
    async with open_accounts(store=MemoryStore()) as plugin:
        peer = await dial(plugin.address)
        assert (await peer.authenticate(account=account)).code == "F00"
        await leave(peer)
        assert names(read_events(plugin)) == ["Connected"]


@pytest.mark.parametrize(("account", "token"), [("", TOKEN), ("alice", "")])
async def test_named_accounts_need_username_and_token(account: Any, token: Any) -> None:
    async with open_accounts(options(generateAccount=False), store=MemoryStore()) as plugin:
        peer = await dial(plugin.address)
        assert (await peer.authenticate(token, account=account)).code == "F00"
        await leave(peer)


async def test_generated_accounts_are_not_stored() -> None:
    store = MemoryStore()
    async with open_accounts(options(generateAccount=True), store=store) as plugin:
        await (await enter(plugin)).aclose()
    assert await store.get(f"{hashed(TOKEN)}:hashed-token") is None


class SlowStore(MemoryStore):
    """A store that answers when the test releases it."""

    def __init__(self) -> None:
        super().__init__()
        self.go = trio.Event()
        self.asked = trio.Event()

    async def get(self, key: str) -> str | None:
        self.asked.set()
        await self.go.wait()
        return await super().get(key)


async def test_requests_behind_the_auth_frame_wait_for_the_store() -> None:
    """interledger-rs sends requests without waiting for the reply to its credentials."""
    store = SlowStore()
    async with open_accounts(store=store, data_handler=echo) as plugin:
        peer = await dial(plugin.address)
        await peer.send(
            peer.frame(auth_message(1, "alice", TOKEN, {})),
            *(peer.frame(btp.encode_ilp(btp.MESSAGE, i, b"%d" % i)) for i in range(2, 12)),
        )
        await store.asked.wait()
        await wait_all_tasks_blocked()
        assert names(read_events(plugin)) == ["Connected"]
        store.go.set()
        answers = [await peer.receive_packet() for _ in range(11)]
        assert answers[0] == btp.Response(1)
        assert {each.request_id for each in answers[1:]} == set(range(2, 12))
        await peer.aclose()


async def test_one_of_several_simultaneous_clients_gets_a_new_name() -> None:
    """If two got in, the money of one would go to the other."""
    store = SlowStore()
    async with open_accounts(store=store) as plugin:
        answers: list[Any] = []

        async def try_it(token: str) -> None:
            peer = await dial(plugin.address)
            answers.append(type(await peer.authenticate(token, account="alice")))
            await peer.aclose()

        async with trio.open_nursery() as nursery:
            for token in ("one", "two", "three"):
                nursery.start_soon(try_it, token)
            await store.asked.wait()
            await wait_all_tasks_blocked()
            store.go.set()
        assert sorted(each.__name__ for each in answers) == ["Error", "Error", "Response"]


async def test_two_servers_of_one_store_do_not_both_give_away_a_name() -> None:
    store = SlowStore()
    answers: list[Any] = []
    async with open_accounts(store=store) as first, open_accounts(store=store) as second:

        async def try_it(plugin: Any, token: str) -> None:
            peer = await dial(plugin.address)
            answers.append(type(await peer.authenticate(token, account="alice")))
            await peer.aclose()

        async with trio.open_nursery() as nursery:
            for plugin in (first, second):
                nursery.start_soon(try_it, plugin, plugin.address)
            await store.asked.wait()
            await wait_all_tasks_blocked()
            store.go.set()
    assert sorted(each.__name__ for each in answers) == ["Error", "Response"]


@pytest.mark.parametrize("leaves", [True, False])
async def test_hanging_look_up_affects_only_its_own_client(leaves: Any, clock: MockClock) -> None:
    store = SlowStore()
    async with open_accounts(store=store) as plugin:
        start = trio.current_time()
        peer = await dial(plugin.address)
        await peer.send(peer.frame(auth_message(1, "alice", TOKEN, {})))
        await store.asked.wait()
        if leaves:
            await peer.aclose()
            await wait_all_tasks_blocked()
            store.go.set()
            await wait_all_tasks_blocked()
        else:
            refusal = await peer.receive_packet()
            assert trio.current_time() == start + 5
            assert (refusal.request_id, refusal.code, refusal.name) == (1, "T00", "UnreachableError")
            await leave(peer)
        assert names(read_events(plugin)) == ["Connected"]
        assert plugin.statistics().bytes_received == 0


@pytest.mark.parametrize("size", [0, 400, 20_000])
@pytest.mark.parametrize("pieces", ["at once", "one by one"])
async def test_backlog_behind_the_auth_packet_is_served(size: int, pieces: str) -> None:
    """interledger-rs does not wait for the reply; a client that is closed for it comes back, and sends the same."""
    store = SlowStore()
    async with open_accounts(store=store, data_handler=echo) as plugin:
        peer = await dial(plugin.address)
        requests = [peer.frame(btp.encode_ilp(btp.MESSAGE, number, bytes(size))) for number in range(2, 102)]
        frames = [peer.frame(auth_message(1, "alice", TOKEN, {})), *requests]
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                if pieces == "at once":
                    await peer.send(*frames)
                for frame in frames if pieces == "one by one" else ():
                    await peer.send(frame)

            nursery.start_soon(send)
            await store.asked.wait()
            await wait_all_tasks_blocked()
            store.go.set()
            with trio.fail_after(5):
                answers = [await peer.receive_packet() for _ in range(101)]
        assert sorted(answer.request_id for answer in answers) == [*range(1, 102)]
        await peer.aclose()


@pytest.mark.parametrize("size", [0, 400, 60_000])
async def test_flood_behind_the_auth_packet_is_not_held(size: int) -> None:
    """A hanging store must not let a stranger fill the memory: reading pauses, and TCP stops the sender."""
    store = SlowStore()
    async with open_accounts(store=store, data_handler=echo) as plugin:
        peer = await dial(plugin.address)
        await peer.send(peer.frame(auth_message(1, "alice", "wrong", {})))
        sent = 0
        flood = peer.frame(btp.encode_ilp(btp.MESSAGE, 2, bytes(size))) * (60_000 // max(size, 30))
        with trio.move_on_after(0.5) as scope:
            while True:
                await peer.send(flood)
                sent += len(flood)
        assert scope.cancelled_caught
        # What the buffers of the system hold.
        assert sent < 16 * 1024 * 1024
        await peer.aclose()


class BrokenStore(MemoryStore):
    async def get(self, key: str) -> str | None:
        raise OSError("the disk is gone")


async def test_failing_store_neither_accepts_nor_refuses_a_client() -> None:
    """An F code would be a refusal, after which clients do not come back."""
    log = Recorder()
    async with open_accounts(store=BrokenStore(), log=log) as plugin:
        peer = await dial(plugin.address)
        refusal = await peer.authenticate(account="alice")
        assert (refusal.code, refusal.name) == ("T00", "UnreachableError")
        await leave(peer)
        assert plugin.is_connected()
        assert any("cannot look up" in line for line in log.lines)


async def test_client_with_a_wrong_token_receives_no_packets() -> None:
    """mini-accounts adds the connection before it checks the token, and so sends it the victim's packets."""
    async with open_accounts(store=MemoryStore(), data_handler=echo) as plugin, trio.open_nursery() as nursery:
        victim = await enter(plugin, "alice")
        thief = await dial(plugin.address)
        await thief.send(thief.frame(auth_message(1, "alice", "wrong", {})))
        for _ in range(5):
            nursery.start_soon(plugin.send_data, prepare(f"{HOST}.alice"))
            await answer(victim, FULFILL)
        refusal = await thief.receive_packet()
        assert refusal.code == "F00"
        await leave(thief)
        assert names(read_events(plugin)) == ["Connected", "AccountConnected"]
        await victim.aclose()


async def test_no_log_contains_a_token() -> None:
    log = Recorder()
    async with open_accounts(store=MemoryStore(), log=log) as plugin:
        await (await enter(plugin, "alice")).aclose()
        peer = await dial(plugin.address)
        await peer.authenticate("wrong-canary", account="alice")
        await leave(peer)
    assert TOKEN not in "".join(log.lines)
    assert "canary" not in "".join(log.lines)


@pytest.mark.parametrize(
    ("allowed", "origin", "status"),
    [
        ([], None, b"101"),
        ([], "https://wallet.example", b"403"),
        (["https://wallet.example"], "https://wallet.example", b"101"),
        (["https://wallet.example"], "https://wallet.example.evil", b"403"),
        (["https://wallet.example"], "https://walletXexample", b"403"),
        ([r"https://.*\.example", "null"], "https://any.example", b"101"),
        ([r"https://.*\.example"], "https://any.example.evil", b"403"),
    ],
)
async def test_browsers_are_accepted_only_from_listed_origins(allowed: Any, origin: Any, status: Any) -> None:
    async with open_accounts(options(allowedOrigins=allowed)) as plugin:
        stream = await dial_stream(plugin.address)
        await stream.send_all(upgrade_request(origin=origin))
        assert (await read_head(stream)).startswith(b"HTTP/1.1 " + status)
        await trio.aclose_forcefully(stream)


# Requests from clients.


@pytest.mark.parametrize(
    ("path", "username", "account"),
    [
        ("/accounts/alice/ilp/btp", "", "alice"),
        ("/accounts/alice/ilp/btp?x=1", "alice", "alice"),
        ("/accounts/alice/ilp/btp", "bob", None),
        ("/accounts/al%20ice/ilp/btp", "", None),
        ("/elsewhere", "bob", "bob"),
    ],
)
async def test_path_of_the_url_can_name_the_account(path: Any, username: Any, account: Any) -> None:
    """interledger-rs sends no username."""
    async with open_accounts(options(account_from_path=True), store=MemoryStore()) as plugin:
        stream = await dial_stream(plugin.address)
        await stream.send_all(upgrade_request().replace(b"GET / ", f"GET {path} ".encode()))
        assert (await read_head(stream)).startswith(b"HTTP/1.1 101")
        peer = Peer(stream, client=True)
        reply = await peer.authenticate(account=username)
        if account is None:
            assert (reply.code, reply.name) == ("F00", "NotAcceptedError")
        else:
            assert reply == btp.Response(1)
            assert [each.name for each in plugin.accounts()] == [account]
        await peer.aclose()


async def test_path_names_no_account_unless_allowed() -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        stream = await dial_stream(plugin.address)
        await stream.send_all(upgrade_request().replace(b"GET / ", b"GET /accounts/alice/ilp/btp "))
        await read_head(stream)
        peer = Peer(stream, client=True)
        assert await peer.authenticate() == btp.Response(1)
        assert [each.name for each in plugin.accounts()] == [hashed(TOKEN)]
        await peer.aclose()


async def test_client_gets_its_address() -> None:
    async with open_accounts(store=MemoryStore(), data_handler=echo) as plugin:
        peer = await enter(plugin, "alice")
        packet = await ask(peer, ildcp.encode(ildcp.IldcpRequest()))
        assert ildcp.decode(packet.protocol_data[0].data) == ildcp.IldcpResponse(f"{HOST}.alice", 9, "XRP")
        wrong = ilp.encode(ilp.Prepare(0, datetime.now(UTC) + timedelta(seconds=9), CONDITION, "peer.config"))
        packet = await ask(peer, wrong)
        assert code_of(packet.protocol_data[0].data) == "F01"
        mark = b"\x0bpeer.config"
        others = (
            prepare(f"{HOST}.peer.config", data=mark),
            bytes(60) + mark,
            ilp.encode(ilp.Fulfill(PREIMAGE, bytes(24) + mark)),
        )
        for request_id, other in enumerate(others, 20):
            assert (await ask(peer, other, request_id)).protocol_data[0].data == other
        await peer.aclose()


async def test_request_goes_to_the_accounts_handler_or_the_servers() -> None:
    async def own(data: bytes) -> bytes:
        return b"own " + data

    async with open_accounts(store=MemoryStore(), data_handler=echo) as plugin:
        alice, bob = await enter(plugin, "alice"), await enter(plugin, "bob")
        plugin.account("alice").register_data_handler(own)
        assert (await ask(alice, b"hi")).protocol_data[0].data == b"own hi"
        assert (await ask(bob, b"hi")).protocol_data[0].data == b"hi"
        plugin.account("alice").deregister_data_handler()
        assert (await ask(alice, b"hi", 8)).protocol_data[0].data == b"hi"
        statistics = plugin.account("alice").statistics()
        assert (statistics.requests_received, statistics.responses_sent) == (2, 2)
        assert plugin.statistics().requests_received == 3
        assert 0 < statistics.bytes_received < plugin.statistics().bytes_received
        await alice.aclose()
        await bob.aclose()


async def test_transfer_names_its_account() -> None:
    """The application must know which account to credit."""
    credited: list[Any] = []

    async def to_server(amount: str) -> None:
        credited.append(("server", current_transfer().account, amount))

    async def to_alice(amount: str) -> None:
        credited.append(("alice", current_transfer().account, amount))

    async with open_accounts(store=MemoryStore(), money_handler=to_server) as plugin:
        plugin.account("alice").register_money_handler(to_alice)
        for name in ("alice", "bob"):
            peer = await enter(plugin, name)
            await peer.send_packet(btp.Transfer(5, 250))
            assert await peer.receive_packet() == btp.Response(5)
            await peer.aclose()
    assert credited == [("alice", "alice", "250"), ("server", "bob", "250")]


async def test_300_clients_at_once_each_get_their_reply() -> None:
    async with open_accounts(options(maxUnauthenticated=300), data_handler=echo) as plugin:
        addresses: list[str] = []

        async def client(number: int) -> None:
            peer = await enter(plugin, "", f"token {number}")
            packet = await ask(peer, ildcp.encode(ildcp.IldcpRequest()))
            response = ildcp.decode(packet.protocol_data[0].data)
            assert isinstance(response, ildcp.IldcpResponse)
            assert (await ask(peer, b"%d" % number)).protocol_data[0].data == b"%d" % number
            addresses.append(response.client_address)
            await peer.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(client, number)
        assert sorted(addresses) == sorted(f"{HOST}.{hashed(f'token {number}')}" for number in range(300))


# Requests from the server.


@pytest.mark.parametrize("tail", ["", ".app.~1"])
async def test_prepare_goes_to_the_account_in_its_destination(tail: Any) -> None:
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        alice, bob = await enter(plugin, "alice"), await enter(plugin, "bob")
        request, answers = prepare(f"{HOST}.alice{tail}"), []

        async def send() -> None:
            answers.append(await plugin.send_data(request))

        nursery.start_soon(send)
        assert await answer(alice, FULFILL) == request
        await wait_all_tasks_blocked()
        assert answers == [FULFILL]
        with trio.move_on_after(0.05):
            await bob.receive()
            raise AssertionError("the other account got something")
        await alice.aclose()
        await bob.aclose()


async def test_two_sockets_of_one_account_execute_a_prepare_once() -> None:
    """mini-accounts sends it over both: the client pays twice."""
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        old, new = await enter(plugin, "alice"), await enter(plugin, "alice")
        answers: list[bytes] = []

        async def send() -> None:
            answers.append(await plugin.send_data(prepare(f"{HOST}.alice")))

        nursery.start_soon(send)
        request = await new.receive_packet()
        # An answer counts from the connection that was asked only.
        await old.respond(request.request_id, FULFILL)
        await wait_all_tasks_blocked()
        assert (answers, plugin.calls_in_flight()) == ([], 1)
        with trio.move_on_after(0.05):
            await old.receive()
            raise AssertionError("the other connection got something")
        await new.respond(request.request_id, FULFILL)
        await wait_all_tasks_blocked()
        assert answers == [FULFILL]
        # When the newest is gone, the other serves.
        await new.aclose()
        await wait_all_tasks_blocked()
        nursery.start_soon(send)
        await answer(old, FULFILL)
        assert names(read_events(plugin)) == ["Connected", "AccountConnected", "AccountConnectedAgain"]
        await old.aclose()


@pytest.mark.parametrize(
    ("destination", "code"),
    [
        ("example.elsewhere", "F02"),
        (HOST, "F02"),
        (f"{HOST}x.alice", "F02"),
        (f"{HOST}.nobody", "T01"),
        (f"{HOST}.offline", "T01"),
    ],
)
async def test_undeliverable_packet_is_rejected_at_once(destination: Any, code: Any, clock: MockClock) -> None:
    async with open_accounts() as plugin:
        assert not plugin.account("offline").is_connected()
        start = trio.current_time()
        assert code_of(await plugin.send_data(prepare(destination))) == code
        assert trio.current_time() == start


async def test_2000_sends_to_an_offline_account_leave_nothing_behind() -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        await (await enter(plugin, "alice")).aclose()
        await wait_all_tasks_blocked()
        assert code_of(await plugin.send_data(prepare(f"{HOST}.alice"))) == "T01"
        tasks = len(all_tasks())
        gc.collect()
        before = len(gc.get_objects())
        for number in range(2000):
            assert code_of(await plugin.send_data(prepare(f"{HOST}.{'alice' if number % 2 else number}"))) == "T01"
        gc.collect()
        assert len(gc.get_objects()) - before < 200
        assert len(all_tasks()) == tasks
        assert plugin.calls_in_flight() == 0


@asynccontextmanager
async def open_router(**more: Any) -> AsyncIterator[AccountsPlugin]:
    async def route(data: bytes) -> bytes:
        return await server.send_data(data)

    async with open_accounts(options(**more), data_handler=route) as server:
        yield server


async def test_packet_never_goes_back_to_its_sender() -> None:
    """A client sends what it does not know to its parent: one packet went round 256 times."""
    async with open_router() as server, trio.open_nursery() as nursery:
        alice, bob = await enter(server, token="a"), await enter(server, token="b")
        response = await ask(alice, prepare(f"{HOST}.{hashed('a')}.unknown"))
        assert code_of(response.protocol_data[0].data) == "F02"
        nursery.start_soon(answer, bob, FULFILL)
        response = await ask(alice, prepare(f"{HOST}.{hashed('b')}"))
        assert response.protocol_data[0].data == FULFILL
        # The application's own packets may go to any account.
        nursery.start_soon(answer, alice, FULFILL)
        assert await server.send_data(prepare(f"{HOST}.{hashed('a')}")) == FULFILL
        for peer in (alice, bob):
            await peer.aclose()


async def test_accounts_of_one_name_at_two_servers_are_different() -> None:
    async def to_the_other(data: bytes) -> bytes:
        return await other.send_data(data)

    async with open_accounts() as other, open_accounts(data_handler=to_the_other) as server:
        here, there = await enter(server, token="a"), await enter(other, token="a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, there, FULFILL)
            response = await ask(here, prepare(f"{HOST}.{hashed('a')}"))
        assert response.protocol_data[0].data == FULFILL
        for peer in (here, there):
            await peer.aclose()


async def test_forwarded_packet_expires_earlier() -> None:
    async with open_router(expiry_margin=2.0) as server, trio.open_nursery() as nursery:
        alice, bob = await enter(server, token="a"), await enter(server, token="b")
        packet = prepare(f"{HOST}.{hashed('b')}")
        sent: list[bytes] = []

        async def serve() -> None:
            sent.append(await answer(bob, FULFILL))

        nursery.start_soon(serve)
        await ask(alice, packet)
        before, after = ilp.decode(packet), ilp.decode(sent[0])
        assert isinstance(before, ilp.Prepare)
        assert isinstance(after, ilp.Prepare)
        assert abs(before.expires_at - after.expires_at - timedelta(seconds=2)) <= timedelta(milliseconds=1)
        for peer in (alice, bob):
            await peer.aclose()


@pytest.mark.parametrize("lifetime", [-1, -0.001, -40000])
async def test_expired_prepare_is_not_sent(lifetime: Any) -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        peer = await enter(plugin, "alice")
        assert code_of(await plugin.send_data(prepare(f"{HOST}.alice", lifetime))) == "R00"
        with trio.move_on_after(0.05):
            await peer.receive()
            raise AssertionError("it was sent")
        await peer.aclose()


async def test_sender_gets_r00_when_its_prepare_expires(clock: MockClock) -> None:
    """The sender's money is released at that moment, even if the account replies later."""
    async with open_accounts(store=MemoryStore()) as plugin:
        peer = await enter(plugin, "alice")
        start = trio.current_time()
        assert code_of(await plugin.send_data(prepare(f"{HOST}.alice", 20))) == "R00"
        assert 19 < trio.current_time() - start <= 20
        assert plugin.calls_in_flight() == 0
        await answer(peer, FULFILL)
        await wait_all_tasks_blocked()
        assert plugin.statistics().unexpected_responses == 1
        await peer.aclose()


async def test_expiry_in_30_days_keeps_the_response_timeout(clock: MockClock) -> None:
    """setTimeout takes at most 24.8 days: mini-accounts rejects such a packet at once."""
    month = 30 * 86400
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        peer = await enter(plugin, "alice")
        nursery.start_soon(answer, peer, FULFILL)
        assert await plugin.send_data(prepare(f"{HOST}.alice", month)) == FULFILL
        start = trio.current_time()
        with pytest.raises(ResponseTimeoutError):
            await plugin.send_data(prepare(f"{HOST}.alice", month))
        assert trio.current_time() - start == pytest.approx(35)
        await peer.aclose()


async def test_wrong_preimage_is_no_fulfillment() -> None:
    """The server would pay for something that it cannot claim from its own peer."""
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        peer = await enter(plugin, "alice")
        nursery.start_soon(answer, peer, ilp.encode(ilp.Fulfill(bytes(32))))
        assert code_of(await plugin.send_data(prepare(f"{HOST}.alice"))) == "F05"
        refusal = ilp.encode(ilp.Reject("F99", f"{HOST}.alice", "no"))
        nursery.start_soon(answer, peer, refusal)
        assert await plugin.send_data(prepare(f"{HOST}.alice")) == refusal
        for rubbish in (b"", b"rubbish", prepare(HOST)):
            nursery.start_soon(answer, peer, rubbish)
            with pytest.raises(DecodeError):
                await plugin.send_data(prepare(f"{HOST}.alice"))
        await peer.aclose()


@pytest.mark.parametrize("data", [b"", b"rubbish", FULFILL])
async def test_only_a_prepare_can_be_routed(data: Any) -> None:
    async with open_accounts() as plugin:
        with pytest.raises(InvalidFieldsError, match="Prepare"):
            await plugin.send_data(data)


async def test_server_answers_its_own_applications_ildcp_request() -> None:
    async with open_accounts() as plugin:
        response = ildcp.decode(await plugin.send_data(ildcp.encode(ildcp.IldcpRequest())))
        assert response == ildcp.IldcpResponse(HOST, 9, "XRP")


async def test_request_on_a_lost_link_fails_and_is_not_sent_again() -> None:
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        old, new = await enter(plugin, "alice"), await enter(plugin, "alice")

        async def send() -> None:
            with pytest.raises(ConnectionLostError):
                await plugin.send_data(prepare(f"{HOST}.alice"))

        nursery.start_soon(send)
        await new.receive_packet()
        await new.aclose()
        with trio.move_on_after(0.05):
            await old.receive()
            raise AssertionError("sent again")
        await old.aclose()


async def test_money_is_sent_only_through_an_account() -> None:
    async with open_accounts() as plugin:
        with pytest.raises(InvalidFieldsError, match=r"account\(name\)"):
            await plugin.send_money("5")


# One account as a plugin.


async def test_account_is_a_plugin() -> None:
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        alice = plugin.account("alice")
        assert plugin.account("alice") is alice
        assert not alice.is_connected()
        await alice.connect(ConnectOptions(timeout=1000))
        with pytest.raises(NotConnectedError):
            await alice.send_data(b"raw")
        peer = await enter(plugin, "alice")
        await alice.wait_connected()
        await next_event(alice.events, Connected)
        nursery.start_soon(answer, peer, b"bytes")
        assert await alice.send_data(b"raw") == b"bytes"

        async def acknowledge() -> None:
            packet = await peer.receive_packet()
            assert packet.amount == 250
            await peer.send_packet(btp.Response(packet.request_id))

        nursery.start_soon(acknowledge)
        await alice.send_money("250")
        assert alice.statistics().responses_received == 2
        await peer.aclose()
        event = await next_event(alice.events, Disconnected)
        assert event.reason
        assert not alice.is_connected()
        assert names(read_events(plugin)) == ["Connected", "AccountConnected", "AccountDisconnected"]


async def test_account_of_a_connected_client_is_connected() -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        peer = await enter(plugin, "alice")
        alice = plugin.account("alice")
        assert alice.is_connected()
        await next_event(alice.events, Connected)
        with pytest.raises(TypeError):
            await alice.connect(1000)  # type: ignore[arg-type]  # the test's subject
        await peer.aclose()


@pytest.mark.parametrize("name", ["", "a.b", "a b", "x" * 256])
async def test_account_with_an_invalid_name_raises(name: Any) -> None:
    async with open_accounts() as plugin:
        with pytest.raises(InvalidFieldsError):
            plugin.account(name)
        with pytest.raises(TypeError):
            plugin.account(7)  # type: ignore[arg-type]  # the test's subject


async def test_disconnecting_an_account_affects_only_its_client() -> None:
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        one, two, bob = [await enter(plugin, name) for name in ("alice", "alice", "bob")]
        alice = plugin.account("alice")

        async def send() -> None:
            with pytest.raises(PluginClosedError):
                await alice.send_data(b"lost")

        async def lose_money() -> None:
            with pytest.raises(TransferInDoubtError):
                await alice.send_money(1)

        nursery.start_soon(send)
        nursery.start_soon(lose_money)
        await two.receive_packet()
        await two.receive_packet()
        nursery.start_soon(leave, one)
        nursery.start_soon(leave, two)
        await alice.disconnect()
        assert not alice.is_connected()
        assert alice.calls_in_flight() == 0
        assert plugin.account("bob").is_connected()
        assert read_events(plugin)[1:] == [
            AccountConnected("alice"),
            AccountConnectedAgain("alice", 2),
            AccountConnected("bob"),
            AccountDisconnected("alice"),
        ]
        early = await dial(plugin.address)
        refusal = await early.authenticate(account="alice")
        assert (refusal.code, refusal.name) == ("T00", "UnreachableError")
        await leave(early)
        assert not alice.is_connected()
        await alice.connect()
        again = await enter(plugin, "alice")
        assert alice.is_connected()
        assert names(read_events(alice)) == ["Connected", "Disconnected", "Connected"]
        await again.aclose()
        await bob.aclose()


async def test_closed_account_is_created_again() -> None:
    async with open_accounts(store=MemoryStore(), data_handler=echo) as plugin:
        alice = plugin.account("alice")
        peer = await enter(plugin, "alice")
        alice.register_data_handler(echo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.aclose)
            await leave(peer)
        assert names(read_events(alice)) == ["Connected", "Disconnected"]
        with pytest.raises(PluginClosedError):
            await alice.send_data(b"late")
        with pytest.raises(PluginClosedError):
            await alice.connect()
        fresh = plugin.account("alice")
        assert fresh is not alice
        peer = await enter(plugin, "alice")
        assert fresh.is_connected()
        assert (await ask(peer, b"hi")).protocol_data[0].data == b"hi"
        await peer.aclose()


async def test_closing_an_account_lets_its_handlers_reply() -> None:
    """Otherwise its client could not know whether its requests took effect."""
    held = trio.Event()

    async def hold(data: bytes) -> bytes:
        await held.wait()
        return data

    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        alice = plugin.account("alice")
        alice.register_data_handler(hold)
        peer = await enter(plugin, "alice")
        await peer.send_request(7, b"held")
        await wait_all_tasks_blocked()
        nursery.start_soon(alice.aclose)
        late = await ask(peer, b"late", 8)
        assert (late.code, b"closing" in late.data) == ("T00", True)
        held.set()
        assert (await peer.receive_packet()).protocol_data[0].data == b"held"
        await leave(peer)


async def test_a_closing_server_sends_and_serves_nothing_new() -> None:
    """Anything that begins while it drains would be cut off in the middle."""
    held = trio.Event()

    async def hold(data: bytes) -> bytes:
        await held.wait()
        return data

    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        alice = plugin.account("alice")
        alice.register_data_handler(hold)
        peer = await enter(plugin, "alice")
        await peer.send_request(7, b"held")
        await wait_all_tasks_blocked()
        assert alice.statistics().handlers_running == 1
        nursery.start_soon(plugin.aclose)
        await wait_all_tasks_blocked()
        for call in (alice.send_data(b""), alice.send_money(1), plugin.send_data(prepare(f"{HOST}.alice"))):
            with pytest.raises(PluginClosedError):
                await call
        late = await ask(peer, b"late", 8)
        assert (late.code, b"closing" in late.data) == ("T00", True)
        held.set()
        assert (await peer.receive_packet()).protocol_data[0].data == b"held"
        await leave(peer)


async def test_refusal_by_a_handler_is_counted_for_its_account() -> None:
    async def refuse(data: bytes) -> bytes:
        raise InvalidFieldsError("no")

    async with open_accounts(store=MemoryStore(), data_handler=refuse) as plugin, trio.open_nursery() as nursery:
        alice = plugin.account("alice")
        peer = await enter(plugin, "alice")
        assert (await ask(peer, b"hi")).code == "F01"
        assert alice.statistics().errors_sent == 1

        async def deny() -> None:
            request = await peer.receive_packet()
            await peer.send_packet(btp.Error(request.request_id, "T00", "UnreachableError", datetime.now(UTC)))

        nursery.start_soon(deny)
        with pytest.raises(RemoteError):
            await alice.send_data(b"hi")
        assert alice.statistics().errors_received == 1
        await peer.aclose()


async def test_cancelled_request_leaves_nothing_behind(clock: MockClock) -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        peer = await enter(plugin, "alice")
        for call in (
            lambda: plugin.send_data(prepare(f"{HOST}.alice")),
            lambda: plugin.account("alice").send_data(b""),
        ):
            with trio.move_on_after(1):
                await call()
            assert plugin.calls_in_flight() == 0
            await answer(peer, FULFILL)
        await wait_all_tasks_blocked()
        assert plugin.statistics().unexpected_responses == 2
        await peer.aclose()


async def test_accounts_end_with_the_server() -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        alice = plugin.account("alice")
        peer = await enter(plugin, "alice")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plugin.aclose)
            await leave(peer)
        assert names(read_events(alice)) == ["Connected", "Disconnected"]
        with pytest.raises(trio.EndOfChannel):
            await alice.events.receive()
        for call in (alice.send_data(b""), alice.wait_connected(), alice.connect()):
            with pytest.raises(PluginClosedError):
                await call
        with pytest.raises(PluginClosedError):
            plugin.account("bob")


async def test_accounts_fail_with_the_server() -> None:
    async with trio.open_nursery() as nursery:
        failures: list[PluginFailedError] = []
        plugin = AccountsPlugin(
            AccountsOptions(port=0, debug_host_ildcp_info=HOST_INFO), SERVICES, nursery, failures.append
        )
        alice = plugin.account(hashed(TOKEN))
        await plugin.connect()
        peer = await enter(plugin)
        plugin.fail(OSError("the end"))
        await peer.wait_eof()
    assert len(failures) == 1
    assert names(read_events(alice)) == ["Connected", "Disconnected", "Failed"]
    with pytest.raises(PluginFailedError):
        await alice.send_data(b"")
    assert isinstance(read_events(plugin)[-1], Failed)


async def test_a_server_can_disconnect_and_listen_again() -> None:
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(options(), PluginServices(store=MemoryStore()), nursery=nursery)
        assert isinstance(plugin, AccountsPlugin)
        alice = plugin.account("alice")
        with pytest.raises(NotConnectedError):
            await alice.connect()
        with pytest.raises(NotConnectedError):
            await plugin.send_data(prepare(f"{HOST}.alice"))
        for _ in range(2):
            await plugin.connect()
            peer = await enter(plugin, "alice")
            assert alice.is_connected()
            async with trio.open_nursery() as closing:
                closing.start_soon(plugin.disconnect)
                await leave(peer)
            assert not plugin.is_connected()
            assert not alice.is_connected()
        await plugin.aclose()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_account_is_released_when_its_client_has_gone(clock: MockClock) -> None:
    """Tokens cost nothing to make up: a server must not grow with the number of clients it has ever seen."""
    async with open_accounts() as plugin:
        for number in range(40):
            await (await enter(plugin, "", f"token {number}")).aclose()
        await wait_all_tasks_blocked()
        # The timers of lost links fire once more.
        await trio.sleep(30)
        gc.collect()
        left = [each for each in gc.get_objects() if type(each).__name__ in ("Account", "Link")]
        # The task that keeps the timers still refers to the last one that fired.
        assert len(left) <= 2


async def test_handshake_alone_opens_no_account() -> None:
    async with open_accounts() as plugin:
        stream = await dial_stream(plugin.address)
        peer = await shake_hands(stream)
        await peer.send_packet(btp.Transfer(5, 10))
        assert (await peer.receive_packet()).code == "F00"
        await leave(peer)
        assert names(read_events(plugin)) == ["Connected"]


async def test_log_names_account_and_address_of_a_connection(clock: MockClock, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG, "trio_ledger_plugin")
    async with open_accounts(options(generateAccount=True)) as plugin:
        peer = await enter(plugin)
        await peer.aclose()
        for kind in (Connected, AccountConnected, AccountDisconnected):
            await next_event(plugin.events, kind)
    account = hashed(TOKEN)
    assert [record.getMessage() for record in caplog.records] == [
        f"account {account} connected from 127.0.0.1",
        f"a connection of account {account} from 127.0.0.1 ended: the peer closed the connection",
    ]
    assert TOKEN not in caplog.text


async def test_client_can_return_while_its_account_disconnects(clock: MockClock) -> None:
    """An operator ends the connections of an account whose network froze: its client's next must count."""
    async with open_accounts() as server:
        account = server.account(hashed(TOKEN))
        frozen = await enter(server)
        await account.wait_connected()
        async with trio.open_nursery() as nursery:
            # More than the network takes, so that the old connection disconnects slowly.
            calls = [await start(nursery, account.send_data, bytes(60_000)) for _ in range(200)]
            nursery.start_soon(account.disconnect)
            await wait_all_tasks_blocked()
            assert not account.is_connected()
            await account.connect()
            again = await enter(server)
            await account.wait_connected()
        assert {type(outcome[0]) for outcome in calls} == {PluginClosedError}
        assert account.is_connected()
        assert [each.connections for each in server.accounts()] == [1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer, again, b"yes")
            assert await account.send_data(b"still there?") == b"yes"
        await frozen.aclose()
        await again.aclose()


async def test_failed_account_is_new_when_its_client_returns() -> None:
    """The account would refuse every request from then on, and take no handler."""
    async with open_accounts(data_handler=answer_common) as server:
        failed = server.account(hashed(TOKEN))
        failed.register_data_handler(answer_own)
        peer = await enter(server)
        assert (await ask(peer, b"?", 1)).protocol_data[0].data == b"own"
        failed.fail(ValueError("for this account alone"))
        await wait_all_tasks_blocked()
        assert server.is_connected()
        again = await enter(server)
        assert (await ask(again, b"?", 2)).protocol_data[0].data == b"common"
        account = server.account(hashed(TOKEN))
        assert account is not failed
        account.register_data_handler(answer_own)
        assert (await ask(again, b"?", 3)).protocol_data[0].data == b"own"
        await peer.aclose()
        await again.aclose()


async def answer_own(_data: bytes) -> bytes:
    return b"own"


async def answer_common(_data: bytes) -> bytes:
    return b"common"


async def test_interruption_while_an_account_closes_is_not_lost() -> None:
    """A cancellation of the closing must not take its place."""
    async with open_accounts() as server:
        account = server.account("alice")
        with trio.CancelScope() as scope:
            scope.cancel()
            with pytest.raises(KeyboardInterrupt):
                await _close_after_interruption(account)


async def _close_after_interruption(account: AccountPlugin) -> None:
    try:
        raise KeyboardInterrupt
    finally:
        await account.aclose()
