"""Checks of requests and their responses."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import trio

from ...errors import InsufficientBalanceError, InvalidFieldsError, NotConnectedError, RemoteError, ResponseTimeoutError
from ...events import Disconnected
from .assertions import Pending, echo, expect, outcome_of, raising, refusing, wait_for_event
from .harness import Check, Level, Listed, Stage

__all__ = ["CHECKS"]

_checks: Listed = Listed()
CHECKS: list[Check] = _checks.checks

CANARY = "canary-27c09b"
MANY = 100
# Seconds, for timeouts that must expire.
BRIEFLY = 0.1


@_checks("LedgerPlugin#sendData")
async def send_data_returns_the_response(stage: Stage) -> None:
    """``send_data`` gives the peer's handler the request and returns the handler's response."""
    async with stage.open() as pair:
        got: list[bytes] = []

        async def answer(data: bytes) -> bytes:
            got.append(data)
            return data[::-1]

        pair.peer.register_data_handler(answer)
        response = await pair.plugin.send_data(b"request")
        expect(got == [b"request"], f"b'request' was sent; the peer's handler got {got}")
        expect(response == b"tseuqer", f"the peer answered b'tseuqer'; send_data returned {response!r}")


@_checks("LedgerPlugin#registerDataHandler")
async def a_data_handler_answers_the_peers_requests(stage: Stage) -> None:
    """The registered handler gets the peer's request as bytes, and returns the response."""
    async with stage.open() as pair:
        got: list[object] = []

        async def answer(data: bytes) -> bytes:
            got.append(data)
            return b"answer"

        pair.plugin.register_data_handler(answer)
        response = await pair.peer.send_data(b"question")
        expect(got == [b"question"], f"b'question' was sent; the handler got {got}")
        expect(type(got[0]) is bytes, f"the handler got {type(got[0]).__name__}, not bytes")
        expect(response == b"answer", f"the handler returned b'answer'; the peer got {response!r}")


@_checks("LedgerPlugin#sendData")
async def data_are_opaque(stage: Stage) -> None:
    """Requests and responses of any content pass unchanged, empty ones and long ones too."""
    async with stage.open() as pair:
        pair.peer.register_data_handler(echo)
        for data in (b"", b"\0", bytes(range(256)), bytes(32 * 1024)):
            response = await pair.plugin.send_data(data)
            expect(response == data, f"{len(data)} bytes were sent and echoed; {len(response)} others came back")


@_checks("LedgerPlugin#sendData", Level.RULE)
async def send_data_takes_bytes_like_objects(stage: Stage) -> None:
    """A bytearray or a memoryview is accepted like bytes."""
    async with stage.open() as pair:
        pair.peer.register_data_handler(echo)
        data: Any
        for data in (bytearray(b"array"), memoryview(b"view")):
            response = await pair.plugin.send_data(data)
            expect(response == bytes(data), f"{data!r} was sent and echoed; {response!r} came back")


@_checks("LedgerPlugin#sendData", Level.RULE)
async def send_data_of_another_type_is_a_type_error(stage: Stage) -> None:
    """Data that is not bytes-like is refused with TypeError."""
    wrong: Any
    async with stage.open() as pair:
        pair.peer.register_data_handler(echo)
        for wrong in ("text", None, 7, [1, 2]):
            with raising(TypeError, f"send_data({wrong!r})"):
                await pair.plugin.send_data(wrong)


@_checks("LedgerPlugin#sendData", Level.RULE)
async def data_that_are_too_long_are_an_invalid_fields_error(stage: Stage) -> None:
    """Data that is too long for a message is refused before it is sent, and the connection stays."""
    async with stage.open() as pair:
        pair.peer.register_data_handler(echo)
        with raising(InvalidFieldsError, "send_data() of more than max_data_bytes"):
            await pair.plugin.send_data(bytes(pair.plugin.options.max_data_bytes + 1))
        expect(await pair.plugin.send_data(b"x") == b"x", "after data that was too long nothing works")


@_checks("LedgerPlugin#sendData", Level.RULE)
async def send_data_before_connect_is_not_connected(stage: Stage) -> None:
    """Without a connection ``send_data`` raises NotConnectedError at once."""
    async with stage.open(connect=False) as pair:
        with raising(NotConnectedError, "send_data() before connect()"):
            await pair.plugin.send_data(b"")


@_checks("LedgerPlugin#sendData")
async def responses_belong_to_their_requests(stage: Stage) -> None:
    """Each of many concurrent requests gets its own response, in any order of arrival."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        waiting: list[trio.Event] = []
        all_there = trio.Event()

        async def last_first(data: bytes) -> bytes:
            mine = trio.Event()
            waiting.append(mine)
            if len(waiting) == MANY:
                all_there.set()
            await mine.wait()
            return data

        pair.peer.register_data_handler(last_first)
        requests = [b"%d" % number for number in range(MANY)]
        calls = [Pending(nursery, pair.plugin.send_data, request) for request in requests]
        await all_there.wait()
        for event in reversed(waiting):
            event.set()
            await trio.lowlevel.checkpoint()
        for request, call in zip(requests, calls, strict=True):
            response = await call.value()
            expect(response == request, f"the response to {request!r} is {response!r}")


@_checks("LedgerPlugin#sendData", Level.RULE)
async def a_cancelled_caller_leaves_the_connection_whole(stage: Stage) -> None:
    """When a caller is cancelled its response is discarded, and other calls go on as before."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        arrived, go_on = trio.Event(), trio.Event()

        async def answer(data: bytes) -> bytes:
            if data == b"first":
                arrived.set()
                await go_on.wait()
            return data

        pair.peer.register_data_handler(answer)
        scope = trio.CancelScope()
        nursery.start_soon(_cancel_when, scope, arrived)
        with scope:
            await pair.plugin.send_data(b"first")
        expect(scope.cancelled_caught, "a cancelled send_data() returned")
        go_on.set()
        outcome = await outcome_of(pair.plugin.send_data, b"second")
        expect(outcome == b"second", f"after a call was cancelled, the next one gave {outcome!r}")
        in_flight = pair.plugin.statistics().calls_in_flight
        expect(in_flight == 0, f"no call is in flight, but {in_flight} are counted")


async def _cancel_when(scope: trio.CancelScope, event: trio.Event) -> None:
    await event.wait()
    scope.cancel()


@_checks("LedgerPlugin#sendData", Level.RULE)
async def no_answer_is_a_response_timeout(stage: Stage) -> None:
    """When the peer does not answer within ``response_timeout`` the call raises ResponseTimeoutError."""
    async with stage.open(response_timeout=BRIEFLY) as pair:
        pair.peer.register_data_handler(_never)
        with raising(ResponseTimeoutError, "the peer does not answer"):
            await pair.plugin.send_data(b"")


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def a_data_handler_that_takes_too_long_is_answered_for(stage: Stage) -> None:
    """A handler past ``handler_timeout`` is cancelled, and the peer gets an error."""
    async with stage.open(handler_timeout=BRIEFLY) as pair:
        pair.plugin.register_data_handler(_never)
        with raising(RemoteError, "the handler does not return"):
            await pair.peer.send_data(b"")


async def _never(_: bytes) -> bytes:
    await trio.sleep_forever()


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def handlers_may_call_each_other(stage: Stage) -> None:
    """A handler may call the peer, whose handler may call back, without a deadlock."""
    async with stage.open() as pair:

        async def deeper(data: bytes) -> bytes:
            return await pair.plugin.send_data(data[1:]) if data else b"bottom"

        async def deeper_still(data: bytes) -> bytes:
            return await pair.peer.send_data(data[1:]) if data else b"bottom"

        pair.plugin.register_data_handler(deeper)
        pair.peer.register_data_handler(deeper_still)
        response = await pair.plugin.send_data(bytes(20))
        expect(response == b"bottom", f"twenty nested calls gave {response!r}")


# Errors of handlers.


@_checks("LedgerPlugin#registerDataHandler", Level.SHOULD)
async def without_a_data_handler_the_peer_gets_an_error(stage: Stage) -> None:
    """A request without a handler is answered with an error, never with silence."""
    async with stage.open() as pair:
        with raising(RemoteError, "the peer asked a plugin without a handler"):
            await pair.peer.send_data(b"")


@_checks("LedgerPlugin#registerDataHandler")
async def a_data_handler_may_raise(stage: Stage) -> None:
    """An exception of a handler becomes an error at the peer, and the connection stays."""
    async with stage.open() as pair:
        pair.plugin.register_data_handler(refusing(OSError("a handler's error")))
        with raising(RemoteError, "the handler raised"):
            await pair.peer.send_data(b"")
        pair.plugin.deregister_data_handler()
        pair.plugin.register_data_handler(echo)
        outcome = await outcome_of(pair.peer.send_data, b"next")
        expect(outcome == b"next", f"after a handler raised, the next request gave {outcome!r}")


@_checks("errors", Level.RULE)
async def the_peer_never_reads_internal_error_text(stage: Stage) -> None:
    """No text of a handler's error leaves the process."""
    async with stage.open() as pair:
        pair.plugin.register_data_handler(refusing(OSError(CANARY)))
        error = await outcome_of(pair.peer.send_data, b"")
        seen = f"{error!r} {getattr(error, 'data', b'')!r}"
        expect(CANARY not in seen, f"the peer sees the text of the handler's error: {seen}")


@_checks("errors", Level.RULE)
async def an_error_with_a_code_travels_under_it(stage: Stage) -> None:
    """An error of this package that has a BTP code reaches the peer under its code and name."""
    async with stage.open() as pair:
        stage.need(pair.carries_codes or None, "pair that carries the codes of BTP's errors")
        pair.plugin.register_data_handler(refusing(InsufficientBalanceError("too little")))
        with raising(RemoteError, "the handler raised InsufficientBalanceError") as caught:
            await pair.peer.send_data(b"")
        received = (caught[0].code, caught[0].name)
        expect(received == ("F08", "InsufficientBalanceError"), f"the peer received {received}")


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def a_handlers_rubbish_is_an_error_at_the_peer(stage: Stage) -> None:
    """If a handler does not return bytes, the peer gets an error."""
    rubbish: Any
    async with stage.open() as pair:
        for rubbish in (None, "text", 7):

            async def answer(_: bytes, rubbish: Any = rubbish) -> bytes:  # noqa: ANN401 (the check is about wrong types)
                return rubbish  # type: ignore[no-any-return]  # likewise

            pair.plugin.register_data_handler(answer)
            with raising(RemoteError, f"the handler returned {rubbish!r}"):
                await pair.peer.send_data(b"")
            pair.plugin.deregister_data_handler()


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def a_plain_function_is_no_data_handler(stage: Stage) -> None:
    """A handler that is not async is refused or gives the peer an error; its result is never sent as a response."""

    def plain(data: bytes) -> bytes:
        return data

    handler: Any = plain
    async with stage.open() as pair:
        try:
            pair.plugin.register_data_handler(handler)
        except TypeError:
            return
        with raising(RemoteError, "the handler is not an async function"):
            await pair.peer.send_data(b"")


# The life of handlers.


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def a_running_handler_survives_the_connection(stage: Stage) -> None:
    """A handler that runs when the connection is lost is not cancelled."""
    async with stage.open() as pair, trio.open_nursery() as nursery:
        arrived, go_on, ended = trio.Event(), trio.Event(), trio.Event()
        finished: list[bytes] = []

        async def slow(data: bytes) -> bytes:
            try:
                arrived.set()
                await go_on.wait()
                finished.append(data)
            finally:
                ended.set()
            return data

        pair.plugin.register_data_handler(slow)
        call = Pending(nursery, pair.peer.send_data, b"x")
        await arrived.wait()
        await pair.peer.disconnect()
        if pair.notices_losses:
            await wait_for_event(pair.plugin, Disconnected)
        await call.outcome()
        go_on.set()
        await ended.wait()
        expect(finished == [b"x"], "a handler was cancelled when the connection was lost")


_context: ContextVar[str] = ContextVar("_context", default="fresh")


@_checks("LedgerPlugin#registerDataHandler", Level.RULE)
async def each_handler_runs_in_a_fresh_context(stage: Stage) -> None:
    """A handler sees neither what an earlier handler nor what a caller set in its context."""
    async with stage.open() as pair:
        seen: list[str] = []

        async def look(data: bytes) -> bytes:
            seen.append(_context.get())
            _context.set("of an earlier handler")
            return data

        pair.plugin.register_data_handler(look)
        token = _context.set("of the caller")
        try:
            await pair.peer.send_data(b"1")
            await pair.peer.send_data(b"2")
        finally:
            _context.reset(token)
        expect(seen == ["fresh", "fresh"], f"the contexts of two handlers were {seen}")
