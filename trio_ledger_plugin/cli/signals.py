"""SIGTERM, which service managers and ``timeout`` send to end a program. Commands clean up, as they do after Ctrl-C.

Invariant: no signal handler raises inside Trio's own code, which would be left in a broken state.
"""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

import trio

from ..opening import bare_nursery
from ..parking import start_task
from ..runtime.tasks import unwrap_group
from .errors import TerminatedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

__all__ = ["Ending", "open_ending", "raise_at_sigterm", "run_until_sigterm"]

T = TypeVar("T")


@contextmanager
def raise_at_sigterm() -> Iterator[None]:
    """Make SIGTERM raise ``TerminatedError`` within a block, except in what ``run_until_sigterm`` runs there."""

    def on_signal(*_: object) -> NoReturn:
        # A second SIGTERM ends the program at once: the first may be lost, for example in a finalizer.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise TerminatedError

    with _handling(on_signal):
        yield


def run_until_sigterm(function: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run a function as ``trio.run`` does. SIGTERM cancels it, unless the function receives the signal itself.

    Raises:
        TerminatedError: SIGTERM arrived.
        BaseException: The function raised it.
    """
    # Signals that arrive while Trio starts or ends.
    missed: list[object] = []
    with _handling(lambda *_: missed.append(None)):
        result = trio.run(_until_sigterm, function, args, missed)
    _raise_if(missed)
    return result


async def _until_sigterm(function: Callable[..., Awaitable[T]], args: tuple[object, ...], missed: list[object]) -> T:
    results: list[T] = []
    error: BaseException = TerminatedError()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        _raise_if(missed)
        try:
            # Inside the receiver: a task that still waits for a signal when the receiver closes gets an error.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at_first, signals, nursery.cancel_scope)
                results.append(await function(*args))
                nursery.cancel_scope.cancel()
            if results:
                return results[0]
        except BaseExceptionGroup as group:
            error = unwrap_group(group)
    raise error


class Ending:
    """The first SIGINT or SIGTERM within an ``open_ending`` block.

    Args:
        signals: The signals.
        block: The scope of the block.
    """

    def __init__(self, signals: AsyncIterator[int], block: trio.CancelScope) -> None:
        self._signals = signals
        self._block = block
        self._came = trio.Event()
        self._is_awaited = False

    async def watch(self) -> None:
        """Wait for the signal, and cancel the block unless that waits for it."""
        await anext(self._signals)
        self._came.set()
        if not self._is_awaited:
            self._block.cancel()

    async def wait(self) -> None:
        """Wait for the signal, which cancels nothing from now on.

        Cancellation: Safe at any time.
        """
        self._is_awaited = True
        await self._came.wait()


@asynccontextmanager
async def open_ending() -> AsyncIterator[Ending]:
    """Receive SIGINT and SIGTERM within a block. The first one cancels it, unless it waits for the signal by then.

    So a server that still opens, which may take as long as another process lives, ends at once.

    Cancellation: Cancels the block.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, trio.CancelScope() as block:
        async with bare_nursery(None) as nursery:
            ending = Ending(signals, block)
            start_task(nursery, ending.watch)
            try:
                yield ending
            finally:
                nursery.cancel_scope.cancel()


async def _cancel_at_first(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


def _raise_if(missed: list[object]) -> None:
    if missed:
        raise TerminatedError


@contextmanager
def _handling(handler: Callable[..., object]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
