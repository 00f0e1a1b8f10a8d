"""Nothing is acknowledged that is gone after a restart because a file was deleted, renamed or replaced."""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter

import pytest
import trio
import trio.testing
from support.programs import posix
from support.stores import hold_thread, holder

from trio_ledger_plugin.errors import StoreError, StoreInDoubtError
from trio_ledger_plugin.stores import lock as lock_module
from trio_ledger_plugin.stores import open_files, open_sqlite_store
from trio_ledger_plugin.stores.open_files import OpenFiles
from trio_ledger_plugin.stores.permissions import open_private

# Windows does not let a program delete or replace a file that is open.
pytestmark = posix


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "store.db"


def log_of(path):
    return path.with_name("store.db-wal")


def delete(path):
    for file in path.parent.glob("store.db*"):
        file.unlink()


def rename(path):
    path.rename(path.with_name("other.db"))


def replace(path):
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def delete_log(path):
    log_of(path).unlink()


def replace_log(path):
    shutil.copy(log_of(path), path.with_name("copy"))
    path.with_name("copy").replace(log_of(path))


def rename_directory(path):
    path.parent.rename(path.parent.with_name("other"))


LOSSES = [delete, rename, replace, delete_log, replace_log, rename_directory]


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("lose", LOSSES)
async def test_lost_file_refuses_everything_until_reopened(path, lose, settled):
    """A store that opened the other file by itself would forget what it had acknowledged."""
    async with open_sqlite_store(path) as store:
        await store.put("before", "it")
        if settled:
            await trio.sleep(0.2)
            await store.put("before", "it")
        lose(path)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"was (deleted or renamed|replaced by another file)") as caught:
                await store.put("after", "it")
            assert type(caught.value) is StoreError
            assert str(caught.value).startswith(f"{path}: ")
            assert str(caught.value).count(f"{path} ") == 0
            with pytest.raises(StoreError):
                await store.get("before")
        path.parent.mkdir(exist_ok=True)
    async with open_sqlite_store(path) as store:
        assert await store.get("after") is None
        await store.put("after", "it")


async def test_file_that_came_back_is_used_only_after_reopening(path):
    async with open_sqlite_store(path) as store:
        await store.put("before", "it")
        rename(path)
        with pytest.raises(StoreError):
            await store.put("after", "it")
        path.with_name("other.db").rename(path)
        with pytest.raises(StoreError):
            await store.put("after", "it")
    async with open_sqlite_store(path) as store:
        assert await store.get("before") == "it"
        assert await store.get("after") is None


async def test_works_that_share_a_transaction_are_all_refused(path):
    async with open_sqlite_store(path) as store:
        refused = []

        async def call(work):
            with pytest.raises(StoreError):
                await store.transaction(work)
            refused.append(work)

        async with trio.open_nursery() as nursery, hold_thread(store):
            for work in (lambda connection: None, lambda connection: rename(path), lambda connection: None):
                nursery.start_soon(call, work)
                await trio.testing.wait_all_tasks_blocked()
        assert len(refused) == 3


@pytest.mark.parametrize("lose", LOSSES)
async def test_file_lost_during_the_commit_leaves_it_in_doubt(path, lose):
    async with open_sqlite_store(path) as store:

        def work(connection):
            connection.execute("INSERT INTO lpi_values VALUES ('key', 'value')")
            connection.set_trace_callback(lambda statement: lose(path) if statement == "COMMIT" else None)

        with pytest.raises(StoreInDoubtError, match=r"was (deleted|replaced)"):
            await store.transaction(work)
        with pytest.raises(StoreError):
            await store.get("key")


async def test_directory_that_cannot_be_searched_is_a_temporary_error(path, monkeypatch):
    stat = os.stat
    blocked = True

    def refuse(name, *args, **kwargs):
        if blocked and str(name).endswith("data"):
            raise PermissionError(13, "Permission denied")
        return stat(name, *args, **kwargs)

    async with open_sqlite_store(path) as store:
        monkeypatch.setattr(os, "stat", refuse)
        with pytest.raises(StoreError) as caught:
            await store.put("key", "one")
        assert type(caught.value) is StoreError
        blocked = False
        assert await store.get("key") is None
        await store.put("key", "two")


@pytest.mark.parametrize(
    ("settled", "expected"),
    [(True, {"data": 4}), (False, {"data": 4, "store.db": 4, "store.db-wal": 4, "store.db.lock": 4})],
)
async def test_comparison_costs_a_few_looks_for_each_commit(path, monkeypatch, settled, expected):
    """Not for each work: of the held thread's transaction, and of the one that a hundred calls share."""
    monkeypatch.setattr(open_files, "SETTLED_NS", -(10**20) if settled else 10**20)
    looks: Counter[str] = Counter()
    stat = os.stat

    def count(name, *args, **kwargs):
        looks[os.path.basename(name)] += 1
        return stat(name, *args, **kwargs)

    async with open_sqlite_store(path) as store:
        async with trio.open_nursery() as nursery, hold_thread(store):
            for i in range(100):
                nursery.start_soon(store.put, str(i), "value")
            await trio.testing.wait_all_tasks_blocked()
            monkeypatch.setattr(os, "stat", count)
        monkeypatch.undo()
    assert looks == expected


OPENING = """
import sys, trio
from trio_ledger_plugin.stores import open_sqlite_store
async def main():
    async with open_sqlite_store(sys.argv[1]) as store:
        print(await store.get("key"))
trio.run(main)
"""


async def open_elsewhere(path):
    """Open the store in another program; return what that prints, and its error."""
    done = await trio.run_process(
        [sys.executable, "-c", OPENING, str(path)], capture_stdout=True, capture_stderr=True, check=False
    )
    return done.stdout.decode().strip(), done.stderr.decode().strip()


async def test_deleted_lock_file_is_made_again(path):
    """Somebody tidies up, or believes that it is in the way; two services would then send the same money."""
    lock = path.with_name("store.db.lock")
    async with open_sqlite_store(path) as store:
        before = lock.read_text()
        lock.unlink()
        await store.put("key", "value")
        assert (lock.read_text(), lock.stat().st_mode & 0o777) == (before, 0o600)
        assert f"in use by another program (pid {os.getpid()})" in (await open_elsewhere(path))[1]
        await store.put("key", "other")
    assert await open_elsewhere(path) == ("other", "")


async def test_lock_file_of_another_program_ends_the_store(path):
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        path.with_name("store.db.lock").unlink()
        assert await open_elsewhere(path) == ("value", "")
        for _ in range(2):
            with pytest.raises(StoreError, match=r"store.db.lock was replaced by another file"):
                await store.put("key", "lost")
    assert await open_elsewhere(path) == ("value", "")


async def test_lock_file_that_another_program_holds_already_ends_the_store(path, monkeypatch):
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        lock = path.with_name("store.db.lock")
        lock.unlink()

        def open_second(name):
            descriptor = open_private(name)
            lock_module._lock(taken := open_private(name))
            taken_by_others.append(taken)
            return descriptor

        taken_by_others: list[int] = []
        monkeypatch.setattr("trio_ledger_plugin.stores.lock.open_private", open_second)
        with pytest.raises(StoreError, match=r"store.db.lock was deleted, and another program has opened the store"):
            await store.put("key", "lost")
        os.close(taken_by_others.pop())


def break_connection(connection):
    """Have the store open the file again, as after an error of the disk."""
    sqlite3.Connection.close(connection)


@pytest.mark.parametrize("locks", [True, False])
async def test_file_replaced_between_two_connections_is_noticed(path, monkeypatch, locks):
    if not locks:
        monkeypatch.setattr(OpenFiles, "_set_lock", lambda *_: False)
    async with open_sqlite_store(path) as store:
        await store.put("key", "one")
        with pytest.raises(StoreInDoubtError):
            await store.transaction(break_connection)
        with pytest.raises(StoreError):
            await store.get("key")
        assert await store.get("key") == "one"
        with pytest.raises(StoreInDoubtError):
            await store.transaction(break_connection)
        replace(path)
        for _ in range(3):
            with pytest.raises(StoreError):
                await store.get("key")


READ = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM lpi_values').fetchone())"


def read_elsewhere(path):
    """Read the database in another program, which closes it."""
    subprocess.run([sys.executable, "-c", READ, str(path)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.skipif(sys.platform != "linux", reason="needs locks that closing another handle does not release")
async def test_program_may_read_its_own_file_and_lose_no_commit(path):
    """Closing any handle releases SQLite's locks; the next program to close the database would delete the log."""
    async with open_sqlite_store(path) as store:
        await store.put("before", "it")
        path.read_bytes()
        read_elsewhere(path)
        await store.put("after", "it")
        copy = path.with_name("copy.db")
        for ending in ("", "-wal"):
            shutil.copy(f"{path}{ending}", f"{copy}{ending}")
    async with open_sqlite_store(copy) as store:
        assert await store.get("after") == "it"


async def test_log_deleted_by_another_program_is_noticed(path, monkeypatch):
    """Where the additional lock does not exist, the comparison refuses what would be lost."""
    monkeypatch.setattr(OpenFiles, "_set_lock", lambda *_: False)
    async with open_sqlite_store(path) as store:
        await store.put("before", "it")
        path.read_bytes()
        read_elsewhere(path)
        assert not log_of(path).exists()
        with pytest.raises(StoreError, match=r"store\.db-wal was deleted"):
            await store.put("after", "it")
    async with open_sqlite_store(path) as store:
        assert await store.get("before") == "it"


async def test_last_log_is_deleted_when_the_store_is_closed(path):
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
    assert sorted(os.listdir(path.parent)) == ["store.db", "store.db.lock"]


async def test_other_programs_may_read_and_check_while_it_is_open(path):
    async with open_sqlite_store(path) as store:
        for i in range(3):
            await store.put(str(i), "value")
            read_elsewhere(path)
    async with holder(path, "write") as process:
        assert await process.stdout.receive_some()
        read_elsewhere(path)
        assert await process.stdout.receive_some()


async def test_file_with_a_second_hard_link_is_refused(path):
    """Each name would have a lock and a log of its own."""
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
    path.with_name("second.db").hardlink_to(path)
    for name in (path, path.with_name("second.db")):
        with pytest.raises(StoreError, match=r"it has 2 names \(hard links\)"):
            async with open_sqlite_store(name):
                pytest.fail("opened")
    path.with_name("second.db").unlink()
    async with open_sqlite_store(path) as store:
        assert await store.get("key") == "value"


async def test_special_file_is_refused(path):
    os.mkfifo(path)
    with trio.fail_after(5), pytest.raises(StoreError, match="not a regular file"):
        async with open_sqlite_store(path):
            pytest.fail("opened")
