"""Errors that several callers get: each gets its own copy."""

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
    """An application's error, whose arguments are not those of its base."""

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
def test_copied_error_has_the_same_text_and_cause(error):
    """If two tasks raised the same object, each would show the other's traceback."""
    with pytest.raises(type(error)):
        raise error from OSError("why")
    duplicate = copy_error(error)
    assert duplicate is not error
    assert type(duplicate) is type(error)
    assert (str(duplicate), duplicate.args, duplicate.__dict__) == (str(error), error.args, error.__dict__)
    assert duplicate.__cause__ is error.__cause__
    assert duplicate.__traceback__ is error.__traceback__


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_can_be_pickled(error):
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301  # it was written here
    assert (type(copy), str(copy), copy.__dict__) == (type(error), str(error), error.__dict__)


def test_error_that_cannot_be_copied_is_returned_itself():
    """The caller must get the application's error, not an error about its class."""
    error = TakesTwoError("a", "b")
    assert copy_error(error) is error


def test_error_about_no_option_has_no_problems():
    assert InvalidFieldsError("amount is '0'").problems == InvalidFieldsError().problems == ()
