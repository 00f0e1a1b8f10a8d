"""A plugin's log: what happens again and again is logged once, and then counted.

Invariants: a flood of one kind, from one account or address, is a bounded number of lines, however long it lasts. What
was counted is logged in the end: an hour later at the latest, or when the plugin ends. Another account's or address's
first message is logged at once.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

import trio
from attrs import define

from ..log import RedactingLog
from ..services import Log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..secret import Secret
    from .timers import Timers

__all__ = ["PluginLog"]

# After how many seconds the number of repetitions is logged, the first time and at most: the pause doubles in between.
FIRST_PAUSE: Final = 60.0
LONGEST_PAUSE: Final = 3600.0
# After so many seconds without it, a message is news again.
QUIET: Final = 3600.0
# How many messages are counted; the one that came up longest ago is forgotten first, once its number is logged.
REMEMBERED: Final = 4096


@define
class _Repeated:
    """A message that may come again.

    Attributes:
        write: Logs it.
        text: What it said the last time.
        since: When it was logged last, or its number.
        last: When it came last.
        pause: For how many seconds it is counted before its number is logged.
        times: How often it came since then.
    """

    write: Callable[..., None]
    text: str
    since: float
    last: float
    pause: float = FIRST_PAUSE
    times: int = 0


class _Once(Log):
    """A log that counts messages instead of repeating them; ``PluginLog.once()`` returns it."""

    def __init__(self, log: PluginLog, name: str) -> None:
        self._log = log
        self._name = name

    def debug(self, message: str, *params: object) -> None:
        self._log.debug(message, *params)

    def info(self, message: str, *params: object) -> None:
        self._log.info(message, *params)

    def warn(self, message: str, *params: object) -> None:
        self._log.count(self._name, self._log.warn, message, params)

    def error(self, message: str, *params: object) -> None:
        self._log.count(self._name, self._log.error, message, params)


class PluginLog(RedactingLog):
    """The log of a plugin.

    Args:
        log: The application's log.
        secrets: The credentials to redact.
        timers: The plugin's timers.
        tracebacks: Whether ``%O`` shows an exception with its traceback.
    """

    def __init__(self, log: Log, secrets: Iterable[Secret], timers: Timers, *, tracebacks: bool = True) -> None:
        super().__init__(log, secrets, tracebacks=tracebacks)
        self._timers = timers
        self._is_scheduled = False
        # By name and message; what came up longest ago comes first.
        self._repeated: dict[tuple[str, str], _Repeated] = {}

    def once(self, name: str = "") -> Log:
        """Return a log for warnings and errors that may come again and again; it is for Trio's thread.

        Args:
            name: What they are about, such as an account or an address: the same message about another one is logged as
                well. Empty if that makes no difference, as when the store fails.
        """
        return _Once(self, name)

    def count(self, name: str, write: Callable[..., None], message: str, params: tuple[object, ...]) -> None:
        """Log a message, or count it if it was logged for the same name lately."""
        now = trio.current_time()
        # After the plugin's end no timer logs numbers or forgets messages; it is done when the message comes again.
        is_over = not self._timers.is_running
        # Without the traceback, which the first message has.
        text = self.format(message, params).partition("\n")[0]
        repeated = self._repeated.pop((name, message), None)
        if repeated is not None and is_over and repeated.last + QUIET <= now:
            self._tell(repeated, now)
            repeated = None
        if repeated is None:
            write(message, *params)
            repeated = _Repeated(write, text, now, now)
            if len(self._repeated) >= REMEMBERED:
                self._tell(self._repeated.pop(next(iter(self._repeated))), now)
        else:
            repeated.text, repeated.last = text, now
            repeated.times += 1
            if is_over and repeated.since + repeated.pause <= now:
                self._tell(repeated, now)
        self._repeated[name, message] = repeated
        if not self._is_scheduled:
            self._is_scheduled = True
            self._timers.schedule(self, now + FIRST_PAUSE)

    def fire(self, now: float) -> float:
        """Log how often messages have come again, where it is time; forget those that come no more."""
        for name, repeated in tuple(self._repeated.items()):
            if repeated.since + repeated.pause <= now:
                self._tell(repeated, now)
            if repeated.last + QUIET <= now:
                del self._repeated[name]
        self._is_scheduled = bool(self._repeated)
        return now + FIRST_PAUSE if self._repeated else inf

    def end(self) -> None:
        """Log how often messages have come again: the plugin ends, and its timers with it."""
        now = trio.current_time()
        repeated, self._repeated = self._repeated, {}
        self._is_scheduled = False
        for each in repeated.values():
            self._tell(each, now)

    def _tell(self, repeated: _Repeated, now: float) -> None:
        """Log how often a message has come since it was logged last."""
        if repeated.times:
            repeated.write("%d more in %d s: %s", repeated.times, round(now - repeated.since), repeated.text)
            repeated.since, repeated.times = now, 0
            repeated.pause = min(2 * repeated.pause, LONGEST_PAUSE)
