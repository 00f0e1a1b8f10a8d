"""Sphinx settings, the tables of options, and a check that the reference documents every public name."""

import re
from importlib import import_module
from importlib.metadata import version as installed_version
from types import FunctionType
from typing import TYPE_CHECKING

from sphinx.pycode import ModuleAnalyzer
from sphinx.util.docstrings import prepare_docstring
from sphinx.util.logging import getLogger

from trio_ledger_plugin.options.checked import CheckedOptions
from trio_ledger_plugin.options.tables import common_rows, own_rows
from trio_ledger_plugin.registry import OWN_CLASSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "trio_ledger_plugin"
author = "trio_ledger_plugin contributors"
copyright = author  # noqa: A001 (Sphinx's name)
release = version = installed_version("trio-ledger-plugin")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
# Programs and commands have a button that copies them, without prompts and output. What a program prints has none.
copybutton_selector = "div.highlight:not(.highlight-text *) pre"
copybutton_prompt_text = r"\w*\$ "
copybutton_prompt_is_regexp = True
exclude_patterns = ["_build"]
nitpicky = True
# The inventories of the standard library, of Trio and of the extras are not available offline.
nitpick_ignore_regex = [
    ("py:exc", r"trio\..+"),
    ("py:class", r"(collections\.abc|contextlib|datetime|logging|os|pytest|sqlite3|ssl|trio|trio_websocket)\..+"),
    # Names that annotations use without their module: classes of other packages,
    ("py:class", r"Abstract(Async)?ContextManager|MeterProvider|TracerProvider|WebSocketConnection|datetime"),
    # aliases and type variables, which docstrings describe in words,
    ("py:class", r"(btp\.Packet|.*\bPacketT|.*\bPluginT|T|Answer|DataHandler|MoneyHandler|Reply|PairFactory|OnReply)"),
    ("py:class", r"TransactionalMoneyHandler|(list|tuple|Mapping)\[str.*"),
    (
        "py:class",
        r"(.*\.)?(Book|Changes|ConnectionT(_co)?|Fraction|Keys|MemoryBookings|Number|OnPacket|Read|StoredBookings)",
    ),
    # and internal parts of a plugin.
    ("py:class", r"(.*\.)?(Account|AnyReply|Budget|Event|Handlers|Holding|HttpServer|Journal|Limits)"),
    ("py:class", r"(.*\.)?(MoneyService|Payload|Proxy|RedactingLog|Requester|ServerUrl|Stage|WorkerPool)"),
]
autodoc_member_order = "bysource"
# Show defaults as they are written: the value of os.environ would be the builder's environment, including its secrets.
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True

# The reference documents all public names of these modules, and all public methods and properties of their classes.
PUBLIC_MODULES = (
    "trio_ledger_plugin",
    "trio_ledger_plugin.stores",
    "trio_ledger_plugin.codec.btp",
    "trio_ledger_plugin.codec.ilp",
    "trio_ledger_plugin.codec.ildcp",
    "trio_ledger_plugin.codec.stream",
    "trio_ledger_plugin.stream",
    "trio_ledger_plugin.exchange",
    "trio_ledger_plugin.testing",
    "trio_ledger_plugin.telemetry",
    "trio_ledger_plugin.admin",
)
PLUGIN_CLASSES = {*OWN_CLASSES, "AccountPlugin"}


def _public_names() -> "Iterator[list[str]]":
    """Yield, for each public name, all the names under which the reference may document it."""
    for module_name in PUBLIC_MODULES:
        module = import_module(module_name)
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, FunctionType | type):
                yield _homes(value, module_name)
            # The methods of plugin classes are documented with their bases; the others serve the plugins' own parts.
            if isinstance(value, type) and name not in PLUGIN_CLASSES:
                ancestors = [each for each in value.__mro__ if each.__module__.startswith("trio_ledger_plugin")]
                for member in {member for each in ancestors for member in vars(each) if _is_public(each, member)}:
                    yield [f"{home}.{member}" for each in ancestors for home in _homes(each, module_name)]


def _homes(value: type | FunctionType, *modules: str) -> list[str]:
    return [f"{module}.{value.__name__}" for module in (*modules, value.__module__, "trio_ledger_plugin")]


def _is_public(owner: type, member: str) -> bool:
    does = isinstance(vars(owner)[member], FunctionType | property | classmethod | staticmethod)
    # The conformance command lists the suite's checks.
    return does and not member.startswith(("_", "test_"))


def _check_reference(app: "Sphinx", env: "BuildEnvironment") -> None:
    del app
    described = env.get_domain("py").data["objects"]
    for names in _public_names():
        if not any(name in described for name in names):
            getLogger(__name__).warning("the reference lacks %s", names[0])


def options_table(name: str) -> str:
    """Return the table of a plugin's own options as Markdown; that of every plugin's options for ``PluginOptions``.

    Args:
        name: The name of the options class.
    """
    rows = common_rows() if name == "PluginOptions" else own_rows(getattr(import_module("trio_ledger_plugin"), name))
    lines = ["| option | in JavaScript | default | meaning |", "|---|---|---|---|"]
    for row in rows:
        spelled = f"`{row.javascript}` (ms)" if row.milliseconds else f"`{row.javascript}`"
        meaning = row.meaning.replace("``", "`").replace("|", r"\|")
        lines.append(f"| `{row.name}` | {spelled} | {row.default} | {meaning} |")
    return "\n".join(lines)


def _forget_overloads(app: "Sphinx") -> None:
    """Show the one signature that covers all overloads, as the pages explain it."""
    del app
    analyzer = ModuleAnalyzer.for_module("trio_ledger_plugin.opening")
    analyzer.analyze()
    analyzer.overloads.clear()


def _insert_tables(app: "Sphinx", page: str, source: list[str]) -> None:
    del app, page
    source[0] = re.sub(
        r"^<!-- table of (\w+) -->$", lambda found: options_table(found[1]), source[0], flags=re.MULTILINE
    )


def _is_options(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, CheckedOptions)


def _hide_signature(_app: object, _what: str, _name: str, value: object, *_: object) -> tuple[str, None] | None:
    return ("", None) if _is_options(value) else None


def _hide_attributes(_app: object, _what: str, _name: str, value: object, _options: object, lines: list[str]) -> None:
    """Leave out of a docstring what its table has."""
    if _is_options(value) and "Attributes:" in lines:
        begin = lines.index("Attributes:")
        after = [at for at, line in enumerate(lines) if at > begin and line and not line.startswith(" ")]
        del lines[begin : after[0] if after else len(lines)]


def _take_whole_docstring(
    _app: object, what: str, _name: str, value: object, _options: object, lines: list[str]
) -> None:
    """Show the docstring of a function that a class takes as its method, not the sentence for editors beside it."""
    if what == "method" and isinstance(value, FunctionType):
        lines[:] = prepare_docstring(value.__doc__ or "")


def setup(app: "Sphinx") -> None:
    """Insert the tables of options, and run the check with every build."""
    app.connect("builder-inited", _forget_overloads)
    app.connect("source-read", _insert_tables)
    app.connect("autodoc-process-signature", _hide_signature)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", _hide_attributes, priority=400)
    app.connect("autodoc-process-docstring", _take_whole_docstring, priority=400)
    app.connect("env-check-consistency", _check_reference)
