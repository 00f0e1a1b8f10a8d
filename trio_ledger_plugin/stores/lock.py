"""The claim on a store's file, which keeps a second program from opening it.

The claim is a lock on a separate file next to the database: opening and closing the database file itself would release
the locks that SQLite holds on it. The lock file stays when the store is closed: another program may just have opened
it, and removing it would let a third one lock a new file. If somebody removes it while the store is open, the store
makes it again, unless another program was faster.

Invariant: a claim belongs to one process. A forked child closes its copies of the descriptors at once, because the lock
would otherwise outlive the parent. The child may not claim the same file either: its copy of SQLite believes that it
still holds the parent's locks.
"""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import StoreError
from .permissions import adopt, open_private
from .sqlite_errors import told

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Claim"]

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # Other programs cannot read a locked byte, so lock one far behind the text, which they do read.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


# How much of a lock file is read: a process id, and two ids of openings.
MOST_BYTES = 256


class Claim:
    """The right of this process to open a database for writing, until it is released or the process ends.

    Args:
        path: The database's path, without symbolic links.

    Attributes:
        openings: The ids that the database's last opening here may have (``openings.py``); empty if none is known.

    Raises:
        StoreError: Another program or another store of this program holds the lock, the lock file cannot be used, or
            this process was forked from one that had the store open.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptors: set[int] = set()
        self._descriptor = -1
        # The ids in the file, which are written again if it is made again.
        self._recorded: tuple[str, ...] = ()
        if path in _inherited:
            raise StoreError(
                f"{path}: the process that forked this one had the store open; open it in a process that was started "
                "anew (multiprocessing's 'spawn')"
            )
        try:
            self._descriptor = open_private(f"{path}.lock")
        except OSError as error:
            raise told(path, error) from error
        self.keep(self._descriptor)
        try:
            self.openings: frozenset[str] = self._take()
        except OSError as error:
            self.release()
            raise told(path, error) from error
        except StoreError:
            self.release()
            raise

    def keep(self, descriptor: int) -> None:
        """Close a descriptor with the claim, and in every forked child."""
        self._descriptors.add(descriptor)
        _held[self] = self._path

    def record(self, *openings: str, durable: bool) -> None:
        """Write to the lock file which ids the database's last opening may have.

        Args:
            openings: One or two ids.
            durable: Whether they must be on the disk when this returns.

        Raises:
            StoreError: They cannot be written.
        """
        self._recorded = openings
        try:
            self._write(openings)
            if durable:
                os.fsync(self._descriptor)
        except OSError as error:
            raise told(self._path, error) from error

    def check(self, database: os.stat_result) -> str | None:
        """Return what has happened to the lock file, so that another program may have the claim; None if nothing has.

        A file that is missing is made again.

        Args:
            database: The database's status.

        Raises:
            OSError: It cannot be looked at, or made again.
        """
        name = f"{self._path}.lock"
        try:
            found = os.stat(name)
        except FileNotFoundError:
            descriptor = open_private(name)
            self.keep(descriptor)
            try:
                _lock(descriptor)
            except (BlockingIOError, PermissionError):
                return "deleted, and another program has opened the store"
            self._descriptor = descriptor
            self.adopt(database)
            self._write(self._recorded)
            os.fsync(descriptor)
            return None
        held = os.fstat(self._descriptor)
        is_held = (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)
        return None if is_held else "replaced by another file"

    def adopt(self, database: os.stat_result) -> None:
        """Give the lock file the database's owner and mode, as far as this user may."""
        adopt(self._descriptor, database)

    def release(self) -> None:
        """Release the lock, and close all descriptors that the claim keeps."""
        _held.pop(self, None)
        for descriptor in self._descriptors:
            # What another part of the program has closed by mistake must not keep the others open.
            with suppress(OSError):
                os.close(descriptor)
        self._descriptors.clear()

    def _take(self) -> frozenset[str]:
        """Lock the file and return the ids in it."""
        found = os.fstat(self._descriptor)
        # Root writes to this file and gives it away, so it must not be another file under this name.
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise StoreError(f"{self._path}.lock is not a regular file with one name; remove it")
        try:
            _lock(self._descriptor)
        except (BlockingIOError, PermissionError):
            if any(path == self._path for claim, path in _held.items() if claim is not self):
                raise StoreError(
                    f"{self._path} is open in this program already; give that store to each plugin, and each plugin a "
                    "ledger_id of its own"
                ) from None
            holder = self._read()[0].strip()
            # Most programs in containers are the first process of theirs: the number alone would seem to be one's own.
            where = " of another container" if holder == str(os.getpid()) else ""
            raise StoreError(f"{self._path} is in use by another program (pid {holder or 'unknown'}{where})") from None
        openings = self._read()[1].split()
        self._recorded = tuple(openings)
        self._write(openings)
        return frozenset(openings)

    def _write(self, openings: Sequence[str]) -> None:
        text = f"{os.getpid()}\n{' '.join(openings)}\n".encode()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, text)
        os.ftruncate(self._descriptor, len(text))

    def _read(self) -> tuple[str, str]:
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        holder, _, rest = os.read(self._descriptor, MOST_BYTES).decode("ascii", "replace").partition("\n")
        return holder, rest.partition("\n")[0]


# The claims of this process, and the paths that the process claimed from which this one was forked.
_held: dict[Claim, str] = {}
_inherited: set[str] = set()


def _forked() -> None:
    """Give up all claims, in a child just forked. Closing its copy of a descriptor leaves the parent's lock alone."""
    _inherited.update(_held.values())
    for claim in tuple(_held):
        claim.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
