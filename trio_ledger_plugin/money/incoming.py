"""The incoming transfers of a journal, in SQL.

Invariant: a credited transfer that no money handler has finished with has a row in ``lpi_to_deliver`` with the age at
which the handler is called next.

Every method runs inside the caller's transaction, on the store's thread.
"""

from __future__ import annotations

from json import loads
from time import time
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import frozen

from ..errors import DuplicateIdError, LedgerPluginError, NotAcceptedError, UnreachableError, wire_error
from ..stores.steps import IN_TURN, finish, in_steps
from ..transfer import MoneyLevel, Receipt, Transfer, TransferState
from .room import UNLIMITED, drop_unused

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..stores.dialect import Connection
    from ..stores.steps import Steps
    from .room import Room
    from .statements import Statements

    Apply: TypeAlias = Callable[[Connection, Transfer], LedgerPluginError | None]

__all__ = ["Credited", "NoRoomError", "Received", "SqlIncoming"]

LOST_KEYS: Final = (
    "this account is at KEYED, but this transfer has no key: the other end has lost its journal or is another program;"
    " reset the account's level to allow PLAIN"
)
NO_KEYS: Final = "money is accepted at KEYED only"
# No journal has this id.
NO_JOURNAL: Final = " "
# For how many seconds a received PLAIN transfer stays that is delivered at once: until its commit is certain.
PLAIN_SECONDS: Final = 60.0


class NoRoomError(UnreachableError):
    """Refuses a transfer that would have to be remembered although too much is remembered already."""

    name: str = UnreachableError.name


class _StoredRefusalError(LedgerPluginError):
    """The refusal of an earlier reply, for a transfer that the peer sends again."""

    code: str  # type: ignore[misc]  # one class for all codes

    def __init__(self, code: str, name: str, message: str) -> None:
        super().__init__(message)
        self.code, self.name = code, name


@frozen
class Credited:
    """A credited transfer that a money handler has to be called for.

    Attributes:
        number: Its number in the journal.
        transfer: The transfer.
        tries: How often the handler has failed.
    """

    number: int
    transfer: Transfer
    tries: int = 0


@frozen
class Received:
    """What became of a received transfer.

    Attributes:
        refusal: Why it is refused; None if it is credited, now or earlier.
        receipt: The number of the receipt, if it is credited at KEYED.
        credited: The transfer, if it was credited now and waits for the money handler.
    """

    refusal: LedgerPluginError | None = None
    receipt: int | None = None
    credited: Credited | None = None

    def reply_to(self, transfer: Transfer) -> LedgerPluginError | Receipt | None:
        """Return what the sender of the transfer is told; it gets a receipt if it numbers its transfers."""
        if self.refusal is not None or self.receipt is None or not transfer.number:
            return self.refusal
        return Receipt.of(self.receipt)


class SqlIncoming:
    """The incoming transfers of one ledger.

    Args:
        ledger: The ledger's name.
        statements: The SQL.
        age: Returns the ledger's age.
        use_peer: Counts for another journal of an account's peer.
        room: How much the ledger may keep.
        promised: For how many seconds keys are kept, as peers are told.
    """

    def __init__(
        self,
        ledger: str,
        statements: Statements,
        age: Callable[[], float],
        use_peer: Callable[[Connection, str, str, float], None],
        *,
        room: Room,
        promised: float,
    ) -> None:
        self._ledger = ledger
        self._sql = statements
        self._age = age
        self._use_peer = use_peer
        self._room = room
        self._promised = promised

    @in_steps
    def receive(
        self,
        connection: Connection,
        transfer: Transfer,
        apply: Apply | None,
        *,
        plain_allowed: bool,
    ) -> Steps[Received]:
        """Credit a transfer once, or refuse it.

        A transfer that was received before gets the same reply as then. A temporary refusal (a code that begins with T)
        is not recorded.

        Args:
            connection: The connection, inside a transaction.
            transfer: The transfer that the peer sent; its key is set.
            apply: Calls the transactional money handler and returns its refusal or None. If None, the transfer waits
                for the money handler.
            plain_allowed: Whether an account that was never at KEYED may receive at PLAIN.
        """
        if transfer.level is MoneyLevel.PLAIN and not plain_allowed:
            return Received(NotAcceptedError(NO_KEYS))
        if apply is None:
            return (yield from self._credit(connection, transfer, delivered=False))
        yield IN_TURN
        connection.execute("SAVEPOINT lpi_receive")
        received = finish(self._credit(connection, transfer, delivered=True), connection)
        if received.credited is not None:
            refusal = apply(connection, transfer)
            received = Received(refusal, received.receipt)
            if refusal is not None:
                # Everything that it did is undone, the account's level included.
                connection.execute("ROLLBACK TO lpi_receive")
                self._count_undone(connection, transfer)
                self._keep_refusal(connection, transfer, refusal)
        connection.execute("RELEASE lpi_receive")
        return received

    def _credit(self, connection: Connection, transfer: Transfer, *, delivered: bool) -> Steps[Received]:
        keyed = transfer.level is MoneyLevel.KEYED
        if not keyed or self._sql.joined is None:
            yield IN_TURN
        # A PLAIN transfer has no key that anybody could send again: it counts while it waits for the handler.
        kept = 0 if delivered and not keyed else 1
        limit = self._room.for_account if kept else UNLIMITED
        # Counted before it is credited: works that are sent together must not all count on the same room.
        self._room.add(connection, transfer.account, keys=kept)
        received: Received | None = None
        try:
            received = yield from self._credit_within(connection, transfer, kept, limit, delivered=delivered)
            return received
        finally:
            if received is None or received.credited is None:
                self._room.add(connection, transfer.account, keys=-kept)

    def _credit_within(
        self, connection: Connection, transfer: Transfer, kept: int, limit: int, *, delivered: bool
    ) -> Steps[Received]:
        """Credit a transfer to an account that may keep so many."""
        sql, place = self._sql, (self._ledger, transfer.account)
        age, keyed = self._age(), transfer.level is MoneyLevel.KEYED
        state = TransferState.DELIVERED if delivered else TransferState.APPLIED
        forget_at = age + (self._promised if keyed or not delivered else PLAIN_SECONDS)
        entering = self._values(transfer, state, forget_at, None)
        waiting = (*place, age)
        if keyed:
            credit = sql.CREDIT_KEYED
            crediting: tuple[object, ...] = (
                *(transfer.amount, transfer.number, transfer.number, age, *place, transfer.journal, limit),
            )
        else:
            credit, crediting = sql.CREDIT_PLAIN, (transfer.amount, kept, age, *place, limit)
        if keyed and sql.joined is not None:
            values = (*entering, *crediting, *waiting, state.value)
            row = (yield sql.joined.CREDIT_KEYED, values).fetchone()
            number, receipt, credited = row or (None, None, 0)
        else:
            number, receipt = self._enter(connection, entering) or (None, None)
            credited = 0
            if number is not None:
                credited = connection.execute(credit, crediting).rowcount
                if not delivered:
                    connection.execute(sql.ENTER_TO_DELIVER, (number, *waiting))
        if number is None:
            return self._repeat_reply(connection, transfer)
        refusal = None if credited else self._credit_again(connection, transfer, credit, crediting)
        if refusal is not None:
            connection.execute(sql.DROP_TO_DELIVER, (number,))
            connection.execute(sql.DROP_TRANSFER, (number,))
            drop_unused(connection, sql, place, self._room)
            return Received(refusal)
        if keyed and receipt is None:
            # The peer shows this journal for the first time, or again.
            receipt = connection.execute(sql.FIND_PEER, place).fetchone()[5]
            connection.execute(sql.SET_RECEIPT, (receipt, number))
        return Received(None, receipt, Credited(number, transfer))

    def _values(
        self, transfer: Transfer, state: TransferState, forget_at: float | None, refusal: LedgerPluginError | None
    ) -> tuple[object, ...]:
        """Return the values with which a received transfer is entered; one that is refused gets no receipt."""
        now, place = time(), (self._ledger, transfer.account)
        error = (None, None, None) if refusal is None else wire_error(refusal)
        credited_from = transfer.journal if refusal is None and transfer.journal else NO_JOURNAL
        return (
            *(*place, transfer.journal, transfer.key, transfer.amount),
            *(transfer.level.value, state.value, transfer.digest, now, now, self._promised, forget_at, *error),
            *(transfer.number or None, *place, credited_from),
        )

    def _enter(self, connection: Connection, values: tuple[object, ...]) -> tuple[int, int | None] | None:
        """Enter a received transfer; return its number and the one of its receipt, or None if its key is known.

        There is no receipt at PLAIN, nor before the peer's journal is used.
        """
        entered: tuple[int, int | None] | None = connection.execute(self._sql.ENTER_INCOMING, values).fetchone()
        return entered

    def _credit_again(
        self, connection: Connection, transfer: Transfer, credit: str, crediting: tuple[object, ...]
    ) -> LedgerPluginError | None:
        """Credit a transfer to an account that may be new, or one whose peer shows another journal; return why not."""
        place = (self._ledger, transfer.account)
        if not self._has_place(connection, place):
            return NoRoomError("too many accounts are remembered already")
        if transfer.level is MoneyLevel.KEYED:
            self._use_peer(connection, transfer.account, transfer.journal, 0.0)
        else:
            connection.execute(self._sql.ENTER_ACCOUNT, place)
            if connection.execute(self._sql.FIND_LEVEL, place).fetchone()[0]:
                return NotAcceptedError(LOST_KEYS)
        if connection.execute(credit, crediting).rowcount:
            return None
        return NoRoomError("too many transfers are remembered already")

    def _count_undone(self, connection: Connection, transfer: Transfer) -> None:
        """Count that a transfer was refused after it was credited for a transactional handler."""
        keys = -1 if transfer.level is MoneyLevel.KEYED else 0
        known = connection.execute(self._sql.FIND_LEVEL, (self._ledger, transfer.account)).fetchone()
        self._room.add(connection, transfer.account, keys=keys, accounts=-1 if known is None else 0)

    def _has_place(self, connection: Connection, place: tuple[str, str]) -> bool:
        """Whether an account is known, or may become so."""
        known = connection.execute(self._sql.FIND_LEVEL, place).fetchone()
        return known is not None or self._room.take_place(connection, place[1])

    def repeat_reply(self, connection: Connection, transfer: Transfer) -> Received | None:
        """Return the reply to a transfer that was received before; None for a new one."""
        place = (self._ledger, transfer.account, transfer.journal, transfer.key)
        if connection.execute(self._sql.FIND_REPLY, place).fetchone() is None:
            return None
        return self._repeat_reply(connection, transfer)

    def _repeat_reply(self, connection: Connection, transfer: Transfer) -> Received:
        place = (self._ledger, transfer.account, transfer.journal, transfer.key)
        digest, receipt, code, name, data = connection.execute(self._sql.FIND_REPLY, place).fetchone()
        if digest != transfer.digest:
            return Received(DuplicateIdError("this key belongs to another transfer"))
        return Received(None if code is None else _StoredRefusalError(code, name, loads(data)["message"]), receipt)

    def _keep_refusal(self, connection: Connection, transfer: Transfer, refusal: LedgerPluginError) -> None:
        """Remember a final refusal under its key, so that the transfer gets it again."""
        if wire_error(refusal)[0].startswith("T") or transfer.level is MoneyLevel.PLAIN:
            return
        place, age = (self._ledger, transfer.account), self._age()
        if not self._has_place(connection, place):
            return
        connection.execute(self._sql.ENTER_ACCOUNT, place)
        if connection.execute(self._sql.KEEP_KEY, (age, *place, self._room.for_account)).rowcount:
            self._room.add(connection, transfer.account, keys=1)
            self._enter(connection, self._values(transfer, TransferState.REFUSED, age + self._promised, refusal))

    # Handing credited transfers to the money handler.

    def due_to_deliver(self, connection: Connection, account: str, limit: int) -> tuple[list[Credited], float | None]:
        """Return an account's credited transfers that are due, at most ``limit``, and the age when the next one is."""
        place, age = (self._ledger, account), self._age()
        rows = connection.execute(self._sql.DUE_TO_DELIVER, (*place, age, limit)).fetchall()
        due = [
            Credited(number, Transfer(amount, account, key=key, level=MoneyLevel(level), journal=origin), tries)
            for number, tries, amount, key, level, origin in rows
        ]
        later = connection.execute(self._sql.NEXT_TO_DELIVER, (*place, age)).fetchone()
        return due, None if later is None else later[0]

    @in_steps
    def delivered(self, connection: Connection, credited: Credited) -> Steps[None]:
        """Record that the money handler has finished with a transfer; one at PLAIN does not stay."""
        sql, keyed = self._sql, credited.transfer.level is MoneyLevel.KEYED
        if keyed and sql.joined is not None:
            yield sql.joined.DELIVERED, (credited.number, time(), credited.number)
            return
        yield IN_TURN
        dropped = connection.execute(sql.DROP_TO_DELIVER, (credited.number,)).rowcount
        if keyed:
            connection.execute(sql.DELIVERED, (time(), credited.number))
        elif dropped:
            connection.execute(self._sql.DROP_TRANSFER, (credited.number,))
            connection.execute(self._sql.FORGET_KEYS, (1, self._ledger, credited.transfer.account))
            self._room.add(connection, credited.transfer.account, keys=-1)

    def deliver_within(self, connection: Connection, credited: Credited, apply: Apply) -> LedgerPluginError | None:
        """Call a transactional handler for a credited transfer, and record it as delivered; return its refusal."""
        if connection.execute(self._sql.FIND_TO_DELIVER, (credited.number,)).fetchone() is None:
            # This is a second run, after a commit in doubt that counts.
            return None
        connection.execute("SAVEPOINT lpi_deliver")
        refusal = apply(connection, credited.transfer)
        if refusal is not None:
            connection.execute("ROLLBACK TO lpi_deliver")
        connection.execute("RELEASE lpi_deliver")
        if refusal is None:
            self.delivered(connection, credited)
        return refusal

    def postpone_delivery(self, connection: Connection, credited: Credited, pause: float) -> None:
        """Record that the money handler is called again after a pause, in seconds."""
        age = self._age()
        connection.execute(self._sql.POSTPONE_DELIVERY, (age + pause, credited.number))
        # The next process counts the pause from here, however this one ends.
        connection.execute(self._sql.SAVE_AGE, (age, self._ledger, age))
