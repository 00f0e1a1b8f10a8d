"""The page of log messages lists all of them, and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.pages import ROOT

import trio_ledger_plugin

PAGE = (ROOT / "docs" / "reference" / "logging.md").read_text(encoding="utf-8")
PACKAGE = Path(trio_ledger_plugin.__file__).parent
LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


def calls() -> Iterator[ast.Call]:
    for path in PACKAGE.rglob("*.py"):
        # Commands write to a terminal, and the test kit is no plugin.
        if not {"cli", "testing"} & set(path.relative_to(PACKAGE).parts):
            yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def logged() -> set[tuple[str, str]]:
    """Return the level and the text of each message in the source."""
    found = set()
    for call in calls():
        if isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS and call.args:
            owner, text = ast.unparse(call.func.value).rpartition(".")[2], call.args[0]
            if owner in ("log", "_log") and isinstance(text, ast.Constant):
                found.add((LEVELS[call.func.attr], str(text.value)))
    return found


def test_every_message_is_listed_under_its_level() -> None:
    """An operator who looks up a message would not find it, or would watch for one that is never logged."""
    listed = set(re.findall(r"^\| `([A-Z]+)` \| `(.*?)` \|", PAGE, re.MULTILINE))
    assert len(listed) > 20
    assert listed == logged()


def test_logger_is_the_one_on_the_page() -> None:
    """An application's configuration of that logger would have no effect."""
    names = {
        ast.literal_eval(call.args[0])
        for call in calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr == "getLogger"
    }
    assert names == {"trio_ledger_plugin"}
    listed = set(re.findall(r"^\| `([a-z_-]+)` \|", PAGE, re.MULTILINE))
    assert listed == {*names, "trio-websocket"}
