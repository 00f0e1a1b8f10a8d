"""SVG pictures: boxes, arrows and texts on a light panel, which dark pages show as it is.

Invariant: every text is inside the panel. A text's width is an estimate, since the reader's fonts are not known.
"""

from __future__ import annotations

from html import escape
from math import hypot
from textwrap import wrap

from attrs import define, field, frozen

__all__ = ["BLUE", "FAINT", "GREEN", "INK", "MONO", "RED", "SANS", "Box", "Drawing", "Style", "wrap_text"]

INK, FAINT, LINE = "#1d2733", "#566270", "#8a94a3"
BLUE, GREEN, RED = "#1c5d99", "#1e7a46", "#b3261e"
PANEL = "#fcfcfa"
SANS = "Helvetica, Arial, sans-serif"
MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
# Widths of characters, in parts of the font's size.
MONO_WIDTH, SANS_WIDTH, NARROW_WIDTH = 0.61, 0.56, 0.31
NARROW = frozenset(" .,;:'!|()[]ijltfrI")
HEAD = 8
MARGIN = 6

Point = tuple[float, float]


@frozen
class Style:
    """How a text looks.

    Attributes:
        size: The font's size.
        colour: Its colour.
        mono: Whether it is a name of the code.
        bold: Whether it is bold.
        anchor: Where its x is: at its ``start``, ``middle`` or ``end``.
    """

    size: float = 13
    colour: str = INK
    mono: bool = False
    bold: bool = False
    anchor: str = "middle"

    def width(self, text: str) -> float:
        """Return how wide a text is, more or less."""
        if self.mono:
            return len(text) * MONO_WIDTH * self.size
        return sum(NARROW_WIDTH if letter in NARROW else SANS_WIDTH for letter in text) * self.size


def wrap_text(text: str, width: float, style: Style) -> list[str]:
    """Return the lines of a text that may be so wide."""
    columns = len(text)
    while columns > 1 and any(style.width(line) > width for line in wrap(text, columns)):
        columns -= 1
    return wrap(text, max(columns, 1))


@frozen
class Box:
    """A rectangle: its centre and its size."""

    x: float
    y: float
    width: float
    height: float

    def edge(self, towards: Point) -> Point:
        """Return where a line from the centre to a point leaves the box."""
        across, down = towards[0] - self.x, towards[1] - self.y
        shares = [half / abs(way) for half, way in ((self.width / 2, across), (self.height / 2, down)) if way]
        share = min([1.0, *shares])
        return self.x + across * share, self.y + down * share


@define
class Drawing:
    """A picture that is being drawn.

    Args:
        title: What it is, for screen readers.
        description: What it shows, for screen readers.
        width: Its width. Pages show it as wide at most, and in narrow windows smaller.
        height: Its height.
    """

    title: str
    description: str
    width: float
    height: float
    parts: list[str] = field(init=False, factory=list)

    def box(self, box: Box, *, fill: str = "#ffffff", stroke: str = LINE, dashed: bool = False) -> None:
        """Draw a rectangle with round corners."""
        left, top = box.x - box.width / 2, box.y - box.height / 2
        more = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{left:g}" y="{top:g}" width="{box.width:g}" height="{box.height:g}" rx="6"'
            f' fill="{fill}" stroke="{stroke}"{more}/>'
        )

    def text(self, at: Point, text: str, style: Style = Style(), *, name: str = "") -> None:
        """Write one line; ``name`` is its class, for tests.

        Raises:
            ValueError: It would leave the panel.
        """
        wide = style.width(text)
        left = at[0] - {"start": 0, "middle": wide / 2, "end": wide}[style.anchor]
        if left < MARGIN or left + wide > self.width - MARGIN or not MARGIN < at[1] < self.height - MARGIN / 2:
            raise ValueError(f"{text!r} at {at} leaves a panel of {self.width:g} by {self.height:g}")
        family = MONO if style.mono else SANS
        weight = ' font-weight="bold"' if style.bold else ""
        kind = f' class="{name}"' if name else ""
        # The outline keeps lines behind the text from crossing it.
        self.parts.append(
            f'<text{kind} x="{at[0]:g}" y="{at[1]:g}" font-family="{family}" font-size="{style.size:g}"'
            f' fill="{style.colour}"{weight} text-anchor="{style.anchor}" paint-order="stroke" stroke="{PANEL}"'
            f' stroke-width="4" stroke-linejoin="round">{escape(text)}</text>'
        )

    def label(self, box: Box, lines: list[tuple[str, Style]]) -> None:
        """Write lines in the middle of a box."""
        gap = 4
        whole = sum(style.size for _, style in lines) + gap * (len(lines) - 1)
        y = box.y - whole / 2
        for text, style in lines:
            y += style.size
            self.text((box.x, y - style.size * 0.15), text, style)
            y += gap

    def line(self, points: list[Point], *, colour: str = LINE, width: float = 1.5, dashed: bool = False) -> None:
        """Draw a line through points."""
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        more = ' stroke-dasharray="4 4"' if dashed else ""
        self.parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{more}/>')

    def arrow(self, points: list[Point], *, colour: str = LINE, dashed: bool = False, both: bool = False) -> None:
        """Draw a line through points with a head at its end, or at both ends."""
        self.line(points, colour=colour, dashed=dashed)
        self._head(points[-2], points[-1], colour)
        if both:
            self._head(points[1], points[0], colour)

    def _head(self, before: Point, tip: Point, colour: str) -> None:
        across, down = tip[0] - before[0], tip[1] - before[1]
        length = hypot(across, down)
        across, down = across / length * HEAD, down / length * HEAD
        wings = [(tip[0] - across - down * side, tip[1] - down + across * side) for side in (0.5, -0.5)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (tip, *wings))
        self.parts.append(f'<polygon points="{points}" fill="{colour}"/>')

    def cross(self, at: Point, *, colour: str = RED, size: float = 8) -> None:
        """Draw a cross."""
        x, y = at
        for way in (1, -1):
            self.line([(x - size, y - size * way), (x + size, y + size * way)], colour=colour, width=3)

    def dot(self, at: Point, *, colour: str = INK) -> None:
        """Draw a dot, where something begins."""
        self.parts.append(f'<circle cx="{at[0]:g}" cy="{at[1]:g}" r="5" fill="{colour}"/>')

    def render(self) -> str:
        """Return the picture as the text of an SVG file."""
        width, height = f"{self.width:g}", f"{self.height:g}"
        lines = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
            ' role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="description">{escape(self.description)}</desc>',
            f'<rect x="0.5" y="0.5" width="{self.width - 1:g}" height="{self.height - 1:g}" rx="8" fill="{PANEL}"',
            ' stroke="#cdd3da"/>',
            *self.parts,
            "</svg>",
        )
        return "\n".join([*lines, ""])
