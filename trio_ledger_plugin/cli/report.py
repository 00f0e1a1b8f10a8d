"""What a server of the command line tells while it runs: lines for people, or JSON for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from ..log import format_message
from .output import ScreenLog

if TYPE_CHECKING:
    from ..services import Log
    from .output import Screen

__all__ = ["Report"]


class Report:
    """What the server tells while it runs: lines for people, or JSON for machines.

    Args:
        screen: Where to write.
        as_json: Whether machines read it.
    """

    def __init__(self, screen: Screen, *, as_json: bool) -> None:
        self._screen = screen
        self._as_json = as_json

    @property
    def log(self) -> Log:
        """The log of the server's plugin."""
        return JsonLog(self) if self._as_json else ScreenLog(self._screen)

    def tell(self, event: str, text: str, style: str = "", /, **values: object) -> None:
        """Write what happened.

        Args:
            event: Its name, for machines.
            text: What people read.
            style: Rich's, likewise.
            values: What machines read.
        """
        if self._as_json:
            click.echo(json.dumps({"event": event, **values}))
        else:
            self._screen.timed_line(text, style)


class JsonLog:
    """The log of a plugin whose user is a program.

    Args:
        report: Where to write.
    """

    def __init__(self, report: Report) -> None:
        self._report = report

    def debug(self, message: str, *params: object) -> None:
        """Say nothing."""

    def info(self, message: str, *params: object) -> None:
        """Write a line."""
        self._write("info", message, *params)

    def warn(self, message: str, *params: object) -> None:
        """Write a line."""
        self._write("warn", message, *params)

    def error(self, message: str, *params: object) -> None:
        """Write a line."""
        self._write("error", message, *params)

    def _write(self, level: str, message: str, *params: object) -> None:
        text = format_message(message, *params)
        self._report.tell("log", text, level=level, text=text)
