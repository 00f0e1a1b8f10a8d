"""Options that check themselves.

Invariant: a wrong options object cannot exist. The constructor runs the validator of every field once and raises one
``InvalidFieldsError`` with all the problems.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from attrs import fields, frozen

from ..errors import InvalidFieldsError
from .fields import ANYTHING, EARLIER_NAME, VALIDATOR, Milliseconds, Refused, Validator

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from inspect import Signature

    from attrs import Attribute

__all__ = ["CheckedOptions", "invalid_options", "validator_of"]


class _AcceptsEarlierNames(type):
    """The type of options classes: their constructors also take the earlier names of renamed fields."""

    # Type checkers see the constructor that attrs generates, with the present names only.
    if not TYPE_CHECKING:

        def __call__(cls, /, *args: object, **values: object) -> CheckedOptions:
            for each in fields(cls):
                if (earlier := each.metadata.get(EARLIER_NAME)) in values:
                    value = values.pop(earlier)
                    twice = Refused.because(f"given as {earlier} too, must be given once")
                    values[each.name] = twice if each.name in values else value
            return super().__call__(*args, **values)

        @property
        def __signature__(cls) -> Signature:
            made = signature(cls.__init__)
            return made.replace(parameters=list(made.parameters.values())[1:])


@frozen(kw_only=True)
class CheckedOptions(metaclass=_AcceptsEarlierNames):
    """The base of every options class.

    A subclass is a frozen attrs class. Its fields have a ``Validator`` in their ``metadata``; ``find_conflicts`` checks
    what a single field cannot show.
    """

    def __attrs_post_init__(self) -> None:
        problems: list[tuple[str, str]] = []
        values: dict[str, object] = {}
        for each in fields(type(self)):
            value = getattr(self, each.name)
            problems += _find_problems(each, value)
            if isinstance(value, Milliseconds):
                value = value.as_seconds()
                # The object is still under construction.
                object.__setattr__(self, each.name, value)
            values[each.name] = value
        problems += self.find_conflicts(values)
        if problems:
            raise invalid_options(type(self), problems)

    # The options classes of this package have eq=False and repr=False and inherit these methods. For classes of thirty
    # fields, attrs takes half a millisecond each to compile such methods when the package is imported.
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _compared(type(self)))

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in _compared(type(self)))))

    def __repr__(self) -> str:
        shown = (
            f"{each.name}={(each.repr if callable(each.repr) else repr)(getattr(self, each.name))}"
            for each in fields(type(self))
            if each.repr
        )
        return f"{type(self).__name__}({', '.join(shown)})"

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:  # noqa: ARG003  # for subclasses
        """Check rules over several fields.

        Args:
            values: Every field's value by the field's name. A value that its own validator refuses is among them: it
                may be of any type.

        Returns:
            Pairs of a field and what is wrong with it.
        """
        return ()


def _compared(cls: type[CheckedOptions]) -> Iterator[str]:
    return (each.name for each in fields(cls) if each.eq)


def validator_of(each: Attribute[Any]) -> Validator:
    """Return a field's validator; a field without one accepts anything."""
    validator: Validator = each.metadata.get(VALIDATOR, ANYTHING)
    return validator


def invalid_options(cls: type[CheckedOptions], problems: Iterable[tuple[str, str]]) -> InvalidFieldsError:
    """Return the error that names all the problems of an options class's fields."""
    problems = tuple(problems)
    lines = "".join(f"\n- {field}: {text}" for field, text in problems)
    return InvalidFieldsError(f"{cls.__name__}, {len(problems)} wrong:{lines}", problems=problems)


def _find_problems(each: Attribute[Any], value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Refused):
        for inner, text in value.problems:
            yield (f"{each.name}.{inner}" if inner else each.name), text
    elif text := validator_of(each).find_problem(value):
        yield each.name, text
