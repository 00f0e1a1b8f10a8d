"""What a plugin gives to its links."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..errors import LedgerPluginError
    from ..money.service import MoneyService
    from ..options.base import PluginOptions
    from ..runtime.handlers import Handlers
    from ..runtime.tasks import TaskGroup
    from ..runtime.workers import WorkerPool
    from ..services import Log
    from ..statistics import Counters

__all__ = ["LinkHost"]


class LinkHost(Protocol):
    """The plugin's side of its links."""

    options: PluginOptions
    tasks: TaskGroup
    pool: WorkerPool
    handlers: Handlers
    counters: Counters

    @property
    def log(self) -> Log:
        """Where to log."""

    desk: MoneyService
    ids: Iterator[int]

    def response_too_long(self, response: bytes) -> LedgerPluginError:
        """Return what the peer is told in place of a response that does not fit a message."""
