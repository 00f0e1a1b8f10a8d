"""The benchmark's comparison with ilp-plugin-btp runs, crosswise too; nothing here says how fast anything is."""

from pathlib import Path

import pytest

from trio_ledger_plugin.benchmark.rounds import PYTHON_END, Case, run_rounds

pytestmark = pytest.mark.interop

NODE_END = ("node", str(Path(__file__).parents[1] / "bench" / "btp_bench.js"))


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
