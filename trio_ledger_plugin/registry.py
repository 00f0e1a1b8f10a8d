"""Which plugin a name or an options object means."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from .checking import CheckedOptions
from .errors import InvalidFieldsError
from .loading import canonical_plugin_name, names_of, options_from_mapping

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

    from .options import LinkOptions
    from .plugin import LedgerPlugin

__all__ = ["ENTRY_POINT_GROUP", "resolve_plugin"]

ENTRY_POINT_GROUP = "trio_ledger_plugin.plugins"
DEFAULT_PLUGIN = "btp"


def resolve_plugin(opts: object) -> tuple[type[LedgerPlugin], LinkOptions]:
    """Return the plugin's class and its options.

    Args:
        opts: An options object of some plugin, or a mapping with the plugin's name under ``"plugin"``.

    Raises:
        TypeError: ``opts`` is neither.
        InvalidFieldsError: A field is bad, or no such plugin is installed.
    """
    if isinstance(opts, CheckedOptions):
        return _class_of(opts), cast("LinkOptions", opts)
    if not isinstance(opts, Mapping):
        raise TypeError(f"opts is an options object or a mapping, not {type(opts).__name__}")
    fields = dict(opts)
    plugin = _load(canonical_plugin_name(fields.pop("plugin", DEFAULT_PLUGIN)))
    return plugin, options_from_mapping(plugin.options_class, fields, _find_owners)


def _installed() -> EntryPoints:
    # The file readers and the mail parser that it brings are a tenth of the time of importing this package.
    from importlib.metadata import entry_points  # noqa: PLC0415 (loopback_pair() and codec users never need it)

    return entry_points(group=ENTRY_POINT_GROUP)


def _load(name: str) -> type[LedgerPlugin]:
    found = {entry.name: entry for entry in _installed()}
    if name not in found:
        from difflib import get_close_matches  # noqa: PLC0415 (only a mistake needs it)

        near = get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InvalidFieldsError(f"plugin is {name!r}; installed are {', '.join(sorted(found))}{hint}")
    return cast("type[LedgerPlugin]", found[name].load())


def _find_owners(option: str) -> list[str]:
    """Return the names of the installed plugins that have an option."""
    owners = []
    for entry in _installed():
        # What is wrong with another plugin is not what is wrong with these options.
        with suppress(Exception):
            if option in names_of(entry.load().options_class):
                owners.append(entry.name)
    return sorted(owners)


def _class_of(options: CheckedOptions) -> type[LedgerPlugin]:
    for entry in _installed():
        plugin: type[LedgerPlugin] = entry.load()
        if plugin.options_class is type(options):
            return plugin
    raise TypeError(f"opts is a {type(options).__name__}, which no installed plugin takes")
