"""The pages that explain the code agree with it."""

import re
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
from support.pages import ROOT

from trio_ledger_plugin.plugin import LedgerPlugin

EXPLANATION = ROOT / "docs" / "explanation"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (EXPLANATION / "lpi2.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| LPI2 asks")
]


def test_every_row_names_code_and_a_test():
    assert len(ROWS) > 50
    assert all(len(row) == 3 and all("`" in cell for cell in row[1:]) for row in ROWS)


@pytest.mark.parametrize("name", sorted({name for row in ROWS for name in re.findall(r"`([\w.]+)`", row[1])}))
def test_names_in_the_table_exist_in_the_code(name):
    parts = name.split(".")
    module = next(
        ".".join(parts[:end])
        for end in range(len(parts), 0, -1)
        if (ROOT / "trio_ledger_plugin").joinpath(*parts[:end]).with_suffix(".py").exists()
    )
    found = import_module(f"trio_ledger_plugin.{module}")
    inner = name.removeprefix(module).removeprefix(".")
    if isinstance(owner := getattr(found, inner.partition(".")[0]), type) and "." in inner:
        fields = {each.name for each in getattr(owner, "__attrs_attrs__", ())}
        assert inner.partition(".")[2] in fields or attrgetter(inner)(found)


@pytest.mark.parametrize("name", sorted({name for row in ROWS for name in re.findall(r"`([\w.]+)`", row[2])}))
def test_tests_in_the_table_exist(name):
    file, _, test = name.partition(".")
    source = (Path(__file__).parent / f"{file}.py").read_text()
    assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE)


def test_every_method_of_the_interface_is_in_the_table():
    """A method that is added or renamed later would be missing."""
    table = (EXPLANATION / "lpi2.md").read_text()
    for method in ("connect", "disconnect", "is_connected", "send_data", "send_money"):
        assert hasattr(LedgerPlugin, method)
        assert f".{method}`" in table
    for method in ("register_data", "deregister_data", "register_money"):
        assert hasattr(LedgerPlugin, f"{method}_handler")
        assert f".{method}`" in table
