"""Errors that several callers get: each has one of its own."""

import pickle
from datetime import UTC, datetime

import pytest

from trio_ledger_plugin import (
    DecodeError,
    InsufficientBalanceError,
    InvalidFieldsError,
    NotConnectedError,
    RemoteError,
    TransferInDoubtError,
)
from trio_ledger_plugin.codec.btp import ProtocolData
from trio_ledger_plugin.errors import LedgerPluginError, copy_error

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class TakesTwoError(LedgerPluginError):
    """An application's own, whose arguments are not those of its base."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


ERRORS = [
    NotConnectedError("no"),
    RemoteError("F00", "NotAcceptedError", triggered_at=NOW, data=b"x", protocol_data=(ProtocolData("a", 0, b""),)),
    TransferInDoubtError("k", "5", "why"),
    DecodeError("no", packet_type=6, request_id=1),
    InsufficientBalanceError("no"),
    InvalidFieldsError("no"),
    InvalidFieldsError("BtpOptions, 1 wrong:\n- port: no", problems=(("port", "no"),)),
    OSError(98, "in use"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_twin_says_the_same_and_is_another(error):
    """Were it the same object, the traceback of one task would stand in the other's."""
    with pytest.raises(type(error)):
        raise error from OSError("why")
    twin = copy_error(error)
    assert twin is not error
    assert type(twin) is type(error)
    assert (str(twin), twin.args, twin.__dict__) == (str(error), error.args, error.__dict__)
    assert twin.__cause__ is error.__cause__
    assert twin.__traceback__ is error.__traceback__


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # it was written here
    assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


def test_what_cannot_be_copied_is_its_own_twin():
    """An application's error must reach its callers, not one about its class."""
    error = TakesTwoError("a", "b")
    assert copy_error(error) is error


def test_error_about_no_option_has_no_problems():
    assert InvalidFieldsError("amount is '0'").problems == InvalidFieldsError().problems == ()
