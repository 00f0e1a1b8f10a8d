"""Writes the pictures into ``docs/drawings``: ``python -m drawings``, in the folder ``tests``.

With ``--recordings`` it also runs the commands whose output some pictures show, and draws that again.
"""

from __future__ import annotations

import sys

import trio

from .pictures import FOLDER, PICTURES
from .recordings import RECORDINGS

for name, draw in PICTURES.items():
    (FOLDER / name).write_text(draw(), encoding="utf-8")
for name, recording in RECORDINGS.items() if "--recordings" in sys.argv else ():
    (FOLDER / name).write_text(trio.run(recording.record), encoding="utf-8")
