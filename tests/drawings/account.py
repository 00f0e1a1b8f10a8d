"""Draws what a plugin is between: two programs, and the account that they share."""

from __future__ import annotations

from .svg import BLUE, FAINT, GREEN, Box, Drawing, Style

__all__ = ["draw"]

NAME = Style(bold=True)
SMALL = Style(12, FAINT)
PLUGIN = Style(mono=True, bold=True, colour=BLUE)


def draw() -> str:
    """Return the picture."""
    picture = Drawing(
        "A plugin speaks for one account with one peer",
        "Your program contains a plugin. An account joins it to the plugin of a peer, here a connector. Requests with"
        " their responses, and transfers of money, go both ways over the account. The connector has further plugins,"
        " each for an account with another peer, such as another connector or a wallet.",
        440,
        470,
    )
    yours, peer = Box(220, 80, 400, 130), Box(220, 305, 400, 150)
    for box in (yours, peer):
        picture.box(box, fill="#f1f5fa")
    picture.text((220, 38), "your program", NAME)
    picture.text((220, 58), "calls send_data and send_money; has handlers", SMALL)
    mine, theirs = Box(220, 112, 170, 44), Box(220, 262, 170, 44)
    picture.box(mine, stroke=BLUE)
    picture.label(mine, [("plugin", PLUGIN), ("one peer, one account", SMALL)])
    picture.box(theirs, stroke=BLUE)
    picture.label(theirs, [("plugin", PLUGIN), ("the other end", SMALL)])
    for x, colour in ((180, BLUE), (260, GREEN)):
        picture.arrow([(x, 134), (x, 240)], colour=colour, both=True)
    picture.text((168, 184), "requests,", Style(12, BLUE, anchor="end"))
    picture.text((168, 200), "responses", Style(12, BLUE, anchor="end"))
    picture.text((272, 184), "money", Style(12, GREEN, anchor="start"))
    picture.text((272, 200), "(transfers)", Style(12, GREEN, anchor="start"))
    picture.text((220, 176), "the account", Style(12, FAINT, bold=True))
    picture.text((220, 306), "the peer, for example a connector", NAME)
    picture.text((220, 324), "forwards packets between its accounts", SMALL)
    for x, far in ((120, "another connector"), (320, "a wallet")):
        plugin, other = Box(x, 354, 110, 30), Box(x, 440, 170, 34)
        picture.box(plugin, stroke=BLUE)
        picture.label(plugin, [("plugin", PLUGIN)])
        picture.box(other)
        picture.label(other, [(far, NAME)])
        picture.arrow([(x, 369), (x, 423)], both=True)
    return picture.render()
