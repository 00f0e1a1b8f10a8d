"""What happens to money if the store is slow or in doubt just as a link, a caller or an operator acts."""

from typing import TYPE_CHECKING, Any, cast

import trio
from support.calls import start
from support.ledgers import (
    Handler,
    Payer,
    aged,
    open_journal,
    open_payer,
    receive,
    settle,
    states,
    sums,
    until,
)
from support.scripted import ScriptedOptions
from support.stores import hold_thread
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    InvalidFieldsError,
    PluginServices,
    RemoteError,
    StoreError,
    Transfer,
    TransferInDoubtError,
)
from trio_ledger_plugin.money.entering import NOTHING_SENT

if TYPE_CHECKING:
    from trio_ledger_plugin.money.journaled import JournaledMoney

BUSY = RemoteError("T00", "UnreachableError", data=b'{"message": "later"}')


class SlowWork:
    """Delays the transactions of one method of the journal, after they are committed."""

    def __init__(self, store: Any, method: str) -> None:
        self.committed = trio.Event()
        self.may_return = trio.Event()
        self._method = method
        self._transaction = store.transaction
        store.transaction = self

    async def __call__(self, work: Any) -> Any:
        result = await self._transaction(work)
        if self._method in repr(work):
            self.committed.set()
            await self.may_return.wait()
        return result


async def leave_unanswered(payer: Any, key: str) -> None:
    """Send a transfer whose caller stops waiting, and lose the link."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: payer.send_money(7, idempotency_key=key))
        await settle(payer.services.store)
        nursery.cancel_scope.cancel()
    payer.lose_link()
    await settle(payer.services.store)


async def refuse_for_now(payer: Any) -> None:
    """Refuse every try of a transfer for now."""
    while True:
        if payer.calls.pending:
            payer.answer(BUSY)
        await trio.sleep(0.5)


async def test_reading_while_a_plugin_opens_leaves_nothing_unsettled(store):
    """A reader settles nothing; what it has opened must not pass for what the owner of the ledger opens."""
    async with trio.open_nursery() as nursery, open_payer(store, retention=None) as payer:
        await start(nursery, lambda: payer.send_money(7, idempotency_key="a"))
        await settle(store)
    async with trio.open_nursery() as nursery:
        plugin = Payer(ScriptedOptions(), PluginServices(store=store), nursery)
        plugin.retention = None
        slow = SlowWork(store, "SqlJournal.open")
        nursery.start_soon(sums, plugin)
        await slow.committed.wait()
        nursery.start_soon(plugin.connect)
        money = cast("JournaledMoney", plugin.money)
        await until(lambda: money.journal.may_write)
        slow.may_return.set()
        await plugin.wait_connected()
        assert await states(plugin) == {"a": "in_doubt"}
        nursery.cancel_scope.cancel()


async def test_disconnect_while_transfers_are_taken_is_not_fatal(store):
    async with open_payer(store) as payer:
        await leave_unanswered(payer, "a")
        slow = SlowWork(store, "take_due")
        payer.regain_link()
        await slow.committed.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(payer.disconnect)
            await wait_all_tasks_blocked()
            slow.may_return.set()
        await payer.connect()
        await settle(store)
        payer.answer()
        await settle(store)
        assert await states(payer) == {"a": "acked"}


async def test_settling_by_hand_waits_for_a_transfer_that_is_being_taken(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await start(nursery, lambda: payer.send_money(7, idempotency_key="a"))
        await settle(store)
        payer.answer(BUSY)
        await settle(store)
        await trio.sleep(0.8)
        async with hold_thread(store.inner):
            await trio.sleep(0.4)
            # The transfer is due, and is taken in the same commit in which it would be settled.
            settled = await start(nursery, lambda: payer.transfers.reject("a"))
        await settle(store)
        assert len(payer.sent) == 2
        assert settled == []
        payer.answer()
        await settle(store)
        assert isinstance(settled[0], InvalidFieldsError)
        assert await states(payer) == {"a": "acked"}


async def test_taken_transfer_is_not_sent_to_a_restored_journal(store):
    async with open_payer(store) as payer:
        await leave_unanswered(payer, "a")
        slow = SlowWork(store, "take_due")
        payer.regain_link()
        await slow.committed.wait()
        payer.lose_link()
        payer.offer = aged(-500)
        payer.regain_link()
        await wait_all_tasks_blocked(0.02)
        slow.may_return.set()
        await settle(store)
        assert len(payer.sent) == 1
        assert await states(payer) == {"a": "in_doubt"}


async def test_transfer_taken_by_a_commit_in_doubt_is_sent_again(store, mock_clock):
    mock_clock.autojump_threshold = 0.03
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: payer.send_money(7, idempotency_key="a"))
        await settle(store)
        nursery.cancel_scope.cancel()
    async with open_payer(store) as payer:
        await settle(store)
        payer.answer(BUSY)
        await settle(store)
        store.troubles = ["committed"]
        await trio.sleep(10)
        payer.answer()
        await settle(store)
        assert await states(payer) == {"a": "acked"}


async def test_old_link_is_not_compared_after_a_later_one(store, mock_clock, caplog):
    mock_clock.autojump_threshold = 0.03
    async with open_payer(store) as payer:
        await leave_unanswered(payer, "a")
        store.refuses = True
        payer.regain_link()
        await trio.sleep(2)
        payer.lose_link()
        payer.offer = aged(50)
        store.refuses = False
        payer.regain_link()
        await trio.sleep(60)
        assert "restored" not in caplog.text
        assert await states(payer) == {"a": "sent"}


async def test_store_that_cannot_compare_the_journals_is_told_to_the_caller(store, mock_clock):
    mock_clock.autojump_threshold = 0.03
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        payer.lose_link()
        store.refuses = True
        payer.regain_link()
        await wait_all_tasks_blocked(0.02)
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="a"))
        await trio.sleep(30)
        assert isinstance(outcome[0], StoreError)
        assert not isinstance(outcome[0], TransferInDoubtError)
        store.refuses = False
        await trio.sleep(30)
        assert not payer.sent
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="a"))
        await settle(store)
        payer.answer()
        await settle(store)
        assert outcome == [None]


async def test_all_callers_refused_for_now_get_one_outcome(store, mock_clock):
    mock_clock.autojump_threshold = 0.03
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcomes = [await start(nursery, lambda: payer.send_money(7, idempotency_key="a")) for _ in range(20)]
        nursery.start_soon(refuse_for_now, payer)
        await trio.sleep(20)
        nursery.cancel_scope.cancel()
    assert {type(outcome[0]) for outcome in outcomes} == {RemoteError}


async def test_slow_withdrawal_is_told_to_the_caller(store, mock_clock):
    mock_clock.autojump_threshold = 0.03
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="a"))
        nursery.start_soon(refuse_for_now, payer)
        slow = SlowWork(store, "withdraw_waiting")
        await trio.sleep(20)
        assert isinstance(outcome[0], TransferInDoubtError)
        assert "withdrawn or being sent again" in str(outcome[0])
        slow.may_return.set()
        await trio.sleep(20)
        assert await states(payer) == {}
        nursery.cancel_scope.cancel()


async def test_call_after_a_cancelled_one_that_the_store_refused_is_sent(store):
    may_fail = trio.Event()
    transaction, failures = store.transaction, ["begin"]

    async def fail_once(work: Any) -> Any:
        def undo(connection: Any) -> None:
            work(connection)
            raise store.dialect.error("undone")

        if failures and failures[0] in repr(work):
            failures.clear()
            with trio.CancelScope(shield=True):
                try:
                    await transaction(undo)
                finally:
                    await may_fail.wait()
        return await transaction(work)

    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        store.transaction = fail_once
        async with trio.open_nursery() as first:
            first.start_soon(lambda: payer.send_money(7, idempotency_key="a"))
            await settle(store)
            first.cancel_scope.cancel()
        second = await start(nursery, lambda: payer.send_money(7, idempotency_key="a"))
        await wait_all_tasks_blocked(0.02)
        may_fail.set()
        await settle(store)
        payer.answer()
        await settle(store)
        assert second == [None]


async def test_operators_call_as_the_plugin_ends_has_its_outcome(store):
    async with open_payer(store, close_timeout=0.1) as payer, trio.open_nursery() as nursery:
        await leave_unanswered(payer, "a")
        store.may_begin = trio.Event()
        outcome = await start(nursery, lambda: payer.transfers.confirm("a"))
        await wait_all_tasks_blocked()
        await payer.aclose()
        store.may_begin.set()
        await settle(store)
        assert outcome == [None]
        assert await sums(payer) == (7, 0, 0)


async def test_transfer_credited_by_a_commit_in_doubt_reaches_the_handler(store, mock_clock):
    mock_clock.autojump_threshold = 0.03
    async with open_payer(store) as payer:
        handler = Handler()
        payer.register_money_handler(handler)
        await settle(store)
        store.troubles = ["committed"]
        receive(payer, 1, "a")
        await trio.sleep(10)
        assert payer.replies == {1: None}
        assert handler.keys == ["a"]


async def test_transactional_handler_is_run_once_after_a_doubt(store, mock_clock):
    mock_clock.autojump_threshold = 0.03

    insert = store.dialect.statement("INSERT INTO book VALUES (?)")

    def book(connection: Any, transfer: Transfer) -> None:
        connection.execute(insert, (transfer.key,))

    def make_book(connection: Any) -> None:
        connection.execute("CREATE TABLE book (key TEXT)")

    async with open_journal(store) as payer:
        receive(payer, 1, "a")
        await store.transaction(make_book)
        await settle(store)
        store.troubles = ["committed"]
        payer.register_transactional_money_handler(book)
        await trio.sleep(10)
        booked = await store.transaction(lambda connection: connection.execute("SELECT key FROM book").fetchall())
        assert booked == [("a",)]
        assert await states(payer) == {"a": "delivered"}


async def test_memory_does_not_grow_with_the_transfers_that_are_handled(store):
    count = 200
    async with open_payer(store) as payer:
        handler = Handler()
        payer.register_money_handler(handler)
        await settle(store)
        for number in range(count):
            receive(payer, number, str(number))
            if number % 10 == 9:
                await settle(store)
        assert len(handler.keys) == count
        outbox = cast("JournaledMoney", payer.money).outbox
        assert len(outbox._finished) < count / 2


async def test_cancelled_work_of_a_store_enters_nothing_later(store, nursery):
    """A thread may have taken the work, and do other work of the same commit first: nothing may be sent any more."""
    transaction, left = store.transaction, []

    async def leave(work: Any) -> None:
        left.append(work)
        await trio.sleep_forever()

    async with open_payer(store) as payer:
        await settle(store)
        store.transaction = leave
        outcomes = await start(nursery, payer.send_money, 7)
        store.transaction = transaction
        await payer.disconnect()
        assert [str(outcome) for outcome in outcomes] == [NOTHING_SENT]
        for work in left:
            await transaction(work)
        assert await states(payer) == {}
        await payer.connect()
        await settle(store)
        assert payer.sent == []
