"""``options``: which options a plugin has, with their defaults."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click
from attrs import asdict
from rich.table import Table

from ..options.tables import rows_of
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
# How wide the table is in a file or a pipe, where a name stays on one line.
WIDTH = 160


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
    screen.console.print(_table(rows, may_fold=screen.is_terminal))


def _table(rows: tuple[OptionRow, ...], *, may_fold: bool) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("option", "in JavaScript", "default", "meaning"):
        table.add_column(heading, overflow="fold", no_wrap=not may_fold and heading != "meaning")
    for row in rows:
        spelled = f"{row.javascript} (ms)" if row.milliseconds else row.javascript
        table.add_row(row.name, spelled, row.default, row.meaning.replace("``", ""))
    return table
