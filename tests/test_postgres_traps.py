"""What goes wrong with money in a database that several processes share, each with a fixed order of events."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from signal import SIGQUIT
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio
from support.journals import new_journal, transfer_of
from support.ledgers import (
    PEER_OFFER,
    HeldStore,
    Payer,
    open_journal,
    open_payer,
    receive,
    settle,
    states,
    sums,
    two_stores,
    until,
)
from support.postgres import Server, open_server
from support.scripted import ScriptedOptions

import trio_ledger_plugin
from trio_ledger_plugin import (
    InvalidFieldsError,
    InvalidServicesError,
    LedgerLostError,
    MoneyLevel,
    NotAcceptedError,
    PluginServices,
    RemoteError,
    StoreError,
    TransferState,
    UnreachableError,
)
from trio_ledger_plugin.money.lease import BEAT_SECONDS, LEASE_SECONDS
from trio_ledger_plugin.money.outgoing import BeingSent
from trio_ledger_plugin.negotiation import PeerJournal
from trio_ledger_plugin.stores import PostgresStore, open_postgres_store, postgres_database
from trio_ledger_plugin.stores.postgres_dialect import POSTGRES, PostgresClaims
from trio_ledger_plugin.testing.conformance.assertions import echo

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

CLAIMS = PostgresClaims()


@pytest.fixture
def alone() -> Iterator[Server]:
    """A server of the test's own, which it may stop."""
    pytest.importorskip("psycopg")
    with open_server() as server:
        yield server


async def take_by_force(store: HeldStore) -> None:
    """Take the ledger as a process does that has waited for long enough."""
    found = await store.inner.transaction(partial(CLAIMS.find, ledger="main"))
    await store.inner.transaction(partial(CLAIMS.take, ledger="main", owner="another", seen=found))


def new_payer(store: HeldStore, nursery: trio.Nursery, **options: Any) -> Payer:
    return Payer(ScriptedOptions(**options), PluginServices(store=store), nursery, lambda _failure: None)


@contextmanager
def without_standby(server: Server) -> Iterator[None]:
    """Have every commit wait for a standby that is not there."""
    server.configure(synchronous_standby_names="'missing'")
    server.reload()
    try:
        yield
    finally:
        server.configure(synchronous_standby_names="''")
        server.reload()


# 1 and 2: what another process owns.


async def test_opening_leaves_the_open_transfers_of_a_live_process(postgres_dsn: str, clock: Any) -> None:
    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        owner = new_payer(first, nursery)
        owner.retention = None
        await owner.connect()
        nursery.start_soon(partial(owner.send_money, 5, idempotency_key="open"))
        await until(lambda: owner.sent_keys)
        other = new_payer(second, nursery)
        assert await states(other) == {"open": "sent"}
        with pytest.raises(InvalidServicesError):
            await other.connect()
        assert await states(owner) == {"open": "sent"}
        owner.answer()
        await settle(first)
        assert await states(owner) == {"open": "acked"}
        nursery.cancel_scope.cancel()


async def test_late_withdrawal_cannot_delete_a_payment(postgres_dsn: str, clock: Any) -> None:
    """The payment was made by another process that sent the transfer again: books 0, peer 5."""
    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        owner: Any = new_payer(first, nursery)
        await owner.connect()
        outgoing = owner.money.journal.sql.outgoing
        begin = partial(
            outgoing.begin, transfer=transfer_of("", "k", 5, MoneyLevel.KEYED), peer=PeerJournal(PEER_OFFER)
        )
        sent = await owner.money.journal.run("", begin, plain_allowed=True)
        assert isinstance(sent, BeingSent)
        await take_by_force(second)
        with pytest.raises(LedgerLostError):
            await owner.money.journal.run("", outgoing.withdraw, sent)
        async with open_payer(second) as other:
            assert await sums(other) == (0, 0, 5)
            await until(lambda: other.sent_keys == ["k"])
        nursery.cancel_scope.cancel()


# 3 and 4: what is to be delivered.


async def test_number_that_becomes_visible_late_is_delivered(postgres_dsn: str) -> None:
    """Numbers are given in another order than their transactions are committed."""
    async with open_postgres_store(postgres_dsn, replication="none") as store:
        journal = new_journal(lambda: 0.0, dialect=POSTGRES)
        await store.transaction(partial(journal.open, settle=True))
        receiving = [psycopg.connect(postgres_dsn, options="-c search_path=lpi") for _ in range(2)]
        for key, connection in zip(("early", "late"), receiving, strict=True):
            transfer = transfer_of(key, key, 5, MoneyLevel.KEYED, "peer")
            journal.incoming.receive(connection, transfer, None, plain_allowed=True)
        receiving[1].commit()
        due = partial(journal.incoming.due_to_deliver, limit=9)
        (late,), _ = await store.transaction(partial(due, account="late"))
        await store.transaction(partial(journal.incoming.delivered, credited=late))
        assert await store.transaction(journal.accounts_to_deliver) == []
        receiving[0].commit()
        assert await store.transaction(journal.accounts_to_deliver) == ["early"]
        (early,), _ = await store.transaction(partial(due, account="early"))
        assert (early.transfer.key, early.number < late.number) == ("early", True)
        for connection in receiving:
            connection.close()


@pytest.mark.parametrize("direction", ["sent", "received"])
async def test_transfers_on_two_connections_get_different_numbers(postgres_dsn: str, direction: str) -> None:
    """The peer would find that one is missing, or not find it."""
    async with open_postgres_store(postgres_dsn, replication="none") as store:
        journal = new_journal(lambda: 0.0, dialect=POSTGRES)
        await store.transaction(partial(journal.open, settle=True))
    results: list[Any] = []

    def work(connection: psycopg.Connection, key: str) -> None:
        transfer = transfer_of("", key, 5, MoneyLevel.KEYED, "" if direction == "sent" else PEER_OFFER.journal)
        if direction == "sent":
            begun = journal.outgoing.begin(connection, transfer, PeerJournal(PEER_OFFER), plain_allowed=True)
            assert isinstance(begun, BeingSent)
            results.append(begun.transfer.number)
        else:
            results.append(journal.incoming.receive(connection, transfer, None, plain_allowed=True).receipt)

    connect = partial(psycopg.connect, postgres_dsn, options="-c search_path=lpi")
    with connect() as first, connect() as second:
        # The first transfer enters the account.
        for number in (0, 2):
            work(first, f"{number}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, work, second, f"{number + 1}")
                await trio.sleep(0.3)
                assert len(results) == number + 1
                first.commit()
            second.commit()
        totals = journal.history.totals(first, "")
    assert results == [1, 2, 3, 4]
    assert totals.in_doubt + totals.received == 20


async def test_transfer_settled_on_two_connections_counts_once(postgres_dsn: str) -> None:
    async with open_postgres_store(postgres_dsn, replication="none") as store:
        journal = new_journal(lambda: 0.0, dialect=POSTGRES)
        await store.transaction(partial(journal.open, settle=True))
        transfer = transfer_of("", "k", 5, MoneyLevel.KEYED)
        begin = partial(journal.outgoing.begin, transfer=transfer, peer=PeerJournal(PEER_OFFER), plain_allowed=True)
        sent = await store.transaction(begin)
        assert isinstance(sent, BeingSent)
    connect = partial(psycopg.connect, postgres_dsn, options="-c search_path=lpi")

    def confirm() -> None:
        with pytest.raises(InvalidFieldsError, match="settled meanwhile"):
            journal.history.settle(second, "", "k", TransferState.ACKED)

    with connect() as first, connect() as second:
        journal.outgoing.answered(first, sent, None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, confirm)
            await trio.sleep(0.3)
            first.commit()
        second.rollback()
        assert journal.history.totals(first, "").sent == 5


async def test_process_that_stands_by_calls_no_handler(postgres_dsn: str, clock: Any) -> None:
    called: list[str] = []

    async def handle(name: str, _amount: str) -> None:
        called.append(name)

    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        owner, other = new_payer(first, nursery), new_payer(second, nursery, standby=True)
        other.register_money_handler(partial(handle, "second"))
        await owner.connect()
        nursery.start_soon(other.connect)
        owner.register_money_handler(partial(handle, "first"))
        for number in range(5):
            receive(owner, number, f"key {number}")
        await until(lambda: len(called) >= 5)
        await trio.sleep(5 * LEASE_SECONDS)
        assert called == ["first"] * 5
        nursery.cancel_scope.cancel()


async def test_process_that_stands_by_leaves_what_waits_to_the_owner(postgres_dsn: str, clock: Any) -> None:
    called: list[str] = []
    handled = trio.Event()

    async def handle(amount: str) -> None:
        called.append(amount)
        handled.set()

    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        owner = new_payer(first, nursery, accept_money="journal")
        await owner.connect()
        receive(owner, 1, "k")
        await settle(first)
        other = new_payer(second, nursery, standby=True)
        other.register_money_handler(handle)
        nursery.start_soon(other.connect)
        await trio.sleep(2 * LEASE_SECONDS)
        assert called == []
        assert await states(other) == {"k": "applied"}
        await owner.aclose()
        await handled.wait()
        await settle(second)
        assert called == ["5"]
        nursery.cancel_scope.cancel()


# 5 and 6: what waits for the standby.


async def test_commit_that_lost_its_connection_waits_for_the_standby(alone: Server) -> None:
    """It counts and is visible, and the standby does not have it: a peer that is told now is told too early."""
    async with open_postgres_store(alone.dsn(), replication="none") as store:
        pid = await store.transaction(lambda connection: connection.info.backend_pid)
        done: list[str] = []

        async def put() -> None:
            await store.put("key", "value")
            done.append("put")

        async with trio.open_nursery() as nursery:
            with without_standby(alone):
                nursery.start_soon(put)
                waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                await until(lambda: alone.execute(waiting))
                alone.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
                # Another one waits: that of the transaction that found out what became of the first.
                await until(lambda: alone.execute(f"{waiting} AND pid <> {pid}"))
                assert alone.execute("SELECT value FROM lpi.lpi_values") == [("value",)]
                assert done == []
            with trio.fail_after(5):
                while not done:  # noqa: ASYNC110 (nothing else tells)
                    await trio.sleep(0.01)
        assert await store.get("key") == "value"


class CuttingProxy:
    """A TCP proxy before a server, which cuts a connection at its next COMMIT, once it is armed.

    Args:
        server: The server.
        passes_commit: Whether the server gets the COMMIT, and commits, before the connection is cut.
    """

    def __init__(self, server: Server, *, passes_commit: bool) -> None:
        self._socket = f"{server.folder}/.s.PGSQL.{server.port}"
        self._passes_commit = passes_commit
        self.is_armed = False
        self.cuts = 0

    async def serve(self, client: trio.SocketStream) -> None:
        async with client, await trio.open_unix_socket(self._socket) as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, server, client)
            async for data in client:
                if self.is_armed and b"COMMIT\0" in data:
                    self.is_armed = False
                    self.cuts += 1
                    nursery.cancel_scope.cancel()
                    if self._passes_commit:
                        with trio.CancelScope(shield=True):
                            await server.send_all(data)
                            # It answers when it has committed; nobody gets the answer.
                            await server.receive_some()
                    break
                await server.send_all(data)
            nursery.cancel_scope.cancel()

    async def _answer(self, server: trio.SocketStream, client: trio.SocketStream) -> None:
        async for data in server:
            await client.send_all(data)


@pytest.mark.parametrize("passes_commit", [True, False], ids=["after the server has committed", "before"])
async def test_connection_that_is_cut_within_a_commit_changes_nothing_twice(
    postgres_server: Server, postgres_dsn: str, nursery: trio.Nursery, *, passes_commit: bool
) -> None:
    proxy = CuttingProxy(postgres_server, passes_commit=passes_commit)
    (listener,) = await nursery.start(partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1"))
    database = psycopg.conninfo.conninfo_to_dict(postgres_dsn)
    port = listener.socket.getsockname()[1]
    dsn = psycopg.conninfo.make_conninfo(**{**database, "host": "127.0.0.1", "port": port})
    runs: list[None] = []

    def work(connection: Any) -> None:
        runs.append(None)
        connection.execute("INSERT INTO lpi_values VALUES ('number', '1') ON CONFLICT (key) DO UPDATE SET value = '2'")

    async with open_postgres_store(dsn, replication="none") as store:
        proxy.is_armed = True
        with trio.fail_after(20):
            await store.transaction(work)
            assert await store.get("number") == "1"
    assert proxy.cuts == 1
    # What the server has committed does not run again.
    assert len(runs) == (1 if passes_commit else 2)
    nursery.cancel_scope.cancel()


async def test_commit_that_was_lost_with_its_server_runs_again(alone: Server) -> None:
    async with open_postgres_store(alone.dsn(), replication="none") as store:
        runs: list[int] = []

        def work(connection: Any) -> None:
            runs.append(connection.info.backend_pid)
            connection.execute("INSERT INTO lpi_values VALUES ('key', 'value')")
            if len(runs) == 1:
                alone.execute(f"SELECT pg_terminate_backend({runs[0]}, 5000)")

        await store.transaction(work)
        assert len(runs) == 2
        assert await store.get("key") == "value"


def test_number_of_a_lost_transaction_is_given_again(alone: Server) -> None:
    """Therefore the status of a transaction by its id does not tell what became of a commit."""
    begin = "SELECT pg_current_xact_id()::text"
    connection = psycopg.connect(alone.dsn())
    lost = connection.execute(begin).fetchone()
    alone.stop(SIGQUIT)
    connection.close()
    alone.start()
    assert [lost] == alone.execute(begin)


async def test_read_waits_for_the_standby(alone: Server) -> None:
    """What it reads may be committed here only; an answer that relies on it would be told too early."""
    async with open_postgres_store(alone.dsn(), replication="none") as store:
        await store.put("key", "value")
        with without_standby(alone), trio.move_on_after(0.5) as scope:
            await store.get("key")
        assert scope.cancelled_caught
        assert await store.get("key") == "value"


# 7: after an outage of the database.


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_outage_of_the_database_takes_no_ledger(postgres_dsn: str, clock: Any, how: str) -> None:
    async with two_stores(postgres_dsn) as (first, second), trio.open_nursery() as nursery:
        owner, other = new_payer(first, nursery), new_payer(second, nursery, standby=True)
        await owner.connect()
        nursery.start_soon(other.connect)
        await trio.sleep(2 * BEAT_SECONDS)
        if how == "fails":
            first.refuses = second.refuses = True
        else:
            first.may_begin = second.may_begin = trio.Event()
        await trio.sleep(5 * LEASE_SECONDS)
        # The one that stands by is served first.
        second.refuses = False
        second.may_begin.set()
        await trio.sleep(LEASE_SECONDS - 2 * BEAT_SECONDS)
        first.refuses = False
        await trio.sleep(3 * LEASE_SECONDS)
        assert (owner.is_connected(), other.is_connected()) == (True, False)
        nursery.cancel_scope.cancel()


async def test_outage_of_the_database_refuses_only_money_and_for_now(alone: Server) -> None:
    async with open_postgres_store(alone.dsn(), replication="none") as store, open_journal(store) as plugin:
        plugin.register_data_handler(echo)
        alone.stop(SIGQUIT)
        receive(plugin, 1, "k")
        plugin.ask(2, b"data")
        await until(lambda: len(plugin.replies) == 2)
        assert isinstance(plugin.replies[1], UnreachableError)
        assert (plugin.replies[2], plugin.is_connected()) == (b"data", True)
        await trio.to_thread.run_sync(alone.start)
        with trio.fail_after(1):
            receive(plugin, 3, "k")
            await until(lambda: len(plugin.replies) == 3)
        assert plugin.replies[3] is None
        assert await sums(plugin) == (0, 5, 0)


# 8: locks.


async def test_deadlock_undoes_one_batch_which_runs_again(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a machine that stands still for longer than these limits, both transactions reach them, and both are undone.
    monkeypatch.setattr(postgres_database, "LOCK_MS", 60_000)
    monkeypatch.setattr(postgres_database, "IDLE_MS", 60_000)
    async with two_stores(postgres_dsn) as (first, second):
        await first.put("a", "0")
        await first.put("b", "0")
        barrier = threading.Barrier(2)
        runs: list[str] = []

        def change(keys: str, connection: Any) -> None:
            runs.append(keys)
            for key in keys:
                connection.execute("UPDATE lpi_values SET value = value || %s WHERE key = %s", (keys[0], key))
                if len(runs) <= 2 and key == keys[0]:
                    barrier.wait(60)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.transaction, partial(change, "ab"))
            nursery.start_soon(second.transaction, partial(change, "ba"))
        assert sorted(runs)[:1] + sorted(runs)[-1:] == ["ab", "ba"]
        assert len(runs) == 3
        assert {"".join(sorted(str(await first.get(key)))) for key in "ab"} == {"0ab"}


async def test_lock_of_another_program_is_not_waited_for_without_end(
    postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_database, "LOCK_MS", 100)
    async with open_postgres_store(postgres_dsn, replication="none") as store:
        await store.put("key", "value")
        with psycopg.connect(postgres_dsn) as holding:
            holding.execute("LOCK TABLE lpi.lpi_values")
            with pytest.raises(StoreError, match="lock timeout"):
                await store.put("key", "other")
        assert await store.get("key") == "value"


# 9: no lock of the whole cluster.


def test_nothing_notifies_within_a_transaction_of_money() -> None:
    for path in Path(trio_ledger_plugin.__file__).parent.rglob("*.py"):
        assert not re.search(r"\b(NOTIFY|pg_notify|LISTEN)\b", path.read_text()), path


# 10: a statement of a handler that fails.


async def test_handler_that_hides_an_error_of_sql_is_refused(postgres_dsn: str, clock: Any) -> None:
    def handle(connection: Any, _transfer: Any) -> None:
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT nothing")

    async with two_stores(postgres_dsn) as (store, _), open_payer(store) as plugin:
        plugin.register_transactional_money_handler(handle)
        receive(plugin, 1, "k")
        await settle(store)
        assert isinstance(plugin.replies[1], NotAcceptedError)
        assert await sums(plugin) == (0, 0, 0)
        assert await states(plugin) == {"k": "refused"}


# 11: what text cannot hold.


async def test_error_whose_name_has_a_nul_is_recorded(postgres_dsn: str, clock: Any) -> None:
    """Recording what became of the transfer would fail for ever."""
    async with two_stores(postgres_dsn) as (store, _), open_payer(store) as plugin:
        async with trio.open_nursery() as nursery:

            async def pay() -> None:
                with pytest.raises(RemoteError):
                    await plugin.send_money(5, idempotency_key="k")

            nursery.start_soon(pay)
            await until(lambda: plugin.sent_keys)
            plugin.answer(RemoteError("F00", "Not\0Accepted", data=b"\0"))
        [entry] = [entry async for entry in plugin.transfers.walk()]
        assert (entry.state.value, entry.error and entry.error.name) == ("rejected", "Not\ufffdAccepted")


# 12: an old copy.


async def test_peer_notices_a_copy_of_the_database(postgres_server: Server, clock: Any, book: Any) -> None:
    dsn = postgres_server.new_database()
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]

    async def offer(dsn: str, seconds: float) -> Any:
        async with open_postgres_store(dsn, replication="none") as inner, open_journal(HeldStore(inner)) as plugin:
            await trio.sleep(seconds)
            money: Any = plugin.money
            await money.journal.save_age()
            told = money.offer()
            await plugin.aclose()
            return told

    await offer(dsn, 2)
    postgres_server.execute(f"CREATE DATABASE copy_of_{name} TEMPLATE {name}")
    latest = await offer(dsn, 60)
    restored = await offer(postgres_server.dsn(f"copy_of_{name}"), 2)
    assert latest.journal == restored.journal
    peers, connection = book.journal.peers, book.connection
    # Journals of peers are remembered once money has moved.
    book.receive("k", peer=latest.journal)
    assert peers.meet(connection, "", PeerJournal(latest)).trouble == ""
    assert "restored from a copy" in peers.meet(connection, "", PeerJournal(restored)).trouble


# 13: a transaction that is left open.


async def test_transaction_that_is_left_open_is_undone(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps the ledger from others, and old versions of the accounts' rows in the table."""
    monkeypatch.setattr(postgres_database, "IDLE_MS", 100)
    slow = threading.Event()

    def work(connection: Any) -> None:
        connection.execute("UPDATE lpi_values SET value = 'changed'")
        slow.wait(0.5)
        connection.execute("SELECT 1")

    async with open_postgres_store(postgres_dsn, replication="none") as store:
        assert isinstance(store, PostgresStore)
        await store.put("key", "value")
        with pytest.raises(StoreError, match="idle-in-transaction"):
            await store.transaction(work)
        assert await store.get("key") == "value"
