"""Configuration written for the JavaScript plugins works unchanged, and a mistake in it is named."""

import inspect
import json
import math
import traceback
import warnings
from contextlib import suppress
from typing import Any

import attrs
import pytest
from attrs import field, frozen

from trio_ledger_plugin.btp.options import AccountsOptions, BtpOptions, ListenerOptions
from trio_ledger_plugin.environment import options_from_environment
from trio_ledger_plugin.errors import InvalidFieldsError
from trio_ledger_plugin.loopback import LoopbackOptions
from trio_ledger_plugin.net.url import ServerUrl, parse_server
from trio_ledger_plugin.options.base import PluginOptions
from trio_ledger_plugin.options.checked import CheckedOptions
from trio_ledger_plugin.options.fields import COUNT, NESTED, SECONDS, VALIDATOR, Validator
from trio_ledger_plugin.options.load import options_from_mapping
from trio_ledger_plugin.registry import PLUGIN_ALIASES, canonical_plugin_name
from trio_ledger_plugin.secret import Secret

CANARY = "canary-7f3a"


def problems_of(cls: Any, mapping: Any) -> list[str]:
    with pytest.raises(InvalidFieldsError) as caught:
        options_from_mapping(cls, mapping)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    return str(caught.value).splitlines()[1:]


# Mappings


def test_both_spellings_give_the_same_options() -> None:
    camel = {
        "server": "btp+wss://h.example/ilp",
        "btpAccount": "alice",
        "btpToken": "tok",
        "btpAuthFlags": {"name": "value"},
        "responseTimeout": 35500,
        "maxHandlers": 3,
        "trustedProxies": ["10.0.0.1"],
        "allowInsecure": False,
    }
    snake = {
        "server": "btp+wss://h.example/ilp",
        "btp_account": "alice",
        "btp_token": "tok",
        "btp_auth_flags": {"name": "value"},
        "response_timeout": 35.5,
        "max_handlers": 3,
        "trusted_proxies": ["10.0.0.1"],
        "allow_insecure": False,
    }
    options = options_from_mapping(BtpOptions, json.loads(json.dumps(camel)))
    assert options == options_from_mapping(BtpOptions, snake)
    assert options == BtpOptions(
        server="btp+wss://alice:tok@h.example/ilp",
        btp_auth_flags={"name": "value"},
        response_timeout=35.5,
        max_handlers=3,
        trusted_proxies=("10.0.0.1",),
    )


@pytest.mark.parametrize("name", [each.name for each in attrs.fields(PluginOptions) if isinstance(each.default, float)])
def test_times_are_milliseconds_in_camel_case_else_seconds(name: Any) -> None:
    first, *others = name.split("_")
    camel = first + "".join(map(str.title, others))
    seconds = 100_000 if name == "key_retention" else 1.5
    assert getattr(options_from_mapping(PluginOptions, {name: seconds}), name) == seconds
    assert getattr(options_from_mapping(PluginOptions, {camel: 1000 * seconds}), name) == seconds
    if name != "key_retention":
        assert getattr(options_from_mapping(PluginOptions, {camel: math.inf}), name) == math.inf


def test_zero_time_is_the_default_in_camel_case_only() -> None:
    assert options_from_mapping(PluginOptions, {"responseTimeout": 0}).response_timeout == 35.0
    (problem,) = problems_of(PluginOptions, {"response_timeout": 0})
    assert "must be a number of seconds above 0" in problem


def test_wrong_time_is_named_in_its_spelling_and_unit() -> None:
    right = "must be a number of milliseconds above 0, or infinity for no limit"
    assert problems_of(PluginOptions, {"responseTimeout": "35000", "pingInterval": -5}) == [
        f"- responseTimeout: got '35000', {right}",
        f"- pingInterval: got -5, {right}",
    ]


def test_null_counts_as_not_given() -> None:
    options = options_from_mapping(
        BtpOptions, {"server": None, "listener": {"port": 0, "secret": "s", "host": None}, "btpToken": None}
    )
    assert options == BtpOptions(listener=ListenerOptions(0, "s"))


@pytest.mark.parametrize("cls", [ListenerOptions, AccountsOptions])
def test_null_port_means_none(cls: Any) -> None:
    """A server that the application reaches through its own server must not open a port."""
    assert options_from_mapping(cls, {"port": None, **({"secret": "s"} if cls is ListenerOptions else {})}).port is None


def test_listener_is_a_nested_mapping() -> None:
    options = options_from_mapping(BtpOptions, {"listener": {"port": 7768, "secret": "s", "host": "192.0.2.1"}})
    assert options.listener == ListenerOptions(7768, Secret("s"), "192.0.2.1")
    made = ListenerOptions(0, "s")
    assert options_from_mapping(BtpOptions, {"listener": made}).listener is made


def test_all_problems_are_reported_at_once() -> None:
    assert problems_of(
        BtpOptions,
        {
            "listener": {"port": -1, "secret": [CANARY], "prot": 5},
            "maxEntries": 0,
            "max_handlers": 1,
            "maxHandlers": 2,
            "sever": f"btp+ws://:{CANARY}@h",
            3: 4,
            "zzz": CANARY,
        },
    ) == [
        "- maxHandlers: given as max_handlers too, must be given once",
        "- 'sever': unknown, did you mean 'server'?",
        "- 3: no name, names are text (str)",
        "- 'zzz': unknown",
        "- maxEntries: got 0, must be a whole number above 0 and below 2**63",
        "- listener.'prot': unknown, did you mean 'port'?",
        "- listener.port: got -1, must be a port number from 0 to 65535, or None to open none",
        "- listener.secret: got a value of type list, must be text (str) or a Secret, not empty",
    ]


def test_missing_fields_of_a_listener_are_named() -> None:
    assert [problem.split(", must")[0] for problem in problems_of(BtpOptions, {"listener": {}})] == [
        "- listener.port: missing",
        "- listener.secret: missing",
    ]


def test_listener_that_is_no_mapping_is_not_shown() -> None:
    (problem,) = problems_of(BtpOptions, {"listener": CANARY})
    names = "port, secret, host, ssl_context, proxy_protocol, allowed_origins"
    assert problem == f"- listener: got a value of type str, must be a mapping of its options: {names}"
    listener = ListenerOptions(0, "s")
    assert options_from_mapping(BtpOptions, {"listener": listener, "server": None}).listener is listener


@pytest.mark.parametrize(
    ("name", "meant"),
    [("btpTokn", "btpToken"), ("token", "btp_token"), ("responsetimeout", "response_timeout"), ("nmae", "name")],
)
def test_misspelled_name_gets_the_right_one_as_a_hint(name: Any, meant: Any) -> None:
    cls = LoopbackOptions if meant == "name" else BtpOptions
    assert f"- {name!r}: unknown, did you mean {meant!r}?" in problems_of(cls, {name: CANARY})


def test_fields_of_npm_plugins_are_ignored_with_a_warning() -> None:
    mapping = {
        "listener": {"port": 0, "secret": "s", "wsOpts": {"server": CANARY}},
        "reconnectInterval": CANARY,
        "reconnectIntervals": [0, 100],
        "reconnectClearTryTimeout": 1,
        "currencyScale": 9,
        "prefix": "g.",
        "_store": {},
        "_log": {},
    }
    with pytest.warns(UserWarning, match="no use for") as caught:
        options = options_from_mapping(BtpOptions, mapping)
    assert options == BtpOptions(listener=ListenerOptions(0, "s"))
    (warning,) = caught
    assert warning.filename == __file__
    assert CANARY not in str(warning.message)
    for name in mapping.keys() - {"listener"} | {"listener.wsOpts"}:
        assert name in str(warning.message)


def test_port_and_host_may_be_in_ws_opts() -> None:
    """As in the configurations that moneyd writes; clients would not find the server on another port."""
    with pytest.warns(UserWarning, match=r"no use for: wsOpts\.server$"):
        assert options_from_mapping(
            AccountsOptions, {"wsOpts": {"host": "localhost", "port": 7768, "server": None}}
        ) == AccountsOptions(host="localhost", port=7768)
    listener = {"secret": "s", "wsOpts": {"port": 7768}}
    assert options_from_mapping(BtpOptions, {"listener": listener}).listener == ListenerOptions(7768, "s")
    assert problems_of(AccountsOptions, {"port": 1, "wsOpts": {"port": 2, "host": 5}}) == [
        "- wsOpts.port: given as port too, must be given once",
        "- wsOpts.host: got 5, must be a host name or an IP address (str), or '*' for every address",
    ]


def test_problems_take_precedence_over_ignored_fields() -> None:
    assert problems_of(BtpOptions, {"server": "ws://h", "_log": {}})


@pytest.mark.parametrize("mapping", [None, [("server", "x")], "server", 5])
def test_options_of_another_type_are_a_type_error(mapping: Any) -> None:
    with pytest.raises(TypeError, match=f"options are a mapping, not {type(mapping).__name__}"):
        options_from_mapping(BtpOptions, mapping)


def test_times_in_camel_case_have_the_bounds_of_seconds() -> None:
    assert options_from_mapping(PluginOptions, {"keyRetention": 30 * 86_400_000}).key_retention == 30 * 86_400
    assert problems_of(PluginOptions, {"keyRetention": 86_400, "pongTimeout": 10**400}) == [
        "- pongTimeout: got 1" + "0" * 400 + ", must be a number of milliseconds above 0, or infinity for no limit",
        "- keyRetention: got 86400, must be a number of milliseconds from 86,400,000 (24 hours) to 1e12",
    ]


# One round of judgement


@frozen
class CountedInner(CheckedOptions):
    size: int = field(metadata=COUNT)
    pause: float = field(default=1.0, metadata=SECONDS)


@frozen(kw_only=True)
class CountedOptions(PluginOptions):
    inner: CountedInner | None = field(
        default=None, metadata={VALIDATOR: Validator("CountedInner or None", lambda _: True), NESTED: CountedInner}
    )


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Collect the values that validators check."""
    checked: list[object] = []
    check = Validator.find_problem

    def find_problem(validator: Validator, value: object) -> str:
        checked.append(value)
        return check(validator, value)

    monkeypatch.setattr(Validator, "find_problem", find_problem)
    return checked


FIELDS = len(attrs.fields(CountedOptions)) + len(attrs.fields(CountedInner))


def test_constructor_checks_each_field_once(checks: Any) -> None:
    CountedOptions(max_entries=1, inner=CountedInner(77, 1.5))
    assert len(checks) == FIELDS
    assert checks.count(77) == checks.count(1.5) == 1


@pytest.mark.parametrize("wrong", [{}, {"maxFragments": -77}, {"sever": 1}])
def test_mapping_has_each_field_checked_once(checks: Any, wrong: Any) -> None:
    """Whether the mapping is right, has a wrong value, or has an unknown name."""
    with suppress(InvalidFieldsError):
        options_from_mapping(CountedOptions, {"maxEntries": 5, "inner": {"size": 77, "pause": 1.5}, **wrong})
    assert len(checks) == FIELDS


def test_wrong_nested_mapping_has_each_field_checked_once(checks: Any) -> None:
    assert problems_of(CountedOptions, {"inner": {"size": -77, "pause": "x"}, "maxEntries": 0}) == [
        "- maxEntries: got 0, must be a whole number above 0 and below 2**63",
        "- inner.size: got -77, must be a whole number above 0 and below 2**63",
        "- inner.pause: got 'x', must be a number of seconds above 0, or infinity for no limit",
    ]
    # All but the field inner: the nested object was not made.
    assert len(checks) == FIELDS - 1


def test_evolved_options_are_checked_once(checks: Any) -> None:
    options = options_from_mapping(CountedOptions, {"responseTimeout": 1500, "inner": {"size": 77}})
    checks.clear()
    assert attrs.evolve(options, max_entries=2).response_timeout == 1.5
    assert len(checks) == len(attrs.fields(CountedOptions))
    with pytest.raises(InvalidFieldsError, match=r"max_entries: got 0"):
        attrs.evolve(options, max_entries=0)


def test_server_url_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def parse(server: str) -> ServerUrl:
        parsed.append(server)
        return parse_server(server)

    monkeypatch.setattr("trio_ledger_plugin.btp.options.parse_server", parse)
    options = options_from_mapping(BtpOptions, {"server": "btp+wss://alice:tok@h.example:1/ilp"})
    assert (options.server, options.address) == ("btp+wss://h.example:1/ilp", "btp+wss://h.example:1/ilp")
    assert (options.tls, options.host, options.port) == (True, "h.example", 1)
    assert (options.resource, options.host_header) == ("/ilp", "h.example:1")
    assert (options.btp_account, options.btp_token) == ("alice", Secret("tok"))
    assert parsed == ["btp+wss://alice:tok@h.example:1/ilp"]


def test_problems_have_the_names_that_the_mapping_has() -> None:
    """A program that shows problems in its own form needs the option of each."""
    mapping = {
        "debugHostIldcpInfo": {"clientAddress": "no address", "asset_scale": 9, "assetCode": ""},
        "wsOpts": {"port": -1},
        "prot": 5,
    }
    with pytest.raises(InvalidFieldsError) as caught:
        options_from_mapping(AccountsOptions, mapping)
    assert caught.value.problems == (
        ("'prot'", "unknown, did you mean 'port'?"),
        ("wsOpts.port", "got -1, must be a port number from 0 to 65535, or None to open none"),
        ("debugHostIldcpInfo.clientAddress", "got 'no address', must be an ILP address, such as example.parent"),
        ("debugHostIldcpInfo.assetCode", "got '', must be text (str), not empty"),
    )
    lines = [f"- {field}: {text}" for field, text in caught.value.problems]
    assert str(caught.value).splitlines() == ["AccountsOptions, 4 wrong:", *lines]
    assert caught.value.__context__ is None


@frozen(kw_only=True)
class PickyOptions(PluginOptions):
    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.max_entries == 5:
            raise InvalidFieldsError("not 5 entries")


@frozen
class PickyOuter(CheckedOptions):
    inner: PickyOptions = field(metadata={NESTED: PickyOptions})


@pytest.mark.parametrize(
    ("cls", "mapping"), [(PickyOptions, {"maxEntries": 5}), (PickyOuter, {"inner": {"maxEntries": 5}})]
)
def test_error_of_a_subclass_itself_is_raised_as_it_is(cls: Any, mapping: Any) -> None:
    with pytest.raises(InvalidFieldsError, match=r"^not 5 entries$"):
        options_from_mapping(cls, mapping)


# Earlier names


EARLIER = [
    ("max_running_bytes", "max_handler_bytes", "maxRunningBytes"),
    ("max_waiting_bytes", "max_backlog_bytes", "maxWaitingBytes"),
    ("max_refusal_bytes", "max_error_reply_bytes", "maxRefusalBytes"),
    ("max_queue_bytes", "max_send_queue_bytes", "maxQueueBytes"),
]


@pytest.mark.parametrize(("earlier", "name", "camel"), EARLIER)
def test_earlier_name_of_an_option_is_accepted(earlier: Any, name: Any, camel: Any) -> None:
    """A configuration that was written for an earlier version must still work."""
    make: Any = LoopbackOptions
    for options in (
        options_from_mapping(LoopbackOptions, {earlier: 5}),
        options_from_mapping(LoopbackOptions, {camel: 5}),
        make(**{earlier: 5}),
    ):
        assert options == make(**{name: 5})
        assert getattr(options, name) == 5
    assert problems_of(PluginOptions, {camel: 0}) == [
        f"- {camel}: got 0, must be a whole number above 0 and below 2**63"
    ]


@pytest.mark.parametrize(("earlier", "name", "camel"), EARLIER)
def test_earlier_name_beside_the_present_one_is_refused(earlier: Any, name: Any, camel: Any) -> None:
    twice = "too, must be given once"
    assert problems_of(PluginOptions, {name: 1, camel: 1}) == [f"- {camel}: given as {name} {twice}"]
    assert problems_of(PluginOptions, {earlier: 1, name: 1}) == [f"- {name}: given as {earlier} {twice}"]
    make: Any = PluginOptions
    with pytest.raises(InvalidFieldsError) as caught:
        make(max_entries=0, **{earlier: 1, name: 1})
    assert set(caught.value.problems) == {
        ("max_entries", "got 0, must be a whole number above 0 and below 2**63"),
        (name, f"given as {earlier} {twice}"),
    }


def test_signature_has_the_present_names_only() -> None:
    names = list(inspect.signature(BtpOptions).parameters)
    assert names[0] == "connect_timeout"
    assert "max_handler_bytes" in names
    assert "max_running_bytes" not in names
    make: Any = BtpOptions
    with pytest.raises(TypeError, match="no_such_option"):
        make(server="btp+ws://h", no_such_option=1)


# Names of plugins


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("ilp-plugin-btp", "btp"), ("ilp-plugin-mini-accounts", "btp-accounts"), ("btp", "btp"), ("other", "other")],
)
def test_npm_module_names_are_aliases(name: Any, canonical: Any) -> None:
    assert canonical_plugin_name(name) == canonical
    assert not PLUGIN_ALIASES.keys() & PLUGIN_ALIASES.values()


@pytest.mark.parametrize("name", ["", None, 5])
def test_empty_plugin_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidFieldsError, match=f"plugin: got {name!r}, must be the name of a plugin"):
        canonical_plugin_name(name)


# The environment


def load(mapping: Any) -> BtpOptions:
    return options_from_mapping(BtpOptions, {name: value for name, value in mapping.items() if name != "plugin"})


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({}, "btp+ws://localhost:7768"),
        ({"ILP_BTP_SERVER": "", "ILP_CREDENTIALS": "", "ILP_PLUGIN": ""}, "btp+ws://localhost:7768"),
        ({"ILP_BTP_SERVER": "btp+wss://h.example:1/ilp?a=b"}, "btp+wss://h.example:1/ilp?a=b"),
    ],
)
def test_server_from_the_environment_gets_a_random_token(environ: Any, address: Any) -> None:
    one, other = options_from_environment(environ), options_from_environment(environ)
    assert one["plugin"] == "btp"
    assert load(one).address == address
    assert load(one).btp_account == ""
    assert len(load(one).btp_token.reveal()) == 64
    assert load(one).btp_token != load(other).btp_token
    json.dumps(one)


def test_replaced_credentials_in_the_environment_warn() -> None:
    with pytest.warns(UserWarning, match="ILP_CREDENTIALS") as caught:
        options = load(options_from_environment({"ILP_BTP_SERVER": f"btp+wss://alice:{CANARY}@h/ilp"}))
    assert options.address == "btp+wss://h/ilp"
    assert options.btp_account == ""
    assert options.btp_token != Secret(CANARY)
    assert CANARY not in str(caught[0].message)


def test_ilp_credentials_win_over_ilp_btp_server() -> None:
    environ = {
        "ILP_PLUGIN": "ilp-plugin-btp",
        "ILP_CREDENTIALS": '{"server": "btp+wss://alice:tok@h/ilp", "responseTimeout": 1000}',
        "ILP_BTP_SERVER": "btp+ws://elsewhere",
    }
    options = options_from_environment(environ)
    assert options == {"plugin": "btp", "server": "btp+wss://alice:tok@h/ilp", "responseTimeout": 1000}
    assert load(options).response_timeout == 1.0


def test_ilp_plugin_wins_over_the_credentials_plugin() -> None:
    credentials = '{"plugin": "ilp-plugin-mini-accounts"}'
    assert options_from_environment({"ILP_CREDENTIALS": credentials}) == {"plugin": "btp-accounts"}
    assert options_from_environment({"ILP_CREDENTIALS": credentials, "ILP_PLUGIN": "x"}) == {"plugin": "x"}


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        (5, "environ must be a mapping such as os.environ, not int"),
        ({"ILP_CREDENTIALS": {"server": f"btp+ws://:{CANARY}@h"}}, "ILP_CREDENTIALS must be text, not dict"),
        ({"ILP_PLUGIN": b"btp"}, "ILP_PLUGIN must be text, not bytes"),
    ],
)
def test_environment_of_a_wrong_type_is_refused(environ, text):
    with pytest.raises(TypeError, match=f"^{text}$"):
        options_from_environment(environ)


@pytest.mark.parametrize("text", [f'{{"btpToken": "{CANARY}"', f'["{CANARY}"]', f'"{CANARY}"', "null", "[" * 100_000])
def test_invalid_ilp_credentials_are_not_shown(text: Any) -> None:
    with pytest.raises(InvalidFieldsError, match="ILP_CREDENTIALS: must be a JSON object") as caught:
        options_from_environment({"ILP_CREDENTIALS": text})
    assert caught.value.__context__ is None
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"server": "btp+ws://canary",\n "port" 1}', "line 2, column 9: expecting ':' delimiter"),
        ("{'server': 'canary'}", "line 1, column 2: expecting property name enclosed in double quotes"),
        ('{"server": "canary"}}', "line 1, column 21: extra data"),
        ('{"server": "can\\ary"}', "line 1, column 16: invalid \\escape"),
    ],
)
def test_credentials_that_are_no_json_are_found(text: str, where: str) -> None:
    """A quote that the shell has eaten would be searched for in the dark."""
    with pytest.raises(InvalidFieldsError) as caught:
        options_from_environment({"ILP_CREDENTIALS": text})
    assert str(caught.value) == (
        f"ILP_CREDENTIALS: must be a JSON object, such as the options of ilp-plugin-btp; this is no JSON, {where}"
    )
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_plugin_that_is_no_name_is_found_in_the_credentials() -> None:
    with pytest.raises(InvalidFieldsError, match=r"^ILP_CREDENTIALS: plugin: got 5, must be the name of a plugin"):
        options_from_environment({"ILP_CREDENTIALS": '{"plugin": 5}'})


def test_invalid_ilp_btp_server_is_refused_by_the_options() -> None:
    mapping = options_from_environment({"ILP_BTP_SERVER": "localhost:7768"})
    with pytest.raises(InvalidFieldsError, match=r"server: must begin with 'btp\+wss://'"):
        load(mapping)


def test_process_environment_is_the_default(monkeypatch: Any) -> None:
    monkeypatch.setenv("ILP_CREDENTIALS", '{"server": "btp+ws://h"}')
    monkeypatch.delenv("ILP_PLUGIN", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert options_from_environment() == {"plugin": "btp", "server": "btp+ws://h"}
    assert str(inspect.signature(options_from_environment).parameters["environ"].default) == "None"
