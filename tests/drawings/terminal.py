"""Draws what a terminal shows, with its colours, in a dark window that any page can have."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from attrs import evolve

from .svg import MONO, SANS

if TYPE_CHECKING:
    from .screen import Cell, Screen

__all__ = ["draw", "read"]

SIZE, WIDE, HIGH = 13, 7.85, 19
LEFT, TOP = 16, 56
BACK, FRONT, FAINT = "#17202b", "#e4e9ef", "#8b97a5"
COLOURS = {
    "": FRONT,
    "black": FAINT,
    "red": "#ff8578",
    "green": "#6fd08c",
    "yellow": "#e9c46a",
    "blue": "#7db7ff",
    "magenta": "#e29bf0",
    "cyan": "#67d3de",
    "white": FRONT,
}


def draw(screen: Screen, title: str, columns: int) -> str:
    """Return the picture of a screen.

    Args:
        screen: What the terminal shows.
        title: What was run.
        columns: How wide the terminal is.
    """
    width, height = round(columns * WIDE + 2 * LEFT), TOP + HIGH * len(screen.lines) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
        ' role="img" aria-labelledby="title description">',
        f'<title id="title">A terminal: {escape(title)}</title>',
        f'<desc id="description">{escape(" / ".join(line for line in screen.text if line))}</desc>',
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACK}"/>',
        *(f'<circle cx="{18 + 18 * at}" cy="17" r="5" fill="#465365"/>' for at in range(3)),
        f'<text x="{width / 2:g}" y="21" font-family="{SANS}" font-size="12" fill="{FAINT}" text-anchor="middle">',
        f"{escape(title)}</text>",
    ]
    for row, line in enumerate(screen.lines):
        parts.append(f'<text class="line" y="{TOP + HIGH * row}" font-family="{MONO}" font-size="{SIZE}">')
        column = 0
        for look, cells in groupby(line, key=lambda cell: evolve(cell, letter="")):
            text = "".join(cell.letter for cell in cells)
            # A blank has no colour. Each run has its own place and length, so that columns are straight in any font.
            if text.strip():
                indent = len(text) - len(text.lstrip())
                shown = text.strip()
                parts.append(_run(shown, look, column + indent))
            column += len(text)
        parts.append("</text>")
    return "\n".join([*parts, "</svg>", ""])


def _run(text: str, look: Cell, column: int) -> str:
    colour = FAINT if look.faint else COLOURS.get(look.colour, look.colour)
    bold = ' font-weight="bold"' if look.bold else ""
    x, length = LEFT + column * WIDE, len(text) * WIDE
    place = f'x="{x:.1f}" textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" fill="{colour}"'
    return f'<tspan {place}{bold} xml:space="preserve">{escape(text)}</tspan>'


def read(picture: str) -> list[str]:
    """Return the lines of a picture, without colours; blanks between two runs are one."""
    lines = [each for each in ET.fromstring(picture).iter() if each.get("class") == "line"]  # noqa: S314 (it is a file of this project)
    return [" ".join(part.text or "" for part in line) for line in lines]
