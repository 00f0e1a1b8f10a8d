"""The documentation's first page says what the package talks to, as the tests have it."""

from __future__ import annotations

import json
import re

from support.pages import ROOT

FRONT = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
ROWS = {
    row[0].strip("` "): row[1]
    for line in FRONT.partition("## What it talks to")[2].splitlines()
    if line.startswith("| ") and len(row := line.strip("| ").split(" | ")) == 3
}


def test_real_peers_have_the_versions_that_the_tests_install() -> None:
    """A reader would rely on a version that was never tried."""
    wanted = json.loads((ROOT / "tests" / "interop" / "package.json").read_text())["dependencies"]
    installed: dict[str, set[str]] = {}
    for name, version in wanted.items():
        # A second version of a package has another name here: npm:NAME@VERSION.
        alias = re.fullmatch(r"npm:(.+)@([^@]+)", version)
        installed.setdefault(alias[1] if alias else name, set()).add(alias[2] if alias else version)
    shown = {peer: set(re.findall(r"\d[\w.-]*", how)) for peer, how in ROWS.items() if how.startswith("real, ")}
    assert shown == installed


def test_scripted_peers_are_called_so() -> None:
    """A reader would take a script for the peer itself."""
    script = (ROOT / "tests" / "test_http_peers.py").read_text().partition("\n")[0]
    scripted = [peer for peer, how in ROWS.items() if how == "script"]
    assert scripted
    assert all(peer in script for peer in scripted)


def test_program_is_short_enough_to_read_at_a_glance() -> None:
    program = re.search(r"^```python\n(.*?)^```", FRONT, re.MULTILINE | re.DOTALL)
    assert program
    assert len([line for line in program[1].splitlines() if line]) <= 12
