"""The application's own record of its transfers. It survives SIGKILL, and is independent of the journal.

Each line is one ``write`` to a file opened for appending, so that a kill leaves whole lines behind.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Book", "read_lines"]


class Book:
    """A file of lines.

    Args:
        path: The file; made when it is not there.
        sync: Whether a line is on the disk when it is written, and not only with the kernel.
    """

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._sync = sync

    def write(self, *words: str) -> None:
        line = f"{' '.join(words)}\n".encode()
        assert os.write(self._file, line) == len(line)
        if self._sync:
            os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read_lines(path: Path) -> list[list[str]]:
    """Return the words of each line; none of a file that is not there."""
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
