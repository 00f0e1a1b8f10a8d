"""``pay`` and ``quote``: whole payments to a wallet (STREAM)."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from decimal import Decimal
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import asdict, define

from ..errors import DecodeError
from ..log import escape
from ..stream import pay as pay_stream
from ..stream import quote as quote_stream
from ..stream.crypto import check_installed
from ..stream.spsp import check_endpoint
from .dialing import open_client
from .errors import COMMON, ENDED, Exit, one_line
from .output import Screen
from .parameters import (
    Amount,
    Command,
    Seconds,
    client_options,
    epilog,
    insecure_option,
    json_option,
    read_environment,
)
from .signals import run_until_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..options.base import PluginOptions
    from ..stream import Asset, Progress, Quote

__all__ = ["lacking", "pay", "plugin_options", "quote", "server_option", "shown_amount", "shown_packets"]

_Decorated = TypeVar("_Decorated", bound="Callable[..., object] | click.Command")

# Longer than a packet of a payment lives.
RESPONSE_SECONDS = 30.0

PAY_EXAMPLES = """
  trio-ledger-plugin pay '$wallet.example/alice' --send 1000
  trio-ledger-plugin pay '$wallet.example/alice' --deliver 900 --slippage 0.005 --min-rate 0.88
  trio-ledger-plugin pay http://127.0.0.1:8080/ --send 1000 --server btp+ws://:TOKEN@localhost:7768
"""
QUOTE_EXAMPLES = """
  trio-ledger-plugin quote '$wallet.example/alice' --send 1000
  trio-ledger-plugin quote '$wallet.example/alice' --deliver 900 --json
"""

server_option: Callable[[_Decorated], _Decorated] = click.option(
    "--server",
    metavar="URL",
    help="The server that carries the packets, over BTP or HTTP. By default, that of ILP_PLUGIN, ILP_CREDENTIALS and "
    "ILP_BTP_SERVER.",
)


def plugin_options(server: str | None, timeout: float, *, allow_insecure: bool) -> PluginOptions:
    """Return the options of the plugin: a client of the server, or what the environment says.

    Raises:
        click.UsageError: The URL is wrong, or there is no token.
        InvalidFieldsError: The environment is wrong.
        InvalidServicesError: The extra ``stream`` is not installed, which should not be said after connecting.
    """
    check_installed()
    if server is None:
        return read_environment({})
    return client_options(server, timeout, allow_insecure=allow_insecure, response_timeout=RESPONSE_SECONDS)


def lacking(server: str | None) -> str:
    """Return the option that names a server, if it is not given; otherwise nothing."""
    return "--server" if server is None else ""


def shown_amount(amount: int, asset: Asset | None) -> str:
    """Return an amount in smallest units, and in the asset's own unit if the asset is known."""
    if asset is None:
        return f"{amount:,}"
    return f"{amount:,} ({Decimal(amount).scaleb(-asset.scale):f} {escape(asset.code)})"


def shown_packets(count: int) -> str:
    """Return a number of packets."""
    return "1 packet" if count == 1 else f"{count:,} packets"


def _order_options(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options of a payment; those of its amounts and of its rate become its argument ``order``."""

    @wraps(command)
    def ordered(send: int | None, deliver: int | None, slippage: str, min_rate: str, **others: object) -> int:
        return command(order=_order(send, deliver, slippage, min_rate), **others)

    decorated: Callable[..., int] = ordered
    for option in (
        json_option,
        insecure_option,
        click.option("--timeout", type=Seconds(), default=10.0, show_default=True, help="Seconds for connecting."),
        server_option,
        click.option("--min-rate", default="0", help="The least that has to arrive of one unit, in smallest units."),
        click.option("--slippage", default="0.01", show_default=True, help="The part of the rate that may be lost."),
        click.option("--deliver", type=Amount(), help="What to deliver, in smallest units of the receiver's account."),
        click.option("--send", type=Amount(), help="What to send, in smallest units of this account."),
    ):
        decorated = option(decorated)
    return decorated


def _order(send: int | None, deliver: int | None, slippage: str, min_rate: str) -> dict[str, Any]:
    if (send is None) == (deliver is None):
        raise click.UsageError("give either --send or --deliver")
    return {
        "send": send,
        "deliver": deliver,
        "slippage": _slippage(slippage),
        "min_rate": _number(min_rate, "--min-rate"),
    }


def _slippage(text: str) -> Decimal:
    slippage = _number(text, "--slippage")
    if slippage >= 1:
        raise click.UsageError("--slippage must be less than 1; 0.01 is one percent")
    return slippage


def _number(text: str, name: str) -> Decimal:
    try:
        number = Decimal(text)
    except ArithmeticError:
        raise click.UsageError(f"{name} is not a number, such as 0.01") from None
    if not number.is_finite() or number < 0:
        raise click.UsageError(f"{name} must be 0 or more")
    return number


@click.command(
    cls=Command,
    epilog=epilog(PAY_EXAMPLES, *COMMON, Exit.UNREACHABLE, Exit.REFUSED, *ENDED),
    short_help="Pay a payment pointer.",
)
@click.argument("to")
@_order_options
def pay(to: str, order: dict[str, Any], server: str | None, timeout: float, allow_insecure: bool, as_json: bool) -> int:
    """Pay a wallet, with many small packets (STREAM).

    TO is a payment pointer such as '$wallet.example/alice', or the URL of an SPSP endpoint. The rate is probed first.
    On a terminal a bar shows what has arrived. An error says what was sent and delivered for certain, and so does the
    summary after Ctrl-C.
    """
    check_endpoint(to)
    options = plugin_options(server, timeout, allow_insecure=allow_insecure)
    report = _Report(Screen(), as_json=as_json)
    try:
        run_until_sigterm(_pay, options, timeout, lacking(server), to, order, report)
    finally:
        report.show()
    return Exit.OK


@define
class _Report:
    """What a payment did so far."""

    screen: Screen
    as_json: bool
    last: Progress | None = None
    asset: Asset | None = None
    began: float = 0.0
    ended: float = 0.0

    def show(self) -> None:
        """Write the summary, if anything was sent."""
        if self.last is None:
            return
        seconds = round(self.ended - self.began, 3)
        sent, delivered = self.last.sent, self.last.delivered
        unanswered = self.last.unanswered + self.last.in_flight
        rate = round(delivered / sent, 9) if sent else None
        if self.as_json:
            values = {"sent": sent, "delivered": delivered, "rate": rate, "packets": self.last.packets}
            more = {"unanswered": unanswered, "seconds": seconds}
            asset = None if self.asset is None else asdict(self.asset)
            click.echo(json.dumps({**values, **more, "asset": asset}))
            return
        self.screen.line(f"sent {sent:,}, delivered {shown_amount(delivered, self.asset)}")
        if rate is not None:
            self.screen.line(f"rate {rate:g}, {shown_packets(self.last.packets)} in {seconds:g} s")
        if unanswered:
            self.screen.line(f"up to {unanswered:,} more may have been paid, in packets without an answer", "yellow")


async def _pay(
    options: PluginOptions, seconds: float, lacks: str, to: str, order: dict[str, Any], report: _Report
) -> None:
    total = order["send"] or order["deliver"]
    async with open_client(options, seconds, lacking=lacks) as plugin:
        with report.screen.progress("{task.description}", silent=report.as_json) as bar:
            task = bar.add_task("paying", total=total)
            report.began = report.ended = time.perf_counter()

            def show(progress: Progress) -> None:
                report.last, now = progress, time.perf_counter()
                done = progress.sent if order["send"] else min(progress.delivered, total)
                bar.update(task, completed=done)
                if now - report.ended > 0.1 or progress.done:
                    report.ended = now
                    bar.refresh()

            with _reporting_bad_answers():
                paid = await pay_stream(plugin, to, **order, on_progress=show)
            report.asset = paid.asset


@click.command(
    cls=Command,
    epilog=epilog(QUOTE_EXAMPLES, *COMMON, Exit.UNREACHABLE, Exit.REFUSED, *ENDED),
    short_help="What a payment would cost.",
)
@click.argument("to")
@_order_options
def quote(
    to: str, order: dict[str, Any], server: str | None, timeout: float, allow_insecure: bool, as_json: bool
) -> int:
    """Probe the rate to a wallet, and show what a payment would send and deliver. No money moves.

    TO is a payment pointer such as '$wallet.example/alice', or the URL of an SPSP endpoint.
    """
    check_endpoint(to)
    options = plugin_options(server, timeout, allow_insecure=allow_insecure)
    quoted = run_until_sigterm(partial(_quote, options, timeout, lacking(server), to, order))
    if as_json:
        asset = None if quoted.asset is None else asdict(quoted.asset)
        rate = round(float(quoted.rate), 9)
        values = {"send": quoted.send, "deliver": quoted.deliver, "rate": rate, "max_packet": quoted.max_packet}
        click.echo(json.dumps({**values, "asset": asset}))
        return Exit.OK
    screen = Screen()
    screen.line(f"sends at most {quoted.send:,}")
    screen.line(f"delivers at least {shown_amount(quoted.deliver, quoted.asset)}")
    screen.line(f"rate {float(quoted.rate):g}, packets of up to {quoted.max_packet:,}")
    return Exit.OK


async def _quote(options: PluginOptions, seconds: float, lacks: str, to: str, order: dict[str, Any]) -> Quote:
    async with open_client(options, seconds, lacking=lacks) as plugin:
        with _reporting_bad_answers():
            return await quote_stream(plugin, to, **order)


@contextmanager
def _reporting_bad_answers() -> Iterator[None]:
    """Turn a wrong answer of the SPSP endpoint into an error of the command, whose input is not a packet.

    Raises:
        click.ClickException: The block raised ``DecodeError``.
    """
    try:
        yield
    except DecodeError as error:
        raise click.ClickException(one_line(error)) from error
