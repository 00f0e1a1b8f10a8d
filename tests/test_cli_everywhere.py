"""What is common to all commands: Ctrl-C, exit codes, JSON, colours, small terminals, completion, and no tokens."""

import fcntl
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import click
import pytest
import trio
from support.pages import ROOT
from support.programs import (
    CANARY,
    PATIENCE,
    PROGRAM,
    assert_one_error,
    environment,
    on_a_terminal,
    posix,
    run,
    serving,
)
from support.terminals import SHELL

from trio_ledger_plugin import PluginServices, open_plugin
from trio_ledger_plugin.btp.options import BtpOptions
from trio_ledger_plugin.cli import main
from trio_ledger_plugin.cli.errors import Exit
from trio_ledger_plugin.cli.program import root
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.testing.conformance import CHECKS

pytestmark = pytest.mark.slow

FULFILL = "0d21" + "00" * 33
PAGE = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
COMMANDS = {name: command for name, command in root.commands.items() if not isinstance(command, click.Group)}
COMMANDS |= {
    f"{name} {inner}": command
    for name, group in root.commands.items()
    if isinstance(group, click.Group)
    for inner, command in group.commands.items()
}

# Ctrl-C and SIGTERM. Ctrl-C reaches every process of a terminal, so these tests send SIGINT to a process group.


@asynccontextmanager
async def running(*args: str, **env: str) -> AsyncIterator[trio.Process]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(
                    trio.run_process,
                    [*PROGRAM, *args],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    check=False,
                    start_new_session=True,
                    env=environment(**env),
                )
            )
            yield process
            nursery.cancel_scope.cancel()


async def interrupt(process: trio.Process, then: bytes = b"", number: int = signal.SIGINT) -> str:
    """Press Ctrl-C, and perhaps more keys, or send SIGTERM to the program only.

    Returns the program's last line, and its exit code.
    """
    began = trio.current_time()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    if then:
        assert process.stdin is not None
        with suppress(trio.BrokenResourceError):
            await process.stdin.send_all(then)
    assert process.stdout is not None
    said = b"".join([chunk async for chunk in process.stdout]).decode()
    code = await process.wait()
    # Not from another process of the command either.
    assert "Traceback" not in said
    # A second; this machine may be busy with other tests.
    assert trio.current_time() - began < 2
    return f"{said.strip().splitlines()[-1]} ({code})"


INTERRUPTED = f"error: interrupted ({Exit.INTERRUPTED})"
TERMINATED = f"error: ended by SIGTERM ({Exit.TERMINATED})"


@posix
@pytest.mark.parametrize("command", ["ping", "ildcp"])
@pytest.mark.parametrize("answers", [False, True], ids=["while it connects", "while it waits for an answer"])
async def test_ctrl_c_ends_commands_that_wait_for_a_peer(command: str, answers: bool) -> None:
    reached = trio.Event()

    async def never(data: bytes) -> bytes:
        reached.set()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async def accept(stream: trio.SocketStream) -> None:
        reached.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        if answers:
            listener = {"listener": {"port": 0, "secret": CANARY}, "close_timeout": 0.01}
            async with open_plugin(listener, data_handler=never) as server:
                url = server.address.replace("://", f"://:{CANARY}@")
                async with running(command, url) as process:
                    await reached.wait()
                    assert await interrupt(process) == INTERRUPTED
        else:
            listeners = await nursery.start(partial(trio.serve_tcp, accept, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            async with running(command, f"btp+ws://:{CANARY}@127.0.0.1:{port}") as process:
                await reached.wait()
                assert await interrupt(process) == INTERRUPTED
        nursery.cancel_scope.cancel()


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_a_command_that_reads_stdin(number: int) -> None:
    async with running("decode", "-") as process:
        assert process.stdin is not None
        # More than a pipe holds: it has been read from when this returns.
        await process.stdin.send_all(b"00" * 200_000)
        # A signal that comes just before a read begins is heard when the read ends.
        assert await interrupt(process, b"00", number) == (INTERRUPTED if number == signal.SIGINT else TERMINATED)


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("args", [["demo"], ["conformance", "btp"], ["bench"]], ids=str)
async def test_signal_ends_long_commands_and_their_processes(args: list[str], number: int) -> None:
    """Invisible processes would go on after the user has closed the window, and use the CPU."""
    async with running(*args) as process:
        assert process.stdout is not None
        await process.stdout.receive_some()
        assert await interrupt(process, number=number) == (INTERRUPTED if number == signal.SIGINT else TERMINATED)
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)


@posix
@pytest.mark.parametrize("command", ["ping", "ildcp"])
async def test_sigterm_ends_a_background_command(command: str) -> None:
    """A shell script starts it with SIGINT ignored; ``kill`` would do nothing, or end it without its summary."""
    listener = {"listener": {"port": 0, "secret": CANARY}, "close_timeout": 0.01}
    reached = trio.Event()

    async def never(data: bytes) -> bytes:
        reached.set()
        await trio.sleep_forever()
        raise AssertionError("unreachable")

    async with open_plugin(listener, data_handler=never) as server:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            async with running(command, server.address.replace("://", f"://:{CANARY}@")) as process:
                await reached.wait()
                assert await interrupt(process, number=signal.SIGTERM) == TERMINATED
        finally:
            signal.signal(signal.SIGINT, before)


@posix
@pytest.mark.parametrize("mode", [[], ["--accounts"], ["--json"], ["--accounts", "--json"]], ids=str)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_server_exits_with_success(mode: list[str], number: int) -> None:
    """A service manager would report every restart as a failure."""
    async with serving(*mode) as server:
        await server.wait_for("(listening)")
        code, took = await server.end(number)
        assert (code, took < 2) == (Exit.OK, True)
        assert "closed" in server.output.splitlines()[-1]


# Exit codes


LISTED = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)


def codes_in_help(capsys: Any, *args: str) -> dict[int, str]:
    assert main([*args, "--help"]) == 0
    return {int(code): text for code, text in re.findall(r"^    (\d+) +(.*)$", capsys.readouterr().out, re.MULTILINE)}


def test_page_lists_the_programs_exit_codes(capsys: Any) -> None:
    """A script would confuse one failure with another."""
    listed = {int(code): text for code, text, _ in LISTED}
    assert set(listed) == set(Exit)
    assert listed == codes_in_help(capsys)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_page_list_the_commands_exit_codes(command: str, capsys: Any) -> None:
    """The help of ``ping`` would mention packets that cannot be decoded."""
    has = {}
    for code, text, which in LISTED:
        named = f"`{command.partition(' ')[0]}`" in which
        if which == "all" or named != which.startswith("all but "):
            has[int(code)] = text
    assert codes_in_help(capsys, *command.split()) == has
    section = next(part for part in PAGE.split("\n## ") if part.startswith(f"`{command}"))
    missing = [code for code in has if not re.search(rf"\b{code}\b", section)]
    assert missing == []


def test_help_explains_money_levels(capsys: Any) -> None:
    """A newcomer has not read the pages about money: the words come only after an explanation."""
    for command in COMMANDS:
        assert main([*command.split(), "--help"]) == 0
        assert re.findall(r"(?<!\()(?:PLAIN|KEYED)", capsys.readouterr().out) == []
    assert re.findall(r"(?<!\()(?<!\(\[)(?:PLAIN|KEYED)", PAGE) == []


def test_ildcp_examples_show_a_server_that_answers(capsys: Any) -> None:
    """The first command that a newcomer copies would fail."""
    assert main(["ildcp", "--help"]) == 0
    started, asked = re.findall(r"^    trio-ledger-plugin (.*?)  ", capsys.readouterr().out, re.MULTILINE)
    assert started == "serve --accounts"
    # And a server that is started so listens there.
    port = next(param.default for param in root.commands["serve"].params if param.name == "port")
    assert asked == f"ildcp btp+ws://:TOKEN@localhost:{port}"


# JSON


def documented(command: str) -> set[str]:
    """Return the words in backticks in a command's section, and in the common one."""
    sections = [section for section in PAGE.split("\n## ") if section.startswith((f"`{command}", "Of all"))]
    assert len(sections) > 1, f"{command} has no section"
    return {name for section in sections for quoted in re.findall("`(.*?)`", section) for name in quoted.split()}


def names_in(told: object) -> Iterator[str]:
    if isinstance(told, dict):
        for name, value in told.items():
            yield name
            yield from names_in(value)
    elif isinstance(told, list):
        for value in told:
            yield from names_in(value)


def assert_documented(command: str, told: object, *without: str) -> None:
    """Check that each field is on the page; the contents of the fields in ``without`` are described elsewhere."""
    assert isinstance(told, dict)
    missing = set(names_in({key: told[key] for key in told if key not in without})) - documented(command)
    assert not missing
    assert set(without) <= set(told)
    assert set(without) <= documented(command)


def test_every_command_has_json_and_a_section() -> None:
    for name, command in COMMANDS.items():
        assert any("--json" in param.opts for param in command.params), name
        assert documented(name)


@posix
async def test_json_fields_are_on_the_page(tmp_path: Any) -> None:
    """Authors of scripts would have to guess, again after each release."""
    store = tmp_path / "wallet.db"
    async with open_sqlite_store(store) as services, open_plugin({"plugin": "loopback"}) as bob:

        async def take(amount: str) -> None:
            pass

        bob.register_money_handler(take)
        async with open_plugin({"plugin": "loopback"}, PluginServices(store=services)) as alice:
            await alice.send_money(5)

    async def told(*args: str) -> Any:
        code, stdout, stderr = await run(*args, "--json")
        assert (code, stderr) == (0, "")
        return json.loads(stdout)

    assert_documented("demo", await told("demo"), "statistics")
    decoded = await told("decode", FULFILL)
    # The other fields are the packet's, under the specifications' names.
    assert {"protocol", "packet"} <= set(decoded) & documented("decode")
    assert_documented("transfers", await told("transfers", str(store)))
    assert_documented("conformance", await told("conformance", "loopback", "--check", CHECKS[0].name))


@posix
async def test_serve_json() -> None:
    """A supervisor would have to parse prose, or would record a token."""
    async with serving("--json", TRIO_LEDGER_PLUGIN_SECRET=CANARY) as server:
        address = await server.wait_for(r'"address": "(\S+?)"')
        assert (await run("ping", address, TRIO_LEDGER_PLUGIN_SECRET=f"not-{CANARY}"))[0] == Exit.REFUSED
        async with open_plugin(BtpOptions(server=address, btp_token=CANARY)) as client:
            await client.send_money("250")
            await server.wait_for('(money)", "amount": "250", "key": null, "level": "plain"')
        await server.wait_for('"event": "(disconnected)"')
        await server.end(signal.SIGINT)
    lines = [json.loads(line) for line in server.output.splitlines()]
    for line in lines:
        assert {line["event"], *line} <= documented("serve`")
        # A supervisor that collects lines later would not know when anything happened.
        now = datetime.now(UTC)
        assert timedelta(0) <= now - datetime.fromisoformat(line.pop("time")) < timedelta(seconds=30)
    assert [line["event"] for line in lines] == [
        "listening",
        "log",
        "connected",
        "money",
        "log",
        "disconnected",
        "closed",
    ]
    assert lines[0] == {"event": "listening", "address": address, "url": address.replace("://", "://:***@")}
    assert lines[1]["level"] == "warn"
    assert lines[-1] == {"event": "closed", "requests_received": 1, "responses_sent": 1, "errors_sent": 0}
    assert CANARY not in server.output


async def test_json_error_leaves_stdout_empty() -> None:
    code, stdout, stderr = await run("ildcp", f"btp+ws://:{CANARY}@127.0.0.1:1", "--timeout", "0.2", "--json")
    assert (code, stdout) == (Exit.UNREACHABLE, "")
    assert_one_error(stderr)


# Terminals


@posix
async def test_only_terminals_get_colours() -> None:
    """Output would be unreadable for users who cannot see colours, or in files."""
    coloured = re.compile("\x1b\\[[0-9;]*3[0-7]m")
    args = ["conformance", "loopback", "--check", CHECKS[0].name]
    assert coloured.search(await on_a_terminal(*args))
    assert not coloured.search(await on_a_terminal(*args, NO_COLOR="1"))
    assert "\x1b" not in (await run(*args, FORCE_COLOR="1"))[1]


@posix
async def test_bench_shows_progress_and_saves_documented_fields(tmp_path: Any) -> None:
    """A minute without output looks like a hang."""
    saved = tmp_path / "rates.json"
    shown = await on_a_terminal("bench", "--rounds", "1", "--scale", "0.001", "--save", str(saved))
    assert "measuring" in shown
    assert "8/8" in shown
    bench = json.loads(saved.read_text())
    assert_documented("bench", {"summary": [{**row, "rates": 0, "ratios": 0} for row in bench["summary"]]})
    assert_documented("bench", {"results": [dict.fromkeys(result) for result in bench["results"]]})


@posix
@pytest.mark.parametrize(
    ("args", "code"), [("decode " + FULFILL, 0), ("decode zz", 5), ("options btp", 0), ("demo", 0), ("store check", 2)]
)
async def test_commands_run_with_stdout_closed(args: str, code: int) -> None:
    """Started from a service or a cron job without stdout, a command would report a bug of its own."""
    shell = ["sh", "-c", f'exec "$@" {args} >&-', "sh", *PROGRAM]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(shell, capture_stderr=True, check=False, env=environment())
    stderr = done.stderr.decode()
    assert (done.returncode, stderr.count("\n")) == (code, int(code != 0))
    assert "bug" not in stderr


@posix
@pytest.mark.parametrize("mode", [[], ["--accounts"]], ids=["one client", "many"])
@pytest.mark.parametrize(("columns", "lines"), [(100, 30), (32, 24), (20, 5)])
async def test_changing_lines_fit_in_a_small_terminal(mode: list[str], columns: int, lines: int) -> None:
    """Lines that wrap are never overwritten: the terminal would fill with them twice a second."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    command = [*PROGRAM, "serve", "--port", "0", *mode]
    env = {name: value for name, value in environment(TERM="xterm").items() if name not in ("COLUMNS", "LINES")}
    process = await trio.lowlevel.open_process(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    async with trio.lowlevel.FdStream(ours) as terminal:
        with trio.fail_after(PATIENCE):
            try:
                # Twice, so that the first has been overwritten.
                while shown.count(b"\x1b[2K") < 2:
                    shown += await terminal.receive_some()
                process.terminate()
                while True:
                    shown += await terminal.receive_some()
            except trio.BrokenResourceError:
                pass  # how Linux says that the other end of a terminal is closed
            assert await process.wait() == 0
    changing = shown.decode().partition("\x1b[?25l")[2].partition("\x1b[?25h")[0]
    for line in re.split("\r\n|\r|\n", re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", changing)):
        assert len(line) <= columns
    frames = re.split("\x1b\\[2K", changing)
    assert all(frame.count("\n") < lines for frame in frames)


@posix
@pytest.mark.parametrize("mode", [(), ("--accounts",)], ids=["one client", "accounts"])
async def test_server_in_the_background_changes_no_lines(mode: tuple[str, ...]) -> None:
    """It would overwrite what its user types at the shell's prompt."""
    ours, theirs = os.openpty()
    shell = await trio.lowlevel.open_process(
        [sys.executable, "-c", SHELL], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(TERM="xterm")
    )
    os.close(theirs)
    shown = ""

    async def read_until(pattern: str) -> None:
        nonlocal shown
        while not re.search(pattern, shown):
            shown += (await terminal.receive_some()).decode()

    async with trio.lowlevel.FdStream(ours) as terminal:
        try:
            with trio.fail_after(PATIENCE):
                await terminal.send_all(f"{shlex.join([*PROGRAM, 'serve', '--port', '0', *mode])} &\n".encode())
                await read_until("Ctrl-C ends the server")
                with trio.move_on_after(1.5):
                    await read_until("\x1b\\[2K")
                # Where lines change, the cursor is hidden first.
                assert "\x1b[?25l" not in shown
                await terminal.send_all(b"fg\n")
                await read_until(r"\x1b\[2K")
        finally:
            for group in {shell.pid, os.tcgetpgrp(ours)}:
                os.killpg(group, signal.SIGKILL)
            await shell.wait()


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_completion_knows_commands_and_choices(shell: str) -> None:
    """The tab key would do nothing, or show a traceback."""
    assert f"_TRIO_LEDGER_PLUGIN_COMPLETE={shell}_source trio-ledger-plugin" in PAGE

    async def complete(*words: str) -> set[str]:
        line = " ".join(("trio-ledger-plugin", *words))
        at = words[-1] if shell == "fish" else str(len(words))
        asked = {"_TRIO_LEDGER_PLUGIN_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": at}
        code, stdout, stderr = await run(stdin=b"", **asked)
        assert (code, stderr) == (0, "")
        lines = stdout.splitlines()
        if shell == "zsh":
            return set(lines[1::3])
        return {line.partition(",")[2].partition("\t")[0] for line in lines}

    assert await complete("pi") == {"ping"}
    assert await complete("serve", "--reply", "e") == {"echo"}
    if shell != "bash":
        return
    assert await complete("ping", "--al") == {"--allow-insecure"}
    # What is wrong already is completed as far as it goes, and never repeated.
    assert await complete(CANARY, "more", "--ver") == {"--version"}
    assert await complete("ping", "url", CANARY, "--js") == {"--json"}


SCRIPTS = {
    "bash": 'eval "$(_TRIO_LEDGER_PLUGIN_COMPLETE=bash_source trio-ledger-plugin)"; '
    "COMP_WORDS=(trio-ledger-plugin pi); COMP_CWORD=1; _trio_ledger_plugin_completion trio-ledger-plugin; "
    'echo "${COMPREPLY[@]}"',
    # Completion of zsh's own runs in its line editor only: here its functions are watched.
    "zsh": 'compdef() { echo "$@" > /dev/null }; _describe() { echo ${(P)3} }; compstate=(); compadd() { : }; '
    'eval "$(_TRIO_LEDGER_PLUGIN_COMPLETE=zsh_source trio-ledger-plugin)"; '
    "words=(trio-ledger-plugin pi); CURRENT=2; _trio_ledger_plugin_completion",
    "fish": "_TRIO_LEDGER_PLUGIN_COMPLETE=fish_source trio-ledger-plugin | source; complete -C 'trio-ledger-plugin pi'",
}


@pytest.mark.parametrize("shell", SCRIPTS)
async def test_shell_completes_with_the_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    quiet = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [shell, *quiet, "-c", SCRIPTS[shell]], capture_stdout=True, check=False, env=environment(PATH=path)
        )
    assert done.stdout.decode().split()[:1] in (["ping"], ["ping:How"])
