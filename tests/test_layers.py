"""Imports go one way, so that the codec works without Trio and a change affects few modules."""

import ast
import re
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest
from support.layers import LAYERS, PACKAGE

import trio_ledger_plugin

ROOT = Path(trio_ledger_plugin.__file__).parent
MODULES = {
    ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
LINES = 450

MAY_IMPORT = {unit: allowed for units, allowed in LAYERS for unit in units}


def imports(path, *, typing_too=False):
    """Return the absolute names that a module imports when it runs."""
    module = next(name for name, at in MODULES.items() if at == path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            node.body.clear()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return found


def unit(module):
    """Return the folder or the top-level file that a module belongs to."""
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: ", ".join(layer[0]))
def test_layer_imports_nothing_from_above(layer):
    """Imports for type checkers count."""
    units, allowed = layer
    upwards = {
        (name, target)
        for name, path in MODULES.items()
        if unit(name) in units
        for target in imports(path, typing_too=True) & set(MODULES)
        if unit(target) not in allowed | {unit(name)}
    }
    assert upwards == set()


def test_every_file_has_a_layer():
    assert {unit(name) for name in MODULES} - set(MAY_IMPORT) == set()


def test_imports_have_no_circle():
    """Imports for type checkers and imports inside functions count: each module can be read after those it names."""
    graph = {name: imports(path, typing_too=True) & set(MODULES) - {name} for name, path in MODULES.items()}
    while leaves := {name for name, targets in graph.items() if not targets & set(graph)}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    assert not graph, {name: sorted(targets & set(graph)) for name, targets in graph.items()}


def test_package_imports_itself_only_by_statements():
    """import_module() may import a user's module; an import of this package by it would not be counted here."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                said = ast.unparse(node.args[0]).strip("'\"")
                assert len(node.args) == 1, name
                assert not said.startswith((".", PACKAGE)), name


@pytest.mark.parametrize("module", [*(name for name in MODULES if ".codec" in name), f"{PACKAGE}.btp.session"])
def test_codec_and_session_do_not_import_trio(module):
    known = {name.partition(".")[0] for name in imports(MODULES[module], typing_too=True)}
    assert not known & {"trio", "trio_websocket", "wsproto", "socket", "ssl", "outcome"}


@pytest.mark.parametrize(
    "module", ["codec.oer", "codec.btp", "codec.ilp", "codec.ildcp", "codec.stream", "btp.session", "websocket.frames"]
)
def test_codec_and_session_run_without_trio(module):
    """In a separate interpreter, without the packages' own __init__ modules, which import Trio."""
    program = f"""
import sys, types
for name, at in (({PACKAGE!r}, {str(ROOT)!r}), ({PACKAGE + ".btp"!r}, {str(ROOT / "btp")!r})):
    package = types.ModuleType(name)
    package.__path__ = [at]
    sys.modules[name] = package
import {PACKAGE}.{module}
print(*({{'trio', 'trio_websocket', 'wsproto', 'outcome'}} & {{name.partition('.')[0] for name in sys.modules}}))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.split() == []


def test_optional_modules_are_not_imported_with_the_package():
    """Every program that imports the package would start later."""
    program = f"""
import sys, trio
before = set(sys.modules)
import {PACKAGE}
print(*(set(sys.modules) - before))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert f"{PACKAGE}.opening" in loaded
    late = {"sqlite3", "importlib.metadata", "difflib", "trio_websocket", "click", "rich", "h11"}
    late |= {
        f"{PACKAGE}.{name}"
        for name in ("stores", "money.journal", "money.sender", "codec.ilp", "loopback", "testing", "plugin")
    }
    assert loaded & late == set()
    assert {name for name in loaded if ".btp" in name or ".http" in name} == set()


def test_only_one_module_imports_trio_websocket():
    knowing = [
        name
        for name, path in MODULES.items()
        if any(found.partition(".")[0] in ("trio_websocket", "wsproto") for found in imports(path, typing_too=True))
    ]
    assert knowing == [f"{PACKAGE}.websocket.connection"]


def test_init_modules_only_import():
    for path in (ROOT / "__init__.py", ROOT / "stores" / "__init__.py"):
        nodes = list(ast.parse(path.read_text()).body)
        for node in nodes:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                # What type checkers read, and what Python runs instead.
                nodes += [*node.body, *node.orelse]
        kinds = {type(node).__name__ for node in nodes}
        assert kinds <= {"Expr", "If", "ImportFrom", "Assign"}, path


@pytest.mark.parametrize("module", MODULES)
def test_module_has_at_most_450_lines(module):
    assert len(MODULES[module].read_text().splitlines()) <= LINES


def test_base_exception_is_never_swallowed():
    """An ``except BaseException`` that does not raise again swallows Trio's cancellation."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and ast.unparse(node.type or ast.Name("bare")) in (
                "BaseException",
                "bare",
            ):
                raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
                kept = any(
                    isinstance(inner, ast.Assign) and ast.unparse(inner.value) == node.name for inner in ast.walk(node)
                )
                assert raises or kept, f"{name}, line {node.lineno}"


def test_every_shield_has_a_deadline():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                words = {keyword.arg for keyword in node.keywords}
                if "shield" in words:
                    bounded = ast.unparse(node.func) in ("trio.move_on_after", "trio.fail_after", "trio.move_on_at")
                    assert bounded or "deadline" in words or "relative_deadline" in words, f"{name}, line {node.lineno}"


def test_only_parking_waits_by_hand():
    """Every other hand-made wait would need its own protection from Ctrl-C."""
    waiting = [name for name, path in MODULES.items() if "wait_task_rescheduled" in path.read_text()]
    assert waiting == [f"{PACKAGE}.parking"]


def test_only_parking_starts_tasks():
    """A nursery whose task was interrupted while it was started would wait for ever. Programs may start theirs."""
    starting = {
        name
        for name, path in MODULES.items()
        if re.search(r"(?<!_reader)\.start_soon\b", path.read_text())
        and name.split(".")[1] not in ("benchmark", "cli", "testing")
    }
    assert starting == {f"{PACKAGE}.parking"}


def classes():
    """Yield the name of each class's module, the class, and the names of its bases."""
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield name, node, [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]


def test_at_most_eight_protocol_classes_are_shipped():
    protocols = [f"{name}.{node.name}" for name, node, bases in classes() if "Protocol" in bases]
    assert len([name for name in protocols if unit(name) != "testing"]) <= 8, protocols


def test_inheritance_is_at_most_three_deep():
    """Counting the package's own classes. Errors, which programs catch by level, and test doubles may be deeper."""
    bases: dict[str, set[str]] = {}
    for name, node, found in classes():
        if unit(name) not in ("errors", "testing"):
            bases.setdefault(node.name, set()).update(set(found) - {node.name})

    def depth(name):
        return 1 + max(map(depth, bases[name]), default=0) if name in bases else 0

    assert {name: depth(name) for name in bases if depth(name) > 3} == {}


def test_lost_link_has_one_entry():
    """A second one would forget a part of what the end of a link means."""
    link = next(node for name, node, _ in classes() if (name, node.name) == (f"{PACKAGE}.btp.link", "Link"))
    text = "self._state = _State.LOST"
    assert [method.name for method in link.body if text in ast.unparse(method)] == ["end"]


@pytest.mark.parametrize("module", MODULES)
def test_sql_has_no_numbered_placeholders(module):
    """Python 3.12 warns about them: a program that turns warnings into errors would fail."""
    texts = (node.value for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Constant))
    assert not [text for text in texts if isinstance(text, str) and re.search(r"[=(, ]\?\d", text)]


def test_drawing_of_the_layers_matches_the_layer_test():
    """A newcomer would read an architecture that the code does not have."""
    drawing = (ROOT.parent / "docs" / "drawings" / "layers.svg").read_text()
    layers: list[list[str]] = []
    words: list[str] = []
    for kind, text in re.findall(r'<text class="(units first|units|words)"[^>]*>([^<]*)</text>', drawing):
        if kind == "units first":
            layers.append([])
            words.append("")
        if kind == "words":
            words[-1] += text
        else:
            layers[-1] += re.findall(r"[\w.]+", text)
    assert [tuple(units) for units in layers] == [units for units, _ in reversed(LAYERS)]
    assert all(words)
    assert "(../drawings/layers.svg)" in (ROOT.parent / "docs" / "explanation" / "architecture.md").read_text()
