"""What a plugin gives to its links."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..answering import Handlers
    from ..errors import LedgerPluginError
    from ..handlers import HandlerPool
    from ..money.desk import MoneyDesk
    from ..options import LinkOptions
    from ..services import Log
    from ..statistics import Counters
    from ..tasks import PluginTasks

__all__ = ["LinkHost"]


class LinkHost(Protocol):
    """The plugin's side of its links."""

    options: LinkOptions
    tasks: PluginTasks
    pool: HandlerPool
    handlers: Handlers
    counters: Counters

    @property
    def log(self) -> Log:
        """Where to log."""

    desk: MoneyDesk
    ids: Iterator[int]

    def response_too_long(self, response: bytes) -> LedgerPluginError:
        """Return what the peer is told in place of a response that does not fit a message."""
