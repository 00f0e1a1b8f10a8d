"""Reads a store's file from another program, without writing anything and without leaving a file behind.

A program that uses the database in SQLite's usual way has to write: it registers in the index of the log (``-shm``),
and creates the log and the index where they are missing. This is right if another program may have the database open,
which always keeps both there. If one is missing, no program has it open, and it is read privately:

- The log is missing, or nothing in it was committed: the database file is complete, and ``immutable=1`` reads it alone.
- There is a log: ``immutable=1`` would ignore what is in it. In SQLite's exclusive mode the index is in memory, and
  ``unix-none`` is a way to enter that mode without the right to write, because it locks nothing.

A program that opens the database during a private read does not see this reader, and may overwrite what it reads.
Therefore the files are compared at the end, and a change is an error.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StoreError
from .permissions import INDEX, LOG, size_of
from .schema import VALUES, add_functions, check_version
from .sqlite_errors import TROUBLE, is_storage_error, told

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .schema import Steps

__all__ = ["open_reader"]

WITHOUT_INDEX = "mode=ro&vfs=unix-none"


@contextmanager
def open_reader(
    path: str | os.PathLike[str], components: Mapping[str, Steps] | None = None
) -> Iterator[sqlite3.Connection]:
    """Open a store's file for reading, even while another program has it open, for the duration of a block.

    The connection is in autocommit mode: each statement sees a snapshot of its own. Fetch the rows of a statement
    completely, and leave the block before you wait for anything else: while a snapshot is in use, the write-ahead log
    of a busy program grows.

    Args:
        path: The store's file.
        components: The tables that are read besides the store's own values: the name of each component with the steps
            that this program knows (``schema.py``). A component that the file does not have is ignored.

    Yields:
        A connection that cannot write.

    Raises:
        StoreError: The file does not exist, cannot be read, was made by a newer version of this package or by one that
            is too old to be read, or was changed in a way that makes the result unreliable. The text says what to do.
        Exception: An exception of the block that is not about the file.
    """
    real = os.path.realpath(path)
    if not os.path.exists(real):
        raise StoreError(f"{real}: there is no such file")
    try:
        query, private = _choose(real)
    except OSError as error:
        raise told(real, error, writing=False) from error
    before = _state(real) if private else None
    try:
        connection = sqlite3.connect(f"{Path(real).as_uri()}?{query}", uri=True, isolation_level=None)
        try:
            add_functions(connection)
            connection.execute("PRAGMA query_only = ON")
            if query == WITHOUT_INDEX:
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                if sys.version_info >= (3, 12):
                    # Without it, closing tries to write the log into the database, which fails: it is open read-only.
                    connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
            check_version(connection, "values", VALUES)
            for component, steps in (components or {}).items():
                check_version(connection, component, steps, reading=True)
            yield connection
        finally:
            connection.close()
    except TROUBLE as error:
        # The error may come from the change.
        _check_unchanged(real, before)
        if is_storage_error(error):
            raise told(real, error, writing=False) from error
        raise
    _check_unchanged(real, before)


def _choose(path: str) -> tuple[str, bool]:
    """Return how a database is opened: the query of its URI, and whether that is private."""
    if size_of(path + "-journal"):
        # A program that is not this package has changed the journal mode; SQLite decides what may be read.
        return "mode=ro", False
    if size_of(path) and os.path.exists(path + INDEX) and os.path.exists(path + LOG):
        return "mode=ro", False
    if not (size_of(path) and _has_commit(path + LOG)):
        # Also of an empty database: otherwise SQLite would delete the log, which belongs to another one.
        return "immutable=1", True
    # Windows has no such VFS; there the index is created.
    return ("mode=ro", False) if sys.platform == "win32" else (WITHOUT_INDEX, True)


def _has_commit(path: str) -> bool:
    """Return whether a write-ahead log has a committed transaction (SQLite's file format, "the WAL file")."""
    try:
        with open(path, "rb") as log:
            header = log.read(32)
            page_size, salts = int.from_bytes(header[8:12], "big"), header[16:24]
            while len(frame := log.read(24)) == 24 and frame[8:16] == salts:
                if frame[4:8] != bytes(4):
                    return True
                log.seek(page_size, os.SEEK_CUR)
    except FileNotFoundError:
        pass
    return False


def _check_unchanged(path: str, before: tuple[object, ...] | None) -> None:
    if before is not None and _state(path) != before:
        raise StoreError(f"{path}: another program changed it while it was read; try again")


def _state(path: str) -> tuple[object, ...]:
    """Return what differs once a program has written to the database or to its log."""
    found: list[object] = []
    for name in (path, path + LOG):
        try:
            status = os.stat(name)
        except OSError:
            found.append(None)
        else:
            # An empty log is as good as none.
            found.append((status.st_ino, status.st_size, status.st_mtime_ns) if status.st_size else None)
    return tuple(found)
