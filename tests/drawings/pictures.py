"""The pictures, and where they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.pages import ROOT

from . import account, kill, layers, states

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["FOLDER", "PICTURES"]

FOLDER = ROOT / "docs" / "drawings"
PICTURES: dict[str, Callable[[], str]] = {
    "account.svg": account.draw,
    "kill.svg": kill.draw,
    "transfer-states.svg": states.draw_transfer,
    "plugin-states.svg": states.draw_plugin,
    "layers.svg": layers.draw,
}
