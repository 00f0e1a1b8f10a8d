"""Reading a store's file writes nothing, leaves nothing behind, and delays no other program."""

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from support.programs import posix
from support.stores import holder, list_files, read_files
from test_permissions import SERVICE, root, user

from trio_ledger_plugin.errors import StoreError
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.reader import open_reader

VALUE = "SELECT value FROM lpi_values WHERE key = 'key'"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


def open_folders(path):
    """Let other users of the machine reach a file in a test's folder."""
    for directory in path.parents:
        if directory == Path(tempfile.gettempdir()):
            return
        directory.chmod(0o755)


def read(path, statement=VALUE):
    with open_reader(path) as connection:
        return connection.execute(statement).fetchall()


async def make(path):
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")


async def make_killed(path, *endings):
    """Leave the files of a program that was killed."""
    work = path.with_name("work.db")
    async with open_sqlite_store(work) as store:
        await store.put("key", "value")
        for ending in ("", *endings):
            shutil.copy(f"{work}{ending}", f"{path}{ending}")


async def test_store_is_read_in_use_or_not(path):
    async with open_sqlite_store(path) as store:
        await store.put("key", "one")
        assert read(path) == [("one",)]
        await store.put("key", "two")
        assert read(str(path)) == [("two",)]
    assert read(path) == [("two",)]
    async with open_sqlite_store(path) as store:
        await store.put("key", "three")


@posix
async def test_log_of_a_killed_program_is_read(path):
    async with holder(path, "write") as process:
        assert await process.stdout.receive_some()
    ((number,),) = read(path, "SELECT count(*) FROM lpi_values")
    assert number > 0


@posix
@pytest.mark.parametrize("endings", [None, (), ("-shm",), ("-wal",), ("-wal", "-shm")])
async def test_reading_leaves_the_files_as_they_are(path, endings):
    """An operator lists a backup as root, and the service cannot use what the listing left there."""
    if endings is None:
        await make(path)
    else:
        await make_killed(path, *endings)
    names, content = list_files(path), read_files(path)
    if endings is None or "-wal" in endings:
        assert read(path) == [("value",)]
    else:
        read(path, "SELECT 1")
    assert (list_files(path), read_files(path)) == (names, content)


@root
@pytest.mark.parametrize("endings", [None, ("-wal",), ("-wal", "-shm")])
async def test_user_who_may_only_read_can_read(path, endings):
    """A backup's snapshot, a volume that is mounted read-only, a colleague who looks."""
    if endings is None:
        await make(path)
    else:
        await make_killed(path, *endings)
    await check_as_other(path)


@root
async def test_user_who_may_only_read_can_read_a_store_in_use(path):
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        for ending in ("", "-wal", "-shm"):
            os.chmod(f"{path}{ending}", 0o644)
        await check_as_other(path)
        await store.put("key", "value")


async def check_as_other(path):
    open_folders(path)
    for file in path.parent.iterdir():
        file.chmod(0o644)
    with user(SERVICE):
        with pytest.raises(PermissionError):
            path.with_name("new").touch()
        assert read(path) == [("value",)]


@root
async def test_unreadable_log_is_an_error_that_names_it(path):
    await make_killed(path, "-wal")
    open_folders(path)
    path.chmod(0o644)
    log = path.with_name("store.db-wal")
    log.chmod(0o600)
    with user(SERVICE), pytest.raises(StoreError, match=rf"may not read {log}, which belongs to root"):
        read(path)


async def test_reader_cannot_write_and_says_what_is_wrong(path, tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        read(path)
    assert not path.exists()
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        with pytest.raises(StoreError, match="READONLY"):
            read(path, "DELETE FROM lpi_values")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            read(path, "SELECT * FROM missing")
    (tmp_path / "text.db").write_text("a letter to my bank\n" * 1000)
    with pytest.raises(StoreError, match="not an SQLite database"):
        read(tmp_path / "text.db")


async def test_reader_sees_later_commits_and_holds_no_snapshot(path):
    """A snapshot kept by a listing in a pager would let the log of the running program grow without end."""
    async with open_sqlite_store(path) as store:
        await store.put("key", "one")
        with open_reader(path) as connection, closing(sqlite3.connect(path, timeout=0)) as other:
            assert connection.execute(VALUE).fetchall() == [("one",)]
            await store.put("key", "two")
            busy, size, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert (busy, size) == (0, 0)
            assert connection.execute(VALUE).fetchall() == [("two",)]


@pytest.mark.parametrize("fails", [False, True])
async def test_file_that_changes_while_it_is_read_alone_is_an_error(path, fails):
    """The reader of a closed store is invisible to a program that opens it then."""
    await make(path)

    async def write():
        async with open_sqlite_store(path) as store:
            await store.put("key", "other")

    async def read_meanwhile():
        with open_reader(path) as connection:
            assert connection.execute(VALUE).fetchall()
            await write()
            if fails:
                connection.execute("SELECT * FROM missing")

    with pytest.raises(StoreError, match="changed it while it was read; try again"):
        await read_meanwhile()
    assert read(path) == [("other",)]


async def test_own_exception_of_the_block_is_raised(path):
    await make(path)
    with pytest.raises(LookupError, match="own"), open_reader(path):
        raise LookupError("own")


STEPS = (("CREATE TABLE t (name TEXT)",), ("ALTER TABLE t ADD COLUMN amount TEXT",))


@pytest.mark.parametrize(
    ("component", "version", "text"),
    [
        ("values", 9, "newer version of trio_ledger_plugin made them; upgrade"),
        ("payments", 3, "newer version of trio_ledger_plugin made them; upgrade"),
        ("payments", 1, "have version 1, and this program reads version 2: open the file once"),
        ("others", 9, None),
    ],
)
async def test_tables_of_another_version_are_refused(path, component, version, text):
    await make(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT OR REPLACE INTO lpi_schema VALUES (?, ?)", (component, version))
        connection.commit()
    if text is None:
        with open_reader(path, {"payments": STEPS}) as reader:
            assert reader.execute(VALUE).fetchall() == [("value",)]
    else:
        with pytest.raises(StoreError, match=text), open_reader(path, {"payments": STEPS}):
            pytest.fail("opened")


async def test_database_that_is_no_store_is_read(path):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (name TEXT)")
    assert read(path, "SELECT count(*) FROM t") == [(0,)]


@pytest.mark.parametrize("content", [b"", b"text", b"\x37\x7f\x06\x82" + bytes(100)])
async def test_log_without_a_commit_is_left_there(path, content):
    """What a program was writing when the power failed; SQLite would delete it."""
    await make(path)
    path.with_name("store.db-wal").write_bytes(content)
    before = read_files(path)
    assert read(path) == [("value",)]
    assert read_files(path) == before


async def test_log_beside_an_empty_file_is_left_there(path):
    """SQLite deletes it, even through a connection that may only read."""
    await make_killed(path, "-wal", "-shm")
    path.write_bytes(b"")
    before = read_files(path)
    assert read(path, "SELECT 1") == [(1,)]
    assert read_files(path) == before
