"""One program at a time has a store's file; a program that is dead does not."""

import os
import signal
import subprocess
import sys

import pytest
from support.programs import PATIENCE, posix

from trio_ledger_plugin.errors import StoreError
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.lock import Claim

pytestmark = posix


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


PARENT = """
import os, sys, time, warnings, trio
from trio_ledger_plugin.stores import open_sqlite_store
warnings.simplefilter("ignore")

async def child(store):
    for call in (store.get("key"), store.transaction(lambda connection: None), reopen()):
        try:
            await call
        except Exception as error:
            print(type(error).__name__, error, flush=True)

async def reopen():
    async with open_sqlite_store(sys.argv[1]):
        pass

async def main():
    try:
        async with open_sqlite_store(sys.argv[1]) as store:
            await store.put("key", "value")
            pid = os.fork()
            if pid == 0:
                await child(store)
                if sys.argv[2] == "leaves":
                    raise EOFError
                print(os.getpid(), flush=True)
                time.sleep(60)
            if sys.argv[2] == "leaves":
                os.waitpid(pid, 0)
                await store.put("key", "after")
                print(await store.get("key"), flush=True)
                return
            await trio.sleep_forever()
    except EOFError:
        print("left", flush=True)
        # Not through the end of the Trio run, which shares its files with the parent's.
        os._exit(0)

trio.run(main)
"""


def start(path, what):
    return subprocess.Popen([sys.executable, "-c", PARENT, str(path), what], stdout=subprocess.PIPE, text=True)


async def test_dead_programs_child_does_not_keep_the_claim(path):
    """A pool of workers may live for ever, and the next program could never open its store."""
    with start(path, "stays") as parent:
        assert parent.stdout is not None
        for text in ("RuntimeError", "RuntimeError", "StoreError"):
            line = parent.stdout.readline()
            assert line.startswith(text)
            assert "forked" in line
        child = int(parent.stdout.readline())
        try:
            with pytest.raises(StoreError, match=rf"in use by another program \(pid {parent.pid}\)"):
                async with open_sqlite_store(path):
                    pytest.fail("opened")
            parent.kill()
            parent.wait(PATIENCE)
            async with open_sqlite_store(path) as store:
                assert await store.get("key") == "value"
        finally:
            os.kill(child, signal.SIGKILL)
            parent.kill()


async def test_child_that_leaves_the_block_does_not_harm_the_store(path):
    with start(path, "leaves") as parent:
        assert parent.stdout is not None
        assert parent.wait(PATIENCE) == 0
        assert parent.stdout.read().splitlines()[-2:] == ["left", "after"]
    async with open_sqlite_store(path) as store:
        assert await store.get("key") == "after"


async def test_program_with_the_same_number_is_in_another_container(path):
    """An operator would look for a second program in the container that shows the error."""
    fcntl = pytest.importorskip("fcntl")
    held = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.write(held, f"{os.getpid()}\n\n".encode())
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=rf"another program \(pid {os.getpid()} of another container\)"):
            async with open_sqlite_store(path):
                pytest.fail("opened")
    finally:
        os.close(held)


@pytest.mark.parametrize("content", [b"", b"12\n", b"no number", b"\xff\xfe\n\xff", b"1\n \n" + b"x" * 5000])
async def test_any_text_in_the_lock_file_is_accepted(path, content):
    """A loss of power may leave anything in it."""
    path.with_name("store.db.lock").write_bytes(content)
    async with open_sqlite_store(path) as store:
        await store.put("key", "value")


@pytest.mark.parametrize("make", ["symlink_to", "hardlink_to"])
async def test_lock_file_that_is_another_file_is_left_alone(path, make):
    """Root writes to the lock file and gives it away."""
    other = path.with_name("other")
    other.write_text("content")
    getattr(path.with_name("store.db.lock"), make)(other)
    with pytest.raises(StoreError, match=r"store\.db"):
        async with open_sqlite_store(path):
            pytest.fail("opened")
    assert other.read_text() == "content"


def test_released_claim_closes_its_descriptors(path):
    before = os.listdir("/dev/fd")
    for _ in range(3):
        claim = Claim(str(path))
        with pytest.raises(StoreError, match="open in this program already"):
            Claim(str(path))
        claim.release()
        claim.release()
    assert os.listdir("/dev/fd") == before
