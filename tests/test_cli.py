"""The program as users run it: real processes, sockets and signals, and every kind of mistake."""

import json
import re
import shlex
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
import trio
import trustme
from support.programs import CANARY, PATIENCE, PROGRAM, assert_one_error, on_a_terminal, posix, run, serving

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.btp.options import BtpOptions, ListenerOptions
from trio_ledger_plugin.cli import main
from trio_ledger_plugin.cli.errors import TerminatedError, exit_code_of, one_line, unwrap_error
from trio_ledger_plugin.cli.replies import fulfill, make_question
from trio_ledger_plugin.codec import ilp
from trio_ledger_plugin.errors import NotAcceptedError, PluginFailedError

# demo


async def test_demo_does_all_of_it() -> None:
    """The first command that a newcomer runs would fail, or show wrong results."""
    code, stdout, stderr = await run("demo", FORCE_COLOR="1")
    assert (code, stderr) == (0, "")
    assert stdout.count("PASS  ") == 12
    assert "FAIL" not in stdout
    assert "PASS: 12 of 12 steps" in stdout
    for side in ("server", "client"):
        events = re.findall(rf"{side}: (connected|disconnected)", stdout)
        assert events == ["connected", "disconnected", "connected", "disconnected"]
    assert "\x1b" not in stdout
    assert not re.search("[0-9a-f]{32}", stdout)


async def test_demo_json() -> None:
    code, stdout, stderr = await run("demo", "--json")
    told = json.loads(stdout)
    assert (code, stderr, told["passed"]) == (0, "", True)
    assert all(step["passed"] for step in told["steps"])
    client, server = told["statistics"]["client"], told["statistics"]["server"]
    assert client["redials"] == 1
    assert client["responses_received"] == server["responses_sent"] > 200
    assert server["responses_received"] == client["responses_sent"] > 0
    assert client["calls_in_flight"] == server["calls_in_flight"] == 0
    assert [event["event"] for event in told["events"] if event["side"] == "client"].count("connected") == 2


async def test_demo_that_does_not_finish_says_so() -> None:
    """To a script that trusts the exit code, a broken installation would look like a working one."""
    code, stdout, stderr = await run("demo", "--deadline", "0.25")
    assert (code, stderr) == (1, "")
    assert "PASS  listen" in stdout
    assert re.search(r"FAIL  .*: not done when the 0\.25 s were over", stdout)
    assert "SKIP  close: not tried" in stdout
    assert re.search(r"FAIL: \d of 12 steps", stdout)


# serve and ping


@posix
@pytest.mark.parametrize(
    ("reply", "kind"), [("echo", "echo"), ("fulfill", "fulfill"), ("reject", f"reject {ilp.ErrorCode.UNREACHABLE}")]
)
async def test_ping_measures_what_serve_answers(reply: str, kind: str) -> None:
    """A user who checks a connection would get a wrong result."""
    async with serving("--reply", reply) as server:
        url = await server.wait_for(r"client's URL: (\S+)")
        code, stdout, stderr = await run("ping", url, "--count", "5", "--interval", "0", "--size", "500", "--json")
        assert (code, stderr) == (0, "")
        told = json.loads(stdout)
        assert (told["sent"], told["answered"], told["answers"]) == (5, 5, {kind: 5})
        assert 0 < told["min_ms"] <= told["median_ms"] <= told["p99_ms"] < 5000
        token = url.split("@")[0].rpartition(":")[2]
        assert len(token) == 32
        assert token not in stdout
        code, took = await server.end(signal.SIGINT)
        assert code == 0
        assert took < 1
        assert "connected\n" in server.output
        assert "closed; 5 requests, 5 answered, 0 refused" in server.output
        assert server.output.count(token) == 2
        assert "\x1b" not in server.output


@posix
async def test_serve_with_a_client_ends_within_a_second() -> None:
    """A service manager would have to kill it, and the client would notice only by a timeout."""
    async with serving(TRIO_LEDGER_PLUGIN_SECRET=CANARY) as server:
        address = await server.wait_for(r"listening on (\S+),")
        options = BtpOptions(server=address, btp_token=CANARY)
        async with open_plugin(options) as client:
            assert await client.send_data(b"hello") == b"hello"
            await client.send_money("250")
            await server.wait_for("(received money: 250)")
            code, took = await server.end(signal.SIGTERM)
            assert code == 0
            assert took < 1
            assert not client.is_connected()
        assert f"the client's URL: {address.replace('://', '://:***@')}" in server.output
        assert CANARY not in server.output


@posix
async def test_server_shows_a_whole_command_to_paste() -> None:
    """A newcomer would put the URL into it by hand, and get the quotes or the token wrong."""
    for mode, env in (((), {}), (("--accounts",), {}), ((), {"TRIO_LEDGER_PLUGIN_SECRET": CANARY}), (("--http",), {})):
        async with serving(*mode, **env) as server:
            command = shlex.split(await server.wait_for(r"try it: (.*) \(Ctrl-C ends the server\)"))
            if env:
                assert command.pop(0) == "TRIO_LEDGER_PLUGIN_SECRET=..."
            name, *args = command
            assert name == "trio-ledger-plugin"
            code, stdout, stderr = await run(*args, stdin=b"", **env)
            assert (code, stderr) == (0, ""), stdout
            assert CANARY not in server.output


@posix
@pytest.mark.parametrize("mode", [(), ("--accounts",), ("--http",)], ids=["btp", "accounts", "http"])
async def test_server_for_others_without_tls_says_so_after_its_first_line(mode: tuple[str, ...]) -> None:
    """Its user would not know that tokens can be read on the way; a program reads first where the server listens."""
    anywhere = "0.0.0.0"  # noqa: S104 (the mistake that the test is about)
    async with serving(*mode, "--host", anywhere, "--json", TRIO_LEDGER_PLUGIN_SECRET=CANARY) as server:
        await server.wait_for("(without TLS: whoever is on the way)")
        await server.end(signal.SIGTERM)
    first, second, *_ = map(json.loads, server.output.splitlines())
    assert first["event"] == "listening"
    assert (second["event"], second["level"]) == ("log", "warn")


@posix
async def test_wrong_token_is_refused_and_the_server_says_why() -> None:
    async with serving(TRIO_LEDGER_PLUGIN_SECRET=CANARY) as server:
        address = await server.wait_for(r"listening on (\S+),")
        code, stdout, stderr = await run("ping", address, TRIO_LEDGER_PLUGIN_SECRET=f"not-{CANARY}")
        assert (code, stdout) == (4, "")
        assert_one_error(stderr)
        await server.wait_for("(refused a connection from 127.0.0.1: invalid auth_token)")
        code, stdout, stderr = await run("ping", address, "--count", "2", TRIO_LEDGER_PLUGIN_SECRET=CANARY)
        assert (code, stderr) == (0, "")
        assert "2 sent, 2 answered (2 echo), 0 refused" in stdout
        assert re.search(r"round trip: min [\d.]+ ms, median [\d.]+ ms, p99 [\d.]+ ms", stdout)
        assert CANARY not in server.output


@posix
async def test_serve_and_ping_speak_tls_and_verify(tmp_path: Any) -> None:
    """A token would go to a man in the middle."""
    authority = trustme.CA()
    identity = authority.issue_cert("localhost")
    identity.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with serving("--host", "localhost", "--tls-cert", str(tmp_path / "server.pem")) as server:
        url = await server.wait_for(r"client's URL: (btp\+wss://\S+)")
        code, stdout, stderr = await run("ping", url, "--count", "1", SSL_CERT_FILE=str(tmp_path / "ca.pem"))
        assert (code, stderr) == (0, "")
        code, stdout, stderr = await run("ping", url, "--count", "1")
        assert (code, stdout) == (3, "")
        assert_one_error(stderr)
        assert "not trusted" in stderr
        assert "is the server running" not in stderr


async def test_ping_without_a_server_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, stdout, stderr = await run("ping", f"btp+ws://a:{CANARY}@127.0.0.1:{port}", "--timeout", "0.3", "--json")
    assert (code, stdout) == (3, "")
    assert_one_error(stderr)
    assert f"cannot connect to btp+ws://127.0.0.1:{port}" in stderr


async def test_serve_names_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, stdout, stderr = await run("serve", "--port", port)
    assert (code, stdout) == (1, "")
    assert_one_error(stderr)
    assert port in stderr
    assert "--port" in stderr


async def answer_never(data: bytes) -> NoReturn:
    await trio.sleep_forever()


async def answer_junk(data: bytes) -> bytes:
    return b"junk"


async def answer_with_a_wrong_preimage(data: bytes) -> bytes:
    return ilp.encode(ilp.Fulfill(bytes(32)))


async def answer_with_another_prepare(data: bytes) -> bytes:
    return ilp.encode(make_question(1, 10))


@pytest.mark.parametrize(
    ("handler", "count", "text"),
    [
        (None, "refused", "no data handler is registered"),
        (answer_never, "lost", "no answer"),
        (answer_junk, "answered wrongly", "not a packet type of ILPv4"),
        (answer_with_a_wrong_preimage, "answered wrongly", "without the right preimage"),
        (answer_with_another_prepare, "answered wrongly", "another Prepare"),
    ],
    ids=["no handler", "silence", "junk", "wrong preimage", "Prepare"],
)
async def test_ping_with_a_wrong_answer_fails(handler: Any, count: str, text: str) -> None:
    """A monitor would report a peer as healthy that answers no requests."""
    options = BtpOptions(listener=ListenerOptions(port=0, secret=CANARY), close_timeout=0.1)
    async with open_plugin(options, data_handler=handler) as server:
        url = server.address.replace("://", f"://x:{CANARY}@")
        args = ("ping", url, "--count", "2", "--interval", "0", "--timeout", "0.3")
        code, stdout, stderr = await run(*args)
        assert (code, stderr) == (1, "")
        assert stdout.startswith("2 sent, 0 answered, ")
        assert f"2 {count}" in stdout
        assert "round trip" not in stdout
        assert re.search(f"last error: .*{text}", stdout)
        assert CANARY not in stdout


async def test_ping_after_a_lost_link_says_what_a_person_can_use() -> None:
    """The user of a command cannot call connect()."""
    options = BtpOptions(listener=ListenerOptions(port=0, secret=CANARY), close_timeout=0.1)
    answered = trio.Event()

    async def answer(data: bytes) -> bytes:
        answered.set()
        return data

    async with open_plugin(options, data_handler=answer) as server:

        async def end() -> None:
            await answered.wait()
            await server.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            url = server.address.replace("://", f"://x:{CANARY}@")
            code, stdout, stderr = await run("ping", url, "--count", "3", "--interval", "0.5")
    assert (code, stderr) == (1, "")
    reason = "the peer closed the connection with 1000"
    assert stdout.splitlines()[-1] == f"last error: not connected; nothing was sent: {reason}"


@posix
@pytest.mark.parametrize(
    ("number", "wanted", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
async def test_interrupted_ping_prints_its_summary(number: int, wanted: int, said: str) -> None:
    """The results of an hour would be lost."""
    options = BtpOptions(listener=ListenerOptions(port=0, secret=CANARY))
    asked = trio.Event()

    async def answer(data: bytes) -> bytes:
        asked.set()
        return data

    async with open_plugin(options, data_handler=answer) as server, trio.open_nursery() as nursery:
        url = server.address.replace("://", f"://x:{CANARY}@")
        start = partial(
            trio.run_process, [*PROGRAM, "ping", url, "--interval", "60"], stdout=-1, stderr=-1, check=False
        )
        with trio.fail_after(PATIENCE):
            process = await nursery.start(start)
            await asked.wait()
            # Its answer may still be on the way; until it is there the wait is for nothing else.
            while server.statistics().responses_sent == 0:
                await trio.lowlevel.checkpoint()
            process.send_signal(number)
            stdout = b"".join([chunk async for chunk in process.stdout]).decode()
            stderr = b"".join([chunk async for chunk in process.stderr]).decode()
            assert await process.wait() == wanted
    assert stdout.startswith("1 sent, ")
    assert stderr.strip() == f"error: {said}"


@posix
async def test_only_terminals_get_changing_lines() -> None:
    """A log file would fill with control characters, or a terminal would show no progress."""
    async with serving() as server:
        url = await server.wait_for(r"client's URL: (\S+)")
        ping = ["ping", url, "--count", "3", "--interval", "0.05"]
        assert "\x1b" in await on_a_terminal(*ping)
        assert "\x1b" not in await on_a_terminal(*ping, TERM="dumb")
        _, stdout, _ = await run(*ping, FORCE_COLOR="1", TTY_COMPATIBLE="1", TERM="xterm")
        assert "\x1b" not in stdout
    shown = await on_a_terminal("serve", "--port", "0", until="waiting for a client, 0 requests/s")
    assert "\x1b" in shown


# Mistakes, and the program as a whole


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["pign"], "did you mean ping?"),
        ([f"btp+ws://a:{CANARY}@localhost"], "the commands are"),
        (["--nonsense"], "--nonsense"),
        (["ping"], "URL"),
        (["ping", f"ws://a:{CANARY}@localhost"], "must begin with 'btp+ws://'"),
        (["ping", f"btp+ws://a:{CANARY}@connector.example"], "--allow-insecure"),
        (["ping", "btp+ws://localhost"], "TRIO_LEDGER_PLUGIN_SECRET"),
        (["ping", "btp+ws://:x@localhost", CANARY], "1 argument too many"),
        (["ping", "--count", "0", "btp+ws://:x@localhost"], "--count"),
        (["ping", "--count", f"btp+ws://a:{CANARY}@h"], "--count"),
        (["ping", "--interval", "nan", "btp+ws://:x@localhost"], "NaN"),
        (["ping", "--timeout", "inf", "btp+ws://:x@localhost"], "--timeout"),
        (["ildcp"], "URL"),
        (["ildcp", f"btp+ws://a:{CANARY}@connector.example"], "--allow-insecure"),
        (["ildcp", "btp+ws://localhost"], "TRIO_LEDGER_PLUGIN_SECRET"),
        (["ildcp", "--timeout", "0", "btp+ws://:x@localhost"], "--timeout"),
        (["serve", "--port", "65536"], "--port"),
        (["serve", "--secret", ""], "leave it out"),
        (["serve", "--reply", "shout"], "--reply"),
        (["serve", "--tls-cert", "/nowhere/cert.pem"], "/nowhere/cert.pem"),
        (["serve", "--tls-cert", __file__], "not a certificate"),
        (["serve", "--tls-key", __file__], "--tls-cert"),
        (["serve", "--host", "a b", "--secret", CANARY], "--host: got 'a b'"),
        (["decode", "--as", "smtp", "00"], "--as"),
        (["demo", "--deadline", "0"], "--deadline"),
    ],
)
def test_mistake_is_one_line(args: list[str], text: str, capsys: Any, monkeypatch: Any) -> None:
    """After a typing mistake a user would get a traceback, or the token would be in the terminal's history."""
    monkeypatch.delenv("TRIO_LEDGER_PLUGIN_SECRET", raising=False)
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_one_error(err)
    assert text in err


@pytest.mark.parametrize("missing", ["click", "rich"])
async def test_without_the_extra_the_program_says_what_to_install(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from trio_ledger_plugin.cli import main; sys.exit(main())"
    done = await trio.run_process([sys.executable, "-c", code], capture_stderr=True, check=False)
    assert done.returncode == 2
    assert done.stderr.decode() == "error: the command line is an extra; in a clone: pip install '.[cli]'\n"


def test_ctrl_c_while_the_commands_are_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user who has mistyped a command is quick."""

    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> NoReturn:
            raise KeyboardInterrupt

    name = "trio_ledger_plugin.cli.program"
    monkeypatch.setitem(sys.modules, name, Interrupted(name))
    assert main(["ping"]) == 130
    assert capsys.readouterr() == ("", "\nerror: interrupted\n")


@pytest.mark.parametrize("args", [[], *([command, "-h"] for command in ("demo", "serve", "ping", "ildcp", "decode"))])
def test_help_has_examples_and_exit_codes(args: list[str], capsys: Any) -> None:
    assert main(args) == 0
    out = capsys.readouterr().out
    assert "Examples:\n" in out
    assert "  2    wrong arguments or options\n" in out


async def test_version() -> None:
    code, stdout, _ = await run("--version")
    assert (code, stdout) == (0, "trio-ledger-plugin 0.1.0\n")


def test_errors_in_groups_and_failures_keep_their_meaning() -> None:
    failure = PluginFailedError("the plugin failed")
    failure.__cause__ = NotAcceptedError("no")
    assert exit_code_of(unwrap_error(ExceptionGroup("", [ExceptionGroup("", [failure])]))) == 4
    interrupted = BaseExceptionGroup("", [failure, KeyboardInterrupt()])
    assert exit_code_of(unwrap_error(interrupted)) == 130
    terminated = BaseExceptionGroup("", [BaseExceptionGroup("", [failure, TerminatedError()])])
    assert exit_code_of(unwrap_error(terminated)) == 143
    bug = ValueError(f"\x1b btp+ws://a:{CANARY}@h\nmore")
    assert exit_code_of(bug) == 1
    assert one_line(bug) == (r"a bug in trio-ledger-plugin, please report it: ValueError: \x1b btp+ws://***@h more")


async def test_fulfill_rejects_what_it_cannot_fulfill() -> None:
    """A Fulfill for an expired packet, or without its preimage, costs its sender the money."""
    good = make_question(5, 10)
    answers = [
        await fulfill(data)
        for data in (
            ilp.encode(good),
            ilp.encode(ilp.Prepare(5, datetime.now(UTC) - timedelta(1), good.execution_condition, "peer.x", good.data)),
            ilp.encode(ilp.Prepare(5, good.expires_at, good.execution_condition, "peer.x", b"other")),
            ilp.encode(ilp.Fulfill(bytes(32))),
            b"\x00",
        )
    ]
    first, *others = map(ilp.decode, answers)
    assert isinstance(first, ilp.Fulfill)
    assert ilp.fulfills(first.fulfillment, good.execution_condition)
    assert [other.code for other in others if isinstance(other, ilp.Reject)] == ["R00", "F05", "F00", "F01"]


async def test_readme_is_correct() -> None:
    """The first lines that a newcomer copies would not work."""
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    program = readme.partition("```python\n")[2].partition("```")[0]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process([sys.executable, "-W", "error", "-c", program], capture_stdout=True)
    assert done.stdout.decode().splitlines()[:3] == ["b'HELLO'", "received 250", "Connected()"]
    for heading, end in (("## Quick start", "trio-ledger-plugin demo\n"), ("## Tests", "python -m pytest -n 3\n")):
        first_block = readme.partition(heading)[2].split("```")[1]
        assert first_block.startswith("sh\n")
        assert first_block.count("\n") == 2
        assert first_block.endswith(end)
