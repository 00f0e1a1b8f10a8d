"""The money service: with a journal, without one, and for one account of a server."""

from typing import Any

import pytest
import trio
import trio.testing
from support.ledgers import DAY, WEEK, open_payer

from trio_ledger_plugin import InvalidServicesError, RemoteError, TransferInDoubtError
from trio_ledger_plugin.stores import MemoryStore


@pytest.mark.parametrize(
    ("options", "offered"),
    [
        ({}, WEEK),
        ({"key_retention": DAY + 0.5}, DAY),
        ({"key_retention": 90 * DAY}, 30 * DAY),
        ({"money": "keyed"}, WEEK),
        ({"money": "plain"}, None),
    ],
)
async def test_offered_retention_is_the_configured_one(store, options, offered):
    async with open_payer(store, **options) as plugin:
        offer = plugin.money.offer()
        assert (None if offer is None else offer.retention) == offered


async def test_money_without_a_journal_is_plain_and_sent_once():
    async with open_payer(MemoryStore(), retention=None, money="plain") as payer, trio.open_nursery() as nursery:
        assert payer.money.offer() is None
        outcomes: list[Any] = []

        async def pay(key):
            try:
                await payer.send_money(7, idempotency_key=key)
                outcomes.append(None)
            except (RemoteError, TransferInDoubtError) as error:
                outcomes.append(error)

        hows: Any = (("a", None), ("b", RemoteError("F00", "NotAcceptedError")), ("c", "lost"))
        for key, how in hows:
            nursery.start_soon(pay, key)
            await trio.testing.wait_all_tasks_blocked()
            if how == "lost":
                payer.lose_link()
            else:
                payer.answer(how)
            await trio.testing.wait_all_tasks_blocked()
        assert payer.sent_keys == ["a", "b", "c"]
        assert outcomes[0] is None
        assert outcomes[1].code == "F00"
        assert (outcomes[2].key, outcomes[2].amount) == ("c", "7")
        payer.regain_link()
        await trio.testing.wait_all_tasks_blocked()
        assert len(payer.sent) == 3
        with pytest.raises(InvalidServicesError, match=r"transaction\(\)"):
            _ = payer.transfers


async def test_key_without_a_journal_is_refused_unless_plain_is_meant():
    """Nothing would remember it, and the program that calls again would pay twice."""
    async with open_payer(MemoryStore(), retention=None) as payer:
        with pytest.raises(InvalidServicesError, match="idempotency_key is kept in one that has"):
            await payer.send_money(7, idempotency_key="k")
        assert payer.sent == []


async def test_generated_keys_differ_without_a_journal():
    async with open_payer(None, retention=None) as payer, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(payer.send_money, 7)
        await trio.testing.wait_all_tasks_blocked()
        assert len(set(payer.sent_keys)) == 2
        payer.answer()
        payer.answer()
