"""Which SQLite and OS errors are about a store's file, and a text for each that says what the operator can do."""

from __future__ import annotations

import errno
import os
import sqlite3

from ..errors import StoreError
from .permissions import LOG, advise_reader, advise_writer, size_of

__all__ = ["NOT_AUTHORIZED", "TROUBLE", "is_storage_error", "primary_code", "told"]

# What SQLite raises; any statement may run out of memory.
TROUBLE = (sqlite3.Error, MemoryError)
NOT_AUTHORIZED = sqlite3.SQLITE_AUTH

_OUT_OF_ROOM = "the disk is full; make room and try again"
_UNREADABLE = "it cannot be read or written; check the disk and the system's log"
_NO_ACCESS = "this user may not write to it or to its directory; check the owner and permissions of both"
_NO_DIRECTORY = "its directory does not exist; create it first"
_DAMAGED = (
    "it is damaged; restore it from a backup, together with the files next to it, or move them all away to start with "
    "an empty store"
)

_WRONG_LOG = (
    "it is damaged, or the write-ahead log beside it belongs to another copy. If a backup was copied here, delete "
    "{path}-wal and {path}-shm, copy the backup here again, and open it; otherwise restore it from a backup"
)
_ACCESS = frozenset((sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM))

# SQLite's primary result codes. Any other code is about the statement, not about the file.
_ADVICE = {
    sqlite3.SQLITE_FULL: _OUT_OF_ROOM,
    sqlite3.SQLITE_IOERR: _UNREADABLE,
    sqlite3.SQLITE_PROTOCOL: _UNREADABLE,
    sqlite3.SQLITE_NOLFS: "it is too large for this file system",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_NOTADB: "it is not an SQLite database; use another path, or restore it from a backup",
    sqlite3.SQLITE_READONLY: _NO_ACCESS,
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened; check the path, its permissions and the number of open files",
    sqlite3.SQLITE_PERM: _NO_ACCESS,
    sqlite3.SQLITE_BUSY: "another program is writing to it; no other program may do so while the store is open",
}
_OS_ADVICE = {
    errno.ENOENT: _NO_DIRECTORY,
    errno.ENOTDIR: _NO_DIRECTORY,
    errno.ENAMETOOLONG: "its path is too long; use a shorter one",
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EROFS: "its file system is read-only",
    errno.ENOSPC: _OUT_OF_ROOM,
    errno.EDQUOT: _OUT_OF_ROOM,
}


def primary_code(error: BaseException) -> int:
    """Return SQLite's primary result code of an error, or 0 if it has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_storage_error(error: BaseException) -> bool:
    """Return whether an error is about the file, not about the statement."""
    return primary_code(error) in _ADVICE


def told(path: str, error: BaseException, *, writing: bool = True) -> StoreError:
    """Return a ``StoreError`` that says what is wrong with the file and what the operator can do.

    Args:
        path: The database.
        error: An error of SQLite or of the operating system.
        writing: Whether the database was opened for writing.
    """
    advice = _OS_ADVICE.get(error.errno or 0) if isinstance(error, OSError) else _ADVICE.get(primary_code(error))
    if advice is None:
        advice = _UNREADABLE
    if primary_code(error) == sqlite3.SQLITE_CANTOPEN and os.path.isdir(path):
        advice = "it is a directory; use the path of a file"
    elif primary_code(error) in _ACCESS or isinstance(error, PermissionError):
        advice = (advise_writer(path) if writing else advise_reader(path)) or advice
    elif primary_code(error) == sqlite3.SQLITE_CORRUPT and size_of(path + LOG):
        advice = _WRONG_LOG.format(path=path)
    detail = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return StoreError(f"{path}: {advice} ({detail}: {error})")
