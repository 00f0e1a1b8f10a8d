"""The journal of transfers in SQL: the state of every transfer, without Trio.

Invariants: the journal holds an outgoing transfer from before its first byte is sent, and an incoming one from the
moment that it is applied, until its key may be forgotten. An account's totals change in the same transaction as the
state of the transfer. Nothing that decides about money is kept in memory: the age of the ledger and what is still to be
done are in the database. Amounts are whole numbers of any size, stored as text and summed exactly.

Every method runs inside the caller's transaction, on the store's thread. Each first reads the current state, so that
running it again after a failed commit does no harm.

The states of an outgoing transfer, and of an incoming one (``transfer.TRANSITIONS``)::

    SENT ── answered ──> ACKED or REJECTED        APPLIED ── the money handler has finished ──> DELIVERED
      └── outcome unknown ──> IN_DOUBT            REFUSED, by a handler within the transaction
            └── confirm, reject ──> ACKED or REJECTED
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING
from uuid import uuid4

from ..stores.schema import migrate
from .history import SqlHistory
from .incoming import SqlIncoming
from .outgoing import SqlOutgoing
from .peers import SqlPeers
from .statements import Statements
from .tables import COMPONENT, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..stores.dialect import Connection, Dialect
    from .room import Room

__all__ = ["SqlJournal"]


class SqlJournal:
    """The transfers of one ledger.

    Args:
        ledger: The name of the ledger, which distinguishes its rows from those of others in the same database.
        dialect: The database's dialect.
        room: How much the ledger may keep.
        key_retention: For how many seconds the keys of outgoing transfers are kept.
        promised: For how many seconds the keys of incoming transfers are kept, as peers are told.
        clock: Returns a time in seconds that cannot be set; called from any thread.
    """

    def __init__(
        self,
        ledger: str,
        dialect: Dialect,
        *,
        room: Room,
        key_retention: float,
        promised: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.ledger: str = ledger
        self._dialect = dialect
        self._clock = clock
        self._sql = sql = Statements(dialect)
        self._opened_at: float | None = None
        self._age_at_rest = 0.0
        #: The recorded age when the journal was opened.
        self.age_at_opening: float = 0.0
        #: The random id of the journal; empty until it is open.
        self.id: str = ""
        self.peers: SqlPeers = SqlPeers(ledger, sql, self.age, lambda: self.id, self._put_in_doubt, room)
        use = self.peers.use
        self.outgoing: SqlOutgoing = SqlOutgoing(ledger, sql, self.age, use, key_retention)
        self.room: Room = room
        self.incoming: SqlIncoming = SqlIncoming(ledger, sql, self.age, use, room=room, promised=promised)
        self.history: SqlHistory = SqlHistory(
            ledger,
            sql,
            self.age,
            room,
            undo_sending=self.outgoing.undo_sending,
            count_acked=self.outgoing.count_acked,
        )

    def reset_level(self, connection: Connection, account: str) -> None:
        """Set an account's level to PLAIN again; its KEYED transfers without a reply are in doubt.

        Raises:
            InvalidFieldsError: The account is not known or not at KEYED; nothing has changed.
        """
        self.history.reset_level(connection, account)
        self.outgoing.put_in_doubt(connection, account)

    def _put_in_doubt(self, connection: Connection, account: str) -> tuple[int, int]:
        return self.outgoing.put_in_doubt(connection, account)

    def open(self, connection: Connection, *, settle: bool) -> set[str]:
        """Create or upgrade the tables, and return the accounts with transfers to send again.

        Args:
            connection: The connection, inside a transaction.
            settle: Whether this process is the only one that sends the ledger's transfers, so that transfers that
                were being sent belong to an earlier one: they become IN_DOUBT at PLAIN, and are due at KEYED.
        """
        sql = self._sql
        migrate(connection, COMPONENT, steps_of(self._dialect), self._dialect)
        connection.execute(sql.ENTER_LEDGER, (self.ledger, uuid4().hex))
        age, self.id = connection.execute(sql.FIND_LEDGER, (self.ledger,)).fetchone()
        newest = connection.execute(sql.NEWEST_ACCOUNT_AGE, (self.ledger,)).fetchone()[0]
        # After a disconnect(), this process may know an age that it has not recorded.
        self.age_at_opening = max(age, newest or 0.0, self._age_at_rest if self._opened_at is None else self.age())
        self._opened_at = self._clock()
        if settle:
            self.save_age(connection)
            for account in self._accounts_to_send(connection):
                self.outgoing.release(connection, account)
        return set(self._accounts_to_send(connection))

    def age(self) -> float:
        """Return the age of the ledger in seconds: for how long it was open, in all processes together."""
        opened_at = self._opened_at
        # A job may come to its turn after the plugin has ended.
        return self._age_at_rest if opened_at is None else self.age_at_opening + max(0.0, self._clock() - opened_at)

    def rest(self) -> None:
        """Stop ageing: another plugin may open the ledger."""
        if self._opened_at is not None:
            self._age_at_rest = self.age()
            self._opened_at = None

    def save_age(self, connection: Connection) -> float:
        """Record the ledger's age, and return it."""
        age = self.age()
        connection.execute(self._sql.SAVE_AGE, (age, self.ledger, age))
        return age

    def _accounts_to_send(self, connection: Connection) -> list[str]:
        return self._accounts_in(connection, self._sql.ANY_TO_SEND, self._sql.ACCOUNTS_TO_SEND)

    def accounts_to_deliver(self, connection: Connection) -> list[str]:
        """Return the accounts with credited transfers that no money handler has finished with."""
        return self._accounts_in(connection, self._sql.ANY_TO_DELIVER, self._sql.ACCOUNTS_TO_DELIVER)

    def _accounts_in(self, connection: Connection, first: str, following: str) -> list[str]:
        """Return the accounts in a queue; each is found by an index, however many transfers it has there."""
        # A plugin with one peer has an account without a name, and no name comes before it.
        accounts = [""] if connection.execute(first, (self.ledger,)).fetchone() is not None else []
        account = ""
        while (account := connection.execute(following, (self.ledger, account)).fetchone()[0]) is not None:
            accounts.append(account)
        return accounts
