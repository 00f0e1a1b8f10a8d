"""``options``: which options a plugin has, with their defaults."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from attrs import asdict
from rich.padding import Padding
from rich.table import Table

from ..options.tables import REQUIRED, rows_of
from ..registry import canonical_plugin_name, find_plugin
from .errors import COMMON, ENDED
from .output import Screen
from .parameters import Command, epilog, json_option

if TYPE_CHECKING:
    from ..options.tables import OptionRow

__all__ = ["options"]

EXAMPLES = """
  trio-ledger-plugin options btp
  trio-ledger-plugin options btp-accounts --json
  trio-ledger-plugin options ilp-plugin-http
"""
# How wide the table is in a file or a pipe.
WIDTH = 160
# How wide the column of meanings is at least. A narrower terminal gets a list, since names are not broken.
MEANING = 40


@click.command(cls=Command, epilog=epilog(EXAMPLES, *COMMON, *ENDED), short_help="Which options does a plugin have?")
@click.argument("plugin")
@json_option
def options(plugin: str, as_json: bool) -> None:
    """List the options of a plugin: the name, the name that JavaScript has, the default, and what each means.

    PLUGIN is the plugin's name, such as btp, or that of its module at npm. First come the plugin's own options, then
    those of every plugin. A default of a time is in seconds; under the name that JavaScript has, it is in milliseconds.
    """
    rows = rows_of(find_plugin(canonical_plugin_name(plugin)).options_class)
    if as_json:
        click.echo(json.dumps({"plugin": canonical_plugin_name(plugin), "options": [asdict(row) for row in rows]}))
        return
    screen = Screen()
    if not screen.is_terminal:
        screen.console.width = WIDTH
    table = _table(rows)
    wide = screen.console.options.update(width=WIDTH)
    if screen.console.measure(table, options=wide).minimum <= screen.console.width:
        screen.console.print(table)
        return
    for row in rows:
        default = row.default if row.default == REQUIRED else f"default: {row.default}"
        screen.line(f"{row.name}  (in JavaScript: {_spelled(row)})  {default}", "bold")
        screen.console.print(Padding(_meaning(row), (0, 0, 0, 2)))


def _table(rows: tuple[OptionRow, ...]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("option", "in JavaScript", "default"):
        table.add_column(heading, no_wrap=True)
    table.add_column("meaning", min_width=MEANING)
    for row in rows:
        table.add_row(row.name, _spelled(row), row.default, _meaning(row))
    return table


def _spelled(row: OptionRow) -> str:
    return f"{row.javascript} (ms)" if row.milliseconds else row.javascript


def _meaning(row: OptionRow) -> str:
    return row.meaning.replace("``", "")
