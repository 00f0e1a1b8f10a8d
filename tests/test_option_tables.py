"""The tables of options: every option with its default, as the page of options and the command show them."""

import json
import re
from math import inf
from pathlib import Path
from typing import Any

import pytest
from attrs import NOTHING, Factory, field, fields, frozen
from support.pages import ROOT
from support.programs import on_a_terminal, posix, run

from trio_ledger_plugin import (
    AccountsOptions,
    BtpOptions,
    HttpAccountsOptions,
    HttpOptions,
    LoopbackOptions,
    PluginOptions,
)
from trio_ledger_plugin.options.fields import NESTED, SECONDS
from trio_ledger_plugin.options.tables import OptionRow, common_rows, own_rows, rows_of

PLUGINS: dict[str, type[PluginOptions]] = {
    "btp": BtpOptions,
    "btp-accounts": AccountsOptions,
    "http": HttpOptions,
    "http-accounts": HttpAccountsOptions,
    "loopback": LoopbackOptions,
}
UNITS = {"s": 1, "days": 86400, "bytes": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
PAGE = (ROOT / "docs" / "reference" / "options.md").read_text(encoding="utf-8")


def read_default(row: OptionRow) -> Any:
    """Return the value that a shown default stands for."""
    number, _, unit = row.default.partition(" ")
    if re.fullmatch(r"[\d,.]+", number):
        return float(number.replace(",", "")) * UNITS[unit or "s"]
    return {"None": None, "True": True, "False": False, "inf": inf}.get(row.default, row.default.strip('"'))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_default_is_shown(plugin: str) -> None:
    """A reader would set an option to what it is already, or not see that it is required."""
    options = PLUGINS[plugin]
    rows = {row.name: row for row in rows_of(options)}
    known = [("", each) for each in fields(options) if each.init]
    known += [
        (f"{outer.name}.", inner)
        for _, outer in tuple(known)
        for inner in (fields(outer.metadata[NESTED]) if NESTED in outer.metadata else ())
        if inner.init
    ]
    assert sorted(rows) == sorted(f"{prefix}{each.name}" for prefix, each in known)
    for prefix, each in known:
        row = rows[f"{prefix}{each.name}"]
        default: Any = each.default.factory() if isinstance(each.default, Factory) else each.default  # type: ignore[arg-type]
        if default is NOTHING:
            assert row.default == "required"
        elif default is None or default or default is False:
            assert read_default(row) == default, row
        else:
            assert row.default == "empty"
        assert len(row.meaning) > 10, row
        assert row.meaning.endswith("."), row


def test_times_and_sizes_have_units() -> None:
    """35 would be milliseconds to a reader who knows the JavaScript plugins."""
    shown = {row.name: row for row in common_rows()}
    assert shown["response_timeout"].default == "35 s"
    assert (shown["response_timeout"].javascript, shown["response_timeout"].milliseconds) == ("responseTimeout", True)
    assert shown["key_retention"].default == "7 days"
    assert shown["max_message_bytes"].default == "64 KiB"
    assert shown["max_in_flight"].default == "16,384"
    assert own_rows(AccountsOptions)[0].default == "3000"


def test_options_of_another_package_are_shown() -> None:
    @frozen(kw_only=True)
    class ShopOptions(BtpOptions):
        """Options of a shop.

        Attributes:
            patience: How long
                it waits.
        """

        patience: float = field(default=1.5, metadata=SECONDS)

    last = own_rows(ShopOptions)[-1]
    assert (last.name, last.default, last.meaning) == ("patience", "1.5 s", "How long it waits.")
    assert {row.name for row in own_rows(BtpOptions)} < {row.name for row in own_rows(ShopOptions)}


def test_page_has_the_table_of_each_plugin() -> None:
    tables = re.findall(r"^<!-- table of (\w+) -->$", PAGE, re.MULTILINE)
    assert tables == [*(options.__name__ for options in PLUGINS.values()), PluginOptions.__name__]


@pytest.mark.parametrize("plugin", PLUGINS)
async def test_command_shows_the_same_table(plugin: str) -> None:
    code, stdout, stderr = await run("options", plugin)
    assert (code, stderr) == (0, "")
    assert stdout.split()[:5] == ["option", "in", "JavaScript", "default", "meaning"]
    lines = [line.split() for line in stdout.splitlines()]
    for row in rows_of(PLUGINS[plugin]):
        spelled = [row.name, row.javascript, *["(ms)"] * row.milliseconds, *row.default.split()]
        assert any(line[: len(spelled)] == spelled for line in lines), row
    code, stdout, stderr = await run("options", plugin, "--json")
    assert (code, stderr) == (0, "")
    told = json.loads(stdout)
    assert told["plugin"] == plugin
    assert [each["name"] for each in told["options"]] == [row.name for row in rows_of(PLUGINS[plugin])]


async def test_command_knows_npm_names_and_no_others(tmp_path: Path) -> None:
    code, stdout, _ = await run("options", "ilp-plugin-mini-accounts", "--json")
    assert (code, json.loads(stdout)["plugin"]) == (0, "btp-accounts")
    code, stdout, stderr = await run("options", "bpt")
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: plugin is 'bpt'; installed are btp, ")


@posix
@pytest.mark.parametrize("columns", [40, 80, 130, 200])
async def test_command_breaks_no_name_on_a_terminal(columns: int) -> None:
    """A name in two pieces can be neither copied nor searched for."""
    shown = await on_a_terminal("options", "btp-accounts", COLUMNS=str(columns))
    lines = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", shown).split("\r\n")
    for row in rows_of(AccountsOptions):
        assert any(line.split()[:1] == [row.name] and row.javascript in line for line in lines), row.name
    if columns == 40:
        assert "max_links_per_account  (in JavaScript: maxLinksPerAccount)  default: 16" in lines
        # The meanings keep words whole as well.
        assert max(len(line) for line in lines if line.startswith("  ")) <= columns
