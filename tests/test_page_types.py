"""The programs of the documentation satisfy a strict type checker, as those of its readers then can."""

import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.pages import ROOT, find_pages, read_blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed; the nox session types has it"),
]


def write_programs(folder: Path) -> dict[str, str]:
    """Write each program of the pages as a module of its own; return the page of each.

    One that its reader saves in a file has that file's name, unless several have it: others of its page may import it.
    """
    found = [
        (str(page.relative_to(ROOT)), block)
        for page in find_pages()
        for block in read_blocks(page)
        if block.kind == "python"
    ]
    named = Counter(block.file for _, block in found)
    pages = {}
    for number, (page, block) in enumerate(found):
        name = block.file if named[block.file] == 1 else f"program_{number}.py"
        (folder / name).write_text(block.text)
        pages[name] = page
    return pages


def test_programs_of_the_pages_are_typed(tmp_path: Path) -> None:
    """A reader's editor would underline what was copied from here, or know nothing about it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    pages = write_programs(programs)
    assert len(pages) > 40
    where = f"{programs}:{ROOT / 'docs' / 'examples'}"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path}", *sorted(pages)],
        capture_output=True,
        text=True,
        check=False,
        cwd=programs,
        env={"MYPYPATH": where},
    )
    told = re.sub(r"^(\w+\.py):", lambda found: f"{pages[found[1]]}, {found[0]}", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 0, told + done.stderr
