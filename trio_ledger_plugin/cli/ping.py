"""``ping``: how fast a peer answers."""

from __future__ import annotations

import json
from contextlib import suppress
from math import ceil
from statistics import median
from typing import TYPE_CHECKING

import click
import trio
from attrs import Factory, define

from ..codec import ilp
from ..errors import (
    ConnectionLostError,
    DecodeError,
    NotConnectedError,
    RemoteError,
    ResponseTimeoutError,
    UnreachableError,
)
from ..events import Disconnected
from ..log import escape
from .dialing import open_client
from .errors import COMMON, ENDED, Exit, one_line
from .output import Screen
from .parameters import (
    Command,
    Seconds,
    address_of,
    client_options,
    environment_options,
    epilog,
    insecure_option,
    json_option,
)
from .replies import make_question
from .signals import run_until_sigterm

if TYPE_CHECKING:
    from ..options.base import PluginOptions
    from ..plugin import LedgerPlugin

__all__ = ["ping"]

# The Prepare expires after the answer's deadline, so that no peer has to answer an expired packet.
LIFETIME_MARGIN_SECONDS = 1.0


@define
class Results:
    """The results of the pings so far; times in seconds."""

    sent: int = 0
    answers: dict[str, int] = Factory(dict)
    refused: int = 0
    lost: int = 0
    wrong: int = 0
    times: list[float] = Factory(list)
    last_error: str = ""
    reason: str = ""

    @property
    def all_answered(self) -> bool:
        """Whether every ping has a right answer."""
        return self.sent > 0 and sum(self.answers.values()) == self.sent

    def note_loss(self, plugin: LedgerPlugin) -> None:
        """Add to the last error why the link was lost."""
        with suppress(trio.WouldBlock, trio.EndOfChannel):
            while True:
                event = plugin.events.receive_nowait()
                if isinstance(event, Disconnected):
                    self.reason = f": {escape(event.reason)}"
        self.last_error += self.reason

    def as_dict(self) -> dict[str, object]:
        """Return the results as ``--json`` prints them; times in milliseconds, None if nothing was answered."""
        times = sorted(self.times)
        return {
            "sent": self.sent,
            "answered": sum(self.answers.values()),
            "answers": self.answers,
            "refused": self.refused,
            "wrong": self.wrong,
            "lost": self.lost,
            "min_ms": _milliseconds(times[0]) if times else None,
            "median_ms": _milliseconds(median(times)) if times else None,
            "p99_ms": _milliseconds(times[ceil(len(times) * 0.99) - 1]) if times else None,
            "last_error": self.last_error or None,
        }

    def show(self, screen: Screen) -> None:
        """Print the summary."""
        values = self.as_dict()
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.answers.items())
        screen.line(
            f"{self.sent} sent, {values['answered']} answered{f' ({kinds})' if kinds else ''}, {self.refused} refused, "
            f"{self.wrong} answered wrongly, {self.lost} lost"
        )
        if self.times:
            screen.line(
                f"round trip: min {values['min_ms']} ms, median {values['median_ms']} ms, p99 {values['p99_ms']} ms"
            )
        if self.last_error:
            screen.line(f"last error: {self.last_error}", "red")


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


EXAMPLES = """
  trio-ledger-plugin ping btp+ws://:TOKEN@localhost:7768
  trio-ledger-plugin ping btp+wss://alice:TOKEN@connector.example/ilp --count 100 --interval 0
  TRIO_LEDGER_PLUGIN_SECRET=TOKEN trio-ledger-plugin ping btp+ws://localhost:7768 --json
  trio-ledger-plugin ping https://alice:TOKEN@connector.example/ilp
  ILP_CREDENTIALS='{"server": "btp+ws://:TOKEN@localhost:7768"}' trio-ledger-plugin ping
"""


@click.command(
    cls=Command,
    epilog=epilog(EXAMPLES, *COMMON, Exit.UNREACHABLE, Exit.REFUSED, *ENDED),
    short_help="How fast a peer answers.",
)
@click.argument("url", required=False)
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="How many requests to send.")
@click.option(
    "--size", type=click.IntRange(0, ilp.MAX_DATA), default=64, show_default=True, help="Bytes of data in each."
)
@click.option("--interval", type=Seconds(zero=True), default=0.1, show_default=True, help="Seconds between them.")
@click.option(
    "--timeout", type=Seconds(), default=5.0, show_default=True, help="Seconds for connecting, and for each answer."
)
@insecure_option
@json_option
def ping(
    url: str | None, count: int, size: int, interval: float, timeout: float, allow_insecure: bool, as_json: bool
) -> int:
    """Send requests to a server, one after the other, and show how long the answers took.

    URL is btp+ws://account:token@host:port/path, or btp+wss:// for TLS; for ILP over HTTP it begins with http:// or
    https://, and the account is sent as ILP-Peer-Name. If the URL has no token, the one in the environment variable
    TRIO_LEDGER_PLUGIN_SECRET is used. Without a URL, ILP_PLUGIN, ILP_CREDENTIALS and ILP_BTP_SERVER say where to, as
    for a program. Each request is an ILP Prepare of amount 0 to peer.ping; an echo of it, its
    Fulfill and any Reject count as answers, an error of BTP or HTTP does not. Servers are verified with the system's
    certificates; SSL_CERT_FILE names others. Exit code 0 means that all were answered.
    """
    options: PluginOptions
    if url is None:
        options = environment_options(timeout)
    else:
        options = client_options(url, timeout, allow_insecure=allow_insecure)
    screen = Screen()
    results = Results()
    try:
        lacks = "" if url else "a URL"
        run_until_sigterm(_ping, options, lacks, results, screen, count, size, interval, as_json)
    finally:
        # Also after Ctrl-C and SIGTERM.
        if as_json and results.sent:
            click.echo(json.dumps({"address": address_of(options), **results.as_dict()}))
        elif results.sent:
            results.show(screen)
    return Exit.OK if results.all_answered else Exit.FAILED


async def _ping(
    options: PluginOptions,
    lacks: str,
    results: Results,
    screen: Screen,
    count: int,
    size: int,
    interval: float,
    silent: bool,
) -> None:
    timeout = options.response_timeout
    async with open_client(options, timeout, lacking=lacks) as plugin:
        with screen.progress("{task.description}", silent=silent) as bar:
            task = bar.add_task(address_of(options), total=count)
            for number in range(count):
                if number:
                    await trio.sleep(interval)
                await _ping_once(plugin, results, make_question(0, timeout + LIFETIME_MARGIN_SECONDS, size=size))
                bar.update(task, advance=1)
                bar.refresh()


async def _ping_once(plugin: LedgerPlugin, results: Results, prepare: ilp.Prepare) -> None:
    question = ilp.encode(prepare)
    began = trio.current_time()
    results.sent += 1
    try:
        answer = await plugin.send_data(question)
        took = trio.current_time() - began
        kind = _kind_of(answer, question, prepare)
    except RemoteError as error:
        results.refused += 1
        results.last_error = one_line(error)
    except DecodeError as error:
        results.wrong += 1
        results.last_error = one_line(error)
    except (NotConnectedError, ConnectionLostError, ResponseTimeoutError) as error:
        if results.sent == 1 and isinstance(error.__cause__, UnreachableError):
            # Over HTTP the first request is the first to dial.
            results.sent = 0
            raise
        results.lost += 1
        results.last_error = one_line(error)
        if isinstance(error, NotConnectedError):
            results.note_loss(plugin)
    else:
        results.times.append(took)
        results.answers[kind] = results.answers.get(kind, 0) + 1


def _kind_of(answer: bytes, question: bytes, prepare: ilp.Prepare) -> str:
    """Return the kind of an answer.

    Raises:
        DecodeError: It is not an answer to a Prepare.
    """
    if answer == question:
        return "echo"
    packet = ilp.decode(answer)
    match packet:
        case ilp.Fulfill():
            if ilp.fulfills(packet.fulfillment, prepare.execution_condition):
                return "fulfill"
            raise DecodeError("the answer is a Fulfill without the right preimage")
        case ilp.Reject():
            return f"reject {escape(packet.code)}"
    raise DecodeError("the answer is another Prepare")
