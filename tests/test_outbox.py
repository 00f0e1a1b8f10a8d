"""The money handler is called for every credited transfer: at least once, until it succeeds, even after failures."""

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import trio
import trio.lowlevel
from support.calls import start
from support.ledgers import Handler, open_journal, receive, settle, states, sums, until
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import MoneyHandlerAlreadyRegisteredError, current_transfer
from trio_ledger_plugin.events import Failed
from trio_ledger_plugin.money import outbox
from trio_ledger_plugin.money.journaled import JournaledMoney
from trio_ledger_plugin.telemetry import Telemetry
from trio_ledger_plugin.testing.conformance.assertions import read_events
from trio_ledger_plugin.transfer import MoneyLevel, Transfer


async def credit(plugin: Any, transfer: Transfer) -> None:
    """Credit a transfer of one of many accounts."""
    assert await plugin.money.receive(transfer, plugin.handlers) is None


async def pass_time(clock, store, seconds):
    await settle(store)
    clock.jump(seconds)
    await settle(store)


async def test_credited_transfer_reaches_the_handler_and_is_delivered(store):
    handler = Handler()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        await settle(store)
        assert plugin.replies == {1: None}
        assert handler.keys == ["k"]
        assert await states(plugin) == {"k": "delivered"}
        assert await sums(plugin) == (0, 5, 0)


async def test_transfer_is_acknowledged_before_the_handler_runs(store):
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        await settle(store)
        assert plugin.replies == {1: None}
        assert await states(plugin) == {"k": "applied"}
        assert await sums(plugin) == (0, 5, 0)


async def test_failing_handler_is_retried_with_growing_pauses(store, mock_clock):
    handler = Handler(failures=3)
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        calls = []
        for pause in (1, 2, 4):
            await pass_time(mock_clock, store, pause - 0.01)
            calls.append(len(handler.keys))
            await pass_time(mock_clock, store, 0.02)
        assert calls == [1, 2, 3]
        assert handler.keys == ["k"] * 4
        assert await states(plugin) == {"k": "delivered"}
        assert await sums(plugin) == (0, 5, 0)


async def test_retry_pause_has_a_maximum(store, mock_clock):
    handler = Handler(failures=100)
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        await settle(store)
        for _ in range(12):
            await pass_time(mock_clock, store, outbox.LONGEST_PAUSE + 0.01)
        assert len(handler.keys) == 13


async def test_failed_transfer_does_not_delay_others(store, mock_clock):
    keys: list[Any] = []

    async def handle(amount):
        key = current_transfer().key
        keys.append(key)
        if key == "bad":
            raise RuntimeError

    async with open_journal(store) as plugin:
        plugin.register_money_handler(handle)
        for number, key in enumerate(("bad", "good", "better")):
            receive(plugin, number, key)
        await settle(store)
        assert sorted(keys) == ["bad", "better", "good"]
        assert await states(plugin) == {"bad": "applied", "good": "delivered", "better": "delivered"}


async def test_failed_transfer_is_retried_in_time_while_another_hangs(store, mock_clock):
    keys: list[Any] = []

    async def handle(amount):
        keys.append(current_transfer().key)
        if keys[-1] == "hangs":
            await trio.sleep_forever()
        raise RuntimeError

    async with open_journal(store) as plugin:
        plugin.register_money_handler(handle)
        receive(plugin, 1, "hangs")
        await settle(store)
        receive(plugin, 2, "fails")
        await settle(store)
        await pass_time(mock_clock, store, 1.01)
        assert keys == ["hangs", "fails", "fails"]


async def test_many_failed_transfers_take_no_memory(store, mock_clock):
    """They are in the journal; a program whose handler fails for a day must not grow with each."""
    handler = Handler(failures=10_000)
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        for number in range(100):
            receive(plugin, number, f"k{number}")
        await settle(store)
        for _ in range(8):
            await pass_time(mock_clock, store, 1.01)
        assert len(handler.keys) > 300
        assert isinstance(plugin.money, JournaledMoney)
        assert len(plugin.money.outbox._due) < 20
        handler.failures = 0
        for _ in range(5):
            await pass_time(mock_clock, store, outbox.LONGEST_PAUSE)
        assert set((await states(plugin)).values()) == {"delivered"}


async def test_transfers_are_handled_in_order_and_64_at_once(store):
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store) as plugin:
        for number in range(150):
            receive(plugin, number, f"k{number}")
            await wait_all_tasks_blocked()
        await settle(store)
        credited = [entry.key async for entry in plugin.transfers.walk()]
        plugin.register_money_handler(handler)
        await settle(store)
        assert handler.running == outbox.AT_ONCE == 64
        assert sorted(handler.keys) == sorted(credited[:64])
        handler.may_end.set()
        await settle(store)
        assert sorted(handler.keys) == sorted(credited)
        assert handler.most == 64
        assert set((await states(plugin)).values()) == {"delivered"}


async def test_transfers_wait_for_a_handler_to_be_registered(store):
    handler = Handler()
    async with open_journal(store) as plugin:
        receive(plugin, 1, "k")
        await settle(store)
        assert plugin.replies == {1: None}
        plugin.register_money_handler(handler)
        await settle(store)
        assert handler.keys == ["k"]


async def test_transfer_credited_after_a_page_was_read_is_handed_over(store):
    """The page does not contain it, so the account has to be looked at again."""
    handler = Handler()
    async with open_journal(store) as plugin:
        receive(plugin, 1, "first")
        await settle(store)
        store.may_return = looking = trio.Event()
        plugin.register_money_handler(handler)
        await wait_all_tasks_blocked(0.05)
        store.may_return = reading = trio.Event()
        looking.set()
        await wait_all_tasks_blocked(0.05)
        # The page is read, but the outbox does not have it yet.
        store.may_return = trio.Event()
        store.may_return.set()
        receive(plugin, 2, "second")
        await until(lambda: plugin.replies.keys() == {1, 2})
        reading.set()
        await settle(store)
        assert handler.keys == ["first", "second"]
        assert set((await states(plugin)).values()) == {"delivered"}


async def test_handler_registered_while_a_page_is_read_gets_it(store):
    """Otherwise the transfer would stay credited but not handed over until the next start."""
    handler = Handler()
    async with open_journal(store) as plugin:
        receive(plugin, 1, "first")
        await settle(store)
        store.may_return = trio.Event()
        receive(plugin, 2, "second")
        await wait_all_tasks_blocked(0.05)
        # The transfer is committed; now the outbox reads the page that contains it.
        store.may_return.set()
        store.may_return = trio.Event()
        await wait_all_tasks_blocked(0.05)
        plugin.register_money_handler(handler)
        store.may_return.set()
        await settle(store)
        assert sorted(handler.keys) == ["first", "second"]


async def test_transfers_wait_for_the_next_handler(store):
    first, second = Handler(), Handler()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(first)
        receive(plugin, 1, "a")
        await settle(store)
        plugin.deregister_money_handler()
        receive(plugin, 2, "b")
        await settle(store)
        plugin.register_money_handler(second)
        with pytest.raises(MoneyHandlerAlreadyRegisteredError):
            plugin.register_money_handler(first)
        await settle(store)
        assert (first.keys, second.keys) == (["a"], ["b"])


async def test_failed_transfer_waits_for_the_next_handler(store, mock_clock):
    first, second = Handler(failures=1), Handler()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(first)
        receive(plugin, 1, "k")
        await settle(store)
        plugin.deregister_money_handler()
        await pass_time(mock_clock, store, 1.01)
        plugin.register_money_handler(second)
        await settle(store)
        assert (first.keys, second.keys) == (["k"], ["k"])
        assert await states(plugin) == {"k": "delivered"}


async def test_transfer_of_a_killed_handler_is_handled_after_a_restart(store):
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        await settle(store)
        assert handler.keys == ["k"]
    assert handler.running == 0
    again = Handler()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(again)
        await settle(store)
        assert again.keys == ["k"]
        assert await states(plugin) == {"k": "delivered"}
    third = Handler()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(third)
        await settle(store)
        assert third.keys == []


async def test_closing_waits_for_running_handlers(store):
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store) as plugin, trio.open_nursery() as nursery:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        await settle(store)
        nursery.start_soon(plugin.aclose)
        await wait_all_tasks_blocked()
        assert handler.running == 1
        handler.may_end.set()
    async with open_journal(store) as plugin:
        assert await states(plugin) == {"k": "delivered"}


async def test_two_concurrent_closes_take_no_longer(store, mock_clock):
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store) as plugin, trio.open_nursery() as nursery:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        await settle(store)
        nursery.start_soon(plugin.aclose)
        nursery.start_soon(plugin.aclose)
        await wait_all_tasks_blocked()
        handler.may_end.set()
    assert trio.current_time() == 0


async def test_disconnect_lets_handlers_finish_and_starts_no_more(store, mock_clock):
    handler = Handler(failures=1)
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "fails")
        await settle(store)
        handler.may_end = trio.Event()
        receive(plugin, 2, "runs")
        await settle(store)
        await plugin.disconnect()
        await pass_time(mock_clock, store, 2)
        assert handler.keys == ["fails", "runs"]
        assert handler.running == 1
        handler.may_end.set()
        await settle(store)
        assert await states(plugin) == {"fails": "applied", "runs": "delivered"}
        await plugin.connect()
        await settle(store)
        assert handler.keys == ["fails", "runs", "fails"]


async def disconnect_while_committing(payer, nursery):
    """Disconnect the plugin while a task is still recording an acknowledgement, so that its tasks have not ended."""
    store = payer.services.store
    await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
    await settle(store)
    store.may_begin = trio.Event()
    payer.answer()
    await wait_all_tasks_blocked()
    await start(nursery, payer.disconnect)


async def test_reconnecting_while_the_tasks_end_is_not_fatal(store, mock_clock):
    """The outbox would start handlers in a task group that has ended, and the plugin would fail for good."""
    handler = Handler()
    async with open_journal(store) as plugin, trio.open_nursery() as nursery:
        receive(plugin, 1, "credited")
        await settle(store)
        await disconnect_while_committing(plugin, nursery)
        again = await start(nursery, plugin.connect)
        plugin.register_money_handler(handler)
        await wait_all_tasks_blocked()
        store.may_begin.set()
        await pass_time(mock_clock, store, 0.3)
        assert again == [None]
        assert handler.keys == ["credited"]


@pytest.mark.parametrize("_again", range(8))
async def test_cancelled_connect_does_not_stop_the_outbox(store, mock_clock, _again):
    """Money would be credited, but the application would never be called."""
    handler = Handler()
    async with open_journal(store) as plugin, trio.open_nursery() as nursery:
        plugin.register_money_handler(handler)
        await settle(store)
        await disconnect_while_committing(plugin, nursery)
        async with trio.open_nursery() as impatient:
            await start(impatient, plugin.connect)
            patient = await start(nursery, plugin.connect)
            impatient.cancel_scope.cancel()
        store.may_begin.set()
        await pass_time(mock_clock, store, 0.3)
        assert patient == [None]
        receive(plugin, 1, "x")
        await settle(store)
        assert handler.keys == ["x"]


@pytest.mark.parametrize("trouble", ["refuse", "lost", "committed"])
async def test_failing_store_after_the_handler_does_not_repeat_it(store, mock_clock, trouble):
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        receive(plugin, 1, "k")
        await settle(store)
        store.troubles.append(trouble)
        handler.may_end.set()
        await pass_time(mock_clock, store, 1.01)
        assert handler.keys == ["k"]
        assert await states(plugin) == {"k": "delivered"}


async def test_outbox_continues_when_the_store_works_again(store, mock_clock):
    handler = Handler()
    async with open_journal(store) as plugin:
        receive(plugin, 1, "k")
        await settle(store)
        store.refuses = True
        plugin.register_money_handler(handler)
        await settle(store)
        assert handler.keys == []
        store.refuses = False
        await pass_time(mock_clock, store, 1.01)
        assert handler.keys == ["k"]


async def test_each_handler_call_has_its_own_context(store):
    seen = []

    async def handle(amount):
        await trio.lowlevel.checkpoint()
        seen.append((amount, current_transfer().amount, current_transfer().level, current_transfer().account))

    async with open_journal(store) as plugin:
        plugin.register_money_handler(handle)
        for number in range(3):
            receive(plugin, number, f"k{number}", 10 + number)
        await settle(store)
    assert sorted(seen) == [(str(a), str(a), MoneyLevel.KEYED, "") for a in (10, 11, 12)]
    with pytest.raises(RuntimeError, match="inside a money handler"):
        current_transfer()


def running(plugin):
    return plugin.money.outbox.running


async def test_hanging_handlers_do_not_block_others(store, mock_clock):
    """After 64 calls to a server that does not respond, no account would get its money handled."""
    done: list[Any] = []
    may_end = trio.Event()

    async def handle(amount):
        if amount == "7":
            await may_end.wait()
        done.append(current_transfer().key)

    async with open_journal(store, handler_timeout=20.0) as plugin:
        plugin.register_money_handler(handle)
        for number in range(90):
            receive(plugin, number, f"h{number}", 7)
        await settle(store)
        receive(plugin, 1000, "good")
        await pass_time(mock_clock, store, 19.99)
        assert done == []
        await pass_time(mock_clock, store, 0.02)
        assert done == ["good"]
        assert running(plugin) == 90
        may_end.set()
        await settle(store)
        assert running(plugin) == 0
        assert set((await states(plugin)).values()) == {"delivered"}


async def test_number_of_hanging_handlers_is_bounded(store, mock_clock, monkeypatch):
    monkeypatch.setattr(outbox, "MAX_LATE", 5)
    monkeypatch.setattr(outbox, "AT_ONCE", 5)
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store, handler_timeout=20.0) as plugin:
        plugin.register_money_handler(handler)
        for number in range(20):
            receive(plugin, number, f"k{number}")
        await settle(store)
        for _ in range(5):
            await pass_time(mock_clock, store, 20.01)
        assert handler.running == 5
        handler.may_end.set()
        await settle(store)
        assert set((await states(plugin)).values()) == {"delivered"}


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "wrapped by telemetry"])
async def test_plain_function_as_handler_is_called_only_once(store, mock_clock, wrapped):
    """It does its work and then cannot be awaited: if it were called again, it would pay out again and again."""
    called: list[Any] = []
    handle: Any = lambda _: called.append(current_transfer().key)  # noqa: E731 (a plain def is refused at once)
    handler = Handler()
    async with open_journal(store) as plugin:
        if wrapped:
            Telemetry().observe(plugin)
        plugin.register_money_handler(handle)
        for number in range(3):
            receive(plugin, number, f"k{number}")
            await pass_time(mock_clock, store, 100)
        assert called == ["k0"]
        plugin.deregister_money_handler()
        plugin.register_money_handler(handler)
        await settle(store)
        assert sorted(handler.keys) == ["k0", "k1", "k2"]
        assert set((await states(plugin)).values()) == {"delivered"}


class Slotted:
    """A plain function in disguise, to which no weak reference is possible."""

    __slots__ = ()

    def __call__(self, _amount):
        pass


async def test_refused_handlers_take_no_memory(store):
    """A program may register and remove handlers for as long as it runs."""
    async with open_journal(store) as plugin:
        handlers: list[Any] = [Slotted(), lambda _: None, partial(lambda _: None)]
        kept = [weakref.ref(handler) for handler in handlers[1:]]
        receive(plugin, 0, "k")
        while handlers:
            plugin.register_money_handler(handlers.pop())
            await settle(store)
            plugin.deregister_money_handler()
        assert await states(plugin) == {"k": "applied"}
        gc.collect()
        assert [reference() for reference in kept] == [None, None]


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_trouble_of_one_account_does_not_block_others(store, mock_clock, monkeypatch, how):
    """A client could stop the money of all others with some transfers that the handler refuses."""
    monkeypatch.setattr(outbox, "MAX_LATE", 5)
    monkeypatch.setattr(outbox, "AT_ONCE", 5)
    done: list[Any] = []
    mended = trio.Event()

    async def handle(amount):
        transfer = current_transfer()
        if transfer.account == "mallory":
            if how == "hangs":
                await mended.wait()
            elif not mended.is_set():
                raise RuntimeError("no such customer")
        done.append(transfer.key)

    async with open_journal(store, handler_timeout=20.0) as plugin:
        plugin.register_money_handler(handle)
        for number in range(30):
            await credit(plugin, Transfer("5", "mallory", key=f"m{number}", digest=b"d"))
        await pass_time(mock_clock, store, 20.01)
        await credit(plugin, Transfer("5", "alice", key="a", digest=b"d"))
        await settle(store)
        assert done == ["a"]
        # Past the limit, no more transfers of the account are tried.
        assert running(plugin) <= 10
        mended.set()
        for _ in range(10):
            await pass_time(mock_clock, store, 61)
        assert sorted(done) == sorted(["a", *(f"m{number}" for number in range(30))])


async def test_all_failed_transfers_are_retried_past_the_limit(store, mock_clock, monkeypatch):
    """A handler whose database is down fails for all transfers; none may be lost."""
    monkeypatch.setattr(outbox, "MAX_LATE", 3)
    down = True
    done: list[Any] = []

    async def handle(amount):
        if down:
            raise RuntimeError("the database is down")
        done.append(current_transfer().key)

    async with open_journal(store) as plugin:
        plugin.register_money_handler(handle)
        for number in range(10):
            receive(plugin, number, f"k{number}")
        await settle(store)
        down = False
        for _ in range(4):
            await pass_time(mock_clock, store, 61)
        assert sorted(done) == sorted(f"k{number}" for number in range(10))


async def test_failed_transfer_is_retried_after_a_reconnect(store, mock_clock):
    """While a data handler runs on, the outbox survives a disconnect, and used to sleep until a link came."""
    handler = Handler(failures=1)
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        never = trio.Event()

        async def run_on(_: bytes) -> bytes:
            await never.wait()
            return b""

        plugin.register_data_handler(run_on)
        receive(plugin, 1, "k")
        assert plugin.ask(2, b"x")
        await settle(store)
        await plugin.disconnect()
        await pass_time(mock_clock, store, 5)
        assert handler.keys == ["k"]
        await plugin.connect()
        plugin.lose_link()
        await pass_time(mock_clock, store, 0.01)
        assert handler.keys == ["k", "k"]
        assert await states(plugin) == {"k": "delivered"}


async def test_one_account_gets_a_quarter_of_the_handlers(store):
    """The other accounts would wait for half a minute, until the hanging handlers are late."""
    handler = Handler()
    handler.may_end = trio.Event()
    async with open_journal(store) as plugin:
        plugin.register_money_handler(handler)
        for number in range(100):
            await credit(plugin, Transfer("5", "busy", key=f"b{number}", digest=b"d"))
        await settle(store)
        assert handler.running == outbox.OF_AN_ACCOUNT == 16
        await credit(plugin, Transfer("5", "quiet", key="q", digest=b"d"))
        await settle(store)
        assert handler.keys[-1] == "q"
        handler.may_end.set()
        await settle(store)
        assert sorted(handler.keys) == sorted(["q", *(f"b{number}" for number in range(100))])
        assert handler.most == 17


async def test_handler_that_raises_when_cancelled_fails_no_plugin(store, caplog):
    """The application has cancelled its nursery; an event must not say that the plugin has failed."""

    async def fail_at_the_end():
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("clean-up")

    async def handle(amount):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_at_the_end)
            await trio.sleep_forever()

    with trio.CancelScope() as scope:
        async with open_journal(store) as plugin:
            plugin.register_money_handler(handle)
            receive(plugin, 1, "k")
            await settle(store)
            scope.cancel()
    assert not any(isinstance(event, Failed) for event in read_events(plugin))
    assert [record.message.splitlines()[0] for record in caplog.records] == [
        "a handler raised while it was cancelled: ValueError('clean-up')"
    ]
