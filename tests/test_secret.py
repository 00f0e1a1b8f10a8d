"""The text of a secret stays inside its object, even if a program shows or copies it by accident."""

import copy
import json
import pickle
from typing import Any

import pytest

from trio_ledger_plugin.secret import Secret

CANARY = "canary-7f3a"


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        lambda secret: f"{secret} {secret!r} {secret!s} {secret!a}",
        lambda secret: f"{secret:>40}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031  # the old form is what is tested
        lambda secret: json.dumps({"token": secret}, default=str),
    ],
)
def test_no_representation_shows_the_text(show: Any) -> None:
    shown = show(Secret(CANARY))
    assert "Secret(***)" in shown
    assert CANARY not in shown


@pytest.mark.parametrize("leave", [pickle.dumps, copy.copy, copy.deepcopy, json.dumps])
def test_secret_cannot_be_pickled_copied_or_serialised(leave: Any) -> None:
    with pytest.raises(TypeError) as caught:
        leave(Secret(CANARY))
    assert CANARY not in str(caught.value)


def test_reveal_returns_the_text() -> None:
    assert Secret(CANARY).reveal() == CANARY


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [("a", "a", True), ("a", "b", False), ("a", "aa", False), ("é", "é", True), ("\ud800", "\ud800", True)],
)
def test_secrets_compare_by_text(left: Any, right: Any, equal: Any) -> None:
    assert (Secret(left) == Secret(right)) is equal
    assert (Secret(left) != Secret(right)) is not equal


def test_secret_is_not_text_and_not_hashable() -> None:
    assert Secret("a") != "a"
    with pytest.raises(TypeError):
        hash(Secret("a"))


def test_empty_secret_is_false() -> None:
    assert not Secret("")
    assert Secret("0")


def test_secret_of_another_type_is_refused() -> None:
    token: Any = b"token"
    with pytest.raises(TypeError, match="not bytes"):
        Secret(token)
