"""The options of ``http`` and ``http-accounts``: ilp-plugin-http's configuration works unchanged."""

from __future__ import annotations

import ssl

import pytest

from trio_ledger_plugin import (
    HttpAccountsOptions,
    HttpOptions,
    IncomingOptions,
    InvalidFieldsError,
    OutgoingOptions,
    options_from_environment,
)
from trio_ledger_plugin.options.load import options_from_mapping
from trio_ledger_plugin.registry import resolve_plugin

CANARY = "canary-0f1e2d"
INCOMING = {"port": 7770, "staticToken": CANARY}
OUTGOING = {"url": "https://peer.example/ilp", "staticToken": CANARY}
ILDCP = {"clientAddress": "test.host", "assetScale": 9, "assetCode": "XRP"}


def load(**fields):
    return options_from_mapping(HttpOptions, {"incoming": INCOMING, "outgoing": OUTGOING, **fields})


def problems(cls=HttpOptions, **fields):
    with pytest.raises(InvalidFieldsError) as caught:
        options_from_mapping(cls, fields)
    assert CANARY not in str(caught.value)
    return dict(caught.value.problems)


def test_configuration_of_the_reference_is_taken():
    options = options_from_mapping(
        HttpOptions,
        {
            "multi": False,
            "multiDelimiter": "%",
            "ildcp": ILDCP,
            "incoming": {"port": 7770, "staticToken": "in", "jwtSecret": "s1"},
            "outgoing": {
                "url": "https://peer.example/ilp",
                "staticToken": "out",
                "jwtSecret": "s2",
                "jwtExpiry": 10_000,
                "http2": False,
                "name": "alice",
                "sendIlpDestination": True,
            },
        },
    )
    assert options.incoming == IncomingOptions(port=7770, static_token="in", jwt_secret="s1")
    assert options.outgoing == OutgoingOptions(
        url="https://peer.example/ilp",
        static_token="out",
        jwt_secret="s2",
        jwt_expiry=10.0,
        name="alice",
        send_ilp_destination=True,
    )
    assert options.ildcp is not None
    assert options.ildcp.client_address == "test.host"


def test_old_names_imply_bare_tokens():
    incoming = options_from_mapping(IncomingOptions, {"port": 0, "secretToken": "t"})
    assert (incoming.static_token.reveal(), incoming.allow_bare_token) == ("t", True)
    incoming = options_from_mapping(IncomingOptions, {"port": 0, "secret": "s"})
    assert (incoming.jwt_secret.reveal(), incoming.allow_bare_token) == ("s", True)
    outgoing = options_from_mapping(OutgoingOptions, {"url": "http://localhost", "secret": "s", "tokenExpiry": 5000})
    assert (outgoing.jwt_secret.reveal(), outgoing.jwt_expiry) == ("s", 5.0)


def test_both_spellings_give_the_same_options():
    camel = load(outgoing={**OUTGOING, "maxConnections": 3, "idleTimeout": 2000, "jwtSubject": "a"})
    snake = HttpOptions(
        incoming=IncomingOptions(port=7770, static_token=CANARY),
        outgoing=OutgoingOptions(
            url="https://peer.example/ilp", static_token=CANARY, max_connections=3, idle_timeout=2.0, jwt_subject="a"
        ),
    )
    assert camel == snake


def test_multi_is_the_plugin_of_many_accounts():
    fields = {"plugin": "ilp-plugin-http", "incoming": INCOMING, "outgoing": OUTGOING}
    assert resolve_plugin(fields)[0].__name__ == "HttpPlugin"
    many = {**fields, "multi": True, "ildcp": ILDCP, "outgoing": {**OUTGOING, "url": "https://peer.example/%/ilp"}}
    plugin, options = resolve_plugin(many)
    assert plugin.__name__ == "HttpAccountsPlugin"
    assert isinstance(options, HttpAccountsOptions)
    with pytest.raises(InvalidFieldsError, match="HttpAccountsOptions"):
        HttpOptions(outgoing=OutgoingOptions(url="https://h", static_token="t"), multi=True)


def test_environment_may_name_the_reference():
    options = options_from_environment(
        {"ILP_PLUGIN": "ilp-plugin-http", "ILP_CREDENTIALS": '{"outgoing": {"url": "https://h", "staticToken": "t"}}'}
    )
    assert options["plugin"] == "http"
    assert isinstance(resolve_plugin(options)[1], HttpOptions)


@pytest.mark.parametrize(
    ("fields", "field", "text"),
    [
        ({}, "outgoing", "missing"),
        ({"incoming": {"port": 0}}, "incoming.static_token", "missing"),
        ({"incoming": {"staticToken": CANARY}}, "incoming.port", "missing"),
        ({"incoming": {"port": 70000, "staticToken": CANARY}}, "incoming.port", "0 to 65535"),
        ({"incoming": {"port": 0, "staticToken": f"{CANARY} x"}}, "incoming.staticToken", "without spaces"),
        ({"incoming": {"port": 0, "staticToken": f"{CANARY}\n"}}, "incoming.staticToken", "without spaces"),
        ({"incoming": {"port": 0, "staticToken": CANARY, "path": "ilp"}}, "incoming.path", "'/'"),
        (
            {"incoming": {"port": 0, "staticToken": CANARY, "secretToken": CANARY}},
            "incoming.staticToken",
            "secret_token",
        ),
        ({"outgoing": {"staticToken": CANARY}}, "outgoing.url", "missing"),
        ({"outgoing": {"url": "https://h"}}, "outgoing.static_token", "missing"),
        ({"outgoing": {"url": "ftp://h", "staticToken": CANARY}}, "outgoing.url", "https://"),
        ({"outgoing": {"url": f"https://x:{CANARY}@h", "staticToken": CANARY}}, "outgoing.url", "static_token"),
        ({"outgoing": {"url": "https://", "staticToken": CANARY}}, "outgoing.url", "names no host"),
        ({"outgoing": {"url": "http://h", "staticToken": CANARY}}, "outgoing.allow_insecure", "unencrypted"),
        ({"outgoing": {"url": "https://h", "staticToken": CANARY, "http2": True}}, "outgoing.http2", "HTTP/1.1"),
        (
            {"outgoing": {"url": "https://h", "staticToken": CANARY, "http2MaxRequestsPerSession": 5}},
            "outgoing.http2MaxRequestsPerSession",
            "HTTP/1.1",
        ),
        ({"outgoing": {"url": "https://h", "jwtSecret": CANARY, "jwtExpiry": 999}}, "outgoing.jwtExpiry", "1,000"),
        ({"outgoing": {"url": "https://h", "staticToken": CANARY, "name": "a b"}}, "outgoing.name", "ASCII"),
        (
            {"outgoing": {"url": "https://h", "staticToken": CANARY, "sttaicToken": 1}},
            "outgoing.'sttaicToken'",
            "staticT",
        ),
    ],
)
def test_wrong_field_is_named(fields, field, text):
    found = problems(**fields)
    assert text in found[field], found


def test_url_of_many_accounts_needs_a_place_for_the_name():
    found = problems(HttpAccountsOptions, incoming=INCOMING, outgoing=OUTGOING)
    assert "'%'" in found["outgoing.url"]


@pytest.mark.parametrize("where", ["outgoing", "plugin"])
def test_token_goes_in_the_clear_only_if_allowed(where):
    outgoing: dict[str, object] = {"url": "http://peer.example", "staticToken": "t"}
    fields: dict[str, object] = {"outgoing": outgoing}
    (outgoing if where == "outgoing" else fields)["allowInsecure"] = True
    assert options_from_mapping(HttpOptions, fields).outgoing is not None
    assert options_from_mapping(HttpOptions, {"outgoing": {**outgoing, "url": "http://127.0.0.1:1"}})


def test_tls_context_needs_https():
    found = problems(
        outgoing={"url": "http://localhost", "staticToken": "t", "ssl_context": ssl.create_default_context()}
    )
    assert "https://" in found["outgoing.ssl_context"]


def test_no_secret_is_shown():
    options = load()
    assert CANARY not in repr(options)
    assert sum(secret.reveal() == CANARY for secret in options.secrets()) >= 2
