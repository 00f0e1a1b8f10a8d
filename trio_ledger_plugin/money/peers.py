"""The journals of peers: is a peer's journal the one that this journal knows, and is it complete?

Each end numbers the KEYED transfers that it sends to the other's journal, and the ones that it credits. The
numbers go with the transfers and their receipts, and on every link the ends tell each other the last ones. An end that
has given fewer numbers than the other end has seen was restored from an old copy.

Every method runs inside the caller's transaction, on the store's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from ..negotiation import MAX_OTHERS, MAX_RETENTION, PeerNumbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..negotiation import PeerJournal
    from ..stores.dialect import Connection
    from .room import Room
    from .statements import Statements

__all__ = ["Lost", "Meeting", "SqlPeers"]

# How many earlier journals of an account are remembered: a client may show another one on each link.
MAX_OLDER: Final = 100
# How many transfers of each kind that a peer has lost are named.
NAMED: Final = 5
# How many rows of the history are searched at once for them, and how often.
SLICE: Final = 1000
SLICES: Final = 100


@frozen
class Lost:
    """Transfers that an old copy of a peer's journal does not know.

    Attributes:
        count: Their number.
        after: The last number that the copy has given.
    """

    count: int = 0
    after: int = 0

    @classmethod
    def between(cls, given: int, seen: int) -> Lost:
        """Return what is lost, from the last number that the peer knows and the last one that this end has seen."""
        return cls(seen - given, given) if seen > given else cls()


@frozen
class Meeting:
    """What was found out about a peer's journal on a new link.

    Attributes:
        trouble: What is wrong, as text for the log; empty if nothing is.
        lost_credits: The transfers that the peer has credited to this end and no longer knows.
        lost_sendings: The transfers that the peer has sent and no longer knows.
        missing: How many transfers of the peer this end has credited and no longer knows.
        doubts: How many transfers were put in doubt because of it.
        amount: The sum of these transfers.
    """

    trouble: str = ""
    lost_credits: Lost = Lost()
    lost_sendings: Lost = Lost()
    missing: int = 0
    doubts: int = 0
    amount: int = 0


class SqlPeers:
    """The peers' journals that one ledger knows.

    Args:
        ledger: The ledger's name.
        statements: The SQL.
        age: Returns the ledger's age.
        own_id: Returns the id of this ledger's journal.
        put_in_doubt: Puts the open KEYED transfers of an account in doubt, and returns their number and sum.
        room: How much the ledger may keep.
    """

    def __init__(
        self,
        ledger: str,
        statements: Statements,
        age: Callable[[], float],
        own_id: Callable[[], str],
        put_in_doubt: Callable[[Connection, str], tuple[int, int]],
        room: Room,
    ) -> None:
        self._ledger = ledger
        self._sql = statements
        self._age = age
        self._own_id = own_id
        self._put_in_doubt = put_in_doubt
        self._room = room

    def numbers(self, connection: Connection, account: str, journal: str | None) -> PeerNumbers | None:
        """Return what is known of the transfers with a journal; None if the journal is not known.

        Args:
            connection: The connection.
            account: The account.
            journal: The journal's id; None for the one that the account has shown last.
        """
        row = connection.execute(self._sql.FIND_PEER, (self._ledger, account)).fetchone()
        if row is None or (journal is None and not row[0]):
            return None
        if journal is None or journal == row[0]:
            return PeerNumbers(row[0], *row[2:])
        older = connection.execute(self._sql.FIND_OLDER_PEER, (self._ledger, account, journal)).fetchone()
        return None if older is None else PeerNumbers(journal, *older[1:])

    def others(self, connection: Connection, account: str) -> tuple[PeerNumbers, ...] | None:
        """Return what is known of the transfers with earlier journals of an account; None if they are too many."""
        place = (self._ledger, account, MAX_OTHERS + 1)
        rows = connection.execute(self._sql.LIST_OLDER_PEERS, place).fetchall()
        return None if len(rows) > MAX_OTHERS else tuple(PeerNumbers(*row) for row in rows)

    def use(self, connection: Connection, account: str, journal: str, age: float) -> None:
        """Give numbers for another journal of the account from now on; the account is entered if it is new.

        Args:
            connection: The connection, inside a transaction.
            account: The account.
            journal: The id of the peer's journal.
            age: The age that the journal has shown, if it is new; 0 if that is not known.
        """
        sql, place = self._sql, (self._ledger, account)
        connection.execute(sql.ENTER_ACCOUNT, place)
        former, *known = connection.execute(sql.FIND_PEER, place).fetchone()
        if former == journal:
            return
        older = connection.execute(sql.FIND_OLDER_PEER, (*place, journal)).fetchone()
        connection.execute(sql.DROP_OLDER_PEER, (*place, journal))
        if former:
            connection.execute(sql.KEEP_OLDER_PEER, (*place, former, *known, self._age()))
            if connection.execute(sql.COUNT_PEERS, place).fetchone()[0] > MAX_OLDER:
                connection.execute(sql.DROP_OLDEST_PEERS, (*place, *place))
        connection.execute(sql.SET_PEER, (journal, *(older or (age, 0, 0, 0, 0)), *place))
        connection.execute(sql.DROP_OLD_PEERS, (*place, self._age() - MAX_RETENTION))

    def meet(self, connection: Connection, account: str, peer: PeerJournal) -> Meeting:
        """Compare the peer's journal of a new link with what is known; if it cannot be trusted, doubt what is open."""
        sql, place = self._sql, (self._ledger, account)
        offer, said = peer.offer, peer.said
        theirs = offer.find(self._own_id())
        known = connection.execute(sql.FIND_PEER, place).fetchone()
        nothing_said = theirs in (None, PeerNumbers(self._own_id()))
        if known is None and (nothing_said or not self._room.take_place(connection, account)):
            # Anybody may connect under any name: an account is entered once there is something to remember.
            return Meeting()
        former = "" if known is None else known[0]
        self.use(connection, account, peer.id, offer.age)
        _, age, sent, acked, received, credited = connection.execute(sql.FIND_PEER, place).fetchone()
        mine = None if said is None else said.find(peer.id)
        # An end that tells about every journal that it knows, and not about this one, knows nothing of it.
        tells = theirs is not None or (offer.tells_peer and (offer.peer is None or offer.others is not None))
        troubles = []
        if former not in ("", peer.id):
            troubles.append(f"its journal was {former} before and is {peer.id} now: it was replaced")
        elif offer.age < age - 1e-3:
            troubles.append(f"its journal is {age - offer.age:.0f} s younger than before: it was restored from a copy")
        lost_credits, lost_sendings, missing = Lost(), Lost(), 0
        if mine is not None and tells:
            told = theirs or PeerNumbers(mine.journal)
            lost_credits = Lost.between(told.credited, mine.acked)
            lost_sendings = Lost.between(told.sent, mine.received)
            if lost_credits.count or lost_sendings.count:
                troubles.append(
                    f"its journal is an old copy: it does not know {lost_credits.count} transfers that it has"
                    f" acknowledged, and {lost_sendings.count} that it has sent"
                )
        if theirs is not None:
            missing = max(0, theirs.acked - credited)
            forgotten = max(0, theirs.received - sent)
            if missing or forgotten:
                troubles.append(
                    f"this journal is an old copy: it does not know {missing} transfers that it has acknowledged to the"
                    f" peer, and {forgotten} that it has sent"
                )
            credited, sent = max(credited, theirs.acked), max(sent, theirs.received)
        connection.execute(sql.SET_PEER, (peer.id, offer.age, sent, acked, received, credited, *place))
        doubts, amount = self._put_in_doubt(connection, account) if troubles else (0, 0)
        return Meeting("; ".join(troubles), lost_credits, lost_sendings, missing, doubts, amount)

    def credits_lost(self, connection: Connection, account: str, journal: str, lost: Lost) -> list[tuple[str, str]]:
        """Return the keys and amounts of the last transfers that a peer's journal has credited and lost."""
        return self._find_lost(connection, self._sql.CREDITS_LOST, account, journal, lost)

    def sendings_lost(self, connection: Connection, account: str, journal: str, lost: Lost) -> list[tuple[str, str]]:
        """Return the keys and amounts of the last transfers that a peer's journal has sent and lost."""
        return self._find_lost(connection, self._sql.SENDINGS_LOST, account, journal, lost)

    def _find_lost(
        self, connection: Connection, statement: str, account: str, journal: str, lost: Lost
    ) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        upper = connection.execute(self._sql.LAST_NUMBER).fetchone()[0] or 0
        for _ in range(SLICES):
            if upper <= 0 or len(found) >= min(lost.count, NAMED):
                break
            place = (upper - SLICE, upper, self._ledger, account, journal, lost.after)
            found += connection.execute(statement, place).fetchall()
            upper -= SLICE
        return found[:NAMED]
