"""The totals of each account: what it has sent and received, its level, and how many keys are kept for it.

Invariant: sums are whole numbers of any size. They are stored as text and added exactly, because SQLite's integers end
at 2**63.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..transfer import MoneyLevel

if TYPE_CHECKING:
    import sqlite3

__all__ = ["AccountTotals"]

TABLE: Final = """CREATE TABLE lpi_accounts (
    ledger TEXT NOT NULL,
    account TEXT NOT NULL,
    sent TEXT NOT NULL DEFAULT '0',
    received TEXT NOT NULL DEFAULT '0',
    level TEXT NOT NULL DEFAULT 'plain',
    keys_kept INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (ledger, account)
) WITHOUT ROWID"""


class AccountTotals:
    """The accounts of one ledger.

    Args:
        ledger: The name of the ledger, which distinguishes its rows from those of others in the same database.
        max_keys: How many incoming transfers are kept for an account.
    """

    def __init__(self, ledger: str, *, max_keys: int) -> None:
        self._ledger = ledger
        self._max_keys = max_keys

    def credit(self, connection: sqlite3.Connection, account: str, amount: str, level: MoneyLevel) -> bool:
        """Credit an incoming transfer whose key is kept from now on; return False if no more keys can be kept.

        An account that receives at KEYED stays at KEYED from then on.
        """
        credit = (
            "UPDATE lpi_accounts SET received = lpi_add(received, ?), keys_kept = keys_kept + 1,"
            " level = CASE ? WHEN 'keyed' THEN 'keyed' ELSE level END"
            " WHERE ledger = ? AND account = ? AND keys_kept < ?"
        )
        values = (amount, level.value, self._ledger, account, self._max_keys)
        if connection.execute(credit, values).rowcount:
            return True
        self._enter(connection, account)
        return connection.execute(credit, values).rowcount > 0

    def take_back(self, connection: sqlite3.Connection, account: str, amount: str) -> None:
        """Undo the credit of a transfer that the handler then refused."""
        self._add(connection, account, "received", f"-{amount}")

    def count_sent(self, connection: sqlite3.Connection, account: str, amount: str) -> None:
        """Add a transfer that the peer has acknowledged to the sum of what was sent."""
        if not self._add(connection, account, "sent", amount):
            self._enter(connection, account)
            self._add(connection, account, "sent", amount)

    def _add(self, connection: sqlite3.Connection, account: str, column: str, amount: str) -> bool:
        """Add to a sum; return False if the account has no row yet."""
        added = connection.execute(
            f"UPDATE lpi_accounts SET {column} = lpi_add({column}, ?) WHERE ledger = ? AND account = ?",  # noqa: S608 (constants)
            (amount, self._ledger, account),
        )
        return added.rowcount > 0

    def forget_keys(self, connection: sqlite3.Connection, account: str, number: int) -> None:
        """Subtract transfers that were removed from the number of kept keys."""
        connection.execute(
            "UPDATE lpi_accounts SET keys_kept = keys_kept - ? WHERE ledger = ? AND account = ?",
            (number, self._ledger, account),
        )

    def level(self, connection: sqlite3.Connection, account: str) -> MoneyLevel:
        """Return an account's level: KEYED once it has been at KEYED, until it is reset."""
        row = connection.execute(
            "SELECT level FROM lpi_accounts WHERE ledger = ? AND account = ?", (self._ledger, account)
        ).fetchone()
        return MoneyLevel.PLAIN if row is None else MoneyLevel(row[0])

    def set_level(self, connection: sqlite3.Connection, account: str, level: MoneyLevel) -> None:
        """Set an account's level."""
        self._enter(connection, account)
        connection.execute(
            "UPDATE lpi_accounts SET level = ? WHERE ledger = ? AND account = ?", (level.value, self._ledger, account)
        )

    def sums(self, connection: sqlite3.Connection, account: str | None) -> tuple[int, int]:
        """Return the sums of what was sent and acknowledged and of what was received, for one account or for all."""
        rows = connection.execute(
            "SELECT sent, received FROM lpi_accounts WHERE ledger = ? AND (? IS NULL OR account = ?)",
            (self._ledger, account, account),
        ).fetchall()
        return sum(int(sent) for sent, _ in rows), sum(int(received) for _, received in rows)

    def _enter(self, connection: sqlite3.Connection, account: str) -> None:
        connection.execute(
            "INSERT INTO lpi_accounts (ledger, account) VALUES (?, ?) ON CONFLICT DO NOTHING", (self._ledger, account)
        )
