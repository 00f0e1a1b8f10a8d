"""What the commands write to stdout.

The law here: colours and lines that change are for a terminal; everybody else gets plain lines, as they come.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from ..events import Connected, Disconnected, EventsDropped, Failed
from ..log import escape, format_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..events import Event

__all__ = ["Screen", "ScreenLog", "said"]


class Screen:
    """Stdout, a terminal or not.

    Attributes:
        console: Rich's console on it, for lines that change.
        is_terminal: Whether lines may change and have colours.
    """

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        # Told outright: some environment variables would have Rich colour a pipe.
        self.console: Console = Console(
            file=sys.stdout, force_terminal=terminal, markup=False, highlight=False, emoji=False
        )
        self.is_terminal: bool = terminal and not self.console.is_dumb_terminal

    def line(self, text: str = "", style: str = "") -> None:
        """Write one line; ``style`` is Rich's, and for terminals only."""
        if self.is_terminal:
            self.console.print(Text(text, style), soft_wrap=True)
        else:
            click.echo(text)

    def timed_line(self, text: str, style: str = "") -> None:
        """Write one line that begins with the time of day."""
        self.line(f"{datetime.now().astimezone():%H:%M:%S}  {text}", style)

    @contextmanager
    def progress(self, text: str, *, silent: bool) -> Iterator[Progress]:
        """Give a bar behind a text, which a terminal shows as long as the block runs unless it is to be ``silent``."""
        shown = self.is_terminal and not silent
        columns = TextColumn(text), BarColumn(), MofNCompleteColumn()
        # Rich would refresh from a thread of its own.
        bar = Progress(*columns, console=self.console, auto_refresh=False, transient=True, disable=not shown)
        if not shown:
            # Entered, it would write an empty line in the end, in some versions of Rich.
            yield bar
            return
        with bar:
            yield bar


class ScreenLog:
    """The log of a plugin whose user watches: everything but ``debug`` is a line.

    Args:
        screen: Where to write.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def debug(self, message: str, *params: object) -> None:
        """Say nothing."""

    def info(self, message: str, *params: object) -> None:
        """Write a line."""
        self._screen.timed_line(format_message(message, *params))

    def warn(self, message: str, *params: object) -> None:
        """Write a line."""
        self._screen.timed_line(format_message(message, *params), "yellow")

    def error(self, message: str, *params: object) -> None:
        """Write a line."""
        self._screen.timed_line(format_message(message, *params), "red")


def said(event: Event) -> str:
    """Return an event in words."""
    match event:
        case Connected():
            return "connected"
        case Disconnected(reason):
            return f"disconnected: {escape(reason)}"
        case Failed(error):
            return f"failed: {escape(str(error))}"
        case EventsDropped(count):
            return f"{count} events were lost"
    return escape(str(event))
