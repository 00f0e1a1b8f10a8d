"""What the parts of a plugin share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import field, frozen

from ..log import StdlibLog
from ..statistics import Counters
from .budget import Budget, Limits
from .handlers import Handlers
from .plugin_log import PluginLog
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


@frozen(eq=False, repr=False)
class Context:
    """What the parts of a plugin share. It knows no protocol, no money and no plugin.

    An account's context is its server's, except for counters, handlers, budget and gauges.

    Attributes:
        options: The plugin's options.
        log: The plugin's log; it passes messages on to the application's log, without credentials, and once where they
            may come again and again.
        counters: The counters for statistics.
        tasks: The plugin's tasks.
        timers: The plugin's deadlines.
        workers: The tasks that run handlers.
        handlers: The application's handlers.
        budget: Counts what the plugin or the account uses.
        gauges: Each returns what a part of the plugin has now, as ``Statistics`` names it; called from any thread.
    """

    options: PluginOptions
    log: PluginLog
    counters: Counters
    tasks: TaskGroup
    timers: Timers
    workers: WorkerPool
    handlers: Handlers
    budget: Budget
    gauges: list[Callable[[], dict[str, int]]] = field(factory=list)

    def measure(self) -> dict[str, int]:
        """Return what is used now, as ``Statistics`` names it; may be called from any thread."""
        now = self.budget.measure()
        for gauge in self.gauges:
            now |= gauge()
        return now

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
            services: Has the application's log. Without one, the plugin logs to the standard library's.
            nursery: Where the plugin's tasks run.
            receive: Called with each transfer from the peer.
            on_end: Called when the plugin's tasks have ended.
            is_busy: Returns whether the tasks are still needed, after ``close_when_idle()``.
        """
        timers = Timers()
        log = PluginLog(services.log or StdlibLog(), options.secrets(), timers, tracebacks=options.log_tracebacks)

        def end(crash: Exception | None, cancelled: bool) -> Exception | None:
            log.end()
            return on_end(crash, cancelled)

        tasks = TaskGroup(nursery, timers, end, is_busy)
        workers = WorkerPool(tasks, log, timeout=options.handler_timeout)
        timers.periodic.append(workers)
        counters = Counters()
        handlers = Handlers(log, counters, receive, max_reply=options.max_data_bytes)
        return cls(options, log, counters, tasks, timers, workers, handlers, Budget(Limits.of_account(options)))
