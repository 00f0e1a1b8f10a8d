"""SIGTERM ends a command in order at any moment, and outcomes without a signal are kept."""

import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType

import pytest
import trio
import trio.testing

from trio_ledger_plugin.cli.errors import TerminatedError
from trio_ledger_plugin.cli.signals import open_ending, raise_at_sigterm, run_until_sigterm


@pytest.fixture(autouse=True)
def _handler_is_as_before() -> Iterator[None]:
    """A program that runs a command keeps its own signal handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_outcome_of_a_short_function_is_kept(steps: int) -> None:
    """Otherwise the user would see an internal error of Trio instead of the real one."""

    async def answer() -> int:
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        return 5

    async def fail() -> None:
        await answer()
        raise error from cause

    error, cause = ValueError("what is wrong"), OSError("why")
    # Trio runs tasks in random order.
    for _ in range(20):
        assert run_until_sigterm(answer) == 5
        with pytest.raises(ValueError, match="what is wrong") as caught:
            run_until_sigterm(fail)
        assert caught.value is error
        assert caught.value.__cause__ is cause


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_signal_at_the_end_terminates_or_is_too_late(steps: int) -> None:
    async def work() -> int:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(steps):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return 5

    for _ in range(20):
        with suppress(TerminatedError):
            assert run_until_sigterm(work) == 5


def test_signal_cancels_and_allows_cleanup() -> None:
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


def test_function_that_receives_signals_is_not_cancelled() -> None:
    """A server that receives the signal itself ends normally."""

    async def work() -> int:
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            signal.raise_signal(signal.SIGTERM)
            return await anext(signals)

    assert run_until_sigterm(work) == signal.SIGTERM


@pytest.mark.parametrize(("moment", "done"), [("setup_runner", []), ("close", ["work"])])
def test_signal_while_trio_starts_or_ends_is_not_lost(moment: str, done: list[str]) -> None:
    """Raised inside Trio's own code it would break Trio; ignored, it would leave the program running."""
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


def test_signal_outside_trio_is_raised() -> None:
    with pytest.raises(TerminatedError), raise_at_sigterm():
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_that_still_opens_ends_at_the_first_signal(number: signal.Signals) -> None:
    """One that stands by may open for months, and a service manager would have to kill it."""
    steps: list[str] = []

    async def serve() -> None:
        async with open_ending():
            signal.raise_signal(number)
            await trio.sleep(5)
            steps.append("open")
        steps.append("ended")

    run_until_sigterm(serve)
    assert steps == ["ended"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_that_waits_for_the_signal_ends_in_order(number: signal.Signals) -> None:
    async def serve() -> str:
        async with open_ending() as ending:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ending.wait)
                await trio.testing.wait_all_tasks_blocked()
                signal.raise_signal(number)
            await trio.sleep(0.01)
            return "closed"

    assert run_until_sigterm(serve) == "closed"


def test_error_within_the_block_is_raised_as_it_is() -> None:
    async def serve() -> None:
        async with open_ending():
            await trio.lowlevel.checkpoint()
            raise ValueError("what is wrong")

    with pytest.raises(ValueError, match="what is wrong"):
        run_until_sigterm(serve)
