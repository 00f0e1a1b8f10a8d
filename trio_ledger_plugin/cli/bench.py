"""``bench``: how many calls a second this package makes on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ..benchmark.plot import draw
from ..benchmark.rounds import FLOOR, PYTHON_END, Case, is_measured, ratio, run_rounds
from .errors import COMMON, ENDED, Exit
from .output import Screen
from .parameters import Command, epilog, json_option

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..benchmark.rounds import Result

__all__ = ["bench"]

OURS, NODE = "this package", "ilp-plugin-btp"
# Names for people, where JSON has another one.
SHOWN = {FLOOR: "bare Trio echo"}
# Measured calls at full size, by bytes and calls in flight: each measurement takes about a second.
FULL = {
    (300, 1): 4000,
    (300, 100): 30000,
    (300, 1000): 30000,
    (32768, 1): 1500,
    (32768, 100): 4000,
    (32768, 1000): 4000,
}

EXAMPLES = """
  trio-ledger-plugin bench
  trio-ledger-plugin bench --rounds 5 --node tests/bench/btp_bench.js --plot bench.svg --save bench.json
"""


class ResultFile(click.Path):
    """A file that can be written; a wrong path is refused before minutes are spent on measuring."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, writable=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401 (as click has it)
        """Return the path."""
        path = Path(str(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"the directory of {str(path)!r} does not exist", param, ctx)
        return path


@click.command(
    cls=Command, epilog=epilog(EXAMPLES, *COMMON, *ENDED), short_help="How many calls a second on this machine."
)
@click.option("--rounds", type=click.IntRange(1, 99), default=3, show_default=True, help="How often to measure each.")
@click.option(
    "--scale", type=click.FloatRange(0.001, 100), default=1.0, show_default=True, help="Factor for the calls."
)
@click.option(
    "--node",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A Node program that runs ilp-plugin-btp, for comparison: tests/bench/btp_bench.js of a checkout.",
)
@click.option("--plot", type=ResultFile(), help="A file for a plot (SVG).")
@click.option("--save", type=ResultFile(), help="A file for the JSON.")
@json_option
def bench(rounds: int, scale: float, node: Path | None, plot: Path | None, save: Path | None, as_json: bool) -> int:
    """Measure calls a second between two processes on this machine, in alternating rounds.

    Payloads have 300 bytes and 32 KiB, with 1, 100 and 1,000 calls in flight. The results are compared with a bare Trio
    echo with one call at a time, which is the limit; and if --node is given with the Node implementation, at both ends
    and crosswise. Other programs disturb the rates: the ratios, medians over the rounds, are more reliable.
    """
    screen = Screen()
    pairings: dict[str, tuple[Sequence[str], Sequence[str]]] = {
        OURS: (PYTHON_END, PYTHON_END),
        FLOOR: (PYTHON_END, PYTHON_END),
    }
    if node is not None:
        end = ("node", str(node))
        pairings |= {
            NODE: (end, end),
            "our client, its server": (PYTHON_END, end),
            "its client, our server": (end, PYTHON_END),
        }
    cases = [Case(in_flight, size, max(in_flight, int(calls * scale))) for (size, in_flight), calls in FULL.items()]

    measurements = sum(1 for case in cases for name in pairings if is_measured(case, name)) * rounds

    def on_result(result: Result) -> None:
        bar.update(task, advance=1, refresh=True)
        if not as_json:
            case = result.case
            screen.timed_line(
                f"round {result.round + 1}  {case.size:>5} bytes  {case.in_flight:>4} in flight  "
                f"{_shown(result.pairing):<23} {result.rate:>8,.0f}/s"
            )

    with screen.progress("measuring", silent=as_json) as bar:
        task = bar.add_task("", total=measurements)
        results = run_rounds(pairings, cases, rounds, on_result)
    summary = [_summary(results, case, pairings) for case in cases]
    if plot is not None:
        plot.write_text(draw("Calls a second, 300-byte payload", _curves(summary)))
    as_text = json.dumps({"summary": summary, "results": [result.as_json() for result in results]})
    if save is not None:
        save.write_text(as_text + "\n")
    if as_json:
        click.echo(as_text)
    else:
        _show(screen, summary)
    return Exit.OK


def _shown(pairing: str) -> str:
    return SHOWN.get(pairing, pairing)


def _summary(results: Sequence[Result], case: Case, pairings: Mapping[str, object]) -> dict[str, object]:
    """Return the summary of one case over all rounds."""
    measured = {
        name: [result for result in results if (result.case, result.pairing) == (case, name)] for name in pairings
    }
    rates = {name: median(result.rate for result in some) for name, some in measured.items() if some}
    ours = measured[OURS]
    return {
        "size": case.size,
        "in_flight": case.in_flight,
        "rates": rates,
        "ratios": {name: ratio(results, case, OURS, name) for name in rates if name != OURS},
        "client_cpu_us": median(result.client["cpu_seconds"] / case.calls for result in ours) * 1e6,
        "bytes_sent_a_call": median(result.client["bytes_sent"] / case.calls for result in ours),
        "p99_ms": median(result.client["latency_ms"]["p99"] for result in ours),
    }


def _curves(summary: Sequence[Mapping[str, object]]) -> dict[str, list[tuple[int, float]]]:
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in summary:
        rates, in_flight = row["rates"], row["in_flight"]
        assert isinstance(rates, dict)
        assert isinstance(in_flight, int)
        if row["size"] == 300:
            for name, rate in rates.items():
                curves.setdefault(_shown(name), []).append((in_flight, rate))
    return curves


def _show(screen: Screen, summary: Sequence[Mapping[str, object]]) -> None:
    for row in summary:
        rates, ratios = row["rates"], row["ratios"]
        assert isinstance(rates, dict)
        assert isinstance(ratios, dict)
        screen.line()
        screen.line(f"{row['size']} bytes, {row['in_flight']} in flight: {rates[OURS]:,.0f}/s", "bold")
        screen.line(
            f"  client CPU {row['client_cpu_us']:.1f} us and {row['bytes_sent_a_call']:.0f} bytes sent a call, "
            f"p99 {row['p99_ms']:.2f} ms"
        )
        for name, times in ratios.items():
            screen.line(f"  {times:.2f} times {_shown(name)} ({rates[name]:,.0f}/s)")
