"""How the program ends: its exit codes, and its errors as one line with advice.

Invariant: an error is one line on stderr, without control characters, and without what stands between ``://`` and
``@``, where a URL has its token.
"""

from __future__ import annotations

import re
import ssl
from enum import IntEnum
from typing import TYPE_CHECKING

import click

from ..errors import (
    ConnectTimeoutError,
    DecodeError,
    InvalidFieldsError,
    InvalidServicesError,
    LedgerPluginError,
    NotAcceptedError,
    NotConnectedError,
    PluginFailedError,
    UnreachableError,
)
from ..log import escape
from ..money.lease import HOW_TO_SHARE
from ..runtime.connector import HOW_TO_CONNECT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "COMMON",
    "ENDED",
    "MEANINGS",
    "SECRET_VARIABLE",
    "Exit",
    "TerminatedError",
    "advice",
    "describe_problems",
    "exit_code_of",
    "one_line",
    "unwrap_error",
]

SECRET_VARIABLE = "TRIO_LEDGER_PLUGIN_SECRET"  # noqa: S105 (a variable's name)


class Exit(IntEnum):
    """The exit codes; a command returns one of them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    REFUSED = 4
    NO_PACKET = 5
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS = {
    Exit.OK: "it worked",
    Exit.FAILED: "it failed: a step, a missing answer, an address in use",
    Exit.USAGE: "wrong arguments or options",
    Exit.UNREACHABLE: "the peer cannot be reached",
    Exit.REFUSED: "the peer refuses the credentials",
    Exit.NO_PACKET: "the input is not a packet",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.TERMINATED: "ended by SIGTERM",
}
COMMON = (Exit.OK, Exit.FAILED, Exit.USAGE)
ENDED = (Exit.INTERRUPTED, Exit.TERMINATED)


class TerminatedError(BaseException):
    """The program received SIGTERM. Not an ``Exception``, so that no error handler on the way catches it."""


_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Exit], ...] = (
    ((KeyboardInterrupt, click.Abort), Exit.INTERRUPTED),
    (TerminatedError, Exit.TERMINATED),
    ((InvalidFieldsError, InvalidServicesError), Exit.USAGE),
    (UnreachableError, Exit.UNREACHABLE),
    (NotAcceptedError, Exit.REFUSED),
    (DecodeError, Exit.NO_PACKET),
)


def unwrap_error(error: BaseException) -> BaseException:
    """Return the original error of exception groups and of failures that only report it."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            ended, _ = error.split((KeyboardInterrupt, TerminatedError))
            error = (ended or error).exceptions[0]
        elif isinstance(error, PluginFailedError) and error.__cause__ is not None:
            error = error.__cause__
        elif isinstance(error, NotConnectedError) and isinstance(error.__cause__, UnreachableError):
            # Over HTTP each call dials.
            error = error.__cause__
        else:
            return error


def exit_code_of(error: BaseException) -> Exit:
    """Return the exit code for an error that ``unwrap_error()`` returned."""
    if isinstance(error, click.ClickException):
        return Exit(error.exit_code)
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), Exit.FAILED)


def one_line(error: BaseException) -> str:
    """Return an error as the line that the user reads, without ``error:`` in front."""
    text = " ".join(escape(line.strip()) for line in _text(error).splitlines() if line.strip())
    return re.sub(r"://.*@", "://***@", text)


def describe_problems(error: InvalidFieldsError, subjects: Mapping[str, str]) -> str:
    """Return the problems of options as one line.

    Args:
        error: The error of an options class.
        subjects: By the name of a field, the text that replaces it before its problem, such as ``"--host:"``.
    """
    return "; ".join(f"{subjects.get(field, f'{field}:')} {text}" for field, text in error.problems)


def _text(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted"
    if isinstance(error, TerminatedError):
        return "ended by SIGTERM"
    if isinstance(error, click.UsageError):
        # Click itself would print the command's usage in two more lines.
        path = error.ctx.command_path if error.ctx is not None else "trio-ledger-plugin"
        return f"{error.format_message().rstrip('.')}; see {path} --help"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, InvalidFieldsError):
        # The error's own text begins with the name of an options class, which users of a command do not know.
        return describe_problems(error, {}) or str(error)
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, NotConnectedError):
        return str(error).removesuffix(HOW_TO_CONNECT)
    if isinstance(error, InvalidServicesError):
        return str(error).replace(HOW_TO_SHARE, "; end that one first, or let 'serve --standby' wait for it")
    if isinstance(error, LedgerPluginError):
        return str(error)
    return f"a bug in trio-ledger-plugin, please report it: {type(error).__name__}: {error}"


def advice(error: BaseException) -> str:
    """Return what the user can try after an error; empty if there is nothing to suggest."""
    if isinstance(error, KeyboardInterrupt | TerminatedError | click.Abort):
        # What the command has noted. Click raises its own error for Ctrl-C.
        ended = error.__cause__ if isinstance(error, click.Abort) else error
        return "; ".join(getattr(ended, "__notes__", ()))
    if isinstance(error, NotAcceptedError):
        return f"check the token in the URL or in {SECRET_VARIABLE}"
    if isinstance(error, ConnectTimeoutError) and error.__cause__ is not None:
        error = error.__cause__
    cause = error.__cause__
    if isinstance(error, UnreachableError) and isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
        return "is the server running, and are host and port right?"
    return ""
