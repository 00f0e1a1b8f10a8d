"""The peer gets one reply to each request, and no internal details of a failure."""

import re
from typing import Any

import pytest
import trio

from trio_ledger_plugin import (
    ConnectTimeoutError,
    DataHandlerAlreadyRegisteredError,
    DuplicateIdError,
    InsufficientBalanceError,
    InvalidFieldsError,
    LedgerPluginError,
    MoneyHandlerAlreadyRegisteredError,
    NotAcceptedError,
    RemoteError,
    UnreachableError,
    current_transfer,
)
from trio_ledger_plugin.errors import wire_error
from trio_ledger_plugin.log import RedactingLog, format_message
from trio_ledger_plugin.money.plain import PlainMoney
from trio_ledger_plugin.runtime.handlers import Handlers, as_bytes
from trio_ledger_plugin.statistics import Counters
from trio_ledger_plugin.testing.conformance.assertions import echo
from trio_ledger_plugin.transfer import Transfer

CANARY = "canary-5d1f"


class Lines:
    """A log that keeps its lines."""

    def __init__(self):
        self.lines = []

    def keep(self, message, *params):
        self.lines.append(format_message(message, *params))

    debug = info = warn = error = keep


@pytest.fixture
def log():
    return Lines()


@pytest.fixture
def handlers(log):
    """Handlers of a plugin without a journal: money goes straight to its handler."""
    nothing: Any = None
    return Handlers(log, Counters(), PlainMoney(nothing, nothing).receive, max_reply=1000)


async def refuse(data):
    raise AssertionError


@pytest.mark.parametrize("kind", ["data", "money"])
def test_handler_is_not_replaced_by_accident(handlers, kind):
    register, deregister, error = {
        "data": (handlers.register_data, handlers.deregister_data, DataHandlerAlreadyRegisteredError),
        "money": (handlers.register_money, handlers.deregister_money, MoneyHandlerAlreadyRegisteredError),
    }[kind]
    deregister()
    register(echo)
    with pytest.raises(error, match=f"deregister_{kind}_handler"):
        register(echo)
    deregister()
    deregister()
    register(echo)


@pytest.mark.parametrize("kind", ["data", "money"])
@pytest.mark.parametrize("handler", [None, 3, "echo", b""])
def test_handler_must_be_callable(handlers, kind, handler):
    with pytest.raises(TypeError, match=f"a {kind} handler is an async function"):
        getattr(handlers, f"register_{kind}")(handler)


@pytest.mark.parametrize("response", [b"", b"abc", bytearray(b"abc"), memoryview(b"abc")])
async def test_response_is_bytes(handlers, response):
    async def handle(data):
        return response

    handlers.register_data(handle)
    reply = await handlers.answer(b"request")
    assert type(reply) is bytes
    assert reply == bytes(response)


async def fail(handlers):
    """Let a handler fail, whose error follows another."""

    def look_up():
        raise KeyError("x")

    async def handle(data):
        try:
            look_up()
        except KeyError as error:
            raise ValueError("unknown\nERROR forged") from error

    handlers.register_data(handle)
    await handlers.answer(b"request")


async def test_failed_handler_is_logged_with_its_traceback(handlers, log):
    """An operator would see KeyError('x') and not know in which of a thousand lines."""
    await fail(handlers)
    (text,) = log.lines
    first, *rest = text.split("\n")
    assert first.endswith(r": ValueError('unknown\nERROR forged')")
    assert all(line.startswith("    ") for line in rest)
    assert [line.strip() for line in rest if "raise" in line] == [
        'raise KeyError("x")',
        r'raise ValueError("unknown\nERROR forged") from error',
    ]
    assert "    KeyError: 'x'" in rest
    # This package's own frames are no news.
    assert not [line for line in rest if "/trio_ledger_plugin/" in line]


async def test_traceback_can_be_left_out():
    """Where each line of the log is a record, twenty lines would be twenty records."""
    log = Lines()
    nothing: Any = None
    redacting = RedactingLog(log, (), tracebacks=False)
    await fail(Handlers(redacting, Counters(), PlainMoney(nothing, nothing).receive, max_reply=1000))
    (line,) = log.lines
    places = r"test_handlers.py:\d+ in handle; after KeyError\('x'\) at test_handlers.py:\d+ in handle, "
    assert re.search(places + r"test_handlers.py:\d+ in look_up$", line), line


@pytest.mark.parametrize("rubbish", [None, "text", 5, [], object(), NotAcceptedError("returned, not raised")])
async def test_invalid_response_becomes_an_error_with_a_reference(handlers, log, rubbish):
    async def handle(data):
        return rubbish

    handlers.register_data(handle)
    reply = await handlers.answer(b"request")
    assert isinstance(reply, NotAcceptedError)
    assert reply is not rubbish
    reference = str(reply).rpartition(" ")[2]
    assert str(reply) == f"the data handler failed, reference {reference}"
    assert reference in log.lines[0]


@pytest.mark.parametrize(
    "error",
    [
        ValueError(CANARY),
        ExceptionGroup(CANARY, [OSError(CANARY)]),
        LedgerPluginError(CANARY),
        RemoteError("F08", CANARY, data=CANARY.encode()),
        trio.TooSlowError(CANARY),
    ],
)
@pytest.mark.parametrize("kind", ["data", "money"])
async def test_the_peer_never_sees_internal_text(handlers, log, error, kind):
    async def handle(data):
        raise error

    getattr(handlers, f"register_{kind}")(handle)
    reply = await handlers.answer(b"request" if kind == "data" else Transfer("1"))
    code, name, data = wire_error(reply)
    assert (code, name) == ("F00", "NotAcceptedError")
    assert CANARY.encode() not in data
    reference = str(reply).rpartition(" ")[2]
    assert len(log.lines) == 1
    assert reference in log.lines[0]


async def test_each_failure_has_its_own_reference(handlers):
    handlers.register_data(refuse)
    assert str(await handlers.answer(b"")) != str(await handlers.answer(b""))


@pytest.mark.parametrize(
    ("error", "code"), [(InsufficientBalanceError("at most 5"), "F08"), (DuplicateIdError("again"), "F05")]
)
@pytest.mark.parametrize("kind", ["data", "money"])
async def test_error_with_a_btp_name_is_sent_with_its_code(handlers, log, error, code, kind):
    async def handle(data):
        raise error

    getattr(handlers, f"register_{kind}")(handle)
    reply = await handlers.answer(b"request" if kind == "data" else Transfer("1"))
    assert reply is error
    assert wire_error(reply)[:2] == (code, error.name)
    assert log.lines == []


class ZuWenigÜbrigError(InsufficientBalanceError):  # noqa: PLC2401 (its name is what the test is about)
    def __str__(self):
        raise KeyError(CANARY)


class OwnCodeError(LedgerPluginError):
    code = "Ä"


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (ZuWenigÜbrigError(), ("F08", "InsufficientBalanceError", b'{"message": ""}')),
        (ConnectTimeoutError("5 s"), ("T00", "UnreachableError", b'{"message": "5 s"}')),
        (OwnCodeError("own"), ("F00", "NotAcceptedError", b'{"message": "own"}')),
    ],
)
async def test_application_error_is_sent_with_the_btp_name_of_its_code(handlers, error, sent):
    """Its own name may not be ASCII: the packet would be invalid, and the peer would wait for its timeout."""

    async def handle(data):
        raise error

    handlers.register_data(handle)
    assert wire_error(await handlers.answer(b"")) == sent


async def test_handler_that_is_not_async_is_logged(handlers, log):
    handlers.register_data(lambda data: data)
    assert isinstance(await handlers.answer(b""), NotAcceptedError)
    assert len(log.lines) == 1


async def test_request_without_a_data_handler_may_be_retried(handlers):
    reply = await handlers.answer(b"")
    assert wire_error(reply)[:2] == ("T00", "UnreachableError")


async def test_transfer_without_a_money_handler_is_not_credited(handlers):
    reply = await handlers.answer(Transfer("5"))
    assert wire_error(reply)[:2] == ("T00", "UnreachableError")


async def test_money_is_acknowledged_for_any_value_its_handler_returns(handlers):
    amounts = []

    async def handle(amount):
        amounts.append((amount, current_transfer()))
        return "rubbish"

    handlers.register_money(handle)
    transfer = Transfer("5", "alice", key="k")
    assert await handlers.answer(transfer) is None
    assert amounts == [("5", transfer)]


def test_no_current_transfer_outside_a_money_handler():
    with pytest.raises(RuntimeError, match="inside a money handler"):
        current_transfer()


@pytest.mark.parametrize("payload", [b"request", Transfer("5")])
async def test_closing_plugin_refuses_requests(handlers, payload):
    handlers.register_data(refuse)
    handlers.register_money(refuse)
    handlers.stop()
    reply = await handlers.answer(payload)
    assert isinstance(reply, UnreachableError)
    assert "closing" in str(reply)


async def test_a_cancelled_handler_gives_no_reply(handlers):
    async def handle(data):
        await trio.sleep_forever()

    handlers.register_data(handle)
    with trio.CancelScope() as scope:
        scope.cancel()
        await handlers.answer(b"")
    assert scope.cancelled_caught


@pytest.mark.parametrize("data", [b"a", bytearray(b"a"), memoryview(b"a")])
def test_bytes_like_data_becomes_bytes(data):
    assert as_bytes(data) == b"a"
    assert type(as_bytes(data)) is bytes


@pytest.mark.parametrize("data", ["a", None, 1, [1], InvalidFieldsError])
def test_other_data_is_a_type_error(data):
    with pytest.raises(TypeError, match="data is bytes-like"):
        as_bytes(data)
