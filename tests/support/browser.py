"""A real Chromium, Debian's, driven by Playwright in a thread."""

from __future__ import annotations

import os
from shutil import which
from typing import TYPE_CHECKING, Any

import pytest
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CONTRAST", "show"]

# Set in continuous integration: a missing browser is an error there.
REQUIRED = "TRIO_LEDGER_PLUGIN_REQUIRE_CHROMIUM" in os.environ
PATIENCE_MS = 15_000

# Returns the texts on a page whose colour differs too little from what is behind them (WCAG 2, AA).
CONTRAST = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(each).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const wrong = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const node = walker.currentNode.parentElement;
    if (!text || ["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.tagName) || !node.checkVisibility()) continue;
    if (node.disabled || node instanceof SVGElement) continue;
    const pair = [luminance(parse(getComputedStyle(node).color)), luminance(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < 4.5) wrong.push(`${text}: ${ratio.toFixed(2)}`);
  }
  return wrong;
}"""


def find_chromium() -> str:
    path = which("chromium")
    if path is None and not REQUIRED:
        pytest.skip("Chromium is not installed")
    assert path is not None, "Chromium is not installed"
    return path


def import_playwright() -> Any:
    if not REQUIRED:
        pytest.importorskip("playwright", reason="Playwright is not installed; the extra is called browser")
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 (the extra may be missing)

    return sync_playwright


async def show(
    address: str, script: Callable[[Any], None], *, args: tuple[str, ...] = (), expected: str = "", **context: Any
) -> list[str]:
    """Open a page and run a script with it, in a thread; return the URLs that the page has asked for.

    An error of the page, or a message on its console, fails the test.

    Args:
        address: The page's URL.
        script: Called with Playwright's page.
        args: Further arguments of Chromium.
        expected: A part of the messages that the console may have.
        context: Options of Playwright's context, such as ``color_scheme``.
    """
    path, sync_playwright = find_chromium(), import_playwright()
    asked: list[str] = []
    trouble: list[str] = []

    def note(message: Any) -> None:
        if not expected or expected not in message.text:
            trouble.append(message.text)

    def run() -> None:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *args])
            try:
                page = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **context}).new_page()
                page.set_default_timeout(PATIENCE_MS)
                page.on("request", lambda request: asked.append(request.url))
                page.on("pageerror", lambda error: trouble.append(str(error)))
                page.on("console", note)
                page.goto(address)
                script(page)
            finally:
                browser.close()

    await trio.to_thread.run_sync(run)
    assert trouble == []
    return asked
