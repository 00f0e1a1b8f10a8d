"""Draws the layers of the package from the table that the layer test enforces."""

from __future__ import annotations

from support.layers import LAYERS, WORDS

from .svg import FAINT, Box, Drawing, Style, wrap_text

__all__ = ["draw"]

WIDTH, EDGE, INSIDE = 440, 12, 10
UNITS = Style(12, mono=True, bold=True, anchor="start")
TEXT = Style(12, FAINT, anchor="start")
STEP = 16
GAP = 7
TOP = 34


def draw() -> str:
    """Return the picture: the highest layer at the top, since imports go down."""
    rows = []
    for units, _ in reversed(LAYERS):
        room = WIDTH - 2 * (EDGE + INSIDE)
        lines = [(line, UNITS) for line in wrap_text(", ".join(units), room, UNITS)]
        rows.append([*lines, *((line, TEXT) for line in wrap_text(WORDS[units[0]], room, TEXT))])
    heights = [len(lines) * STEP + 12 for lines in rows]
    picture = Drawing(
        "The layers of the package",
        "From the highest layer to the lowest. "
        + " ".join(f"{', '.join(units)}: {WORDS[units[0]]}." for units, _ in reversed(LAYERS)),
        WIDTH,
        TOP + sum(heights) + GAP * len(heights) + 4,
    )
    picture.text((WIDTH / 2, 22), "a layer imports only from layers below it", Style(12, FAINT, bold=True))
    top: float = TOP
    for lines, height in zip(rows, heights, strict=True):
        picture.box(Box(WIDTH / 2, top + height / 2, WIDTH - 2 * EDGE, height))
        for number, (line, style) in enumerate(lines, 1):
            kind = "units" if style is UNITS else "words"
            first = kind == "units" and number == 1
            picture.text((EDGE + INSIDE, top + 4 + number * STEP), line, style, name=f"{kind} first" if first else kind)
        top += height + GAP
    return picture.render()
