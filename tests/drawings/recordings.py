"""Runs commands in a terminal and draws what they show: the recordings of the documentation.

Invariant: each line is what a program wrote. Only the ports, which are free ones, are shown as the documented ones.
"""

from __future__ import annotations

import os
import re
import shlex
from contextlib import asynccontextmanager
from hashlib import sha256
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trio
from attrs import define, field, frozen
from support.ports import free_port
from support.programs import PATIENCE, PROGRAM, environment, running

from trio_ledger_plugin import open_plugin
from trio_ledger_plugin.cli.replies import ADDRESS
from trio_ledger_plugin.codec import ilp

from . import terminal
from .screen import Screen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from trio_ledger_plugin import LedgerPlugin

__all__ = ["RECORDINGS", "Recording", "Shell"]

PROMPT = "\x1b[1m$\x1b[0m "
# Settings of the terminal in which the recordings are made would change them.
FOREIGN = ("COLORTERM", "COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR")
# The ports that the documentation shows.
BTP, SPSP = 7768, 8080
PREIMAGE = bytes(31) + b"!"
CONDITION = sha256(PREIMAGE).digest()
LIFETIME = 10.0
# How many requests the first client sends to each of the others; the second one sends twice as many, and so on.
REQUESTS = 100
CLIENTS = ("alice", "bob", "carol")


@define
class Shell:
    """A terminal in which commands are run, one after the other.

    Attributes:
        screen: What it shows.
        columns: How wide it is.
        ports: The ports in use, by the ports that are shown.
    """

    screen: Screen
    columns: int
    ports: Mapping[int, int] = field(factory=lambda: {BTP: free_port(), SPSP: free_port()})
    _changed: trio.Event = field(init=False, factory=trio.Event)

    def shown(self, text: str) -> str:
        """Return text with the ports that are shown."""
        for port, real in self.ports.items():
            text = text.replace(f":{real}", f":{port}")
        return text

    def real(self, text: str) -> str:
        """Return text with the ports in use."""
        for port, real in self.ports.items():
            text = text.replace(str(port), str(real))
        return text

    async def run(self, command: str) -> None:
        """Run a command until it ends."""
        async with self.start(command) as ended:
            await ended.wait()

    async def wait_for(self, pattern: str) -> None:
        """Wait until a line of the screen has a pattern."""
        while not any(re.search(pattern, line) for line in self.screen.text):
            await self._changed.wait()

    @asynccontextmanager
    async def start(self, command: str) -> AsyncIterator[trio.Event]:
        """Type a command and run it; yields an event that is set when it has ended.

        The screen keeps what it shows when the block ends; then the command is killed, if it still runs.
        """
        name, *arguments = shlex.split(self.real(command))
        assert name == "trio-ledger-plugin"
        self.screen.write(f"{PROMPT}{command}\r\n")
        import termios  # noqa: PLC0415 (only POSIX has it)

        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, self.columns))
        env = {name: value for name, value in environment(TERM="xterm-256color").items() if name not in FOREIGN}
        with TemporaryDirectory() as folder, trio.fail_after(PATIENCE):
            process = await trio.lowlevel.open_process(
                [*PROGRAM, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=env
            )
            os.close(theirs)
            ended = trio.Event()
            try:
                async with trio.lowlevel.FdStream(ours) as end, trio.open_nursery() as nursery:
                    nursery.start_soon(self._show, end, ended)
                    yield ended
                    nursery.cancel_scope.cancel()
            finally:
                if process.poll() is None:
                    process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
                    await process.wait()

    async def _show(self, end: trio.lowlevel.FdStream, ended: trio.Event) -> None:
        try:
            while chunk := await end.receive_some():
                self.screen.write(self.shown(chunk.decode()))
                self._changed.set()
                self._changed = trio.Event()
        except trio.BrokenResourceError:
            pass  # how Linux says that the other end of a terminal is closed
        ended.set()


@frozen
class Recording:
    """A recording.

    Attributes:
        title: What stands above it.
        columns: How wide its terminal is.
        play: Runs the commands.
    """

    title: str
    columns: int
    play: Callable[[Shell], Awaitable[None]]

    async def record(self) -> str:
        """Run the commands and return the picture."""
        screen = Screen(self.columns)
        await self.play(Shell(screen, self.columns))
        return terminal.draw(screen, self.title, self.columns)


async def demo(shell: Shell) -> None:
    """Run the demo."""
    await shell.run("trio-ledger-plugin demo")


async def pay(shell: Shell) -> None:
    """Start a server and a receiver, ask what a payment would cost, and make it."""
    async with running(*PROGRAM, "serve", "--accounts", "--port", shell.real(f"{BTP}")) as server:
        await server.wait_for(r"listening on (\S+)")
        shop = shell.real(f"btp+ws://:shop@localhost:{BTP}")
        async with running(*PROGRAM, "receive", "--server", shop, "--port", shell.real(f"{SPSP}")) as receiver:
            await receiver.wait_for(r"(http://127\.0\.0\.1:\d+/)")
            for command in ("quote", "pay"):
                way = f"http://127.0.0.1:{SPSP}/ --send 1000 --server btp+ws://:me@localhost:{BTP}"
                await shell.run(f"trio-ledger-plugin {command} {way}")


async def accounts(shell: Shell) -> None:
    """Start a server, and clients that send packets to each other and money to the server."""
    command = f"trio-ledger-plugin serve --accounts --account-mode username --port {BTP}"
    async with shell.start(command), trio.open_nursery() as nursery:
        await shell.wait_for("listening on")
        clients = {name: await nursery.start(_run_client, shell.ports[BTP], name) for name in CLIENTS}
        for number, (name, client) in enumerate(clients.items(), 1):
            await client.send_money(250 * number)
            for other in CLIENTS:
                packet = ilp.make_prepare(5, f"{ADDRESS}.{other}", CONDITION, LIFETIME)
                for _ in range(REQUESTS * number if other != name else 0):
                    await client.send_data(ilp.encode(packet))
        await shell.wait_for(f"{len(CLIENTS)} connected .* {REQUESTS * 12:,} ")
        nursery.cancel_scope.cancel()


async def _run_client(port: int, name: str, task_status: trio.TaskStatus[LedgerPlugin]) -> None:
    async def answer(data: bytes) -> bytes:
        return ilp.encode(ilp.Fulfill(PREIMAGE))

    options = {"plugin": "btp", "server": f"btp+ws://{name}:token-of-{name}@localhost:{port}"}
    async with open_plugin(options, data_handler=answer) as plugin:
        task_status.started(plugin)
        await trio.sleep_forever()


RECORDINGS = {
    "terminal-demo.svg": Recording("trio-ledger-plugin demo", 88, demo),
    "terminal-pay.svg": Recording("trio-ledger-plugin pay", 100, pay),
    "terminal-accounts.svg": Recording("trio-ledger-plugin serve --accounts", 100, accounts),
}
