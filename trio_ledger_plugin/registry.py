"""Finds the plugin for a name or an options object."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, cast

from .errors import InvalidFieldsError
from .options.checked import CheckedOptions
from .options.fields import shown
from .options.load import names_of, options_from_mapping

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.metadata import EntryPoint

    from .options.base import PluginOptions
    from .plugin import LedgerPlugin

__all__ = [
    "ENTRY_POINT_GROUP",
    "PLUGIN_ALIASES",
    "OptionsOfVariables",
    "canonical_plugin_name",
    "find_class",
    "find_plugin",
    "name_of_plugin",
    "resolve_plugin",
]

#: npm's module names, and the corresponding plugins of this package.
PLUGIN_ALIASES: Final[Mapping[str, str]] = {
    "ilp-plugin-btp": "btp",
    "ilp-plugin-http": "http",
    "ilp-plugin-mini-accounts": "btp-accounts",
}

NPM_PREFIX: Final = "ilp-plugin-"
ENTRY_POINT_GROUP = "trio_ledger_plugin.plugins"
DEFAULT_PLUGIN = "btp"
# Known without the package's metadata: a checkout has none, nor has a frozen program.
OWN_CLASSES: Final = {
    "BtpPlugin": "btp",
    "AccountsPlugin": "btp-accounts",
    "HttpPlugin": "http",
    "HttpAccountsPlugin": "http-accounts",
    "LoopbackPlugin": "loopback",
}
OWN_PLUGINS: Final = tuple(OWN_CLASSES.values())
BTP_OPTIONS: Final = ("AccountsOptions", "BtpOptions", "ListenerOptions")
HTTP_OPTIONS: Final = ("HttpAccountsOptions", "HttpOptions", "IncomingOptions", "OutgoingOptions")


def canonical_plugin_name(name: object) -> str:
    """Return the name of a plugin, given a name from a mapping or from ``ILP_PLUGIN``.

    Args:
        name: npm's module name, or the name of a plugin, which is returned unchanged.

    Raises:
        InvalidFieldsError: ``name`` is not text, or is empty.
    """
    if not isinstance(name, str) or not name:
        raise InvalidFieldsError(f"plugin: got {shown(name)}, must be the name of a plugin, such as 'btp'")
    return PLUGIN_ALIASES.get(name, name)


def name_of_plugin(plugin: type[LedgerPlugin]) -> str:
    """Return the name of a plugin in mappings, given its class; the class's own name if no mapping can name it."""
    return next((name for name, known in _load_all() if known is plugin), plugin.__name__)


class OptionsOfVariables(dict[str, object]):
    """Options from the environment, with the variables that they are in.

    Args:
        options: The options, with ``"plugin"``.
        name_is_in: Which variable has the plugin's name.
        rest_is_in: Which has the other options; empty if they are the defaults.
    """

    def __init__(self, options: Mapping[str, object], *, name_is_in: str, rest_is_in: str) -> None:
        super().__init__(options)
        self.name_is_in: str = name_is_in
        self.rest_is_in: str = rest_is_in


@contextmanager
def _naming(variable: str) -> Iterator[None]:
    """Have an error name the variable in which something is wrong; does nothing without one."""
    try:
        yield
    except InvalidFieldsError as error:
        if not variable:
            raise
        raise InvalidFieldsError(f"{variable}: {error}", problems=error.problems) from None


def resolve_plugin(opts: object) -> tuple[type[LedgerPlugin], PluginOptions]:
    """Return the plugin's class and its options.

    Args:
        opts: A plugin's options object, or a mapping with the plugin's name under ``"plugin"``.

    Raises:
        TypeError: ``opts`` is neither, or no plugin takes this options object.
        InvalidFieldsError: A field is wrong, or no such plugin is installed. Of options from the environment, it names
            the variable.
    """
    if isinstance(opts, CheckedOptions):
        return _class_of(opts), cast("PluginOptions", opts)
    if not isinstance(opts, Mapping):
        raise TypeError(f"opts is an options object or a mapping, not {type(opts).__name__}")
    fields = dict(opts)
    name = fields.pop("plugin", None)
    canonical = DEFAULT_PLUGIN if name is None else canonical_plugin_name(name)
    if canonical == "http" and fields.get("multi") is True:
        # ilp-plugin-http is both.
        canonical = "http-accounts"
    name_is_in, rest_is_in = "", ""
    if isinstance(opts, OptionsOfVariables):
        name_is_in, rest_is_in = opts.name_is_in, opts.rest_is_in
    with _naming(name_is_in):
        plugin = find_plugin(canonical)
    with _naming(rest_is_in):
        return plugin, options_from_mapping(plugin.options_class, fields, _find_owners)


def find_plugin(name: str) -> type[LedgerPlugin]:
    """Return the class of a plugin by the plugin's name.

    Raises:
        InvalidFieldsError: No such plugin is installed.
    """
    if name in OWN_PLUGINS:
        return _load_own(name)
    others = _others()
    if name not in others:
        installed = sorted({*OWN_PLUGINS, *others})
        near = _nearest(name, installed)
        hint = f"; did you mean {near!r}?" if near else ""
        raise InvalidFieldsError(f"plugin is {name!r}; installed are {', '.join(installed)}{hint}")
    return cast("type[LedgerPlugin]", others[name].load())


def _nearest(name: str, installed: list[str]) -> str:
    """Return the name that a misspelt one is nearest to, in this package or at npm; empty if none is near."""
    from difflib import get_close_matches  # noqa: PLC0415 (only a mistake needs it)

    # What all names at npm begin with would make any two of them alike.
    prefix = NPM_PREFIX if name.startswith(NPM_PREFIX) else ""
    known = [alias.removeprefix(prefix) for alias in PLUGIN_ALIASES] if prefix else installed
    near = get_close_matches(name.removeprefix(prefix), known, n=1)
    return f"{prefix}{near[0]}" if near else ""


def find_class(name: str) -> type[object]:
    """Return a class of this package by its name; it is imported when it is first asked for.

    Raises:
        AttributeError: There is no such class.
    """
    if name in BTP_OPTIONS:
        from .btp import options as btp  # noqa: PLC0415 (a program uses one kind of options, or mappings)

        return cast("type[object]", getattr(btp, name))
    if name in HTTP_OPTIONS:
        from .http import options as http  # noqa: PLC0415 (the same)

        return cast("type[object]", getattr(http, name))
    if name == "LedgerPlugin":
        from .plugin import LedgerPlugin  # noqa: PLC0415 (what a plugin needs is imported when one is made)

        return LedgerPlugin
    if name == "Transfers":
        from .money.reconciliation import Transfers  # noqa: PLC0415 (the same)

        return Transfers
    if name == "AccountPlugin":
        from .accounts.account import AccountPlugin  # noqa: PLC0415 (only its users need it)

        return AccountPlugin
    if name == "ExchangePlugin":
        from .exchange import ExchangePlugin  # noqa: PLC0415 (only authors of plugins need it)

        return ExchangePlugin
    if name not in OWN_CLASSES:
        raise AttributeError(f"module 'trio_ledger_plugin' has no attribute {name!r}")
    return _load_own(OWN_CLASSES[name])


def _load_own(name: str) -> type[LedgerPlugin]:
    # Import statements, since tools that freeze programs look for them.
    if name == "btp":
        from .btp.plugin import BtpPlugin  # noqa: PLC0415 (only its users need it)

        return BtpPlugin
    if name == "btp-accounts":
        from .btp.accounts import AccountsPlugin  # noqa: PLC0415 (only its users need it)

        return AccountsPlugin
    if name == "http":
        from .http.plugin import HttpPlugin  # noqa: PLC0415 (only its users need it)

        return HttpPlugin
    if name == "http-accounts":
        from .http.accounts import HttpAccountsPlugin  # noqa: PLC0415 (only its users need it)

        return HttpAccountsPlugin
    from .loopback import LoopbackPlugin  # noqa: PLC0415 (as the others)

    return LoopbackPlugin


def _others() -> dict[str, EntryPoint]:
    # It imports file readers and a mail parser, a tenth of the time of importing this package.
    from importlib.metadata import entry_points  # noqa: PLC0415 (only plugins of other packages need it)

    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name not in OWN_PLUGINS}


def _load_all() -> Iterator[tuple[str, type[LedgerPlugin]]]:
    for name in OWN_PLUGINS:
        yield name, _load_own(name)
    for name, entry in _others().items():
        options_class = None
        # A broken plugin of another package must not hide the plugin that these options are for.
        with suppress(Exception):
            plugin = entry.load()
            options_class = plugin.options_class
        if isinstance(options_class, type) and issubclass(options_class, CheckedOptions):
            yield name, cast("type[LedgerPlugin]", plugin)


def _find_owners(option: str) -> list[str]:
    """Return the names of the installed plugins that have an option."""
    return sorted(name for name, plugin in _load_all() if option in names_of(plugin.options_class))


def _class_of(options: CheckedOptions) -> type[LedgerPlugin]:
    for _, plugin in _load_all():
        if plugin.options_class is type(options):
            return plugin
    raise TypeError(f"opts is a {type(options).__name__}, which no installed plugin takes")
