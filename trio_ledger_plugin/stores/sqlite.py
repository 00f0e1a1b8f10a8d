"""A store in an SQLite file, for Trio: when a call returns, its changes are on the disk."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ..errors import InvalidFieldsError
from .dialect import SQLITE
from .sqlite_file import Database
from .worker import WorkerStore, opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["SqliteStore", "open_sqlite_store"]


class SqliteStore(WorkerStore[sqlite3.Connection]):
    """A ``TransactionalStore`` in an SQLite file; ``open_sqlite_store()`` returns it.

    Cancellation: A cancelled call whose work has not begun changes nothing. One whose work has begun finishes it and
    returns, unless the disk takes longer than 0.2 s.
    Concurrency: Any number of tasks of the Trio run that opened the store may use it at once. Calls that wait at the
    same time share one commit, so many tasks together are much faster than one.

    Every method raises ``StoreError`` if the file could not be written or read, or the store is closed; nothing has
    changed. If the file or its log was deleted, renamed or replaced, every call raises it until the store is opened
    again. Every method raises ``StoreInDoubtError`` if the file failed in a commit and in the write after it, or was
    deleted, renamed or replaced during the commit: the change may count or not. Every method raises ``RuntimeError`` if
    the store was opened in another Trio run, or by the process from which this one was forked. The work of a
    transaction must not attach a database or set a PRAGMA either; foreign keys are enforced.

    Args:
        path: The file, absolute and without symbolic links.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, SQLITE, [lambda: Database(path)])


@asynccontextmanager
async def open_sqlite_store(path: str | os.PathLike[str]) -> AsyncIterator[SqliteStore]:
    """Open a store in a file, which is created if it does not exist, for the duration of a block.

    While the store is open, ``<path>-wal`` and ``<path>-shm`` exist next to it. ``<path>.lock`` also stays afterwards.
    New files can be read and written by their owner only. A process that was forked cannot use the store.

    Args:
        path: The file, on a local disk. Only one program may have it open at a time.

    Yields:
        The store. It is usable within the block.

    Raises:
        StoreError: The file is in use by another program or open in this one, is damaged, was made by a newer version
            of this package, is not the one that was last open under this name, has a second hard link, or cannot be
            opened or written; the text says what to do.
        InvalidFieldsError: ``":memory:"`` or an empty path, for which SQLite keeps nothing; use a ``MemoryStore``. Or a
            path with a NUL character.
        TypeError: ``path`` is not a path.

    Cancellation: The block ends once all requested changes are on the disk. If it is cancelled or left by an
        exception, it waits for that for at most 5 s.
    """
    async with opened(SqliteStore(_checked(path))) as store:
        yield store


def _checked(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(name, str):
        raise TypeError(f"path is text (str) or a pathlib.Path of a store's file, not {type(name).__name__}")
    if "\0" in name:
        raise InvalidFieldsError("path: has a NUL character, must be the path of a file")
    if name in ("", ":memory:"):
        raise InvalidFieldsError(f"path: {name!r} is not a file, and its data would be lost; use MemoryStore for that")
    # Resolved, so that every name of the file leads to the same lock, and a later chdir() changes nothing.
    return os.path.realpath(name)
