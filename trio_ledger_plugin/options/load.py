"""Options from a mapping, such as one parsed from JSON, as the JavaScript plugins take them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import NOTHING, fields

from ..errors import InvalidFieldsError
from .checked import CheckedOptions, invalid_options, validator_of
from .fields import EARLIER_NAME, NESTED, Milliseconds, Refused, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from attrs import Attribute

__all__ = ["camel_case", "names_of", "options_from_mapping"]

# Fields of ilp-plugin-btp and ilp-plugin-mini-accounts, and fields that ilp-connector adds, without a meaning here.
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

    A name is in this package's spelling (``response_timeout``) or in JavaScript's (``responseTimeout``). A time is in
    seconds under the former, and in milliseconds under the latter, where 0 means the default as in JavaScript. A value
    of None counts as not given, except where it is one of the field's values, as of ``port``. A mapping within the
    mapping, such as ``listener``, is read in the same way. A server's port and host may stand in ``wsOpts``, where the
    JavaScript servers take them as well.

    Args:
        cls: The options class.
        mapping: Names to values, without ``"plugin"``.
        find_owners: Returns the names of the plugins that have an option, for the error about one that ``cls`` lacks.

    Raises:
        TypeError: ``mapping`` is not a mapping.
        InvalidFieldsError: Names are unknown or a field is given twice, or values are wrong. The text names each.

    Warns:
        UserWarning: Names that the npm plugins know and this package has no use for. They are ignored.
    """
    if not isinstance(mapping, Mapping):
        raise TypeError(f"options are a mapping, not {type(mapping).__name__}")
    ignored: list[str] = []
    options = _construct(cls, mapping, ignored, find_owners)
    if ignored:
        names = ", ".join(ignored)
        warnings.warn(f"ignored, this plugin has no use for: {names}", UserWarning, stacklevel=2)
    return options


def _construct(
    cls: type[OptionsT],
    mapping: Mapping[str, object],
    ignored: list[str],
    find_owners: Callable[[str], list[str]] | None = None,
) -> OptionsT:
    """Call the options class with what a mapping gives, and append the names that are ignored to ``ignored``.

    The constructor judges the values. Only names are judged here, and both kinds of problems are raised together, under
    the names that the mapping has.
    """
    known = names_of(cls)
    known |= {f"wsOpts.{name}": known[name] for name in ("port", "host") if name in known}
    values: dict[str, Any] = {}
    spelled: dict[str, str] = {}
    problems: list[tuple[str, str]] = []
    for name, value in _unfold_server_options(mapping):
        each = known.get(name)
        if each is None:
            if name in IGNORED or str(name).startswith("wsOpts."):
                ignored.append(name)
            else:
                problems.append((shown(name), _unknown(name, cls, find_owners)))
        elif (value is None and not validator_of(each).null) or (_is_milliseconds(each, name) and value == 0):
            continue
        elif each.name in spelled:
            problems.append((name, f"given as {spelled[each.name]} too, must be given once"))
        else:
            spelled[each.name] = name
            values[each.name] = _read(each, name, value, ignored)
    for each in fields(cls):
        if each.init and each.default is NOTHING and each.name not in values:
            values[each.name] = Refused.because(f"missing, must be {validator_of(each).expected}")
    try:
        options = cls(**values)
    except InvalidFieldsError as error:
        if not error.problems:  # a subclass's own
            raise
        problems += [(_spell(field, spelled), text) for field, text in error.problems]
    else:
        if not problems:
            return options
    raise invalid_options(cls, problems)


def _read(each: Attribute[Any], name: str, value: object, ignored: list[str]) -> object:
    """Return a mapping's value as the constructor takes it."""
    if _is_milliseconds(each, name):
        return Milliseconds(value)
    nested: type[CheckedOptions] | None = each.metadata.get(NESTED)
    if nested is None or value is None or isinstance(value, nested):
        return value
    if not isinstance(value, Mapping):
        names = ", ".join(option.name for option in fields(nested) if option.init)
        return Refused.because(f"got a value of type {type(value).__name__}, must be a mapping of its options: {names}")
    inner: list[str] = []
    try:
        return _construct(nested, value, inner)
    except InvalidFieldsError as error:
        if not error.problems:
            raise
        return Refused(error.problems)
    finally:
        ignored += [f"{name}.{other}" for other in inner]


def _spell(field: str, spelled: Mapping[str, str]) -> str:
    """Return a field, or a field within one (``listener.port``), with the name that the mapping has for it."""
    outer, dot, inner = field.partition(".")
    return f"{spelled.get(outer, outer)}{dot}{inner}"


def _unfold_server_options(mapping: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in mapping.items():
        if name == "wsOpts" and isinstance(value, Mapping):
            yield from ((f"wsOpts.{inner}", option) for inner, option in value.items())
        else:
            yield name, value


def names_of(options: type[CheckedOptions]) -> dict[str, Attribute[Any]]:
    """Return the fields of an options class by all their names: in both spellings, the earlier ones too."""
    return {
        spelling: each
        for each in fields(options)
        if each.init
        for name in (each.name, each.metadata.get(EARLIER_NAME, each.name))
        for spelling in (name, camel_case(name))
    }


def camel_case(name: str) -> str:
    """Return a name in the spelling of JavaScript."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _is_milliseconds(each: Attribute[Any], name: str) -> bool:
    snake_case = (each.name, each.metadata.get(EARLIER_NAME))
    return name not in snake_case and validator_of(each).milliseconds != ""


def _unknown(name: object, options: type[CheckedOptions], find_owners: Callable[[str], list[str]] | None) -> str:
    from difflib import get_close_matches  # noqa: PLC0415  # only a mistake needs it

    if not isinstance(name, str):
        return "no name, names are text (str)"
    for each in fields(options):
        nested = each.metadata.get(NESTED)
        if nested is not None and name in names_of(nested):
            return f"unknown, did you mean {each.name + '.' + name!r}?"
    if owners := find_owners(name) if find_owners else ():
        return f"unknown, an option of {' and '.join(map(repr, owners))}"
    known = [each.name for each in fields(options) if each.init]
    close = get_close_matches(name, known if name.islower() else list(map(camel_case, known)), n=1)
    return "unknown" + (f", did you mean {close[0]!r}?" if close else "")
