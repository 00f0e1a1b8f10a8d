"""What programs rely on in ``trio_ledger_plugin.stream``: names, signatures, and what the docstrings promise."""

import inspect
import subprocess
import sys

import pytest

from trio_ledger_plugin import LedgerPluginError, stream

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
