"""The page for troubleshooting quotes messages as the package has them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from support.pages import ROOT

import trio_ledger_plugin

PAGE = (ROOT / "docs" / "how-to" / "troubleshoot.md").read_text(encoding="utf-8")
PACKAGE = Path(trio_ledger_plugin.__file__).parent
# Stands for what differs, on the page and below.
ANY = "..."
# The peer's own, and the system's.
OF_OTHERS = {"No sendMoney functionality is included in this module"}


def text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[dsoO]|\{[^}]*\}", ANY, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(ANY if isinstance(value, ast.FormattedValue) else text_of(value) or "" for value in node.values)
    return None


@cache
def texts() -> frozenset[str]:
    """Return the texts in the package's source, with dots for what is filled in."""
    nodes = (node for path in PACKAGE.rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return frozenset(text for text in map(text_of, nodes) if text is not None and len(text) > 8)


def quoted() -> Iterator[str]:
    """Yield the messages in the first column of the tables."""
    for row in re.findall(r"^\| `(.*?)`.*\|$", PAGE, re.MULTILINE):
        if row not in OF_OTHERS:
            yield row


def test_page_has_many_messages() -> None:
    assert len(list(quoted())) > 60
    assert len(set(quoted())) == len(list(quoted()))


@pytest.mark.parametrize("message", sorted(set(quoted())))
def test_message_is_in_the_source(message: str) -> None:
    """A user who searches the page for what the terminal shows would not find it."""
    parts = [part for part in message.split(ANY) if part.strip(" :;")]
    assert parts
    pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
    assert any(pattern.search(text) for text in texts()), message
