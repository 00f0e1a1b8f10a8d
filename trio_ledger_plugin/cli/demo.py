"""``demo``: the plugin at work over a real TCP connection that breaks halfway."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING

import click
import trio
from attrs import asdict, define, evolve, fields_dict, frozen

from ..btp.options import BtpOptions, ListenerOptions
from ..btp.plugin import BtpPlugin
from ..codec import ilp
from ..errors import ConnectionLostError, LedgerPluginError
from ..event_text import event_text
from ..events import Connected, Disconnected
from ..http.options import HttpOptions, IncomingOptions, OutgoingOptions
from ..opening import open_plugin
from ..options.base import ConnectOptions
from ..services import PluginServices
from ..statistics import Statistics
from ..stream import Asset, ReceivedPacket, open_receiver, pay
from ..stream.crypto import is_installed
from ..testing.proxy import FaultProxy, open_fault_proxy
from .errors import COMMON, ENDED, Exit, one_line, unwrap_error
from .output import Screen
from .parameters import Command, Seconds, epilog, json_option
from .replies import fulfill, make_question
from .signals import run_until_sigterm

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..events import Event
    from ..plugin import LedgerPlugin

__all__ = ["demo"]

CONNECT_MILLISECONDS = 5000
LIFETIME_SECONDS = 10.0
OUTAGE_SECONDS = 0.5
AT_ONCE = 200
PAYMENT = 50_000


class StepFailedError(Exception):
    """A step did not do what it should."""


@frozen
class Outcome:
    """The outcome of a step; ``passed`` is None if the step was not tried."""

    step: str
    passed: bool | None = None
    detail: str = "not tried"
    milliseconds: float = 0.0


@define
class Side:
    """One end: its plugin, its events so far, and the money that it received."""

    name: str
    plugin: BtpPlugin
    events: list[Event]
    ended: bool = False
    received: int = 0

    async def take_money(self, amount: str) -> None:
        """Count a transfer of the other end."""
        self.received += int(amount)


class Demonstration:
    """The two ends, the network between them, and the steps.

    Args:
        nursery: Runs the plugins and the network.
        tell: Called with the name of a side and a text for each of its events.
    """

    def __init__(self, nursery: trio.Nursery, tell: Callable[[str, str], None]) -> None:
        self._nursery = nursery
        self._tell = tell
        self._secret = secrets.token_hex(16)
        self._news = trio.Event()
        self.sides: dict[str, Side] = {}
        self.network: FaultProxy

    @property
    def steps(self) -> tuple[tuple[str, Callable[[], Awaitable[str]]], ...]:
        """The steps in order; each returns what it found."""
        return (
            ("listen", self.listen),
            ("connect", self.connect),
            ("packets both ways, fulfilled", self.fulfill),
            ("a packet rejected", self.reject),
            (f"{AT_ONCE} packets at once", self.send_many),
            ("money both ways", self.pay),
            ("cut the link under a call", self.cut),
            ("redial", self.redial),
            ("packets and money after it", self.send_again),
            ("packets over HTTP both ways", self.use_http),
            *((("a whole payment", self.pay_stream),) if is_installed() else ()),
            ("close", self.close),
        )

    async def listen(self) -> str:
        """Open the server, and the network in front of it."""
        server = self._add("server", BtpOptions(listener=ListenerOptions(port=0, secret=self._secret)))
        await server.plugin.connect()
        self.network = await self._nursery.start(self._run_network, int(server.plugin.address.rpartition(":")[2]))
        return f"{server.plugin.address}, reached through port {self._port}"

    async def connect(self) -> str:
        """Open the client."""
        url = f"btp+ws://demo:{self._secret}@127.0.0.1:{self._port}"
        client = self._add("client", BtpOptions(server=url))
        await client.plugin.connect(ConnectOptions(timeout=CONNECT_MILLISECONDS))
        await self._until(lambda: all(Connected() in side.events for side in self.sides.values()))
        return "authenticated"

    async def fulfill(self) -> str:
        """Send a Prepare each way, and check the preimage in the answer."""
        for side in self.sides.values():
            await _ask_fulfilled(side.plugin)
        return "each preimage matches its condition"

    async def reject(self) -> str:
        """Send a Prepare whose condition has no known preimage."""
        prepare = ilp.make_prepare(100, "peer.ping", bytes(32), LIFETIME_SECONDS)
        answer = await _ask(self.sides["client"].plugin, prepare)
        if not isinstance(answer, ilp.Reject):
            raise StepFailedError(f"the answer is a {type(answer).__name__}")
        _check(answer.code == ilp.ErrorCode.WRONG_CONDITION, f"the code is {answer.code}")
        return f"code {answer.code}, since the preimage is unknown"

    async def send_many(self) -> str:
        """Have many requests in flight; each must get its own answer."""
        async with trio.open_nursery() as calls:
            for _ in range(AT_ONCE):
                calls.start_soon(_ask_fulfilled, self.sides["client"].plugin)
        return "each got its own answer"

    async def pay(self) -> str:
        """Send money each way."""
        await self._pay("client", "server", 250)
        await self._pay("server", "client", 100)
        return "client sent 250, server sent 100"

    async def cut(self) -> str:
        """Cut the connection while a request is in flight: it must fail at once."""
        client = self.sides["client"].plugin
        self.network.stall()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._expect_loss, client)
            while client.calls_in_flight() == 0:  # noqa: ASYNC110 (a count has no event; this takes a turn or two)
                await trio.lowlevel.checkpoint()
            began = trio.current_time()
            self.network.cut()
        took = trio.current_time() - began
        await self._until(lambda: all(isinstance(side.events[-1], Disconnected) for side in self.sides.values()))
        return f"the call in flight failed after {took * 1000:.0f} ms"

    async def redial(self) -> str:
        """End the outage after a while: the client connects again by itself."""
        await trio.sleep(OUTAGE_SECONDS)
        self.network.resume()
        await self._until(lambda: all(side.events.count(Connected()) == 2 for side in self.sides.values()))
        redials = self.sides["client"].plugin.statistics().redials
        _check(redials == 1, f"the client counts {redials} redials")
        return f"connected again after an outage of {OUTAGE_SECONDS:g} s"

    async def send_again(self) -> str:
        """Send packets and money over the new link."""
        await self.fulfill()
        await self._pay("client", "server", 50)
        return "client sent 50 more"

    async def use_http(self) -> str:
        """Send a Prepare each way over HTTP, between two other plugins."""
        token = self._secret
        serving = HttpOptions(incoming=IncomingOptions(port=0, static_token=token))
        async with open_plugin(serving, data_handler=fulfill) as first:
            there = OutgoingOptions(url=f"{first.address}/ilp", static_token=token)
            async with open_plugin(evolve(serving, outgoing=there), data_handler=fulfill) as second:
                back = OutgoingOptions(url=f"{second.address}/ilp", static_token=token)
                async with open_plugin(HttpOptions(outgoing=back)) as third:
                    for plugin in (second, third):
                        await _ask_fulfilled(plugin)
                return f"each POST to {first.address} and {second.address} has its Fulfill as the response"

    async def pay_stream(self) -> str:
        """Make a payment of many packets (STREAM): the server receives, the client pays."""
        server, client = (self.sides[name].plugin for name in ("server", "client"))
        server.deregister_data_handler()
        packets: list[ReceivedPacket] = []
        receiving = open_receiver(
            server,
            secret=secrets.token_bytes(32),
            address="example.demo",
            asset=Asset("XRP", 9),
            on_packet=packets.append,
        )
        async with receiving as receiver:
            paid = await pay(client, receiver.new_credentials(tag="demo"), send=PAYMENT, max_packet=PAYMENT // 50)
        _check(paid.sent == paid.delivered == PAYMENT, f"{paid.sent} were sent and {paid.delivered} delivered")
        _check(sum(packet.amount for packet in packets) == PAYMENT, "the receiver counts another amount")
        return f"{PAYMENT:,} sent and delivered in {len(packets)} packets"

    async def close(self) -> str:
        """Close both ends; no call may be left."""
        for side in reversed(self.sides.values()):
            await side.plugin.aclose()
        await self._until(lambda: all(side.ended for side in self.sides.values()))
        left = sum(side.plugin.calls_in_flight() for side in self.sides.values())
        _check(left == 0, f"{left} calls were left")
        return "no call is left"

    def _add(self, name: str, options: BtpOptions) -> Side:
        plugin = BtpPlugin(options, PluginServices(), self._nursery)
        side = self.sides[name] = Side(name, plugin, [])
        plugin.register_data_handler(fulfill)
        plugin.register_money_handler(side.take_money)
        self._nursery.start_soon(self._follow, side)
        return side

    async def _follow(self, side: Side) -> None:
        """Report a side's events as they come."""
        async for event in side.plugin.events:
            side.events.append(event)
            self._tell(side.name, event_text(event))
            self._wake()
        side.ended = True
        self._wake()

    async def _run_network(self, port: int, *, task_status: trio.TaskStatus[FaultProxy]) -> None:
        async with open_fault_proxy(("127.0.0.1", port)) as network:
            task_status.started(network)
            await trio.sleep_forever()

    @property
    def _port(self) -> int:
        """The port at which the network leads to the server."""
        assert self.network.address is not None
        return self.network.address[1]

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def _until(self, come_true: Callable[[], bool]) -> None:
        while not come_true():
            await self._news.wait()

    async def _pay(self, sender: str, receiver: str, amount: int) -> None:
        before = self.sides[receiver].received
        await self.sides[sender].plugin.send_money(amount)
        arrived = self.sides[receiver].received - before
        _check(arrived == amount, f"{amount} were sent and {arrived} arrived")

    async def _expect_loss(self, plugin: BtpPlugin) -> None:
        try:
            await _ask(plugin, make_question(1, LIFETIME_SECONDS))
        except ConnectionLostError:
            return
        raise StepFailedError("a call was answered over a cut link")


async def _ask(plugin: LedgerPlugin, prepare: ilp.Prepare) -> ilp.Packet:
    return ilp.decode(await plugin.send_data(ilp.encode(prepare)))


async def _ask_fulfilled(plugin: LedgerPlugin) -> None:
    prepare = make_question(100, LIFETIME_SECONDS)
    answer = await _ask(plugin, prepare)
    right = isinstance(answer, ilp.Fulfill) and ilp.fulfills(answer.fulfillment, prepare.execution_condition)
    _check(right, f"the answer is a {type(answer).__name__}, without the right preimage")


def _check(right: bool, otherwise: str) -> None:
    if not right:
        raise StepFailedError(otherwise)


EXAMPLES = """
  trio-ledger-plugin demo
  trio-ledger-plugin demo --json
"""


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON, *ENDED),
    short_help="Two plugins over a real TCP connection that breaks.",
)
@click.option("--deadline", type=Seconds(), default=20.0, show_default=True, help="Seconds for all steps.")
@json_option
def demo(deadline: float, as_json: bool) -> int:
    """Show two plugins at work over a TCP connection on this machine.

    A server listens on a free port and a client dials it. They send ILP packets and money both ways. Then the
    connection is cut during a call, and the client connects again. Each event is shown as it comes, and each step
    ends in PASS or FAIL. The demo needs no configuration, and nothing leaves this machine.
    """
    report = DemoReport(Screen(), silent=as_json)
    run_until_sigterm(_run, report, deadline)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        report.show_summary()
    return Exit.OK if report.passed else Exit.FAILED


class DemoReport:
    """What happened: a line for each event and step, and a summary.

    Args:
        screen: Stdout.
        silent: Whether to write no lines.
    """

    def __init__(self, screen: Screen, *, silent: bool) -> None:
        self._screen = screen
        self._silent = silent
        self._began = time.perf_counter()
        self.events: list[dict[str, object]] = []
        self.outcomes: list[Outcome] = []
        self.statistics: dict[str, Statistics] = {}

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return round(time.perf_counter() - self._began, 3)

    @property
    def passed(self) -> bool:
        """Whether every step passed."""
        return bool(self.outcomes) and all(outcome.passed for outcome in self.outcomes)

    def add_event(self, side: str, text: str) -> None:
        """Add an event of one side."""
        self.events.append({"seconds": self.seconds, "side": side, "event": text})
        self._line(f"{self.seconds:6.3f}  {side}: {text}", "cyan")

    def add_outcome(self, outcome: Outcome) -> None:
        """Add the outcome of a step."""
        self.outcomes.append(outcome)
        word, style = {True: ("PASS", "green"), False: ("FAIL", "red"), None: ("SKIP", "yellow")}[outcome.passed]
        self._line(f"{self.seconds:6.3f}  {word}  {outcome.step}: {outcome.detail}", style)

    def _line(self, text: str, style: str) -> None:
        if not self._silent:
            self._screen.line(text, style)

    def show_summary(self) -> None:
        """Write the counts and the result."""
        self._screen.line()
        self._screen.line(f"{'':<22}" + "".join(f"{side:>10}" for side in self.statistics))
        for name in fields_dict(Statistics):
            counts = [getattr(statistics, name) for statistics in self.statistics.values()]
            if any(counts):
                self._screen.line(f"{name.replace('_', ' '):<22}" + "".join(f"{count:>10,}" for count in counts))
        self._screen.line()
        good = sum(outcome.passed is True for outcome in self.outcomes)
        text = f"{'PASS' if self.passed else 'FAIL'}: {good} of {len(self.outcomes)} steps in {self.seconds:.1f} s"
        self._screen.line(text, "bold green" if self.passed else "bold red")

    def as_dict(self) -> dict[str, object]:
        """Return the report as ``--json`` prints it."""
        return {
            "passed": self.passed,
            "seconds": self.seconds,
            "steps": [asdict(outcome) for outcome in self.outcomes],
            "events": self.events,
            "statistics": {side: asdict(statistics) for side, statistics in self.statistics.items()},
        }


async def _run(report: DemoReport, deadline: float) -> None:
    """Run the steps, up to the first that fails."""
    async with trio.open_nursery() as nursery:
        demonstration = Demonstration(nursery, report.add_event)
        left = list(demonstration.steps)
        with trio.move_on_after(deadline) as scope:
            while left:
                name, step = left.pop(0)
                outcome = await _try(name, step)
                report.add_outcome(outcome)
                if not outcome.passed:
                    break
        if scope.cancelled_caught:
            report.add_outcome(Outcome(name, passed=False, detail=f"not done when the {deadline:g} s were over"))
        for name, _ in left:
            report.add_outcome(Outcome(name))
        for side in demonstration.sides.values():
            report.statistics[side.name] = side.plugin.statistics()
        nursery.cancel_scope.cancel()


async def _try(name: str, step: Callable[[], Awaitable[str]]) -> Outcome:
    began = trio.current_time()
    try:
        detail, passed = await step(), True
    except (LedgerPluginError, StepFailedError, OSError, ExceptionGroup) as error:
        detail, passed = one_line(unwrap_error(error)), False
    return Outcome(name, passed, detail, round((trio.current_time() - began) * 1000, 3))
