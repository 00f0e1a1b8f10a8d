"""At most one open plugin writes to a ledger; while its store fails, money is refused and nothing is denied."""

import sqlite3
import threading
from functools import partial
from typing import Any

import psycopg
import pytest
import trio
from attrs import define
from support.calls import start
from support.ledgers import (
    DAY,
    WEEK,
    Handler,
    HeldStore,
    new_store,
    open_journal,
    open_payer,
    receive,
    settle,
    sqlite_store,
    states,
    sums,
    until,
)
from support.stores import hold_thread
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    DuplicateIdError,
    InsufficientBalanceError,
    InvalidServicesError,
    MoneyLevel,
    NotAcceptedError,
    PluginClosedError,
    PluginServices,
    RemoteError,
    StoreError,
    Transfer,
    TransferInDoubtError,
    UnreachableError,
    create_plugin,
    loopback_pair,
    open_plugin,
)
from trio_ledger_plugin.loopback import LoopbackOptions
from trio_ledger_plugin.money import journaled
from trio_ledger_plugin.stores import MemoryStore, open_sqlite_store
from trio_ledger_plugin.testing.conformance.assertions import Recorder, echo

# Ownership of a ledger.


async def test_two_open_plugins_cannot_share_a_ledger(store):
    """Each would send the other's transfers again."""
    async with open_payer(store):
        with pytest.raises(ExceptionGroup) as caught:
            async with open_payer(store):
                pass
        assert caught.group_contains(InvalidServicesError, match="ledger 'main' in it; give each its own ledger_id")
        async with open_payer(store, ledger_id="other"):
            pass
    async with open_payer(store):
        pass


@pytest.mark.parametrize("ending", ["aclose", "disconnect", "cancel"])
async def test_ledger_is_released_when_its_plugin_ends(store, ending):
    """An application that uses only connect() and disconnect() opens another plugin with the same store."""
    options = LoopbackOptions(name="a")
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(options, PluginServices(store=store), nursery=nursery)
        await plugin.connect()
        if ending == "cancel":
            nursery.cancel_scope.cancel()
        else:
            await getattr(plugin, ending)()
    async with open_plugin(options, PluginServices(store=store)):
        pass


async def test_plugin_claims_its_ledger_again_when_it_reconnects(store):
    async with trio.open_nursery() as nursery:
        first = create_plugin(LoopbackOptions(name="a"), PluginServices(store=store), nursery=nursery)
        second = create_plugin(LoopbackOptions(name="b"), PluginServices(store=store), nursery=nursery)
        await first.connect()
        await first.disconnect()
        await second.connect()
        with pytest.raises(InvalidServicesError):
            await first.connect()
        await second.disconnect()
        await first.connect()
        with pytest.raises(InvalidServicesError):
            await second.connect()
        nursery.cancel_scope.cancel()


async def test_ledger_is_released_when_the_nursery_ends(store):
    """The plugin that replaces it could not open before the program ends."""
    async with trio.open_nursery() as nursery:
        plugin = create_plugin(LoopbackOptions(name="a"), PluginServices(store=store), nursery=nursery)
    with pytest.raises(PluginClosedError):
        await plugin.connect()
    async with open_plugin(LoopbackOptions(name="b"), PluginServices(store=store)):
        pass


async def test_closing_plugin_keeps_its_ledger_until_its_tasks_end(store, mock_clock):
    """The next plugin would change the journal while this one is still recording in it."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        await settle(store)
        store.may_begin = trio.Event()
        payer.answer()
        await wait_all_tasks_blocked()
        closing = trio.CancelScope()

        async def close():
            with closing:
                await payer.aclose()

        await start(nursery, close)
        closing.cancel()
        await wait_all_tasks_blocked()
        following = create_plugin(LoopbackOptions(name="b"), PluginServices(store=store), nursery=nursery)
        refused = await start(nursery, following.connect)
        store.may_begin.set()
        await settle(store)
        mock_clock.jump(0.3)
        await settle(store)
        assert isinstance(refused[0], InvalidServicesError)
        await following.connect()
        assert await states(following) == {"k": "acked"}
        await following.aclose()


async def test_stores_are_distinguished_by_identity(store):
    """An application's store may be a class that cannot be hashed."""

    @define
    class Wrapper:
        inner: HeldStore

        @property
        def dialect(self):
            return self.inner.dialect

        async def transaction(self, work):
            return await self.inner.transaction(work)

        async def put(self, key, value):
            await self.inner.put(key, value)

        async def get(self, key):
            return await self.inner.get(key)

        async def delete(self, key):
            await self.inner.delete(key)

    async with open_payer(Wrapper(store)) as plugin:
        assert await sums(plugin) == (0, 0, 0)


async def test_reading_a_journal_changes_nothing(store):
    """A plugin that is not connected may belong to a program that only reads; another one is sending the transfer."""
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        await settle(store)
        onlooker = create_plugin(LoopbackOptions(name="a"), PluginServices(store=store), nursery=nursery)
        assert await states(onlooker) == {"k": "sent"}
        payer.answer()
        await settle(store)
        assert outcome == [None]
        assert await sums(onlooker) == (7, 0, 0)


async def test_ledgers_in_one_store_are_independent(store):
    async with open_journal(store) as first, open_journal(store, ledger_id="other") as second:
        receive(first, 1, "k", 5)
        receive(second, 1, "k", 6)
        await settle(store)
        assert first.replies == second.replies == {1: None}
        assert (await sums(first), await sums(second)) == ((0, 5, 0), (0, 6, 0))


@pytest.mark.parametrize("option", ["money='keyed'", "accept_money='journal'"])
@pytest.mark.parametrize("store", [None, MemoryStore()])
async def test_what_needs_a_transactional_store_is_refused_without_one(option, store):
    name, _, value = option.partition("=")
    options: Any = {name: value.strip("'")}
    async with trio.open_nursery() as nursery:
        with pytest.raises(InvalidServicesError, match=rf"{option} needs one that has transaction\(\)"):
            create_plugin(LoopbackOptions(name="a", **options), PluginServices(store=store), nursery=nursery)


async def test_transfers_without_a_journal_are_an_error(store):
    async with open_payer(MemoryStore()) as plugin:
        with pytest.raises(InvalidServicesError):
            _ = plugin.transfers
        with pytest.raises(InvalidServicesError):
            plugin.register_transactional_money_handler(lambda connection, transfer: None)


# Failing stores.


async def test_failing_store_refuses_money_temporarily_and_data_goes_on(store):
    log = Recorder()

    async with open_journal(store, log=log) as plugin:
        plugin.register_data_handler(echo)
        await settle(store)
        store.refuses = True
        receive(plugin, 1, "k")
        plugin.ask(2, b"data")
        await settle(store)
        assert isinstance(plugin.replies[1], UnreachableError)
        assert plugin.replies[2] == b"data"
        assert any("refused a transfer" in line for line in log.lines)
        store.refuses = False
        receive(plugin, 3, "k")
        await settle(store)
        assert plugin.replies[3] is None
        assert await sums(plugin) == (0, 5, 0)


@sqlite_store
async def test_store_that_fails_at_the_start_is_opened_later(store):
    log = Recorder()
    store.refuses = True
    async with open_journal(store, log=log) as plugin:
        assert plugin.is_connected()
        assert any("no money" in line for line in log.lines)
        with pytest.raises(StoreError):
            await plugin.transfers.totals()
        store.refuses = False
        receive(plugin, 1, "k")
        await settle(store)
        assert await sums(plugin) == (0, 5, 0)


@pytest.mark.parametrize("money_handler", [None, lambda connection, transfer: None])
@pytest.mark.parametrize("trouble", ["lost", "committed"])
async def test_peer_gets_no_reply_while_the_commit_is_in_doubt(store, mock_clock, trouble, money_handler):
    """The reply "not applied" would make the peer pay again, "applied" would make it lose the money."""
    async with open_journal(store) as plugin:
        if money_handler is not None:
            plugin.register_transactional_money_handler(money_handler)
        await settle(store)
        store.troubles.append(trouble)
        receive(plugin, 1, "k")
        await settle(store)
        assert plugin.replies == {}
        mock_clock.jump(journaled.DOUBT_SECONDS + 0.01)
        await settle(store)
        assert plugin.replies == {1: None}
        assert await sums(plugin) == (0, 5, 0)


@pytest.mark.parametrize("trouble", ["lost", "committed"])
async def test_store_error_after_a_doubt_does_not_settle_it(store, mock_clock, trouble):
    """The commit may count; a peer that gets a refusal would pay a second time."""
    async with open_journal(store) as plugin:
        await settle(store)
        store.troubles += [trouble]
        receive(plugin, 1, "k")
        await settle(store)
        store.refuses = True
        for _ in range(3):
            mock_clock.jump(journaled.DOUBT_SECONDS + 0.01)
            await settle(store)
            assert plugin.replies == {}
        store.refuses = False
        mock_clock.jump(journaled.DOUBT_SECONDS + 0.01)
        await settle(store)
        assert plugin.replies == {1: None}
        assert await sums(plugin) == (0, 5, 0)


async def test_plain_transfer_in_doubt_is_credited_once(store, mock_clock):
    async with open_journal(store) as plugin:
        await settle(store)
        store.troubles += ["committed", "lost", "committed"]
        plugin.ask(1, Transfer("5"))
        for _ in range(4):
            await settle(store)
            mock_clock.jump(journaled.DOUBT_SECONDS + 0.01)
        await settle(store)
        assert plugin.replies == {1: None}
        assert await sums(plugin) == (0, 5, 0)
        assert len(await states(plugin)) == 1


# Keys.


async def test_duplicate_gets_the_first_reply_and_has_no_effect(store):
    handler = Handler()
    async with open_payer(store) as plugin:
        plugin.register_money_handler(handler)
        for request_id in (1, 2, 3):
            receive(plugin, request_id, "k")
        await settle(store)
        receive(plugin, 4, "k")
        await settle(store)
        assert plugin.replies == {1: None, 2: None, 3: None, 4: None}
        assert handler.keys == ["k"]
        assert await sums(plugin) == (0, 5, 0)
        plugin.ask(5, Transfer("6", key="k", level=MoneyLevel.KEYED, digest=b"other"))
        await settle(store)
        assert isinstance(plugin.replies[5], DuplicateIdError)
        assert await sums(plugin) == (0, 5, 0)


async def test_full_account_refuses_money_and_removes_no_key(store):
    async with open_journal(store, max_transfer_keys=2) as plugin:
        for number, key in enumerate("abc"):
            receive(plugin, number, key)
            await settle(store)
        assert isinstance(plugin.replies[2], UnreachableError)
        receive(plugin, 3, "a")
        await settle(store)
        assert plugin.replies[3] is None
        assert await sums(plugin) == (0, 10, 0)
        assert plugin.statistics().transfers_refused == 1


@new_store
async def test_what_is_remembered_is_counted_as_it_changes(store):
    async with open_journal(store, max_transfer_keys=2) as plugin:
        for number, key in enumerate("abc"):
            receive(plugin, number, key)
            await settle(store)
        statistics = plugin.statistics()
        assert (statistics.transfers_remembered, statistics.accounts_remembered) == (2, 1)


async def pass_time(store, mock_clock, seconds):
    """Let time pass, and what may be forgotten then be forgotten."""
    for each in (seconds, journaled.FORGET_SECONDS + 1, 1, 1):
        mock_clock.jump(each)
        await settle(store)


@new_store
async def test_what_is_remembered_is_counted_on_opening(store, mock_clock):
    async with open_journal(store) as plugin:
        for number, key in enumerate("abc"):
            receive(plugin, number, key)
        await settle(store)
    async with open_journal(store, max_ledger_keys=4) as plugin:
        await pass_time(store, mock_clock, 1)
        await settle(store)
        assert plugin.statistics().transfers_remembered == 3
        receive(plugin, 4, "d")
        await settle(store)
        # An account that has three may not take the one that is free.
        assert isinstance(plugin.replies[4], UnreachableError)


@new_store
@pytest.mark.parametrize("level", list(MoneyLevel))
async def test_transfers_that_share_a_commit_do_not_share_the_room(store, level):
    """Each must count on what those before it leave."""

    def ask(number):
        plugin.ask(number, Transfer("1", key=f"{number}", level=level, digest=b"d", journal="peer"))

    async with open_journal(store, max_ledger_keys=8) as plugin:
        ask(0)
        await settle(store)
        async with hold_thread(store.inner):
            for number in range(1, 20):
                ask(number)
            await wait_all_tasks_blocked()
        await settle(store)
        taken = [number for number in range(20) if plugin.replies[number] is None]
        # An account may have as many as are free.
        assert len(taken) == 4
        assert all(isinstance(plugin.replies[number], UnreachableError) for number in range(20) if number not in taken)
        assert plugin.statistics().transfers_remembered == 4


@new_store
@pytest.mark.parametrize("level", list(MoneyLevel))
async def test_transfers_of_an_undone_commit_are_counted_once(store, level):
    """Otherwise a work of the application that fails takes the room of transfers, until the next count."""

    def ask(*numbers):
        for number in numbers:
            plugin.ask(number, Transfer("1", key=f"{number}", level=level, digest=b"d", journal="peer"))

    def fail(connection):
        connection.execute("CREATE TABLE mine (number INTEGER)")
        raise ZeroDivisionError

    async def run_failing():
        with pytest.raises(ZeroDivisionError):
            await store.inner.transaction(fail)

    async with open_journal(store, max_ledger_keys=8) as plugin, trio.open_nursery() as nursery:
        ask(0)
        await settle(store)
        async with hold_thread(store.inner):
            ask(1, 2)
            await wait_all_tasks_blocked()
            nursery.start_soon(run_failing)
            await wait_all_tasks_blocked()
        await settle(store)
        assert plugin.statistics().transfers_remembered == 3
        assert [plugin.replies[number] for number in range(3)] == [None, None, None]


@new_store
async def test_failing_store_leaves_the_room_as_it_was(store):
    async with open_journal(store) as plugin:
        await settle(store)
        for number in range(3):
            store.troubles = ["refuse"]
            receive(plugin, number, f"{number}")
            await settle(store)
            assert isinstance(plugin.replies[number], UnreachableError)
        assert plugin.statistics().transfers_remembered == 0
        assert plugin.statistics().accounts_remembered == 0


@new_store
@pytest.mark.parametrize("level", list(MoneyLevel))
async def test_what_nobody_ever_asked_for_is_forgotten(store, mock_clock, level):
    """A program that only reads the totals would otherwise take no more money once the account is full."""
    async with open_journal(store, max_transfer_keys=1, key_retention=DAY) as plugin:
        for number in range(3):
            plugin.ask(number, Transfer("5", key=f"{number}", level=level, digest=b"d"))
            await settle(store)
            assert plugin.replies[number] is None
            await pass_time(store, mock_clock, DAY)
            assert await states(plugin) == {}
        assert await sums(plugin) == (0, 15, 0)
        assert plugin.statistics().transfers_remembered == 0


@new_store
@pytest.mark.parametrize("when", ["before", "after", "in the run before"])
async def test_what_waits_for_a_handler_is_kept(store, mock_clock, when):
    """A handler that is missing for a week is a fault, and the money is still its."""
    handler = Handler()
    if when == "in the run before":
        async with open_journal(store, key_retention=DAY) as plugin:
            plugin.register_money_handler(handler)
            await settle(store)
    async with open_journal(store, key_retention=DAY) as plugin:
        if when == "before":
            plugin.register_money_handler(handler)
            plugin.deregister_money_handler()
            await settle(store)
        receive(plugin, 1, "a")
        await settle(store)
        if when == "after":
            plugin.register_money_handler(handler)
            plugin.deregister_money_handler()
        await settle(store)
        await pass_time(store, mock_clock, 3 * DAY)
        assert await states(plugin) == {"a": "applied"}
        plugin.register_money_handler(handler)
        await settle(store)
        assert handler.keys == ["a"]
        assert await sums(plugin) == (0, 5, 0)


@new_store
async def test_keys_are_removed_once_they_cannot_be_sent_again(store, mock_clock):
    handler = Handler()
    async with open_journal(store, max_transfer_keys=1, key_retention=DAY) as plugin, trio.open_nursery() as nursery:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "a")
        outcome = await start(nursery, partial(plugin.send_money, 7, idempotency_key="acked"))
        await settle(store)
        plugin.answer()
        await settle(store)
        assert outcome == [None]
        mock_clock.jump(DAY - 60)
        await settle(store)
        assert await states(plugin) == {"a": "delivered", "acked": "acked"}
        mock_clock.jump(journaled.FORGET_SECONDS + 60)
        await settle(store)
        mock_clock.jump(1)
        await settle(store)
        assert await states(plugin) == {}
        assert await sums(plugin) == (7, 5, 0)
        receive(plugin, 2, "b")
        await settle(store)
        assert plugin.replies[2] is None
        nursery.cancel_scope.cancel()


# Transactional money handlers.


async def make_table(store):
    await store.transaction(lambda connection: connection.execute("CREATE TABLE mine (amount TEXT)") and None)


async def rows(store):
    return await store.transaction(lambda connection: connection.execute("SELECT amount FROM mine").fetchall())


def note(connection, transfer):
    connection.execute(f"INSERT INTO mine VALUES ('{transfer.amount}')")  # noqa: S608 (for any database)


async def test_transactional_handler_commits_with_the_transfer(store, mock_clock):
    await make_table(store)
    async with open_payer(store) as plugin:
        plugin.register_transactional_money_handler(note)
        await settle(store)
        store.troubles += ["refuse"]
        receive(plugin, 1, "refused")
        await settle(store)
        assert isinstance(plugin.replies[1], UnreachableError)
        assert (await rows(store), await sums(plugin)) == ([], (0, 0, 0))
        store.troubles += ["lost", "committed"]
        receive(plugin, 2, "k")
        for _ in range(3):
            await settle(store)
            mock_clock.jump(journaled.DOUBT_SECONDS + 0.01)
        await settle(store)
        assert plugin.replies[2] is None
        receive(plugin, 3, "k")
        await settle(store)
        assert (await rows(store), await sums(plugin)) == ([("5",)], (0, 5, 0))
        assert await states(plugin) == {"k": "delivered"}


@pytest.mark.parametrize(
    ("error", "reply"), [(InsufficientBalanceError("too much"), "F08"), (RuntimeError("my own text"), "F00")]
)
async def test_error_of_a_transactional_handler_undoes_and_refuses(store, error, reply):
    await make_table(store)
    log = Recorder()

    def handle(connection, transfer):
        note(connection, transfer)
        raise error

    async with open_payer(store, log=log) as plugin:
        plugin.register_transactional_money_handler(handle)
        receive(plugin, 1, "k")
        await settle(store)
        assert plugin.replies[1].code == reply
        assert "my own text" not in str(plugin.replies[1])
        assert (await rows(store), await sums(plugin)) == ([], (0, 0, 0))
        assert await states(plugin) == {"k": "refused"}
        refusal = str(plugin.replies[1])
        plugin.deregister_money_handler()
        plugin.register_transactional_money_handler(note)
        receive(plugin, 2, "k")
        await settle(store)
        assert (plugin.replies[2].code, plugin.replies[2].name) == (reply, plugin.replies[1].name)
        assert str(plugin.replies[2]) == refusal
        assert (await rows(store), await sums(plugin)) == ([], (0, 0, 0))
        assert any("reference" in line for line in log.lines) is (reply == "F00")


async def test_temporary_refusal_leaves_nothing_under_the_key(store):
    await make_table(store)
    full = True

    def handle(connection, transfer):
        note(connection, transfer)
        if full:
            raise UnreachableError("later")

    async with open_payer(store, max_transfer_keys=1) as plugin:
        plugin.register_transactional_money_handler(handle)
        for request_id in (1, 2):
            receive(plugin, request_id, f"k{request_id}")
            await settle(store)
            assert plugin.replies[request_id].code == "T00"
        assert (await rows(store), await states(plugin)) == ([], {})
        full = False
        receive(plugin, 3, "k1")
        await settle(store)
        assert plugin.replies[3] is None
        assert (await rows(store), await sums(plugin)) == ([("5",)], (0, 5, 0))


@pytest.mark.parametrize("misuse", ["commit", "rollback", "execute"])
async def test_transactional_handler_cannot_commit(store, misuse):
    """Its changes would stay although the transfer is refused afterwards."""
    await make_table(store)

    def handle(connection, transfer):
        note(connection, transfer)
        if misuse == "execute":
            connection.execute("COMMIT")
        else:
            getattr(connection, misuse)()

    async with open_payer(store) as plugin:
        plugin.register_transactional_money_handler(handle)
        receive(plugin, 1, "k")
        await settle(store)
        assert isinstance(plugin.replies[1], NotAcceptedError | UnreachableError)
        assert (await rows(store), await sums(plugin)) == ([], (0, 0, 0))


async def test_function_that_only_begins_is_no_transactional_handler(store):
    """It would never run, but the money would count."""

    async def handle(connection, transfer):
        raise AssertionError

    def generate(connection, transfer):
        yield
        raise AssertionError

    class Disguised:
        async def __call__(self, connection, transfer):
            raise AssertionError

    async with open_payer(store) as plugin:
        wrong: Any
        for wrong in (handle, partial(handle), generate, Disguised(), None):
            with pytest.raises(TypeError, match="plain function"):
                plugin.register_transactional_money_handler(wrong)
        # What these return is only known once they are called.
        for number, returned in enumerate((handle, generate)):
            wrong = partial(lambda function, *args: function(*args), returned)
            plugin.register_transactional_money_handler(wrong)
            receive(plugin, number, f"k{number}")
            await settle(store)
            assert isinstance(plugin.replies[number], NotAcceptedError)
            plugin.deregister_money_handler()
        assert await sums(plugin) == (0, 0, 0)


async def test_transactional_handler_with_other_arguments_is_refused(store):
    """The first money would be refused, in production."""

    class Books:
        def book(self, connection, transfer):
            raise AssertionError

        def __call__(self, transfer):
            raise AssertionError

    async with open_payer(store) as plugin:
        wrong: Any
        for wrong, name in ((lambda transfer: None, "<lambda>"), (Books.book, "book"), (Books(), "Books")):
            with pytest.raises(TypeError) as caught:
                plugin.register_transactional_money_handler(wrong)
            called = "a transactional money handler is called as handler(connection, transfer)"
            assert str(caught.value).startswith(f"{called}, and {name}() cannot be: ")
        for usable in (Books().book, lambda *args: None, lambda connection, transfer, more=None: None):
            plugin.register_transactional_money_handler(usable)
            plugin.deregister_money_handler()


async def test_storage_error_in_a_handler_is_a_temporary_refusal(store):
    """After a final refusal, the peer would believe that the transfer can never be applied."""

    def handle(connection, transfer):
        if isinstance(connection, psycopg.Connection):
            raise psycopg.errors.DiskFull("could not extend file")
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    async with open_payer(store) as plugin:
        plugin.register_transactional_money_handler(handle)
        receive(plugin, 1, "k")
        await settle(store)
        assert plugin.replies[1].code == "T00"
        assert await states(plugin) == {}


# From the commit to the reply.


async def held_up(nursery, store, plugin):
    """Receive a transfer whose commit is held up, in a plugin whose nursery is cancelled."""
    await settle(store)
    store.may_return = trio.Event()
    receive(plugin, 1, "k")
    await wait_all_tasks_blocked(0.05)
    assert plugin.replies == {}
    nursery.cancel_scope.cancel()
    with trio.CancelScope(shield=True):
        await wait_all_tasks_blocked(0.01)


async def test_running_commit_is_acknowledged_after_a_cancellation(store):
    async with trio.open_nursery() as outer, open_journal(store) as plugin:
        await held_up(outer, store, plugin)
        assert plugin.replies == {}
        store.may_return.set()
    assert plugin.replies == {1: None}


async def test_hanging_store_does_not_block_the_end_of_the_plugin(store):
    async with trio.open_nursery() as outer, open_payer(store) as plugin:
        await held_up(outer, store, plugin)
        began = trio.current_time()
    assert trio.current_time() - began < 0.6
    assert plugin.replies == {}


async def test_hanging_sqlite_file_does_not_block_the_end(tmp_path):
    """The store's thread cannot be interrupted, but the program must end."""
    stuck, may_end = threading.Event(), threading.Event()

    def handle(connection, transfer):
        stuck.set()
        may_end.wait(20)

    async with open_sqlite_store(tmp_path / "money.db") as inner:
        began = 0.0
        try:
            async with trio.open_nursery() as nursery, open_payer(inner) as plugin:
                plugin.register_transactional_money_handler(handle)
                receive(plugin, 1, "k")
                await until(stuck.is_set)
                began = trio.current_time()
                nursery.cancel_scope.cancel()
        finally:
            took = trio.current_time() - began
            may_end.set()
    # The store waits for a moment for work that has begun.
    assert took < 0.9
    assert plugin.replies == {}


async def test_loopback_is_keyed_and_resumes_after_a_restart(store):
    async with trio.open_nursery() as nursery, loopback_pair(PluginServices(store=store)) as (payer, payee):
        payee.register_money_handler(Handler())
        await settle(store)
        assert [None if each is None else each.retention for each in (payer.peer_journal(), payee.peer_journal())] == [
            WEEK,
            WEEK,
        ]
        await payer.send_money(7, idempotency_key="k")
        await payer.send_money(7, idempotency_key="k")
        assert await sums(payer) == (7, 0, 0)
        assert await sums(payee) == (0, 7, 0)
        waiting = await start(nursery, partial(payer.send_money, 8, idempotency_key="held"))
        nursery.start_soon(payee.aclose)
        await until(lambda: payee.peer_journal() is None)
        nursery.cancel_scope.cancel()
    async with loopback_pair(PluginServices(store=store)) as (payer, payee):
        payee.register_money_handler(Handler())
        await payer.send_money(8, idempotency_key="held")
        assert waiting == [] or waiting == [None] or isinstance(waiting[0], TransferInDoubtError | RemoteError)
        assert (await sums(payer), await sums(payee)) == ((15, 0, 0), (0, 15, 0))


async def test_plugin_closed_late_does_not_set_back_the_ledgers_age(store, mock_clock):
    """Keys would be removed too early, and a transfer that is sent again would be credited again."""
    transfer = Transfer("5", key="k", level=MoneyLevel.KEYED, digest=b"d")
    async with open_journal(store) as old:
        await settle(store)
        await old.disconnect()
        mock_clock.jump(8 * DAY)
        async with open_journal(store) as plugin:
            await settle(store)
            assert await plugin.money.receive(transfer, plugin.handlers) is None
            await old.aclose()
        # As if that plugin was killed: it saves nothing.
        mock_clock.jump(1)
        async with open_journal(store) as plugin:
            await settle(store)
            assert await plugin.money.receive(transfer, plugin.handlers) is None
            assert await sums(plugin) == (0, 5, 0)
