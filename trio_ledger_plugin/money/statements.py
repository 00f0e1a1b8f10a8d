"""Every SQL statement of the journal.

Invariant: no statement reads more rows as the history grows. Each is answered by an index, or reads a limited slice of
the history by its numbers; a test asks SQLite for the plan of each. Where a slice is read, ``ledger || ''`` keeps the
planner from using an index with all transfers of the ledger instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..stores.dialect import Dialect

__all__ = ["COLUMNS", "JoinedStatements", "Statements"]

COLUMNS: Final = (
    "id, account, direction, key, amount, level, state, error_code, error_name, error_data, created, changed,"
    " peer_number, peer_journal, resend_until"
)


class Statements:
    """The statements, as a database takes them.

    Args:
        dialect: The database's dialect.
    """

    def __init__(self, dialect: Dialect) -> None:
        _translate(self, Statements, dialect)
        #: What takes the place of several statements; None if the database cannot join them.
        self.joined: JoinedStatements | None = JoinedStatements(dialect) if dialect.joins else None

    # The ledger.

    FIND_LEDGER = "SELECT age, journal FROM lpi_ledgers WHERE ledger = ?"
    ENTER_LEDGER = (
        "INSERT INTO lpi_ledgers (ledger, age, journal, had_handler) VALUES (?, 0, ?, 0) ON CONFLICT DO NOTHING"
    )
    SAVE_AGE = "UPDATE lpi_ledgers SET age = ? WHERE ledger = ? AND age < ?"
    HAD_HANDLER = "SELECT had_handler FROM lpi_ledgers WHERE ledger = ?"
    NOTE_HANDLER = "UPDATE lpi_ledgers SET had_handler = 1 WHERE ledger = ? AND had_handler = 0"
    NEWEST_ACCOUNT_AGE = "SELECT max(age) FROM lpi_accounts WHERE ledger = ?"
    LIST_LEDGERS = "SELECT ledger FROM lpi_ledgers ORDER BY ledger"

    # Accounts.

    ENTER_ACCOUNT = "INSERT INTO lpi_accounts (ledger, account) VALUES (?, ?) ON CONFLICT DO NOTHING"
    FIND_LEVEL = "SELECT keyed FROM lpi_accounts WHERE ledger = ? AND account = ?"
    RESET_LEVEL = (
        "UPDATE lpi_accounts SET keyed = 0, level_reset = (SELECT coalesce(max(id), 0) FROM lpi_transfers)"
        " WHERE ledger = ? AND account = ? AND keyed > 0"
    )
    BEGIN_KEYED = (
        "UPDATE lpi_accounts SET in_doubt = lpi_add(in_doubt, ?), keyed = keyed + 1, peer_sent = peer_sent + 1, age = ?"
        " WHERE ledger = ? AND account = ? AND peer_journal = ?"
    )
    BEGIN_PLAIN = (
        "UPDATE lpi_accounts SET in_doubt = lpi_add(in_doubt, ?), age = ?"
        " WHERE ledger = ? AND account = ? AND keyed = 0"
    )
    COUNT_ACKED = (
        "UPDATE lpi_accounts SET in_doubt = lpi_add(in_doubt, ?), sent = lpi_add(sent, ?),"
        " peer_acked = CASE WHEN peer_journal = ? AND peer_acked < ? THEN ? ELSE peer_acked END"
        " WHERE ledger = ? AND account = ?"
    )
    # What a transfer did that was withdrawn or refused; its number, or 0 at PLAIN.
    UNDO_SENDING = (
        "UPDATE lpi_accounts SET in_doubt = lpi_add(in_doubt, ?),"
        " keyed = CASE WHEN ? > level_reset AND keyed > 0 THEN keyed - 1 ELSE keyed END"
        " WHERE ledger = ? AND account = ?"
    )
    CREDIT_KEYED = (
        "UPDATE lpi_accounts SET received = lpi_add(received, ?), keyed = keyed + 1, keys_kept = keys_kept + 1,"
        " peer_credited = peer_credited + 1,"
        " peer_received = CASE WHEN peer_received < ? THEN ? ELSE peer_received END, age = ?"
        " WHERE ledger = ? AND account = ? AND peer_journal = ? AND keys_kept < ?"
    )
    CREDIT_PLAIN = (
        "UPDATE lpi_accounts SET received = lpi_add(received, ?), keys_kept = keys_kept + ?, age = ?"
        " WHERE ledger = ? AND account = ? AND keyed = 0 AND keys_kept < ?"
    )
    KEEP_KEY = (
        "UPDATE lpi_accounts SET keys_kept = keys_kept + 1, age = ? WHERE ledger = ? AND account = ? AND keys_kept < ?"
    )
    FORGET_KEYS = "UPDATE lpi_accounts SET keys_kept = keys_kept - ? WHERE ledger = ? AND account = ?"
    # What a refused transfer has entered is not kept for longer than the refusal.
    DROP_UNUSED = (
        "DELETE FROM lpi_accounts WHERE ledger = ? AND account = ? AND sent = '0' AND received = '0' AND in_doubt = '0'"
        " AND keyed = 0 AND keys_kept = 0 AND peer_sent = 0 AND peer_acked = 0 AND peer_received = 0"
    )
    FIRST_KEYS = (
        "SELECT account, keys_kept FROM lpi_accounts WHERE ledger = ? AND account >= ? ORDER BY account LIMIT ?"
    )
    LIST_KEYS = "SELECT account, keys_kept FROM lpi_accounts WHERE ledger = ? AND account > ? ORDER BY account LIMIT ?"
    FIND_SUMS = "SELECT sent, received, in_doubt FROM lpi_accounts WHERE ledger = ? AND account = ?"
    FIRST_SUMS = (
        "SELECT account, sent, received, in_doubt, keyed FROM lpi_accounts WHERE ledger = ? AND account >= ?"
        " ORDER BY account LIMIT ?"
    )
    LIST_SUMS = (
        "SELECT account, sent, received, in_doubt, keyed FROM lpi_accounts WHERE ledger = ? AND account > ?"
        " ORDER BY account LIMIT ?"
    )

    # The journals of peers.

    FIND_PEER = (
        "SELECT peer_journal, peer_age, peer_sent, peer_acked, peer_received, peer_credited FROM lpi_accounts"
        " WHERE ledger = ? AND account = ?{lock}"
    )
    SET_PEER = (
        "UPDATE lpi_accounts SET peer_journal = ?, peer_age = ?, peer_sent = ?, peer_acked = ?, peer_received = ?,"
        " peer_credited = ? WHERE ledger = ? AND account = ?"
    )
    FIND_OLDER_PEER = (
        "SELECT peer_age, sent, acked, received, credited FROM lpi_peers"
        " WHERE ledger = ? AND account = ? AND journal = ?"
    )
    LIST_OLDER_PEERS = (
        "SELECT journal, sent, acked, received, credited FROM lpi_peers WHERE ledger = ? AND account = ? LIMIT ?"
    )
    KEEP_OLDER_PEER = (
        "INSERT INTO lpi_peers (ledger, account, journal, peer_age, sent, acked, received, credited, age)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    )
    DROP_OLDER_PEER = "DELETE FROM lpi_peers WHERE ledger = ? AND account = ? AND journal = ?"
    COUNT_PEERS = "SELECT count(*) FROM lpi_peers WHERE ledger = ? AND account = ?"
    DROP_OLDEST_PEERS = (
        "DELETE FROM lpi_peers WHERE ledger = ? AND account = ?"
        " AND age <= (SELECT min(age) FROM lpi_peers WHERE ledger = ? AND account = ?)"
    )
    DROP_OLD_PEERS = "DELETE FROM lpi_peers WHERE ledger = ? AND account = ? AND age < ?"
    LAST_NUMBER = "SELECT max(id) FROM lpi_transfers"
    # The transfers that a peer's journal has lost, in a slice: what it has credited, and what it has sent.
    CREDITS_LOST = (
        "SELECT key, amount FROM lpi_transfers WHERE id > ? AND id <= ? AND ledger || '' = ? AND account = ?"
        " AND direction = 'out' AND peer_journal = ? AND receipt > ? ORDER BY id DESC"
    )
    SENDINGS_LOST = (
        "SELECT key, amount FROM lpi_transfers WHERE id > ? AND id <= ? AND ledger || '' = ? AND account = ?"
        " AND direction = 'in' AND origin = ? AND peer_number > ? AND receipt IS NOT NULL ORDER BY id DESC"
    )

    # Outgoing transfers.

    # One whose peer has shown this journal for the first time gets its number afterwards.
    ENTER_OUTGOING = (
        "INSERT INTO lpi_transfers (ledger, account, direction, origin, key, amount, level, state, created, changed,"
        " keep_for, peer_journal, resend_until, peer_number) VALUES (?, ?, 'out', '', ?, ?, ?, 'sent', ?, ?, ?, ?, ?,"
        " (SELECT peer_sent + 1 FROM lpi_accounts WHERE ledger = ? AND account = ? AND peer_journal = ?{lock}))"
        " ON CONFLICT DO NOTHING RETURNING id, peer_number"
    )
    SET_NUMBER = "UPDATE lpi_transfers SET peer_number = ? WHERE id = ?"
    # Fewer than 0 tries: it was entered and has never waited for another try.
    ENTER_TO_SEND = "INSERT INTO lpi_to_send (id, ledger, account, next_try, tries) VALUES (?, ?, ?, ?, -1)"
    CLAIM_NEW = "DELETE FROM lpi_to_send WHERE id = ? AND tries < 0"
    FIND_OUTGOING = (
        f"SELECT {COLUMNS} FROM lpi_transfers"  # noqa: S608 (constants)
        " WHERE ledger = ? AND account = ? AND direction = 'out' AND origin = '' AND key = ?"
    )
    FIND_STATE = "SELECT state FROM lpi_transfers WHERE id = ?"
    # The sender's and the operator's step, from any state that may become this one.
    SETTLE = (
        "UPDATE lpi_transfers SET state = ?, receipt = ?, error_code = ?, error_name = ?, error_data = ?, changed = ?,"
        " forget_at = ? + keep_for WHERE id = ? AND state IN ('sent', 'in_doubt')"
    )
    PUT_IN_DOUBT = "UPDATE lpi_transfers SET state = 'in_doubt', changed = ? WHERE id = ? AND state = 'sent'"
    WITHDRAW = "DELETE FROM lpi_transfers WHERE id = ? AND state = 'sent'"
    DROP_TO_SEND = "DELETE FROM lpi_to_send WHERE id = ?"
    # Withdrawing waits until the transfer is not being sent.
    CLAIM_TO_SEND = "DELETE FROM lpi_to_send WHERE id = ? AND next_try < ?"
    POSTPONE_SENDING = "UPDATE lpi_to_send SET next_try = ?, tries = ? WHERE id = ?"
    DUE_TO_SEND = (
        "SELECT id, tries FROM lpi_to_send WHERE ledger = ? AND account = ? AND next_try <= ?"
        " ORDER BY next_try, id LIMIT ?"
    )
    NEXT_TO_SEND = "SELECT min(next_try) FROM lpi_to_send WHERE ledger = ? AND account = ?"
    LEASE_TO_SEND = "UPDATE lpi_to_send SET next_try = ? WHERE id = ?"
    RELEASE_LEASES = "UPDATE lpi_to_send SET next_try = ?, tries = 0 WHERE ledger = ? AND account = ? AND next_try >= ?"
    OPEN_KEYED = (
        "SELECT q.id, t.amount FROM lpi_to_send AS q JOIN lpi_transfers AS t ON t.id = q.id"
        " WHERE q.ledger = ? AND q.account = ? AND t.level = 'keyed' ORDER BY q.next_try, q.id LIMIT ?"
    )
    LEASED = (
        "SELECT q.id, t.level, t.key FROM lpi_to_send AS q JOIN lpi_transfers AS t ON t.id = q.id"
        " WHERE q.ledger = ? AND q.account = ? AND q.next_try >= ? ORDER BY q.next_try, q.id"
    )
    ACCOUNTS_TO_SEND = "SELECT min(account) FROM lpi_to_send WHERE ledger = ? AND account > ?"
    ANY_TO_SEND = "SELECT 1 FROM lpi_to_send WHERE ledger = ? AND account = '' LIMIT 1"
    FIND_BY_NUMBER = f"SELECT {COLUMNS} FROM lpi_transfers WHERE id = ?"  # noqa: S608 (constants)

    # Incoming transfers.

    ENTER_INCOMING = (
        "INSERT INTO lpi_transfers (ledger, account, direction, origin, key, amount, level, state, digest, created,"
        " changed, keep_for, forget_at, error_code, error_name, error_data, peer_number, receipt)"
        " VALUES (?, ?, 'in', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
        " (SELECT peer_credited + 1 FROM lpi_accounts WHERE ledger = ? AND account = ? AND peer_journal = ?{lock}))"
        " ON CONFLICT DO NOTHING RETURNING id, receipt"
    )
    SET_RECEIPT = "UPDATE lpi_transfers SET receipt = ? WHERE id = ?"
    FIND_REPLY = (
        "SELECT digest, receipt, error_code, error_name, error_data FROM lpi_transfers"
        " WHERE ledger = ? AND account = ? AND direction = 'in' AND origin = ? AND key = ?"
    )
    ENTER_TO_DELIVER = "INSERT INTO lpi_to_deliver (id, ledger, account, next_try) VALUES (?, ?, ?, ?)"
    DELIVERED = "UPDATE lpi_transfers SET state = 'delivered', changed = ? WHERE id = ? AND state = 'applied'"
    FIND_TO_DELIVER = "SELECT 1 FROM lpi_to_deliver WHERE id = ?"
    DROP_TO_DELIVER = "DELETE FROM lpi_to_deliver WHERE id = ?"
    DROP_TRANSFER = "DELETE FROM lpi_transfers WHERE id = ?"
    POSTPONE_DELIVERY = "UPDATE lpi_to_deliver SET next_try = ?, tries = tries + 1 WHERE id = ?"
    DUE_TO_DELIVER = (
        "SELECT q.id, q.tries, t.amount, t.key, t.level, t.origin"
        " FROM lpi_to_deliver AS q JOIN lpi_transfers AS t ON t.id = q.id"
        " WHERE q.ledger = ? AND q.account = ? AND q.next_try <= ? ORDER BY q.next_try, q.id LIMIT ?"
    )
    NEXT_TO_DELIVER = (
        "SELECT next_try FROM lpi_to_deliver WHERE ledger = ? AND account = ? AND next_try > ?"
        " ORDER BY next_try LIMIT 1"
    )
    ACCOUNTS_TO_DELIVER = "SELECT min(account) FROM lpi_to_deliver WHERE ledger = ? AND account > ?"
    ANY_TO_DELIVER = "SELECT 1 FROM lpi_to_deliver WHERE ledger = ? AND account = '' LIMIT 1"

    # Reading and forgetting.

    FORGETTABLE = (
        "SELECT id, account, direction, state, level, forget_at FROM lpi_transfers"
        " WHERE ledger = ? AND (forget_at, id) > (?, ?) AND forget_at < ?"
        " ORDER BY forget_at, id LIMIT ?"
    )
    SLICE_FROM = "SELECT min(id) FROM lpi_transfers WHERE id > ?"
    SLICE = f"SELECT {COLUMNS} FROM lpi_transfers WHERE id > ? AND id <= ? AND ledger || '' = ? ORDER BY id"  # noqa: S608
    IN_DOUBT = (
        f"SELECT {COLUMNS} FROM lpi_transfers"  # noqa: S608 (constants)
        " WHERE ledger = ? AND state = 'in_doubt' AND id > ? ORDER BY id LIMIT ?"
    )


class JoinedStatements:
    """Statements that change several tables, for a database that is reached over a network.

    Each does what its parts do one after another; what depends on the first does nothing if that has changed nothing.

    Args:
        dialect: The database's dialect.
    """

    def __init__(self, dialect: Dialect) -> None:
        _translate(self, JoinedStatements, dialect)

    # The number of the new transfer and the one that the peer knows it by; no row if its key is known.
    BEGIN_KEYED = (
        f"WITH entered AS ({Statements.ENTER_OUTGOING}),"  # noqa: S608 (constants)
        f" counted AS ({Statements.BEGIN_KEYED} AND EXISTS (SELECT 1 FROM entered)),"
        " waiting AS (INSERT INTO lpi_to_send (id, ledger, account, next_try, tries)"
        " SELECT id, ?, ?, ?, -1 FROM entered)"
        " SELECT id, peer_number FROM entered"
    )
    # The number of the new transfer, the one of its receipt, and whether it is counted; no row if its key is known.
    CREDIT_KEYED = (
        f"WITH entered AS ({Statements.ENTER_INCOMING}),"  # noqa: S608 (constants)
        f" counted AS ({Statements.CREDIT_KEYED} AND EXISTS (SELECT 1 FROM entered) RETURNING 1),"
        " waiting AS (INSERT INTO lpi_to_deliver (id, ledger, account, next_try)"
        " SELECT id, ?, ?, ? FROM entered WHERE ? = 'applied')"
        " SELECT id, receipt, (SELECT count(*) FROM counted) FROM entered"
    )
    # Returns whether it was settled.
    ACKED = (
        f"WITH settled AS ({Statements.SETTLE} RETURNING 1), dropped AS ({Statements.DROP_TO_SEND}),"  # noqa: S608
        f" counted AS ({Statements.COUNT_ACKED} AND EXISTS (SELECT 1 FROM settled))"
        " SELECT count(*) FROM settled"
    )
    DELIVERED = f"WITH dropped AS ({Statements.DROP_TO_DELIVER}) {Statements.DELIVERED}"


def _translate(statements: Statements | JoinedStatements, texts: type, dialect: Dialect) -> None:
    for name, text in vars(texts).items():
        if isinstance(text, str) and name.isupper():
            setattr(statements, name, dialect.statement(text))
