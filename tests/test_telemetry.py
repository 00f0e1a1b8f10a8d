"""What a plugin reports to OpenTelemetry, checked with its SDK: account, time, size and outcome, and nothing else."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
import trio
from attrs import asdict
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from support.programs import CANARY

from trio_ledger_plugin import (
    InsufficientBalanceError,
    NotConnectedError,
    PluginServices,
    RemoteError,
    create_plugin,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.btp.accounts import AccountsPlugin
from trio_ledger_plugin.statistics import GAUGES
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.telemetry import Telemetry


class Observatory:
    """OpenTelemetry's SDK, exporting into this process's memory."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.telemetry = Telemetry(
            tracer_provider=self.tracers, meter_provider=MeterProvider(metric_readers=[self.reader])
        )

    def spans(self) -> list[tuple[str, SpanKind, dict[str, Any]]]:
        """Return the method, the kind and the attributes of each span that has ended."""
        ended = []
        for span in self.exporter.get_finished_spans():
            values = {name.rpartition("ledger_plugin.")[2]: value for name, value in (span.attributes or {}).items()}
            ended.append((str(values["rpc.method"]), span.kind, values))
        return ended

    def metrics(self) -> dict[str, dict[str, int]]:
        """Return each metric's values, by account."""
        data = self.reader.get_metrics_data()
        if data is None:
            return {}
        values: dict[str, dict[str, int]] = {}
        for metric in (m for r in data.resource_metrics for scope in r.scope_metrics for m in scope.metrics):
            for point in metric.data.data_points:
                assert isinstance(point, NumberDataPoint)
                assert isinstance(point.value, int)
                account = str((point.attributes or {}).get("ledger_plugin.account", ""))
                values.setdefault(metric.name.removeprefix("ledger_plugin."), {})[account] = point.value
        return values

    def everything(self):
        """Return everything that was exported, as text."""
        spans = "".join(span.to_json() for span in self.exporter.get_finished_spans())
        data = self.reader.get_metrics_data()
        return spans + ("" if data is None else data.to_json())


@pytest.fixture
def observatory() -> Iterator[Observatory]:
    made = Observatory()
    yield made
    made.tracers.shutdown()


async def shout(data: bytes) -> bytes:
    return data.upper() * 2


async def take(amount: str) -> None:
    pass


async def test_request_is_a_span_at_each_end_with_its_sizes(observatory):
    """An operator who looks for slow requests would see half of them, or requests that never happened."""
    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(shout)
        observatory.telemetry.observe(alice, account="alice")
        observatory.telemetry.observe(bob, account="bob")
        assert await alice.send_data(b"hello") == b"HELLOHELLO"
    common = {"rpc.system.name": "ledger_plugin", "class": "LoopbackPlugin", "request.size": 5, "response.size": 10}
    assert sorted(observatory.spans(), key=str) == sorted(
        [
            (
                "send_data",
                SpanKind.CLIENT,
                {"rpc.method": "send_data", "account": "alice", "outcome": "ok", **common},
            ),
            (
                "handle_data",
                SpanKind.SERVER,
                {"rpc.method": "handle_data", "account": "bob", "outcome": "ok", **common},
            ),
        ],
        key=str,
    )


async def test_call_is_in_the_callers_trace_and_handler_in_its_own(observatory):
    """A trace would end at the plugin, or claim that BTP carried it to the peer."""
    tracer = observatory.tracers.get_tracer("the application")
    async with loopback_pair() as (alice, bob):
        for plugin in (alice, bob):
            observatory.telemetry.observe(plugin)

        async def work(data: bytes) -> bytes:
            with tracer.start_as_current_span("within the handler"):
                return data

        bob.register_data_handler(work)
        with tracer.start_as_current_span("checkout") as checkout:
            await alice.send_data(b"")
    spans = {span.name: span for span in observatory.exporter.get_finished_spans()}
    called, handled = spans["ledger_plugin send_data"], spans["ledger_plugin handle_data"]
    assert called.parent.span_id == checkout.get_span_context().span_id
    assert handled.parent is None
    assert handled.context.trace_id != called.context.trace_id
    assert spans["within the handler"].parent.span_id == handled.context.span_id


async def test_handlers_registered_before_and_after_observe_are_traced(observatory, tmp_path):
    async with open_sqlite_store(tmp_path / "store.db") as store, open_plugin({"plugin": "loopback"}) as alice:
        applied: list[str] = []

        def apply(connection, transfer) -> None:
            applied.append(transfer.amount)

        async with open_plugin(
            {"plugin": "loopback"},
            PluginServices(store=store),
            data_handler=shout,
            transactional_money_handler=apply,
        ) as bob:
            observatory.telemetry.observe(bob)
            await alice.send_data(b"before")
            bob.deregister_data_handler()
            bob.register_data_handler(shout)
            await alice.send_data(b"after")
            await alice.send_money(5)
            bob.deregister_money_handler()
            handled = trio.Event()

            async def note(amount: str) -> None:
                applied.append(amount)
                handled.set()

            bob.register_money_handler(note)
            await alice.send_money(7)
            await handled.wait()
    assert applied == ["5", "7"]
    assert [method for method, _, _ in observatory.spans()] == ["handle_data"] * 2 + ["handle_money"] * 2


async def test_span_has_the_outcome(observatory):
    """An operator would count refusals as successes, or a client's cancellation as an error of the peer."""
    options = {"plugin": "loopback", "close_timeout": 0.01}
    async with open_plugin(options) as alice, open_plugin(options) as bob:
        observatory.telemetry.observe(alice)
        observatory.telemetry.observe(bob)

        async def misbehave(data: bytes) -> bytes:
            if data == b"broke":
                raise InsufficientBalanceError(CANARY)
            if data == b"bug":
                raise KeyError(CANARY)
            if data == b"text":
                return CANARY  # type: ignore[return-value]  # that is the bug
            await trio.sleep_forever()
            raise AssertionError("unreachable")

        bob.register_data_handler(misbehave)
        for question in (b"broke", b"bug", b"text"):
            with pytest.raises(RemoteError):
                await alice.send_data(question)
        with pytest.raises(RemoteError):
            await alice.send_money("5")
        with trio.move_on_after(0.01):
            await alice.send_data(b"never")
        await alice.disconnect()
        with pytest.raises(NotConnectedError):
            await alice.send_data(CANARY.encode())
        with pytest.raises(TypeError):
            await alice.send_data(CANARY)  # type: ignore[arg-type]  # that is the mistake

    def told(kind: SpanKind) -> list[tuple[object, ...]]:
        names = ("outcome", "error.type", "rpc.response.status_code")
        return [tuple(values.get(name) for name in names) for _, each, values in observatory.spans() if each is kind]

    assert told(SpanKind.SERVER) == [
        ("error", "InsufficientBalanceError", "F08"),
        ("error", "KeyError", None),
        ("error", "TypeError", None),
        ("cancelled", None, None),
    ]
    assert told(SpanKind.CLIENT) == [
        ("error", "RemoteError", "F08"),
        ("error", "RemoteError", "F00"),
        ("error", "RemoteError", "F00"),
        ("error", "RemoteError", "T00"),
        ("cancelled", None, None),
        ("error", "NotConnectedError", None),
        ("error", "TypeError", None),
    ]
    for span in observatory.exporter.get_finished_spans():
        is_error = span.attributes["ledger_plugin.outcome"] == "error"
        assert (span.status.status_code is StatusCode.ERROR) == is_error
        assert span.status.description is None
        failed = is_error and span.kind is SpanKind.SERVER
        assert [event.name for event in span.events] == ["exception"] * failed
    assert CANARY not in observatory.everything()


@pytest.mark.parametrize("tracebacks", [True, False])
async def test_exception_of_a_handler_is_an_event_of_its_span(observatory, tracebacks):
    """Who looks at a failed span would have to search the log for what failed."""

    async def fail(data: bytes) -> bytes:
        raise KeyError(CANARY)

    options = {"plugin": "loopback", "log_tracebacks": tracebacks}
    async with open_plugin({"plugin": "loopback"}) as alice, open_plugin(options, data_handler=fail) as bob:
        observatory.telemetry.observe(bob)
        with pytest.raises(RemoteError):
            await alice.send_data(b"")
    (span,) = observatory.exporter.get_finished_spans()
    (event,) = span.events
    assert event.name == "exception"
    attributes = dict(event.attributes)
    assert attributes.pop("exception.type") == "KeyError"
    stack = str(attributes.pop("exception.stacktrace", ""))
    assert ("raise KeyError(CANARY)" in stack) == tracebacks
    assert not attributes
    assert CANARY not in observatory.everything()


async def test_no_payload_amount_or_token_is_exported(observatory):
    """A reader of the traces could read, or spend, other people's money."""
    amount = "918273645"
    listener = {"listener": {"port": 0, "secret": CANARY}}
    async with open_plugin(listener, data_handler=shout, money_handler=take) as server:
        observatory.telemetry.observe(server)
        url = server.address.replace("://", f"://alice:{CANARY}@")
        async with open_plugin({"server": url, "money": "plain"}) as client:
            observatory.telemetry.observe(client)
            await client.send_data(b"a secret packet")
            await client.send_money(amount, idempotency_key=f"key-{CANARY}")
            told = observatory.everything()
    assert {values["account"] for _, kind, values in observatory.spans() if kind is SpanKind.CLIENT} == {"alice"}
    assert {values["address"] for _, _, values in observatory.spans()} == {server.address}
    for secret in (CANARY, amount, "a secret packet", "A SECRET PACKET"):
        assert secret not in told


async def test_metrics_equal_the_statistics(observatory):
    """Dashboards would show other numbers than the program itself."""
    async with loopback_pair() as (alice, bob):
        bob.register_data_handler(shout)
        observatory.telemetry.observe(alice, account="alice")
        observatory.telemetry.observe(bob, account="bob")
        observatory.telemetry.observe(bob, account="bob once more")
        for _ in range(3):
            await alice.send_data(b"x")
        for plugin, name in ((alice, "alice"), (bob, "bob")):
            metrics = observatory.metrics()
            assert metrics.pop("connected") == {"alice": 1, "bob": 1}
            assert {metric: values[name] for metric, values in metrics.items()} == asdict(plugin.statistics())
        assert metrics["requests_sent"] == {"alice": 3, "bob": 0}
        await alice.disconnect()
        assert observatory.metrics()["connected"] == {"alice": 0, "bob": 0}
    assert set(metrics) >= GAUGES


async def test_metrics_can_be_read_in_a_thread_while_accounts_change(observatory):
    """A scrape would fail, or the exporter's thread would end, whenever a client connects at that moment."""
    options = {
        "plugin": "btp-accounts",
        "port": 0,
        "debugHostIldcpInfo": {"clientAddress": "example.host", "assetScale": 9, "assetCode": "XRP"},
    }
    async with open_plugin(options, data_handler=shout) as server, trio.open_nursery() as nursery:
        assert isinstance(server, AccountsPlugin)
        observatory.telemetry.observe(server, account="all")
        observatory.telemetry.observe(server.account("alice"), account="alice")
        done = False

        def scrape() -> int:
            while not done:
                observatory.metrics()
            return int(observatory.metrics()["requests_received"]["all"])

        async def export() -> None:
            assert await trio.to_thread.run_sync(scrape) == 10

        nursery.start_soon(export)
        for number in range(10):
            async with open_plugin({"server": server.address.replace("://", f"://:token{number}@")}) as client:
                await client.send_data(b"x")
        done = True


async def test_telemetry_keeps_no_plugin_alive(observatory):
    """The memory of a server that opens and closes plugins all day would grow."""
    async with trio.open_nursery() as nursery:
        plugin = create_plugin({"plugin": "loopback"}, nursery=nursery)
        observatory.telemetry.observe(plugin)
        assert observatory.metrics()["requests_sent"] == {"": 0}
        await plugin.aclose()
        gone = ref(plugin)
        del plugin
        gc.collect()
        assert gone() is None
        assert "requests_sent" not in observatory.metrics()


def test_opentelemetry_is_imported_only_on_demand():
    """Every program would pay for it in time and memory, whether it uses it or not."""
    program = "import sys, trio_ledger_plugin.btp.accounts; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_import_without_the_extra_says_what_to_install():
    program = "import sys; sys.modules['opentelemetry'] = None; import trio_ledger_plugin.telemetry"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: telemetry is an extra; in a clone: pip install '.[otel]'"
    )
