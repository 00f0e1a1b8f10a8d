"""Whether the files that a store has open still have their names.

SQLite goes on writing to a file that was deleted, renamed or replaced, and what it writes is gone once the program
ends. It also releases all its locks on a file when the program itself closes another handle of that file, as a copy
does; the next program that closes the database then deletes the log in use.

Two measures:

- The names are compared with what was opened, before and after each commit. So is that of the lock file, without which
  a second program could open the database. As long as their directory has not changed,
  one look at the directory is enough: each look gives other threads a turn, and the commit waits for its own.
- On Linux, the store holds an additional lock that no closing of another handle releases. As long as it is held, no
  program can delete the log. Elsewhere only the comparison notices that, after commits that were already acknowledged.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import StoreError
from .permissions import LOG, adopt_beside, open_private
from .sqlite_errors import told

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from .lock import Claim

__all__ = ["OpenFiles", "check_file"]

# The bytes of a database on which SQLite's readers hold a shared lock, and which a program locks exclusively before it
# deletes the log (SQLite's file format, "the lock-byte page").
SHARED_FIRST = 0x40000000 + 2
SHARED_SIZE = 510
# File systems keep times in steps of up to 10 ms. A directory that changed more recently may change again in the same
# step. One whose time is in whole seconds is on a file system with steps of a second or more.
SETTLED_NS = 100_000_000
SECOND_NS = 1_000_000_000


def check_file(path: str) -> None:
    """Check what can be known of a database without opening it. What prevents a look also prevents opening it, later.

    Raises:
        StoreError: It is not a regular file, or has several names.
    """
    with suppress(OSError):
        _check(path, os.stat(path))


def _check(path: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise StoreError(f"{path}: it is a directory; use the path of a file")
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path}: it is not a regular file; use another path")
    if found.st_nlink > 1:
        # Each name has a lock and a log of its own.
        raise StoreError(
            f"{path}: it has {found.st_nlink} names (hard links), and two programs could open it under different ones; "
            "remove the others, or copy it"
        )


class OpenFiles:
    """The database and the log that one store has open.

    Args:
        path: The database, without symbolic links. It is created, with mode 0600, if it does not exist.
        claim: The claim on the database; it closes this object's descriptor.

    Raises:
        StoreError: The database cannot be opened or created, is not a regular file, or has several names.
    """

    def __init__(self, path: str, claim: Claim) -> None:
        self._path = path
        self._claim = claim
        self._lost: str | None = None
        self._is_locked = False
        self._directory = os.path.dirname(path)
        # The directory's status when all names were last found as they were opened; None if it may miss a change.
        self._unchanged: tuple[int, int, int] | None = None
        try:
            self._descriptor = open_private(path)
        except OSError as error:
            raise told(path, error) from error
        claim.keep(self._descriptor)
        found = os.fstat(self._descriptor)
        _check(path, found)
        claim.adopt(found)
        self._opened: dict[str, tuple[int, int]] = {path: (found.st_dev, found.st_ino)}

    @property
    def database(self) -> os.stat_result:
        """The database's status."""
        return os.fstat(self._descriptor)

    def log_opened(self) -> None:
        """Remember the log, which SQLite has just opened, and hold the lock that keeps it from being deleted.

        Raises:
            StoreError: The database or an earlier log of this store was deleted, renamed or replaced.
        """
        self._is_locked = self._set_lock("F_RDLCK")
        log = self._path + LOG
        if log not in self._opened:
            adopt_beside(self._path, self.database)
            with suppress(FileNotFoundError):
                self._opened[log] = _identity(log)
                self._unchanged = None
        self.verify()

    def log_closed(self) -> None:
        """Forget the log after SQLite has closed the database, unless the lock has kept SQLite from deleting it."""
        if not self._is_locked:
            self._opened.pop(self._path + LOG, None)
            self._unchanged = None

    def verify(self) -> None:
        """Compare the names with what was opened.

        Raises:
            StoreError: The database or its log was deleted, renamed or replaced, now or earlier; or this cannot be
                known.
        """
        if self._lost is None:
            try:
                directory = os.stat(self._directory)
                # Not the time of modification, which programs can set back.
                state = directory.st_dev, directory.st_ino, directory.st_ctime_ns
                if state != self._unchanged:
                    self._lost = self._compare()
                    self._unchanged = state if _is_settled(directory.st_ctime_ns) else None
            except (FileNotFoundError, NotADirectoryError):
                self._lost = _lost(self._path, self._directory, "deleted or renamed")
            except OSError as error:
                raise told(self._path, error) from error
        if self._lost is not None:
            raise StoreError(self._lost)

    def _compare(self) -> str | None:
        """Return which name no longer belongs to what was opened under it, as the text of the error."""
        for name, opened in self._opened.items():
            try:
                found = _identity(name)
            except (FileNotFoundError, NotADirectoryError):
                return _lost(self._path, name, "deleted or renamed")
            if found != opened:
                return _lost(self._path, name, "replaced by another file")
        what = self._claim.check(self.database)
        return None if what is None else _lost(self._path, f"{self._path}.lock", what)

    def release(self) -> None:
        """Release the additional lock, so that SQLite may delete the log when it closes the database."""
        self._set_lock("F_UNLCK")

    def _set_lock(self, kind: str) -> bool:
        """Set an open file description lock; return False where there is none, and only the comparison is left."""
        # Only Linux's layout of the structure is known here.
        if sys.platform == "linux":
            request = struct.pack("hhqqi", getattr(fcntl, kind), os.SEEK_SET, SHARED_FIRST, SHARED_SIZE, 0)
            # Some file systems have no such locks.
            with suppress(OSError):
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request)
                return True
        return False


def _identity(name: str) -> tuple[int, int]:
    found = os.stat(name)
    return found.st_dev, found.st_ino


def _is_settled(changed_ns: int) -> bool:
    """Return whether a directory that changed at this time will have another time after its next change."""
    # Windows does not keep the time of the last change.
    return sys.platform != "win32" and time.time_ns() - changed_ns > SETTLED_NS and changed_ns % SECOND_NS != 0


def _lost(path: str, name: str, what: str) -> str:
    subject = "the file" if name == path else name
    return (
        f"{path}: {subject} was {what} while the store was open; nothing is stored until the store is closed and "
        "opened again. First put the files in order: what was stored since may be in none of them"
    )
