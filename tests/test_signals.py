"""SIGTERM ends what a command does in order, whenever it comes; and what ends without it is told as it is."""

import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

import pytest
import trio

from trio_ledger_plugin.cli.errors import TerminatedError
from trio_ledger_plugin.cli.signals import raise_at_sigterm, run_until_sigterm


@pytest.fixture(autouse=True)
def _handler_is_as_before() -> Iterator[None]:
    """A program that uses a command of ours keeps its own way to end."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_ends_at_once_is_told_as_it_is(steps: int) -> None:
    """Else the user reads of an internal error of Trio's, in the place of what is wrong."""

    async def answer() -> int:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        return 5

    async def fail() -> None:
        await answer()
        raise error from cause

    error, cause = ValueError("what is wrong"), OSError("why")
    # Trio chooses the order of tasks by chance.
    for _ in range(20):
        assert run_until_sigterm(answer) == 5
        with pytest.raises(ValueError, match="what is wrong") as caught:
            run_until_sigterm(fail)
        assert caught.value is error
        assert caught.value.__cause__ is cause


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_signal_at_the_very_end_ends_it_or_comes_too_late(steps: int) -> None:
    async def work() -> int:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(steps):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return 5

    for _ in range(20):
        with suppress(TerminatedError):
            assert run_until_sigterm(work) == 5


def test_a_signal_cancels_what_waits_and_lets_it_clean_up() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        signal.raise_signal(signal.SIGTERM)
        try:
            await trio.sleep_forever()
        finally:
            cleaned = True

    with pytest.raises(TerminatedError):
        run_until_sigterm(work)
    assert cleaned


def test_what_receives_the_signal_itself_is_left_alone() -> None:
    """A server that is told to end has ended as it should."""

    async def work() -> int:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            signal.raise_signal(signal.SIGTERM)
            return await anext(signals)

    assert run_until_sigterm(work) == signal.SIGTERM


@pytest.mark.parametrize(("moment", "done"), [("setup_runner", []), ("close", ["work"])])
def test_a_signal_while_trio_starts_or_ends_is_not_lost(moment: str, done: list[str]) -> None:
    """Raised within Trio's own code it would leave that broken; ignored, it would leave the program running."""
    did: list[str] = []

    async def work() -> None:
        did.append("work")

    def come(frame: FrameType, event: str, _: object) -> None:
        if (event, frame.f_code.co_name) == ("call", moment) and "trio" in frame.f_code.co_filename:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGTERM)

    before = sys.getprofile()
    sys.setprofile(come)
    try:
        with pytest.raises(TerminatedError):
            run_until_sigterm(work)
    finally:
        sys.setprofile(before)
    assert did == done


def test_outside_of_trio_it_is_raised() -> None:
    with pytest.raises(TerminatedError), raise_at_sigterm():
        signal.raise_signal(signal.SIGTERM)
