"""A server of many accounts over HTTP: who is who, and that no client can be another."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from hashlib import sha256

import pytest
import trio
from support.accounts import HOST, INFO, hashed
from support.events import names
from support.http import (
    FULFILL,
    PREPARE,
    dial,
    open_http,
    post,
    raw_server,
    read_response,
    status_of,
    take_request,
    talk,
)

from trio_ledger_plugin import (
    AccountConnected,
    AccountDisconnected,
    InvalidFieldsError,
    InvalidServicesError,
    MoneyLevelError,
    NotConnectedError,
    PluginClosedError,
    current_request,
    fetch_ildcp,
)
from trio_ledger_plugin.codec import ildcp, ilp
from trio_ledger_plugin.http import accounts as module
from trio_ledger_plugin.http import jwt
from trio_ledger_plugin.http.accounts import HttpAccountsPlugin
from trio_ledger_plugin.stores import MemoryStore
from trio_ledger_plugin.testing.conformance.assertions import Recorder, read_events

SECRET = "canary-http-accounts"
ASK = ildcp.encode(ildcp.IldcpRequest())


def options(*, incoming=None, **more):
    return {"plugin": "http-accounts", "incoming": {"port": 0, **(incoming or {})}, "ildcp": INFO, **more}


async def echo(data):
    return data


@asynccontextmanager
async def open_accounts(opts=None, **how):
    async with open_http(opts or options(), **{"data_handler": echo, **how}) as plugin:
        assert isinstance(plugin, HttpAccountsPlugin)
        yield plugin


def bearer(subject, *, lifetime=60):
    return jwt.sign(SECRET.encode(), time.time(), lifetime, subject)


async def address_of(plugin, token, name=None):
    """Return the status, and the address that a client is told."""
    lines = [] if name is None else [f"ILP-Peer-Name: {name}"]
    status, _, body = await talk(plugin.address, post(ASK, *lines, token=token))
    if status != 200:
        return status
    answer = ildcp.decode(body)
    assert isinstance(answer, ildcp.IldcpResponse)
    return answer.client_address


async def test_hash_of_the_token_names_the_account():
    async with open_accounts() as plugin:
        assert await address_of(plugin, "tok") == f"{HOST}.{hashed('tok')}"
        # What ilp-plugin-http sends if its name is not configured.
        assert await address_of(plugin, "tok", "7770") == f"{HOST}.{hashed('tok')}"
        assert await address_of(plugin, "tok", hashed("tok")) == f"{HOST}.{hashed('tok')}"
        assert await address_of(plugin, "tok", "alice") == 401


async def test_name_belongs_to_its_first_token():
    """Another client could take the name, and with it the money."""
    store = MemoryStore()
    async with open_accounts(store=store) as plugin:
        assert await address_of(plugin, "first", "alice") == f"{HOST}.alice"
        assert await address_of(plugin, "second", "alice") == 401
        assert await address_of(plugin, "second") == f"{HOST}.{hashed('second')}"
    async with open_accounts(store=store) as plugin:
        assert await address_of(plugin, "second", "alice") == 401
        assert await address_of(plugin, "first", "alice") == f"{HOST}.alice"


async def test_names_need_a_store():
    with pytest.raises(InvalidServicesError):
        async with open_accounts(options(generate_account=False)):
            pass
    async with open_accounts(options(generate_account=False), store=MemoryStore()) as plugin:
        assert await address_of(plugin, "tok") == 401
        assert await address_of(plugin, "tok", "7") == f"{HOST}.7"


async def test_subject_of_a_jwt_names_the_account():
    async with open_accounts(options(incoming={"jwt_secret": SECRET})) as plugin:
        assert await address_of(plugin, bearer("alice")) == f"{HOST}.alice"
        assert await address_of(plugin, bearer("alice"), "alice") == f"{HOST}.alice"
        assert await address_of(plugin, bearer("alice"), "bob") == 401
        assert await address_of(plugin, bearer(None), "alice") == 401
        assert await address_of(plugin, bearer("a.b")) == 401
        assert await address_of(plugin, "tok") == 401


async def test_common_token_is_accepted_with_a_warning():
    """As ilp-plugin-http has it; there any client can take another's name."""
    log = Recorder()
    async with open_accounts(options(incoming={"static_token": "common"}), log=log) as plugin:
        assert await address_of(plugin, "common", "alice") == f"{HOST}.alice"
        assert await address_of(plugin, "common") == 401
        assert await address_of(plugin, "other", "alice") == 401
    assert any("a client can take the name of another" in line for line in log.lines)


async def test_name_on_the_same_connection_is_judged_again():
    async with open_accounts(store=MemoryStore()) as plugin, await dial(plugin.address) as stream:
        for token, name, status in (("a", "alice", 200), ("b", "bob", 200), ("a", "alice", 200), ("b", "alice", 401)):
            await stream.send_all(post(PREPARE, f"ILP-Peer-Name: {name}", token=token))
            assert (await read_response(stream))[0] == status
        assert sorted(account.name for account in plugin.accounts()) == ["alice", "bob"]


async def test_store_that_fails_is_unavailable():
    class Broken(MemoryStore):
        async def get(self, key):
            raise OSError("canary")

    async with open_accounts(store=Broken(), log=Recorder()) as plugin:
        status, _, body = await talk(plugin.address, post(ASK, "ILP-Peer-Name: alice", token="t"))
    assert status == 503
    assert b"canary" not in body


async def test_store_that_hangs_is_unavailable(clock):
    class Hanging(MemoryStore):
        async def get(self, key):
            await trio.sleep_forever()

    async with open_accounts(options(auth_timeout=3), store=Hanging(), log=Recorder()) as plugin:
        began = trio.current_time()
        assert await status_of(plugin.address, post(ASK, "ILP-Peer-Name: alice", token="t")) == 503
        assert trio.current_time() - began == pytest.approx(3, abs=0.1)
        assert plugin.accounts() == ()


# Accounts and their plugins.


async def test_request_reaches_the_handler_of_its_account():
    async def own(data):
        return b"own"

    async with open_accounts() as plugin:
        plugin.account(hashed("a")).register_data_handler(own)
        assert (await talk(plugin.address, post(b"x", token="a")))[2] == b"own"
        assert (await talk(plugin.address, post(b"x", token="b")))[2] == b"x"


async def test_accounts_come_and_go_with_events():
    async with open_accounts() as plugin:
        assert await status_of(plugin.address, post(token="a")) == 200
        account = plugin.account(hashed("a"))
        assert account.is_connected()
        await account.disconnect()
        assert not account.is_connected()
        with pytest.raises(NotConnectedError):
            await account.send_data(b"x")
        # Its client stays out until the application lets it in again.
        assert await status_of(plugin.address, post(token="a")) == 503
        assert not account.is_connected()
        await account.connect()
        assert await status_of(plugin.address, post(token="a")) == 200
        assert account.is_connected()
        events = read_events(plugin)[1:]
    assert [type(event) for event in events] == [AccountConnected, AccountDisconnected, AccountConnected]


async def test_account_without_a_connection_is_forgotten_after_a_while(clock):
    async with open_accounts() as plugin:
        assert await status_of(plugin.address, post(token="a")) == 200
        await trio.sleep(60)
        assert len(plugin.accounts()) == 1
        await trio.sleep(100)
        assert plugin.accounts() == ()
        assert plugin.statistics().requests_received == 1
        assert names(read_events(plugin)) == ["Connected", "AccountConnected", "AccountDisconnected"]


async def test_handler_knows_whose_request_it_answers():
    async def tell(data):
        return current_request().account.encode()

    async with open_accounts(data_handler=tell) as plugin:
        for token in ("a", "b"):
            assert (await talk(plugin.address, post(b"x", token=token)))[2] == hashed(token).encode()


async def test_account_that_was_asked_for_is_forgotten_too(clock, monkeypatch):
    """A handler that asks for the plugin of each sender would keep every client that comes once."""
    monkeypatch.setattr(module, "MOST_QUIET", 5)

    async def ask(data):
        assert plugin.account(current_request().account).is_connected()
        return data

    async with open_accounts(data_handler=ask) as plugin:
        await plugin.account(hashed("kept")).connect()
        for number in range(20):
            assert await status_of(plugin.address, post(token=f"t{number}")) == 200
            if len(plugin.accounts()) > 8:
                await trio.sleep(1)
        assert len(plugin.accounts()) <= 8
        await trio.sleep(160)
        assert [account.name for account in plugin.accounts()] == [hashed("kept")]
        await plugin.account(hashed("kept")).disconnect()
        assert plugin.accounts() == ()


async def test_account_with_a_connection_stays(clock):
    async with open_accounts() as plugin, await dial(plugin.address) as stream:
        for _ in range(5):
            await stream.send_all(post(token="a"))
            assert (await read_response(stream))[0] == 200
            await trio.sleep(60)
        (account,) = plugin.accounts()
        assert (account.connections, account.requests_received) == (1, 5)


async def test_made_up_tokens_do_not_fill_the_memory(monkeypatch):
    """Where tokens name accounts, names are free."""
    monkeypatch.setattr(module, "MOST_QUIET", 5)
    async with open_accounts() as plugin:
        for number in range(20):
            assert await status_of(plugin.address, post(token=f"t{number}")) == 200
        with trio.fail_after(2):
            while len(plugin.accounts()) > 6:  # noqa: ASYNC110 (closing a connection sets no event)
                await trio.sleep(0.01)


async def test_account_is_sent_to_at_its_own_url():
    paths = []

    async def script(stream):
        while True:
            head, _ = await take_request(stream)
            paths.append(head.split()[1].decode())
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(FULFILL), FULFILL))

    async with raw_server(script) as url:
        outgoing = {"url": f"{url}/%/in", "static_token": "t"}
        log = Recorder()
        async with open_accounts(options(outgoing=outgoing), log=log) as plugin:
            account = plugin.account("alice")
            with pytest.raises(NotConnectedError):
                await account.send_data(PREPARE)
            await account.connect()
            assert await account.send_data(PREPARE) == FULFILL
            # By the destination, whether the account is connected or not.
            condition = sha256(bytes(range(32))).digest()
            for name in ("alice", "bob"):
                prepare = ilp.encode(ilp.make_prepare(1, f"{HOST}.{name}.x", condition, 30))
                assert await plugin.send_data(prepare) == FULFILL
            for each in (account, plugin):
                each.register_money_handler(echo)
            assert log.lines.count("the money handler is never called: ILP over HTTP carries no money") == 2
            with pytest.raises(MoneyLevelError):
                await account.send_money("1")
            with pytest.raises(MoneyLevelError):
                await plugin.send_money("1")
    assert paths == ["/ilp/alice/in", "/ilp/alice/in", "/ilp/bob/in"]


async def test_other_mark_stands_for_the_name():
    paths = []

    async def script(stream):
        paths.append((await take_request(stream))[0].split()[1].decode())

    async with raw_server(script) as url:
        outgoing = {"url": f"{url}/NAME?x=NAME", "static_token": "t"}
        async with open_accounts(options(outgoing=outgoing, multi_delimiter="NAME")) as plugin:
            account = plugin.account("a~b")
            await account.connect()
            with pytest.raises(Exception, match="lost"):
                await account.send_data(PREPARE)
    assert paths == ["/ilp/a~b?x=NAME"]


@pytest.mark.parametrize(("destination", "code"), [("example.other.x", "F02"), (f"{HOST}.bob", "T01")])
async def test_prepare_that_cannot_be_sent_is_rejected(destination, code):
    async with open_accounts() as plugin:
        answer = await plugin.send_data(ilp.encode(ilp.make_prepare(1, destination, bytes(32), 30)))
    packet = ilp.decode(answer)
    assert isinstance(packet, ilp.Reject)
    assert packet.code == code


async def test_server_asks_its_parent_for_its_address():
    async def parent(data):
        return ildcp.encode(ildcp.IldcpResponse("test.parent.me", 9, "XRP"))

    fields = options()
    del fields["ildcp"]
    async with open_accounts(fields, data_handler=parent) as plugin:
        assert await address_of(plugin, "tok") == f"test.parent.me.{hashed('tok')}"
    with pytest.raises(InvalidFieldsError, match="ILP address"):
        async with open_http(fields):
            pass


async def test_client_of_this_package_learns_its_address():
    async with open_accounts(store=MemoryStore()) as plugin:
        outgoing = {"url": plugin.address, "static_token": "tok", "name": "alice"}
        async with open_http({"plugin": "http", "outgoing": outgoing}) as client:
            assert (await fetch_ildcp(client)).client_address == f"{HOST}.alice"


async def test_accounts_end_with_their_server():
    async with open_accounts() as plugin:
        account = plugin.account("alice")
        await account.connect()
    with pytest.raises(PluginClosedError):
        await account.send_data(b"x")
    with pytest.raises(PluginClosedError):
        await account.connect()
    assert plugin.accounts() == ()


async def test_account_of_a_server_that_does_not_listen():
    async with open_accounts() as plugin:
        account = plugin.account("alice")
        await plugin.disconnect()
        with pytest.raises(NotConnectedError):
            await account.connect()
        assert not account.is_connected()
