"""A plugin's ledger: the journal in its store, and the tasks that receive transfers and remove old ones.

Invariants: at most one open plugin writes to a ledger. While the store fails, transfers are refused; but if a transfer
may have been applied, the peer gets no reply before the store can tell.
"""

from __future__ import annotations

import sqlite3
from functools import partial
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import trio
from attrs import evolve

from ..errors import InvalidServicesError, LedgerPluginError, StoreError, StoreInDoubtError, UnreachableError
from ..runtime.handlers import judge_error
from ..stores.sqlite_errors import is_storage_error
from .journal import Journal
from .outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.context import Context
    from ..runtime.handlers import Handlers
    from ..services import TransactionalStore
    from ..transfer import Transfer
    from .journal import Apply
    from .outbox import FindHandler

__all__ = ["Ledger", "receive_within"]

T = TypeVar("T")

PURGE_SECONDS: Final = 3600.0
# The pause between two tries while the store cannot tell whether a transfer is applied.
DOUBT_SECONDS: Final = 1.0
# How long a store that hangs may delay the parts of the plugin that do not need it.
OPEN_SECONDS: Final = 2.0

# The ledgers that open plugins write to. The key is the store's identity, since an application's store may not be
# hashable.
_taken: dict[tuple[int, str], TransactionalStore] = {}


class Ledger:
    """The journal of one plugin with a transactional store.

    Args:
        store: The store with the journal.
        context: What the parts of the plugin share.
        find_handler: Returns the money handler of an account.
    """

    def __init__(self, store: TransactionalStore, context: Context, find_handler: FindHandler) -> None:
        options = context.options
        self._store = store
        self._log = context.log
        self._tasks = context.tasks
        self._retention = options.key_retention
        self.plain_allowed: bool = options.money != "keyed"
        self.journal: Journal = Journal(options.ledger_id, max_keys=options.max_transfer_keys)
        self._place = id(store), options.ledger_id
        self.outbox: Outbox = Outbox(context, self.journal, self.run, find_handler)
        self._opening = trio.Lock()
        self._opened = False
        self._claimed = False
        # The accounts with transfers to send again that no plugin is sending yet.
        self.unfinished: set[str] = set()
        # Called once ``unfinished`` is known.
        self.on_open: Callable[[], None] = _do_nothing

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
                f"store: another open plugin keeps ledger {self.journal.ledger!r} in it; give each its own ledger_id"
            )
        _taken[self._place] = self._store
        self._claimed = True

    def release(self) -> None:
        """Release the ledger, so that another plugin can claim it."""
        if self._claimed:
            self._claimed = False
            self.journal.rest()
            del _taken[self._place]

    # Working with the journal.

    async def run(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 (the work's own)
        """Run ``work(connection, ...)`` in a transaction; open the journal first if necessary.

        Raises:
            StoreError: The store failed; nothing has changed.
            StoreInDoubtError: The store cannot tell whether the change counts.

        Cancellation: The work may be done anyway.
        """
        if not self._opened:
            await self._open()
        return await self._transaction(partial(_call, work, args, kwargs))

    async def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._store.transaction(work)
        except sqlite3.Error as error:
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
            if not self._opened:
                # Only the plugin that has claimed the ledger may settle what an earlier run left; others only read.
                self.unfinished = await self._transaction(partial(self.journal.open, settle=self._claimed))
                self._opened = True
                self.on_open()

    # Receiving.

    async def receive(self, transfer: Transfer, apply: Apply | None) -> LedgerPluginError | None:
        """Credit a transfer from the peer once, and return None, or the refusal that the peer gets.

        Cancellation: The transfer may be credited. At KEYED the peer sends it again; at PLAIN the peer is in doubt.
        """
        if transfer.key is None:
            # If a commit is in doubt, the transfer is found again by its key.
            transfer = evolve(transfer, key=str(uuid4()))
        with self._tasks.committing():
            refusal = await self._receive(transfer, apply)
            if refusal is None and apply is None:
                self.outbox.look()
            return refusal

    async def _receive(self, transfer: Transfer, apply: Apply | None) -> LedgerPluginError | None:
        in_doubt = False
        while True:
            try:
                return await self.run(self.journal.receive, transfer, apply, plain_allowed=self.plain_allowed)
            except StoreError as error:
                # Once a try is in doubt, neither reply is certain to be true before the store can tell.
                in_doubt = in_doubt or isinstance(error, StoreInDoubtError)
                if not in_doubt:
                    self._log.error("refused a transfer of %s: %s", transfer.amount, error)
                    return UnreachableError("transfers cannot be applied now")
                self._log.error("a transfer of %s waits for the store: %s", transfer.amount, error)
                await trio.sleep(DOUBT_SECONDS)

    # Removing old transfers.

    def fire(self, now: float) -> float:
        """Start a task that removes transfers whose keys need not be kept any longer; return when to do it next."""
        self._tasks.spawn(self._purge)
        return now + PURGE_SECONDS

    async def save_age(self) -> None:
        """Save the ledger's age; otherwise a program that often restarts would keep all keys for ever.

        Cancellation: The age may be saved.
        """
        if self._opened:
            try:
                await self.run(self.journal.save_age)
            except StoreError as error:
                self._log.warn("cannot keep the age of the ledger: %s", error)

    async def _purge(self) -> None:
        after: int | None = 0
        try:
            while after is not None:
                after = await self.run(self.journal.purge, after, self._retention)
        except StoreError as error:
            self._log.warn("cannot forget old transfers: %s", error)


def _do_nothing() -> None:
    pass


def _call(work: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any], connection: sqlite3.Connection) -> T:
    return work(connection, *args, **kwargs)


async def receive_within(ledger: Ledger, transfer: Transfer, handlers: Handlers) -> LedgerPluginError | None:
    """Credit a transfer in one transaction with what the transactional money handler writes.

    Cancellation: The transfer may be credited.
    """
    handler = handlers.transactional
    assert handler is not None
    failures: list[tuple[str, Exception]] = []

    def apply(connection: sqlite3.Connection, received: Transfer) -> LedgerPluginError | None:
        # On the store's thread, and perhaps twice: the log gets it afterwards.
        failures.clear()
        try:
            _check_plain(handler(connection, received))
        except Exception as error:
            if is_storage_error(error):
                raise
            refusal, reference = judge_error("money", error)
            failures.append((reference, error))
            return refusal
        return None

    refusal = await ledger.receive(transfer, apply)
    for reference, error in failures:
        handlers.log_error("money", reference, error)
    return refusal


def _check_plain(result: object) -> None:
    """Refuse what an async function in disguise returns: it has done nothing."""
    if iscoroutine(result):
        result.close()
        raise TypeError("a transactional money handler is a plain function; this one returned a coroutine")
