"""A store's files are private, and those beside the database belong to its owner."""

import os
import re
import shutil
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from support.programs import posix

from trio_ledger_plugin.errors import StoreError
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.permissions import advise_writer
from trio_ledger_plugin.stores.reader import open_reader

pytestmark = posix
SERVICE = 65534

root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to be two users")


@contextmanager
def user(number):
    """Run the block as another user, without root's rights."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(number)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def path():
    """A path in a directory that every user can reach, and that belongs to the service."""
    home = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(home, SERVICE, SERVICE)
    home.chmod(0o755)
    yield home / "shop.db"
    shutil.rmtree(home)


def owners(path):
    return {file.name: file.stat().st_uid for file in path.parent.iterdir()}


def modes(path):
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}


NAMES = ["shop.db", "shop.db-shm", "shop.db-wal", "shop.db.lock"]


@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
async def test_new_files_are_private_whatever_the_umask(path, umask):
    """They contain what was paid, and digests of tokens."""
    before = os.umask(umask)
    try:
        async with open_sqlite_store(path) as store:
            await store.put("key", "value")
            assert modes(path) == dict.fromkeys(NAMES, 0o600)
    finally:
        os.umask(before)


async def test_files_beside_a_database_have_its_mode(path):
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")
    path.chmod(0o640)
    async with open_sqlite_store(path) as store:
        await store.put("key", "other")
        assert modes(path) == dict.fromkeys(NAMES, 0o640)


@root
async def test_what_root_leaves_behind_belongs_to_the_service(path):
    """An operator settles as root, and the service cannot start afterwards."""
    with user(SERVICE):
        async with open_sqlite_store(path) as store:
            await store.put("key", "one")
    path.with_name("shop.db.lock").unlink()
    async with open_sqlite_store(path) as store:
        await store.put("key", "two")
        assert owners(path) == dict.fromkeys(NAMES, SERVICE)
    with user(SERVICE):
        async with open_sqlite_store(path) as store:
            assert await store.get("key") == "two"


@root
@pytest.mark.parametrize("ending", [".lock", "-wal", "-shm"])
async def test_error_names_the_file_of_another_user_and_the_command(path, ending):
    with user(SERVICE):
        async with open_sqlite_store(path) as store:
            await store.put("key", "one")
            for name in ("-wal", "-shm"):
                shutil.copy(f"{path}{name}", f"{path}{name}.copy")
        for name in ("-wal", "-shm"):
            os.rename(f"{path}{name}.copy", f"{path}{name}")
    culprit = f"{path}{ending}"
    os.chown(culprit, 0, 0)
    os.chmod(culprit, 0o600)
    with user(SERVICE):
        with pytest.raises(StoreError) as caught:
            async with open_sqlite_store(path):
                pytest.fail("opened")
        assert f"may not write to {culprit}, which belongs to root" in str(caught.value)
    command = re.search(r"mend it with: (chown \w+: \S+)", str(caught.value))
    assert command is not None
    await trio.run_process(command[1].split())
    with user(SERVICE):
        async with open_sqlite_store(path) as store:
            assert await store.get("key") == "one"


@root
async def test_colleague_gives_the_files_to_the_databases_group(path):
    """A colleague may not give files away, but may let the group use them."""
    with user(SERVICE):
        async with open_sqlite_store(path) as store:
            await store.put("key", "one")
    path.chmod(0o660)
    path.with_name("shop.db.lock").unlink()
    os.chown(path, SERVICE, 4321)
    path.parent.chmod(0o777)
    os.setgroups([4321])
    os.setegid(4000)
    os.seteuid(4000)
    try:
        async with open_sqlite_store(path) as store:
            await store.put("key", "two")
            assert {file.stat().st_gid for file in path.parent.iterdir()} == {4321}
            assert modes(path) == dict.fromkeys(NAMES, 0o660)
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


@root
async def test_wrong_mode_of_the_owners_own_file_is_mended_by_chmod(path):
    async with open_sqlite_store(path):
        pass
    lock = path.with_name("shop.db.lock")
    for file in (path, lock):
        os.chown(file, SERVICE, SERVICE)
    lock.chmod(0)
    with user(SERVICE):
        assert advise_writer(str(path)) == (
            f"this user may not write to {lock}, which belongs to {name_of(SERVICE)}; mend it with: chmod 600 {lock}"
        )


def name_of(number):
    import pwd  # noqa: PLC0415 (POSIX only)

    return pwd.getpwuid(number).pw_name


def test_nothing_is_advised_for_files_that_may_be_used(path):
    assert advise_writer(str(path)) is None
    path.touch()
    assert advise_writer(str(path)) is None


@root
async def test_reader_without_the_right_to_read_is_told_whose_file_it_is(path):
    async with open_sqlite_store(path):
        pass
    expected = pytest.raises(StoreError, match=r"may not read \S+shop\.db, which belongs to root")
    with user(SERVICE), expected, open_reader(path):
        pytest.fail("opened")
