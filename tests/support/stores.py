"""Programs that have a store open, and the files of a store."""

import subprocess
import sys
import threading
from contextlib import asynccontextmanager

import trio

from support.programs import PATIENCE

HOLDER = """
import sys, trio
from trio_ledger_plugin.stores import open_sqlite_store

async def main():
    async with open_sqlite_store(sys.argv[1]) as store:
        print("open", flush=True)
        n = 0
        while sys.argv[2] == "write":
            async with trio.open_nursery() as nursery:
                for i in range(n, n + 7):
                    nursery.start_soon(put, store, i)
            n += 7
        await trio.sleep_forever()

async def put(store, i):
    await store.put(str(i), "value" * 50)
    print(i, flush=True)

trio.run(main)
"""


@asynccontextmanager
async def holder(path, what):
    """Run a process that opens the file, and writes if ``what`` is "write"; the block begins once it is open."""
    line = b""
    with trio.fail_after(PATIENCE):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", HOLDER, str(path), what], stdout=subprocess.PIPE
        )
        try:
            assert process.stdout is not None
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some(1)
            assert line == b"open\n"
            yield process
        finally:
            process.kill()
            with trio.move_on_after(PATIENCE, shield=True):
                await process.wait()
            if process.stdout is not None:
                await trio.aclose_forcefully(process.stdout)


@asynccontextmanager
async def hold_thread(store):
    """Keep the store's thread busy until the block ends, so that calls made in it wait together."""
    begun, over, token = trio.Event(), threading.Event(), trio.lowlevel.current_trio_token()

    def work(_connection):
        token.run_sync_soon(begun.set)
        assert over.wait(PATIENCE)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.transaction, work)
        try:
            await begun.wait()
            yield
        finally:
            over.set()


def read_files(path):
    """Return the content of a database, of its log and of what else is beside it, except for the index and the lock."""
    return {
        file.name: file.read_bytes()
        for file in path.parent.iterdir()
        if file.name.startswith(path.name) and not file.name.endswith(("-shm", ".lock"))
    }


def list_files(path):
    """Return the names of a database and of what is beside it."""
    return sorted(file.name for file in path.parent.iterdir() if file.name.startswith(path.name))
