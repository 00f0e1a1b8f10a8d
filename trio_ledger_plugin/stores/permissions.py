"""Who may use the files of a store: the files beside a database belong to its owner, and an error names the culprit.

SQLite creates the log and the index of the log with the database's mode, and with its owner where root creates them.
This module does the same for the lock file, and for the group where SQLite does not.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from contextlib import suppress

__all__ = ["INDEX", "LOG", "adopt", "adopt_beside", "advise_reader", "advise_writer", "open_private", "size_of"]

PRIVATE = 0o600
LOG = "-wal"
INDEX = "-shm"
BESIDE = (LOG, INDEX, ".lock")


def open_private(path: str) -> int:
    """Open a file for reading and writing, and create it with mode 0600 if it does not exist; return the descriptor.

    Raises:
        OSError: The file cannot be opened or created, or is a symbolic link.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        # Two steps: in a directory such as /tmp, Linux forbids O_CREAT on a file of another user, even to root.
        with suppress(FileNotFoundError):
            return os.open(path, flags)
        with suppress(FileExistsError):
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, PRIVATE)
            if sys.platform != "win32":
                # The umask may have removed bits.
                os.fchmod(descriptor, PRIVATE)
            return descriptor


def size_of(path: str) -> int:
    """Return the size of a file in bytes; 0 if there is none, or if it cannot be found out."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def adopt(descriptor: int, database: os.stat_result) -> None:
    """Give an open file the owner, the group and the mode of a database, as far as this user may."""
    if sys.platform == "win32":
        return
    found = os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != (database.st_uid, database.st_gid):
        try:
            os.fchown(descriptor, database.st_uid, database.st_gid)
        except OSError:
            with suppress(OSError):
                os.fchown(descriptor, -1, database.st_gid)
    mode = stat.S_IMODE(database.st_mode) & 0o666
    if stat.S_IMODE(found.st_mode) != mode:
        with suppress(OSError):
            os.fchmod(descriptor, mode)


def adopt_beside(path: str, database: os.stat_result) -> None:
    """Give the log and its index the owner and the group of the database, as far as this user may.

    They are not opened: closing one again would release the locks that SQLite holds on it.
    """
    if sys.platform == "win32":
        return
    for name in (path + LOG, path + INDEX):
        with suppress(OSError):
            found = os.lstat(name)
            if (found.st_uid, found.st_gid) == (database.st_uid, database.st_gid):
                continue
            try:
                os.chown(name, database.st_uid, database.st_gid, follow_symlinks=False)
            except OSError:
                os.chown(name, -1, database.st_gid, follow_symlinks=False)


def advise_writer(path: str) -> str | None:
    """Return which file beside a database this user may not use, and the command that mends it; None if there is none.

    Args:
        path: The database, which this user may use or not.
    """
    if sys.platform == "win32":
        return None
    try:
        database = os.stat(path)
    except OSError:
        return None
    for name in (path + ending for ending in BESIDE):
        with suppress(OSError):
            found = os.stat(name)
            if _may(name, os.R_OK | os.W_OK):
                continue
            if found.st_uid != database.st_uid:
                command = f"chown {_user(database.st_uid)}: {shlex.quote(name)}"
            else:
                command = f"chmod {stat.S_IMODE(database.st_mode) & 0o666:o} {shlex.quote(name)}"
            return f"this user may not write to {name}, which belongs to {_user(found.st_uid)}; mend it with: {command}"
    return None


def advise_reader(path: str) -> str | None:
    """Return which file of a store this user may not read; None if there is none."""
    for name in (path, path + LOG, path + INDEX):
        with suppress(OSError):
            owner = _user(os.stat(name).st_uid)
            if not _may(name, os.R_OK):
                return f"this user may not read {name}, which belongs to {owner}; run this as that user"
    return None


def _may(name: str, rights: int) -> bool:
    return os.access(name, rights, effective_ids=os.access in os.supports_effective_ids)


def _user(number: int) -> str:
    """Return a user's name, or the number of a user without a name."""
    if sys.platform != "win32":
        import pwd  # noqa: PLC0415 (POSIX only)

        with suppress(KeyError):
            return pwd.getpwuid(number).pw_name
    return str(number)
