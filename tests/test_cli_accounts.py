"""``serve --accounts`` and ``ildcp``, as users run them."""

from __future__ import annotations

import gc
import io
import json
import re
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
from rich.console import Console
from support.accounts import FULFILL, HOST, answer, ask, enter, hashed, leave, open_accounts, prepare
from support.pages import ROOT
from support.programs import CANARY, assert_one_error, on_a_terminal, posix, run, serving
from trio.testing import MockClock, wait_all_tasks_blocked

from trio_ledger_plugin import (
    AccountsOptions,
    ConnectOptions,
    HostInfo,
    PluginServices,
    Transfer,
    fetch_ildcp,
    open_plugin,
)
from trio_ledger_plugin.accounts import looking
from trio_ledger_plugin.btp.options import BtpOptions, ListenerOptions
from trio_ledger_plugin.cli import main
from trio_ledger_plugin.cli.accounts_table import REST, Meter, View, accounts_table, busiest
from trio_ledger_plugin.cli.money_meter import MoneyMeter
from trio_ledger_plugin.cli.output import LiveOutput, Screen
from trio_ledger_plugin.cli.replies import fulfill, make_question
from trio_ledger_plugin.cli.serving import introduce
from trio_ledger_plugin.codec import btp, ildcp, ilp
from trio_ledger_plugin.ilp.routing import route
from trio_ledger_plugin.stores import MemoryStore, open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import echo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio_ledger_plugin import LedgerPlugin

pytestmark = pytest.mark.slow

ADDRESS = "test.server"
NAMED = ("--accounts", "--account-mode", "username", "--address", ADDRESS)


@asynccontextmanager
async def client(address: str, name: str, handler: Any = None) -> AsyncIterator[LedgerPlugin]:
    url = address.replace("://", f"://{name}:{CANARY}{name}@")
    options = BtpOptions(server=url, response_timeout=5)
    async with open_plugin(options, connect=ConnectOptions(timeout=5000), data_handler=handler) as plugin:
        yield plugin


async def code_of_reject(plugin: LedgerPlugin, destination: str, lifetime: float = 30) -> str:
    packet = ilp.decode(await plugin.send_data(prepare(destination, lifetime)))
    assert isinstance(packet, ilp.Reject)
    assert packet.triggered_by == ADDRESS
    return packet.code


# ildcp


@posix
async def test_ildcp_shows_address_and_asset() -> None:
    """Amounts read by another scale are wrong by powers of ten."""
    async with serving("--accounts") as server:
        address = await server.wait_for(r"listening on (\S+),")
        url = address.replace("://", f"://:{CANARY}@")
        own = f"example.trio-ledger-plugin.{hashed(CANARY)}"
        assert await run("ildcp", url) == (0, f"client address: {own}\nasset scale: 9\nasset code: XRP\n", "")
        code, stdout, stderr = await run("ildcp", address, "--json", TRIO_LEDGER_PLUGIN_SECRET=CANARY)
        assert (code, stderr) == (0, "")
        assert json.loads(stdout) == {
            "address": address,
            "client_address": own,
            "asset_scale": 9,
            "asset_code": "XRP",
        }


@posix
async def test_ildcp_shows_the_options_of_the_server() -> None:
    async with serving(*NAMED, "--asset-scale", "2", "--asset-code", "EUR\x1b") as server:
        address = await server.wait_for(r"listening on (\S+),")
        url = address.replace("://", f"://alice:{CANARY}@")
        text = f"client address: {ADDRESS}.alice\nasset scale: 2\nasset code: EUR\\x1b\n"
        assert await run("ildcp", url) == (0, text, "")
        code, stdout, stderr = await run("ildcp", url.replace(CANARY, f"not-{CANARY}"))
        assert (code, stdout) == (4, "")
        assert_one_error(stderr)
        assert "refuses the credentials" in stderr


async def refuse(data: bytes) -> bytes:
    return ilp.encode(ilp.Reject("F02", "example.other", "no route\x1b"))


async def junk(data: bytes) -> bytes:
    return b"junk"


async def silence(data: bytes) -> bytes:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (None, "does not answer ILDCP requests: .*no data handler"),
        (refuse, r"does not answer ILDCP requests: .*F02 Reject: no route\\x1b"),
        (echo, "not an ILDCP response: .*only echoes"),
        (junk, "not an ILDCP response: .*ILPv4"),
        (fulfill, "does not answer ILDCP requests: .*F05"),
        (silence, "no answer within 0.3 s"),
    ],
    ids=["no handler", "reject", "echo", "junk", "wrong condition", "silence"],
)
async def test_ildcp_error_of_a_peer_without_ildcp(handler: Any, text: str) -> None:
    """A script would go on without an address, or a user would get a traceback."""
    options = BtpOptions(listener=ListenerOptions(port=0, secret=CANARY), close_timeout=0.1)
    async with open_plugin(options, data_handler=handler) as server:
        url = server.address.replace("://", f"://:{CANARY}@")
        code, stdout, stderr = await run("ildcp", url, "--timeout", "0.3", "--json")
    assert (code, stdout) == (1, "")
    assert_one_error(stderr)
    assert re.search(text, stderr)


async def test_ildcp_without_a_server_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, stdout, stderr = await run("ildcp", f"btp+ws://:{CANARY}@127.0.0.1:{port}", "--timeout", "0.3")
    assert (code, stdout) == (3, "")
    assert_one_error(stderr)


# serve --accounts


@posix
async def test_packet_is_forwarded_and_its_answer_returned() -> None:
    """This is the purpose of the server."""
    async with serving(*NAMED, "--reply", "fulfill") as server:
        address = await server.wait_for(r"listening on (\S+),")
        async with client(address, "alice") as alice, client(address, "bob", fulfill) as bob:
            assert (await fetch_ildcp(bob)).client_address == f"{ADDRESS}.bob"
            for destination in (f"{ADDRESS}.bob", f"{ADDRESS}.bob.app.1", ADDRESS, "peer.ping"):
                question = make_question(250, 30)
                prepare = ilp.make_prepare(250, destination, question.execution_condition, 30, question.data)
                packet = ilp.decode(await alice.send_data(ilp.encode(prepare)))
                assert isinstance(packet, ilp.Fulfill), (destination, packet)
                assert ilp.fulfills(packet.fulfillment, question.execution_condition)
            assert bob.statistics().requests_received == 2
            assert await code_of_reject(alice, f"{ADDRESS}.nobody") == "T01"
            assert await code_of_reject(alice, "example.elsewhere") == "F02"
            assert await code_of_reject(alice, f"{ADDRESS}.bob", -1) == "R00"
            # The server's own answers bear its own address.
            assert await code_of_reject(alice, ADDRESS) == "F05"
            await alice.send_money("250")
            await server.wait_for("(received money from alice: 250)")
            code, took = await server.end(signal.SIGINT)
            assert code == 0
            assert took < 1
    for line in (
        "alice connected",
        "bob connected",
        "alice disconnected",
        "closed; 10 requests, 10 answered, 0 refused",
    ):
        assert line in server.output
    assert CANARY not in server.output
    assert "\x1b" not in server.output


@posix
async def test_username_belongs_to_its_first_token() -> None:
    """Any client could take another client's packets."""
    async with serving(*NAMED, TRIO_LEDGER_PLUGIN_SECRET=f"unused-{CANARY}") as server:
        address = await server.wait_for(r"listening on (\S+),")
        async with client(address, "alice", fulfill):
            code, stdout, _ = await run("ping", address.replace("://", f"://alice:other-{CANARY}@"))
            assert (code, stdout) == (4, "")
            await server.wait_for("(refused a connection from 127.0.0.1 for account alice: invalid auth_token)")
        await server.end(signal.SIGTERM)
    assert CANARY not in server.output


@posix
async def test_server_itself_answers_ping() -> None:
    async with serving("--accounts", "--address", ADDRESS) as server:
        address = await server.wait_for(r"listening on (\S+),")
        assert f"a client's URL: {address.replace('://', '://:TOKEN@')}, " in await all_of_it(server)
        code, stdout, stderr = await run(
            "ping", address.replace("://", f"://:{CANARY}@"), "--count", "2", "--interval", "0"
        )
        assert (code, stderr) == (0, "")
        assert "2 sent, 2 answered (2 echo)" in stdout
    assert CANARY not in server.output


async def all_of_it(server: Any) -> str:
    await server.wait_for("(Ctrl-C ends the server)")
    output: str = server.output
    return output


@posix
async def test_serve_accounts_json() -> None:
    """A program that watches the server would have to parse sentences."""
    async with serving(*NAMED, "--json", "--report-interval", "0.05") as server:
        address = await server.wait_for(r'"address": "(\S+)",')
        async with client(address, "alice") as alice:
            await alice.send_money("250")
            await server.wait_for(r'("event": "totals", "accounts": 1, "connections": 1, "requests_received": 1,)')
        await run("ping", address.replace("://", f"://alice:other-{CANARY}@"), "--count", "1")
        await server.wait_for("(invalid auth_token)")
        await server.wait_for(r'("event": "totals", "accounts": 0)')
        assert (await server.end(signal.SIGINT))[0] == 0
    lines = [json.loads(line) for line in server.output.splitlines()]
    assert all(line.pop("time") for line in lines)
    assert lines[0] == {
        "event": "listening",
        "address": address,
        "ilp_address": ADDRESS,
        "asset_scale": 9,
        "asset_code": "XRP",
    }
    told = [line for line in lines[1:-1] if line["event"] != "totals"]
    refused = "refused a connection from 127.0.0.1 for account alice: invalid auth_token"
    ended = "a connection of account alice from 127.0.0.1 ended: the peer closed the connection with 1000"
    assert told == [
        {"event": "account_connected", "account": "alice"},
        {"event": "money", "account": "alice", "amount": "250", "key": None, "level": "plain"},
        {"event": "log", "level": "info", "text": ended},
        {"event": "account_disconnected", "account": "alice"},
        {"event": "log", "level": "warn", "text": refused},
    ]
    assert lines[-1] == {"event": "closed", "requests_received": 1, "responses_sent": 1, "errors_sent": 0}
    totals = [line for line in lines if line["event"] == "totals"]
    assert all(line["bytes_received"] > 0 for line in totals)
    # Nothing is repeated while nothing happens.
    assert len(totals) <= 4
    assert CANARY not in server.output


@posix
async def test_totals_are_reported_at_the_interval() -> None:
    async with serving("--accounts", "--report-interval", "0.05") as server:
        address = await server.wait_for(r"listening on (\S+),")
        await run("ping", address.replace("://", f"://:{CANARY}@"), "--count", "3", "--interval", "0")
        await server.wait_for(r"(accounts: 0, connections: 0, [\d,]+ requests/s; in all 3 in, 0 out, 0 refused)")


@posix
async def test_terminal_shows_a_changing_table() -> None:
    shown = await on_a_terminal("serve", "--accounts", "--port", "0", until="0 connected")
    assert "\x1b" in shown
    assert "requests in" in shown
    assert "money in" in shown
    shown = await on_a_terminal("serve", "--accounts", "--json", "--port", "0", until='"listening"')
    assert "\x1b" not in shown


async def test_serve_accounts_names_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, stdout, stderr = await run("serve", "--accounts", "--port", port)
    assert (code, stdout) == (1, "")
    assert_one_error(stderr)
    assert port in stderr
    assert "--port" in stderr


@pytest.mark.parametrize("as_json", [False, True])
def test_money_from_the_journal_comes_after_the_first_line(as_json: bool) -> None:
    """A program that reads the address from the first line failed at a restart with money that waits."""
    out = io.StringIO()
    output = LiveOutput(Screen(out), as_json=as_json)
    output.write("money", "received money from bob: 80", amount="80")
    output.log.warn("without TLS")
    introduce(output, ("listening on somewhere",), address="somewhere")
    first, money, warning = out.getvalue().splitlines()
    assert "listening" in first
    assert "80" in money
    assert "without TLS" in warning


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--address", ADDRESS], "--address needs --accounts"),
        (["--asset-scale", "9"], "--asset-scale needs --accounts"),
        (["--asset-code", "XRP"], "--asset-code needs --accounts"),
        (["--account-mode", "token"], "--account-mode needs --accounts"),
        (["--allow-origin", "null"], "--allow-origin needs --accounts"),
        (["--report-interval", "1"], "--report-interval needs --accounts"),
        (["--accounts", "--secret", CANARY], "each has its own token"),
        (["--accounts", "--address", "no address"], "--address: "),
        (["--accounts", "--asset-code", ""], "--asset-code: "),
        (["--accounts", "--asset-scale", "256"], "--asset-scale"),
        (["--accounts", "--allow-origin", "("], "an origin such as"),
        (["--accounts", "--account-mode", "email"], "--account-mode"),
        (["--accounts", "--report-interval", "0"], "--report-interval"),
        (["--accounts", "--names", "email"], "--account-mode"),
        (["--accounts", "--totals", "0"], "--report-interval"),
        (["--accounts", "--tls-key", __file__], "--tls-cert"),
        (["--accounts", "--host", "a b"], "--host: "),
    ],
)
def test_conflicting_options_are_refused(args: list[str], text: str, capsys: Any) -> None:
    """The server would ignore options that its user relies on."""
    assert main(["serve", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_error(err)
    assert text in err


# Forwarding


async def test_forwarding_errors_are_ilp_rejects() -> None:
    """A BTP error says nothing to the ILP sender, who would have to wait for the expiry."""
    async with open_accounts({**OPTIONS, "responseTimeout": 200}, store=MemoryStore()) as plugin:
        plugin.register_data_handler(partial(route, send=plugin.send_data, address=HOST, reply=echo))
        alice = await enter(plugin, "alice")

        async def reject_for(request_id: int) -> ilp.Reject:
            packet = await ask(alice, prepare(f"{HOST}.bob"), request_id)
            reject = ilp.decode(packet.protocol_data[0].data)
            assert isinstance(reject, ilp.Reject)
            assert reject.triggered_by == HOST
            return reject

        async with trio.open_nursery() as nursery:
            bob = await enter(plugin, "bob")
            nursery.start_soon(take, bob, None)
            assert (await reject_for(1)).code == "T01"
        bob = await enter(plugin, "bob")
        for number, (reply, code) in enumerate(((b"rubbish", "F01"), (ilp.encode(ilp.Fulfill(bytes(32))), "F05")), 2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, bob, reply)
                assert (await reject_for(number)).code == code
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse_btp, bob)
            assert (await reject_for(4)).code == "T01"
        # No answer comes.
        assert (await reject_for(5)).code == "R00"
        await alice.aclose()
        await bob.aclose()


OPTIONS: dict[str, Any] = {
    "plugin": "btp-accounts",
    "port": 0,
    "debugHostIldcpInfo": {"clientAddress": HOST, "assetScale": 9, "assetCode": "XRP"},
}


async def take(peer: Any, reply: None) -> None:
    """Receive a request and disconnect without an answer."""
    await peer.receive_packet()
    await peer.aclose()


async def refuse_btp(peer: Any) -> None:
    request = await peer.receive_packet()
    await peer.send_packet(btp.Error(request.request_id, "F00", "NotAcceptedError", datetime.now(UTC), b"", ()))


async def test_server_answers_what_is_not_a_prepare() -> None:
    async with open_accounts(store=MemoryStore()) as plugin:
        for data in (b"", b"raw", FULFILL, prepare(HOST), prepare("peer.ping")):
            assert await route(data, plugin.send_data, HOST, echo) == data
        told = ildcp.decode(await plugin.send_data(ildcp.encode(ildcp.IldcpRequest())))
        assert isinstance(told, ildcp.IldcpResponse)


# The table, and what it is made of


def rendered(table: Any, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(table)
    return [line.rstrip() for line in file.getvalue().splitlines()]


@pytest.fixture
def clock() -> MockClock:
    """A clock that stands still unless a test moves it, or has failed and waits for the server to close."""
    return MockClock(autojump_threshold=1)


async def test_table_shows_each_account_and_the_server(clock: MockClock) -> None:
    """The operator would see wrong numbers."""
    async with open_accounts(store=MemoryStore(), data_handler=echo) as plugin, trio.open_nursery() as nursery:
        meter = Meter(plugin)
        alice, again = await enter(plugin, "alice"), await enter(plugin, "alice")
        clock.jump(3600)
        bob = await enter(plugin, "bob")
        for number in range(1, 5):
            await ask(alice, b"hi", number)
        nursery.start_soon(answer, bob, FULFILL)
        await plugin.send_data(prepare(f"{HOST}.bob"))
        clock.jump(2)
        view = await meter.look()
        heading, first, second, total = rendered(accounts_table(view, 10, 100), 100)
        assert heading.split() == [
            "account",
            "conns",
            "requests",
            "in",
            "out",
            "per",
            "s",
            "received",
            "sent",
            "connected",
        ]
        assert re.fullmatch(r"alice +2 +4 +0 +0 +\d+ bytes +\d+ bytes +1:00:02", first)
        assert re.fullmatch(r"bob +1 +0 +1 +0 +\d+ bytes +\d+ bytes +0:00:02", second)
        assert re.fullmatch(r"2 connected +3 +4 +1 +0 +\S+ \S+ +\S+ \S+", total)
        # Over the 3602 seconds since the meter was made, and over the next two.
        assert view.rates == {"alice": 4 / 3602, "bob": 1 / 3602}
        for number in range(5, 11):
            await ask(alice, b"hi", number)
        clock.jump(2)
        view = await meter.look()
        assert (view.rates, view.rate) == ({"alice": 3, "bob": 0}, 3)
        lines = rendered(accounts_table(view, 1, 100), 100)
        assert [line.split()[0] for line in lines[1:-1]] == ["alice"]
        assert lines[-1].startswith("1 of 2 shown")
        # Back again, it counts from zero.
        await bob.aclose()
        await wait_all_tasks_blocked()
        clock.jump(1)
        bob = await enter(plugin, "bob")
        await ask(bob, b"hi", 1)
        clock.jump(1)
        assert (await meter.look()).rates == {"alice": 0, "bob": 0.5}
        for peer in (alice, again, bob):
            await peer.aclose()


async def test_look_at_many_accounts_takes_turns_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With twenty thousand clients, the server would stand still for a third of a second, again and again."""
    monkeypatch.setattr(looking, "SLICE", 2)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with open_accounts() as plugin, trio.open_nursery() as nursery:
        peers = [await enter(plugin, "", f"token {number}") for number in range(8)]
        nursery.start_soon(count_turns)
        await trio.lowlevel.checkpoint()
        turns = 0
        view = await Meter(plugin).look()
        assert (len(view.accounts), turns >= 4) == (8, True)
        nursery.cancel_scope.cancel()
    for peer in peers:
        await peer.aclose()


async def test_looks_that_take_long_are_rare(autojump_clock: MockClock) -> None:
    times: list[float] = []

    def see(_view: View) -> None:
        times.append(trio.current_time())
        time.sleep(0.02)

    async with open_accounts() as plugin:
        with trio.move_on_after(5):
            await Meter(plugin).follow(0.5, see)
    assert len(times) > 1
    assert all(later - earlier >= REST * 0.02 for earlier, later in pairwise(times))


async def test_table_shows_the_money_of_each_account(tmp_path: Path) -> None:
    """The operator of a server for money would see bytes."""
    options = AccountsOptions(port=0, debug_host_ildcp_info=HostInfo(HOST, 9, "XRP"), generate_account=False)
    async with (
        open_sqlite_store(tmp_path / "accounts.db") as store,
        open_plugin(options, PluginServices(store=store), money_handler=nothing) as server,
        open_plugin({"server": server.address.replace("://", "://alice:a-token@")}, money_handler=nothing) as alice,
    ):
        meter, money = Meter(server), MoneyMeter(server.transfers)
        await alice.send_money("2500")
        await server.account("alice").send_money("70")
        view = await meter.look()
        money.shown = tuple(account.name for account in busiest(view, 10))
        with trio.move_on_after(0.5):
            await money.follow()
        view = evolve(view, money=money.accounts, money_total=money.total)
        heading, first, total = rendered(accounts_table(view, 10, 140), 140)
        assert re.search("sent  money in  money out  in doubt  connected$", heading)
        assert re.search(r" 2,500 +70 +0 +\d:\d\d:\d\d$", first)
        assert re.search(r" 2,500 +70 +0$", total)
        # The narrower the terminal, the fewer columns; those about money go last.
        assert rendered(accounts_table(view, 10, 60), 60)[0].split()[-6:] == [
            "money",
            "in",
            "money",
            "out",
            "in",
            "doubt",
        ]


async def test_money_without_a_journal_is_counted_as_it_comes() -> None:
    money = MoneyMeter(None)
    for amount in ("5", "7"):
        money.count(Transfer(amount, "alice"))
    assert (money.accounts["alice"].received, money.total.received) == (12, 12)


async def nothing(_: str) -> None:
    pass


async def test_narrow_table_cuts_names_but_no_numbers(clock: MockClock) -> None:
    async with open_accounts() as plugin:
        meter = Meter(plugin)
        peers = [await enter(plugin, "", f"token {number}") for number in range(3)]
        clock.jump(1)
        lines = rendered(accounts_table(await meter.look(), 10, 80), 80)
        assert len(lines) == 5
        assert all(len(line) <= 80 for line in lines)
        assert sum("…" in line for line in lines) == 3
        assert all(line.endswith("0:00:01") for line in lines[1:-1])
        lines = rendered(accounts_table(await meter.look(), 2, 80), 80)
        assert lines[-1].startswith("2 of 3 shown")
        # A terminal has room for so many lines: none may become two.
        assert len(rendered(accounts_table(await meter.look(), 2, 68), 68)) == 4
        for peer in peers:
            await peer.aclose()


async def test_accounts_creates_and_keeps_no_account(clock: MockClock) -> None:
    """The memory of a watched server would grow with every client so far."""
    async with open_accounts(store=MemoryStore(), data_handler=echo) as plugin:
        assert plugin.accounts() == ()
        one, two = await enter(plugin, "alice"), await enter(plugin, "alice")
        clock.jump(5)
        await ask(one, b"hi")
        (before,) = plugin.accounts()
        assert (before.name, before.connections) == ("alice", 2)
        assert (before.requests_received, before.requests_sent) == (1, 0)
        assert before.connected_at == trio.current_time() - 5
        # What a connection did is not forgotten while the account has another.
        await one.aclose()
        await wait_all_tasks_blocked()
        (after,) = plugin.accounts()
        assert after.connections == 1
        assert after.bytes_received >= before.bytes_received > 0
        assert after.bytes_sent >= before.bytes_sent > 0
        plugin.account("bob")
        assert [account.name for account in plugin.accounts()] == ["alice"]
        await two.aclose()
        await wait_all_tasks_blocked()
        assert plugin.accounts() == ()
        gc.collect()
        made = [
            each for each in gc.get_objects() if type(each).__name__ == "AccountPlugin" and each.tasks is plugin.tasks
        ]
        # That of bob is gone as well: nothing holds it.
        assert made == []


async def test_requests_of_an_accounts_plugin_are_counted() -> None:
    async with open_accounts(store=MemoryStore()) as plugin, trio.open_nursery() as nursery:
        peer = await enter(plugin, "alice")
        nursery.start_soon(answer, peer, b"bytes")
        await plugin.account("alice").send_data(b"raw")
        (snapshot,) = plugin.accounts()
        assert snapshot.requests_sent == 1
        nursery.start_soon(plugin.account("alice").disconnect)
        await leave(peer)


# Counts the full collections of a program from its first server on.
COUNTER = """
import atexit, gc, socket
began = []
listen = socket.socket.listen
def listening(*args):
    gc.collect()
    began.append(gc.get_stats()[2]["collections"])
    return listen(*args)
socket.socket.listen = listening
atexit.register(lambda: began and print("full:", gc.get_stats()[2]["collections"] - began[0], flush=True))
"""
CLIENTS = """
import sys
from accounts import Server, connected
with connected(Server("ours", 0, int(sys.argv[1])), 300) as clients:
    for _ in range(50):
        for client in clients:
            client.send(10)
        for client in clients:
            client.sock.recv(65536)
"""


@posix
async def test_server_makes_no_full_collection_under_load(tmp_path: Path) -> None:
    """Each one stops the whole server, for 400 ms if it has 10,000 connections."""
    (tmp_path / "sitecustomize.py").write_text(COUNTER)
    async with serving("--accounts", "--reply", "fulfill", PYTHONPATH=f"{tmp_path}:{ROOT}") as server:
        port = await server.wait_for(r"listening on \S+:(\d+)")
        command = [sys.executable, "-c", CLIENTS, port]
        await trio.run_process(command, cwd=ROOT / "tests" / "bench")
        assert (await server.end(signal.SIGTERM))[0] == 0
    assert re.findall("^full: (.*)$", server.output, re.MULTILINE) == ["0"]
