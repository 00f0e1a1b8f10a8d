"""Works in steps: the first statements of works that share a transaction can be sent to the database together.

A database that is reached over a network answers each statement after a round trip, in which the store's thread has
nothing to do. A work in steps is a generator: it yields a statement and gets its result, and what it returns is the
work's result. What its code does besides is done while it runs, as in other works.

The statements of a work run in their order. But the first statement of a later work may come before the second of an
earlier one. A work that must not begin so early yields ``IN_TURN`` first, before it uses the connection.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .dialect import Connection

    Statement: TypeAlias = tuple[str, tuple[Any, ...]] | None

__all__ = ["IN_TURN", "InSteps", "Steps", "Work", "finish", "in_steps"]

P = ParamSpec("P")
T = TypeVar("T")

#: What a work yields to go on only after the works before it have ended.
IN_TURN: Final = None
#: Yields statements with their values, gets their results, and returns the work's result.
Steps: TypeAlias = "Generator[Statement, Any, T]"


def finish(steps: Steps[T], connection: Connection, result: object = None) -> T:
    """Run what is left of a work in steps, and return its result.

    Args:
        steps: The work.
        connection: The connection.
        result: The result of the statement that it has yielded; None if it has not begun.
    """
    try:
        while True:
            statement = steps.send(result)
            result = None if statement is None else connection.execute(*statement)
    except StopIteration as stop:
        value: T = stop.value
        return value
    finally:
        # After a statement that failed, what the work does at its end belongs to this transaction.
        steps.close()


class InSteps(Generic[P, T]):
    """A function that is a work in steps; called like another work, it runs all of them.

    Args:
        function: Takes the connection first, and returns the steps.

    Attributes:
        start: The function.
    """

    __slots__ = ("start",)

    def __init__(self, function: Callable[Concatenate[Connection, P], Steps[T]]) -> None:
        self.start: Callable[Concatenate[Connection, P], Steps[T]] = function

    def __repr__(self) -> str:
        return f"<in steps: {self.start!r}>"

    def __call__(self, connection: Connection, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run all steps, and return the work's result."""
        return finish(self.start(connection, *args, **kwargs), connection)


class in_steps(Generic[P, T]):  # noqa: N801 (a decorator)
    """Makes an ``InSteps`` of a method."""

    def __init__(self, method: Callable[Concatenate[Any, Connection, P], Steps[T]]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, instance: object, owner: type) -> InSteps[P, T]:
        return InSteps(partial(self._method, instance))


class Work(Generic[T]):
    """A function of a connection, in steps or not, with its arguments.

    Args:
        function: The function.
        args: Its arguments after the connection.
        kwargs: Its arguments by name.
    """

    __slots__ = ("_args", "_function", "_kwargs")

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function = function
        self._args = args
        self._kwargs = kwargs

    def __repr__(self) -> str:
        return f"<work: {self._function!r}>"

    def __call__(self, connection: Connection) -> T:
        """Call the function, and return its result."""
        return self._function(connection, *self._args, **self._kwargs)

    def start(self, connection: Connection) -> Steps[T] | None:
        """Return the steps, none of which has run; None if the function has none."""
        if isinstance(self._function, InSteps):
            return self._function.start(connection, *self._args, **self._kwargs)
        return None
