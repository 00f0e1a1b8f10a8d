"""The benchmark runs and counts right; these tests do not check speeds."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from trio_ledger_plugin.benchmark.plot import draw
from trio_ledger_plugin.benchmark.rounds import FLOOR, PYTHON_END, Case, Result, measure, ratio
from trio_ledger_plugin.cli.bench import OURS, bench

pytestmark = pytest.mark.slow


def test_small_run_measures_and_saves_every_load(tmp_path):
    """A user would get rates of loads that never ran."""
    plot, saved = tmp_path / "rates.svg", tmp_path / "rates.json"
    done = CliRunner().invoke(
        bench, ["--rounds", "1", "--scale", "0.001", "--plot", str(plot), "--save", str(saved)], standalone_mode=False
    )
    assert (done.exception, done.return_value) == (None, 0)
    told = json.loads(saved.read_text())
    loads = [(row["size"], row["in_flight"]) for row in told["summary"]]
    assert loads == [(size, in_flight) for size in (300, 32768) for in_flight in (1, 100, 1000)]
    for result in told["results"]:
        assert result["client"]["calls"] == result["case"]["calls"] >= result["case"]["in_flight"]
        assert result["client"]["rate"] > 0
    assert {result["pairing"] for result in told["results"]} == {OURS, FLOOR}
    for row in told["summary"]:
        # The frame, the packet and its mask are around the payload.
        assert row["size"] + 20 < row["bytes_sent_a_call"] < row["size"] + 40
        assert f"{row['rates'][OURS]:,.0f}/s" in done.output
    # Scripts read the one name, people the other: the page of the commands explains it.
    assert FLOOR == "floor"
    assert "times bare Trio echo (" in done.output
    assert FLOOR not in done.output
    assert "bare Trio echo" in plot.read_text()
    assert ET.fromstring(plot.read_text()).tag.endswith("svg")  # noqa: S314 (drawn a moment ago)


def test_failed_end_is_an_error_and_not_counted():
    with pytest.raises(RuntimeError, match=r"no\.such"):
        measure([*PYTHON_END[:2], "no.such.module"], PYTHON_END, Case(in_flight=1, size=1, calls=1))


def test_ratio_is_the_median_over_rounds():
    """A machine that slows down halfway would make a slower plugin look faster."""
    case = Case(in_flight=1, size=1, calls=1)
    rates = {"a": [100.0, 10.0, 50.0], "b": [50.0, 10.0, 10.0]}
    results = [
        Result(name, number, case, {"rate": rate}, {}) for name in rates for number, rate in enumerate(rates[name])
    ]
    assert ratio(results, case, "a", "b") == 2


def test_plot_names_and_escapes_its_curves():
    picture = draw("a < b", {"x & y": [(1, 10.0), (100, 20.0)]})
    root = ET.fromstring(picture)  # noqa: S314 (drawn a moment ago)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "a < b" in texts
    assert "x & y" in texts
    assert len([element for element in root.iter() if element.tag.endswith("circle")]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's time and memory from /proc")
def test_load_of_many_clients_is_fully_answered(tmp_path):
    """Some clients would get no answers, or the rates would be those of fewer calls."""
    saved = tmp_path / "accounts.json"
    program = Path(__file__).parent / "bench" / "accounts.py"
    subprocess.run(
        [sys.executable, str(program), "--quick", "--save", str(saved)], check=True, timeout=60, capture_output=True
    )
    told = json.loads(saved.read_text())
    assert [(held["clients"], held["answered"]) for held in told["held"]] == [(50, 50)]
    assert [(done["clients"], done["answered"]) for done in told["rounds"]] == [(5, 500), (10, 500), (50, 500)]


def test_money_benchmark_counts_transfers_at_both_ends(tmp_path):
    """The rates would include transfers that were never applied."""
    saved = tmp_path / "money.json"
    program = Path(__file__).parent / "bench" / "money.py"
    command = [sys.executable, str(program), "--quick", "--directory", str(tmp_path), "--save", str(saved)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    told = json.loads(saved.read_text())
    assert [result["case"].partition(",")[0] for result in told["results"]] == ["KEYED"] * 3 + ["PLAIN"]
    assert all(result["rate"] > 0 for result in told["results"])


def test_postgres_benchmark_measures_rates_opening_and_an_outage(postgres_server):
    """The fixture skips the test where there is no PostgreSQL; the program runs a server of its own."""
    program = Path(__file__).parent / "bench" / "postgres.py"
    command = [sys.executable, str(program), "--quick", "--directory", tempfile.gettempdir()]
    done = subprocess.run(command, check=True, timeout=90, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert list(told["rates"]) == ["sqlite", "1 connection", "2 connections"]
    outage = told["outage"]
    assert (outage["money"], outage["redials"], outage["in_doubt"]) == ("T00", 0, 0)
    assert outage["sent"] == outage["received"] > 0
    assert outage["requests_answered"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="lowers the limit on descriptors")
def test_neighbours_are_measured_while_an_account_attacks():
    """The figures would be those of a server that is not disturbed."""
    program = Path(__file__).parent / "bench" / "neighbours.py"
    command = [sys.executable, str(program), "--rounds", "1", "--seconds", "0.3", "--kind", "sockets"]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    told = json.loads(done.stdout)
    assert told["kind"] == "sockets"
    assert told["of 500/s"] > 0
    assert told["of the rate at 100"] > 0
    assert told["connections of the other"] == 16


@pytest.mark.skipif(sys.platform != "linux", reason="reads a process's time from /proc")
def test_cost_of_the_admin_page_is_measured(tmp_path):
    """The figures would be those of a page that nobody opened."""
    saved = tmp_path / "admin.json"
    program = Path(__file__).parent / "bench" / "admin.py"
    subprocess.run(
        [sys.executable, str(program), "--quick", "--save", str(saved)], check=True, timeout=60, capture_output=True
    )
    told = json.loads(saved.read_text())
    assert [each["way"] for each in told["slices"]] == ["without the page", "with the page", "looked at"]
    assert [bool(each["answers"]) for each in told["slices"]] == [False, False, True]
    assert [each["way"] for each in told["idle"]] == [f"idle, {each['way']}" for each in told["slices"]]
    assert [each["turns"] for each in told["watching"]] == [2, 2]
    assert told["summary"]["accounts"] == 10
