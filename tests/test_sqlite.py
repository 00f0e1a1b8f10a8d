"""The SQLite store: stored values come back, and a transaction counts completely or not at all."""

import os
import sqlite3
import sys
import threading
from contextlib import closing

import pytest
import trio
import trio.testing
from outcome import Value
from support.faulty_vfs import faulty_vfs
from support.programs import PATIENCE, posix
from support.stores import hold_thread, holder

from trio_ledger_plugin.errors import InvalidFieldsError, StoreError, StoreInDoubtError
from trio_ledger_plugin.services import PluginServices, TransactionalStore
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.stores.worker import Database, WorkerStore, opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
async def store(path):
    async with open_sqlite_store(path) as opened:
        # mypy checks here that the store has all methods of the protocol.
        store: TransactionalStore[sqlite3.Connection] = opened
        yield store


def names(connection):
    return [name for (name,) in connection.execute("SELECT name FROM t ORDER BY rowid")]


def make_table(connection):
    connection.execute("CREATE TABLE t (name TEXT UNIQUE)")


def insert(name):
    def work(connection):
        connection.execute("INSERT INTO t VALUES (?)", (name,))
        return name

    return work


async def outcomes(store, works):
    """Run works together, in one transaction if possible; return the result or the error of each, in order."""
    found: list[object] = [None] * len(works)

    async def one(i, work):
        try:
            found[i] = await store.transaction(work)
        except Exception as error:  # noqa: BLE001  # the test examines the error
            found[i] = error

    async with trio.open_nursery() as nursery, hold_thread(store):
        for i, work in enumerate(works):
            nursery.start_soon(one, i, work)
            # One after another, so that their order is known.
            await trio.testing.wait_all_tasks_blocked()
    return found


async def test_stored_values_survive_reopening_the_file(path):
    async with open_sqlite_store(path) as store:
        await store.put("kept", "käse\0\N{CHEESE WEDGE}")
        await store.put("gone", "1")
        await store.delete("gone")
    async with open_sqlite_store(str(path)) as store:
        assert await store.get("kept") == "käse\0\N{CHEESE WEDGE}"
        assert await store.get("gone") is None


async def test_transaction_returns_its_result_or_undoes_its_changes(store):
    await store.transaction(make_table)
    assert await store.transaction(insert("one")) == "one"

    def fails(connection):
        insert("two")(connection)
        raise LookupError("own")

    with pytest.raises(LookupError, match="own"):
        await store.transaction(fails)
    assert await store.transaction(names) == ["one"]


async def test_waiting_transactions_share_one_commit(store):
    """A hundred tasks would wait for a hundred commits."""
    statements: list[str] = []
    await store.transaction(lambda connection: connection.set_trace_callback(statements.append))
    async with trio.open_nursery() as nursery, hold_thread(store):
        for i in range(100):
            nursery.start_soon(store.put, str(i), "value")
        await trio.testing.wait_all_tasks_blocked()
    assert statements.count("COMMIT") == 3  # of setting the callback, of the held thread, and of the hundred
    assert sum(statement.startswith("INSERT") for statement in statements) == 100


async def test_single_transaction_costs_one_sync(path):
    with faulty_vfs() as faults:
        async with open_sqlite_store(path) as store:
            await store.put("key", "one")
            before = faults.syncs
            await store.put("key", "two")
            assert faults.syncs == before + 1
            assert await store.get("key") == "two"
            assert faults.syncs == before + 1


def raises_after_a_change(connection):
    insert("bad")(connection)
    raise LookupError("own")


def raises_at_once(_connection):
    raise LookupError("own")


def raises_after_making_a_table(connection):
    connection.execute("CREATE TABLE other (name TEXT)")
    raise LookupError("own")


def raises_after_writing_a_blob(connection):
    with connection.blobopen("blobs", "data", 1) as blob:
        blob.write(b"bad")
    raise LookupError("own")


def has_sqlite_roll_back(connection):
    insert("bad")(connection)
    connection.execute("INSERT OR ROLLBACK INTO t VALUES ('bad')")


def has_sqlite_roll_back_what_others_did(connection):
    connection.execute("INSERT OR ROLLBACK INTO t VALUES ('one')")


def hides_that_sqlite_rolled_back(connection):
    with pytest.raises(sqlite3.IntegrityError):
        has_sqlite_roll_back(connection)


def goes_on_after_sqlite_rolled_back(connection):
    hides_that_sqlite_rolled_back(connection)
    insert("worse")(connection)


def breaks_a_rule_that_is_checked_last(connection):
    connection.execute("INSERT INTO children VALUES (1)")


kept: list[sqlite3.Cursor] = []


def leaves_a_statement_running(connection):
    kept.append(connection.execute("INSERT INTO t VALUES ('bad'), ('worse') RETURNING name"))


def is_no_sql(connection):
    insert("bad")(connection)
    connection.execute("NONSENSE")


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (raises_at_once, LookupError, "own"),
        (raises_after_a_change, LookupError, "own"),
        (raises_after_making_a_table, LookupError, "own"),
        (raises_after_writing_a_blob, LookupError, "own"),
        (has_sqlite_roll_back, sqlite3.IntegrityError, "UNIQUE"),
        (has_sqlite_roll_back_what_others_did, sqlite3.IntegrityError, "UNIQUE"),
        (hides_that_sqlite_rolled_back, StoreError, "SQLite rolled back, but"),
        (goes_on_after_sqlite_rolled_back, RuntimeError, "continue after SQLite rolled back"),
        (breaks_a_rule_that_is_checked_last, sqlite3.IntegrityError, "FOREIGN KEY"),
        (leaves_a_statement_running, sqlite3.OperationalError, "in progress"),
        (is_no_sql, sqlite3.OperationalError, "syntax"),
    ],
)
async def test_failed_work_is_undone_without_harm_to_others(store, bad, error, text, together):
    def prepare(connection):
        make_table(connection)
        connection.execute("CREATE TABLE parents (id INTEGER PRIMARY KEY)")
        connection.execute("CREATE TABLE children (id REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
        connection.execute("CREATE TABLE blobs (data BLOB)")
        connection.execute("INSERT INTO blobs VALUES (x'000000')")

    await store.transaction(prepare)
    try:
        if together:
            found = await outcomes(store, [insert("one"), bad, insert("two")])
        else:
            found = [(await outcomes(store, [work]))[0] for work in (insert("one"), bad, insert("two"))]
    finally:
        kept.clear()
    assert found[0] == "one"
    assert found[2] == "two"
    assert isinstance(found[1], error)
    assert text in str(found[1])
    assert await store.transaction(names) == ["one", "two"]
    tables = "SELECT name FROM sqlite_schema WHERE name = 'other'"
    assert await store.transaction(lambda connection: connection.execute(tables).fetchall()) == []
    blobs = "SELECT data FROM blobs"
    assert await store.transaction(lambda connection: connection.execute(blobs).fetchone()[0]) == bytes(3)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda connection: connection.commit(),
        lambda connection: connection.rollback(),
        lambda connection: connection.close(),
        lambda connection: connection.__exit__(None, None, None),
        lambda connection: connection.execute("COMMIT"),
        lambda connection: connection.execute("ROLLBACK"),
        lambda connection: connection.execute("END TRANSACTION"),
        lambda connection: connection.execute("BEGIN"),
        lambda connection: connection.executescript("INSERT INTO t VALUES ('bad')"),
        lambda connection: connection.execute("ATTACH ':memory:' AS other"),
        lambda connection: connection.execute("DETACH main"),
        lambda connection: connection.execute("PRAGMA synchronous = OFF"),
        lambda connection: connection.execute("PRAGMA query_only = ON"),
        lambda connection: connection.execute("PRAGMA defer_foreign_keys(1)"),
    ],
)
async def test_work_cannot_end_a_shared_transaction(store, misuse):
    await store.transaction(make_table)

    def work(connection):
        insert("bad")(connection)
        misuse(connection)

    # Twice, because SQLite does not authorize a cached statement again.
    for name in ("one", "two"):
        error = (await outcomes(store, [work, insert(name)]))[0]
        assert isinstance(error, RuntimeError)
        assert "must not begin, commit or roll back" in str(error)
    assert await store.transaction(names) == ["one", "two"]


async def test_work_may_use_savepoints_and_read_the_schema(store):
    def work(connection):
        make_table(connection)
        connection.execute("SAVEPOINT s")
        insert("undone")(connection)
        connection.execute("ROLLBACK TO s")
        connection.execute("RELEASE s")
        insert("kept")(connection)
        return connection.execute("PRAGMA table_info(t)").fetchone()[1]

    assert await store.transaction(work) == "name"
    assert await store.transaction(names) == ["kept"]


async def test_work_has_its_own_settings_foreign_keys_and_full_sync(store):
    def work(connection):
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("foreign_keys", "synchronous")]

    assert await store.transaction(work) == [1, 2]
    row = await store.transaction(lambda connection: connection.execute("PRAGMA journal_mode").fetchone())
    assert row == ("wal",)


async def test_async_work_is_refused_without_a_warning(store):
    async def work(connection):
        raise AssertionError

    with pytest.raises(TypeError, match="plain function"):
        await store.transaction(work)


async def test_work_that_calls_the_store_fails_and_blocks_nothing(store):
    def work(_connection):
        trio.from_thread.run(store.put, "key", "value")

    with pytest.raises(RuntimeError):
        await store.transaction(work)
    assert await store.get("key") is None


@pytest.mark.parametrize("method", ["get", "delete", "transaction"])
async def test_use_in_another_trio_run_is_an_error(store, method):
    """A task of one run would be woken by the other, in the wrong thread, and both would fail."""

    async def use():
        await getattr(store, method)("key")

    with pytest.raises(RuntimeError, match="opened in another Trio run"):
        await trio.to_thread.run_sync(trio.run, use)
    with pytest.raises(RuntimeError, match="opened in another Trio run"):
        await trio.to_thread.run_sync(trio.run, use)
    await store.put("key", "value")
    assert await store.get("key") == "value"


async def test_work_that_breaks_the_connection_leaves_no_call_waiting(store):
    await store.transaction(make_table)
    found = await outcomes(store, [insert("one"), sqlite3.Connection.close, insert("two")])
    assert all(isinstance(error, StoreInDoubtError) for error in found)
    with pytest.raises(StoreError):
        await store.transaction(names)
    assert await store.transaction(names) == []


async def test_store_is_accepted_by_plugin_services(store):
    assert PluginServices(store=store).store is store


async def test_call_cancelled_before_it_begins_never_runs(store):
    await store.transaction(make_table)
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.transaction(insert("cancelled before"))
    async with trio.open_nursery() as nursery, hold_thread(store):
        for i in range(3):
            nursery.start_soon(store.transaction, insert(f"cancelled while it waits {i}"))
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await store.transaction(insert("after"))
    assert await store.transaction(names) == ["after"]


async def test_call_cancelled_after_it_begins_commits_and_returns(store):
    await store.transaction(make_table)
    begun, over, token = trio.Event(), threading.Event(), trio.lowlevel.current_trio_token()
    results = []

    def work(connection):
        token.run_sync_soon(begun.set)
        assert over.wait(PATIENCE)
        return insert("begun")(connection)

    async def call():
        results.append(await store.transaction(work))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await begun.wait()
        nursery.cancel_scope.cancel()
        over.set()
    assert results == ["begun"]
    assert await store.transaction(names) == ["begun"]


async def test_call_cancelled_at_any_moment_raises_or_counts(store):
    await store.transaction(make_table)
    returned = set()

    async def call(name):
        returned.add(await store.transaction(insert(name)))

    for steps in range(60):
        async with trio.open_nursery() as nursery:
            for i in range(5):
                nursery.start_soon(call, f"{steps}.{i}")
            for _ in range(steps % 12):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert set(await store.transaction(names)) == returned


async def test_cancellation_waits_only_briefly_for_a_hanging_disk(path):
    begun, over, token = trio.Event(), threading.Event(), trio.lowlevel.current_trio_token()

    def hang(_connection):
        token.run_sync_soon(begun.set)
        assert over.wait(PATIENCE)

    async with open_sqlite_store(path) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.transaction, hang)
            await begun.wait()
            start = trio.current_time()
            nursery.cancel_scope.cancel()
        assert 0.15 < trio.current_time() - start < 2
        over.set()
        # The work that has begun is finished before this one.
        await store.put("after", "it")


async def test_closed_store_leaves_no_thread_and_refuses_calls(path):
    before = threading.enumerate()
    async with open_sqlite_store(path) as store:
        assert len(threading.enumerate()) == len(before) + 1
        await store.put("key", "value")
    assert threading.enumerate() == before
    assert [file.name for file in path.parent.iterdir()] == ["store.db", "store.db.lock"]
    with pytest.raises(StoreError, match="closed"):
        await store.get("key")


async def test_waiting_calls_finish_when_the_block_ends(path):
    async with trio.open_nursery() as nursery, open_sqlite_store(path) as store:
        for i in range(300):
            nursery.start_soon(store.put, str(i), "value")
        await trio.testing.wait_all_tasks_blocked()
    async with open_sqlite_store(path) as store:
        assert [await store.get(str(i)) for i in (0, 299)] == ["value", "value"]


async def test_cancelled_block_ends_although_the_disk_hangs(path, autojump_clock):
    begun, over, token = trio.Event(), threading.Event(), trio.lowlevel.current_trio_token()

    def hang(_connection):
        token.run_sync_soon(begun.set)
        assert over.wait(PATIENCE)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with open_sqlite_store(path) as store:
                nursery.start_soon(store.transaction, hang)
                await begun.wait()
                start = trio.current_time()
                scope.cancel()
        assert trio.current_time() - start == 5
        over.set()
    for thread in threading.enumerate():
        if thread.name.startswith("store "):
            thread.join(PATIENCE)


async def test_cancelled_opening_leaves_no_thread_and_no_lock(path):
    before = threading.enumerate()
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_sqlite_store(path):
            pytest.fail("opened")
    assert threading.enumerate() == before
    async with open_sqlite_store(path):
        pass


# Other programs


@posix
async def test_second_program_is_refused_until_the_first_has_ended(path):
    async with holder(path, "wait") as process:
        with pytest.raises(StoreError, match=rf"in use by another program \(pid {process.pid}\)"):
            async with open_sqlite_store(path):
                pytest.fail("opened")
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")


@posix
@pytest.mark.parametrize("lines", [1, 50, 300])
async def test_acknowledged_values_survive_a_kill(path, lines):
    acknowledged = b""
    async with holder(path, "write") as process:
        while acknowledged.count(b"\n") < lines:
            acknowledged += await process.stdout.receive_some()
        process.kill()
        async for chunk in process.stdout:
            acknowledged += chunk
    async with open_sqlite_store(path) as store:
        for key in acknowledged.decode().split("\n")[:-1]:
            assert await store.get(key) == "value" * 50


async def test_second_store_is_refused_under_any_name_of_the_file(path, store):
    link = path.with_name("link.db")
    link.symlink_to(path)
    for name in (path, link, path.parent / ".." / path.parent.name / path.name):
        with pytest.raises(StoreError, match="is open in this program already"):
            async with open_sqlite_store(name):
                pytest.fail("opened")
    await store.put("key", "value")


async def test_another_writer_is_a_temporary_error(path, store):
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another program is writing to it"):
            await store.put("key", "one")
        other.execute("COMMIT")
    await store.put("key", "two")
    assert await store.get("key") == "two"


# Unusable files


async def refusal(path):
    with pytest.raises(StoreError) as caught:
        async with open_sqlite_store(path):
            pytest.fail("opened")
    assert str(path) in str(caught.value)
    return str(caught.value)


async def test_unusable_file_is_an_error_that_says_what_to_do(tmp_path):
    assert "directory" in await refusal(tmp_path / "missing" / "store.db")
    assert "it is a directory" in await refusal(tmp_path)
    (tmp_path / "file").write_text("no directory")
    assert "directory" in await refusal(tmp_path / "file" / "store.db")
    (tmp_path / "text.db").write_text("a letter to my bank\n" * 1000)
    assert "not an SQLite database" in await refusal(tmp_path / "text.db")


@pytest.mark.parametrize("page", range(1, 12, 2))
async def test_damaged_file_is_found_when_it_is_opened(path, page):
    async with open_sqlite_store(path) as store:
        for i in range(60):
            await store.put(f"{i}", "value" * 200)
    content = bytearray(path.read_bytes())
    content[page * 4096 : (page + 1) * 4096] = b"\xa5" * 4096
    path.write_bytes(content)
    assert "damaged; restore it from a backup" in await refusal(path)


async def test_file_of_a_newer_version_is_left_unchanged(path):
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
        await store.transaction(lambda connection: connection.execute("UPDATE lpi_schema SET version = 9").rowcount)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer version of trio_ledger_plugin made them; upgrade"):
        async with open_sqlite_store(path):
            pytest.fail("opened")
    assert path.read_bytes() == before


@pytest.mark.parametrize(("path", "error"), [(":memory:", InvalidFieldsError), ("", InvalidFieldsError)])
async def test_path_without_a_file_is_refused(path, error):
    with pytest.raises(error, match="MemoryStore"):
        async with open_sqlite_store(path):
            pytest.fail("opened")


@pytest.mark.parametrize("path", [b"bytes.db", None, 5])
async def test_path_of_another_type_is_refused(path):
    with pytest.raises(TypeError, match=r"path is text \(str\) or a pathlib.Path"):
        async with open_sqlite_store(path):
            pytest.fail("opened")


async def test_path_that_the_system_cannot_open_is_explained(tmp_path):
    """It was told as an unexpected error, after which a change may count or not."""
    with pytest.raises(StoreError, match="its path is too long; use a shorter one") as caught:
        async with open_sqlite_store(tmp_path / ("x" * 5000)):
            pytest.fail("opened")
    assert not isinstance(caught.value, StoreInDoubtError)
    with pytest.raises(InvalidFieldsError, match="path: has a NUL character"):
        async with open_sqlite_store(f"{tmp_path}/a\0b"):
            pytest.fail("opened")


# Full disks


async def test_full_disk_stops_writing_but_not_reading_until_there_is_room(path):
    with faulty_vfs() as faults:
        async with open_sqlite_store(path) as store:
            await store.put("key", "old")
            faults.arm(after=1, kind="full", forever=True)
            for _ in range(2):
                with pytest.raises(StoreError, match=r"store\.db: the disk is full; make room") as caught:
                    await store.put("key", "new")
                assert type(caught.value) is StoreError
                assert await store.get("key") == "old"
            faults.disarm()
            await store.put("key", "new")
            assert await store.get("key") == "new"


FILLER = """
import os, resource, sys, trio
from trio_ledger_plugin.errors import StoreError
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.stores.worker import Database, WorkerStore, opened

path = sys.argv[1]

def limit():
    if sys.argv[2] == "tmpfs":
        with open(path + ".ballast", "wb") as file:
            file.write(bytes(300_000))
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, -1))

def make_room():
    if sys.argv[2] == "tmpfs":
        os.remove(path + ".ballast")
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))

async def main():
    async with open_sqlite_store(path) as store:
        limit()
        n = 0
        try:
            while n < 5000:
                await store.put(str(n), "x" * 2000)
                n += 1
        except StoreError as error:
            refused = type(error)
            print(error)
        make_room()
        await store.put("more", "room")
    async with open_sqlite_store(path) as store:
        for i in range(n):
            assert await store.get(str(i)) is not None
        if refused is StoreError:
            assert await store.get(str(n)) is None
        assert await store.get("more") == "room"
    print(n)

trio.run(main)
"""


async def fill(*command):
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    assert done.stderr == b""
    assert done.returncode == 0
    *error, count = done.stdout.decode().splitlines()
    assert 10 < int(count) < 5000
    return error


@posix
async def test_file_size_limit_is_reported_and_passes(path):
    (error,) = await fill(sys.executable, "-c", FILLER, str(path), "rlimit")
    assert error.startswith(f"{path}: ")
    assert "check the disk" in error


@posix
async def test_full_file_system_is_reported_and_passes(tmp_path):
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=1m tmpfs {tmp_path}"
    try:
        tried = await trio.run_process([*alone, mount], capture_stdout=True, capture_stderr=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs unshare, to mount a small file system")
    if tried.returncode:
        pytest.skip(f"may not mount a small file system: {tried.stderr.decode().strip()}")
    path = f"{tmp_path}/store.db"
    (error,) = await fill(*alone, f'{mount} && exec "$0" -c "$@"', sys.executable, FILLER, path, "tmpfs")
    assert error.startswith(f"{path}: the disk is full; make room and try again")


def _close_lock(path):
    lock = os.path.realpath(f"{path}.lock")
    (descriptor,) = [each for each in os.listdir("/dev/fd") if os.path.realpath(f"/dev/fd/{each}") == lock]
    os.close(int(descriptor))


@posix
async def test_lock_that_something_else_has_closed_ends_no_block_late(path):
    """The end of the block would wait for ever for a thread that has ended with an error."""
    with trio.fail_after(PATIENCE):
        async with open_sqlite_store(path) as store:
            await store.put("key", "value")
            _close_lock(path)


class _Failing(Database):
    """A database that fails as no database should."""

    def transaction(self, works):
        return [Value(None) for _ in works]

    def close(self):
        raise RuntimeError("a bug")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_database_whose_close_fails_ends_the_block():
    with trio.fail_after(PATIENCE):
        async with opened(WorkerStore("x", SQLITE, [_Failing, _Failing])):
            pass


async def test_thread_that_cannot_start_is_an_error_and_leaves_no_other(monkeypatch):
    inner = threading.Thread.start
    started: list[threading.Thread] = []

    def start(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        inner(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(StoreError, match=r"^x: can't start new thread$"):
        async with opened(WorkerStore("x", SQLITE, [_Closing, _Closing])):
            pass
    assert not started[0].is_alive()


class _Closing(_Failing):
    def close(self):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_thread_that_ends_with_an_error_leaves_no_caller_waiting():
    def fail():
        raise RuntimeError("a bug")

    with (
        trio.fail_after(PATIENCE),
        pytest.raises(StoreError, match=r"^x: the store's threads have ended with an error$"),
    ):
        async with opened(WorkerStore("x", SQLITE, [fail])):
            pass
