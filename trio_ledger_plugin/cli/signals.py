"""SIGTERM, which service managers and ``timeout`` send to end a program. Commands clean up, as they do after Ctrl-C.

Invariant: no signal handler raises inside Trio's own code, which would be left in a broken state.
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

import trio

from ..runtime.tasks import unwrap_group
from .errors import TerminatedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

__all__ = ["raise_at_sigterm", "run_until_sigterm"]

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
