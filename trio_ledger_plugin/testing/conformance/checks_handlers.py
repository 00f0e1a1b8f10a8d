"""Checks of how handlers are registered and removed."""

from __future__ import annotations

from typing import Any

import trio

from ...errors import DataHandlerAlreadyRegisteredError, MoneyHandlerAlreadyRegisteredError, RemoteError
from .assertions import call_held, echo, expect, ignore, outcome_of, raising, refusing
from .harness import Check, Level, Listed, Stage

__all__ = ["CHECKS"]

_checks: Listed = Listed()
CHECKS: list[Check] = _checks.checks


@_checks("LedgerPlugin#registerDataHandler")
async def a_second_data_handler_is_refused(stage: Stage) -> None:
    """While a data handler is set, another one raises DataHandlerAlreadyRegisteredError, and the first stays."""
    async with stage.open() as pair:
        pair.plugin.register_data_handler(echo)
        with raising(DataHandlerAlreadyRegisteredError, "a second data handler"):
            pair.plugin.register_data_handler(refusing(OSError("the second")))
        outcome = await outcome_of(pair.peer.send_data, b"x")
        expect(outcome == b"x", f"after a second handler was refused, the first one's answer is {outcome!r}")


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def a_data_handler_that_cannot_be_called_is_a_type_error(stage: Stage) -> None:
    """An object that is not callable is refused with TypeError, and is not registered."""
    wrong: Any
    async with stage.open(connect=False) as pair:
        for wrong in (None, 7, "handler"):
            with raising(TypeError, f"the data handler is {wrong!r}"):
                pair.plugin.register_data_handler(wrong)
        pair.plugin.register_data_handler(echo)


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def data_handlers_may_be_registered_before_connect(stage: Stage) -> None:
    """A handler that is registered before ``connect()`` serves the first request."""
    async with stage.open(connect=False) as pair:
        pair.plugin.register_data_handler(echo)
        await pair.connect()
        outcome = await outcome_of(pair.peer.send_data, b"first")
        expect(outcome == b"first", f"the first request gave {outcome!r}")


@_checks("LedgerPlugin#deregisterDataHandler")
async def a_deregistered_data_handler_is_gone(stage: Stage) -> None:
    """After ``deregister_data_handler()`` the plugin behaves as if no handler had been registered."""
    async with stage.open() as pair:
        got: list[bytes] = []

        async def keep(data: bytes) -> bytes:
            got.append(data)
            return data

        pair.plugin.register_data_handler(keep)
        pair.plugin.deregister_data_handler()
        with raising(RemoteError, "the peer sent a request after deregister_data_handler()"):
            await pair.peer.send_data(b"x")
        expect(not got, "a handler that was removed was called")


@_checks("LedgerPlugin#deregisterDataHandler")
async def a_data_handler_can_be_replaced(stage: Stage) -> None:
    """After the old handler is removed, another one can be registered and serves requests."""
    async with stage.open() as pair:
        pair.plugin.register_data_handler(refusing(OSError("the old one")))
        pair.plugin.deregister_data_handler()
        pair.plugin.register_data_handler(echo)
        outcome = await outcome_of(pair.peer.send_data, b"x")
        expect(outcome == b"x", f"the new handler's answer is {outcome!r}")


@_checks("LedgerPlugin#deregisterDataHandler")
async def deregistering_no_data_handler_does_nothing(stage: Stage) -> None:
    """``deregister_data_handler()`` without a handler is not an error."""
    async with stage.open(connect=False) as pair:
        pair.plugin.deregister_data_handler()
        pair.plugin.deregister_data_handler()
        pair.plugin.register_data_handler(echo)


@_checks("LedgerPlugin#deregisterDataHandler", Level.RULE)
async def a_deregistered_data_handler_finishes(stage: Stage) -> None:
    """A handler that runs when it is removed finishes, and its response reaches the peer."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        call, go_on = await call_held(nursery, pair.peer, pair.plugin)
        pair.plugin.deregister_data_handler()
        go_on.set()
        outcome = await call.outcome()
        expect(outcome == b"x", f"a handler was removed while it ran; the peer got {outcome!r}")


@_checks("LedgerPlugin#registerMoneyHandler")
async def a_second_money_handler_is_refused(stage: Stage) -> None:
    """While a money handler is set, another one raises MoneyHandlerAlreadyRegisteredError."""
    async with stage.open(connect=False) as pair:
        pair.plugin.register_money_handler(ignore)
        with raising(MoneyHandlerAlreadyRegisteredError, "a second money handler"):
            pair.plugin.register_money_handler(ignore)


@_checks("LedgerPlugin#registerMoneyHandler", Level.RULE)
async def a_money_handler_that_cannot_be_called_is_a_type_error(stage: Stage) -> None:
    """An object that is not callable is refused with TypeError, and is not registered."""
    wrong: Any
    async with stage.open(connect=False) as pair:
        for wrong in (None, 7, "handler"):
            with raising(TypeError, f"the money handler is {wrong!r}"):
                pair.plugin.register_money_handler(wrong)
        pair.plugin.register_money_handler(ignore)


@_checks("LedgerPlugin#deregisterMoneyHandler")
async def a_money_handler_can_be_replaced(stage: Stage) -> None:
    """After the old handler is removed, another one can be registered."""
    async with stage.open(connect=False) as pair:
        pair.plugin.register_money_handler(ignore)
        pair.plugin.deregister_money_handler()
        pair.plugin.register_money_handler(ignore)


@_checks("LedgerPlugin#deregisterMoneyHandler")
async def deregistering_no_money_handler_does_nothing(stage: Stage) -> None:
    """``deregister_money_handler()`` without a handler is not an error."""
    async with stage.open(connect=False) as pair:
        pair.plugin.deregister_money_handler()
        pair.plugin.deregister_money_handler()
        pair.plugin.register_money_handler(ignore)


@_checks("LedgerPlugin#deregisterMoneyHandler", money=True, store=False)
async def a_deregistered_money_handler_is_gone(stage: Stage) -> None:
    """After ``deregister_money_handler()`` the plugin behaves as if no handler had been registered."""
    async with stage.open() as pair:
        got: list[str] = []

        async def keep(amount: str) -> None:
            got.append(amount)

        pair.plugin.register_money_handler(keep)
        pair.plugin.deregister_money_handler()
        with raising(RemoteError, "money came after deregister_money_handler()"):
            await pair.peer.send_money("1")
        expect(not got, "a handler that was removed was called")
