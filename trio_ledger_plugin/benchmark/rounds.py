"""Alternating rounds of measurements, and the ratios between them.

Other programs disturb single rates. So every round measures every pairing of ends, one after the other, and the result
is the median of the ratios within the rounds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from statistics import median
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["FLOOR", "PYTHON_END", "Case", "Result", "is_measured", "measure", "ratio", "run_rounds"]

PYTHON_END: Sequence[str] = (sys.executable, "-m", "trio_ledger_plugin.benchmark.ends")
FLOOR = "floor"
DEADLINE = 120.0


@frozen
class Case:
    """One load.

    Attributes:
        in_flight: Calls in flight at any time.
        size: Bytes of a request and of its response.
        calls: The number of measured calls.
    """

    in_flight: int
    size: int
    calls: int


@frozen
class Result:
    """The result of one pairing in one round.

    Attributes:
        pairing: The name of the pairing.
        round: The number of the round.
        case: The load.
        client: What the client's process reported.
        server: What the server's process reported.
    """

    pairing: str
    round: int
    case: Case
    client: Mapping[str, Any]
    server: Mapping[str, Any]

    @property
    def rate(self) -> float:
        """Calls a second."""
        return float(self.client["rate"])

    def as_json(self) -> dict[str, Any]:
        """Return the result as values of JSON."""
        return asdict(self)


def measure(client: Sequence[str], server: Sequence[str], case: Case, *, floor: bool = False) -> tuple[Any, Any]:
    """Run one client process against one server process.

    Returns:
        The reports of the two.

    Raises:
        RuntimeError: A process failed or took too long.
    """
    prefix = "floor-" if floor else ""
    with ExitStack() as stack:
        serving = _start(stack, [*server, f"{prefix}server"], stdin=subprocess.PIPE)
        assert serving.stdin is not None
        assert serving.stdout is not None
        port = json.loads(serving.stdout.readline())["port"]
        where = ["--port", str(port)] if floor else ["--url", f"btp+ws://bench:bench@127.0.0.1:{port}"]
        asking = _start(stack, [*client, f"{prefix}client", *where, *_load_of(case)], stderr=subprocess.PIPE)
        try:
            output, complaint = asking.communicate(timeout=DEADLINE)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{client[-1]} took longer than {DEADLINE:g} s") from error
        if asking.returncode:
            raise RuntimeError(f"{client[-1]} failed: {complaint.strip()[-400:]}")
        with suppress(BrokenPipeError):
            serving.stdin.close()
        return json.loads(output), json.loads(serving.stdout.readline() or "{}")


def _start(
    stack: ExitStack, command: Sequence[str], *, stdin: int | None = None, stderr: int | None = None
) -> subprocess.Popen[str]:
    """Start a process that ends with the stack."""
    received: list[int] = []
    # If a signal handler raised during Popen, the process would run on without an owner.
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, lambda number, _: received.append(number)) for number in numbers]
    try:
        process = stack.enter_context(
            subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True)  # noqa: S603 (the caller gives it)
        )
        # After Ctrl-C a Popen does not wait by itself, and a killed process may outlive its parent for a moment.
        stack.callback(process.wait)
        stack.callback(process.kill)
    finally:
        for caught, handler in zip(numbers, before, strict=True):
            signal.signal(caught, handler)
    for number in received:
        signal.raise_signal(number)
    return process


def _load_of(case: Case) -> list[str]:
    warmup = min(case.calls // 5, 2000) + case.in_flight
    load = {"--calls": case.calls, "--in-flight": case.in_flight, "--size": case.size, "--warmup": warmup}
    return [str(part) for pair in load.items() for part in pair]


def run_rounds(
    pairings: Mapping[str, tuple[Sequence[str], Sequence[str]]],
    cases: Sequence[Case],
    rounds: int,
    on_result: Callable[[Result], None],
) -> list[Result]:
    """Measure every pairing in every case, round after round.

    Args:
        pairings: The commands of client and server, by name. The name ``FLOOR`` means a bare Trio echo, which is
            measured only with one call at a time.
        cases: The loads.
        rounds: How often to measure each.
        on_result: Called with each result as it comes.
    """
    results: list[Result] = []
    for case in cases:
        for number in range(rounds):
            for name, (client, server) in pairings.items():
                if not is_measured(case, name):
                    continue
                asked, served = measure(client, server, case, floor=name == FLOOR)
                results.append(Result(name, number, case, asked, served))
                on_result(results[-1])
    return results


def is_measured(case: Case, pairing: str) -> bool:
    """Whether a pairing is measured in a case."""
    return pairing != FLOOR or case.in_flight == 1


def ratio(results: Sequence[Result], case: Case, ours: str, other: str) -> float:
    """Return the median over the rounds of the ratio between two pairings' rates."""
    rates = {(result.pairing, result.round): result.rate for result in results if result.case == case}
    rounds = sorted({number for name, number in rates if name == ours})
    return median(rates[ours, number] / rates[other, number] for number in rounds)
