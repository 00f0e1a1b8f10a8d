"""Runs the program as a process, as users do."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import pytest
import trio

CANARY = "canary7f3a"
PROGRAM = [sys.executable, "-m", "trio_ledger_plugin"]
PATIENCE = 25.0

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and terminals")


def environment(**more: str) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if not name.startswith("TRIO_LEDGER")}, **more}


async def run(*args: str, stdin: bytes = b"", **env: str) -> tuple[int, str, str]:
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [*PROGRAM, *args],
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(**env),
        )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def assert_one_error(stderr: str) -> None:
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert CANARY not in stderr


class Running:
    """A process that runs until a signal ends it, and whose output is read as it comes."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.output = ""

    async def wait_for(self, pattern: str) -> str:
        assert self.process.stdout is not None
        while not (found := re.search(pattern, self.output)):
            chunk = await self.process.stdout.receive_some()
            assert chunk, f"no {pattern!r} in {self.output!r}"
            self.output += chunk.decode()
        return found[1]

    async def end(self, number: int) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds that it took."""
        assert self.process.stdout is not None
        began = trio.current_time()
        self.process.send_signal(number)
        async for chunk in self.process.stdout:
            self.output += chunk.decode()
        return await self.process.wait(), trio.current_time() - began


@asynccontextmanager
async def running(*command: str, **env: str) -> AsyncIterator[Running]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            start = partial(
                trio.run_process,
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                env=environment(**env),
            )
            yield Running(await nursery.start(start))
            nursery.cancel_scope.cancel()


def serving(*args: str, **env: str) -> AbstractAsyncContextManager[Running]:
    return running(*PROGRAM, "serve", "--port", "0", *args, **env)


async def on_a_terminal(*args: str, until: str | None = None, **env: str) -> str:
    """Run the program on a pseudo-terminal, until it ends or has shown a text; return what it wrote."""
    ours, theirs = os.openpty()
    process = await trio.lowlevel.open_process(
        [*PROGRAM, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(**{"TERM": "xterm", **env})
    )
    os.close(theirs)
    shown = b""
    async with trio.lowlevel.FdStream(ours) as terminal:
        with trio.fail_after(PATIENCE):
            try:
                while until is None or until.encode() not in shown:
                    shown += await terminal.receive_some()
            except trio.BrokenResourceError:
                pass  # how Linux says that the other end of a terminal is closed
            if until is not None:
                process.terminate()
            assert await process.wait() == 0
    return shown.decode()
