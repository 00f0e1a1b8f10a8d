"""Options from a mapping, such as one parsed from JSON, as the JavaScript plugins take them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import fields, frozen

from .fields import RULE, CheckedOptions, raise_problems, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from attrs import Attribute

__all__ = ["names_of", "options_from_mapping"]

# Fields of ilp-plugin-btp and ilp-plugin-mini-accounts, and what ilp-connector adds, that have no meaning here.
IGNORED: Final = frozenset(
    {
        "_log",
        "_store",
        "currencyScale",
        "prefix",
        "reconnectClearTryTimeout",
        "reconnectInterval",
        "reconnectIntervals",
        "wsOpts",
    }
)

OptionsT = TypeVar("OptionsT", bound=CheckedOptions)


def options_from_mapping(
    cls: type[OptionsT], mapping: Mapping[str, object], find_owners: Callable[[str], list[str]] | None = None
) -> OptionsT:
    """Make an options object from a mapping, such as one parsed from JSON.

    A name may be ours (``response_timeout``, seconds) or in JavaScript's spelling (``responseTimeout``). Times
    under a JavaScript name are milliseconds and 0 means the default, as there. A value of None counts as not given,
    except where it is one of the field's values, as of ``port``. A mapping within, such as ``listener``, is taken the
    same way. A server's port and host may stand in ``wsOpts``, where the JavaScript servers take them as well.

    Args:
        cls: The options class.
        mapping: Names to values, without ``"plugin"``.
        find_owners: Tells of an option which plugins have it, for the error about one that this class has not.

    Raises:
        TypeError: ``mapping`` is no mapping.
        InvalidFieldsError: Names are unknown or given in both spellings, or values are wrong; each is named.

    Warns:
        UserWarning: Names that the npm plugins know and this package has no use for; they are ignored.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"options are a mapping, not {type(mapping).__name__}")
    reading = _Reading.of(cls, mapping, find_owners)
    raise_problems(cls, reading.problems)
    if reading.ignored:
        names = ", ".join(reading.ignored)
        warnings.warn(f"ignored, this plugin has no use for: {names}", UserWarning, stacklevel=2)
    return cls(**reading.values)


@frozen
class _Reading:
    """What a mapping says for an options class."""

    values: dict[str, Any]
    problems: list[str]
    ignored: list[str]

    @classmethod
    def of(
        cls,
        options: type[CheckedOptions],
        mapping: Mapping[str, object],
        find_owners: Callable[[str], list[str]] | None = None,
    ) -> _Reading:
        known = names_of(options)
        known |= {f"wsOpts.{name}": known[name] for name in ("port", "host") if name in known}
        values: dict[str, Any] = {}
        problems: list[str] = []
        ignored: list[str] = []
        spelled: dict[str, str] = {}
        nested_wrong: set[str] = set()
        for name, value in _unfold_server_options(mapping):
            each = known.get(name)
            if each is None:
                if name in IGNORED or str(name).startswith("wsOpts."):
                    ignored.append(name)
                else:
                    problems.append(f"{shown(name)}: {_unknown(name, options, find_owners)}")
            elif (value is None and not _takes_null(each)) or (_is_milliseconds(each, name) and value == 0):
                continue
            elif each.name in spelled:
                problems.append(f"{name}: given as {spelled[each.name]} too, must be given once")
            else:
                spelled[each.name] = name
                values[each.name] = value
                rule = each.metadata.get(RULE)
                if rule and rule.nested and isinstance(value, Mapping):
                    nested = _Reading.of(rule.nested, value)
                    problems += [f"{name}.{problem}" for problem in nested.problems]
                    ignored += [f"{name}.{other}" for other in nested.ignored]
                    if nested.problems:
                        nested_wrong.add(each.name)
                    else:
                        values[each.name] = rule.nested(**nested.values)
        problems += options.find_problems(values, spelled, nested_wrong)
        if not problems:
            for each in fields(options):
                if each.name in values and _is_milliseconds(each, spelled[each.name]):
                    values[each.name] /= 1000
        return cls(values, problems, ignored)


def _unfold_server_options(mapping: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in mapping.items():
        if name == "wsOpts" and isinstance(value, Mapping):
            yield from ((f"wsOpts.{inner}", option) for inner, option in value.items())
        else:
            yield name, value


def names_of(options: type[CheckedOptions]) -> dict[str, Attribute[Any]]:
    """Return the fields of an options class by both spellings of their names."""
    return {name: each for each in fields(options) for name in (each.name, _camel_case(each.name))}


def _camel_case(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _is_milliseconds(each: Attribute[Any], name: str) -> bool:
    rule = each.metadata.get(RULE)
    return rule is not None and rule.duration and name != each.name


def _takes_null(each: Attribute[Any]) -> bool:
    rule = each.metadata.get(RULE)
    return rule is not None and rule.null


def _unknown(name: object, options: type[CheckedOptions], find_owners: Callable[[str], list[str]] | None) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # only a mistake needs it, import time is everybody's

    if not isinstance(name, str):
        return "no name, names are text (str)"
    for each in fields(options):
        rule = each.metadata.get(RULE)
        if rule and rule.nested and name in names_of(rule.nested):
            return f"unknown, did you mean {each.name + '.' + name!r}?"
    if owners := find_owners(name) if find_owners else ():
        return f"unknown, an option of {' and '.join(map(repr, owners))}"
    known = [each.name for each in fields(options)]
    close = get_close_matches(name, known if name.islower() else list(map(_camel_case, known)), n=1)
    return "unknown" + (f", did you mean {close[0]!r}?" if close else "")
