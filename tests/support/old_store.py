"""A store as a server has it after a week of payments: many remembered transfers, and an age of eight days."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from support.ledgers import DAY, WEEK
from trio_ledger_plugin.money.room import Room
from trio_ledger_plugin.money.sql import SqlJournal
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.dialect import SQLITE

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

__all__ = ["AGE", "OWN", "PEER", "fill", "make_old_store"]

AGE = 8.0 * DAY
#: The ids of the ledger's journal, and of that of the account's peer.
OWN, PEER = "a" * 32, "b" * 32

NUMBERS = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :rows)"
ROWS = f"""INSERT INTO lpi_transfers (ledger, account, direction, origin, key, amount, level, state, digest, created,
        changed, keep_for, forget_at, peer_number, receipt, peer_journal, resend_until)
    {NUMBERS}
    SELECT :ledger, :account, iif(i % 2, 'in', 'out'), iif(i % 2, :peer, ''), lower(hex(randomblob(16))), '7', 'keyed',
        iif(i % 2, 'delivered', 'acked'), iif(i % 2, randomblob(32), x''), 1700000000.0 + i, 1700000001.0 + i,
        :keep_for, iif(i < :over, :age * i / :rows, :age + 1 + :keep_for * i / :rows), i / 2 + 1, i / 2 + 1,
        iif(i % 2, NULL, :peer), iif(i % 2, NULL, :age)
    FROM n"""  # noqa: S608 (constants)
ACCOUNT = """UPDATE lpi_accounts SET sent = CAST(7 * (:rows - :rows / 2) AS TEXT),
    received = CAST(7 * (:rows / 2) AS TEXT),
    keyed = :rows, keys_kept = :rows / 2, age = :age, peer_journal = :peer, peer_age = 1000,
    peer_sent = :rows - :rows / 2, peer_acked = :rows - :rows / 2, peer_received = :rows / 2, peer_credited = :rows / 2
    WHERE ledger = :ledger AND account = :account"""


def fill(
    connection: sqlite3.Connection,
    rows: int,
    *,
    ledger: str = "main",
    account: str = "",
    over: int = 0,
    own: str = OWN,
    peer: str = PEER,
) -> None:
    """Enter transfers that are remembered, half of them outgoing.

    Args:
        connection: The store's connection, inside a transaction.
        rows: How many.
        ledger: The ledger.
        account: The account.
        over: How many of them may be forgotten already.
        own: The id of the ledger's journal.
        peer: The id of the peer's journal.
    """
    journal = SqlJournal(ledger, SQLITE, room=Room(), key_retention=WEEK, promised=WEEK)
    journal.open(connection, settle=True)
    connection.execute("UPDATE lpi_ledgers SET age = ?, journal = ? WHERE ledger = ?", (AGE, own, ledger))
    connection.execute("INSERT INTO lpi_accounts (ledger, account) VALUES (?, ?)", (ledger, account))
    values = {"rows": rows, "ledger": ledger, "account": account, "over": over}
    values |= {"age": AGE, "keep_for": WEEK, "peer": peer}
    connection.execute(ROWS, values)
    connection.execute(ACCOUNT, values)


async def make_old_store(path: Path, rows: int, **which: Any) -> None:
    """Make a store with remembered transfers, and close it in order; ``fill()`` documents the arguments."""
    async with open_sqlite_store(path) as store:
        await store.transaction(partial(fill, rows=rows, **which))
