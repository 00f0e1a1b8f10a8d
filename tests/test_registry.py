"""A plugin of this or another package is found by its name or by its options; the error names a mistake."""

from modulefinder import ModuleFinder
from pathlib import Path

import pytest
from support.scripted import ScriptedOptions, ScriptedPlugin, install

from trio_ledger_plugin import InvalidFieldsError, open_plugin, options_from_environment, registry
from trio_ledger_plugin.btp.options import BtpOptions
from trio_ledger_plugin.btp.plugin import BtpPlugin
from trio_ledger_plugin.loopback import LoopbackOptions, LoopbackPlugin
from trio_ledger_plugin.options.base import ConnectOptions, PluginOptions
from trio_ledger_plugin.registry import ENTRY_POINT_GROUP, resolve_plugin

SERVER = "btp+ws://alice:token@localhost:7768"


def test_entry_point_group_has_its_public_name():
    assert ENTRY_POINT_GROUP == "trio_ledger_plugin.plugins"


def test_mapping_without_a_plugin_name_means_btp():
    plugin, options = resolve_plugin({"server": SERVER})
    assert plugin is BtpPlugin
    assert isinstance(options, BtpOptions)
    assert options.btp_account == "alice"


@pytest.mark.parametrize("name", ["btp", "ilp-plugin-btp"])
def test_npm_names_are_aliases(name):
    assert resolve_plugin({"plugin": name, "server": SERVER})[0] is BtpPlugin


def test_mapping_of_the_caller_is_not_changed():
    opts = {"plugin": "loopback", "name": "x"}
    resolve_plugin(opts)
    assert opts == {"plugin": "loopback", "name": "x"}


def test_options_object_means_its_plugin():
    options = LoopbackOptions(name="x")
    assert resolve_plugin(options) == (LoopbackPlugin, options)


def test_unknown_plugin_name_lists_the_installed_ones():
    with pytest.raises(
        InvalidFieldsError,
        match=r"'loopbak'.*btp, btp-accounts, http, http-accounts, loopback.*did you mean 'loopback'",
    ):
        resolve_plugin({"plugin": "loopbak"})


@pytest.mark.parametrize("name", ["", 3, False, ["btp"]])
def test_invalid_plugin_name_is_refused(name):
    with pytest.raises(InvalidFieldsError, match="plugin"):
        resolve_plugin({"plugin": name})


def test_null_plugin_name_counts_as_not_given():
    """Like every null in a configuration."""
    assert resolve_plugin({"plugin": None, "server": SERVER})[0] is BtpPlugin


@pytest.mark.parametrize("opts", [None, "btp", 7, [("plugin", "btp")], b"{}", ConnectOptions()])
def test_opts_of_another_type_are_a_type_error(opts):
    with pytest.raises(TypeError, match="opts is"):
        resolve_plugin(opts)


def test_options_without_a_plugin_are_a_type_error():
    with pytest.raises(TypeError, match="PluginOptions, which no installed plugin takes"):
        resolve_plugin(PluginOptions())


async def test_plugin_of_another_package_opens_by_name_and_options(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)
    for opts in ({"plugin": "scripted", "responseTimeout": 1500}, ScriptedOptions(response_timeout=1.5)):
        async with open_plugin(opts) as plugin:
            assert isinstance(plugin, ScriptedPlugin)
            assert plugin.is_connected()
            assert plugin.options.response_timeout == 1.5


def test_own_plugins_need_no_package_metadata(monkeypatch):
    """A checkout on the path has none, nor has a program that is frozen into one file."""
    monkeypatch.setattr("importlib.metadata.entry_points", lambda *, group: ())
    assert resolve_plugin({"server": SERVER})[0] is BtpPlugin
    assert resolve_plugin(LoopbackOptions(name="x"))[0] is LoopbackPlugin


def test_program_freezers_find_the_own_plugins(tmp_path):
    """They take the modules that import statements name; the frozen program would lack any other."""
    program = tmp_path / "program.py"
    program.write_text("from trio_ledger_plugin import open_plugin\n")
    finder = ModuleFinder([str(Path(registry.__file__).parents[1])])
    finder.run_script(str(program))
    assert {cls.__module__ for cls in map(registry._load_own, registry.OWN_PLUGINS)} <= set(finder.modules)


def test_broken_plugins_of_other_packages_are_skipped(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)
    (tmp_path / "odd.py").write_text("class Plugin:\n    options_class = dict\n")
    (info,) = tmp_path.glob("*.dist-info")
    entries = "a = no_such_module:Plugin\nb = odd:Plugin\nloopback = support.scripted:ScriptedPlugin\nz = json:dumps\n"
    with (info / "entry_points.txt").open("a") as file:
        file.write(entries)
    assert resolve_plugin(LoopbackOptions(name="x"))[0] is LoopbackPlugin
    assert resolve_plugin({"plugin": "loopback"})[0] is LoopbackPlugin
    assert resolve_plugin(ScriptedOptions())[0] is ScriptedPlugin
    with pytest.raises(InvalidFieldsError, match="'bogus': unknown"):
        resolve_plugin({"plugin": "loopback", "bogus": 1})


def test_plugin_that_is_not_installed_is_not_found():
    with pytest.raises(InvalidFieldsError, match="'scripted'; installed are"):
        resolve_plugin({"plugin": "scripted"})


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"ILP_BTP_SERVER": "localhost"}, r"^ILP_BTP_SERVER: BtpOptions, 1 wrong:\n- server: must begin with"),
        ({"ILP_CREDENTIALS": '{"servr": 1}'}, "^ILP_CREDENTIALS: BtpOptions, 2 wrong:"),
        ({"ILP_CREDENTIALS": '{"plugin": "bpt"}'}, "^ILP_CREDENTIALS: plugin is 'bpt'"),
        ({"ILP_CREDENTIALS": "{}", "ILP_PLUGIN": "bpt"}, "^ILP_PLUGIN: plugin is 'bpt'"),
        ({"ILP_PLUGIN": "http"}, "^ILP_PLUGIN without ILP_CREDENTIALS: HttpOptions, "),
    ],
)
def test_error_of_a_variable_names_it(environ, text):
    """The operator sets variables, and does not know the program's options."""
    options = options_from_environment(environ)
    with pytest.raises(InvalidFieldsError, match=text) as caught:
        resolve_plugin(options)
    # What the program has put together itself is its own mistake.
    with pytest.raises(InvalidFieldsError, match=r"^(plugin|BtpOptions|HttpOptions)\b") as unnamed:
        resolve_plugin({**options})
    assert caught.value.problems == unnamed.value.problems
