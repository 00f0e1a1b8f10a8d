"""Sending money: at most once at PLAIN, exactly once at KEYED, even if callers, links or the store fail."""

import time
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.lowlevel
from support.calls import start
from support.ledgers import DAY, PEER_OFFER, WEEK, aged, open_payer, settle, states, sums, until
from trio.testing import wait_all_tasks_blocked

from trio_ledger_plugin import (
    ConnectionLostError,
    DecodeError,
    DuplicateIdError,
    MoneyLevel,
    MoneyLevelError,
    NotAcceptedError,
    NotConnectedError,
    PluginClosedError,
    PluginServices,
    RemoteError,
    StoreError,
    TransferInDoubtError,
    TransfersInDoubt,
    open_plugin,
)
from trio_ledger_plugin.money import outgoing, resender
from trio_ledger_plugin.negotiation import PeerNumbers
from trio_ledger_plugin.transfer import TransferDirection

BUSY = RemoteError("T00", "UnreachableError", data=b'{"message": "later"}')
NO = RemoteError("F00", "NotAcceptedError", data=b'{"message": "no"}')


async def pay(payer, nursery, key, amount=7):
    """Start a transfer; return the list to which its outcome is appended."""

    async def call():
        await payer.send_money(amount, idempotency_key=key)

    outcomes = await start(nursery, call)
    await settle(payer.services.store)
    return outcomes


async def start_and_cancel(payer, key, amount=7):
    """Start a transfer and cancel its caller once it has been sent."""
    async with trio.open_nursery() as nursery:
        await pay(payer, nursery, key, amount)
        nursery.cancel_scope.cancel()


# Acknowledged, refused.


@pytest.mark.parametrize("retention", [WEEK, None])
async def test_acknowledged_transfer_is_counted_once_as_sent(store, retention):
    async with open_payer(store, retention=retention) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        assert outcome == []
        assert await sums(payer) == (0, 0, 7)
        assert await states(payer) == {"k": "sent"}
        payer.answer()
        await settle(store)
        assert outcome == [None]
        assert await states(payer) == {"k": "acked"}
        assert await sums(payer) == (7, 0, 0)
    assert payer.sent[0].level is (MoneyLevel.PLAIN if retention is None else MoneyLevel.KEYED)


@pytest.mark.parametrize("retention", [WEEK, None])
async def test_transfer_is_in_the_journal_before_it_is_sent(store, retention):
    """If the process were killed after the first byte, no record of the transfer would exist."""
    async with open_payer(store, retention=retention) as payer, trio.open_nursery() as nursery:
        await settle(store)
        store.may_return = trio.Event()
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        await wait_all_tasks_blocked(0.05)
        assert payer.sent == []
        store.may_return.set()
        await settle(store)
        assert payer.sent_keys == ["k"]
        payer.answer()
        await settle(store)
        assert outcome == [None]


@pytest.mark.parametrize("retention", [WEEK, None])
async def test_refused_transfer_is_recorded_as_refused(store, retention):
    async with open_payer(store, retention=retention) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.answer(NO)
        await settle(store)
        assert (outcome[0].code, outcome[0].data) == ("F00", NO.data)
        assert await states(payer) == {"k": "rejected"}
        again = await pay(payer, nursery, "k")
        assert (again[0].code, again[0].name, again[0].data) == ("F00", "NotAcceptedError", NO.data)
        assert len(payer.sent) == 1
        assert await sums(payer) == (0, 0, 0)


async def test_temporary_refusal_leaves_the_key_free_at_plain(store):
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.answer(BUSY)
        await settle(store)
        assert outcome[0].code == "T00"
        assert await states(payer) == {}
        again = await pay(payer, nursery, "k")
        payer.answer()
        await settle(store)
        assert again == [None]
        assert await sums(payer) == (7, 0, 0)


async def test_temporary_refusal_at_keyed_is_retried_while_the_caller_waits(store, mock_clock):
    async with open_payer(store, response_timeout=35) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        for pause in (1, 2):
            payer.answer(BUSY)
            await settle(store)
            assert outcome == []
            mock_clock.jump(pause)
            await settle(store)
        payer.answer()
        await settle(store)
        assert outcome == [None]
        assert payer.sent_keys == ["k"] * 3


@pytest.mark.parametrize(("seconds", "patience"), [(2.5, 2.5), (35, 5.0)])
async def test_transfer_refused_only_for_now_is_withdrawn(store, mock_clock, seconds, patience):
    """The caller gets a certain outcome: it was never applied, and its key and level are as before."""
    async with open_payer(store, response_timeout=seconds) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.answer(BUSY)
        await settle(store)
        mock_clock.jump(1)
        await settle(store)
        payer.answer(BUSY)
        await settle(store)
        if patience > 3:
            mock_clock.jump(2)
            await settle(store)
            payer.answer(BUSY)
            await settle(store)
        assert outcome == []
        mock_clock.jump(patience - (3 if patience > 3 else 1) + 0.01)
        await settle(store)
        assert outcome[0].code == "T00"
        assert await states(payer) == {}
        payer.lose_link()
        payer.retention = None
        payer.regain_link()
        again = await pay(payer, nursery, "k")
        payer.answer()
        await settle(store)
        assert again == [None]


async def test_transfer_refused_for_now_and_being_sent_again_is_in_doubt(store, mock_clock):
    async with open_payer(store, response_timeout=35) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.answer(BUSY)
        await settle(store)
        mock_clock.jump(1)
        await settle(store)
        assert payer.sent_keys == ["k"] * 2
        mock_clock.jump(4.01)
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
        assert outcome[0].reason.startswith(
            "the peer has refused it for now, and it is being sent again: the peer answered"
        )
        payer.answer()
        await settle(store)
        assert await states(payer) == {"k": "acked"}


async def test_pause_after_a_temporary_refusal_survives_a_restart(store, mock_clock):
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "k")
        for pause in (1, 2, 4):
            payer.answer(BUSY)
            await settle(store)
            mock_clock.jump(pause)
            await settle(store)
        payer.answer(BUSY)
        await settle(store)
    async with open_payer(store) as payer:
        await settle(store)
        mock_clock.jump(7.5)
        await settle(store)
        assert payer.sent == []
        mock_clock.jump(0.6)
        await settle(store)
        assert payer.sent_keys == ["k"]


# Known keys.


@pytest.mark.parametrize("retention", [WEEK, None])
async def test_acknowledged_key_is_not_sent_again(store, retention):
    async with open_payer(store, retention=retention) as payer, trio.open_nursery() as nursery:
        await pay(payer, nursery, "k")
        payer.answer()
        await settle(store)
        assert await pay(payer, nursery, "k") == [None]
        other = await pay(payer, nursery, "k", 8)
        assert isinstance(other[0], DuplicateIdError)
        assert len(payer.sent) == 1
        assert await sums(payer) == (7, 0, 0)


async def test_two_callers_of_one_key_share_one_transfer(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        first = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        second = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        other = await start(nursery, lambda: payer.send_money(8, idempotency_key="k"))
        await settle(store)
        assert payer.sent_keys == ["k"]
        assert isinstance(other[0], DuplicateIdError)
        payer.answer(NO)
        await settle(store)
        assert first[0].code == second[0].code == "F00"
        assert first[0] is not second[0]


@pytest.mark.parametrize("retention", [WEEK, None])
async def test_known_key_has_its_outcome_on_a_plain_link(store, retention):
    """A program that gets "nothing was sent" for an acknowledged transfer would pay again."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await pay(payer, nursery, "acked")
        payer.answer()
        await pay(payer, nursery, "refused")
        payer.answer(NO)
        await settle(store)
        payer.retention = retention
        assert await pay(payer, nursery, "acked") == [None]
        assert (await pay(payer, nursery, "refused"))[0].code == "F00"
        assert len(payer.sent) == 2


async def test_known_key_has_its_outcome_with_money_set_to_keyed(store):
    async with open_payer(store, money="keyed") as payer, trio.open_nursery() as nursery:
        await pay(payer, nursery, "acked")
        payer.answer()
        await settle(store)
        payer.retention = None
        assert await pay(payer, nursery, "acked") == [None]
        refused = await pay(payer, nursery, "new")
        assert isinstance(refused[0], MoneyLevelError)
        assert await states(payer) == {"acked": "acked"}


async def test_transfer_in_doubt_is_not_sent_again_under_its_key(store):
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        first = await pay(payer, nursery, "k")
        payer.lose_link()
        await settle(store)
        assert (first[0].key, first[0].amount) == ("k", "7")
        payer.regain_link()
        again = await pay(payer, nursery, "k")
        assert isinstance(again[0], TransferInDoubtError)
        assert len(payer.sent) == 1
        assert await sums(payer) == (0, 0, 7)
        await payer.transfers.confirm("k")
        assert await pay(payer, nursery, "k") == [None]
        assert await sums(payer) == (7, 0, 0)


async def test_key_of_an_earlier_run_is_known(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await pay(payer, nursery, "k")
        payer.answer()
        await settle(store)
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        assert await pay(payer, nursery, "k") == [None]
        assert payer.sent == []


# Cancelled callers.


async def test_cancellation_before_the_journal_withdraws_the_transfer(store):
    async with open_payer(store) as payer:
        await settle(store)
        store.may_begin = trio.Event()
        with trio.move_on_after(0.02):
            await payer.send_money(7, idempotency_key="k")
        store.may_begin.set()
        await settle(store)
        assert payer.sent == []
        assert await states(payer) == {}


async def cancel_and_retry(store: Any, held: str, payer: Any, nursery: trio.Nursery) -> Any:
    """Call, cancel while the store is held, and call again under the key; return the second outcome."""
    setattr(store, held, trio.Event())
    with trio.move_on_after(0.05):
        await payer.send_money(7, idempotency_key="k")
    return await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))


async def test_immediate_retry_after_a_cancellation_is_sent(store):
    """It would wait for a transfer that no task sends, and be left in doubt."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await settle(store)
        again = await cancel_and_retry(store, "may_begin", payer, nursery)
        store.may_begin.set()
        await settle(store)
        assert payer.sent_keys == ["k"]
        payer.answer()
        await settle(store)
        assert again == [None]


@pytest.mark.parametrize("ending", ["disconnect", "aclose", "cancel"])
async def test_retry_while_the_plugin_ends_says_nothing_was_sent(store, ending):
    """A bare RuntimeError says nothing about the money, and the key would stay taken by a transfer that is not sent."""
    async with trio.open_nursery() as nursery:
        async with open_payer(store, close_timeout=0.01) as payer:
            await settle(store)
            again = await cancel_and_retry(store, "may_begin", payer, nursery)
            if ending != "cancel":
                await getattr(payer, ending)()
            if ending == "disconnect":
                await wait_all_tasks_blocked()
                store.may_begin.set()
                await payer.connect()
                assert await states(payer) == {}
                third = await pay(payer, nursery, "k")
                payer.answer()
                await settle(store)
                assert third == [None]
        await wait_all_tasks_blocked()
        assert isinstance(again[0], PluginClosedError)


@pytest.mark.parametrize("ending", ["disconnect", "aclose", "cancel"])
async def test_retry_of_a_transfer_in_the_journal_is_in_doubt(store, ending):
    """The store had begun to enter it, so "nothing was sent" would not be certain."""
    async with trio.open_nursery() as nursery:
        async with open_payer(store, close_timeout=0.01) as payer:
            await settle(store)
            again = await cancel_and_retry(store, "may_return", payer, nursery)
            if ending != "cancel":
                await getattr(payer, ending)()
        await wait_all_tasks_blocked()
        store.may_return.set()
    assert isinstance(again[0], TransferInDoubtError)
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await settle(store)
        assert payer.sent_keys == []
        third = await pay(payer, nursery, "k")
        payer.answer()
        await settle(store)
        assert third == [None]
        assert await sums(payer) == (7, 0, 0)


async def test_one_of_two_callers_can_be_cancelled(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await settle(store)
        store.may_begin = trio.Event()
        stays = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        with trio.move_on_after(0.02):
            await payer.send_money(7, idempotency_key="k")
        store.may_begin.set()
        await settle(store)
        payer.answer()
        await settle(store)
        assert stays == [None]


@pytest.mark.parametrize("retention", [WEEK, None])
async def test_cancellation_after_the_journal_does_not_stop_the_transfer(store, retention):
    async with open_payer(store, retention=retention) as payer, trio.open_nursery() as nursery:
        await start_and_cancel(payer, "k")
        assert await states(payer) == {"k": "sent"}
        payer.answer()
        await settle(store)
        assert await states(payer) == {"k": "acked"}
        assert await pay(payer, nursery, "k") == [None]
        assert len(payer.sent) == 1


async def test_caller_that_is_cancelled_already_sends_nothing(store):
    async with open_payer(store) as payer:
        with trio.CancelScope() as scope:
            scope.cancel()
            await payer.send_money(7, idempotency_key="k")
        assert scope.cancelled_caught
        await settle(store)
        assert await states(payer) == {}


async def test_callers_deadline_does_not_end_the_transfer(store):
    clock_seconds = 0.1
    async with open_payer(store, response_timeout=clock_seconds) as payer:
        await settle(store)
        with pytest.raises(TransferInDoubtError, match="no acknowledgement within") as caught:
            await payer.send_money(7, idempotency_key="k")
        assert (caught.value.key, caught.value.amount) == ("k", "7")
        with trio.fail_after(5):
            # The call may have reached its own deadline as well; then the transfer is sent again.
            while not payer.calls.pending:  # noqa: ASYNC110 (a table of calls has no event)
                await trio.sleep(0.01)
        payer.answer()
        await settle(store)
        assert await states(payer) == {"k": "acked"}


async def test_timeout_before_the_journal_does_not_withdraw_at_keyed(store):
    """The error says that the transfer goes on; the caller would wait for money that is never sent."""
    async with open_payer(store, response_timeout=0.05) as payer:
        await settle(store)
        store.may_begin = trio.Event()
        with pytest.raises(TransferInDoubtError, match="when the store has recorded it"):
            await payer.send_money(7, idempotency_key="k")
        with pytest.raises(DuplicateIdError):
            await payer.send_money(8, idempotency_key="k")
        with trio.move_on_after(0.01):
            await payer.send_money(7, idempotency_key="k")
        store.may_begin.set()
        await settle(store)
        assert payer.sent_keys == ["k"]
        payer.answer()
        await settle(store)
        assert await sums(payer) == (7, 0, 0)


async def test_transfer_that_could_not_be_entered_is_logged(store, caplog):
    """No caller waits for its outcome, and there is no other trace of it."""
    async with open_payer(store, response_timeout=0.05) as payer:
        await settle(store)
        store.may_begin = trio.Event()
        with pytest.raises(TransferInDoubtError, match="when the store has recorded it"):
            await payer.send_money(7, idempotency_key="k")
        store.refuses = True
        store.may_begin.set()
        await settle(store)
        store.refuses = False
        assert (payer.sent, await states(payer)) == ([], {})
    message = "transfer k was not sent, although its caller was told that it goes on: the disk is full"
    assert [record.getMessage() for record in caplog.records] == [message]


async def test_keyed_transfer_goes_on_even_on_a_plain_link(store):
    """If the error said that it is not sent again, the program would pay under another key."""
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "k")
    async with open_payer(store, retention=None, response_timeout=0.05) as payer:
        with pytest.raises(TransferInDoubtError, match="goes on from the journal"):
            await payer.send_money(7, idempotency_key="k")
        payer.lose_link()
        payer.retention = WEEK
        payer.regain_link()
        await settle(store)
        assert payer.sent_keys == ["k"]


@pytest.mark.parametrize("held", ["may_begin", "may_return"])
async def test_timeout_before_the_journal_withdraws_at_plain(store, mock_clock, held):
    """A transfer that cannot be sent again must not be sent hours later: it may have been paid in another way."""
    async with open_payer(store, retention=None, response_timeout=5) as payer, trio.open_nursery() as nursery:
        await settle(store)
        setattr(store, held, trio.Event())
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        await wait_all_tasks_blocked(0.05)
        mock_clock.jump(7)
        await wait_all_tasks_blocked()
        assert isinstance(outcome[0], TransferInDoubtError)
        assert "not sent again" in str(outcome[0])
        getattr(store, held).set()
        await settle(store)
        assert payer.sent == []
        assert await states(payer) == {}
        again = await pay(payer, nursery, "k")
        payer.answer()
        await settle(store)
        assert again == [None]
        assert await sums(payer) == (7, 0, 0)


async def test_retry_during_a_withdrawal_gets_its_own_transfer(store):
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        await settle(store)
        again = await cancel_and_retry(store, "may_return", payer, nursery)
        store.may_return.set()
        await settle(store)
        assert payer.sent_keys == ["k"]
        payer.answer()
        await settle(store)
        assert again == [None]
        assert await sums(payer) == (7, 0, 0)


async def test_retry_after_a_withdrawal_times_out_if_the_store_hangs(store):
    async with open_payer(store, response_timeout=0.1) as payer:
        await settle(store)
        store.may_return = trio.Event()
        with trio.move_on_after(0.05):
            await payer.send_money(7, idempotency_key="k")
        with trio.fail_after(2), pytest.raises(TransferInDoubtError, match="may not have been withdrawn"):
            await payer.send_money(7, idempotency_key="k")
        store.may_return.set()
        await settle(store)
        assert payer.sent == []


# Lost links at KEYED.


async def test_keyed_transfer_survives_a_lost_link(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        for _ in range(3):
            payer.lose_link()
            await settle(store)
            assert outcome == []
            payer.regain_link()
            await settle(store)
        assert payer.sent_keys == ["k"] * 4
        payer.answer()
        await settle(store)
        assert outcome == [None]
        assert await sums(payer) == (7, 0, 0)


async def test_keyed_transfer_survives_a_restart(store):
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "k")
    async with open_payer(store) as payer:
        await settle(store)
        assert payer.sent_keys == ["k"]
        assert payer.sent[0].amount == "7"
        payer.answer()
        await settle(store)
        assert await states(payer) == {"k": "acked"}


async def test_keyed_transfer_is_sent_once_on_each_link(store):
    """Whether it was read from the journal or is still in memory, two tasks must not send it at once."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await pay(payer, nursery, "k")
        payer.money.link_up()
        payer.money.link_up()
        await settle(store)
        assert payer.sent_keys == ["k"]
        payer.answer()
        await settle(store)


async def test_temporary_refusal_of_a_resent_transfer_is_retried(store):
    """The first try may have been applied; if the key were removed, the money would be paid twice."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        payer.regain_link()
        await settle(store)
        payer.answer(BUSY)
        await settle(store)
        assert outcome == []
        assert await states(payer) == {"k": "sent"}
        await until(lambda: payer.calls.pending)
        payer.answer()
        await settle(store)
        assert outcome == [None]
        assert payer.sent_keys == ["k"] * 3


async def test_temporary_refusal_after_a_restart_is_retried(store):
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "k")
    async with open_payer(store) as payer:
        await settle(store)
        payer.answer(BUSY)
        await settle(store)
        assert await states(payer) == {"k": "sent"}


async def test_final_refusal_of_a_resent_transfer_is_its_outcome(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        payer.regain_link()
        await settle(store)
        payer.answer(NO)
        await settle(store)
        assert outcome[0].code == "F00"
        assert await states(payer) == {"k": "rejected"}


async def test_duplicate_id_reply_to_a_resent_transfer_is_in_doubt(store):
    """The first try may have been applied under the key, and the second looked different to the peer."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        payer.regain_link()
        await settle(store)
        payer.answer(RemoteError("F05", "DuplicateIdError"))
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
        assert await states(payer) == {"k": "in_doubt"}


async def test_unreadable_reply_does_not_cause_a_flood(store):
    """A peer with broken acknowledgements would be sent the same transfer as fast as the network allows."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        with trio.move_on_after(0.4):
            while True:
                if payer.calls.pending:
                    payer.answer(ConnectionLostError("as if lost"))
                await trio.lowlevel.checkpoint()
        assert len(payer.sent) <= 2
        assert outcome == []
        nursery.cancel_scope.cancel()


async def test_keyed_transfer_waits_for_a_keyed_link(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        payer.retention = None
        payer.regain_link()
        await settle(store)
        assert len(payer.sent) == 1
        payer.lose_link()
        payer.retention = WEEK
        payer.regain_link()
        await settle(store)
        assert len(payer.sent) == 2
        payer.answer()
        await settle(store)
        assert outcome == [None]


async def test_old_transfers_are_resent_a_limited_number_at_once(store):
    number = 3 * resender.RESENT_AT_ONCE // 2
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        for index in range(number):
            nursery.start_soon(lambda key: payer.send_money(1, idempotency_key=key), f"k{index}")
        await until(lambda: len(payer.sent) == number)
        nursery.cancel_scope.cancel()
    async with open_payer(store) as payer:
        await settle(store)
        assert len(payer.calls.pending) == resender.RESENT_AT_ONCE
        with trio.fail_after(20):
            while payer.calls.pending:
                while payer.calls.pending:
                    payer.answer()
                await settle(store)
        assert sorted(payer.sent_keys) == sorted(f"k{index}" for index in range(number))
        assert await sums(payer) == (number, 0, 0)


async def test_resending_continues_when_the_store_works_again(store):
    """Otherwise transfers would wait until the link is lost again."""
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "k")
    async with open_payer(store) as payer:
        await settle(store)
        payer.lose_link()
        store.refuses = True
        payer.regain_link()
        await settle(store)
        store.refuses = False
        await until(lambda: payer.calls.pending)
        payer.answer()
        await settle(store)
        assert await states(payer) == {"k": "acked"}


# Retention.


async def test_transfer_is_in_doubt_after_half_of_the_peers_retention(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        await settle(store)
        payer.offer = aged(WEEK / 2 + 1)
        payer.regain_link()
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
        assert "confirm()" in str(outcome[0])
        assert len(payer.sent) == 1
        assert await states(payer) == {"k": "in_doubt"}
        assert await sums(payer) == (0, 0, 7)


async def test_restart_does_not_resend_after_half_of_the_retention(store):
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "k")
    async with open_payer(store, offer=aged(WEEK / 2 + 1)) as payer:
        await settle(store)
        assert payer.sent == []
        assert await states(payer) == {"k": "in_doubt"}


async def test_transfer_is_resent_just_before_half_of_the_retention(store):
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "k")
    async with open_payer(store, offer=aged(WEEK / 2 - 60)) as payer:
        await settle(store)
        assert payer.sent_keys == ["k"]


async def test_later_promise_does_not_shorten_an_earlier_one(store):
    """The peer has recorded its promise with the transfer's key."""
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "old")
    async with open_payer(store, retention=DAY, offer=aged(2 * DAY)) as payer:
        await settle(store)
        assert payer.sent_keys == ["old"]


@pytest.mark.parametrize("shift", [-16 * 3600.0, 16 * 3600.0, -8 * DAY, 8 * DAY])
async def test_own_clock_does_not_decide_what_is_sent_again(store, monkeypatch, shift):
    """A machine without a battery-backed clock would pay twice, or never."""
    monkeypatch.setattr(outgoing, "time", lambda: time.time() + shift)
    async with open_payer(store) as payer:
        await start_and_cancel(payer, "soon")
        await start_and_cancel(payer, "late")
    monkeypatch.setattr(outgoing, "time", time.time)
    async with open_payer(store, offer=aged(WEEK / 2 - 60)) as payer:
        await settle(store)
        assert sorted(payer.sent_keys) == ["late", "soon"]
    async with open_payer(store, offer=aged(WEEK / 2 + 1)) as payer:
        await settle(store)
        assert payer.sent == []


# The peer's journal.


async def events_of(payer: Any) -> list[Any]:
    """Return what the plugin has published, once reports that are collected have been made."""
    await trio.sleep(0.2)
    found = []
    with suppress(trio.WouldBlock):
        while True:
            found.append(payer.events.receive_nowait())
    return found


@pytest.mark.parametrize("offer", [aged(0, journal="another journal"), aged(-60)], ids=["replaced", "restored"])
async def test_peer_with_another_or_younger_journal_gets_nothing_again(store, caplog, offer):
    """It may have applied the transfer and lost the record of it."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        payer.offer = offer
        payer.regain_link()
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
        assert await states(payer) == {"k": "in_doubt"}
        new = await pay(payer, nursery, "new")
        payer.answer()
        await settle(store)
        assert new == [None]
        assert TransfersInDoubt(1, 7) in await events_of(payer)
        assert "Because of this, 1 transfer of 7 is in doubt and not sent again" in caplog.text


async def test_peer_that_lost_acknowledged_transfers_is_named(store, caplog):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        for receipt, key in enumerate(("a", "b", "c"), 1):
            await pay(payer, nursery, key)
            payer.answer(receipt=receipt)
        await settle(store)
        said = await payer.money.make_offer("", PEER_OFFER)
        assert said is not None
        assert said.peer == PeerNumbers(PEER_OFFER.journal, sent=3, acked=3)
        payer.lose_link()
        theirs = PeerNumbers(said.journal, received=1, credited=1)
        payer.offer, payer.said = aged(5, peer=theirs, tells_peer=True), said
        payer.regain_link()
        await settle(store)
        assert "it does not know 2 transfers that it has acknowledged" in caplog.text
        assert "'c' of 7, 'b' of 7" in caplog.text


async def test_own_journal_that_lost_transfers_is_named_once(store, caplog):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        open_one = await pay(payer, nursery, "open")
        for _ in range(2):
            payer.lose_link()
            said = await payer.money.make_offer("", PEER_OFFER)
            assert said is not None
            theirs = PeerNumbers(said.journal, sent=4, acked=4, received=9)
            payer.offer, payer.said = aged(5, peer=theirs, tells_peer=True), said
            payer.regain_link()
            await settle(store)
        assert isinstance(open_one[0], TransferInDoubtError)
        text = "this journal is an old copy: it does not know 4 transfers that it has acknowledged to the peer, and 8"
        assert caplog.text.count(text) == 1


async def test_lost_link_during_a_withdrawal_is_told_as_that(store):
    """Not that the account's level has to be reset."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await pay(payer, nursery, "first")
        payer.answer()
        await settle(store)
        again = await cancel_and_retry(store, "may_return", payer, nursery)
        payer.lose_link()
        store.may_return.set()
        await settle(store)
        assert isinstance(again[0], NotConnectedError)


# Levels.


async def test_keyed_account_sends_nothing_over_a_plain_link(store):
    """Otherwise a peer could get money without a record that it got it."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await pay(payer, nursery, "k")
        payer.answer()
        await settle(store)
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "new")
        assert isinstance(outcome[0], MoneyLevelError)
        assert payer.sent == []
        assert await states(payer) == {"k": "acked"}
        await payer.transfers.reset_level()
        outcome = await pay(payer, nursery, "new")
        payer.answer()
        await settle(store)
        assert outcome == [None]


async def test_keyed_transfer_is_not_sent_after_a_level_reset(store):
    """The operator reconciles it by hand; if it were sent as well, it would be paid twice."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        await settle(store)
        await payer.transfers.reset_level()
        assert await states(payer) == {"k": "in_doubt"}
        await payer.transfers.reject("k")
        payer.regain_link()
        await settle(store)
        assert len(payer.sent) == 1
        assert isinstance(outcome[0], NotAcceptedError)
        assert await states(payer) == {"k": "rejected"}


# PLAIN.


async def test_plain_transfer_is_never_sent_again(store):
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.lose_link()
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
        assert await states(payer) == {"k": "in_doubt"}
        payer.regain_link()
        await settle(store)
        payer.retention = WEEK
        payer.link_up()
        await settle(store)
        assert len(payer.sent) == 1


async def test_transfer_can_be_settled_as_soon_as_it_is_in_doubt(store):
    """An operator who settles it right after the error would get the error that it is not in doubt."""
    opts = {"plugin": "loopback", "name": "doubt", "response_timeout": 0.02, "close_timeout": 0.02}

    async def never_answer(amount):
        await trio.sleep_forever()

    async with (
        open_plugin(opts, money_handler=never_answer),
        open_plugin(opts, PluginServices(store=store)) as payer,
    ):
        for number in range(10):
            with pytest.raises(TransferInDoubtError) as doubt:
                await payer.send_money(7, idempotency_key=f"k{number}")
            await payer.transfers.confirm(doubt.value.key)
        assert (await payer.transfers.totals()).sent == 70


async def test_plain_transfer_of_a_killed_process_is_in_doubt(store):
    async with open_payer(store, retention=None) as payer:
        await start_and_cancel(payer, "k")
    async with open_payer(store) as payer:
        await settle(store)
        assert payer.sent == []
        assert await states(payer) == {"k": "in_doubt"}
        assert await sums(payer) == (0, 0, 7)


async def test_plain_transfer_without_a_link_is_removed(store):
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        await settle(store)
        store.may_return = trio.Event()
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        payer.lose_link()
        store.may_return.set()
        await settle(store)
        assert isinstance(outcome[0], NotConnectedError)
        assert await states(payer) == {}
        assert payer.sent == []


async def test_unreadable_reply_leaves_a_plain_transfer_in_doubt(store):
    async with open_payer(store, retention=None) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        payer.answer(TransferInDoubtError("k", "7", str(DecodeError("rubbish"))))
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
        assert await states(payer) == {"k": "in_doubt"}


# Not connected, closing.


async def test_new_transfer_without_a_link_is_refused(store):
    async with open_payer(store) as payer:
        payer.lose_link()
        with pytest.raises(NotConnectedError):
            await payer.send_money(7, idempotency_key="k")
        assert await states(payer) == {}


async def test_known_key_has_its_outcome_without_a_link(store):
    """A program that gets "nothing was sent" for a transfer in flight would pay again."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        for key, answer in (("acked", None), ("refused", NO)):
            await pay(payer, nursery, key)
            payer.answer(answer)
        live = await pay(payer, nursery, "live")
        await settle(store)
        payer.lose_link()
        assert await pay(payer, nursery, "acked") == [None]
        assert (await pay(payer, nursery, "refused"))[0].code == "F00"
        again = await pay(payer, nursery, "live")
        assert isinstance((await pay(payer, nursery, "live", 8))[0], DuplicateIdError)
        payer.regain_link()
        await settle(store)
        payer.answer()
        await settle(store)
        assert live == [None]
        assert again == [None] or isinstance(again[0], TransferInDoubtError)
        assert payer.sent_keys.count("live") == 2


async def test_known_key_is_in_doubt_while_the_store_hangs(store):
    async with open_payer(store, response_timeout=0.1) as payer:
        await settle(store)
        payer.lose_link()
        store.may_begin = trio.Event()
        with trio.fail_after(2), pytest.raises(TransferInDoubtError, match="not known whether its key was used"):
            await payer.send_money(7, idempotency_key="k")
        store.may_begin.set()
        await settle(store)


@pytest.mark.parametrize("ending", ["disconnect", "aclose", "cancelled"])
@pytest.mark.parametrize("retention", [WEEK, None])
async def test_callers_are_in_doubt_when_the_plugin_ends(store, retention, ending):
    async with trio.open_nursery() as nursery:
        async with open_payer(store, retention=retention, close_timeout=0.01) as payer:
            outcome = await pay(payer, nursery, "k")
            if ending != "cancelled":
                await getattr(payer, ending)()
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
    async with open_payer(store, retention=retention) as payer:
        await settle(store)
        expected = ("sent", ["k"]) if retention else ("in_doubt", [])
        assert ((await states(payer))["k"], payer.sent_keys) == expected


@pytest.mark.parametrize("ending", ["disconnect", "aclose"])
@pytest.mark.parametrize("retention", [WEEK, None])
async def test_ending_during_a_journal_write_loses_nothing(store, retention, ending):
    """The transfer is entered or not; in both cases the caller's error and the journal agree."""
    async with trio.open_nursery() as nursery:
        async with open_payer(store, retention=retention, close_timeout=0.01) as payer:
            await settle(store)
            store.may_return = trio.Event()
            outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
            nursery.start_soon(getattr(payer, ending))
            await wait_all_tasks_blocked(0.05)
            store.may_return.set()
            await settle(store)
        await settle(store)
    assert payer.sent == []
    async with open_payer(store, retention=retention) as payer:
        left = await states(payer)
        if left:
            assert isinstance(outcome[0], TransferInDoubtError)
        else:
            assert isinstance(outcome[0], PluginClosedError | NotConnectedError | TransferInDoubtError)


async def test_transfer_continues_after_disconnect_and_connect(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        await payer.disconnect()
        await settle(store)
        assert isinstance(outcome[0], TransferInDoubtError)
        await payer.connect()
        await settle(store)
        assert payer.sent_keys == ["k", "k"]
        payer.answer()
        await settle(store)
        assert await states(payer) == {"k": "acked"}


# The store.


async def test_failing_store_stops_sending(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await settle(store)
        store.refuses = True
        outcome = await pay(payer, nursery, "k")
        assert isinstance(outcome[0], StoreError)
        assert payer.sent == []
        store.refuses = False
        assert await states(payer) == {}


@pytest.mark.parametrize("trouble", ["lost", "committed"])
@pytest.mark.parametrize("retention", [WEEK, None])
async def test_store_in_doubt_sends_nothing_twice(store, retention, trouble):
    async with open_payer(store, retention=retention) as payer, trio.open_nursery() as nursery:
        await settle(store)
        store.troubles.append(trouble)
        first = await pay(payer, nursery, "k")
        assert isinstance(first[0], TransferInDoubtError)
        assert payer.sent == []
        again = await pay(payer, nursery, "k")
        if payer.sent:
            payer.answer()
            await settle(store)
            assert again == [None]
            assert await sums(payer) == (7, 0, 0)
        else:
            assert isinstance(again[0], TransferInDoubtError)
            assert await sums(payer) == (0, 0, 7)
        assert len(payer.sent) <= 1


@pytest.mark.parametrize("trouble", ["refuse", "lost", "committed"])
async def test_acknowledgement_is_recorded_even_if_the_store_is_slow(store, trouble):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await pay(payer, nursery, "k")
        store.troubles.append(trouble)
        payer.answer()
        await until(lambda: outcome)
        assert outcome == [None]
        assert await states(payer) == {"k": "acked"}
        assert await sums(payer) == (7, 0, 0)


async def test_sums_are_exact_beyond_sqlite_integers(store):
    most = 2**64 - 1
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        for index in range(3):
            await pay(payer, nursery, f"k{index}", most)
            payer.answer()
            await settle(store)
        await pay(payer, nursery, "open", most)
        assert await sums(payer) == (3 * most, 0, most)
        entries = [entry async for entry in payer.transfers.walk(direction=TransferDirection.OUT)]
        assert [entry.amount for entry in entries] == [most] * 4
        nursery.cancel_scope.cancel()


async def test_temporary_refusals_are_retried_with_growing_pauses(store, mock_clock):
    async with open_payer(store, response_timeout=600) as payer:
        await start_and_cancel(payer, "k")
        payer.lose_link()
        payer.regain_link()
        times = []
        for pause in (1.0, 2.0, 4.0, 8.0):
            await settle(store)
            payer.answer(BUSY)
            await settle(store)
            mock_clock.jump(pause - 0.01)
            await settle(store)
            assert not payer.calls.pending
            mock_clock.jump(0.02)
            await settle(store)
            times.append(len(payer.sent))
        assert times == [3, 4, 5, 6]


async def test_transfer_queued_at_disconnect_is_sent_on_the_next_link(store, mock_clock, monkeypatch):
    """It is in the journal, but the task that reads unanswered transfers may have passed it already."""
    monkeypatch.setattr(resender, "RESENT_AT_ONCE", 4)
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        for number in range(10):
            key = f"k{number}"
            await start(nursery, lambda key=key: payer.send_money(5, idempotency_key=key))
            await settle(store)
        nursery.cancel_scope.cancel()
    never = trio.Event()

    async def run_on(_: bytes) -> bytes:
        await never.wait()
        return b""

    async with open_payer(store, max_in_flight=2) as payer:
        payer.register_data_handler(run_on)
        assert payer.ask(77, b"keeps the tasks running")
        await settle(store)
        await payer.disconnect()
        await settle(store)
        await payer.connect()
        for _ in range(20):
            await settle(store)
            while payer.calls.pending:
                payer.answer()
                await settle(store)
            mock_clock.jump(1)
        assert set((await states(payer)).values()) == {"acked"}


async def test_one_deadline_covers_all_waits_of_a_call(store, mock_clock):
    """A call made while an earlier one is withdrawn would wait for twice the response timeout."""
    async with open_payer(store, response_timeout=35.0) as payer, trio.open_nursery() as nursery:
        await settle(store)
        store.may_begin = trio.Event()
        with trio.CancelScope() as first:
            nursery.start_soon(cancel_later, first)
            await payer.send_money(7, idempotency_key="k")
        again = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        mock_clock.jump(34)
        store.may_begin.set()
        await settle(store)
        assert payer.sent_keys == ["k"]
        assert again == []
        mock_clock.jump(1.01)
        await settle(store)
        assert isinstance(again[0], TransferInDoubtError)
        assert "35 s" in str(again[0])


async def cancel_later(scope):
    await wait_all_tasks_blocked()
    scope.cancel()
