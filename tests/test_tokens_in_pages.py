"""Tokens in the samples of the documentation need no escaping, so that a copied sample opens the same account."""

import re
from pathlib import Path

import pytest
from support.pages import ROOT, find_pages

PLACES = [*find_pages(), *(ROOT / "docs" / "examples").glob("*.py"), *(ROOT / "trio_ledger_plugin").rglob("*.py")]
# What stands for an account or a token: a placeholder of an f-string, or stars instead of a secret.
PLAIN = re.compile(r"(?:[\w.~-]|\{[\w.]+\}|\*\*\*)*")
IN_URLS = re.compile(r"\w://([^\s/?#\"'`@|]*)@")
ALONE = re.compile(r"(?:\"secret\": |secret=|static_token=)\"([^\"]*)\"|(?:SECRET|TOKEN)=([^\s`]*)")


def read_tokens(path: Path) -> list[str]:
    """Return the accounts and tokens in URLs of a file, and in options and variables of a page."""
    text = path.read_text(encoding="utf-8")
    found = [part for userinfo in IN_URLS.findall(text) for part in userinfo.split(":")]
    alone = ALONE.findall(text) if path.suffix == ".md" else []
    return found + [token for pair in alone for token in pair if token]


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_tokens_need_no_escaping(path: Path) -> None:
    """In a URL, other characters are sent percent-encoded, and the server would know another token."""
    assert [token for token in read_tokens(path) if not PLAIN.fullmatch(token)] == []


def test_tokens_are_found() -> None:
    assert len([token for path in PLACES for token in read_tokens(path)]) > 60
