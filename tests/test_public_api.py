"""What other programs import by name: names, signatures, and the names of the errors in LPI2."""

import ast
import inspect
from itertools import pairwise
from pathlib import Path

import pytest

import trio_ledger_plugin
from trio_ledger_plugin import LedgerPlugin, LedgerPluginError, Log, RemoteError, Store, errors

ERRORS = {
    "AlreadyFulfilledError": "F07",
    "AlreadyRolledBackError": "F06",
    "ConnectTimeoutError": "T00",
    "ConnectionLostError": "",
    "DataHandlerAlreadyRegisteredError": "",
    "DecodeError": "",
    "DuplicateIdError": "F05",
    "InsufficientBalanceError": "F08",
    "InvalidFieldsError": "F01",
    "InvalidFulfillmentError": "F04",
    "InvalidServicesError": "",
    "LedgerLostError": "",
    "LedgerPluginError": "",
    "MoneyHandlerAlreadyRegisteredError": "",
    "MoneyLevelError": "",
    "NotAcceptedError": "F00",
    "NotConnectedError": "",
    "PluginClosedError": "",
    "PluginFailedError": "",
    "RemoteError": "",
    "ResponseTimeoutError": "",
    "StoreError": "",
    "StoreInDoubtError": "",
    "TransferInDoubtError": "",
    "TransferNotFoundError": "F03",
    "UnreachableError": "T00",
}
EVENTS = (
    "AccountConnected",
    "AccountConnectedAgain",
    "AccountDisconnected",
    "Connected",
    "Disconnected",
    "EventsDropped",
    "Failed",
    "TransfersInDoubt",
)
OTHERS = (
    "AccountPlugin",
    "AccountsOptions",
    "AccountsPlugin",
    "BtpOptions",
    "BtpPlugin",
    "ConnectOptions",
    "ExchangePlugin",
    "HostInfo",
    "HttpAccountsOptions",
    "HttpAccountsPlugin",
    "HttpOptions",
    "HttpPlugin",
    "IncomingOptions",
    "IncomingRequest",
    "JournalEntry",
    "LedgerPlugin",
    "ListenerOptions",
    "Log",
    "LoopbackOptions",
    "LoopbackPlugin",
    "MoneyLevel",
    "OutgoingOptions",
    "PluginOptions",
    "PluginServices",
    "Store",
    "Totals",
    "TransactionalStore",
    "Transfer",
    "TransferDirection",
    "TransferState",
    "Transfers",
    "create_plugin",
    "current_request",
    "current_transfer",
    "fetch_ildcp",
    "loopback_pair",
    "open_plugin",
    "options_from_environment",
)


def test_public_names_are_exactly_these():
    assert sorted(trio_ledger_plugin.__all__) == sorted((*ERRORS, *EVENTS, *OTHERS))
    assert len(set(trio_ledger_plugin.__all__)) == len(trio_ledger_plugin.__all__)
    for name in trio_ledger_plugin.__all__:
        assert hasattr(trio_ledger_plugin, name)


def test_missing_name_is_an_attribute_error():
    """Plugin classes are imported when they are asked for; another name must not look like one."""
    with pytest.raises(AttributeError, match="module 'trio_ledger_plugin' has no attribute 'BtpPlugins'"):
        _ = trio_ledger_plugin.BtpPlugins  # type: ignore[attr-defined]  # that is the mistake
    for name in OTHERS:
        if name.endswith("Plugin"):
            assert getattr(trio_ledger_plugin, name).__name__ == name


def test_package_is_typed():
    assert (inspect.getfile(trio_ledger_plugin).removesuffix("__init__.py") + "py.typed").endswith("py.typed")
    from importlib.resources import files  # noqa: PLC0415 (what this test is about)

    assert files(trio_ledger_plugin).joinpath("py.typed").is_file()


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_have_the_names_of_the_specifications(name):
    error = getattr(trio_ledger_plugin, name)
    assert error.name == name
    assert issubclass(error, LedgerPluginError)
    if error is not RemoteError:
        assert error.code == ERRORS[name]


def test_every_error_of_the_module_is_public():
    own = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert own == set(ERRORS)


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("ConnectTimeoutError", TimeoutError),
        ("ConnectTimeoutError", errors.UnreachableError),
        ("ResponseTimeoutError", TimeoutError),
        ("InvalidFieldsError", ValueError),
        ("InvalidServicesError", ValueError),
        ("DecodeError", ValueError),
    ],
)
def test_errors_have_the_documented_base_classes(name, also):
    assert issubclass(getattr(trio_ledger_plugin, name), also)


def signature(function):
    return [
        (parameter.name, parameter.kind.name, parameter.default)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self"
    ]


REQUIRED, POSITIONAL, KEYWORD = inspect.Parameter.empty, "POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY"


def test_signatures_of_the_functions():
    assert signature(trio_ledger_plugin.open_plugin) == [
        ("opts", POSITIONAL, REQUIRED),
        ("services", POSITIONAL, None),
        ("connect", KEYWORD, None),
        ("data_handler", KEYWORD, None),
        ("money_handler", KEYWORD, None),
        ("transactional_money_handler", KEYWORD, None),
        ("nursery", KEYWORD, None),
    ]
    assert signature(trio_ledger_plugin.create_plugin) == [
        ("opts", POSITIONAL, REQUIRED),
        ("services", POSITIONAL, None),
        ("nursery", KEYWORD, REQUIRED),
    ]
    assert [name for name, _, _ in signature(trio_ledger_plugin.options_from_environment)] == ["environ"]
    assert signature(trio_ledger_plugin.ConnectOptions) == [
        ("timeout", POSITIONAL, None),
        ("seconds", KEYWORD, None),
    ]
    assert signature(trio_ledger_plugin.PluginServices) == [("store", POSITIONAL, None), ("log", POSITIONAL, None)]
    assert signature(trio_ledger_plugin.current_transfer) == []
    assert signature(trio_ledger_plugin.current_request) == []


METHODS = {
    "connect": ([("options", POSITIONAL, None)], True),
    "disconnect": ([], True),
    "aclose": ([], True),
    "is_connected": ([], False),
    "wait_connected": ([], True),
    "send_data": ([("data", POSITIONAL, REQUIRED)], True),
    "send_money": ([("amount", POSITIONAL, REQUIRED), ("idempotency_key", KEYWORD, None)], True),
    "register_data_handler": ([("handler", POSITIONAL, REQUIRED)], False),
    "deregister_data_handler": ([], False),
    "register_money_handler": ([("handler", POSITIONAL, REQUIRED)], False),
    "deregister_money_handler": ([], False),
    "statistics": ([], False),
}


@pytest.mark.parametrize("name", METHODS)
def test_signatures_of_the_plugins_methods(name):
    parameters, is_async = METHODS[name]
    method = getattr(LedgerPlugin, name)
    assert signature(method) == parameters
    assert inspect.iscoroutinefunction(method) is is_async


@pytest.mark.parametrize(
    ("protocol", "methods", "is_async"),
    [(Store, ("put", "get", "delete"), True), (Log, ("debug", "info", "warn", "error"), False)],
)
def test_methods_of_the_services_are_async_or_not(protocol, methods, is_async):
    for name in methods:
        assert inspect.iscoroutinefunction(getattr(protocol, name)) is is_async


@pytest.mark.parametrize("name", [name for name, (_, is_async) in METHODS.items() if is_async])
def test_docstrings_of_async_methods_explain_cancellation(name):
    assert "Cancellation: " in (inspect.getdoc(getattr(LedgerPlugin, name)) or "")


def test_every_public_name_has_a_docstring():
    for name in trio_ledger_plugin.__all__:
        assert inspect.getdoc(getattr(trio_ledger_plugin, name)), name
    for name in METHODS:
        assert inspect.getdoc(getattr(LedgerPlugin, name)), name


PACKAGE = Path(trio_ledger_plugin.__file__).parent


def test_editors_show_what_every_method_does():
    """An editor shows the sentence behind the name of such a method; it does not look for the function."""
    silent, seen = [], 0
    for path in PACKAGE.rglob("*.py"):
        classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        for node, after in (pair for each in classes for pair in pairwise([*each.body, None])):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            if node.target.id.startswith(("register_", "deregister_", "watch_")):
                seen += 1
                if not isinstance(after, ast.Expr) or not isinstance(after.value, ast.Constant):
                    silent.append(f"{path.name}: {node.target.id}")
    assert silent == []
    assert seen >= 11
