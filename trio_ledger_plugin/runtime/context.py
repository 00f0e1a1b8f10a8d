"""What the parts of a plugin share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from ..log import RedactingLog, StdlibLog
from ..statistics import Counters
from .budget import Budget
from .handlers import Handlers
from .tasks import TaskGroup
from .timers import Timers
from .workers import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from ..options.base import PluginOptions
    from ..services import PluginServices
    from .handlers import Receive
    from .tasks import OnEnd

__all__ = ["Context"]


@frozen(eq=False)
class Context:
    """What the parts of a plugin share; it holds no protocol, no money and no plugin.

    An account of a server has its server's context with other counters, handlers and another budget.

    Attributes:
        options: The plugin's options.
        log: The log of the plugin, which keeps credentials out of the log that the application gave.
        counters: What the plugin counts.
        tasks: The plugin's tasks.
        timers: The plugin's deadlines.
        workers: The tasks that run handlers.
        handlers: The application's handlers.
        budget: What the plugin, or the account, holds.
    """

    options: PluginOptions
    log: RedactingLog
    counters: Counters
    tasks: TaskGroup
    timers: Timers
    workers: WorkerPool
    handlers: Handlers
    budget: Budget

    @classmethod
    def for_plugin(
        cls,
        options: PluginOptions,
        services: PluginServices,
        nursery: trio.Nursery,
        *,
        receive: Receive,
        on_end: OnEnd,
        is_busy: Callable[[], bool],
    ) -> Context:
        """Return the context of a new plugin.

        Args:
            options: The plugin's options.
            services: Its log is the plugin's; the standard library's where it has none.
            nursery: Where the plugin's tasks run.
            receive: Called with each transfer of the peer's.
            on_end: Called when the plugin's tasks have ended.
            is_busy: Whether tasks are needed that were told to end when they are idle.
        """
        log = RedactingLog(services.log or StdlibLog(), options.secrets())
        timers = Timers()
        tasks = TaskGroup(nursery, timers, on_end, is_busy)
        workers = WorkerPool(
            tasks,
            log,
            limit=options.max_handlers,
            handler_bytes_limit=options.max_handler_bytes,
            backlog_limit=options.max_backlog_bytes,
            timeout=options.handler_timeout,
        )
        timers.periodic.append(workers)
        handlers = Handlers(log, receive, max_reply=options.max_data_bytes)
        return cls(options, log, Counters(), tasks, timers, workers, handlers, Budget())
