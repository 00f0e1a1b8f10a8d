"""Writes the pictures into ``docs/drawings``: ``python -m drawings``, in the folder ``tests``."""

from __future__ import annotations

from .pictures import FOLDER, PICTURES

for name, draw in PICTURES.items():
    (FOLDER / name).write_text(draw(), encoding="utf-8")
