"""How long importing the package takes beyond importing Trio: medians of alternating fresh processes.

python tests/bench/imports.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median

PROGRAM = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def seconds(module: str) -> float:
    """Return how long a fresh process takes to import a module."""
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(module)], capture_output=True, text=True, check=True)
    return float(done.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = range(parser.parse_args().rounds)
    pairs = [(seconds("trio"), seconds("trio_ledger_plugin")) for _ in rounds]
    result = {
        "trio_ms": median(trio for trio, _ in pairs) * 1000,
        "package_ms": median(package for _, package in pairs) * 1000,
        "difference_ms": median(package - trio for trio, package in pairs) * 1000,
    }
    print(json.dumps({name: round(value, 1) for name, value in result.items()}))
