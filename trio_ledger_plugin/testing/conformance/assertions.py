"""What the checks observe and assert."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

from ...events import Connected, Disconnected, Event
from ...runtime.tasks import unwrap_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from ...plugin import LedgerPlugin
    from .pair import PluginPair

__all__ = [
    "NonConformanceError",
    "Pending",
    "Recorder",
    "call_held",
    "call_unanswered",
    "echo",
    "expect",
    "ignore",
    "in_turn",
    "outcome_of",
    "raising",
    "read_events",
    "refusing",
    "wait_for_event",
]

T = TypeVar("T")

# How long an event may take.
EVENT_SECONDS = 2.0


class NonConformanceError(AssertionError):
    """The plugin does not do what a check's sentence says."""


def expect(condition: object, otherwise: str) -> None:
    """Assert a condition.

    Raises:
        NonConformanceError: It does not hold. The text is ``otherwise``.
    """
    if not condition:
        raise NonConformanceError(otherwise)


@contextmanager
def raising(kind: type[BaseException], when: str) -> Iterator[list[Any]]:
    """Assert that a block raises an error, which is in the list afterwards.

    Raises:
        NonConformanceError: The block raises nothing, or another error.
    """
    caught: list[Any] = []
    try:
        yield caught
    except Exception as raised:  # noqa: BLE001 (an error of another kind is a finding)
        error = unwrap_group(raised)
        if not isinstance(error, kind):
            raise NonConformanceError(f"{when}: {type(error).__name__} was raised, not {kind.__name__}") from error
        caught.append(error)
        return
    raise NonConformanceError(f"{when}: nothing was raised, {kind.__name__} is right")


async def outcome_of(function: Callable[..., Awaitable[T]], *args: object) -> T | Exception:
    """Return what a call returns or raises.

    Cancellation: The call's.
    """
    try:
        return await function(*args)
    except Exception as error:  # noqa: BLE001 (the check judges it)
        return error


class Pending(Generic[T]):
    """A call that runs in its own task.

    Args:
        nursery: The nursery of the task.
        function: The function.
        args: Its arguments.

    Attributes:
        done: Whether it has returned or raised.
    """

    def __init__(self, nursery: trio.Nursery, function: Callable[..., Awaitable[T]], *args: object) -> None:
        self._ended = trio.Event()
        self._outcome: T | Exception | None = None
        nursery.start_soon(self._run, function, args)

    async def _run(self, function: Callable[..., Awaitable[T]], args: tuple[object, ...]) -> None:
        self._outcome = await outcome_of(function, *args)
        self._ended.set()

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._ended.is_set()

    async def outcome(self) -> T | Exception | None:
        """Wait until it has ended, and return what it returned or raised.

        Cancellation: The call goes on.
        """
        await self._ended.wait()
        return self._outcome

    async def value(self) -> T | None:
        """Wait until it has ended, and return or raise what it did.

        Cancellation: The call goes on.
        """
        outcome = await self.outcome()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def call_held(
    nursery: trio.Nursery, caller: LedgerPlugin, answering: LedgerPlugin
) -> tuple[Pending[bytes], trio.Event]:
    """Start a call that reaches a handler, which answers ``b"x"`` once the event is set.

    Cancellation: The call goes on.
    """
    arrived, go_on = trio.Event(), trio.Event()

    async def answer_late(data: bytes) -> bytes:
        arrived.set()
        await go_on.wait()
        return data

    answering.register_data_handler(answer_late)
    call = Pending(nursery, caller.send_data, b"x")
    await arrived.wait()
    return call, go_on


async def call_unanswered(pair: PluginPair, nursery: trio.Nursery) -> Pending[bytes]:
    """Start a call that reaches the peer and is never answered.

    Cancellation: The call goes on.
    """
    call, _ = await call_held(nursery, pair.plugin, pair.peer)
    return call


def read_events(plugin: LedgerPlugin) -> list[Event]:
    """Return the events so far, and remove them from the stream."""
    taken: list[Event] = []
    while True:
        try:
            taken.append(plugin.events.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            return taken


async def wait_for_event(plugin: LedgerPlugin, kind: type[Event]) -> list[Event]:
    """Receive events until one of a kind comes; return all of them.

    Raises:
        NonConformanceError: No event of that kind comes.

    Cancellation: The received events are lost.
    """
    taken: list[Event] = []
    with trio.move_on_after(EVENT_SECONDS):
        async for event in plugin.events:
            taken.append(event)
            if isinstance(event, kind):
                return taken
    raise NonConformanceError(f"there was no {kind.__name__}; the events were {taken}")


def in_turn(events: list[Event]) -> bool:
    """Whether Connected and Disconnected alternate, Connected first."""
    kinds = [type(event) for event in events if isinstance(event, Connected | Disconnected)]
    return kinds == [Connected, Disconnected] * (len(kinds) // 2) + [Connected] * (len(kinds) % 2)


class Recorder:
    """A log that keeps its messages.

    Attributes:
        lines: The messages, each followed by its parameters.
        errors: The messages of ``error``.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []

    def debug(self, message: str, *params: object) -> None:
        """Keep a message."""
        self.lines.append(" ".join((message, *map(repr, params))))

    def info(self, message: str, *params: object) -> None:
        """Keep a message."""
        self.debug(message, *params)

    def warn(self, message: str, *params: object) -> None:
        """Keep a message."""
        self.debug(message, *params)

    def error(self, message: str, *params: object) -> None:
        """Keep a message."""
        self.debug(message, *params)
        self.errors.append(self.lines[-1])


# Handlers for checks.


async def echo(data: bytes) -> bytes:
    """Answer a request with its own data."""
    return data


async def ignore(amount: str) -> None:
    """Accept a transfer."""


def refusing(error: Exception) -> Callable[[Any], Awaitable[Any]]:
    """Return a handler, of data or of money, that raises an error."""

    async def refuse(_: object) -> None:
        raise error

    return refuse
