"""Checks of money: amounts, acknowledgements, doubt, and what a transactional store adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from ...errors import (
    DuplicateIdError,
    InsufficientBalanceError,
    InvalidFieldsError,
    InvalidServicesError,
    LedgerPluginError,
    NotConnectedError,
    RemoteError,
    TransferInDoubtError,
)
from ...transfer import Transfer, current_transfer
from .assertions import Pending, expect, ignore, outcome_of, raising, refusing
from .harness import Check, Level, Listed, Stage

if TYPE_CHECKING:
    import sqlite3

__all__ = ["CHECKS"]

_checks: Listed = Listed()
CHECKS: list[Check] = _checks.checks

MAX_AMOUNT = 2**64 - 1


class _Till:
    """A money handler that keeps the amounts.

    Attributes:
        amounts: The amounts of the transfers so far.
    """

    def __init__(self) -> None:
        self.amounts: list[str] = []
        self._news = trio.Event()

    async def take(self, amount: str) -> None:
        self.amounts.append(amount)
        self._news.set()

    async def wait(self, number: int) -> None:
        """Wait for a number of transfers: with a store they are credited before the handler is called."""
        while len(self.amounts) < number:
            self._news = trio.Event()
            await self._news.wait()


@_checks("LedgerPlugin#sendMoney", money=True)
async def send_money_reaches_the_peers_handler(stage: Stage) -> None:
    """``send_money`` gives the peer's handler the amount, as decimal text, and returns nothing."""
    async with stage.open() as pair:
        till = _Till()
        pair.peer.register_money_handler(till.take)
        returned: object = await outcome_of(pair.plugin.send_money, "250")
        expect(returned is None, f"send_money returned {returned!r}, not None")
        await till.wait(1)
        expect(till.amounts == ["250"], f"'250' was sent; the peer's handler got {till.amounts}")


@_checks("LedgerPlugin#registerMoneyHandler", money=True)
async def a_money_handler_gets_the_peers_money(stage: Stage) -> None:
    """The registered handler is called with the amount that the peer sends."""
    async with stage.open() as pair:
        till = _Till()
        pair.plugin.register_money_handler(till.take)
        await pair.peer.send_money("17")
        await till.wait(1)
        expect(till.amounts == ["17"], f"the peer sent '17'; the handler got {till.amounts}")


@_checks("LedgerPlugin#sendMoney", money=True)
async def every_amount_up_to_the_maximum_is_sent(stage: Stage) -> None:
    """Amounts from 1 to 2**64-1 are sent exactly, as text or as int."""
    async with stage.open() as pair:
        till = _Till()
        pair.peer.register_money_handler(till.take)
        amounts: list[str | int] = ["1", 2**53 + 1, str(MAX_AMOUNT), MAX_AMOUNT]
        for amount in amounts:
            await pair.plugin.send_money(amount)
        await till.wait(len(amounts))
        expect(till.amounts == [str(amount) for amount in amounts], f"{amounts} were sent; {till.amounts} came")


@_checks("LedgerPlugin#sendMoney", Level.RULE, money=True)
async def an_amount_out_of_range_is_an_invalid_fields_error(stage: Stage) -> None:
    """An amount that is not a whole number from 1 to 2**64-1 is refused, and nothing is sent."""
    async with stage.open() as pair:
        till = _Till()
        pair.peer.register_money_handler(till.take)
        amounts: list[str | int] = ["0", "-1", "1.5", "", "1e3", " 1", str(2**64), 0, -1, 2**64]
        for amount in amounts:
            with raising(InvalidFieldsError, f"send_money({amount!r})"):
                await pair.plugin.send_money(amount)
        await pair.plugin.send_money("1")
        await till.wait(1)
        expect(till.amounts == ["1"], f"refused amounts were sent: {till.amounts}")


@_checks("LedgerPlugin#sendMoney", Level.RULE, money=True)
async def an_amount_of_another_type_is_a_type_error(stage: Stage) -> None:
    """An amount that is neither text nor an int is refused with TypeError."""
    wrong: Any
    async with stage.open() as pair:
        pair.peer.register_money_handler(ignore)
        for wrong in (None, 1.0, True, b"1"):
            with raising(TypeError, f"send_money({wrong!r})"):
                await pair.plugin.send_money(wrong)


@_checks("LedgerPlugin#sendMoney", Level.RULE, money=True)
async def send_money_before_connect_is_not_connected(stage: Stage) -> None:
    """Without a connection ``send_money`` raises NotConnectedError at once."""
    async with stage.open(connect=False) as pair:
        with raising(NotConnectedError, "send_money() before connect()"):
            await pair.plugin.send_money("1")


@_checks("LedgerPlugin#sendMoney", money=True, store=False)
async def send_money_waits_for_the_acknowledgement(stage: Stage) -> None:
    """``send_money`` returns after the peer's handler has returned, not earlier."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        arrived, go_on = trio.Event(), trio.Event()

        async def slow(_: str) -> None:
            arrived.set()
            await go_on.wait()

        pair.peer.register_money_handler(slow)
        call = Pending(nursery, pair.plugin.send_money, "1")
        await arrived.wait()
        expect(not call.done, "send_money returned while the peer's handler was running")
        go_on.set()
        await call.value()


@_checks("LedgerPlugin#registerMoneyHandler", Level.SHOULD, money=True, store=False)
async def without_a_money_handler_the_peer_gets_an_error(stage: Stage) -> None:
    """A transfer without a handler is answered with an error."""
    async with stage.open() as pair:
        with raising(RemoteError, "money came to a plugin without a handler"):
            await pair.peer.send_money("1")


@_checks("LedgerPlugin#registerMoneyHandler", money=True, store=False)
async def a_money_handler_may_refuse(stage: Stage) -> None:
    """An exception of a money handler refuses the transfer, and reaches the peer under its code."""
    async with stage.open() as pair:
        pair.plugin.register_money_handler(refusing(InsufficientBalanceError("no")))
        with raising(RemoteError, "the money handler raised") as caught:
            await pair.peer.send_money("1")
        expect(caught[0].code == "F08", f"the peer received {caught[0].code}, not F08")


@_checks("current_transfer", Level.RULE, money=True)
async def current_transfer_is_the_handlers_own(stage: Stage) -> None:
    """Inside a money handler ``current_transfer()`` returns the transfer of this call."""
    async with stage.open() as pair:
        till = _Till()

        async def take(_: str) -> None:
            await till.take(current_transfer().amount)

        pair.plugin.register_money_handler(take)
        await pair.peer.send_money("3")
        await pair.peer.send_money("4")
        await till.wait(2)
        expect(till.amounts == ["3", "4"], f"'3' and '4' came; current_transfer() gave {till.amounts}")


@_checks("LedgerPlugin#sendMoney", Level.RULE, money=True, store=False)
async def a_lost_acknowledgement_leaves_the_transfer_in_doubt(stage: Stage) -> None:
    """If the connection ends before the acknowledgement, TransferInDoubtError names the transfer."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        arrived = trio.Event()

        async def never(_: str) -> None:
            arrived.set()
            await trio.sleep_forever()

        pair.peer.register_money_handler(never)
        call = Pending(nursery, lambda: pair.plugin.send_money("5"))
        await arrived.wait()
        await pair.peer.disconnect()
        with raising(TransferInDoubtError, "the peer disconnected before it acknowledged") as caught:
            await call.value()
        key, amount = caught[0].key, caught[0].amount
        expect(bool(key) and amount == "5", f"the transfer is one of '5'; the error names {key!r} of {amount!r}")


@_checks("LedgerPlugin#sendMoney", Level.RULE, money=True)
async def idempotency_keys_are_checked(stage: Stage) -> None:
    """A key is 1 to 64 ASCII characters; others are refused before anything is sent."""
    wrong: Any
    async with stage.open() as pair:
        pair.peer.register_money_handler(ignore)
        for wrong, kind in (("", InvalidFieldsError), ("k" * 65, InvalidFieldsError), (7, TypeError)):
            with raising(kind, f"the idempotency key is {wrong!r}"):
                await pair.plugin.send_money("1", idempotency_key=wrong)


@_checks("LedgerPlugin#sendMoney", Level.RULE, money=False)
async def a_plugin_without_money_says_so(stage: Stage) -> None:
    """Without money ``send_money`` is an error, never a silent success."""
    async with stage.open() as pair:
        with raising(LedgerPluginError, "send_money() of a plugin without money"):
            await pair.plugin.send_money("1")


@_checks("transfers", Level.RULE, store=False)
async def without_a_store_there_are_no_transfers(stage: Stage) -> None:
    """Without a journal ``transfers`` raises InvalidServicesError."""
    async with stage.open(connect=False) as pair:
        with raising(InvalidServicesError, "transfers without a store"):
            _ = pair.plugin.transfers


# With a transactional store at both ends: level KEYED.


@_checks("transfers", Level.RULE, money=True, store=True)
async def a_known_key_has_its_effect_once(stage: Stage) -> None:
    """A transfer that is sent again with its key returns as before, and is credited once."""
    async with stage.open() as pair:
        pair.peer.register_money_handler(ignore)
        for _ in range(3):
            await pair.plugin.send_money("9", idempotency_key="once")
        received = (await pair.peer.transfers.totals()).received
        expect(received == 9, f"9 were sent three times with one key; the peer has {received}")


@_checks("transfers", Level.RULE, money=True, store=True)
async def a_known_key_of_another_amount_is_a_duplicate_id_error(stage: Stage) -> None:
    """A key belongs to its amount; another amount raises DuplicateIdError, and nothing is sent."""
    async with stage.open() as pair:
        pair.peer.register_money_handler(ignore)
        await pair.plugin.send_money("9", idempotency_key="once")
        with raising(DuplicateIdError, "the key belongs to another amount"):
            await pair.plugin.send_money("10", idempotency_key="once")
        received = (await pair.peer.transfers.totals()).received
        expect(received == 9, f"9 were sent and 10 refused; the peer has {received}")


@_checks("transfers", Level.RULE, money=True, store=True)
async def the_journals_of_both_ends_agree(stage: Stage) -> None:
    """The journals of both ends agree on every unit."""
    async with stage.open() as pair:
        for plugin in (pair.plugin, pair.peer):
            plugin.register_money_handler(ignore)
        for amount in (str(MAX_AMOUNT), "1", str(MAX_AMOUNT)):
            await pair.plugin.send_money(amount)
        await pair.peer.send_money("7")
        ours, theirs = await pair.plugin.transfers.totals(), await pair.peer.transfers.totals()
        right = 2 * MAX_AMOUNT + 1
        expect((ours.sent, theirs.received) == (right, right), f"{right} were sent; counted: {ours}, {theirs}")
        expect((ours.received, theirs.sent) == (7, 7), f"7 were received; counted: {ours}, {theirs}")


@_checks("transfers", Level.RULE, money=True, store=True)
async def a_transactional_handler_counts_with_its_transfer(stage: Stage) -> None:
    """A transactional handler runs in the crediting transaction; its exception refuses the transfer."""
    async with stage.open() as pair:
        amounts: list[str] = []

        def credit(_: sqlite3.Connection, transfer: Transfer) -> None:
            if transfer.amount == "13":
                raise InsufficientBalanceError("unlucky")
            amounts.append(transfer.amount)

        pair.plugin.register_transactional_money_handler(credit)
        await pair.peer.send_money("12")
        with raising(RemoteError, "the transactional handler raised"):
            await pair.peer.send_money("13")
        received = (await pair.plugin.transfers.totals()).received
        expect(amounts == ["12"], f"the handler has credited {amounts}")
        expect(received == 12, f"12 were credited and 13 refused; the journal has {received}")


@_checks("LedgerPlugin#registerMoneyHandler", Level.RULE, money=True, store=True)
async def money_handlers_of_both_kinds_exclude_each_other(stage: Stage) -> None:
    """Only one money handler is registered at a time, of either kind."""

    def credit(_: sqlite3.Connection, __: Transfer) -> None:
        pass

    async with stage.open(connect=False) as pair:
        pair.plugin.register_money_handler(ignore)
        with raising(LedgerPluginError, "a transactional handler beside another"):
            pair.plugin.register_transactional_money_handler(credit)
        pair.plugin.deregister_money_handler()
        pair.plugin.register_transactional_money_handler(credit)
        with raising(LedgerPluginError, "a handler beside a transactional one"):
            pair.plugin.register_money_handler(ignore)


@_checks("LedgerPlugin#registerMoneyHandler", Level.RULE, money=True, store=True)
async def a_money_handler_is_tried_again_until_it_succeeds(stage: Stage) -> None:
    """With a store the handler is called after the transfer is credited, and again after it has raised."""
    async with stage.open() as pair:
        till = _Till()

        async def take(amount: str) -> None:
            await till.take(amount)
            if len(till.amounts) == 1:
                raise OSError("try again")

        pair.plugin.register_money_handler(take)
        await pair.peer.send_money("6")
        await till.wait(2)
        received = (await pair.plugin.transfers.totals()).received
        expect(till.amounts == ["6", "6"], f"a handler raised once; it was called with {till.amounts}")
        expect(received == 6, f"6 came; the journal has {received}")
