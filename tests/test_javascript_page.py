"""The page for users of the JavaScript plugins names methods, options and errors that exist."""

import re
from pathlib import Path
from typing import Any

import pytest
from support.pages import ROOT

import trio_ledger_plugin
from trio_ledger_plugin import AccountsOptions, BtpOptions, HttpOptions, LedgerPlugin, ListenerOptions
from trio_ledger_plugin.http.options import IncomingOptions, OutgoingOptions
from trio_ledger_plugin.options.load import IGNORED, names_of
from trio_ledger_plugin.registry import PLUGIN_ALIASES

PAGE = (ROOT / "docs" / "how-to" / "coming-from-javascript.md").read_text(encoding="utf-8")
OPTIONS: dict[str, tuple[Any, ...]] = {
    "btp": (BtpOptions,),
    "mini-accounts": (AccountsOptions,),
    "http": (HttpOptions,),
}
NESTED: dict[str, Any] = {"listener": ListenerOptions}
# In the table without the name of what they are in.
INNER: dict[str, Any] = {"secret": IncomingOptions, "secretToken": IncomingOptions, "tokenExpiry": OutgoingOptions}
HTTP2 = {"http2", "http2MaxRequestsPerSession"}


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows_of_options() -> list[tuple[str, str, str]]:
    """Return each option with the plugin that it is of, and what the page says about it."""
    rows = re.findall(r"^\| (`.*?) \| ([\w, -]+) \| (.*) \|$", section("Options"), re.MULTILINE)
    return [
        (name, plugin, text)
        for names, plugins, text in rows
        for name in re.findall(r"`([\w.]+)`", names)
        for plugin in plugins.split(", ")
    ]


@pytest.mark.parametrize(("name", "plugin", "text"), rows_of_options())
def test_option_is_taken_as_the_page_says(name: str, plugin: str, text: str) -> None:
    """A configuration that the page says is taken would be refused."""
    outer, _, inner = name.partition(".")
    if text.startswith("ignored"):
        assert name in IGNORED
    elif outer == "wsOpts":
        assert plugin in ("btp", "mini-accounts")
        assert inner in names_of(AccountsOptions)
    elif name in INNER or name in HTTP2:
        assert name in names_of(INNER.get(name, OutgoingOptions))
    else:
        assert any(outer in names_of(options) for options in OPTIONS[plugin])
        assert not inner or inner in names_of(NESTED[outer])


def test_every_ignored_field_is_on_the_page() -> None:
    shown = {name for name, _, text in rows_of_options() if text.startswith("ignored")}
    assert {"_log", "_store", "wsOpts"} | shown == IGNORED


def test_methods_exist() -> None:
    named = set(re.findall(r"`(?:await )?plugin\.(\w+)", section("Methods")))
    assert len(named) > 8
    assert [name for name in named if name != "events" and not hasattr(LedgerPlugin, name)] == []


def test_errors_and_events_exist() -> None:
    text = section("Errors") + section("Events") + section("Money")
    named = set(re.findall(r"`([A-Z]\w+Error|[A-Z]\w+(?:ed|Again|Doubt))\b", text))
    assert len(named) > 12
    assert [name for name in named if not hasattr(trio_ledger_plugin, name)] == []


def test_versions_are_those_that_the_tests_run_against() -> None:
    packages = Path(__file__).parent.joinpath("interop", "package.json").read_text(encoding="utf-8")
    versions = [re.search(rf'"{name}": "(\d+\.\d+)\.', packages) for name in sorted(PLUGIN_ALIASES)]
    btp, http, accounts = (each[1] for each in versions if each)
    assert f"are {btp}, {accounts} and {http}" in PAGE
