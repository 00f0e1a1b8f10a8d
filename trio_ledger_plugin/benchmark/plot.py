"""Draws curves as an SVG picture, such as a rate against calls in flight."""

from __future__ import annotations

from html import escape
from math import log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["draw"]

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 80, 200, 40, 60
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#7f7f7f")


def draw(
    title: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    *,
    axes: str = "calls in flight; upwards: calls a second",
    logarithmic: bool = True,
) -> str:
    """Return an SVG picture of curves.

    Args:
        title: Stands above it.
        curves: The points of each curve, by its name.
        axes: What the first axis shows, and what the second.
        logarithmic: Whether the first axis is logarithmic, with a number at each point.
    """
    points = [point for curve in curves.values() for point in curve]
    most = max((across for across, _ in points), default=10)
    top_rate = max((rate for _, rate in points), default=1.0) * 1.1
    scale = log10 if logarithmic else float
    span = max(scale(most), 1.0)

    def x(across: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * scale(across) / span

    def y(rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / top_rate

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"',
        ' font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16">{escape(title)}</text>',
    ]
    for share in range(6):
        rate = top_rate * share / 5
        parts.append(f'<path d="M{LEFT} {y(rate):.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(rate) + 4:.1f}" text-anchor="end">{rate:,.0f}</text>')
    numbers = sorted({across for across, _ in points}) if logarithmic else [most * share // 5 for share in range(6)]
    parts += [
        f'<text x="{x(number):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{number:,}</text>'
        for number in numbers
    ]
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 16}">{escape(axes)}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x(across):.1f},{y(rate):.1f}" for across, rate in sorted(curve))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(across):.1f}" cy="{y(rate):.1f}" r="3" fill="{colour}"/>' for across, rate in curve]
        height = TOP + 20 * number
        parts.append(f'<text x="{WIDTH - RIGHT + 16}" y="{height}" fill="{colour}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])
