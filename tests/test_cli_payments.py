"""``pay``, ``quote`` and ``receive`` as processes, over a server of many accounts."""

import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from support.ports import free_port
from support.programs import CANARY, PROGRAM, assert_one_error, posix, run, running

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.cli import main
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.stores import MemoryStore
from trio_ledger_plugin.stream import Credentials, ReceivedPacket, SpspEndpoint, crypto, open_receiver

# Nothing listens there; a command that connects first would fail for that reason.
NOBODY = f"btp+ws://:{CANARY}@127.0.0.1:1"
INFO = {"client_address": "test.host", "asset_scale": 9, "asset_code": "XRP"}


@asynccontextmanager
async def routing() -> AsyncIterator[str]:
    async def forward(data: bytes) -> bytes:
        packet = ilp.decode(data)
        if isinstance(packet, ilp.Prepare) and packet.destination.startswith("test.host.nobody"):
            return ilp.encode(ilp.Reject("F02", "test.host", "no such account"))
        return await plugin.send_data(data)

    opts = {"plugin": "btp-accounts", "port": 0, "debug_host_ildcp_info": INFO}
    async with open_plugin(opts, PluginServices(store=MemoryStore()), data_handler=forward) as plugin:
        yield plugin.address.replace("://", f"://%s:{CANARY}@")


@posix
async def test_receiver_shows_an_outage_once_and_its_end() -> None:
    """Each of ten tries a second was a line, and nothing said that the server was there again."""
    port = str(free_port())
    server = ("serve", "--accounts", "--port", port)
    receive = ("receive", "--port", "0", "--server", f"btp+ws://:{CANARY}@127.0.0.1:{port}")
    async with running(*PROGRAM, *receive) as receiver:
        await receiver.wait_for("(trying again)")
        async with running(*PROGRAM, *server) as first:
            await receiver.wait_for("(receiving at)")
            await first.end(signal.SIGTERM)
        await receiver.wait_for("(disconnected: )")
        async with running(*PROGRAM, *server) as second:
            await receiver.wait_for(r"(\d  connected\n)")
            await second.end(signal.SIGTERM)
        code, _ = await receiver.end(signal.SIGTERM)
    assert code == 0
    assert ", try " not in receiver.output
    assert receiver.output.count("  connected\n") == 1


@posix
@pytest.mark.parametrize("as_json", [False, True])
async def test_payment_from_one_program_to_another(as_json: bool) -> None:
    async with routing() as url:
        more = ["--json"] if as_json else []
        async with running(*PROGRAM, "receive", "--port", "0", "--server", url % "payee", *more) as receiver:
            endpoint = await receiver.wait_for(r"(http://127\.0\.0\.1:\d+/)")
            arguments = [endpoint, "--server", url % "payer", *more]
            code, stdout, stderr = await run("quote", *arguments, "--deliver", "5000")
            assert (code, stderr) == (0, "")
            if as_json:
                told = json.loads(stdout)
                assert (told["deliver"], told["rate"], told["asset"]) == (5000, 1, {"code": "XRP", "scale": 9})
            else:
                assert "delivers at least 5,000 (0.000005000 XRP)" in stdout
            code, stdout, stderr = await run("pay", *arguments, "--send", "5000")
            assert (code, stderr) == (0, "")
            if as_json:
                told = json.loads(stdout)
                assert (told["sent"], told["delivered"], told["packets"]) == (5000, 5000, 1)
            else:
                assert "sent 5,000, delivered 5,000 (0.000005000 XRP)" in stdout
            assert CANARY not in stdout
            await receiver.wait_for(
                r'("total": 5000)' if as_json else r"(received 5,000 \(0.000005000 XRP\) in 1 packet\b)"
            )
            code, _ = await receiver.end(signal.SIGTERM)
            assert code == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["pay", "$wallet.example"], 2, "give either --send or --deliver"),
        (["pay", "$wallet.example", "--send", "1", "--deliver", "1"], 2, "give either --send or --deliver"),
        (["pay", "$wallet.example", "--send", "0"], 2, "--send"),
        (["pay", "wallet.example", "--send", "1", "--server", NOBODY], 2, "give a payment pointer"),
        (["quote", "http://wallet.example", "--send", "1", "--server", NOBODY], 2, "need https://"),
        (["pay", "$wallet.example", "--send", "1", "--slippage", "much"], 2, "--slippage is not a number"),
        (["pay", "$wallet.example", "--send", "1", "--slippage", "1"], 2, "--slippage must be less than 1"),
        (["quote", "$wallet.example", "--send", "1", "--min-rate", "NaN"], 2, "--min-rate must be 0 or more"),
        (["pay", "$wallet.example", "--send", "1", "--server", "btp+ws://localhost"], 2, "no token"),
    ],
)
async def test_mistake_is_one_line(args: list[str], code: int, said: str) -> None:
    done, stdout, stderr = await run(*args)
    assert (done, stdout) == (code, "")
    assert_one_error(stderr)
    assert said in stderr


@pytest.mark.parametrize("args", [["pay", "$wallet.example", "--send", "1"], ["receive"]], ids=str)
def test_missing_extra_is_said_before_connecting(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crypto, "is_installed", lambda: False)
    assert main([*args, "--server", NOBODY]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_error(err)
    assert "pip install '.[stream]'" in err


async def test_bad_pointers_and_endpoints_are_one_line() -> None:
    async with routing() as url:
        for to, code, said in (
            (
                "wallet.example/alice",
                2,
                "wallet.example/alice, or an https URL without @",
            ),
            ("$wallet.example:80/alice", 2, "no port"),
            ("http://wallet.example/alice", 2, "need https://"),
            ("http://127.0.0.1:1/", 3, "cannot connect"),
        ):
            done, stdout, stderr = await run("pay", to, "--send", "1", "--server", url % "payer")
            assert (done, stdout) == (code, ""), stderr
            assert_one_error(stderr)
            assert said in stderr


async def test_receiver_without_a_server_warns_once_and_gives_advice() -> None:
    code, stdout, stderr = await run("receive", "--server", NOBODY, "--timeout", "0.5")
    assert code == 3
    (warning,) = stdout.splitlines()
    assert warning.endswith("; trying again")
    assert_one_error(stderr)
    assert "is the server running" in stderr


@posix
async def test_receiver_names_a_port_in_use() -> None:
    async with routing() as url:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = str(listener.socket.getsockname()[1])
        code, _, stderr = await run("receive", "--port", port, "--server", url % "payee")
        await listener.aclose()
    assert code == 1
    assert_one_error(stderr)
    assert "--port" in stderr


async def test_failed_payment_says_what_was_delivered() -> None:
    """The receiver's account does not exist: the error has the connector's word, and the amounts."""
    async with routing() as url, trio.open_nursery() as nursery:
        server = partial(_answer, Credentials("test.host.nobody.x", bytes(32)))
        (listener,) = await nursery.start(partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
        to = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        code, _, stderr = await run("pay", to, "--send", "1000", "--server", url % "payer")
        nursery.cancel_scope.cancel()
    assert code == 1
    assert_one_error(stderr)
    assert stderr == "error: F02 from test.host: no such account; sent 0, delivered 0\n"


async def _answer(credentials: Credentials, stream: Any) -> None:
    await stream.receive_some(10_000)
    secret = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    body = json.dumps({"destination_account": credentials.destination_account, "shared_secret": secret}).encode()
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    await stream.aclose()


@posix
@pytest.mark.parametrize("as_json", [False, True])
async def test_interrupted_payment_says_what_was_delivered(as_json: bool) -> None:
    """The user has to know what is gone; the packet in flight is named as well."""
    waiting = trio.Event()

    async def decide(packet: ReceivedPacket) -> None:
        waiting.set()
        await trio.sleep(60)

    async with (
        routing() as url,
        open_plugin({"plugin": "btp", "server": url % "payee", "close_timeout": 0.1}) as plugin,
        open_receiver(plugin, secret=bytes(32), on_packet=decide) as receiver,
        trio.open_nursery() as nursery,
    ):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, SpspEndpoint(receiver).serve_stream, [listener])
        to = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        command = [*PROGRAM, "pay", to, "--send", "1000", "--server", url % "payer", *(["--json"] if as_json else [])]
        async with running(*command) as payer:
            await waiting.wait()
            code, seconds = await payer.end(signal.SIGINT)
        nursery.cancel_scope.cancel()
    assert code == 130
    assert seconds < 3
    *lines, error = filter(None, payer.output.splitlines())
    assert error == "error: interrupted"
    if not as_json:
        assert lines == ["sent 0, delivered 0", "up to 1,000 more may have been paid, in packets without an answer"]
        return
    (told,) = lines
    assert {name: json.loads(told)[name] for name in ("sent", "delivered", "unanswered")} == {
        "sent": 0,
        "delivered": 0,
        "unanswered": 1000,
    }
