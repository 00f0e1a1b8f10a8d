"""The documentation pages and their contents: programs, files, and terminal sessions."""

import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from support.ports import free_port

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The first line of a file that the reader of a page creates.
NAMED = re.compile(r"# ([\w/]+\.\w+)")
PORT = "7768"


@frozen
class Block:
    """A fenced block of a page.

    Attributes:
        kind: Its language.
        text: What is in it.
        file: The file that it is to be saved as, or an empty string.
    """

    kind: str
    text: str
    file: str


def read_blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order, at a port that is free now."""
    port = str(free_port())
    return [
        Block(kind, text.replace(PORT, port), name[1] if (name := NAMED.match(text)) else "")
        for kind, text in FENCE.findall(page.read_text(encoding="utf-8"))
    ]


def find_pages() -> Iterator[Path]:
    """Give the pages that a reader of the project reads."""
    yield ROOT / "README.md"
    yield from sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
