"""Stores, plugins and peers for the tests of money."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import define, evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from support.peers import TOKEN, Peer, dial
from support.scripted import ScriptedOptions, ScriptedPlugin
from trio_ledger_plugin import (
    PluginServices,
    StoreError,
    StoreInDoubtError,
    current_transfer,
)
from trio_ledger_plugin.btp.auth import auth_message
from trio_ledger_plugin.codec import btp
from trio_ledger_plugin.negotiation import TRANSFER_KEYS, JournalOffer, PeerJournal
from trio_ledger_plugin.stores import open_postgres_store
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.transfer import IDEMPOTENCY_KEY, MoneyLevel, Receipt, Transfer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from trio_ledger_plugin import LedgerPlugin
    from trio_ledger_plugin.stores import PostgresStore, SqliteStore
    from trio_ledger_plugin.stores.steps import Steps

# For tests that compare the whole ledger, in which an old store has a history.
new_store = pytest.mark.parametrize(
    "store_path", ["new", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True
)
# For tests of what only a store that no other process can have open does.
sqlite_store = pytest.mark.parametrize(
    "store_path", ["new", pytest.param("old", marks=pytest.mark.slow)], indirect=True
)
# What a transaction has changed in PostgreSQL, without what shows that the owner of a ledger is alive.
CHANGES = """SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_xact_user_tables
    WHERE relname NOT IN ('lpi_batches', 'lpi_beats', 'lpi_owners')"""

DAY = 24 * 60 * 60
WEEK = 7 * DAY


# The transactions that run under each clock, and the clock's own threshold.
_working: dict[MockClock, tuple[int, float]] = {}


class HeldStore:
    """A real store that a test can hold up and make fail; a program may wrap a store of its own likewise."""

    def __init__(self, inner: SqliteStore | PostgresStore) -> None:
        self.inner: Any = inner
        self.dialect = inner.dialect
        # While true, nothing can be stored, and that is certain.
        self.refuses = False
        # Refusals and doubts that are due, in this order: "refuse", "lost" (in doubt, and not committed) and
        # "committed" (in doubt, and committed); only what would change something meets them.
        self.troubles: list[str] = []
        # Transactions wait before they begin until this is set, and after they are committed until that is.
        self.may_begin = trio.Event()
        self.may_return = trio.Event()
        self.may_begin.set()
        self.may_return.set()
        self.running = 0
        self._idle = trio.Event()

    async def put(self, key: str, value: str) -> None:
        await self.inner.put(key, value)

    async def get(self, key: str) -> str | None:
        value: str | None = await self.inner.get(key)
        return value

    async def delete(self, key: str) -> None:
        await self.inner.delete(key)

    async def put_if_absent(self, key: str, value: str) -> str:
        return str(await self.inner.put_if_absent(key, value))

    async def transaction(self, work: Callable[[Any], Any]) -> Any:
        trouble: list[str] = []

        def watch(connection: Any) -> Any:
            before = self._count_changes(connection)
            result = work(connection)
            if self.troubles and self._count_changes(connection) != before:
                trouble.append(self.troubles.pop(0))
                if trouble != ["committed"]:
                    raise _UndoneError
            return result

        self.running += 1
        try:
            await self.may_begin.wait()
            if self.refuses:
                raise StoreError("the disk is full")
            try:
                with self._clock_waits():
                    result = await self.inner.transaction(_Watched(watch, work, self.troubles))
            except _UndoneError:
                if trouble == ["refuse"]:
                    raise StoreError("the disk is full") from None
            await self.may_return.wait()
            if trouble:
                raise StoreInDoubtError("the commit failed")
            return result
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()
                self._idle = trio.Event()

    @contextmanager
    def _clock_waits(self) -> Iterator[None]:
        """Keep a clock that jumps when nothing happens from jumping while a server works."""
        clock = trio.lowlevel.current_clock()
        if self.dialect is SQLITE or not isinstance(clock, MockClock):
            yield
            return
        working, threshold = _working.get(clock, (0, clock.autojump_threshold))
        _working[clock] = working + 1, threshold
        clock.autojump_threshold = inf
        try:
            yield
        finally:
            working, threshold = _working.pop(clock)
            if working > 1:
                _working[clock] = working - 1, threshold
            else:
                clock.autojump_threshold = threshold

    def _count_changes(self, connection: Any) -> int:
        if not self.troubles:
            return 0
        if self.dialect is SQLITE:
            return int(connection.total_changes)
        return int(connection.execute(CHANGES).fetchone()[0])

    async def wait_idle(self) -> None:
        if self.running:
            await self._idle.wait()


@asynccontextmanager
async def two_stores(dsn: str) -> AsyncIterator[tuple[HeldStore, HeldStore]]:
    """Two programs' stores in one database."""
    async with (
        open_postgres_store(dsn, replication="none") as first,
        open_postgres_store(dsn, replication="none") as second,
    ):
        yield HeldStore(first), HeldStore(second)


@define(repr=False)
class _Watched:
    """A work that meets the troubles that are due; without any, its first statement may be sent with others."""

    watch: Callable[[Any], Any]
    work: Any
    troubles: list[str]

    def __call__(self, connection: Any) -> Any:
        return self.watch(connection)

    def __repr__(self) -> str:
        return repr(self.work)

    def start(self, connection: Any) -> Steps[Any] | None:
        start = None if self.troubles else getattr(self.work, "start", None)
        steps: Steps[Any] | None = None if start is None else start(connection)
        return steps


class _UndoneError(Exception):
    pass


async def settle(*stores: HeldStore) -> None:
    """Wait until nothing is running, in this thread or in a store's."""
    quiet = False
    # A server's answer takes another way than a store's call, through the kernel.
    cushion = 0.01 if all(store.dialect is SQLITE for store in stores) else 0.025
    while not quiet:
        await wait_all_tasks_blocked(cushion)
        quiet = not any(store.running for store in stores)
        for store in stores:
            await store.wait_idle()


async def until(condition: Callable[[], object]) -> None:
    """Wait for an effect of another thread, or of the kernel."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 (there is no event to wait for)
            await trio.sleep(0.001)


PEER_OFFER = JournalOffer(WEEK, "the peer's journal", 1000.0)


def aged(seconds: float, **changes: Any) -> JournalOffer:
    """Return what the peer says when its journal is older by so many seconds."""
    return evolve(PEER_OFFER, age=PEER_OFFER.age + seconds, **changes)


class Payer(ScriptedPlugin):
    """A plugin whose links the test makes and loses, and whose transfers the test answers."""

    replies: dict[int, Any]
    # What the peer says about its journal on the next link.
    offer: JournalOffer = PEER_OFFER
    # For how long the peer keeps keys; None for links at PLAIN.
    retention: int | None = WEEK
    # What this end has said about its journal on the next link.
    said: JournalOffer | None = None
    _peer: PeerJournal | None = None

    def peer_journal(self) -> PeerJournal | None:
        return self._peer if self.retention is not None and self.is_connected() else None

    def link_up(self) -> None:
        self._peer = PeerJournal.of(evolve(self.offer, retention=self.retention or WEEK), self.said)
        super().link_up()

    def lose_link(self) -> None:
        self.peer_left("the cable was cut")

    def regain_link(self) -> None:
        self.link_up()

    def answer(self, error: Exception | None = None, *, receipt: int = 0) -> None:
        """Answer the oldest transfer in flight."""
        call = self.calls.pending.pop(next(iter(self.calls.pending)))
        if error is None:
            call.answer(Receipt.of(receipt) if receipt else b"")
        else:
            call.fail(error)

    @property
    def sent_keys(self) -> list[Any]:
        return [transfer.key for transfer in self.sent]


@asynccontextmanager
async def open_payer(
    store: Any, *, retention: int | None = WEEK, offer: JournalOffer = PEER_OFFER, log: Any = None, **options: Any
) -> AsyncIterator[Payer]:
    async with trio.open_nursery() as nursery:
        payer = Payer(ScriptedOptions(**options), PluginServices(store=store, log=log), nursery)
        payer.retention, payer.offer = retention, offer
        await payer.connect()
        yield payer
        nursery.cancel_scope.cancel()


def open_journal(store: Any, **options: Any) -> AbstractAsyncContextManager[Payer]:
    """Open a plugin that credits what it gets before a money handler is registered."""
    return open_payer(store, accept_money="journal", **options)


async def states(plugin: LedgerPlugin, **which: Any) -> dict[str, str]:
    """Return the states of a plugin's transfers, by key."""
    return {entry.key: entry.state.value async for entry in plugin.transfers.walk(**which)}


async def sums(plugin: LedgerPlugin) -> tuple[int, int, int]:
    totals = await plugin.transfers.totals()
    return totals.sent, totals.received, totals.in_doubt


async def dial_keyed(
    address: str, *, offer: JournalOffer | str | None = PEER_OFFER, account: str = ""
) -> tuple[Peer, Any]:
    """Connect to a listener as a peer that keeps transfer keys; give it, and the answer to its credentials."""
    peer = await dial(address)
    flags = {} if offer is None else {TRANSFER_KEYS: offer.as_json() if isinstance(offer, JournalOffer) else offer}
    await peer.send(peer.frame(auth_message(1, account, TOKEN, flags)))
    answer = await peer.receive_packet()
    assert isinstance(answer, btp.Response), answer
    return peer, answer


def keyed(request_id: int, amount: int, key: bytes, *before: btp.ProtocolData) -> btp.Transfer:
    """A transfer under a key, as it stands on the wire."""
    return btp.Transfer(request_id, amount, (*before, btp.ProtocolData(IDEMPOTENCY_KEY, btp.TEXT, key)))


class Handler:
    """A money handler that records its transfers, and fails a given number of times."""

    def __init__(self, *, failures=0):
        self.keys: list[Any] = []
        self.failures = failures
        self.may_end = trio.Event()
        self.may_end.set()
        self.running = self.most = 0

    async def __call__(self, amount):
        transfer = current_transfer()
        assert transfer.amount == amount
        self.keys.append(transfer.key)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.may_end.wait()
        finally:
            self.running -= 1
        if self.failures:
            self.failures -= 1
            raise RuntimeError("out of order")


def receive(plugin, request_id, key, amount=5):
    """Receive a transfer from the peer."""
    assert plugin.ask(request_id, Transfer(str(amount), key=key, level=MoneyLevel.KEYED, digest=b"d"))
