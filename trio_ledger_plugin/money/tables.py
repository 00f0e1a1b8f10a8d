"""The journal's tables, as steps that upgrade a database of any earlier version.

``lpi_transfers`` is the history: it answers whether a key is known. What is still to be done is in two small tables,
``lpi_to_send`` and ``lpi_to_deliver``, so that work does not become slower as the history grows.

Times named ``age`` and columns that are compared with it are seconds of the ledger's age: the time for which the ledger
was open. Only ``created`` and ``changed`` are times of the system's clock; they are shown and never compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..stores.dialect import SQLITE

if TYPE_CHECKING:
    from ..stores.dialect import Dialect

__all__ = ["COMPONENT", "STEPS", "steps_of"]

COMPONENT: Final = "transfers"

# An earlier version, which used numbers again after a purge and kept its promises in the options.
FIRST: Final = (
    """CREATE TABLE lpi_accounts (
        ledger TEXT NOT NULL,
        account TEXT NOT NULL,
        sent TEXT NOT NULL DEFAULT '0',
        received TEXT NOT NULL DEFAULT '0',
        level TEXT NOT NULL DEFAULT 'plain',
        keys_kept INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (ledger, account)
    ) WITHOUT ROWID""",
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
    """CREATE INDEX lpi_unfinished ON lpi_transfers (ledger, state, account)
        WHERE state IN ('sent', 'in_doubt', 'applied')""",
)

TABLES: Final = (
    # journal: the random id of the ledger's journal.
    # had_handler: whether a money handler was ever registered; not known of a ledger that an earlier version made.
    """CREATE TABLE lpi_ledgers (
        ledger TEXT PRIMARY KEY,
        age {real} NOT NULL,
        journal TEXT NOT NULL,
        had_handler {number} NOT NULL DEFAULT 1
    ){keyed}""",
    # keyed: how many KEYED transfers took part; above 0, the account is at KEYED.
    # level_reset: undoing a transfer up to this number no longer changes keyed: the level was reset after it.
    # keys_kept: how many received transfers are remembered.
    # age: the ledger's age at the account's last transfer.
    # peer_*: the journal that the peer showed last, its age then, and of the KEYED transfers between the two journals:
    # the numbers of the last one sent, the last receipt seen, the last one received, and the last receipt given.
    """CREATE TABLE lpi_accounts (
        ledger TEXT NOT NULL,
        account TEXT NOT NULL,
        sent TEXT NOT NULL DEFAULT '0',
        received TEXT NOT NULL DEFAULT '0',
        in_doubt TEXT NOT NULL DEFAULT '0',
        keyed {number} NOT NULL DEFAULT 0,
        level_reset {number} NOT NULL DEFAULT 0,
        keys_kept {number} NOT NULL DEFAULT 0,
        age {real} NOT NULL DEFAULT 0,
        peer_journal TEXT NOT NULL DEFAULT '',
        peer_age {real} NOT NULL DEFAULT 0,
        peer_sent {number} NOT NULL DEFAULT 0,
        peer_acked {number} NOT NULL DEFAULT 0,
        peer_received {number} NOT NULL DEFAULT 0,
        peer_credited {number} NOT NULL DEFAULT 0,
        PRIMARY KEY (ledger, account)
    ){keyed}""",
    # The same of other journals that an account has shown; age: the ledger's age when another took its place.
    """CREATE TABLE lpi_peers (
        ledger TEXT NOT NULL,
        account TEXT NOT NULL,
        journal TEXT NOT NULL,
        peer_age {real} NOT NULL,
        sent {number} NOT NULL,
        acked {number} NOT NULL,
        received {number} NOT NULL,
        credited {number} NOT NULL,
        age {real} NOT NULL,
        PRIMARY KEY (ledger, account, journal)
    ){keyed}""",
    # origin: the id of the journal that the key belongs to; empty for outgoing transfers.
    # keep_for: for how many seconds the key is remembered once the transfer is final, as promised when it was entered.
    # forget_at: the ledger's age at which it may be forgotten; NULL while that is not known.
    # peer_number, receipt: at KEYED: the numbers that its sender and its receiver gave it; see negotiation.PeerNumbers.
    # peer_journal, resend_until: outgoing at KEYED: the journal that knows the key, and until which of its ages.
    """CREATE TABLE lpi_transfers (
        id {id},
        ledger TEXT NOT NULL,
        account TEXT NOT NULL,
        direction TEXT NOT NULL,
        origin TEXT NOT NULL,
        key TEXT NOT NULL,
        amount TEXT NOT NULL,
        level TEXT NOT NULL,
        state TEXT NOT NULL,
        digest {blob},
        error_code TEXT,
        error_name TEXT,
        error_data {blob},
        created {real} NOT NULL,
        changed {real} NOT NULL,
        keep_for {real} NOT NULL,
        forget_at {real},
        peer_number {number},
        receipt {number},
        peer_journal TEXT,
        resend_until {real},
        UNIQUE (ledger, account, direction, origin, key)
    )""",
    "CREATE INDEX lpi_forgettable ON lpi_transfers (ledger, forget_at, id)",
    "CREATE INDEX lpi_in_doubt ON lpi_transfers (ledger, id) WHERE state = 'in_doubt'",
    # Outgoing transfers in the state SENT; next_try is an age, or "never" while this process is sending them.
    """CREATE TABLE lpi_to_send (
        id {number} PRIMARY KEY,
        ledger TEXT NOT NULL,
        account TEXT NOT NULL,
        next_try {real} NOT NULL,
        tries {number} NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX lpi_next_to_send ON lpi_to_send (ledger, account, next_try, id)",
    # Received transfers that no money handler has finished with.
    """CREATE TABLE lpi_to_deliver (
        id {number} PRIMARY KEY,
        ledger TEXT NOT NULL,
        account TEXT NOT NULL,
        next_try {real} NOT NULL,
        tries {number} NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX lpi_next_to_deliver ON lpi_to_deliver (ledger, account, next_try, id)",
)

# Transfers that were not answered become IN_DOUBT: the earlier version did not record which journal knows their keys.
# What the earlier version promised is not recorded either, so what was received is remembered for the longest time.
# Nor did it count the transfers at KEYED: undoing one of them does not change the level.
UPGRADE: Final = (
    "DROP INDEX lpi_unfinished",
    "DELETE FROM lpi_transfers WHERE direction = 'in' AND level = 'plain' AND state <> 'applied'",
    "ALTER TABLE lpi_ledgers RENAME TO lpi_ledgers_1",
    "ALTER TABLE lpi_accounts RENAME TO lpi_accounts_1",
    "ALTER TABLE lpi_transfers RENAME TO lpi_transfers_1",
    *(SQLITE.table(text) for text in TABLES),
    """INSERT INTO lpi_ledgers (ledger, age, journal)
        SELECT ledger, max(age), lower(hex(randomblob(16))) FROM (
            SELECT ledger, age FROM lpi_ledgers_1
            UNION ALL SELECT ledger, max(remembered_from) FROM lpi_transfers_1 GROUP BY ledger
            UNION ALL SELECT ledger, 0 FROM lpi_accounts_1
        ) GROUP BY ledger""",
    """INSERT INTO lpi_accounts (ledger, account, sent, received, keyed, level_reset, keys_kept)
        SELECT ledger, account, sent, received, CASE level WHEN 'keyed' THEN 1 ELSE 0 END, (
            SELECT coalesce(max(id), 0) FROM lpi_transfers_1
        ), (
            SELECT count(*) FROM lpi_transfers_1 AS t
            WHERE t.ledger = a.ledger AND t.account = a.account AND t.direction = 'in'
        ) FROM lpi_accounts_1 AS a""",
    """INSERT INTO lpi_accounts (ledger, account, in_doubt)
        SELECT ledger, account, lpi_sum(amount) FROM lpi_transfers_1 WHERE state IN ('sent', 'in_doubt')
        GROUP BY ledger, account
        ON CONFLICT (ledger, account) DO UPDATE SET in_doubt = excluded.in_doubt""",
    """INSERT INTO lpi_transfers
        SELECT id, ledger, account, direction, '', key, amount, level,
            CASE state WHEN 'sent' THEN 'in_doubt' ELSE state END, digest, error_code, error_name, error_data,
            created, changed, CASE direction WHEN 'in' THEN 2592000 ELSE 604800 END,
            CASE WHEN state IN ('sent', 'in_doubt') THEN NULL
                WHEN direction = 'in' THEN remembered_from + 2592000 ELSE remembered_from + 604800 END,
            NULL, NULL, NULL, NULL
        FROM lpi_transfers_1 ORDER BY id""",
    """INSERT INTO lpi_to_deliver (id, ledger, account, next_try)
        SELECT id, ledger, account, 0 FROM lpi_transfers_1 WHERE state = 'applied'""",
    "DROP TABLE lpi_ledgers_1",
    "DROP TABLE lpi_accounts_1",
    "DROP TABLE lpi_transfers_1",
)

STEPS: Final = (FIRST, UPGRADE)


def steps_of(dialect: Dialect) -> tuple[tuple[str, ...], ...]:
    """Return the steps for a database; only SQLite has tables of the earlier version."""
    return STEPS if dialect is SQLITE else ((), tuple(dialect.table(text) for text in TABLES))
