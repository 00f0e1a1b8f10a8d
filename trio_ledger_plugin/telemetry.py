"""OpenTelemetry: spans of requests and transfers, and the counts of ``statistics()``. Needs the extra ``otel``.

Invariant: spans and metrics contain account, time, duration, size and outcome. They never contain a payload, an amount,
a credential or the text of an error. A handler's exception is an event of its span, with its class and the places where
it arose.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from traceback import format_tb
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

import trio
from attrs import fields

from .runtime.handlers import as_bytes, begin_handling
from .statistics import GAUGES, Statistics

try:
    from opentelemetry.metrics import Observation, get_meter
    from opentelemetry.trace import SpanKind, StatusCode, get_tracer
except ModuleNotFoundError as _error:
    _message = "telemetry is an extra; in a clone: pip install '.[otel]'"
    raise ModuleNotFoundError(_message, name=_error.name) from _error

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.metrics import CallbackOptions, MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from .plugin import LedgerPlugin
    from .runtime.handlers import DataHandler, MoneyHandler, TransactionalMoneyHandler
    from .transfer import Transfer

__all__ = ["Telemetry"]

SCOPE: Final = "trio_ledger_plugin"


class Telemetry:
    """Reports to OpenTelemetry what plugins do; one object for a program.

    Args:
        tracer_provider: Receives the spans; OpenTelemetry's global one if None.
        meter_provider: Receives the metrics; likewise.
    """

    def __init__(
        self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = get_tracer(SCOPE, version("trio-ledger-plugin"), tracer_provider)
        # Weak references, so that telemetry does not keep a plugin alive that the program no longer uses.
        self._observed: list[tuple[ref[LedgerPlugin], dict[str, str]]] = []
        meter = get_meter(SCOPE, version("trio-ledger-plugin"), meter_provider)
        for name in (each.name for each in fields(Statistics)):
            create = meter.create_observable_gauge if name in GAUGES else meter.create_observable_counter
            unit = "By" if name.startswith("bytes") else "1"
            create(f"ledger_plugin.{name}", [partial(self._count, name)], unit, name.replace("_", " "))
        meter.create_observable_gauge("ledger_plugin.connected", [self._connected], "1", "1 while a peer is connected")

    def observe(self, plugin: LedgerPlugin, *, account: str = "") -> None:
        """Trace and count what a plugin does from now on; a second call for the same plugin changes nothing.

        ``send_data`` and ``send_money`` get spans of the kind ``CLIENT``, within the caller's span. Handlers get spans
        of the kind ``SERVER``, whether they are registered before or after this call. A handler's exception is an event
        of its span: its class and, unless the option ``log_tracebacks`` is False, its traceback, without its text. BTP
        has no field for trace context, so the spans of the two ends are in different traces.

        Args:
            plugin: The plugin.
            account: The account's name in spans and metrics; if empty, the name from the plugin's options.
        """
        self._observed = [each for each in self._observed if each[0]() is not None]
        if any(each() is plugin for each, _ in self._observed):
            return
        known = {
            "ledger_plugin.class": type(plugin).__name__,
            "ledger_plugin.account": account or str(getattr(plugin.options, "btp_account", "")),
            "ledger_plugin.address": plugin.address,
        }
        attributes = {name: value for name, value in known.items() if value}
        self._observed.append((ref(plugin), attributes))
        handlers = _HandlerSpans(self._span, attributes, tracebacks=plugin.options.log_tracebacks)
        plugin.handlers.wrap(handlers.wrap)
        send_data, send_money = plugin.send_data, plugin.send_money

        async def traced_send_data(data: bytes | bytearray | memoryview) -> bytes:
            with self._span("send_data", SpanKind.CLIENT, attributes) as span:
                request = as_bytes(data)
                span.set_attribute("ledger_plugin.request.size", len(request))
                response = await send_data(request)
                span.set_attribute("ledger_plugin.response.size", len(response))
                return response

        async def traced_send_money(amount: str | int, *, idempotency_key: str | None = None) -> None:
            with self._span("send_money", SpanKind.CLIENT, attributes):
                await send_money(amount, idempotency_key=idempotency_key)

        # Replaced on this object only, so that plugins without telemetry pay nothing.
        plugin.send_data = traced_send_data  # type: ignore[method-assign]  # replacing the method is the purpose
        plugin.send_money = traced_send_money  # type: ignore[method-assign]  # likewise

    @contextmanager
    def _span(self, method: str, kind: SpanKind, attributes: Mapping[str, str]) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            f"ledger_plugin {method}",
            kind=kind,
            attributes={"rpc.system.name": "ledger_plugin", "rpc.method": method, **attributes},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except trio.Cancelled:
                span.set_attribute("ledger_plugin.outcome", "cancelled")
                raise
            except BaseException as error:
                span.set_attribute("ledger_plugin.outcome", "error")
                span.set_attribute("error.type", type(error).__name__)
                if code := getattr(error, "code", ""):
                    span.set_attribute("rpc.response.status_code", str(code))
                span.set_status(StatusCode.ERROR)
                raise
            span.set_attribute("ledger_plugin.outcome", "ok")

    # Callbacks of the metrics, called by an exporter in its own thread.

    def _plugins(self) -> Iterator[tuple[LedgerPlugin, dict[str, str]]]:
        for each, attributes in self._observed:
            plugin = each()
            if plugin is not None:
                yield plugin, attributes

    def _count(self, name: str, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(getattr(plugin.statistics(), name), attributes) for plugin, attributes in self._plugins()]

    def _connected(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(int(plugin.is_connected()), attributes) for plugin, attributes in self._plugins()]


class _HandlerSpans:
    """Makes the spans of one plugin's handlers.

    Args:
        span: Opens a span.
        attributes: The plugin's attributes.
        tracebacks: Whether the event of an exception has its traceback.
    """

    def __init__(
        self,
        span: Callable[[str, SpanKind, Mapping[str, str]], AbstractContextManager[Span]],
        attributes: Mapping[str, str],
        *,
        tracebacks: bool,
    ) -> None:
        self._open = span
        self._attributes = attributes
        self._tracebacks = tracebacks

    @contextmanager
    def _span(self, method: str) -> Iterator[Span]:
        with self._open(method, SpanKind.SERVER, self._attributes) as span:
            try:
                yield span
            except Exception as error:
                span.add_event("exception", self._describe(error))
                raise

    def _describe(self, error: Exception) -> dict[str, str]:
        """Return the attributes of an exception's event. Its text may contain a payload or an amount."""
        name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        if not self._tracebacks:
            return {"exception.type": name}
        places = "".join(format_tb(error.__traceback__))
        return {"exception.type": name, "exception.stacktrace": f"Traceback (most recent call last):\n{places}{name}"}

    def wrap(self, kind: str, handler: Any) -> Any:  # noqa: ANN401 (of any kind)
        """Return the function to call instead of a handler."""
        wraps: dict[str, Callable[[Any], Any]]
        wraps = {"data": self._wrap_data, "money": self._wrap_money, "transactional_money": self._wrap_transactional}
        return wraps[kind](handler)

    def _wrap_data(self, handler: DataHandler) -> DataHandler:
        async def traced(data: bytes) -> bytes:
            with self._span("handle_data") as span:
                span.set_attribute("ledger_plugin.request.size", len(data))
                response = as_bytes(await handler(data), "what a data handler returns")
                span.set_attribute("ledger_plugin.response.size", len(response))
                return response

        return traced

    def _wrap_money(self, handler: MoneyHandler) -> MoneyHandler:
        async def traced(amount: str) -> None:
            with self._span("handle_money"):
                await begin_handling(handler, amount)

        return traced

    def _wrap_transactional(self, handler: TransactionalMoneyHandler) -> TransactionalMoneyHandler:
        def traced(connection: sqlite3.Connection, transfer: Transfer) -> None:
            with self._span("handle_money"):
                # Returned unchanged: the plugin refuses a coroutine, which an async function would return.
                return handler(connection, transfer)

        return traced
