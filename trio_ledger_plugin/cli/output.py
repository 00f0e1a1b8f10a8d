"""What the commands write to stdout.

Invariant: colours and lines that change are written to terminals only, and lines that change only in the terminal's
foreground: behind a shell's prompt they would overwrite what is typed. Files and pipes get plain lines, as they come.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ..event_text import event_text
from ..events import (
    AccountConnected,
    AccountConnectedAgain,
    AccountDisconnected,
    Connected,
    Disconnected,
    EventsDropped,
    Failed,
    TransfersInDoubt,
)
from ..log import format_message
from ..money.doubts import SETTLE_BY_HAND
from .background import open_stdout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from typing import TextIO

    from ..events import Event
    from ..services import Log

__all__ = ["LiveOutput", "Screen", "open_live_output"]

# What the plugin's log says in Python, for a reader of the command line.
SETTLE_BY_COMMAND = (
    "find out what the peer has applied, and settle it on the page of --admin or, once the server has ended, with "
    "'trio-ledger-plugin transfers STORE --confirm KEY' or '--reject KEY'"
)


class Screen:
    """Stdout, which may be a terminal.

    Args:
        out: The file to write to; ``sys.stdout`` if None.

    Attributes:
        console: Rich's console for stdout, for lines that change.
        is_terminal: Whether lines may change and have colours.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        terminal = self._out.isatty()
        # Set explicitly: some environment variables would make Rich colour a pipe.
        self.console: Console = Console(
            file=self._out, force_terminal=terminal, markup=False, highlight=False, emoji=False
        )
        self.is_terminal: bool = terminal and not self.console.is_dumb_terminal

    def in_foreground(self) -> bool:
        """Whether this process has the terminal now; also true of a terminal without job control."""
        if os.name != "posix":
            return True
        try:
            return os.tcgetpgrp(self._out.fileno()) == os.getpgrp()
        except OSError:
            # It is not this process's own terminal, or no file at all.
            return True

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line; ``style`` is a style of Rich, for terminals only."""
        if self.is_terminal:
            self.console.print(Text(text, style), soft_wrap=True)
        else:
            self.plain_line(text)

    def plain_line(self, text: str) -> None:
        """Write one line without a style, also to a terminal."""
        click.echo(text, file=self._out)

    def timed_line(self, text: str, style: str = "") -> None:
        """Write one line that begins with the time of day."""
        self.line(f"{datetime.now().astimezone():%H:%M:%S}  {text}", style)

    @contextmanager
    def progress(self, text: str, *, silent: bool) -> Iterator[Progress]:
        """Give a progress bar after a text, visible on a terminal for the length of the block unless ``silent``."""
        shown = self.is_terminal and not silent and self.in_foreground()
        columns = TextColumn(text), BarColumn(), MofNCompleteColumn()
        # By default Rich refreshes from a thread.
        bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True, disable=not shown)
        if not shown:
            # On exit some versions of Rich write an empty line even for a disabled bar.
            yield bar
            return
        with bar:
            yield bar


class LiveOutput:
    """What a server writes while it runs: lines for people, or JSON objects for programs.

    Args:
        screen: Stdout.
        as_json: Whether to write JSON.
    """

    def __init__(self, screen: Screen, *, as_json: bool) -> None:
        self.screen: Screen = screen
        self.as_json: bool = as_json
        # What came before the first line, which says where the server listens, as arguments of ``_write()``.
        self._held: list[tuple[str, str, str, dict[str, object]]] | None = []

    @property
    def log(self) -> Log:
        """The log for the server's plugin."""
        return _OutputLog(self)

    @property
    def warnings(self) -> Log:
        """The log for the plugin of a command that dials: each try of an outage would be a line of the other one."""
        return _OutputLog(self, has_info=False)

    @property
    def has_live_lines(self) -> bool:
        """Whether lines may change: people read, on a terminal."""
        return self.screen.is_terminal and not self.as_json

    def write(self, event: str, text: str, style: str = "", /, **values: object) -> None:
        """Write what happened, such as money from the journal; it waits until the server has said where it listens.

        Args:
            event: Its name, for programs.
            text: The line for people.
            style: The line's style.
            values: The details, for programs.
        """
        if self._held is None or event == "listening":
            self._write(event, text, style, values)
        else:
            self._held.append((event, text, style, values))

    def _write(self, event: str, text: str, style: str, values: dict[str, object]) -> None:
        if self.as_json:
            self.screen.plain_line(_as_json(event, values))
        else:
            self.screen.timed_line(text, style)

    def write_log(self, level: str, text: str) -> None:
        """Write a message of the plugin's log; a warning waits until the server has said where it listens."""
        text = text.replace(SETTLE_BY_HAND, SETTLE_BY_COMMAND)
        style, values = {"warn": "yellow", "error": "red"}.get(level, ""), {"level": level, "text": text}
        if level == "warn":
            self.write("log", text, style, **values)
        else:
            # Such as that a standby waits.
            self._write("log", text, style, dict(values))

    def release(self) -> None:
        """Write what waited."""
        held, self._held = self._held or [], None
        for line in held:
            self._write(*line)

    def write_event(self, event: Event) -> None:
        """Write an event of a plugin."""
        text = event_text(event)
        match event:
            case Connected():
                self.write("connected", text, "cyan")
            case Disconnected(reason):
                self.write("disconnected", text, "cyan", reason=reason)
            case AccountConnected(account):
                self.write("account_connected", text, account=account)
            case AccountConnectedAgain(account, connections):
                self.write("account_connected_again", text, "green", account=account, connections=connections)
            case AccountDisconnected(account):
                self.write("account_disconnected", text, account=account)
            case Failed(error):
                self.write("failed", text, "red", error=str(error))
            case EventsDropped(count):
                self.write("events_dropped", text, "cyan", count=count)
            case TransfersInDoubt(count, amount) if self.as_json:
                # People have the warning of the log, which says the same and what to do.
                self.write("transfers_in_doubt", text, count=count, amount=str(amount))


@asynccontextmanager
async def open_live_output(*, as_json: bool, holds_warnings: bool = True) -> AsyncIterator[LiveOutput]:
    """Yield the output of a server to stdout. A consumer that does not read it loses lines; they are counted.

    Args:
        as_json: Whether to write JSON.
        holds_warnings: Whether warnings wait until the first line has said where the server listens.

    Raises:
        BrokenPipeError: The consumer has closed stdout. The block is cancelled.

    Cancellation: What waits to be written has a moment to be written.
    """

    def report_lost(count: int) -> str:
        if as_json:
            return _as_json("lines_lost", {"count": count})
        return f"{count} lines were lost: stdout did not take them"

    async with open_stdout(report_lost) as out:
        output = LiveOutput(Screen(out), as_json=as_json)
        if not holds_warnings:
            output.release()
        try:
            yield output
        finally:
            output.release()


def _as_json(event: str, values: Mapping[str, object]) -> str:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"event": event, **values, "time": now})


class _OutputLog:
    """A log that writes everything above ``debug``, or above ``info``."""

    def __init__(self, output: LiveOutput, *, has_info: bool = True) -> None:
        self._output = output
        self._has_info = has_info

    def debug(self, message: str, *params: object) -> None:
        """Write nothing."""

    def info(self, message: str, *params: object) -> None:
        if self._has_info:
            self._output.write_log("info", format_message(message, *params))

    def warn(self, message: str, *params: object) -> None:
        self._output.write_log("warn", format_message(message, *params))

    def error(self, message: str, *params: object) -> None:
        self._output.write_log("error", format_message(message, *params))
