"""JSON Web Tokens: what is accepted, and that nothing else is."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from hmac import digest
from math import inf

import pytest

from trio_ledger_plugin import NotAcceptedError
from trio_ledger_plugin.http.jwt import LEEWAY, Claims, sign, verify

SECRET = b"canary-of-the-jwt"
NOW = 1_700_000_000.5


def part(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=")


def make(claims, *, header=None, secret=SECRET, algorithm="sha256"):
    signed = part(header or {"alg": "HS256", "typ": "JWT"}) + b"." + part(claims)
    return (signed + b"." + part(digest(secret, signed, algorithm))).decode()


def refused(token, **how):
    with pytest.raises(NotAcceptedError) as caught:
        verify(token, SECRET, NOW, **how)
    assert "canary" not in str(caught.value)
    return str(caught.value)


def test_own_token_is_accepted_until_it_expires():
    token = sign(SECRET, NOW, 30.9)
    assert verify(token, SECRET, NOW) == Claims(None, int(NOW) + 30)
    assert verify(token, SECRET, int(NOW) + 30 + LEEWAY - 0.1).subject is None
    with pytest.raises(NotAcceptedError, match="expired"):
        verify(token, SECRET, int(NOW) + 30 + LEEWAY)


def test_token_of_the_reference_is_accepted():
    """ilp-plugin-http signs iat and exp only."""
    token = make({"iat": int(NOW), "exp": int(NOW) + 30}, header={"alg": "HS256", "typ": "JWT"})
    assert verify(token, SECRET, NOW).expires == int(NOW) + 30


def test_shortest_lifetime_is_a_second():
    """A token that expires when it is made would be refused by ilp-plugin-http, which has no leeway."""
    assert verify(sign(SECRET, NOW, 0.1), SECRET, NOW).expires == int(NOW) + 1


def test_subject_is_signed_and_read():
    assert verify(sign(SECRET, NOW, 30, "alice"), SECRET, NOW).subject == "alice"


@pytest.mark.parametrize(("name", "algorithm"), [("HS256", "sha256"), ("HS384", "sha384"), ("HS512", "sha512")])
def test_three_algorithms_are_accepted(name, algorithm):
    assert verify(make({"exp": NOW + 9}, header={"alg": name}, algorithm=algorithm), SECRET, NOW).expires == NOW + 9


@pytest.mark.parametrize("name", ["none", "None", "hs256", "RS256", "ES256", "", None, 5, ["HS256"]])
def test_other_algorithms_are_refused(name):
    assert "algorithm" in refused(make({"exp": NOW + 9}, header={"alg": name}))


def test_algorithm_of_another_signature_is_refused():
    assert "signature" in refused(make({"exp": NOW + 9}, header={"alg": "HS512"}, algorithm="sha256"))


def test_missing_signature_is_refused():
    assert "signature" in refused(make({"exp": NOW + 9}).rpartition(".")[0] + ".")


def test_signature_of_another_secret_is_refused():
    assert "signature" in refused(make({"exp": NOW + 9}, secret=b"other"))


def test_critical_header_is_refused():
    refused(make({"exp": NOW + 9}, header={"alg": "HS256", "crit": ["b64"]}))


def test_token_without_exp_needs_the_option():
    token = make({"iat": 1})
    assert "does not say when it expires" in refused(token)
    assert verify(token, SECRET, NOW, require_exp=False) == Claims(None, inf)


def test_token_that_begins_later_is_refused():
    assert "not valid yet" in refused(make({"exp": NOW + 99, "nbf": NOW + LEEWAY + 1}))
    assert verify(make({"exp": NOW + 99, "nbf": NOW + LEEWAY}), SECRET, NOW).expires == NOW + 99


def test_iat_in_the_future_is_no_fault():
    """The peer's clock may be ahead."""
    assert verify(make({"exp": NOW + 99, "iat": NOW + 50}), SECRET, NOW).expires == NOW + 99


@pytest.mark.parametrize("value", ["9", True, None, [], 1e400, "NaN"])
@pytest.mark.parametrize("name", ["exp", "nbf"])
def test_time_of_another_type_is_refused(name, value):
    assert name in refused(make({"exp": NOW + 9, name: value}))


def test_subject_of_another_type_is_refused():
    assert "sub" in refused(make({"exp": NOW + 9, "sub": 7}))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "a.b",
        "a.b.c.d",
        "..",
        "é.b.c",
        "a" * 5000,
        make([1]),
        make("text"),
        make(b"not json"),
        make(b"[" * 3000),
        make(b'{"exp": 1700000009, "exp": 1}'),
        make({"exp": NOW + 9}).replace(".", "=.", 1),
        make({"exp": NOW + 9}) + "=",
        make({"exp": NOW + 9}) + "\n",
        " " + make({"exp": NOW + 9}),
    ],
)
def test_what_is_no_token_is_refused(token):
    refused(token)


def test_time_beyond_every_float_is_a_time():
    """JSON's integers have no end, and a peer with the secret may not end the server with one."""
    assert verify(make({"exp": 10**400}), SECRET, NOW).expires == 10**400
    assert "expired" in refused(make({"exp": -(10**400)}))
    assert "not valid yet" in refused(make({"exp": 10**400, "nbf": 10**400}))
