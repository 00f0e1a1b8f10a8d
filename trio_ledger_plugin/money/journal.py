"""A plugin's journal: the ledger in its store, for Trio.

Invariants: at most one open plugin of a process writes to a ledger of a store; where several processes can open the
store, only the one that owns the ledger does. Every job is a transaction of the store; jobs of different accounts take
turns.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio
from attrs import evolve

from ..errors import InvalidServicesError, StoreError
from ..negotiation import MAX_RETENTION, JournalOffer
from ..stores.dialect import dialect_of
from ..stores.steps import Work
from ..transfer import Totals
from .lease import Lease
from .room import Room
from .sql import SqlJournal
from .turns import BACKGROUND, Turns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..options.base import PluginOptions
    from ..runtime.plugin_log import PluginLog
    from ..services import TransactionalStore
    from ..stores.dialect import Connection, Dialect
    from .history import AccountTotals

__all__ = ["Journal"]

T = TypeVar("T")

# How long a store that hangs may delay the parts of the plugin that do not need it, in seconds.
OPEN_SECONDS: Final = 2.0
NUMBERS_SECONDS: Final = 1.0
# How many jobs of the journal are in the store at once: as many as share a commit well, and few enough that others'
# wait is short. And how many of them are one account's, unless it is alone: the next commit, which another one waits
# for, then takes about twice as long as one with a single job.
JOBS_AT_ONCE: Final = 128
JOBS_OF_AN_ACCOUNT: Final = 16

# The ledgers that open plugins write to. The key is the store's identity, since an application's store may not be
# hashable.
_taken: dict[tuple[int, str], TransactionalStore[Any]] = {}


class Journal:
    """The journal of one ledger in a transactional store.

    Args:
        store: The store.
        options: The options of the plugin that the ledger belongs to.
        log: Gets the failures of the store.
    """

    def __init__(self, store: TransactionalStore[Any], options: PluginOptions, log: PluginLog) -> None:
        self._store = store
        self._log = log
        self.dialect: Dialect = dialect_of(store)
        self.promised: int = int(min(options.key_retention, MAX_RETENTION))
        self.plain_allowed: bool = options.money != "keyed"
        self.sql: SqlJournal = SqlJournal(
            options.ledger_id,
            self.dialect,
            room=Room.of(options),
            key_retention=options.key_retention,
            promised=self.promised,
            clock=trio.lowlevel.current_clock().current_time,
        )
        claims = self.dialect.claims
        self._standby = options.standby
        #: The claim of the ledger among processes; None if only one can have the store open.
        self.lease: Lease | None = None if claims is None else Lease(claims, options.ledger_id, self._transaction, log)
        self._turns = Turns(JOBS_AT_ONCE, JOBS_OF_AN_ACCOUNT)
        self._place = id(store), options.ledger_id
        self._opening = trio.Lock()
        self._opened = False
        self._claimed = False
        self._saved_age = 0.0
        #: The accounts with transfers to send again that no plugin is sending yet.
        self.unfinished: set[str] = set()
        #: Called once the journal is open and the plugin owns the ledger.
        self.on_open: Callable[[], None] = _do_nothing
        #: Called with an account whose earlier sender has left a transfer that is to be sent again.
        self.wake_sender: Callable[[str], None] = self.unfinished.add

    @property
    def is_open(self) -> bool:
        """Whether the journal is open, so that its identity and age are known."""
        return self._opened

    # Ownership.

    def claim(self) -> None:
        """Claim the ledger for this plugin; does nothing if it has claimed it already.

        Raises:
            InvalidServicesError: Another open plugin has claimed it.
        """
        if self._claimed:
            return
        if self._place in _taken:
            raise InvalidServicesError(
                f"store: another open plugin keeps ledger {self.sql.ledger!r} in it; give each its own ledger_id"
            )
        _taken[self._place] = self._store
        self._claimed = True

    @property
    def may_write(self) -> bool:
        """Whether no other process can own the ledger."""
        return self.lease is None or self.lease.is_held

    async def wait_owned(self) -> None:
        """Wait until no other process can own the ledger.

        Cancellation: Safe at any time.
        """
        if self.lease is not None:
            await self.lease.wait_held()

    def release(self) -> None:
        """Release the ledger, so that another plugin can claim it."""
        if self._claimed:
            self._claimed = self._opened = False
            self.sql.rest()
            del _taken[self._place]

    async def take(self) -> bool:
        """Take the claimed ledger from other processes; return whether it was not taken yet.

        Raises:
            InvalidServicesError: Another process has it, and the option ``standby`` is False.
            StoreError: The store failed, and the option ``standby`` is False.

        Cancellation: The ledger may have been taken.
        """
        if self.lease is None or self.lease.is_held:
            return False
        await self.lease.take(standby=self._standby)
        return True

    async def give_up(self) -> None:
        """Give the ledger up, so that another process can take it at once.

        Cancellation: It may not be given up; then another process takes it after a while.
        """
        if self.lease is not None:
            await self.lease.release()

    def check_owner(self) -> None:
        """Check that this plugin may change the ledger.

        Raises:
            InvalidServicesError: The plugin is not connected, and another process may own the ledger.
        """
        if not self.may_write:
            raise InvalidServicesError(
                f"store: another process may keep ledger {self.sql.ledger!r} in this database; connect the plugin first"
            )

    async def check_fresh(self) -> None:
        """Check, if this process was stopped for long, that no other has taken the ledger and put transfers in doubt.

        Raises:
            StoreError: It does not, or the store failed.

        Cancellation: Safe at any time.
        """
        if self.lease is not None and not self.lease.is_fresh:
            await self.lease.run(_nothing)

    # Working with the journal.

    async def run(self, account: str, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 (the work's own)
        """Run ``work(connection, ...)`` in a transaction; open the journal first if necessary.

        Args:
            account: The account whose turn it is, or ``BACKGROUND``.
            work: A method of the journal.
            args: Its arguments after the connection.
            kwargs: Its arguments by name.

        Raises:
            StoreError: The store failed, or another process may own the ledger; nothing has changed.
            StoreInDoubtError: The store cannot tell whether the change counts.

        Cancellation: The work may be done anyway, unless it waits for its turn.
        """
        return await self._take_turn(account, self._own_transaction, Work(work, args, kwargs))

    async def read(self, account: str, work: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 (the work's own)
        """Run work that changes nothing, as ``run`` does; another process may own the ledger.

        Args:
            account: The account whose turn it is, or ``BACKGROUND``.
            work: A method of the journal.
            args: Its arguments after the connection.

        Raises:
            StoreError: The store failed.

        Cancellation: Safe at any time.
        """
        return await self._take_turn(account, self._transaction, Work(work, args, {}))

    # Ctrl-C must not come between taking a turn and giving it back.
    @trio.lowlevel.enable_ki_protection
    async def _take_turn(
        self,
        account: str,
        transaction: Callable[[Callable[[Connection], T]], Awaitable[T]],
        work: Callable[[Connection], T],
    ) -> T:
        if not self._opened:
            await self._open()
        if not self._turns.take_now(account):
            await self._turns.wait(account)
        try:
            return await transaction(work)
        finally:
            self._turns.give_back(account)

    def _own_transaction(self, work: Callable[[Connection], T]) -> Awaitable[T]:
        return self._transaction(work) if self.lease is None else self.lease.run(work)

    async def _transaction(self, work: Callable[[Connection], T]) -> T:
        try:
            return await self._store.transaction(work)
        except self.dialect.error as error:
            raise StoreError(f"the journal of transfers cannot be used: {error}") from error

    async def open(self) -> None:
        """Open the journal; if the store fails, log it: the next use of the journal tries again.

        Cancellation: Safe at any time.
        """
        self._opened = False
        try:
            with trio.move_on_after(OPEN_SECONDS):
                await self._open()
                return
        except StoreError as error:
            self._log.error("no money can be sent or received: %s", error)
        else:
            self._log.error("no money can be sent or received: the store does not answer")

    async def _open(self) -> None:
        async with self._opening:
            while not self._opened:
                # Only the plugin that owns the ledger may settle what an earlier run left; others only read.
                owns = self._owns
                transaction = self._own_transaction if owns else self._transaction
                self.unfinished = await transaction(partial(self.sql.open, settle=owns))
                self._saved_age = self.sql.age_at_opening
                # If it was taken meanwhile, what is left is not settled yet.
                self._opened = owns == self._owns
                if self._opened and owns:
                    self.on_open()

    @property
    def _owns(self) -> bool:
        return self._claimed and self.may_write

    async def save_age(self) -> None:
        """Record the ledger's age; otherwise a program that often restarts would keep all keys for ever.

        Cancellation: The age may be recorded.
        """
        if self._opened and self._owns:
            try:
                self._saved_age = await self.run(BACKGROUND, self.sql.save_age)
            except StoreError as error:
                self._log.once().warn("cannot keep the age of the ledger: %s", error)

    # What peers are told.

    def offer(self) -> JournalOffer | None:
        """Return what a peer is told about the journal; None while it is not open.

        The age is the recorded one: it stays true if this process ends now.
        """
        return JournalOffer(self.promised, self.sql.id, self._saved_age) if self._opened else None

    async def make_offer(self, account: str, journal: str | None) -> JournalOffer | None:
        """Return what an account's peer is told about the journal, with the numbers of the transfers with the peer's.

        Args:
            account: The account.
            journal: The id of the peer's journal; None if it is not known yet.

        Cancellation: Safe at any time. A store that fails or hangs delays this for a second at most.
        """
        offer = self.offer()
        if offer is not None:
            try:
                with trio.move_on_after(NUMBERS_SECONDS):
                    numbers = await self.run(account, self.sql.peers.numbers, account, journal)
                    # Who does not know the peer's journal yet tells about all that it may be.
                    others = None if journal else await self.run(account, self.sql.peers.others, account)
                    return evolve(offer, peer=numbers, tells_peer=True, others=others)
            except StoreError as error:
                self._log.once().warn("cannot look up what was exchanged with a peer: %s", error)
        return offer

    # Reading.

    async def totals(self, account: str | None) -> Totals:
        """Return the totals of one account, or of all: each account's are those of one moment.

        Raises:
            StoreError: The store failed.

        Cancellation: Safe at any time.
        """
        if account is not None:
            return await self.read(BACKGROUND, self.sql.history.totals, account)
        sent = received = in_doubt = 0
        after: str | None = None
        while page := await self.accounts(after):
            sent += sum(each.totals.sent for each in page)
            received += sum(each.totals.received for each in page)
            in_doubt += sum(each.totals.in_doubt for each in page)
            after = page[-1].account
        return Totals(sent, received, in_doubt)

    async def accounts(self, after: str | None) -> list[AccountTotals]:
        """Return the totals of a page of the accounts, in the order of their names; the page after the last is empty.

        Raises:
            StoreError: The store failed.

        Cancellation: Safe at any time.
        """
        return await self.read(BACKGROUND, self.sql.history.accounts, after)


def _do_nothing() -> None:
    pass


def _nothing(_connection: Connection) -> None:
    pass
