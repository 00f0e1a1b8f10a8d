"""The lock that keeps a second program from a store's file.

It is a file of its own beside the database: to open and close the database by hand would drop SQLite's own locks.
It stays when the store is closed; removing it could take it from under a program that has just opened it.
"""

from __future__ import annotations

import os
import sys

from ..errors import StoreError
from .sqlite_errors import told

__all__ = ["hold_lock"]

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # A locked byte cannot be read by others: one far behind the pid that they are to read.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hold_lock(path: str) -> int:
    """Take the lock of a database for this process and return a descriptor; closing that, or dying, lets go of it.

    Args:
        path: The database's path, without symbolic links.

    Raises:
        StoreError: Another program, or another store of this one, has it; or the lock file cannot be made.
    """
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise told(path, error) from error
    try:
        _lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise StoreError(f"{path} is in use by another program (pid {holder or 'unknown'})") from None
    except OSError as error:
        os.close(descriptor)
        raise told(path, error) from error
    return descriptor
