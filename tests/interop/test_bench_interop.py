"""The benchmarks' comparisons with other implementations run; nothing here says how fast anything is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trio_ledger_plugin.benchmark.rounds import PYTHON_END, Case, run_rounds

pytestmark = [pytest.mark.slow, pytest.mark.interop]

BENCH = Path(__file__).parents[1] / "bench"
NODE_END = ("node", str(BENCH / "btp_bench.js"))


def test_every_pairing_answers_every_call():
    pairings = {
        "ours": (PYTHON_END, PYTHON_END),
        "node": (NODE_END, NODE_END),
        "our client": (PYTHON_END, NODE_END),
        "our server": (NODE_END, PYTHON_END),
    }
    cases = [Case(in_flight=1, size=300, calls=20), Case(in_flight=100, size=32768, calls=200)]
    seen = []
    results = run_rounds(pairings, cases, 1, lambda result: seen.append(result.pairing))
    assert seen == [*pairings, *pairings]
    assert all(result.client["calls"] == result.case.calls and result.rate > 0 for result in results)


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's time and memory from /proc")
def test_both_account_servers_answer_the_same_clients(tmp_path):
    saved = tmp_path / "accounts.json"
    command = [sys.executable, str(BENCH / "accounts.py"), "--quick", "--node", "--save", str(saved)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    told = json.loads(saved.read_text())
    servers = ["this package", "ilp-plugin-mini-accounts"]
    assert [(held["server"], held["answered"]) for held in told["held"]] == [(server, 50) for server in servers]
    assert [(done["server"], done["clients"], done["answered"]) for done in told["rounds"]] == [
        (server, clients, 500) for clients in (5, 10, 50) for server in servers
    ]
