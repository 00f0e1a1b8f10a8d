"""The journal's tables, as steps that upgrade a database of any earlier version."""

from __future__ import annotations

from typing import Final

from .totals import TABLE

__all__ = ["STEPS"]

STEPS: Final = (
    (
        TABLE,
        """CREATE TABLE lpi_ledgers (
            ledger TEXT PRIMARY KEY,
            age REAL NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE lpi_transfers (
            id INTEGER PRIMARY KEY,
            ledger TEXT NOT NULL,
            account TEXT NOT NULL,
            direction TEXT NOT NULL,
            key TEXT NOT NULL,
            amount TEXT NOT NULL,
            level TEXT NOT NULL,
            state TEXT NOT NULL,
            digest BLOB NOT NULL DEFAULT x'',
            error_code TEXT,
            error_name TEXT,
            error_data BLOB,
            created REAL NOT NULL,
            changed REAL NOT NULL,
            remembered_from REAL NOT NULL,
            resend_until REAL,
            UNIQUE (ledger, account, direction, key)
        )""",
        # Only of unfinished transfers, so that its size does not grow with the history.
        """CREATE INDEX lpi_unfinished ON lpi_transfers (ledger, state, account)
            WHERE state IN ('sent', 'in_doubt', 'applied')""",
    ),
)
