"""Everything that the package shows, in which no secret may be."""

from __future__ import annotations

import traceback
from base64 import b64encode
from contextlib import suppress
from typing import Any

import pytest
import trio

from trio_ledger_plugin import LedgerPluginError

__all__ = ["Collector"]

URL_SAFE = str.maketrans("+/", "-_")


class Collector:
    """Keeps everything that the package shows; it is also a log.

    Args:
        canaries: What must not be shown, in any encoding.
    """

    def __init__(self, *canaries: bytes) -> None:
        self._canaries = canaries
        self.seen: list[str] = []

    def show(self, *things: object) -> None:
        for thing in things:
            self.seen += [repr(thing), str(thing), f"{thing}"]
            if isinstance(thing, bytes):
                self.seen.append(thing.decode("latin-1"))
            if isinstance(thing, BaseException):
                # Without source lines: the text of this file is no leak.
                shown = traceback.TracebackException.from_exception(thing, lookup_lines=False)
                self.seen += shown.format_exception_only()
                self.show(*thing.args, *vars(thing).values(), thing.__cause__, thing.__context__)

    def debug(self, message: str, *params: object) -> None:
        self.show(message, *params)

    trace = info = warn = error = debug

    async def fail(self, call: Any, *args: Any, **how: Any) -> None:
        with pytest.raises((LedgerPluginError, ValueError, TypeError, OSError)) as caught:
            await call(*args, **how)
        self.show(caught.value)

    async def use(self, plugin: Any) -> None:
        """Do what an application does, correctly and incorrectly, and keep everything that it sees."""
        self.show(plugin, plugin.options, plugin.address, plugin.statistics(), plugin.events, plugin.is_connected())
        for call, argument in ((plugin.send_data, b"ask"), (plugin.send_money, "5"), (plugin.send_data, "text")):
            try:
                self.show(await call(argument))
            except (LedgerPluginError, TypeError) as error:
                self.show(error)
        await self.fail(plugin.send_money, "-1")
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                self.show(plugin.events.receive_nowait())

    def check(self, caplog: Any, capfd: Any) -> None:
        self.show(*(record.getMessage() for record in caplog.records), *capfd.readouterr())
        assert len(self.seen) > 20
        hidden = [form for canary in self._canaries for form in _forms(canary)]
        assert [text for text in self.seen if any(form in text for form in hidden)] == []


def _forms(canary: bytes) -> list[str]:
    """Return how bytes may look in a text."""
    base64 = b64encode(canary).decode().rstrip("=")
    return [canary.decode("latin-1"), repr(canary)[2:-1], canary.hex(), base64, base64.translate(URL_SAFE)]
