"""The metrics of plugins in the text format of OpenMetrics."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias

import trio
from attrs import fields, frozen

from ..statistics import GAUGES, Statistics
from .limits import budgets_of
from .meter import BOUNDS, ReplyMeter
from .pace import PATIENCE

try:
    from prometheus_client import CollectorRegistry, ProcessCollector
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
    from prometheus_client.registry import Collector
except ModuleNotFoundError as _error:
    if not str(_error.name).startswith("prometheus_client"):
        # The program hides another module that the client needs.
        raise
    _message = "the admin page is an extra; in a clone: pip install '.[admin]'"
    raise ModuleNotFoundError(_message, name=_error.name) from _error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .watched import Watched

__all__ = ["MEDIA_TYPE", "METRICS", "Family", "write_metrics"]

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST
PREFIX: Final = "ledger_plugin_"

# A number; for a histogram, the meter that has it.
Value: TypeAlias = float | ReplyMeter
Sample: TypeAlias = "tuple[tuple[str, ...], Value]"


@frozen
class Family:
    """One metric.

    Attributes:
        name: Its name, without the prefix, and for a counter without ``_total``.
        kind: ``counter``, ``gauge`` or ``histogram``.
        meaning: What it says.
        labels: The names of its labels besides ``plugin``.
    """

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()

    @property
    def shown_name(self) -> str:
        """The name as it is written for a value, or for a histogram before ``_bucket``, ``_count`` and ``_sum``."""
        return f"{PREFIX}{self.name}{'_total' if self.kind == 'counter' else ''}"


def _statistics() -> Iterator[Family]:
    for each in fields(Statistics):
        kind = "gauge" if each.name in GAUGES else "counter"
        yield Family(each.name, kind, f"{each.name.replace('_', ' ')}, as in statistics()")


CONNECTED: Final = Family("connected", "gauge", "1 while a peer is connected; a server of many accounts: it listens")
USABLE: Final = Family("usable", "gauge", "1 unless the plugin has failed or is closed")
ACCOUNTS: Final = Family("accounts_connected", "gauge", "accounts of a server that are connected")
ERRORS: Final = Family("errors", "counter", "requests that ended with an error", ("direction", "code"))
DURATION: Final = Family("request_duration_seconds", "histogram", "how long one request of eight took", ("direction",))
BUDGET: Final = Family("budget_used_ratio", "gauge", "which part of a limit is used", ("budget",))
TRANSFERS: Final = Family("transfers", "gauge", "transfers in the journal", ("direction", "state"))
MONEY: Final = Family("money", "counter", "sum of settled transfers, in the smallest unit", ("direction",))
UNSETTLED: Final = Family(
    "money_unsettled", "gauge", "sum of outgoing transfers without an outcome, in the smallest unit"
)
DOUBTS: Final = Family("transfers_in_doubt", "gauge", "transfers that an operator has to settle")
OLDEST: Final = Family("oldest_doubt_seconds", "gauge", "the age of the oldest of them; 0 if there are none")
STORE: Final = Family("store_latency_seconds", "gauge", "how long the store took to answer a question")
STORE_FAILED: Final = Family("store_failed", "gauge", "1 if the store failed or did not answer in time")
AGE: Final = Family("watched_seconds", "gauge", "for how long the admin page has watched the plugin")

#: Every metric of a plugin; the documentation has a row for each.
METRICS: Final = (
    CONNECTED,
    USABLE,
    *_statistics(),
    ERRORS,
    DURATION,
    BUDGET,
    ACCOUNTS,
    TRANSFERS,
    MONEY,
    UNSETTLED,
    DOUBTS,
    OLDEST,
    STORE,
    STORE_FAILED,
    AGE,
)


async def write_metrics(plugins: Sequence[Watched]) -> bytes:
    """Return the metrics of the plugins, and those of the process.

    Cancellation: Safe at any time.
    """
    for watched in plugins:
        # All at once: several stores that hang, as on one disk, take no longer than one.
        watched.money.looks.ask()
        if watched.accounts is not None:
            watched.accounts.looks.ask()
    with trio.move_on_after(PATIENCE):
        for watched in plugins:
            await watched.money.looks.wait()
            if watched.accounts is not None:
                await watched.accounts.looks.wait()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Plugins(plugins))
    ProcessCollector(registry=registry)
    page: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # of the client's
    return page


class _Plugins(Collector):
    """Collects the metrics of plugins.

    Args:
        plugins: The plugins.
    """

    def __init__(self, plugins: Iterable[Watched]) -> None:
        self._samples: dict[Family, list[Sample]] = {family: [] for family in METRICS}
        for watched in plugins:
            for family, labels, value in _measure(watched):
                self._samples[family].append(((watched.name, *labels), value))

    def collect(self) -> Iterator[Metric]:
        """Yield each metric that has a value."""
        for family, samples in self._samples.items():
            if samples:
                yield _as_metric(family, samples)


def _as_metric(family: Family, samples: list[Sample]) -> Metric:
    name, labels = PREFIX + family.name, ("plugin", *family.labels)
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.meaning, labels=labels)
        for values, value in samples:
            assert isinstance(value, ReplyMeter)
            histogram.add_metric(values, _buckets(value), value.seconds)
        return histogram
    made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = made(name, family.meaning, labels=labels)
    for values, value in samples:
        assert not isinstance(value, ReplyMeter)
        metric.add_metric(values, value)
    return metric


def _measure(watched: Watched) -> Iterator[tuple[Family, tuple[str, ...], Value]]:
    """Yield each metric of a plugin with the values of its labels besides ``plugin``."""
    plugin, statistics = watched.plugin, watched.statistics.get()
    yield CONNECTED, (), int(plugin.is_connected())
    yield USABLE, (), int(not watched.find_end())
    for family in _statistics():
        yield family, (), getattr(statistics, family.name)
    for direction, meter in (("handled", watched.handled), ("answered", watched.answered)):
        for code, count in meter.errors.items():
            yield ERRORS, (direction, code), count
        yield DURATION, (direction,), meter
    for budget in budgets_of(plugin, statistics):
        yield BUDGET, (budget.name,), budget.used / budget.limit
    if watched.accounts is not None and not watched.accounts.looks.has_failed:
        yield ACCOUNTS, (), watched.accounts.count()
    yield AGE, (), watched.seconds
    yield from _measure_money(watched)


def _measure_money(watched: Watched) -> Iterator[tuple[Family, tuple[str, ...], Value]]:
    view = watched.money
    if view.transfers is None:
        return
    yield STORE_FAILED, (), int(view.has_failed)
    for (direction, state), count in view.states.items():
        yield TRANSFERS, (direction.value, state.value), count
    seen = view.seen
    if seen is None:
        return
    yield MONEY, ("out",), seen.totals.sent
    yield MONEY, ("in",), seen.totals.received
    yield UNSETTLED, (), seen.totals.in_doubt
    yield DOUBTS, (), seen.count
    yield OLDEST, (), seen.oldest_seconds
    yield STORE, (), seen.store_seconds


def _buckets(meter: ReplyMeter) -> list[tuple[str, float]]:
    names = [*map(str, BOUNDS), "+Inf"]
    return list(zip(names, accumulate(meter.counts), strict=True))
