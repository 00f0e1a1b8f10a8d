"""The constructor refuses wrong options: the error names each, says what is expected, and shows no credential."""

import copy
import json
import math
import pickle
import ssl
import traceback
import warnings
from typing import Any

import attrs
import pytest

from trio_ledger_plugin.btp.options import AccountsOptions, BtpOptions, ListenerOptions
from trio_ledger_plugin.errors import InvalidFieldsError
from trio_ledger_plugin.http.options import IncomingOptions, OutgoingOptions
from trio_ledger_plugin.loopback import LoopbackOptions
from trio_ledger_plugin.options.base import ConnectOptions, PluginOptions
from trio_ledger_plugin.secret import Secret

CANARY = "canary-7f3a"
DURATIONS = [
    "connect_timeout",
    "close_timeout",
    "response_timeout",
    "handler_timeout",
    "ping_interval",
    "pong_timeout",
    "handshake_timeout",
    "auth_timeout",
    "send_timeout",
    "redial_max_delay",
]
COUNTS = [each.name for each in attrs.fields(PluginOptions) if each.name.startswith("max_")]


def problems_of(make: Any, *args: Any, **kwargs: Any) -> list[str]:
    """Return the lines of the error, after checking that no traceback of it shows the canary."""
    with pytest.raises(InvalidFieldsError) as caught:
        make(*args, **kwargs)
    error: BaseException | None = caught.value
    # Without source lines: the test's own text has the canary in it.
    assert CANARY not in "".join(traceback.TracebackException.from_exception(caught.value).format_exception_only())
    while error is not None:
        assert CANARY not in repr(error.args)
        error = error.__cause__ or error.__context__
    return str(caught.value).splitlines()[1:]


# ConnectOptions


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        (None, 7.0),
        (0, 7.0),
        (0.0, 7.0),
        (-0.0, 7.0),
        (math.nan, 7.0),
        (math.inf, math.inf),
        (10**400, math.inf),
        (5000, 5.0),
        (0.5, 0.0005),
    ],
)
def test_connect_timeout_is_in_milliseconds(timeout: Any, seconds: Any) -> None:
    assert ConnectOptions(timeout).seconds(7.0) == seconds


def test_connect_timeout_may_be_in_seconds() -> None:
    """In Trio everything else is in seconds."""
    assert ConnectOptions(seconds=5) == ConnectOptions(timeout=5000)
    assert ConnectOptions(seconds=0.25).seconds(7.0) == 0.25
    assert ConnectOptions(seconds=math.inf).seconds(7.0) == math.inf
    assert ConnectOptions(seconds=None).seconds(7.0) == 7.0
    for wrong, kind, text in (
        ("5", TypeError, "seconds is a number of seconds, not str"),
        (-1, InvalidFieldsError, "seconds: got -1, must be seconds, 0 or more"),
    ):
        with pytest.raises(kind) as caught:
            ConnectOptions(seconds=wrong)  # type: ignore[arg-type]  # one of them is wrong
        assert str(caught.value) == text
    with pytest.raises(InvalidFieldsError, match="seconds: given together with timeout, must be one of the two"):
        ConnectOptions(5000, seconds=5)


@pytest.mark.parametrize("timeout", ["5000", "", True, False, [], b"5", 5j])
def test_connect_timeout_of_another_type_is_a_type_error(timeout: Any) -> None:
    with pytest.raises(TypeError, match=f"timeout is a number of milliseconds, not {type(timeout).__name__}"):
        ConnectOptions(timeout)


@pytest.mark.parametrize("timeout", [-1, -0.5, -math.inf])
def test_negative_connect_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(InvalidFieldsError, match=f"timeout: got {timeout}, must be milliseconds, 0 or more"):
        ConnectOptions(timeout)


# PluginOptions


def test_defaults_are_those_of_the_documentation() -> None:
    assert attrs.asdict(PluginOptions()) == {
        "connect_timeout": 30.0,
        "close_timeout": 5.0,
        "response_timeout": 35.0,
        "handler_timeout": 30.0,
        "ping_interval": 20.0,
        "pong_timeout": 20.0,
        "handshake_timeout": 5.0,
        "auth_timeout": 5.0,
        "send_timeout": 10.0,
        "redial_max_delay": 30.0,
        "max_message_bytes": 65536,
        "max_unauthenticated_bytes": 8192,
        "max_head_bytes": 16 * 1024,
        "max_fragments": 64,
        "max_entries": 32,
        "max_send_queue_bytes": 1048576,
        "max_handler_bytes": 4194304,
        "max_backlog_bytes": 2097152,
        "max_error_reply_bytes": 65536,
        "max_handlers": 256,
        "max_in_flight": 16384,
        "max_malformed_per_minute": 8,
        "max_unauthenticated": 1024,
        "max_unauthenticated_per_address": 16,
        "max_failures_per_minute": 5,
        "trusted_proxies": (),
        "money": "auto",
        "ledger_id": "main",
        "standby": False,
        "key_retention": 604800.0,
        "max_transfer_keys": 1000000,
        "max_ledger_keys": 10000000,
        "max_accounts": 1000000,
        "accept_money": "handler",
        "log_tracebacks": True,
    }


@pytest.mark.parametrize("name", DURATIONS)
def test_time_is_above_zero_and_may_be_infinite(name: Any) -> None:
    make: Any = PluginOptions
    assert getattr(make(**{name: math.inf}), name) == math.inf
    assert getattr(make(**{name: 1}), name) == 1
    for wrong, shown in [
        (0, "0"),
        (-1.5, "-1.5"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (True, "True"),
        ("5", "'5'"),
        (None, "None"),
        (10**400, "1000"),
    ]:
        (problem,) = problems_of(PluginOptions, **{name: wrong})
        assert problem.startswith(f"- {name}: got {shown}")
        assert problem.endswith("must be a number of seconds above 0, or infinity for no limit")


@pytest.mark.parametrize("name", COUNTS)
def test_limit_is_a_whole_number_above_zero(name: Any) -> None:
    make: Any = PluginOptions
    for right in (1, 2**63 - 1):
        assert getattr(make(**{name: right}), name) == right
    for wrong, shown in [
        (0, "0"),
        (-1, "-1"),
        (1.0, "1.0"),
        (math.inf, "inf"),
        (True, "True"),
        ("9", "'9'"),
        (2**63, str(2**63)),
    ]:
        problem = f"- {name}: got {shown}, must be a whole number above 0 and below 2**63"
        assert problems_of(PluginOptions, **{name: wrong}) == [problem]


def test_message_smaller_than_its_envelope_holds_no_data() -> None:
    """An error would name a negative number of bytes as the most that may be sent."""
    assert PluginOptions(max_message_bytes=1).max_data_bytes == 0
    assert PluginOptions(max_message_bytes=100).max_data_bytes == 36


def test_trusted_proxies_are_addresses_in_their_shortest_form() -> None:
    assert PluginOptions(trusted_proxies=["10.0.0.1", "::1"]).trusted_proxies == ("10.0.0.1", "::1")
    assert PluginOptions(trusted_proxies=["10.0.0.0/8", "fd00::/8"]).trusted_proxies == ("10.0.0.0/8", "fd00::/8")
    wrong = ("proxy.example", "0:0::1", 1, "10.0.0.1/8", "10.0.0.0/33")
    for value, culprit in [("10.0.0.1", "10.0.0.1"), (None, None), *((("::1", each), each) for each in wrong)]:
        (problem,) = problems_of(PluginOptions, trusted_proxies=value)
        assert problem == (
            f"- trusted_proxies: got {culprit!r}, must be IP addresses or networks in their shortest form, such as "
            "('192.0.2.1', '10.0.0.0/8')"
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda host: ListenerOptions(0, "token", host=host),
        lambda host: AccountsOptions(host=host),
        lambda host: IncomingOptions(port=0, static_token="token", host=host),
    ],
)
def test_host_may_have_the_brackets_that_it_has_in_a_url(make: Any) -> None:
    assert make("[::1]").host == "::1"
    assert make("[name]").host == "[name]"


def test_every_wrong_field_is_named_at_once() -> None:
    problems = problems_of(
        BtpOptions, server="ws://h", response_timeout=0, max_entries="x", btp_account=5, allow_insecure=1
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "- response_timeout",
        "- max_entries",
        "- server",
        "- btp_account",
        "- allow_insecure",
    ]


def test_very_long_value_is_cut_or_shown_by_its_type() -> None:
    (problem,) = problems_of(PluginOptions, max_entries="x" * 10_000)
    assert len(problem) < 150
    assert problems_of(PluginOptions, max_entries=-(10**5000)) == [
        "- max_entries: got a value of type int, must be a whole number above 0 and below 2**63"
    ]


def test_options_are_immutable() -> None:
    flags = {"name": "value"}
    options: Any = BtpOptions(server="btp+ws://localhost", btp_auth_flags=flags)
    flags["name"] = "other"
    assert options.btp_auth_flags == {"name": "value"}
    with pytest.raises(AttributeError):
        options.server = "btp+ws://elsewhere"


def test_options_are_equal_by_class_and_values() -> None:
    options = LoopbackOptions(name="a")
    assert options == LoopbackOptions(name="a")
    assert hash(options) == hash(LoopbackOptions(name="a"))
    assert options != LoopbackOptions(name="b")
    assert PluginOptions() != LoopbackOptions()
    listener = BtpOptions(listener=ListenerOptions(0, "s"))
    assert listener == BtpOptions(listener=ListenerOptions(0, "s"))
    assert listener != BtpOptions(listener=ListenerOptions(0, "other"))


def test_repr_shows_every_field() -> None:
    assert repr(ListenerOptions(0, "s")) == (
        "ListenerOptions(port=0, secret=Secret(***), host='127.0.0.1', ssl_context=None, proxy_protocol=False, "
        "allowed_origins=())"
    )
    assert repr(BtpOptions(server="btp+ws://a:b@localhost", btp_auth_flags={"f": 1})).endswith(
        "server='btp+ws://localhost', listener=None, btp_account='a', btp_token=Secret(***), btp_auth_flags=['f'], "
        "ssl_context=None, allow_insecure=False, headers=[], user_agent='trio-ledger-plugin', proxy=None)"
    )


# LoopbackOptions


def test_loopback_options_have_a_name_and_limits() -> None:
    assert LoopbackOptions().name == "loopback"
    assert LoopbackOptions(name="my pair", max_handlers=2).max_handlers == 2
    for wrong in ["", None, 5]:
        assert problems_of(LoopbackOptions, name=wrong) == [f"- name: got {wrong!r}, must be text (str), not empty"]


# ListenerOptions


def test_listener_binds_to_localhost_by_default() -> None:
    listener = ListenerOptions(0, "token")
    assert (listener.port, listener.host, listener.ssl_context) == (0, "127.0.0.1", None)
    assert listener.secret == Secret("token") == ListenerOptions(port=1, secret=Secret("token")).secret


@pytest.mark.parametrize("port", [-1, 65536, "7768", True, 80.0])
def test_listener_refuses_a_wrong_port(port: Any) -> None:
    assert problems_of(ListenerOptions, port, "token") == [
        f"- port: got {port!r}, must be a port number from 0 to 65535, or None to open none"
    ]


@pytest.mark.parametrize(
    ("secret", "shown"),
    [
        ("", "empty text"),
        (Secret(""), "empty text"),
        (None, "a value of type NoneType"),
        (5, "a value of type int"),
        ("\ud800", "text that is not shown"),
    ],
)
def test_listener_refuses_an_empty_secret(secret: Any, shown: str) -> None:
    """Text is text: whoever gave it would look for a value of type Secret."""
    problem = f"- secret: got {shown}, must be text (str) or a Secret, not empty"
    assert problems_of(ListenerOptions, 0, secret) == [problem]


@pytest.mark.parametrize("host", ["", "a b", "a\n", 5])
def test_listener_refuses_a_wrong_host(host: Any) -> None:
    (problem,) = problems_of(ListenerOptions, 0, "token", host=host)
    assert problem.startswith(f"- host: got {host!r}, must be a host name")


def test_tls_is_configured_by_an_ssl_context() -> None:
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    assert ListenerOptions(0, "token", ssl_context=server).ssl_context is server
    assert BtpOptions(server="btp+wss://h", ssl_context=client).ssl_context is client
    assert problems_of(ListenerOptions, 0, "token", ssl_context=True) == [f"- ssl_context: got True, {FOR_SERVER}"]


FOR_SERVER = "must be None or an ssl.SSLContext for a server, as of ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)"
FOR_CLIENT = "must be None or an ssl.SSLContext for a client, as of ssl.create_default_context()"


@pytest.mark.parametrize(
    ("options", "given", "of_server"),
    [
        (ListenerOptions, {"port": 0, "secret": "token"}, True),
        (AccountsOptions, {}, True),
        (IncomingOptions, {"port": 0}, True),
        (BtpOptions, {"server": "btp+wss://h"}, False),
        (OutgoingOptions, {"url": "https://h", "static_token": "token"}, False),
    ],
)
def test_context_for_the_other_end_is_refused(options: Any, given: dict[str, Any], of_server: bool) -> None:
    """Every handshake would fail, and the client would be asked whether the server speaks TLS."""
    wrong = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if of_server else ssl.PROTOCOL_TLS_SERVER)
    problem = f"- ssl_context: got a value of type SSLContext, {FOR_SERVER if of_server else FOR_CLIENT}"
    assert problems_of(options, **given, ssl_context=wrong) == [problem]
    for protocol in (ssl.PROTOCOL_TLS_SERVER if of_server else ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            right = ssl.SSLContext(protocol)
        assert options(**given, ssl_context=right).ssl_context is right


# The server's URL


@pytest.mark.parametrize(
    ("server", "address", "account", "token"),
    [
        ("btp+wss://alice:tok@h.example/ilp?x=1", "btp+wss://h.example/ilp?x=1", "alice", "tok"),
        ("btp+ws://:tok@localhost:7768", "btp+ws://localhost:7768", "", "tok"),
        ("btp+wss://alice:s%40cr@h", "btp+wss://h", "alice", "s%40cr"),
        ("btp+wss://alice:s@cr:et@h", "btp+wss://h", "alice", "s%40cr%3Aet"),
        ("btp+wss://al=ice:a=b@h", "btp+wss://h", "al%3Dice", "a%3Db"),
        ("btp+wss://alice:100%@h", "btp+wss://h", "alice", "100%"),
        ("btp+wss://alice:ü b@h", "btp+wss://h", "alice", "%C3%BC%20b"),
        (" btp+wss://alice:a\tb\r\n@h\n", "btp+wss://h", "alice", "ab"),
        ("btp+wss://alice@h", "btp+wss://h", "alice", ""),
        ("btp+wss://:@h", "btp+wss://h", "", ""),
        ("btp+wss://h/a@b", "btp+wss://h/a@b", "", ""),
    ],
)
def test_credentials_are_read_from_the_url_as_in_javascript(
    server: Any, address: Any, account: Any, token: Any
) -> None:
    options = BtpOptions(server=server)
    assert options.server == options.address == address
    assert (options.btp_account, options.btp_token) == (account, Secret(token))
    assert attrs.evolve(options, max_entries=1).btp_token == Secret(token)


def test_separate_credentials_are_taken_as_they_are() -> None:
    options = BtpOptions(server="btp+wss://h", btp_account="al=ice", btp_token="a=b c")
    assert (options.btp_account, options.btp_token, options.is_escaped) == ("al=ice", Secret("a=b c"), False)


@pytest.mark.parametrize(
    ("server", "tls", "host", "port", "resource", "host_header"),
    [
        ("btp+ws://h.example", False, "h.example", 80, "/", "h.example"),
        ("btp+wss://h.example", True, "h.example", 443, "/", "h.example"),
        ("btp+wss://h.example:", True, "h.example", 443, "/", "h.example"),
        ("btp+wss://h.example:80/", True, "h.example", 80, "/", "h.example:80"),
        ("btp+ws://h:7768/ilp/x?a=b&c=/d", False, "h", 7768, "/ilp/x?a=b&c=/d", "h:7768"),
        ("btp+ws://h?a=b", False, "h", 80, "/?a=b", "h"),
        ("btp+ws://[::1]", False, "::1", 80, "/", "[::1]"),
        ("btp+ws://[::1]:7768/x", False, "::1", 7768, "/x", "[::1]:7768"),
        ("btp+ws://127.0.0.1:65535", False, "127.0.0.1", 65535, "/", "127.0.0.1:65535"),
    ],
)
def test_url_gives_host_port_and_resource(
    server: Any, tls: Any, host: Any, port: Any, resource: Any, host_header: Any
) -> None:
    options = BtpOptions(server=server)
    assert (options.tls, options.host, options.port) == (tls, host, port)
    assert (options.resource, options.host_header) == (resource, host_header)


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("btp+ws://h:", "btp+ws://h"),
        ("btp+wss://alice:token@h:/path", "btp+wss://h/path"),
        ("btp+ws://[::1]:", "btp+ws://[::1]"),
        ("btp+ws://[::1]:80", "btp+ws://[::1]:80"),
    ],
)
def test_address_has_no_colon_of_an_empty_port(server: str, address: str) -> None:
    """An error would have two colons between it and the reason."""
    assert BtpOptions(server=server).address == address


@pytest.mark.parametrize(
    ("server", "right"),
    [
        ("ws://h", "begins with 'ws://', must begin with 'btp+ws://'"),
        ("http://h", "must begin with 'btp+ws://'"),
        ("wss://h", "must begin with 'btp+wss://'"),
        ("https://h", "must begin with 'btp+wss://'"),
        ("", "must begin with 'btp+wss://' (TLS) or 'btp+ws://'"),
        ("btp+ws", "must begin with 'btp+wss://' (TLS) or 'btp+ws://'"),
        ("btp+ws:h", "must begin with 'btp+wss://' (TLS) or 'btp+ws://'"),
        (f"{CANARY}@h:7768", "must begin with 'btp+wss://' (TLS) or 'btp+ws://'"),
        ("btp+ws://", "names no host"),
        ("btp+ws:///path", "names no host"),
        (f"btp+ws://alice:{CANARY}@", "names no host"),
        ("btp+ws://h:0", "bad port, must be a number from 1 to 65535"),
        ("btp+ws://h:65536", "bad port"),
        ("btp+ws://h:999999999999", "bad port"),
        (f"btp+ws://alice:{CANARY}", "bad port"),
        (f"btp+ws://alice:{CANARY}/x@h", "before its '@'"),
        ("btp+ws://h:²", "bad port"),
        ("btp+ws://a b", "bad host"),
        ("btp+ws://bücher.example", "bad host"),
        ("btp+ws://fe80::1", "IPv6 address in []"),
        ("btp+ws://[::1:80", "bad host"),
        ("btp+ws://[::1]80", "bad host"),
        ("btp+ws://[::1]x:80", "bad host"),
        ("btp+ws://[localhost]", "bad host"),
        ("btp+ws://[fe80::1%eth0]", "bad host"),
        ("btp+ws://h/#top", "fragment"),
        ("btp+ws://h#top", "fragment"),
        ("btp+ws://h/a b", "percent-encoded"),
        ("btp+ws://h/a\\b", "percent-encoded"),
        (f"btp+ws://alice:{CANARY}\\x@h", "before its '@'"),
        ("btp+ws://h/ü", "percent-encoded"),
        ("btp+ws://h/\r\nX-Injected: 1", "percent-encoded"),
    ],
)
def test_wrong_url_is_refused_with_a_hint(server: Any, right: Any) -> None:
    (problem,) = problems_of(BtpOptions, server=server)
    assert problem.startswith("- server: ")
    assert right in problem


@pytest.mark.parametrize("server", [5, b"btp+ws://h", "btp+ws://\ud800@h"])
def test_server_that_is_not_text_is_refused(server: Any) -> None:
    assert f"- server: got a value of type {type(server).__name__}, must be a URL (str) or None" in problems_of(
        BtpOptions, server=server
    )


@pytest.mark.parametrize("extra", [{"btp_token": CANARY}, {"btp_account": "bob"}])
@pytest.mark.parametrize("userinfo", [f"alice:{CANARY}", "alice", f":{CANARY}"])
def test_credentials_given_twice_are_refused(userinfo: Any, extra: Any) -> None:
    (problem,) = problems_of(BtpOptions, server=f"btp+wss://{userinfo}@h", **extra)
    assert problem.startswith("- server: has an account or token in it")
    assert "btp_account or btp_token" in problem


def test_credentials_may_be_separate_from_the_url_or_missing() -> None:
    options = BtpOptions(server="btp+wss://h", btp_account="alice", btp_token="tok")
    assert (options.btp_account, options.btp_token.reveal()) == ("alice", "tok")
    assert not BtpOptions(server="btp+ws://h.example").btp_token


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost.", "a.localhost", "127.0.0.1", "127.255.1.2", "[::1]", "[0:0:0::1]"]
)
def test_token_may_go_unencrypted_to_this_machine(host: Any) -> None:
    assert BtpOptions(server=f"btp+ws://:tok@{host}:7768").btp_token


@pytest.mark.parametrize(
    "host", ["h.example", "localhost.example", "127.0.0.1.example", "128.0.0.1", "[::2]", "192.0.2.1"]
)
def test_token_to_another_machine_needs_tls_or_permission(host: Any) -> None:
    in_url: dict[str, Any] = {"server": f"btp+ws://:{CANARY}@{host}"}
    beside: dict[str, Any] = {"server": f"btp+ws://{host}", "btp_token": CANARY}
    for options in (in_url, beside):
        (problem,) = problems_of(BtpOptions, **options)
        assert "unencrypted" in problem
        assert "btp+wss://" in problem
        assert "allow_insecure" in problem
        assert BtpOptions(**options, allow_insecure=True).btp_token == Secret(CANARY)
    assert BtpOptions(server=f"btp+wss://:{CANARY}@{host}").tls


# Server or listener


def test_plugin_dials_or_listens() -> None:
    listener = ListenerOptions(0, "token")
    assert BtpOptions(listener=listener).listener is listener
    assert problems_of(BtpOptions) == ["- server: missing, must be the URL to dial, or give listener instead"]
    assert problems_of(BtpOptions, server="btp+ws://h", listener=listener) == [
        "- server: given together with listener, must be one of the two"
    ]


def test_listener_has_no_server_to_dial() -> None:
    with pytest.raises(AttributeError, match="no server to dial"):
        _ = BtpOptions(listener=ListenerOptions(0, "token")).host


def test_wrong_listener_is_refused_without_its_secret() -> None:
    assert problems_of(BtpOptions, listener={"port": 0, "secret": CANARY}) == [
        "- listener: got a value of type dict, must be ListenerOptions or None"
    ]


def test_unused_tls_context_is_refused() -> None:
    context = ssl.create_default_context()
    (problem,) = problems_of(BtpOptions, listener=ListenerOptions(0, "token"), ssl_context=context)
    assert "listener.ssl_context" in problem
    (problem,) = problems_of(BtpOptions, server="btp+ws://h", ssl_context=context)
    assert "must be btp+wss://" in problem


@pytest.mark.parametrize(
    "flags",
    [
        {"auth_token": CANARY},
        {"auth": ""},
        {"": "x"},
        {"é": CANARY},
        {"n" * 256: "x"},
        {1: CANARY},
        {"name": {CANARY}},
        {"name": float("nan")},
        {"name": {"inner": "\ud800"}},
        {"name": "\ud800"},
        [CANARY],
        None,
    ],
)
def test_auth_flags_that_break_the_auth_message_are_refused(flags: Any) -> None:
    (problem,) = problems_of(BtpOptions, server="btp+ws://h", btp_auth_flags=flags)
    assert problem.startswith(f"- btp_auth_flags: got a value of type {type(flags).__name__}, must be a mapping")


# Credentials


@pytest.mark.parametrize(
    "options",
    [
        BtpOptions(server=f"btp+wss://alice:{CANARY}@h/ilp"),
        BtpOptions(server="btp+wss://h/ilp", btp_token=CANARY, btp_auth_flags={"pin": CANARY}),
        BtpOptions(listener=ListenerOptions(0, CANARY)),
        ListenerOptions(0, Secret(CANARY)),
    ],
)
def test_options_object_does_not_reveal_credentials(options: Any) -> None:
    shown = [repr(options), str(options), f"{options}", json.dumps(repr(options))]
    shown.append(repr(attrs.asdict(options, filter=lambda each, _: each.name != "btp_auth_flags")))
    shown.append(json.dumps(attrs.asdict(options, filter=lambda each, _: "flags" not in each.name), default=str))
    assert not [text for text in shown if CANARY in text]
    for leave in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            leave(options)


@pytest.mark.parametrize(
    "fields",
    [
        {"server": f"btp+ws://alice:{CANARY}@h.example"},
        {"server": f"wss://alice:{CANARY}@h"},
        {"server": f"btp+wss://alice:{CANARY}@h:x"},
        {"server": f"btp+wss://alice:{CANARY}@h", "btp_token": CANARY},
        {"server": f"btp+wss://:{CANARY}\ud800@h"},
        {"server": CANARY.encode()},
        {"server": "btp+wss://h", "btp_token": [CANARY]},
        {"server": "btp+wss://h", "btp_token": f"{CANARY}\ud800"},
        {"server": "btp+wss://h", "btp_token": CANARY, "max_entries": [CANARY]},
    ],
)
def test_error_does_not_reveal_credentials(fields: Any) -> None:
    assert problems_of(BtpOptions, **fields)


def test_key_retention_is_a_day_or_more() -> None:
    assert PluginOptions(key_retention=86400).key_retention == 86400
    for wrong in (86399, 0, math.inf, math.nan, True, "86400"):
        make: Any = PluginOptions
        (problem,) = problems_of(make, key_retention=wrong)
        assert "must be a number of seconds from 86,400 (24 hours)" in problem


def test_money_has_three_settings() -> None:
    for right in ("auto", "keyed", "plain"):
        assert PluginOptions(money=right).money == right
    make: Any = PluginOptions
    for wrong in ("KEYED", "", None, True):
        (problem,) = problems_of(make, money=wrong)
        assert "must be 'auto', 'keyed' or 'plain'" in problem
