"""A disk below SQLite that fails on demand.

It wraps SQLite's own file layer (its VFS) with ctypes and becomes the default one, so that every new connection uses
it. Every write, sync and truncation of a file is counted; one of them, or all from then on, can be made to fail::

    with faulty_vfs() as faults:
        faults.arm(after=7, kind="ioerr")  # the seventh from now on fails
        ...
        faults.disarm()

Kinds:
    "ioerr": The operation fails with an I/O error; a write is not done, and what a failed sync concerns is in the file.
    "full": Writes fail as on a full disk, syncs with an I/O error.
    "crash": No later operation reaches the files. After everything is closed, ``recover()`` leaves the files
        as a disk might: synced writes are there, and of the others nothing or a random part.
"""

import ctypes
import os
import sqlite3
from contextlib import contextmanager

import pytest

OK, FULL = 0, 13
IOERR_WRITE, IOERR_SYNC, IOERR_TRUNCATE, IOERR_DELETE = (10 | (n << 8) for n in (3, 4, 6, 10))
SECTOR = 512

File = Vfs = ctypes.c_void_p
Write = ctypes.CFUNCTYPE(ctypes.c_int, File, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
Truncate = ctypes.CFUNCTYPE(ctypes.c_int, File, ctypes.c_int64)
Sync = ctypes.CFUNCTYPE(ctypes.c_int, File, ctypes.c_int)
FileSize = ctypes.CFUNCTYPE(ctypes.c_int, File, ctypes.POINTER(ctypes.c_int64))
# The path is a pointer: SQLite's own files keep it as long as they are open.
Open = ctypes.CFUNCTYPE(ctypes.c_int, Vfs, ctypes.c_void_p, File, ctypes.c_int, ctypes.c_void_p)
Delete = ctypes.CFUNCTYPE(ctypes.c_int, Vfs, ctypes.c_char_p, ctypes.c_int)


class IoMethods(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("close", ctypes.c_void_p),
        ("read", Write),
        ("write", Write),
        ("truncate", Truncate),
        ("sync", Sync),
        ("file_size", FileSize),
        ("others", ctypes.c_void_p * 12),
    )


class VfsStructure(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_int),
        ("file_bytes", ctypes.c_int),
        ("longest_path", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", Open),
        ("delete", Delete),
        ("others", ctypes.c_void_p * 14),
    )


class Unsynced:
    """What a file lost or got since it was synced last."""

    def __init__(self, size):
        self.size = size
        self.old = []
        self.new = []


class Faults:
    """The disk.

    Attributes:
        operations: How many writes, syncs and truncations there were.
        syncs: How many of them were syncs.
        crashed: Whether operations no longer reach the files.
    """

    def __init__(self):
        self.operations = 0
        self.syncs = 0
        self.crashed = False
        self._at = 0
        self._kind = ""
        self._forever = False
        self._paths = {}
        self._unsynced = {}

    def arm(self, *, after, kind, forever=False):
        """Let the ``after``-th operation from now on fail, and with ``forever`` all that come after it."""
        assert after > 0
        assert kind in ("ioerr", "full", "crash")
        self._at, self._kind, self._forever = self.operations + after, kind, forever

    def disarm(self):
        """Let the disk work again."""
        self._at = 0

    def recover(self, random=None):
        """Put the files as they are after a crash, all connections being closed; the disk works again.

        Args:
            random: Decides how much of what was not synced is there all the same (``random.Random``); None: nothing.
        """
        for path, unsynced in self._unsynced.items():
            if os.path.exists(path):
                with open(path, "r+b") as file:
                    for offset, data in reversed(unsynced.old):
                        file.seek(offset)
                        file.write(data)
                    file.truncate(unsynced.size)
                    for offset, data in unsynced.new if random else ():
                        if random.random() < 0.5:
                            file.seek(offset)
                            file.write(data if random.random() < 0.8 else data[: SECTOR * (len(data) // SECTOR // 2)])
        self._unsynced.clear()
        self.crashed = False
        self.disarm()

    def fail(self, code):
        """Count an operation, and return the code that it fails with, or OK."""
        self.operations += 1
        self.syncs += code == IOERR_SYNC
        if self._at and (self.operations == self._at or (self._forever and self.operations > self._at)):
            if self._kind == "crash":
                self.crashed = True
            return FULL if self._kind == "full" and code != IOERR_SYNC else code
        return code if self.crashed else OK

    def opened(self, file, path):
        if path is not None:
            self._paths[file] = os.fsdecode(ctypes.string_at(path))

    def overwrites(self, methods, file, offset, data, length):
        """Keep what a write or a truncation destroys."""
        path = self._paths.get(file)
        if path is None:
            return
        size = ctypes.c_int64()
        assert methods.file_size(file, ctypes.byref(size)) == OK
        unsynced = self._unsynced.setdefault(path, Unsynced(size.value))
        length = max(min(length, size.value - offset), 0)
        old = ctypes.create_string_buffer(length)
        if length:
            assert methods.read(file, ctypes.cast(old, ctypes.c_void_p), length, offset) == OK
        unsynced.old.append((offset, old.raw))
        if data is not None:
            unsynced.new.append((offset, data))

    def synced(self, file):
        self._unsynced.pop(self._paths.get(file), None)

    def deleted(self, path):
        self._unsynced.pop(os.fsdecode(path), None)


def loaded_sqlite():
    """Return the SQLite library that Python's sqlite3 module uses, or skip the test."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "libsqlite3" in line}
    except OSError:
        paths = set()
    if len(paths) != 1:
        pytest.skip("needs a Python whose sqlite3 loads SQLite as a shared library, on Linux")
    library = ctypes.CDLL(paths.pop())
    library.sqlite3_libversion.restype = ctypes.c_char_p
    assert library.sqlite3_libversion().decode() == sqlite3.sqlite_version
    library.sqlite3_vfs_find.restype = ctypes.POINTER(VfsStructure)
    library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
    library.sqlite3_vfs_register.argtypes = [ctypes.POINTER(VfsStructure), ctypes.c_int]
    library.sqlite3_vfs_unregister.argtypes = [ctypes.POINTER(VfsStructure)]
    return library


def wrapped_methods(faults, real):
    """Return a file's methods, with the writing methods replaced."""
    methods = IoMethods.from_buffer_copy(real)
    # What is only read back on this machine needs no true sync, and the tests are faster without.

    def write(file, data, length, offset):
        code = faults.fail(IOERR_WRITE)
        if code == OK:
            faults.overwrites(real, file, offset, ctypes.string_at(data, length), length)
            code = real.write(file, data, length, offset)
        return code

    def truncate(file, size):
        code = faults.fail(IOERR_TRUNCATE)
        if code == OK:
            faults.overwrites(real, file, size, None, 1 << 40)
            code = real.truncate(file, size)
        return code

    def sync(file, flags):
        code = faults.fail(IOERR_SYNC)
        if code == OK:
            faults.synced(file)
        return code

    methods.write, methods.truncate, methods.sync = Write(write), Truncate(truncate), Sync(sync)
    return methods


@contextmanager
def faulty_vfs():
    """Put a disk of its own below SQLite for the length of a block and yield it; skip the test where that cannot be."""
    library = loaded_sqlite()
    faults = Faults()
    real = library.sqlite3_vfs_find(None)
    wrapped: dict[int, IoMethods] = {}

    def opening(_vfs, path, file, flags, out_flags):
        code = real.contents.open(ctypes.cast(real, ctypes.c_void_p), path, file, flags, out_flags)
        slot = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
        if code == OK and slot[0]:
            if slot[0] not in wrapped:
                wrapped[slot[0]] = wrapped_methods(faults, IoMethods.from_address(slot[0]))
            slot[0] = ctypes.addressof(wrapped[slot[0]])
            faults.opened(file, path)
        return code

    def deleting(_vfs, path, sync_directory):
        if faults.crashed:
            return IOERR_DELETE
        faults.deleted(path)
        return real.contents.delete(ctypes.cast(real, ctypes.c_void_p), path, sync_directory)

    vfs = VfsStructure.from_buffer_copy(real.contents)
    vfs.name, vfs.open, vfs.delete = b"faulty", Open(opening), Delete(deleting)
    assert library.sqlite3_vfs_register(ctypes.byref(vfs), 1) == OK
    try:
        yield faults
    finally:
        assert library.sqlite3_vfs_unregister(ctypes.byref(vfs)) == OK
        assert library.sqlite3_vfs_register(real, 1) == OK
