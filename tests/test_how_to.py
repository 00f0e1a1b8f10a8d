"""The pages of the documentation are correct: their programs run as they stand, and their terminals show the output."""

import os
import re
import sys
import tomllib
from contextlib import AsyncExitStack
from pathlib import Path
from shutil import which

import pytest
import trio
from support.pages import ROOT, Block, find_pages, read_blocks
from support.programs import environment
from support.terminals import PROMPT, Terminal, canonical, find_modules, open_terminal

pytestmark = pytest.mark.slow

PAGES = {
    str(page.relative_to(ROOT)): page
    for page in find_pages()
    if any(block.kind in ("python", "console") for block in read_blocks(page))
}


def test_pages_that_teach_have_programs():
    assert {"README.md", "docs/tutorial.md", "docs/how-to/embed.md"} <= set(PAGES)


@pytest.mark.parametrize("page", list(find_pages()), ids=lambda page: str(page.relative_to(ROOT)))
def test_targets_of_links_exist(page):
    links = re.findall(r"\]\(((?!\w+://)[^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.skipif(os.name != "posix" or which("bash") is None, reason="needs POSIX terminals, and bash in them")
@pytest.mark.parametrize("page", PAGES)
async def test_programs_of_a_page_run_and_show_its_output(page, tmp_path):
    """A reader copies a program, and it does something else."""
    blocks = read_blocks(PAGES[page])
    with trio.fail_after(110):
        async with AsyncExitStack() as stack:
            terminals: dict[str, Terminal] = {}
            for block, following in zip(blocks, [*blocks[1:], None], strict=True):
                if block.file:
                    (tmp_path / block.file).write_text(block.text)
                    if block.file == "pyproject.toml":
                        install(tmp_path)
                elif block.kind == "python":
                    await run_program(block.text, following, tmp_path)
                elif block.kind == "console":
                    lines = block.text.splitlines()
                    prompt = PROMPT.match(lines[0])
                    assert prompt, f"{lines[0]!r} is no prompt with a command"
                    if prompt[1] not in terminals:
                        terminals[prompt[1]] = await stack.enter_async_context(open_terminal(prompt[1], tmp_path))
                    await terminals[prompt[1]].play(lines)


def install(project: Path) -> None:
    """Register a project's entry points as ``pip install -e`` does, without building anything."""
    metadata = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    info = project / f"{metadata['name'].replace('-', '_')}-{metadata['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {metadata['name']}\nVersion: {metadata['version']}\n")
    lines = [
        line
        for group, entries in metadata["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


async def run_program(program: str, following: Block | None, folder: Path) -> None:
    # Fragments, programs that never end, and programs that need a host that does not exist are only loaded.
    shows_little = "trio.run(" not in program or "connector.example" in program or "sleep_forever" in program
    if shows_little:
        program = re.sub(r"^trio\.run\(.*\)\n", "", program, flags=re.MULTILINE)
    # From a file, as its reader does: then tracebacks have its lines.
    (folder / "program.py").write_text(program)
    with trio.fail_after(20):
        done = await trio.run_process(
            [sys.executable, "-W", "error", "program.py"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=folder,
            env=environment(PYTHONPATH=find_modules(folder)),
        )
    assert done.stderr.decode() == ""
    assert done.returncode == 0
    assert shows_little or done.stdout != b"", "it shows nothing"
    assert b"not served" not in done.stdout
    if following is not None and following.kind == "text":
        assert canonical(done.stdout.decode()) == canonical(following.text)
