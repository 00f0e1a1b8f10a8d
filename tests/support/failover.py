"""Two PostgreSQL servers that replicate synchronously: when the primary is lost, its standby takes its place."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from signal import SIGQUIT
from typing import TYPE_CHECKING

from psycopg.conninfo import make_conninfo

from support.postgres import STARTING, open_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Server

__all__ = ["Cluster", "open_cluster"]

PORTS = 5432, 5433
# The standby's name is that of its folder. Without a standby every commit waits, so that nothing is ever told that one
# server alone has: Patroni's synchronous_mode_strict.
SETTINGS = {
    "synchronous_standby_names": "'" + ", ".join(f"server{port}" for port in PORTS) + "'",
    # A standby connects again at once after its connection was terminated.
    "wal_retrieve_retry_interval": "100ms",
}


class Cluster:
    """A primary and its standby; ``open_cluster()`` makes it.

    Args:
        primary: A server that has the settings of a cluster, at the first of the ports.
    """

    def __init__(self, primary: Server) -> None:
        self.primary = primary
        self._standby = self._make_standby(PORTS[1])

    def dsn(self, database: str) -> str:
        """Return a connection string with both hosts; the one that can be written to is used."""
        return make_conninfo(
            host=",".join([str(self.primary.folder)] * len(PORTS)),
            port=",".join(map(str, PORTS)),
            user="postgres",
            dbname=database,
            target_session_attrs="read-write",
        )

    def fail_over(self) -> None:
        """Lose the primary, promote its standby, and make a new standby in the place of the lost server."""
        lost = self.primary
        lost.kill()
        self._standby.promote()
        self.primary = self._standby
        self._standby = self._make_standby(lost.port)

    def _make_standby(self, port: int) -> Server:
        """Return when every commit of the primary waits for a new standby."""
        name = f"server{port}"
        shutil.rmtree(self.primary.folder / name, ignore_errors=True)
        standby = self.primary.clone(port, name=name)
        standby.start()
        deadline = time.monotonic() + STARTING
        while not self.primary.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
            if time.monotonic() > deadline:
                raise RuntimeError("the standby does not follow its primary")
            time.sleep(0.02)
        return standby

    def stop(self) -> None:
        """Stop both."""
        self.primary.stop(SIGQUIT)
        self._standby.stop(SIGQUIT)


@contextmanager
def open_cluster() -> Iterator[Cluster]:
    """Run a cluster during the block.

    Raises:
        UnavailableError: There is no PostgreSQL on this machine.
    """
    with open_server() as server:
        server.configure(**SETTINGS)
        server.reload()
        cluster = Cluster(server)
        try:
            yield cluster
        finally:
            cluster.stop()
