"""``plugin.transfers``: an operator finds every transfer, and settles each one in doubt once."""

import gc
from typing import Any

import pytest
import trio
from support.calls import start
from support.ledgers import WEEK, new_store, open_journal, open_payer, receive, settle, states, sums

from trio_ledger_plugin import (
    InvalidFieldsError,
    MoneyLevel,
    NotAcceptedError,
    StoreError,
    Transfer,
    TransferInDoubtError,
    TransferNotFoundError,
)
from trio_ledger_plugin.money import history
from trio_ledger_plugin.transfer import TransferDirection, TransferState


async def pay_in_doubt(payer, key, amount=7):
    """Lose the reply to a transfer at PLAIN."""
    async with trio.open_nursery() as nursery:
        outcome = await start(nursery, lambda: payer.send_money(amount, idempotency_key=key))
        await settle(payer.services.store)
        payer.lose_link()
    assert isinstance(outcome[0], TransferInDoubtError)
    payer.regain_link()


async def test_confirmed_transfer_counts_as_sent(store):
    async with open_payer(store, retention=None) as payer:
        await pay_in_doubt(payer, "k")
        await payer.transfers.confirm("k")
        assert await sums(payer) == (7, 0, 0)
        for settle_it in (payer.transfers.confirm, payer.transfers.reject):
            with pytest.raises(InvalidFieldsError, match="'k' is acked already; nothing was changed"):
                await settle_it("k")
        assert await sums(payer) == (7, 0, 0)
        assert await states(payer) == {"k": "acked"}


async def test_rejected_transfer_counts_nowhere(store):
    async with open_payer(store, retention=None) as payer:
        await pay_in_doubt(payer, "k")
        await payer.transfers.reject("k")
        assert await sums(payer) == (0, 0, 0)
        for settle_it in (payer.transfers.confirm, payer.transfers.reject):
            with pytest.raises(InvalidFieldsError, match="'k' is rejected already; nothing was changed"):
                await settle_it("k")
        with pytest.raises(NotAcceptedError, match="by hand"):
            await payer.send_money(7, idempotency_key="k")
        assert len(payer.sent) == 1


async def test_settling_waits_for_a_try_in_progress(store):
    """The peer's reply may come a moment later; it counts, and settling it by hand as well is an error."""
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        await settle(store)
        settled = await start(nursery, lambda: payer.transfers.reject("k"))
        await settle(store)
        assert (outcome, settled) == ([], [])
        payer.answer()
        await settle(store)
        assert outcome == [None]
        assert isinstance(settled[0], InvalidFieldsError)
        assert await sums(payer) == (7, 0, 0)


@pytest.mark.parametrize("how", ["confirm", "reject"])
async def test_transfer_that_is_being_resent_can_be_settled(store, how):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        outcome = await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        await settle(store)
        settled = await start(nursery, lambda: getattr(payer.transfers, how)("k"))
        payer.lose_link()
        await settle(store)
        assert settled == [None]
        if how == "confirm":
            assert outcome == [None]
        else:
            assert isinstance(outcome[0], NotAcceptedError)
        payer.regain_link()
        await settle(store)
        assert payer.sent_keys == ["k"]
        assert await sums(payer) == ((7, 0, 0) if how == "confirm" else (0, 0, 0))


async def test_waiting_transfer_without_callers_can_be_settled(store):
    async with open_payer(store) as payer, trio.open_nursery() as nursery:
        await start(nursery, lambda: payer.send_money(7, idempotency_key="k"))
        await settle(store)
        nursery.cancel_scope.cancel()
    async with open_payer(store, retention=None) as payer:
        await payer.transfers.confirm("k")
        payer.retention = WEEK
        payer.lose_link()
        payer.regain_link()
        await settle(store)
        assert payer.sent == []


async def test_level_of_nobody_cannot_be_reset(store):
    # A link at KEYED enters the account.
    async with open_payer(store, retention=None) as payer:
        with pytest.raises(InvalidFieldsError, match="is not known; nothing was changed"):
            await payer.transfers.reset_level()
        await pay_in_doubt_at_plain(payer)
        with pytest.raises(InvalidFieldsError, match="is not at KEYED; nothing was changed"):
            await payer.transfers.reset_level()


async def pay_in_doubt_at_plain(payer):
    payer.lose_link()
    payer.retention = None
    payer.regain_link()
    await pay_in_doubt(payer, "plain")


async def test_unused_key_is_not_found(store):
    async with open_journal(store) as plugin:
        receive(plugin, 1, "theirs")
        await settle(store)
        for key in ("nobody's", "theirs"):
            with pytest.raises(TransferNotFoundError):
                await plugin.transfers.confirm(key)


async def test_wrong_types_are_refused_at_once(store):
    async with open_payer(store) as plugin:
        wrong: Any
        for wrong in (5, None, b"k"):
            with pytest.raises(TypeError, match="key is text"):
                await plugin.transfers.confirm(wrong)
        wrong = 5
        with pytest.raises(TypeError, match="account is a str"):
            await plugin.transfers.reset_level(account=wrong)
        wrong = "sent"
        with pytest.raises(TypeError, match="state is a TransferState"):
            await anext(plugin.transfers.walk(state=wrong))
        with pytest.raises(TypeError, match="direction is a TransferDirection"):
            await anext(plugin.transfers.walk(direction=wrong))
        with pytest.raises(InvalidFieldsError, match="shows ''"):
            await plugin.transfers.confirm("k", account="alice")


async def test_walk_filters_by_state_and_direction_over_many_pages(store, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 3)
    async with open_journal(store, retention=None) as payer:
        for number in range(8):
            await pay_in_doubt(payer, f"out{number}", number + 1)
            payer.ask(number, Transfer("5"))
            await settle(store)
        assert len([entry async for entry in payer.transfers.walk()]) == 16
        out = [entry async for entry in payer.transfers.walk(direction=TransferDirection.OUT)]
        assert [(entry.key, entry.amount) for entry in out] == [(f"out{number}", number + 1) for number in range(8)]
        assert {entry.level for entry in out} == {MoneyLevel.PLAIN}
        numbers = [entry.number for entry in out]
        assert numbers == sorted(numbers)
        await payer.transfers.confirm("out5")
        assert list(await states(payer, state=TransferState.ACKED)) == ["out5"]
        which = {"state": TransferState.IN_DOUBT, "direction": TransferDirection.OUT}
        assert list(await states(payer, **which)) == [f"out{number}" for number in range(8) if number != 5]
        assert await states(payer, state=TransferState.IN_DOUBT, direction=TransferDirection.IN) == {}


async def test_transfers_can_be_settled_during_a_walk(store, monkeypatch):
    monkeypatch.setattr(history, "PAGE", 2)
    async with open_payer(store, retention=None) as payer:
        for number in range(5):
            await pay_in_doubt(payer, f"k{number}")
        async for entry in payer.transfers.walk(state=TransferState.IN_DOUBT):
            await payer.transfers.confirm(entry.key)
        assert await sums(payer) == (35, 0, 0)


async def test_failing_store_settles_nothing(store):
    async with open_payer(store, retention=None) as payer:
        await pay_in_doubt(payer, "k")
        store.refuses = True
        for call in (payer.transfers.confirm("k"), payer.transfers.reset_level(), payer.transfers.totals()):
            with pytest.raises(StoreError):
                await call
        store.refuses = False
        assert await states(payer) == {"k": "in_doubt"}


@new_store
async def test_walk_can_be_left_early(store):
    """A program that only looks for the first transfer in doubt would get a warning about an unclosed generator."""
    async with open_journal(store) as plugin:
        for number in range(3):
            receive(plugin, number, f"k{number}")
        await settle(store)
        async for entry in plugin.transfers.walk():
            assert entry.key.startswith("k")
            break
        gc.collect()
        assert len([entry async for entry in plugin.transfers.walk()]) == 3


async def test_walk_includes_what_is_entered_meanwhile(store):
    async with open_payer(store, retention=None) as payer:
        await pay_in_doubt(payer, "first")
        found = []
        async for entry in payer.transfers.walk(direction=TransferDirection.OUT):
            found.append(entry.key)
            if entry.key == "first":
                payer.regain_link()
                await pay_in_doubt(payer, "second")
        assert found == ["first", "second"]
