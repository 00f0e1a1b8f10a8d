"""The page of versions agrees with the package."""

import re
import tomllib
from importlib import import_module

import pytest
from support.pages import ROOT

from trio_ledger_plugin.money.tables import STEPS
from trio_ledger_plugin.negotiation import TRANSFER_KEYS
from trio_ledger_plugin.registry import PLUGIN_ALIASES
from trio_ledger_plugin.stores.schema import VALUES
from trio_ledger_plugin.transfer import IDEMPOTENCY_KEY, TRANSFER_NUMBER

PAGE = (ROOT / "docs" / "reference" / "versions.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ALIASES = {
    "trio_ledger_plugin.options.base": {"LinkOptions": "PluginOptions"},
    "trio_ledger_plugin.testing.conformance": {
        "Conditions": "PairConfig",
        "Subject": "PluginPair",
        "SubjectFactory": "PairFactory",
    },
    "trio_ledger_plugin.testing": {
        "Parcel": "Message",
        "ParcelKind": "MessageKind",
        "RandomFates": "RandomDelivery",
    },
}


def required(requirements: list[str]) -> str:
    """Return requirements as the page shows them."""
    found = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", each) for each in requirements]
    return ", ".join(f"`{each[1]}` {each[2]}" for each in found if each)


@pytest.mark.parametrize("extra", ["", "admin", "cli", "otel", "postgres", "speed", "stream"])
def test_oldest_versions_are_those_that_are_allowed(extra: str) -> None:
    """A reader would keep a version that pip then replaces."""
    if extra:
        name, requirements = f"extra `{extra}`", PROJECT["optional-dependencies"][extra]
    else:
        name, requirements = "the package itself", PROJECT["dependencies"]
    assert f"| {name} | {required(requirements)} |" in PAGE


def test_pythons_are_those_of_the_package() -> None:
    prefix = "Programming Language :: Python :: 3."
    *first, last = [f"3.{each.removeprefix(prefix)}" for each in PROJECT["classifiers"] if each.startswith(prefix)]
    assert f"Python {', '.join(first)} and {last};" in PAGE


def test_versions_of_tables_are_shown() -> None:
    assert f"| `values` | {len(VALUES)} |" in PAGE
    assert f"| `transfers` | {len(STEPS)} |" in PAGE


def test_entries_of_btp_are_shown() -> None:
    shown = re.findall(r"^\| `(\w+)` \| in ", PAGE, re.MULTILINE)
    assert shown == [TRANSFER_KEYS, IDEMPOTENCY_KEY, TRANSFER_NUMBER]


@pytest.mark.parametrize("module", ALIASES)
def test_earlier_names_still_work(module: str) -> None:
    names = ALIASES[module]
    earlier, now = (", ".join(f"`{name}`" for name in each) for each in (names, names.values()))
    assert f"| `{module}` | {earlier} | {now} |" in PAGE
    found = import_module(module)
    assert all(getattr(found, old) is getattr(found, new) for old, new in names.items())


def test_names_at_npm_are_shown() -> None:
    for name, ours in PLUGIN_ALIASES.items():
        assert f"`{name}`" in PAGE
        assert f"`{ours}`" in PAGE
