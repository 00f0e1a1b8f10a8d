"""Opening a file checks what a crash or a restored backup can break."""

import shutil
import sqlite3
from contextlib import closing, suppress

import pytest
from support.faulty_vfs import faulty_vfs
from support.programs import posix
from support.stores import holder, read_files

from trio_ledger_plugin.errors import StoreError
from trio_ledger_plugin.stores import open_sqlite_store, openings


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


def lock_of(path):
    return path.with_name("store.db.lock")


async def make(path, **values):
    async with open_sqlite_store(path) as store:
        for key, value in values.items():
            await store.put(key, value)


async def refusal(path):
    """Return the error of opening, which must leave the database and its log as they are."""
    before = read_files(path)
    with pytest.raises(StoreError) as caught:
        async with open_sqlite_store(path):
            pytest.fail("opened")
    assert read_files(path) == before
    return str(caught.value)


async def get(path, key):
    async with open_sqlite_store(path) as store:
        return await store.get(key)


def break_index(path):
    """Insert a row that is missing in an index, which a quick check does not see."""

    def run(*statements):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA writable_schema = ON")
            return [connection.execute(statement).fetchall() for statement in statements][-1]

    run("CREATE TABLE t (name TEXT)", "CREATE INDEX i ON t (name)", "INSERT INTO t VALUES ('one')")
    ((kind, name, table, page, sql),) = run("SELECT * FROM sqlite_schema WHERE name = 'i'")
    run("DELETE FROM sqlite_schema WHERE name = 'i'")
    run("INSERT INTO t VALUES ('two')")
    run(f"INSERT INTO sqlite_schema VALUES ('{kind}', '{name}', '{table}', {page}, '{sql}')")  # noqa: S608 (own values)


def set_closed(path, number):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE lpi_opening SET closed = ?", (number,))
        connection.commit()


async def test_file_is_checked_fully_unless_it_was_closed(path):
    """An index that lacks a key would let a transfer be credited twice."""
    await make(path, key="value")
    break_index(path)
    assert await get(path, "key") == "value"
    set_closed(path, 0)
    assert "damaged" in await refusal(path)


async def test_file_with_a_log_is_checked_fully(path):
    await make(path, key="value")
    break_index(path)
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        set_closed(path, 1)
        copy = path.with_name("copy.db")
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", f"{copy}{ending}")
    assert f"delete {copy}-wal and {copy}-shm" in await refusal(copy)


async def test_killed_program_leaves_a_file_that_is_checked_fully(path):
    """Even if another program has emptied the log."""
    await make(path, key="value")
    break_index(path)
    with faulty_vfs() as faults:
        async with open_sqlite_store(path):
            faults.arm(after=1, kind="crash")
        faults.recover()
    with closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert not path.with_name("store.db-wal").exists()
    assert "damaged" in await refusal(path)


@posix
async def test_deleted_log_of_a_killed_program_is_noticed(path):
    """What the program acknowledged last was only there."""
    await make(path)
    async with holder(path, "write") as process:
        assert await process.stdout.receive_some()
    path.with_name("store.db-wal").unlink()
    assert "its write-ahead log was deleted" in await refusal(path)


async def test_large_file_is_opened_without_a_check_after_a_clean_shutdown(path, monkeypatch):
    """Opening must not take longer the longer the history is."""
    monkeypatch.setattr(openings, "CHECKED_BYTES", 8192)
    checks = []
    monkeypatch.setattr(openings, "_check", lambda *args: checks.append(args[-1]))
    await make(path, key="value" * 5000)
    await get(path, "key")
    assert checks == []
    set_closed(path, 0)
    await get(path, "key")
    assert checks == ["PRAGMA integrity_check(1)"]


async def test_backup_beside_a_log_of_later_is_found_and_left_unchanged(path):
    """``cp backup.db store.db``, while the log of a killed program is still there."""
    work, backup = path.with_name("work.db"), path.with_name("backup.db")

    async with open_sqlite_store(work) as store:
        for i in range(100):
            await store.put(f"{i:03}", "x" * 60)
        with closing(sqlite3.connect(work)) as other:
            other.execute(f"VACUUM INTO '{backup}'")
            for i in range(100, 400):
                await store.put(f"{i:03}", "x" * 60)
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        for i in range(400, 420):
            await store.put(f"{i:03}", "x" * 60)
        shutil.copy(f"{work}-wal", f"{path}-wal")
        shutil.copy(f"{work}.lock", lock_of(path))
    shutil.copy(backup, path)
    assert f"delete {path}-wal and {path}-shm, copy the backup here again" in await refusal(path)
    for ending in ("-wal", "-shm"):
        path.with_name(f"store.db{ending}").unlink(missing_ok=True)
    assert await get(path, "099") == "x" * 60


async def test_older_backup_in_place_of_the_file_is_refused(path):
    """It lacks what was acknowledged since, so it would credit and send transfers again."""
    await make(path, key="one")
    shutil.copy(path, path.with_name("backup.db"))
    await make(path, key="two")
    shutil.copy(path.with_name("backup.db"), path)
    assert "It was restored from a backup" in await refusal(path)
    lock_of(path).unlink()
    assert await get(path, "key") == "one"


async def test_copy_that_was_open_elsewhere_is_refused(path):
    await make(path, key="one")
    elsewhere = path.with_name("elsewhere.db")
    shutil.copy(path, elsewhere)
    await make(elsewhere, key="two")
    await make(path, other="three")
    shutil.copy(elsewhere, path)
    assert "delete" in await refusal(path)


async def test_file_that_is_moved_with_its_lock_file_or_without_opens(path):
    await make(path, key="value")
    moved = path.with_name("moved.db")
    path.rename(moved)
    assert await get(moved, "key") == "value"
    lock_of(path).rename(path.with_name("moved.db.lock"))
    path.with_name("moved.db.lock").unlink()
    assert await get(moved, "key") == "value"


async def test_new_file_in_place_of_a_deleted_one_opens(path):
    await make(path, key="value")
    path.unlink()
    assert await get(path, "key") is None


@pytest.mark.parametrize("after", range(1, 12))
async def test_opening_that_is_interrupted_can_be_repeated(path, after):
    """The id is written to two files; a crash in between must not look like a restored backup."""
    await make(path, key="value")
    with faulty_vfs() as faults:
        faults.arm(after=after, kind="crash")
        with suppress(StoreError):
            await make(path, key="value")
        faults.recover()
    assert await get(path, "key") == "value"
    assert await get(path, "key") == "value"


@posix
async def test_killed_program_is_not_taken_for_a_restored_backup(path):
    for _ in range(2):
        async with holder(path, "write") as process:
            assert await process.stdout.receive_some()
    assert await get(path, "0") is not None


async def test_file_of_an_earlier_version_is_checked_and_upgraded(path):
    await make(path, key="value")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE lpi_opening")
        connection.execute("UPDATE lpi_schema SET version = 1")
        connection.commit()
    lock_of(path).write_bytes(b"123\n")
    assert await get(path, "key") == "value"
    assert len(lock_of(path).read_text().split()) == 2


async def test_log_without_its_database_is_kept(path):
    """SQLite deletes it. It may hold the last transfers of a database that was moved away."""
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        shutil.copy(f"{path}-wal", f"{path}.copy")
    path.unlink()
    shutil.move(f"{path}.copy", f"{path}-wal")
    content = path.with_name("store.db-wal").read_bytes()
    assert await get(path, "key") is None
    (kept,) = path.parent.glob("store.db-wal.*")
    assert kept.read_bytes() == content


async def test_newer_file_is_refused_before_anything_is_written(path):
    await make(path, key="value")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE lpi_schema SET version = 9")
        connection.commit()
    assert "newer version" in await refusal(path)
