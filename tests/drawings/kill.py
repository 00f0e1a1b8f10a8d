"""Draws a KEYED transfer whose receiver is killed between its commit and its acknowledgement."""

from __future__ import annotations

from enum import Enum

from attrs import frozen

from .svg import BLUE, FAINT, GREEN, INK, RED, Box, Drawing, Style

__all__ = ["draw"]

WIDTH = 440
TOP = 66
ROW = 44


class Line(Enum):
    """What takes part, with the place of its line."""

    SENDER = 54
    SENDERS_JOURNAL = 162
    RECEIVER = 276
    RECEIVERS_JOURNAL = 384


NAMES = {
    Line.SENDER: ("sender", ""),
    Line.SENDERS_JOURNAL: ("its journal", "alice.db"),
    Line.RECEIVER: ("receiver", ""),
    Line.RECEIVERS_JOURNAL: ("its journal", "bob.db"),
}


@frozen
class Step:
    """One arrow: from a line to another one, with what it says."""

    start: Line
    end: Line
    text: str
    colour: str = BLUE


@frozen
class Event:
    """Something that happens to one line."""

    line: Line
    text: str
    colour: str


STEPS: tuple[Step | Event, ...] = (
    Step(Line.SENDER, Line.SENDERS_JOURNAL, "commit: SENT", INK),
    Step(Line.SENDER, Line.RECEIVER, "transfer of 250, key 17"),
    Step(Line.RECEIVER, Line.RECEIVERS_JOURNAL, "commit: +250", GREEN),
    Event(Line.RECEIVER, "killed before it acknowledges", RED),
    Event(Line.RECEIVER, "started again", INK),
    Step(Line.SENDER, Line.RECEIVER, "new link: both compare their journals", FAINT),
    Step(Line.SENDER, Line.RECEIVER, "again: transfer of 250, key 17"),
    Step(Line.RECEIVERS_JOURNAL, Line.RECEIVER, "known key: +0", GREEN),
    Step(Line.RECEIVER, Line.SENDER, "acknowledged"),
    Step(Line.SENDER, Line.SENDERS_JOURNAL, "commit: ACKED", INK),
)


def draw() -> str:
    """Return the picture."""
    height = TOP + ROW * len(STEPS) + 66
    picture = Drawing(
        "A transfer whose receiver is killed takes effect once",
        "The sender enters a transfer of 250 under key 17 in its journal as SENT, and sends it. The receiver credits it"
        " in one commit, and is killed before it acknowledges. It is started again. On the new link both ends compare"
        " their journals. The sender sends the transfer again. The receiver's journal knows the key, so nothing is"
        " added. The receiver acknowledges, and the sender's journal changes the transfer to ACKED. Both journals"
        " agree: 250 sent, 250 received.",
        WIDTH,
        height,
    )
    dead = _dead_between()
    for line, (name, file) in NAMES.items():
        x, bottom = line.value, height - 48
        box = Box(x, 32, 92, 40)
        stops = [box.y + 20, *(dead if line is Line.RECEIVER else ()), bottom]
        for top, end in zip(stops[::2], stops[1::2], strict=True):
            picture.line([(x, top), (x, end)])
        picture.box(box, fill="#eef3ee" if file else "#f1f5fa")
        lines = [(name, Style(12, bold=True))]
        picture.label(box, [*lines, (file, Style(11, FAINT, mono=True))] if file else lines)
    for number, step in enumerate(STEPS):
        y = TOP + ROW * (number + 1)
        if isinstance(step, Event):
            _draw_event(picture, step, y)
        else:
            _draw_step(picture, step, y)
    for line, text in ((Line.SENDERS_JOURNAL, "sent 250"), (Line.RECEIVERS_JOURNAL, "received 250")):
        box = Box(line.value, height - 32, 100, 30)
        picture.box(box, fill="#eef3ee", stroke=GREEN)
        picture.label(box, [(text, Style(12, GREEN, bold=True))])
    return picture.render()


def _dead_between() -> tuple[float, float]:
    """Return from where to where the receiver does not run."""
    killed, started = (TOP + ROW * (number + 1) for number, step in enumerate(STEPS) if isinstance(step, Event))
    return killed, started


def _draw_step(picture: Drawing, step: Step, y: float) -> None:
    start, end = step.start.value, step.end.value
    picture.arrow([(start, y), (end, y)], colour=step.colour, both="both" in step.text)
    style = Style(12, step.colour)
    half = style.width(step.text) / 2 + 8
    middle = min(max((start + end) / 2, half), WIDTH - half)
    picture.text((middle, y - 8), step.text, style)


def _draw_event(picture: Drawing, event: Event, y: float) -> None:
    x = event.line.value
    if event.colour == RED:
        picture.cross((x, y))
    else:
        picture.dot((x, y))
    picture.text((x - 16, y + 4), event.text, Style(12, event.colour, bold=True, anchor="end"))
