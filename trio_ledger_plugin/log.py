"""Logging as in RFC-0024: the ``%`` tokens, the default log, and redaction of credentials.

Invariants: logging never raises, and a parameter cannot break its line. A parameter may come from the peer, so its
control characters are escaped. Only ``%O`` inserts line breaks, between the items of the value that it shows and in the
traceback of an exception, and it indents the lines that follow.
"""

from __future__ import annotations

import json
import logging
import math
import re
from numbers import Number
from pathlib import Path
from traceback import TracebackException, walk_tb
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from .secret import Secret
    from .services import Log

__all__ = ["RedactingLog", "StdlibLog", "escape", "format_message"]

TOKEN: Final = re.compile("%[Oosdj%]")
# How deeply nested values are shown, and how wide a line of %O may be, in characters.
DEEPEST: Final = 10
LINE_WIDTH: Final = 100
# A shorter secret occurs in ordinary text, so redacting it would make the log unreadable; and it is easy to guess.
SHORTEST_SECRET: Final = 4
# How much of a traceback is logged: the innermost places of each error. On one line, of so many errors.
MOST_PLACES: Final = 20
MOST_PLACES_ON_A_LINE: Final = 5
MOST_ERRORS_ON_A_LINE: Final = 3
MARGIN: Final = "\n    "
OWN_FOLDER: Final = Path(__file__).parent


def escape(text: str) -> str:
    r"""Return text with unprintable characters escaped (``\n``, ``\x1b``, ``\u202e``), so that it stays on one line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def format_message(message: str, *params: object) -> str:
    """Fill the tokens of a message (RFC-0024, PluginServices#log). Never raises an ``Exception``.

    Args:
        message: Text with tokens. ``%s`` is text, ``%d`` a number or NaN, ``%j`` JSON, ``%o`` the object on one line,
            ``%O`` the object on several lines, an exception with its traceback, ``%%`` a percent sign. Any other token
            is left unchanged.
        params: One for each token except ``%%``. A token without a parameter is left unchanged; parameters without a
            token are appended.

    Returns:
        The text, with control characters of the parameters escaped.
    """
    return _format(FORMATTERS, message, params)


def _format(formatters: Mapping[str, Callable[[object], str]], message: str, params: Iterable[object]) -> str:
    remaining = iter(params)

    def fill(token: re.Match[str]) -> str:
        kind = token[0]
        if kind == "%%":
            return "%"
        for param in remaining:
            return _guarded(formatters[kind], param)
        return kind

    text = TOKEN.sub(fill, message) if isinstance(message, str) else _guarded(_text, message)
    appended = (_guarded(_text if isinstance(param, str) else _one_line, param) for param in remaining)
    return " ".join((text, *appended))


def _guarded(show: Callable[[object], str], value: object) -> str:
    try:
        return show(value)
    except Exception:  # noqa: BLE001  # an object's __repr__ may raise anything; the message must still be logged
        return "<unprintable>"


def _text(value: object) -> str:
    # str(bytes) is an error under python -bb. str.__str__ turns a subclass with overridden methods into a plain str.
    return escape(str.__str__(repr(value) if isinstance(value, bytes) else str(value)))


def _number(value: object) -> str:
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else float.__repr__(value).replace("inf", "Infinity")
    if isinstance(value, int):
        return int.__repr__(value)
    return _text(value) if isinstance(value, Number) else "NaN"


def _json(value: object) -> str:
    try:
        text = _dumps(value)
        if "NaN" in text or "Infinity" in text:
            text = _dumps(_finite(value))
    except ValueError as error:
        # json reports a cycle only in the text of its ValueError.
        return "[Circular]" if "Circular" in str(error) else _one_line(value)
    except (TypeError, RecursionError):
        return _one_line(value)
    return "".join(c if c.isprintable() else _json_escape(c) for c in text)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_one_line)


def _finite(value: object) -> object:
    """Return a copy of a value without cycles, with None for NaN and infinities, as JavaScript does."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_escape(character: str) -> str:
    # With ensure_ascii, json escapes all unprintable characters except DEL.
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]


def _leaf(value: object) -> str:
    return escape(repr(value))


def _one_line(value: object) -> str:
    return _show(value, None, ())


def _many_lines(value: object) -> str:
    return _with_traceback(value) if isinstance(value, BaseException) else _show(value, 0, ())


def _with_traceback(error: BaseException) -> str:
    """Return an error, and on the lines that follow its traceback, from the first place outside this package on."""
    trace = error.__traceback__
    if trace is None:
        return _leaf(error)
    begin: TracebackType | None = trace
    while begin is not None and _is_own(begin.tb_frame.f_code.co_filename):
        begin = begin.tb_next
    told = TracebackException(type(error), error, begin or trace, limit=-MOST_PLACES, compact=True)
    return MARGIN.join((_leaf(error), *(escape(line) for line in "".join(told.format()).splitlines())))


def _with_places(value: object) -> str:
    """Return an error, and where in the application's code it and the errors that it followed arose, on one line."""
    if not isinstance(value, BaseException):
        return _many_lines(value)
    chain: list[str] = []
    following: BaseException | None = value
    while following is not None and len(chain) < MOST_ERRORS_ON_A_LINE:
        places = [
            f"{Path(frame.f_code.co_filename).name}:{line} in {frame.f_code.co_name}"
            for frame, line in walk_tb(following.__traceback__)
            if not _is_own(frame.f_code.co_filename)
        ]
        if places:
            said = "" if following is value else f" after {_leaf(following)}"
            chain.append(f"{said} at {', '.join(places[-MOST_PLACES_ON_A_LINE:])}")
        cause = following.__cause__
        following = following.__context__ if cause is None and not following.__suppress_context__ else cause
    return _leaf(value) + ";".join(chain)


def _is_own(filename: str) -> bool:
    return Path(filename).is_relative_to(OWN_FOLDER)


def _show(value: object, indent: int | None, above: tuple[int, ...]) -> str:
    """Return a value on one line, or on several lines if it is too long for one.

    Not the standard library's pprint: it splits long bytes and text, and redaction would not find a split secret.
    """
    kind = type(value)
    if not isinstance(value, dict | list | tuple) or kind not in BRACKETS:
        return _guarded(_leaf, value)
    if id(value) in above:
        return "[Circular]"
    if len(above) == DEEPEST:
        return "[...]"
    opening, closing = BRACKETS[kind]
    inner = None if indent is None else indent + 2
    parts = list(_parts(value, inner, (*above, id(value))))
    last = "," if kind is tuple and len(parts) == 1 else ""
    line = f"{opening}{', '.join(parts)}{last}{closing}"
    if indent is None or ("\n" not in line and indent + len(line) <= LINE_WIDTH):
        return line
    margin = "\n" + " " * indent
    return f"{opening}{margin}  {f',{margin}  '.join(parts)}{last}{margin}{closing}"


def _parts(
    value: dict[object, object] | list[object] | tuple[object, ...], indent: int | None, above: tuple[int, ...]
) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"{_guarded(_leaf, key)}: {_show(item, indent, above)}"
    else:
        for item in value:
            yield _show(item, indent, above)


BRACKETS: Final[dict[type, tuple[str, str]]] = {dict: ("{", "}"), list: ("[", "]"), tuple: ("(", ")")}

FORMATTERS: Final[dict[str, Callable[[object], str]]] = {
    "%O": _many_lines,
    "%o": _one_line,
    "%s": _text,
    "%d": _number,
    "%j": _json,
}
WITHOUT_TRACEBACKS: Final = FORMATTERS | {"%O": _with_places}


class StdlibLog:
    """The default log: the standard library's ``logging``.

    Args:
        logger: Where to log; None means ``logging.getLogger("trio_ledger_plugin")``.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("trio_ledger_plugin")

    def is_enabled(self, level: int) -> bool:
        """Whether messages of a ``logging`` level are logged; others are not even formatted."""
        return self._logger.isEnabledFor(level)

    def debug(self, message: str, *params: object) -> None:
        """Log at ``logging.DEBUG``."""
        self._write(logging.DEBUG, message, params)

    def info(self, message: str, *params: object) -> None:
        """Log at ``logging.INFO``."""
        self._write(logging.INFO, message, params)

    def warn(self, message: str, *params: object) -> None:
        """Log at ``logging.WARNING``."""
        self._write(logging.WARNING, message, params)

    def error(self, message: str, *params: object) -> None:
        """Log at ``logging.ERROR``."""
        self._write(logging.ERROR, message, params)

    def _write(self, level: int, message: str, params: tuple[object, ...]) -> None:
        if self.is_enabled(level):
            # Without arguments the logger does not format the text. The stack level makes the record name the caller of
            # debug(), info(), warn() or error().
            self._logger.log(level, format_message(message, *params), stacklevel=3)


class RedactingLog:
    """A log that formats each message, replaces secrets with ``***``, and passes the text on to another log.

    Args:
        log: The application's log. It gets formatted text, with ``%`` doubled, and no parameters.
        secrets: The credentials to redact. Those under four characters are not redacted, since they occur in ordinary
            text.
        tracebacks: Whether ``%O`` shows an exception with its traceback; if not, on one line with the places in the
            application's code.
    """

    def __init__(self, log: Log, secrets: Iterable[Secret], *, tracebacks: bool = True) -> None:
        self._log = log
        self._formatters = FORMATTERS if tracebacks else WITHOUT_TRACEBACKS
        texts = {form for secret in secrets for form in _forms(secret.reveal()) if len(form) >= SHORTEST_SECRET}
        # The longest first: one secret may be a prefix of another.
        self._secrets = re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or "(?!)")

    def debug(self, message: str, *params: object) -> None:
        """Pass the message on to the application's ``debug``."""
        self._write(logging.DEBUG, self._log.debug, message, params)

    def info(self, message: str, *params: object) -> None:
        """Pass the message on to the application's ``info``."""
        self._write(logging.INFO, self._log.info, message, params)

    def warn(self, message: str, *params: object) -> None:
        """Pass the message on to the application's ``warn``."""
        self._write(logging.WARNING, self._log.warn, message, params)

    def error(self, message: str, *params: object) -> None:
        """Pass the message on to the application's ``error``."""
        self._write(logging.ERROR, self._log.error, message, params)

    def redact(self, text: str) -> str:
        """Return text with each secret replaced by ``***``."""
        return self._secrets.sub("***", text)

    def format(self, message: str, params: tuple[object, ...]) -> str:
        """Return the text of a message, with secrets replaced."""
        return self.redact(_format(self._formatters, message, params))

    def _write(self, level: int, write: Callable[[str], None], message: str, params: tuple[object, ...]) -> None:
        if isinstance(self._log, StdlibLog) and not self._log.is_enabled(level):
            return
        text = self.format(message, params).replace("%", "%%")
        try:
            write(text)
        except Exception as error:  # noqa: BLE001 (the disk may be full; a failing log must not stop the plugin)
            logging.getLogger("trio_ledger_plugin").error("the application's log failed: %s", type(error).__name__)


def _forms(secret: str) -> set[str]:
    """Return the forms in which the formatters may write a secret."""
    if len(secret) < SHORTEST_SECRET:
        return set()
    # How repr() escapes a quote depends on the other quotes in the text; appending both kinds forces the escape.
    quoted = escape(repr(secret + "'\"")[1:-4]), repr(secret.encode("utf-8", "surrogatepass") + b"'\"")[2:-4]
    plain = {secret, escape(secret), *quoted, *(text.replace("\\'", "'") for text in quoted)}
    return plain | {_json(text)[1:-1] for text in plain}
