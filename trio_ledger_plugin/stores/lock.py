"""The lock that keeps a second program from opening a store's file.

The lock is a separate file next to the database: opening and closing the database file itself would release the locks
that SQLite holds on it. The lock file stays when the store is closed: another program may just have opened it, and
removing it would let a third one lock a new file.
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
        # Other programs cannot read a locked byte, so lock one far behind the pid, which they do read.
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def hold_lock(path: str) -> int:
    """Lock a database for this process, until the returned descriptor is closed or the process ends.

    Args:
        path: The database's path, without symbolic links.

    Raises:
        StoreError: Another program or another store of this program holds the lock, or the lock file cannot be created.
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
