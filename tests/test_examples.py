"""Every example does what it says, run as a reader runs it."""

import hashlib
import random
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import pytest
import trio
from support.pages import ROOT
from support.ports import free_port
from support.programs import Running, environment, posix, running, serving

from trio_ledger_plugin import NotAcceptedError, fetch_ildcp, open_plugin
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.testing.conformance import ConformanceSuite, PluginPair

EXAMPLES = ROOT / "docs" / "examples"
sys.path.insert(0, str(EXAMPLES))
from pair_plugin import PairPlugin  # noqa: E402 (not in a package)

pytestmark = pytest.mark.slow

PATIENCE = 20.0
# An example is read in one sitting.
LINES = 80


def arguments(name: str, *args: object) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, args)]


async def run(name: str, *args: object) -> str:
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(arguments(name, *args), capture_stdout=True, capture_stderr=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def example(name: str, *args: object) -> AbstractAsyncContextManager[Running]:
    """Run an example that runs until it gets a signal."""
    return running(*arguments(name, *args))


async def end_well(program: Running, number: int = signal.SIGINT) -> str:
    """End an example by a signal, check that it ends cleanly, and return its output."""
    code, _ = await program.end(number)
    assert code == 0, program.output
    return program.output


def test_every_example_is_on_its_page_and_short():
    names = {path.name for path in EXAMPLES.glob("*.py")}
    page = (EXAMPLES / "index.md").read_text()
    assert {name for name in names if f"[{name}]({name})" in page} == names
    for name in names:
        assert len((EXAMPLES / name).read_text().splitlines()) < LINES, name


@posix
async def test_echo_answers_and_takes_money():
    async with example("echo_peer.py", 0) as echo:
        port = await echo.wait_for(r"listening on btp\+ws://127\.0\.0\.1:(\d+)\n")
        async with open_plugin({"server": f"btp+ws://me:open-sesame@127.0.0.1:{port}"}) as client:
            assert await client.send_data(b"hello") == b"hello"
            await client.send_money("250")
        await echo.wait_for("(Disconnected)")
        shown = await end_well(echo)
    assert "Connected()\n" in shown
    assert "received 250 at level plain\n" in shown


@posix
async def test_ilp_ping_recognises_a_fulfillment():
    assert re.fullmatch(r"fulfilled in \d+\.\d ms\n", await run("ilp_ping.py"))
    answers = {"fulfill": "fulfilled in ", "reject": "rejected: F02 ", "echo": "not an answer"}
    for reply, shown in answers.items():
        async with serving("--reply", reply, TRIO_LEDGER_PLUGIN_SECRET="t0ken") as server:
            port = await server.wait_for(r"127\.0\.0\.1:(\d+)")
            assert (await run("ilp_ping.py", f"btp+ws://:t0ken@127.0.0.1:{port}")).startswith(shown)


@posix
async def test_router_forwards_or_rejects():
    preimage = bytes(range(32))

    async def fulfill(data):
        return ilp.encode(ilp.Fulfill(preimage, b"for you"))

    async with example("router.py", 0) as router:
        port = await router.wait_for(r"listening on btp\+ws://127\.0\.0\.1:(\d+)\n")
        url = f"btp+ws://:{{}}@127.0.0.1:{port}"
        async with (
            open_plugin({"server": url.format("alice")}) as alice,
            open_plugin({"server": url.format("bob")}, data_handler=fulfill) as bob,
        ):
            bobs = (await fetch_ildcp(bob)).client_address
            condition = hashlib.sha256(preimage).digest()

            async def ask(destination):
                return ilp.decode(await alice.send_data(ilp.encode(ilp.make_prepare(5, destination, condition, 10))))

            assert await ask(bobs) == ilp.Fulfill(preimage, b"for you")
            away = await ask("example.router.nobody")
            elsewhere = await ask("example.elsewhere")
            assert isinstance(away, ilp.Reject)
            assert isinstance(elsewhere, ilp.Reject)
            assert (away.code, elsewhere.code) == ("T01", "F02")
        await router.wait_for(rf"({re.escape(bobs)} disconnected)")
        await end_well(router)


def shard(name, folder, port, hub_port):
    return example("shards.py", "shard", name, folder / f"{name}.db", port, hub_port)


@posix
async def test_shards_reach_each_other_and_one_can_be_lost(tmp_path):
    preimage = bytes(range(32))
    condition = hashlib.sha256(preimage).digest()
    port = free_port()

    async def fulfill(data):
        return ilp.encode(ilp.Fulfill(preimage, ilp.decode(data).data))

    async def ask(payer, destination):
        answer = ilp.decode(await payer.send_data(ilp.encode(ilp.make_prepare(5, destination, condition, 10))))
        assert not isinstance(answer, ilp.Prepare)
        return answer.code if isinstance(answer, ilp.Reject) else answer.fulfillment

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        hub = await enter(example("shards.py", "hub", tmp_path / "hub.db", 0))
        hub_port = await hub.wait_for(r"listening on btp\+ws://127\.0\.0\.1:(\d+)\n")
        first = await enter(shard("s1", tmp_path, 0, hub_port))
        firsts = await first.wait_for(r"example\.hub\.s1 listening on \S+:(\d+)\n")
        second = await enter(shard("s2", tmp_path, port, hub_port))
        await second.wait_for(r"(example\.hub\.s2 listening)")
        alice, carol, bob = [
            await enter(open_plugin({"server": f"btp+ws://:{name}@127.0.0.1:{at}"}, data_handler=fulfill))
            for name, at in (("alice", firsts), ("carol", firsts), ("bob", port))
        ]
        carols, bobs = [(await fetch_ildcp(plugin)).client_address for plugin in (carol, bob)]
        assert (carols.rpartition(".")[0], bobs.rpartition(".")[0]) == ("example.hub.s1", "example.hub.s2")
        assert await ask(alice, bobs) == await ask(bob, carols) == await ask(alice, carols) == preimage
        assert await ask(alice, "example.hub.s1.nobody") == "T01"
        assert await ask(alice, "example.elsewhere.bob") == "F02"

        await second.end(signal.SIGKILL)
        assert await ask(alice, bobs) == "T01"
        assert await ask(alice, carols) == preimage

        second = await enter(shard("s2", tmp_path, port, hub_port))
        await second.wait_for(r"(example\.hub\.s2 listening)")
        await bob.wait_connected()
        assert (await fetch_ildcp(bob)).client_address == bobs
        assert await ask(alice, bobs) == preimage
        for program in (second, first, hub):
            await end_well(program)


class TestPairPlugin(ConformanceSuite):
    """The plugin that readers start from keeps the rules."""

    @asynccontextmanager
    async def pair(self, conditions):
        near, far = socket.socketpair()
        yield PluginPair(
            plugin=conditions.make(PairPlugin, {"fd": near.detach()}),
            peer=conditions.of_peer.make(PairPlugin, {"fd": far.detach()}),
        )


# These checks connect again after a disconnect, which a socketpair cannot.
for _name in (
    "connect_is_allowed_again_after_disconnect",
    "unread_events_neither_block_nor_grow",
    "the_newest_events_are_kept",
    "dropped_events_are_counted",
    "failed_is_never_dropped",
):
    setattr(TestPairPlugin, f"test_{_name}", None)


@posix
async def test_debt_is_settled_once_despite_kills(tmp_path):
    """A reader who relied on the example would pay twice, or not at all."""
    books = {"receive": tmp_path / "receive.db", "pay": tmp_path / "pay.db"}
    port, count, draw = free_port(), 1000, random.Random(1)
    commands = {
        "receive": arguments("settle.py", "receive", books["receive"], port),
        "pay": arguments("settle.py", "pay", books["pay"], count, port),
    }
    kills = 0
    with trio.fail_after(60):
        processes = {
            who: await trio.lowlevel.open_process(command, stdout=subprocess.DEVNULL)
            for who, command in commands.items()
        }
        try:
            while kills < 4 and processes["pay"].poll() is None:
                with trio.move_on_after(draw.uniform(0.5, 1.0)):  # at any point of its run
                    await processes["pay"].wait()
                    break
                who = draw.choice(list(processes))
                processes[who].kill()
                await processes[who].wait()
                kills += 1
                processes[who] = await trio.lowlevel.open_process(commands[who], stdout=subprocess.DEVNULL)
            assert await processes["pay"].wait() == 0
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                for process in processes.values():
                    process.kill()
                    await process.wait()
        shown = {who: await run_command("transfers", path) for who, path in books.items()}
    assert kills >= 1
    assert shown["pay"].splitlines()[-1] == f"sent {10 * count}, received 0, in doubt 0"
    assert shown["receive"].splitlines()[-1] == f"sent 0, received {10 * count}, in doubt 0"


async def run_command(*args: object) -> str:
    command = [sys.executable, "-m", "trio_ledger_plugin", *map(str, args)]
    done = await trio.run_process(command, capture_stdout=True, env=environment())
    return done.stdout.decode()


async def ask_web(port: int, request: str) -> tuple[int, str]:
    """Return the status and the body of an HTTP response."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"{request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        seen = b""
        while not (found := re.match(rb"HTTP/1.1 (\d+).*content-length: (\d+).*?\r\n\r\n(.*)", seen, re.DOTALL)) or (
            len(found[3]) < int(found[2])
        ):
            seen += await stream.receive_some()
    return int(found[1]), found[3].decode().strip()


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_web_application_asks_its_accounts(number):
    async def answer(data):
        return data.upper()

    async with example("web.py", 0, 0) as web:
        btp_port = await web.wait_for(r"BTP at btp\+ws://127\.0\.0\.1:(\d+)\n")
        port = int(await web.wait_for(r"web at http://127\.0\.0\.1:(\d+)\n"))
        assert await ask_web(port, "GET /accounts") == (200, "{}")
        async with open_plugin({"server": f"btp+ws://:t0ken@127.0.0.1:{btp_port}"}, data_handler=answer) as client:
            name = (await fetch_ildcp(client)).client_address.rpartition(".")[2]
            assert await ask_web(port, "GET /accounts") == (200, f'{{"{name}":1}}')
            assert await ask_web(port, f"POST /accounts/{name}/ask/hello") == (200, '{"answer":"HELLO"}')
        assert await ask_web(port, f"POST /accounts/{name}/ask/hello") == (502, '{"error":"NotConnectedError"}')
        assert (await end_well(web, number)).endswith("closed\n")


@posix
async def test_a_web_application_serves_ilp_over_http():
    async with running(*arguments("http_web.py", 0), ILP_TOKEN="t0ken") as web:
        url = await web.wait_for(r"web at (http://127\.0\.0\.1:\d+)\n")
        port = int(url.rpartition(":")[2])
        status, body = await ask_web(port, "GET /")
        assert (status, "Interledger" in body) == (200, True)
        assert (await ask_web(port, "GET /ilp"))[0] == 200
        outgoing = {"url": f"{url}/ilp", "static_token": "t0ken"}
        async with open_plugin({"plugin": "http", "outgoing": outgoing}) as client:
            for data in (b"hello", b"", bytes(60_000)):
                assert await client.send_data(data) == data
        async with open_plugin({"plugin": "http", "outgoing": {**outgoing, "static_token": "wrong"}}) as client:
            with pytest.raises(NotAcceptedError):
                await client.send_data(b"hello")
        assert (await end_well(web)).endswith("closed after 3 packets\n")


@posix
async def test_wallet_is_paid_and_books_each_packet(tmp_path):
    async with example("router.py", 0) as router:
        port = await router.wait_for(r"127\.0\.0\.1:(\d+)")
        file = tmp_path / "shop.db"
        async with example("be_paid.py", f"btp+ws://:one@127.0.0.1:{port}", file, 0) as shop:
            url = await shop.wait_for(r"receiving at (\S+)\n")
            server = f"btp+ws://:two@127.0.0.1:{port}"
            shown = await run("pay_wallet.py", server, f"{url}17", 1000)
            assert shown == "1000 would deliver at least 990\n1 packets\nsent 1000, delivered 1000\n"
            await shop.wait_for("(1000 for invoice 17)\n")
            await end_well(shop)
        with sqlite3.connect(file) as books:
            assert books.execute("SELECT * FROM books").fetchall() == [("17", 1000)]
        books.close()
        await end_well(router)
