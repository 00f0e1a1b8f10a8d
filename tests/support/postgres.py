"""A PostgreSQL server for tests: made by initdb in a temporary folder, reached through a socket there."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import make_conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["REQUIRING", "Server", "UnavailableError", "open_server"]

# With one of these variables in the environment, tests without a server fail instead of being skipped.
REQUIRING = ("CI", "TRIO_LEDGER_PLUGIN_REQUIRE_POSTGRES")
# Where Debian and others keep the programs of the server.
FOLDERS = ("/usr/lib/postgresql", "/usr/pgsql", "/opt/homebrew/opt/postgresql")
STARTING = 60
# With so many bytes free in memory, the data is there: the tests kill processes, and the power stays on.
ROOM = 2 * 1024**3
SETTINGS = {
    "listen_addresses": "''",
    "fsync": "on",
    "synchronous_commit": "on",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "deadlock_timeout": "200ms",
    "max_wal_senders": "6",
    "wal_level": "replica",
    "wal_keep_size": "64MB",
    "autovacuum_naptime": "10s",
}


class UnavailableError(Exception):
    """There is no PostgreSQL on this machine; the text says what is missing."""


def find_programs() -> Path:
    """Return the folder of initdb, pg_ctl and postgres."""
    found = [path.parent for folder in FOLDERS for path in sorted(Path(folder).glob("**/bin/initdb"))]
    found += [Path(program).resolve().parent for program in [shutil.which("initdb")] if program]
    for folder in reversed(found):
        if (folder / "postgres").exists():
            return folder
    raise UnavailableError("not installed: the server of PostgreSQL (Debian: apt-get install postgresql)")


def as_user() -> Sequence[str]:
    """Return the command that runs another as an ordinary user: the server refuses to run as root."""
    if os.getuid():
        return ()
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return ("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups")
    raise UnavailableError("this is root, and there is no user postgres or nobody to run the server as")


class Server:
    """One server; ``open_server()`` starts it.

    Args:
        folder: An empty folder, for its data and its socket.
        port: Distinguishes the sockets of servers; nothing listens on a network.
    """

    def __init__(self, folder: Path, port: int = 5432) -> None:
        self.programs = find_programs()
        self.folder = folder
        self.port = port
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0

    def dsn(self, database: str = "postgres", **more: str) -> str:
        """Return a connection string."""
        return make_conninfo(host=str(self.folder), port=self.port, user="postgres", dbname=database, **more)

    def new_database(self) -> str:
        """Make an empty database, and return its connection string."""
        self._databases += 1
        name = f"test{self._databases}"
        self.execute(f"CREATE DATABASE {name}")
        return self.dsn(name)

    def execute(self, statement: str, dsn: str | None = None) -> list[tuple[object, ...]]:
        """Run a statement, committed at once, and return its rows."""
        with psycopg.connect(dsn or self.dsn(), autocommit=True) as connection:
            done = connection.execute(statement.encode())
            return done.fetchall() if done.description else []

    def run(self, program: str, *args: str, check: bool = True) -> None:
        """Run a program of PostgreSQL."""
        done = subprocess.run(
            [*as_user(), str(self.programs / program), *args],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=STARTING,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout.decode()}")

    def make(self) -> None:
        """Make the data folder."""
        self.run("initdb", "-D", str(self.data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
        self.configure(**SETTINGS, unix_socket_directories=f"'{self.folder}'", port=str(self.port))

    def configure(self, **settings: str) -> None:
        """Add settings to the file; the next start or reload uses them."""
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in settings.items())

    def start(self) -> None:
        """Start it, and return when it accepts connections."""
        with (self.folder / f"log{self.port}").open("ab") as log:
            # Not by pg_ctl: a process whose parent has gone is not reaped in every container, and never seems to end.
            self._process = subprocess.Popen(
                [*as_user(), str(self.programs / "postgres"), "-D", str(self.data)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + STARTING
        while True:
            try:
                self.execute("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it; SIGQUIT ("immediate") is like a loss of power, except that the system's caches stay."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(STARTING)
            self._process = None

    def kill(self) -> None:
        """Kill every process of the server, as the loss of its machine does."""
        processes = self.execute("SELECT pid FROM pg_stat_activity")
        self.stop(signal.SIGKILL)
        for (pid,) in processes:
            with suppress(ProcessLookupError):
                os.kill(int(str(pid)), signal.SIGKILL)

    def reload(self) -> None:
        """Have it read its settings again."""
        self.execute("SELECT pg_reload_conf()")
        time.sleep(0.2)

    def clone(self, port: int, *, name: str) -> Server:
        """Make a standby, which is not started yet."""
        standby = Server(self.folder, port)
        standby.data = self.folder / name
        self.run("pg_basebackup", "-D", str(standby.data), "-d", self.dsn(), "-R", "-c", "fast")
        follow = f"host={self.folder} port={self.port} user=postgres application_name={name}"
        standby.configure(port=str(port), primary_conninfo=f"'{follow}'")
        return standby

    def promote(self) -> None:
        """Make a standby the primary."""
        self.execute("SELECT pg_promote()")


@contextmanager
def open_server(place: Path | None = None) -> Iterator[Server]:
    """Run a server during the block.

    Args:
        place: A directory for its data; by default in memory, or where temporary files are.

    Raises:
        UnavailableError: There is none on this machine.
    """
    user = as_user()
    # A short path: that of a socket has about 100 characters.
    memory = Path("/dev/shm")
    if place is None and memory.is_dir() and shutil.disk_usage(memory).free > ROOM:
        place = memory
    with tempfile.TemporaryDirectory(prefix="lpi-pg-", dir=place, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user:
            owner = int(user[1].partition("=")[2])
            os.chown(folder, owner, -1)
            folder.chmod(0o755)
        server = Server(folder)
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
