"""What programs rely on in ``trio_ledger_plugin.stream``: names, signatures, and what the docstrings promise."""

import inspect
import ssl
import subprocess
import sys
from typing import Any

import pytest

from trio_ledger_plugin import (
    InvalidFieldsError,
    InvalidServicesError,
    LedgerPluginError,
    fetch_ildcp,
    loopback_pair,
    stream,
)
from trio_ledger_plugin.stores import MemoryStore

NAMES = (
    "Asset",
    "Credentials",
    "Paid",
    "PaymentFailedError",
    "Progress",
    "Quote",
    "Receipt",
    "ReceivedPacket",
    "Receiver",
    "SpspEndpoint",
    "fetch_spsp",
    "open_receiver",
    "pay",
    "quote",
    "resolve_payment_pointer",
    "verify_receipt",
)


def test_public_names_are_exactly_these():
    assert sorted(stream.__all__) == sorted(NAMES)
    for name in NAMES:
        assert inspect.getdoc(getattr(stream, name)), name


def test_signatures():
    def names(function):
        return [
            (parameter.name, parameter.kind is parameter.KEYWORD_ONLY)
            for parameter in inspect.signature(function).parameters.values()
        ]

    order = ("send", "deliver", "slippage", "min_rate", "outside_rate", "expiry", "max_packet")
    common = [("plugin", False), ("to", False), *((name, True) for name in order)]
    assert names(stream.pay) == [*common, ("on_progress", True), ("ssl_context", True)]
    assert names(stream.quote) == [*common, ("ssl_context", True)]
    more = ("secret", "address", "asset", "on_packet", "store", "book")
    assert names(stream.open_receiver) == [("plugin", False), *((name, True) for name in more)]
    assert [name for name, _ in names(stream.Paid)] == ["sent", "delivered", "asset", "unanswered", "receipt"]


@pytest.mark.parametrize("name", ["pay", "quote", "open_receiver", "fetch_spsp"])
def test_docstrings_explain_cancellation(name):
    assert "Cancellation: " in (inspect.getdoc(getattr(stream, name)) or "")


def test_error_says_what_was_delivered():
    error = stream.PaymentFailedError(10, 9, "the receiver has gone", unanswered=3)
    assert isinstance(error, LedgerPluginError)
    assert error.name == "PaymentFailedError"
    assert str(error) == "the receiver has gone; sent 10, delivered 9; packets with 3 got no answer"
    assert str(stream.PaymentFailedError(0, 0, "no")) == "no; sent 0, delivered 0"


def test_package_and_plugins_do_not_load_stream():
    """Every program would start later."""
    program = "import sys, trio_ledger_plugin; print([m for m in sys.modules if 'stream.' in m or m == 'cryptography'])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = run.stdout.strip()
    assert "trio_ledger_plugin.stream" not in loaded
    assert "'cryptography'" not in loaded


# Wrong arguments. Each would be noticed in the middle of a payment.


def plain(*_):
    """A function that does its work when it is called."""


async def waits(*_):
    """Its call only returns a coroutine."""


CREDENTIALS = stream.Credentials("example.receiver", bytes(32))
SECRET = bytes(32)


@pytest.mark.parametrize(
    ("call", "given", "text"),
    [
        ("pay", {"on_progress": 5}, "on_progress is a function, not int"),
        ("pay", {"on_progress": waits}, r"on_progress is a plain function, and waits\(\) is an async function"),
        (
            "pay",
            {"on_progress": lambda: None},
            r"on_progress is called as on_progress\(progress\), and <lambda>\(\) cannot",
        ),
        ("open_receiver", {"asset": "EUR"}, "asset is an Asset, not str"),
        ("open_receiver", {"on_packet": 5}, "on_packet is a function, not int"),
        ("open_receiver", {"on_packet": lambda: None}, r"on_packet is called as on_packet\(packet\)"),
        ("open_receiver", {"book": waits}, r"book is a plain function, and waits\(\) is an async function"),
        ("open_receiver", {"book": lambda packet: None}, r"book is called as book\(connection, packet\)"),
    ],
)
async def test_argument_of_a_wrong_type_is_named_at_once(call, given, text):
    """Packets would be fulfilled without the application's books, or a payment would end after a part of it."""

    async def receive(plugin):
        async with stream.open_receiver(plugin, secret=SECRET, address="example.receiver", **given):
            pytest.fail("opened")

    async with loopback_pair() as (plugin, _):
        with pytest.raises(TypeError, match=text):
            await (stream.pay(plugin, CREDENTIALS, send=5, **given) if call == "pay" else receive(plugin))


@pytest.mark.parametrize("on_packet", [plain, waits])
async def test_receiver_accepts_plain_and_async_functions(on_packet):
    async with (
        loopback_pair() as (plugin, _),
        stream.open_receiver(plugin, secret=SECRET, address="example.receiver", on_packet=on_packet) as receiver,
    ):
        assert receiver.address == "example.receiver"


async def test_receiver_needs_a_store_with_transactions():
    store: Any = MemoryStore()
    async with loopback_pair() as (plugin, _):
        with pytest.raises(InvalidServicesError, match=r"store: packets are recorded in one with transaction\(\)"):
            async with stream.open_receiver(plugin, secret=SECRET, address="example.receiver", store=store):
                pytest.fail("opened")


async def test_options_instead_of_a_plugin_are_named():
    options: Any = {"plugin": "loopback"}
    for call in (
        fetch_ildcp,
        lambda it: stream.pay(it, CREDENTIALS, send=5),
        lambda it: stream.quote(it, "$h", send=5),
    ):
        with pytest.raises(TypeError, match="plugin is an open LedgerPlugin, not dict"):
            await call(options)
    with pytest.raises(TypeError, match="plugin is an open LedgerPlugin, not dict"):
        async with stream.open_receiver(options, secret=SECRET):
            pytest.fail("opened")


async def test_context_of_a_server_is_refused_before_dialing():
    with pytest.raises(InvalidFieldsError, match="ssl_context: got a value of type SSLContext, must be None or an ssl"):
        await stream.fetch_spsp("https://h", ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


async def test_endpoint_refuses_an_async_function_for_tags():
    find_tag: Any = waits
    async with (
        loopback_pair() as (plugin, _),
        stream.open_receiver(plugin, secret=SECRET, address="example.receiver") as receiver,
    ):
        with pytest.raises(TypeError, match="find_tag is a plain function"):
            stream.SpspEndpoint(receiver, find_tag)


def test_asset_is_checked():
    """The packet that tells a payer the asset could not be written."""
    for wrong, error in ((("EUR", 256), InvalidFieldsError), (("EUR", "2"), TypeError), ((978, 2), TypeError)):
        with pytest.raises(error):
            stream.Asset(*wrong)
