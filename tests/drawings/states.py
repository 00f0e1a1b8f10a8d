"""Draws the states of a transfer and of a plugin, from the tables that the code itself obeys.

Invariant: each pair of states in a table has exactly one route in its picture. A table that has changed is an error
here until the picture has changed too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from attrs import define, evolve, field, frozen

from trio_ledger_plugin.runtime.connector import FINAL, PluginState
from trio_ledger_plugin.runtime.connector import TRANSITIONS as OF_A_PLUGIN
from trio_ledger_plugin.transfer import TRANSITIONS as OF_A_TRANSFER
from trio_ledger_plugin.transfer import TransferState

from .svg import BLUE, FAINT, GREEN, INK, RED, Box, Drawing, Point, Style

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

__all__ = ["check_routes", "draw_plugin", "draw_transfer"]

WIDTH = 440
NAME = Style(12, mono=True, bold=True)
SMALL = Style(11, FAINT)

StateT = TypeVar("StateT")


@frozen
class Route:
    """How a change of state is drawn.

    Attributes:
        text: Why the state changes; lines are separated by ``|``.
        at: The middle of its text's first line.
        points: Where the arrow goes; if there are none, straight from box to box.
        anchor: Where in the text ``at`` is.
        colour: Its colour.
    """

    text: str
    at: Point
    points: tuple[Point, ...] = ()
    anchor: str = "middle"
    colour: str = INK


def check_routes(drawn: Iterable[tuple[StateT, StateT]], table: Mapping[StateT, Collection[StateT]]) -> None:
    """Check that a picture has each change of state that the table has, and no other.

    Raises:
        ValueError: It does not.
    """
    drawn, real = set(drawn), {(state, after) for state, following in table.items() for after in following}
    if drawn != real:
        raise ValueError(f"not drawn: {real - drawn}; drawn, and not in the table: {drawn - real}")


@define
class StateDrawing(Generic[StateT]):
    """A picture of states.

    Args:
        picture: What it is drawn on.
        boxes: Where each state is.
    """

    picture: Drawing
    boxes: Mapping[StateT, Box]
    drawn: set[tuple[StateT, StateT]] = field(init=False, factory=set)

    def state(self, state: StateT, name: str, text: str, *, colour: str = BLUE) -> None:
        """Draw one state."""
        box = self.boxes[state]
        self.picture.box(box, stroke=colour)
        self.picture.label(box, [(name, evolve(NAME, colour=colour)), *((line, SMALL) for line in text.split("|"))])

    def route(self, start: StateT, end: StateT, route: Route) -> None:
        """Draw one change of state."""
        self.drawn.add((start, end))
        points = list(route.points)
        if not points:
            first, last = self.boxes[start], self.boxes[end]
            points = [first.edge((last.x, last.y)), last.edge((first.x, first.y))]
        self.picture.arrow(points, colour=route.colour)
        self.write(route)

    def enter(self, start: Point, end: Point, route: Route) -> None:
        """Draw how a state begins."""
        self.picture.dot(start)
        self.picture.arrow([start, end], colour=INK)
        self.write(route)

    def write(self, route: Route) -> None:
        """Write the text of a route."""
        for number, line in enumerate(route.text.split("|")):
            style = Style(12, route.colour, anchor=route.anchor)
            self.picture.text((route.at[0], route.at[1] + 15 * number), line, style)


TRANSFER_BOXES = {
    TransferState.SENT: Box(220, 90, 190, 48),
    TransferState.IN_DOUBT: Box(220, 200, 150, 48),
    TransferState.ACKED: Box(82, 310, 130, 48),
    TransferState.REJECTED: Box(358, 310, 130, 48),
    TransferState.APPLIED: Box(82, 460, 130, 62),
    TransferState.DELIVERED: Box(358, 460, 130, 62),
    TransferState.REFUSED: Box(220, 572, 190, 48),
}
TRANSFER_TEXTS = {
    TransferState.SENT: ("KEYED: repeated until answered", BLUE),
    TransferState.IN_DOUBT: ("not sent again", RED),
    TransferState.ACKED: ("counts as sent", GREEN),
    TransferState.REJECTED: ("not applied", RED),
    TransferState.APPLIED: ("credited; the|handler is called", BLUE),
    TransferState.DELIVERED: ("credited; the|handler is done", GREEN),
    TransferState.REFUSED: ("not credited", RED),
}
TRANSFER_ROUTES = {
    (TransferState.SENT, TransferState.ACKED): Route(
        "the peer|has applied it", (14, 164), ((140, 114), (60, 286)), "start", GREEN
    ),
    (TransferState.SENT, TransferState.REJECTED): Route(
        "the peer|has refused it", (426, 164), ((300, 114), (380, 286)), "end", RED
    ),
    (TransferState.SENT, TransferState.IN_DOUBT): Route("outcome unknown", (220, 148)),
    (TransferState.IN_DOUBT, TransferState.ACKED): Route(
        "confirm()", (140, 250), ((180, 224), (120, 286)), "end", GREEN
    ),
    (TransferState.IN_DOUBT, TransferState.REJECTED): Route(
        "reject()", (300, 250), ((260, 224), (320, 286)), "start", RED
    ),
    (TransferState.APPLIED, TransferState.DELIVERED): Route("success", (220, 452), (), "middle", GREEN),
}


def draw_transfer() -> str:
    """Return the picture of the states at both ends of a transfer."""
    picture = Drawing(
        "The states of a transfer",
        "A sent transfer begins in the state SENT. It becomes ACKED when the peer has applied it, REJECTED when the"
        " peer has refused it, and IN_DOUBT when its outcome is unknown. Then an operator's confirm() makes it ACKED,"
        " and reject() makes it REJECTED. A received transfer is credited in the state APPLIED and becomes DELIVERED"
        " when the money handler has succeeded. With a transactional handler it begins as DELIVERED, or as REFUSED.",
        WIDTH,
        610,
    )
    drawing = StateDrawing(picture, TRANSFER_BOXES)
    picture.line([(12, 350), (428, 350)], dashed=True)
    picture.text((14, 24), "at the sender", Style(12, FAINT, bold=True, anchor="start"))
    picture.text((14, 372), "at the receiver", Style(12, FAINT, bold=True, anchor="start"))
    drawing.enter((220, 36), (220, 66), Route("send_money()", (230, 32), (), "start"))
    drawing.enter((82, 396), (82, 429), Route("money handler", (92, 400), (), "start"))
    drawing.enter((358, 396), (358, 429), Route("transactional handler", (426, 386), (), "end"))
    drawing.enter((220, 516), (220, 548), Route("transactional handler raises", (220, 508)))
    for (start, end), route in TRANSFER_ROUTES.items():
        drawing.route(start, end, route)
    check_routes(drawing.drawn, OF_A_TRANSFER)
    for state, (text, colour) in TRANSFER_TEXTS.items():
        drawing.state(state, state.name, text, colour=colour)
    return picture.render()


PLUGIN_BOXES = {
    PluginState.IDLE: Box(220, 92, 150, 46),
    PluginState.CONNECTING: Box(118, 196, 150, 46),
    PluginState.READY: Box(118, 300, 150, 60),
    PluginState.DISCONNECTING: Box(334, 248, 150, 46),
    PluginState.CLOSING: Box(82, 440, 130, 46),
    PluginState.CLOSED: Box(255, 440, 110, 46),
    PluginState.FAILED: Box(372, 440, 106, 46),
}
FRAME = Box(220, 190, 416, 306)
FRAMED = (PluginState.IDLE, PluginState.CONNECTING, PluginState.READY, PluginState.DISCONNECTING)
PLUGIN_ROUTES = {
    (PluginState.IDLE, PluginState.CONNECTING): Route("connect()", (112, 148), ((170, 115), (130, 173)), "end"),
    (PluginState.CONNECTING, PluginState.IDLE): Route("no success", (196, 158), ((160, 173), (200, 115)), "start"),
    (PluginState.CONNECTING, PluginState.READY): Route("started", (118, 248)),
    (PluginState.CONNECTING, PluginState.DISCONNECTING): Route("disconnect()", (246, 206), ((193, 205), (270, 225))),
    (PluginState.READY, PluginState.DISCONNECTING): Route("disconnect()", (250, 304), ((193, 292), (274, 271))),
    (PluginState.READY, PluginState.IDLE): Route(
        "an error ends it", (30, 74), ((43, 300), (26, 300), (26, 92), (145, 92)), "start"
    ),
    (PluginState.DISCONNECTING, PluginState.IDLE): Route("it has ended", (318, 158), ((334, 225), (270, 115)), "start"),
    (PluginState.CLOSING, PluginState.CLOSED): Route("ended", (173, 433), (), "middle", GREEN),
    (PluginState.CLOSING, PluginState.FAILED): Route(
        "a fatal error meanwhile", (227, 494), ((82, 463), (82, 480), (372, 480), (372, 463)), "middle", RED
    ),
}
# From each state in the frame.
FRAME_ROUTES = {
    PluginState.CLOSING: Route("aclose()", (92, 376), ((82, 343), (82, 417)), "start"),
    PluginState.CLOSED: Route("end of the nursery", (263, 376), ((255, 343), (255, 417)), "middle"),
    PluginState.FAILED: Route("fatal error", (372, 376), ((372, 343), (372, 417)), "middle", RED),
}


def draw_plugin() -> str:
    """Return the picture of the states that a plugin has."""
    picture = Drawing(
        "The life of a plugin",
        "A plugin begins in the state IDLE. connect() makes it CONNECTING, and READY once its connection has started."
        " disconnect() makes it DISCONNECTING, and then IDLE again. An attempt without success, and an error that ends"
        " the connection, lead back to IDLE. From each of these states, aclose() leads to CLOSING and then CLOSED, the"
        " end of the nursery to CLOSED, and a fatal error to FAILED. CLOSED and FAILED are final.",
        WIDTH,
        510,
    )
    drawing = StateDrawing(picture, PLUGIN_BOXES)
    picture.box(FRAME, fill="#f1f5fa", dashed=True)
    drawing.enter((220, 22), (220, 69), Route("open_plugin(), create_plugin()", (230, 27), (), "start"))
    for (start, end), route in PLUGIN_ROUTES.items():
        drawing.route(start, end, route)
    for end, route in FRAME_ROUTES.items():
        for start in FRAMED:
            drawing.drawn.add((start, end))
        picture.arrow(list(route.points), colour=route.colour)
        drawing.write(route)
    check_routes(drawing.drawn, OF_A_PLUGIN)
    for state in PluginState:
        text = state.value.replace(", or", ",|or")
        final = {PluginState.CLOSED: GREEN, PluginState.FAILED: RED}
        drawing.state(state, state.name, "final" if state in FINAL else text, colour=final.get(state, BLUE))
    return picture.render()
