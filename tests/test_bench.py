"""The benchmark runs and adds up; nothing here says how fast anything is."""

import json
from xml.etree import ElementTree as ET

import pytest
from click.testing import CliRunner

from trio_ledger_plugin.benchmark.plot import draw
from trio_ledger_plugin.benchmark.rounds import FLOOR, PYTHON_END, Case, Result, measure, ratio
from trio_ledger_plugin.commands.bench import OURS, bench


def test_a_small_run_measures_every_load_and_saves_what_it_found(tmp_path):
    """A user would be given rates of loads that never ran."""
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
    assert ET.fromstring(plot.read_text()).tag.endswith("svg")  # noqa: S314 (drawn a moment ago)


def test_an_end_that_fails_is_told_and_not_counted():
    with pytest.raises(RuntimeError, match=r"no\.such"):
        measure([*PYTHON_END[:2], "no.such.module"], PYTHON_END, Case(in_flight=1, size=1, calls=1))


def test_the_ratio_is_the_median_of_the_rounds_own_ratios():
    """A machine that slows down half-way would make a slower plugin look faster."""
    case = Case(in_flight=1, size=1, calls=1)
    rates = {"a": [100.0, 10.0, 50.0], "b": [50.0, 10.0, 10.0]}
    results = [
        Result(name, number, case, {"rate": rate}, {}) for name in rates for number, rate in enumerate(rates[name])
    ]
    assert ratio(results, case, "a", "b") == 2


def test_the_plot_names_its_curves_and_escapes_them():
    picture = draw("a < b", {"x & y": [(1, 10.0), (100, 20.0)]})
    root = ET.fromstring(picture)  # noqa: S314 (drawn a moment ago)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "a < b" in texts
    assert "x & y" in texts
    assert len([element for element in root.iter() if element.tag.endswith("circle")]) == 2
