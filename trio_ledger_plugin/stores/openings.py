"""Each opening of a database for writing has an id, by which a file that took the database's place is recognized.

The id of the last opening is in the database and in the lock file beside it. A backup that is restored brings an
earlier id, or one of an opening elsewhere, while the lock file stays. What was stored here since is not in such a
file, and it would send or credit transfers again.

The database also records whether its last opening ended with a clean shutdown. If it did not, or if there is a log
beside it, the whole file is checked.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from typing import TYPE_CHECKING

from ..errors import StoreError
from .permissions import LOG, advise_writer, size_of
from .reader import open_reader
from .sqlite_errors import told

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["examine", "record_closing", "record_opening"]

# After a clean shutdown, the structure of files up to this size is checked, which takes about 0.1 s. Larger ones are
# not checked: opening must not take longer the longer the history is. SQLite reports damage when it reads the page.
CHECKED_BYTES = 32 << 20


def examine(path: str, openings: Collection[str]) -> str:
    """Check a database before it is opened for writing, and return the id of its last opening.

    It is opened for reading only, so that a log that does not belong to it is not written into it.

    Args:
        path: The database; an empty file is a new one.
        openings: The ids that its last opening here may have; empty if none is known.

    Returns:
        The id; empty if the database has none. The log of an empty database is renamed.

    Raises:
        OSError: The log cannot be renamed.
        StoreError: The file is damaged, was made by a newer version of this package, or is not the one that was last
            open here; or this user may not write to a file beside it.
    """
    if size_of(path) == 0:
        if size_of(path + LOG):
            # The database was deleted or renamed. SQLite would delete its log.
            os.replace(path + LOG, f"{path}{LOG}.{secrets.token_hex(4)}")
        return ""
    blocked = advise_writer(path)
    if blocked is not None:
        raise StoreError(f"{path}: {blocked}")
    with open_reader(path) as connection:
        opening, closed = _last_opening(connection)
        if opening and openings and opening not in openings:
            raise StoreError(
                f"{path}: this is not the file that was last open here. It was restored from a backup, was open "
                "elsewhere, or its write-ahead log was deleted, and lacks what was stored here last. Settle that with "
                f"the peers; then delete {path}.lock and open it again"
            )
        if size_of(path + LOG) or not closed:
            # The quick check does not compare the indexes with the tables. An index that lacks a key would let a
            # transfer be credited twice.
            _check(path, connection, "PRAGMA integrity_check(1)")
        elif size_of(path) <= CHECKED_BYTES:
            _check(path, connection, "PRAGMA quick_check(1)")
        return opening


def record_opening(connection: sqlite3.Connection, opening: str) -> None:
    """Record the id of a new opening, inside a transaction."""
    connection.execute("INSERT OR REPLACE INTO lpi_opening (one, id, closed) VALUES (1, ?, 0)", (opening,))


def record_closing(connection: sqlite3.Connection) -> None:
    """Record a clean shutdown, inside the last transaction."""
    connection.execute("UPDATE lpi_opening SET closed = 1")


def _last_opening(connection: sqlite3.Connection) -> tuple[str, bool]:
    """Return the id of the last opening, and whether it ended with a clean shutdown."""
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'lpi_opening'").fetchone()
    row = connection.execute("SELECT id, closed FROM lpi_opening").fetchone() if found else None
    return (row[0], bool(row[1])) if row else ("", False)


def _check(path: str, connection: sqlite3.Connection, pragma: str) -> None:
    found = connection.execute(pragma).fetchone()[0]
    if found != "ok":
        error = sqlite3.DatabaseError(str(found))
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
        raise told(path, error)
