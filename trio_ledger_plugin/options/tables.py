"""The options of a plugin as a table: for its documentation, and for the command ``options``."""

from __future__ import annotations

import re
from datetime import timedelta
from inspect import cleandoc
from math import inf
from typing import TYPE_CHECKING, Any, Final

from attrs import NOTHING, Factory, fields, frozen

from .base import PluginOptions
from .checked import validator_of
from .fields import NESTED, PORT, VALIDATOR
from .load import camel_case

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from attrs import Attribute

    from .checked import CheckedOptions

__all__ = ["REQUIRED", "OptionRow", "common_rows", "own_rows", "rows_of"]

REQUIRED: Final = "required"
EMPTY: Final = "empty"
COMMON: Final = PluginOptions
SIZES: Final = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
# A line of a docstring's section: the name of a field and the beginning of its text, or more of the text.
ENTRY: Final = re.compile(r" {4}(\w+): +(.*)")


@frozen
class OptionRow:
    """One option.

    Attributes:
        name: The name in a mapping and in the constructor, such as ``"listener.port"``.
        javascript: The name as the JavaScript plugins spell it.
        milliseconds: Whether the value under that name is in milliseconds.
        default: The default with its unit, or ``"required"``.
        accepts: What the option accepts, in words.
        meaning: What it means.
    """

    name: str
    javascript: str
    milliseconds: bool
    default: str
    accepts: str
    meaning: str


def rows_of(options: type[CheckedOptions]) -> tuple[OptionRow, ...]:
    """Return all options of a plugin: first its own, then those of every plugin."""
    own = own_rows(options)
    names = {row.name for row in own}
    return *own, *(row for row in common_rows() if row.name not in names)


def own_rows(options: type[CheckedOptions]) -> tuple[OptionRow, ...]:
    """Return the options of a plugin that not every plugin has, those of nested options among them."""
    common = {each.name: each.default for each in fields(COMMON)}
    own = (each for each in fields(options) if each.name not in common or each.default != common[each.name])
    return tuple(_rows(options, own))


def common_rows() -> tuple[OptionRow, ...]:
    """Return the options of every plugin."""
    return tuple(_rows(COMMON, fields(COMMON)))


def _rows(options: type[CheckedOptions], chosen: Iterable[Attribute[Any]]) -> Iterator[OptionRow]:
    meanings = _meanings_of(options)
    for each in chosen:
        if not each.init:
            continue
        validator = validator_of(each)
        row = OptionRow(
            name=each.name,
            javascript=camel_case(each.name),
            milliseconds=validator.milliseconds != "",
            default=_default_of(each),
            accepts=validator.expected,
            meaning=meanings.get(each.name, ""),
        )
        yield row
        nested = each.metadata.get(NESTED)
        for inner in own_rows(nested) if nested is not None else ():
            yield OptionRow(
                name=f"{row.name}.{inner.name}",
                javascript=f"{row.javascript}.{inner.javascript}",
                milliseconds=inner.milliseconds,
                default=inner.default,
                accepts=inner.accepts,
                meaning=inner.meaning,
            )


def _meanings_of(options: type[CheckedOptions]) -> dict[str, str]:
    """Return the texts of the section ``Attributes`` of a class's docstring, and of those of its bases."""
    meanings: dict[str, str] = {}
    for each in reversed(options.__mro__):
        name = ""
        _, _, section = cleandoc(each.__doc__ or "").partition("\nAttributes:\n")
        for line in section.splitlines():
            if line and not line.startswith(" "):
                break
            if entry := ENTRY.fullmatch(line):
                name = entry[1]
                meanings[name] = entry[2]
            elif name:
                meanings[name] = f"{meanings[name]} {line.strip()}".rstrip()
    return meanings


def _default_of(each: Attribute[Any]) -> str:
    """Return a field's default with its unit."""
    value: Any = each.default
    if value is NOTHING:
        return REQUIRED
    if isinstance(value, Factory):  # type: ignore[arg-type]  # a class, which attrs' stubs show as a function
        value = value.factory()
    if value is None or isinstance(value, bool) or value == inf:
        return str(value)
    if isinstance(value, int | float):
        return _number(each, value)
    if not value:
        return EMPTY
    return f'"{value}"' if isinstance(value, str) else str(value)


def _number(each: Attribute[Any], value: float) -> str:
    if validator_of(each).milliseconds:
        days = timedelta(seconds=value) / timedelta(days=1)
        return f"{days:g} days" if days >= 1 else f"{value:g} s"
    if each.name.endswith("_bytes"):
        return next((f"{value / size:g} {unit}" for size, unit in SIZES if value >= size), f"{value:g} bytes")
    return str(value) if each.metadata[VALIDATOR] is PORT[VALIDATOR] else f"{value:,}"
