"""The page of log messages lists all of them, and nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.pages import ROOT

import trio_ledger_plugin

PAGE = (ROOT / "docs" / "reference" / "logging.md").read_text(encoding="utf-8")
PACKAGE = Path(trio_ledger_plugin.__file__).parent
# The parameter of a log that hands messages to another log.
PASSED_ON = {"message"}
LEVELS = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}


def modules() -> Iterator[ast.Module]:
    for path in PACKAGE.rglob("*.py"):
        # Commands write to a terminal, and the test kit is no plugin.
        if not {"cli", "testing"} & set(path.relative_to(PACKAGE).parts):
            yield ast.parse(path.read_text())


def calls(module: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(module) if isinstance(node, ast.Call))


def logged() -> set[tuple[str, str]]:
    """Return the level and the text of each message in the source."""
    found = set()
    for module in modules():
        texts = {
            target.id: node.value
            for node in ast.walk(module)
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in calls(module):
            if isinstance(call.func, ast.Attribute) and call.func.attr in LEVELS and call.args:
                owner, text = call.func.value, call.args[0]
                if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Attribute) and owner.func.attr == "once":
                    owner = owner.func.value
                if ast.unparse(owner).rpartition(".")[2] in ("log", "_log"):
                    if isinstance(text, ast.Name) and text.id not in PASSED_ON:
                        text = texts[text.id]
                    if isinstance(text, ast.Constant):
                        found.add((LEVELS[call.func.attr], str(text.value)))
                    else:
                        assert isinstance(text, ast.Name), ast.unparse(call)
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
        for module in modules()
        for call in calls(module)
        if isinstance(call.func, ast.Attribute) and call.func.attr == "getLogger"
    }
    assert names == {"trio_ledger_plugin"}
    listed = set(re.findall(r"^\| `([a-z_-]+)` \|", PAGE, re.MULTILINE))
    assert listed == {*names, "trio-websocket"}
