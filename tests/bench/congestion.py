"""Two payments share a simulated path: the rate of each, second by second, as text and as a drawing.

    python tests/bench/congestion.py [--plot FILE]

The connector refuses what exceeds 200 packets a second. The second payment begins while the first is under way. The
clock is simulated, so the speed of the machine does not matter.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import trio
from trio.testing import MockClock

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.congestion import share_path

from trio_ledger_plugin.benchmark.plot import draw

LIMIT = 200
PACKETS = 6000, 3000
LATER = 15.0
TITLE = f"Two payments over a path of {LIMIT} packets a second"
AXES = "seconds; upwards: fulfilled packets a second"


def main(plot: Path | None) -> None:
    """Simulate, print, and draw."""
    shares = trio.run(partial(share_path, LIMIT, PACKETS, LATER), clock=MockClock(autojump_threshold=0))
    together = shares.together()
    for name, used in (("first", [one for one, _ in together]), ("second", [other for _, other in together])):
        print(f"{name}: {sum(used) / len(together):.0f} packets a second while both pay")
    both = sum(one + other for one, other in together) / len(together)
    sent = sum(shares.first.values()) + sum(shares.second.values()) + shares.refused
    print(f"both: {both / LIMIT:.0%} of the limit; of {sent:,} packets {shares.refused:,} were refused")
    if plot is not None:
        curves = {"first payment": sorted(shares.first.items()), "second payment": sorted(shares.second.items())}
        plot.write_text(draw(TITLE, curves, axes=AXES, logarithmic=False))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path)
    main(parser.parse_args().plot)
