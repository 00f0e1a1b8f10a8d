"""The documentation in a real Chromium, on a desk and on a phone: pages fit, pictures appear, code can be copied."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.browser import REQUIRED, show
from support.pages import ROOT, find_pages

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow

# A desk, a tablet beside the list of pages, and a phone.
WIDTHS = (1300, 1080, 400)
# What is wider than the window, or has not appeared.
TROUBLE = """() => {
  const page = document.documentElement, trouble = [];
  if (page.scrollWidth > page.clientWidth) trouble.push(`${page.scrollWidth} of ${page.clientWidth}`);
  for (const image of document.images) if (!image.naturalWidth) trouble.push(image.src);
  return trouble;
}"""
# Keeps what a button copies: the script of the button selects it in an element of its own.
LISTEN = "() => document.addEventListener('copy', () => { window.copied = document.activeElement.value; })"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    if find_spec("sphinx") is None and not REQUIRED:
        pytest.skip("Sphinx is not installed; the extra is called docs")
    folder: Path = tmp_path_factory.mktemp("pages")
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", ROOT / "docs", folder], check=True)
    return folder


async def test_each_page_fits_a_desk_and_a_phone(built: Path) -> None:
    """A reader would move the whole page to and fro to read a line."""
    names = [page.relative_to(ROOT / "docs").with_suffix(".html") for page in find_pages() if "docs" in page.parts]
    assert len(names) > 30
    trouble: list[str] = []

    def look(page: Any) -> None:
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            for name in names:
                page.goto((built / name).as_uri())
                trouble.extend(f"{name} at {width}: {each}" for each in page.evaluate(TROUBLE))

    with trio.fail_after(120):
        await show((built / "index.html").as_uri(), look)
    assert trouble == []


async def test_commands_are_copied_without_prompt_and_output(built: Path) -> None:
    """What a reader pastes would be no command."""

    def copy(page: Any) -> None:
        page.evaluate(LISTEN)
        console = page.locator("div.highlight-console").first
        assert console.inner_text().startswith("bob$ python bob.py\nlistening on")
        console.hover()
        console.locator("button.copybtn").click()
        assert page.evaluate("() => window.copied") == "python bob.py"

    await show((built / "tutorial.html").as_uri(), copy)


async def test_program_has_a_button_and_its_output_has_none(built: Path) -> None:
    def count(page: Any) -> None:
        page.wait_for_selector("div.highlight-python button.copybtn")
        assert page.locator("div.highlight-text").count() == 1
        assert page.locator("div.highlight-text button.copybtn").count() == 0

    await show((built / "index.html").as_uri(), count)


async def test_terminal_is_moved_sideways_on_a_phone(built: Path) -> None:
    """Its lines would be too small to read, or the page wider than the window."""

    def measure(page: Any) -> None:
        page.wait_for_selector("img[src*=terminal-demo]")
        wide, room = page.evaluate(
            "() => { const p = document.querySelector('img[src*=terminal-demo]').parentElement;"
            " return [p.scrollWidth, p.clientWidth]; }"
        )
        assert wide >= 600 > 400 > room

    await show((built / "tutorial.html").as_uri(), measure, viewport={"width": 400, "height": 900})
