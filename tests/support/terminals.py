"""Shells in pseudo-terminals that run the commands of a documentation page."""

import os
import re
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from support.pages import ROOT
from support.programs import environment

PROMPT = re.compile(r"(\w*)\$(?: (.*))?")
# What is typed to a program: an amount, or a key together with Ctrl, which the terminal shows as ^ and its letter.
AMOUNT, CONTROL = re.compile(r"\d+"), re.compile(r"\^([A-Z\\])(.*)")
# Becomes the shell of a terminal: its session's leader, with job control. What is killed in it leaves no core file.
SHELL = """
import os, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.login_tty(0)
os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
"""
COLUMNS = 120
PATIENCE = 15.0


def canonical(text: str) -> str:
    """Return text with what differs from run to run made the same: times, keys, references, folders, durations."""
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ", "(time)", text)
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "(key)", text)
    text = re.sub(r"(reference) [0-9a-f]{12}\b", r"\1 (random)", text)
    text = re.sub(r'(File ")[^"]*/', r"\1", text)
    text = re.sub(r"(\d+ passed in) [\d.]+s", r"\1 (seconds)", text)
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def find_modules(folder: Path) -> str:
    """Return where Python finds a page's files, and the examples that the page shows."""
    return os.pathsep.join([str(folder), str(ROOT / "docs" / "examples")])


class Terminal:
    """A shell in a terminal of its own.

    Args:
        end: Our end of the pseudo-terminal.
        prompt: What the shell shows when it waits for a command.
    """

    def __init__(self, end: trio.lowlevel.FdStream, prompt: str) -> None:
        self._end = end
        self._prompt = prompt
        self._screen = ""
        self._shown: list[str] = []

    async def play(self, lines: list[str]) -> None:
        """Type what a page shows as typed, and see that everything looks as the page has it.

        Lines that begin with all that the terminal shows already, and have more, go on from there.
        """
        goes_on = len(lines) > len(self._shown) and lines[: len(self._shown)] == self._shown
        if not self._shown or not goes_on or self._waits_for_command():
            await self._interrupt()
            self._screen, self._shown = self._prompt, []
        for number, line in enumerate(lines[len(self._shown) :], len(self._shown) + 1):
            if found := PROMPT.fullmatch(line):
                await self._until([*lines[: number - 1], self._prompt], is_prompt=True)
                if not found[2]:
                    continue
                await self._end.send_all(found[2].encode() + b"\n")
            elif found := CONTROL.fullmatch(line):
                await self._end.send_all(bytes([ord(found[1]) - 64]))
            elif AMOUNT.fullmatch(line):
                await self._end.send_all(line.encode() + b"\n")
            await self._until(lines[:number])
        self._shown = lines

    def _waits_for_command(self) -> bool:
        return self._screen.endswith(f"\n{self._prompt}") or self._screen == self._prompt

    async def _interrupt(self) -> None:
        """Get the prompt, by Ctrl-C if need be."""
        if self._shown and not self._waits_for_command():
            await self._end.send_all(b"\x03")
        with trio.fail_after(PATIENCE):
            while not self._screen.endswith(self._prompt):
                await self._read()

    async def _until(self, lines: list[str], *, is_prompt: bool = False) -> None:
        """Wait until the screen begins with these lines: whole ones, but for a prompt."""
        wanted = canonical("\n".join(lines))
        with trio.move_on_after(PATIENCE) as waiting:
            while True:
                seen = self._screen if is_prompt else self._screen[: self._screen.rfind("\n") + 1]
                if (canonical(seen) + "\n").startswith(wanted + "\n"):
                    return
                await self._read()
        shown = canonical(self._screen)
        assert not waiting.cancelled_caught, f"the page has:\n{wanted}\n\nthe terminal shows:\n{shown}"

    async def _read(self) -> None:
        self._screen += (await self._end.receive_some()).decode().replace("\r", "")


@asynccontextmanager
async def open_terminal(name: str, folder: Path) -> AsyncIterator[Terminal]:
    """Open a terminal whose prompt is a name and a dollar sign; its processes are killed at the end."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (40, COLUMNS))
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    more = {
        "PATH": path,
        "PS1": f"{name}$ ",
        "TERM": "dumb",
        "PYTHONWARNINGS": "error",
        "PYTHONPATH": find_modules(folder),
    }
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", SHELL],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=environment(**more),
    )
    os.close(theirs)
    async with trio.lowlevel.FdStream(ours) as end:
        try:
            yield Terminal(end, f"{name}$ ")
        finally:
            for group in {process.pid, os.tcgetpgrp(ours)}:
                os.killpg(group, signal.SIGKILL)
            with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                await process.wait()
