"""The outgoing transfers of a journal, in SQL.

Invariant: a transfer in the state SENT has a row in ``lpi_to_send`` with the age of its next try, or with
``BEING_SENT`` while this process is sending it.

Every method runs inside the caller's transaction, on the store's thread.
"""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any, Final

from attrs import define, frozen

from ..errors import MoneyLevelError
from ..stores.steps import IN_TURN, in_steps
from ..transfer import MoneyLevel, Transfer, TransferState, numbered
from .history import read_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ..errors import RemoteError
    from ..negotiation import PeerJournal
    from ..stores.dialect import Connection
    from ..stores.steps import Steps
    from ..transfer import JournalEntry
    from .statements import Statements

__all__ = ["BeingSent", "DueTransfers", "SqlOutgoing"]

LOST_KEYS: Final = (
    "this account is at KEYED, but the peer keeps no transfer keys on this link: it has lost its journal or is another"
    " program; reset the account's level to allow PLAIN"
)
NO_KEYS: Final = "the option money is 'keyed', but the peer keeps no transfer keys on this link"
# Stands for the time of the next try while a running process is sending a transfer; no age is that great.
BEING_SENT: Final = 1e300
PAGE: Final = 500
# How much of an error's data is kept: the peer decides how long it is.
MAX_ERROR_BYTES: Final = 1024


@define
class BeingSent:
    """An outgoing transfer in the journal that this process is sending.

    Attributes:
        number: Its number in the journal.
        transfer: The transfer.
        journal: The id of the peer's journal that its key is known to; empty at PLAIN.
        resend_until: The age of that journal until which it may be sent; 0 at PLAIN.
        tries: How often it was tried since it was last refused for good reason or the link was lost.
    """

    number: int
    transfer: Transfer
    journal: str = ""
    resend_until: float = 0.0
    tries: int = 0


@frozen
class DueTransfers:
    """What is due to be sent again for one account.

    Attributes:
        transfers: The transfers; they count as being sent from now on.
        next_age: The age of the ledger at which more is due; None if nothing waits.
    """

    transfers: list[BeingSent]
    next_age: float | None


class SqlOutgoing:
    """The outgoing transfers of one ledger.

    Args:
        ledger: The ledger's name.
        statements: The SQL.
        age: Returns the ledger's age.
        use_peer: Counts for another journal of an account's peer.
        key_retention: For how many seconds the keys of transfers that are final are kept.
    """

    def __init__(
        self,
        ledger: str,
        statements: Statements,
        age: Callable[[], float],
        use_peer: Callable[[Connection, str, str, float], None],
        key_retention: float,
    ) -> None:
        self._ledger = ledger
        self._sql = statements
        self._age = age
        self._use_peer = use_peer
        self._key_retention = key_retention

    @in_steps
    def begin(
        self,
        connection: Connection,
        transfer: Transfer,
        peer: PeerJournal | None,
        *,
        plain_allowed: bool,
    ) -> Steps[BeingSent | JournalEntry]:
        """Enter a transfer that is about to be sent, or return the entry of the transfer with its key.

        Args:
            connection: The connection, inside a transaction.
            transfer: The transfer; its key is set.
            peer: The peer's journal; None at PLAIN.
            plain_allowed: Whether an account that was never at KEYED may send at PLAIN.

        Raises:
            MoneyLevelError: The transfer is PLAIN, and the account or the options are KEYED.
        """
        if peer is None:
            yield IN_TURN
        place, now = (self._ledger, transfer.account), time()
        refusal = None if peer is not None else self._plain_refusal(connection, transfer.account, plain_allowed)
        if refusal is not None:
            # Before anything is changed: otherwise the other works of the same commit would have to run again.
            known = self.find(connection, transfer.account, str(transfer.key))
            if known is None:
                raise MoneyLevelError(refusal)
            return known
        journal = None if peer is None else peer.id
        # The peer keeps a key from when it receives it; half of that time is a margin for what its journal takes to
        # record its age.
        until = None if peer is None else peer.age() + peer.retention / 2
        what = (transfer.key, transfer.amount, transfer.level.value)
        values = (*place, *what, now, now, self._key_retention, journal, until, *place, journal)
        if peer is None:
            begun = self._begin_plain(connection, transfer, values)
        else:
            begun = yield from self._begin_keyed(connection, transfer, values, peer)
        if begun is None:
            known = self.find(connection, transfer.account, str(transfer.key))
            assert known is not None
            return known
        number, peer_number = begun
        if peer_number is not None:
            transfer = numbered(transfer, peer_number)
        return BeingSent(number, transfer, journal or "", until or 0.0)

    def _plain_refusal(self, connection: Connection, account: str, plain_allowed: bool) -> str | None:
        """Return why nothing may be sent at PLAIN; None if it may."""
        if not plain_allowed:
            return NO_KEYS
        level = connection.execute(self._sql.FIND_LEVEL, (self._ledger, account)).fetchone()
        return LOST_KEYS if level is not None and level[0] else None

    def _begin_plain(
        self, connection: Connection, transfer: Transfer, values: tuple[object, ...]
    ) -> tuple[int, int | None] | None:
        """Enter and count a transfer at PLAIN; return its number and None, or None if its key is known."""
        sql, place = self._sql, (self._ledger, transfer.account)
        entered = self._enter(connection, transfer, values)
        if entered is not None:
            counting = (transfer.amount, self._age(), *place)
            if not connection.execute(sql.BEGIN_PLAIN, counting).rowcount:
                connection.execute(sql.ENTER_ACCOUNT, place)
                if not connection.execute(sql.BEGIN_PLAIN, counting).rowcount:
                    # Another process of the ledger has changed the level since.
                    raise MoneyLevelError(LOST_KEYS)
        return entered

    def _begin_keyed(
        self, connection: Connection, transfer: Transfer, values: tuple[object, ...], peer: PeerJournal
    ) -> Steps[tuple[int, int | None] | None]:
        """Enter and count a transfer at KEYED; return its two numbers, or None if its key is known."""
        sql, place = self._sql, (self._ledger, transfer.account)
        counting = (transfer.amount, self._age(), *place, peer.id)
        entered: tuple[int, int | None] | None
        if sql.joined is not None:
            entered = (yield sql.joined.BEGIN_KEYED, (*values, *counting, *place, BEING_SENT)).fetchone()
        else:
            yield IN_TURN
            entered = self._enter(connection, transfer, values)
            if entered is not None and entered[1] is not None:
                connection.execute(sql.BEGIN_KEYED, counting)
        if entered is None or entered[1] is not None:
            return entered
        # The peer shows this journal for the first time, or again.
        self._use_peer(connection, transfer.account, peer.id, peer.offer.age)
        peer_number = connection.execute(sql.FIND_PEER, place).fetchone()[2] + 1
        connection.execute(sql.SET_NUMBER, (peer_number, entered[0]))
        connection.execute(sql.BEGIN_KEYED, counting)
        return entered[0], peer_number

    def _enter(
        self, connection: Connection, transfer: Transfer, values: tuple[object, ...]
    ) -> tuple[int, int | None] | None:
        entered: tuple[int, int | None] | None = connection.execute(self._sql.ENTER_OUTGOING, values).fetchone()
        if entered is not None:
            connection.execute(self._sql.ENTER_TO_SEND, (entered[0], self._ledger, transfer.account, BEING_SENT))
        return entered

    def find(self, connection: Connection, account: str, key: str) -> JournalEntry | None:
        """Return the outgoing transfer under a key, or None."""
        row = connection.execute(self._sql.FIND_OUTGOING, (self._ledger, account, key)).fetchone()
        return None if row is None else read_entry(row)

    @in_steps
    def answered(
        self, connection: Connection, sent: BeingSent, error: RemoteError | None, receipt: int = 0
    ) -> Steps[TransferState]:
        """Record the peer's reply, and return the state of the transfer, which may have been settled by hand before.

        Args:
            connection: The connection, inside a transaction.
            sent: The transfer.
            error: The error that refuses it; None for an acknowledgement.
            receipt: The acknowledgement's number; 0 if it has none.
        """
        state = TransferState.ACKED if error is None else TransferState.REJECTED
        # A peer may name its error with a NUL character, which not every database can hold.
        refusal: tuple[object, ...] = (None, None, None)
        if error is not None:
            refusal = (_storable(error.code), _storable(error.name), error.data[:MAX_ERROR_BYTES])
        sql, settling = self._sql, (state.value, receipt or None, *refusal, time(), self._age(), sent.number)
        if error is None and sql.joined is not None:
            counting = self._acked_values(sent.transfer, sent.journal, receipt)
            settled = (yield sql.joined.ACKED, (*settling, sent.number, *counting)).fetchone()[0]
        else:
            yield IN_TURN
            settled = connection.execute(sql.SETTLE, settling).rowcount
            connection.execute(sql.DROP_TO_SEND, (sent.number,))
            if settled and error is None:
                self.count_acked(connection, sent.transfer, sent.journal, receipt)
            elif settled:
                self.undo_sending(connection, sent.number, sent.transfer)
        row = None if settled else connection.execute(sql.FIND_STATE, (sent.number,)).fetchone()
        return state if row is None else TransferState(row[0])

    def count_acked(self, connection: Connection, transfer: Transfer, journal: str = "", receipt: int = 0) -> None:
        """Count a transfer that the peer has applied.

        Args:
            connection: The connection, inside a transaction.
            transfer: The transfer.
            journal: The peer's journal that has acknowledged it.
            receipt: The acknowledgement's number; 0 if it has none, or if the transfer is settled by hand.
        """
        connection.execute(self._sql.COUNT_ACKED, self._acked_values(transfer, journal, receipt))

    def _acked_values(self, transfer: Transfer, journal: str, receipt: int) -> tuple[object, ...]:
        return (f"-{transfer.amount}", transfer.amount, journal, receipt, receipt, self._ledger, transfer.account)

    def undo_sending(self, connection: Connection, number: int, transfer: Transfer) -> None:
        """Undo what a transfer that was not applied did to its account, the account's level included.

        Args:
            connection: The connection, inside a transaction.
            number: The transfer's number.
            transfer: The transfer.
        """
        keyed = number if transfer.level is MoneyLevel.KEYED else 0
        connection.execute(self._sql.UNDO_SENDING, (f"-{transfer.amount}", keyed, self._ledger, transfer.account))

    def doubt(self, connection: Connection, number: int) -> bool:
        """Record that it is not known whether the peer has applied a transfer; return whether that is new."""
        doubted: int = connection.execute(self._sql.PUT_IN_DOUBT, (time(), number)).rowcount
        connection.execute(self._sql.DROP_TO_SEND, (number,))
        return doubted > 0

    def put_in_doubt(self, connection: Connection, account: str) -> tuple[int, int]:
        """Put every KEYED transfer of an account that is not answered in doubt; return their number and sum."""
        count = amount = 0
        while rows := connection.execute(self._sql.OPEN_KEYED, (self._ledger, account, PAGE)).fetchall():
            for number, each in rows:
                self.doubt(connection, number)
                count, amount = count + 1, amount + int(each)
        return count, amount

    def withdraw(self, connection: Connection, sent: BeingSent) -> bool:
        """Remove a transfer that was certainly not applied, so that its key may be used again.

        Returns:
            False if it was settled by hand meanwhile.
        """
        connection.execute(self._sql.DROP_TO_SEND, (sent.number,))
        if not connection.execute(self._sql.WITHDRAW, (sent.number,)).rowcount:
            return False
        self.undo_sending(connection, sent.number, sent.transfer)
        return True

    def withdraw_new(self, connection: Connection, account: str, key: str) -> None:
        """Remove a transfer that may have been entered in doubt; one that was ever tried, or is older, stays."""
        row = connection.execute(self._sql.FIND_OUTGOING, (self._ledger, account, key)).fetchone()
        if row is not None and connection.execute(self._sql.CLAIM_NEW, (row[0],)).rowcount:
            self.withdraw(connection, _being_sent(row, 0))

    def withdraw_waiting(self, connection: Connection, sent: BeingSent) -> bool:
        """Remove a transfer that waits for its next try; return whether it is removed, now or by an earlier call.

        Returns:
            False if it is being sent or was settled.
        """
        if connection.execute(self._sql.CLAIM_TO_SEND, (sent.number, BEING_SENT)).rowcount:
            return self.withdraw(connection, sent)
        return connection.execute(self._sql.FIND_STATE, (sent.number,)).fetchone() is None

    def postpone(self, connection: Connection, sent: BeingSent, pause: float) -> None:
        """Record that a transfer is sent again after a pause, in seconds."""
        age = self._age()
        connection.execute(self._sql.POSTPONE_SENDING, (age + pause, sent.tries, sent.number))
        # The next process counts the pause from here, however this one ends.
        connection.execute(self._sql.SAVE_AGE, (age, self._ledger, age))

    def take_due(
        self, connection: Connection, account: str, limit: int, being_sent: Collection[str] | None = None
    ) -> DueTransfers:
        """Return the transfers of an account that are due to be sent again, at most ``limit``.

        Args:
            connection: The connection, inside a transaction.
            account: The account.
            limit: How many.
            being_sent: The keys of all transfers that are being sent, if a commit is in doubt that may have taken
                others; these are due again.
        """
        sql, place = self._sql, (self._ledger, account)
        if being_sent is not None:
            for number, level, key in connection.execute(sql.LEASED, (*place, BEING_SENT)).fetchall():
                if level == MoneyLevel.KEYED.value and key not in being_sent:
                    connection.execute(sql.POSTPONE_SENDING, (self._age(), 0, number))
        due = connection.execute(sql.DUE_TO_SEND, (*place, self._age(), limit)).fetchall()
        taken = []
        for number, tries in due:
            connection.execute(sql.LEASE_TO_SEND, (BEING_SENT, number))
            row = connection.execute(sql.FIND_BY_NUMBER, (number,)).fetchone()
            taken.append(_being_sent(row, tries))
        next_age = connection.execute(sql.NEXT_TO_SEND, place).fetchone()[0]
        return DueTransfers(taken, None if next_age is None or next_age >= BEING_SENT else next_age)

    def release(self, connection: Connection, account: str) -> None:
        """Make the transfers of an account due that an earlier sender was sending; doubt those at PLAIN."""
        place = (self._ledger, account)
        for number, level, _ in connection.execute(self._sql.LEASED, (*place, BEING_SENT)).fetchall():
            if level == MoneyLevel.PLAIN.value:
                self.doubt(connection, number)
        connection.execute(self._sql.RELEASE_LEASES, (self._age(), *place, BEING_SENT))


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")


def _being_sent(row: tuple[Any, ...], tries: int) -> BeingSent:
    number, account, _, key, amount, level, *_, peer_number, journal, resend_until = row
    transfer = Transfer(amount, account, key=key, level=MoneyLevel(level), number=peer_number or 0)
    return BeingSent(number, transfer, journal or "", resend_until or 0.0, tries)
