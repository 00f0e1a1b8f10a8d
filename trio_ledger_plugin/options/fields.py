"""Options that check themselves.

The law here: a wrong options object cannot exist. Construction looks at every field and raises one
``InvalidFieldsError`` that names each bad field, its value and what is right. Secrets, and whatever may contain
one, are named by their type only.
"""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from attrs import NOTHING, fields, frozen

from ..errors import InvalidFieldsError
from ..secret import Secret
from ..transfer import MIN_RETENTION

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = [
    "ADDRESSES",
    "COUNT",
    "CREDENTIAL",
    "FLAGS",
    "MONEY",
    "NAME",
    "PORT",
    "RETENTION",
    "RULE",
    "SECONDS",
    "SECRET",
    "SSL_CONTEXT",
    "SWITCH",
    "TEXT",
    "WORD",
    "CheckedOptions",
    "Rule",
    "as_secret",
    "is_text",
    "raise_problems",
    "shown",
]

# The key of a field's rule in its metadata.
RULE: Final = "trio_ledger_plugin.rule"
# Entries of the auth message that the plugin writes itself; one of the same name beside them makes it illegal.
OWN_AUTH_ENTRIES: Final = frozenset({"auth", "auth_username", "auth_token", "transfer_keys"})


@frozen
class Rule:
    """What a field accepts; stands in the field's metadata under ``RULE``.

    Attributes:
        right: What a right value is, in words that follow "must be".
        accepts: Whether a value is right.
        shown: Whether a wrong value may appear in an error.
        duration: Whether the field is a time in seconds; JavaScript names give it in milliseconds.
        nested: The options class of a field that a mapping gives as a mapping.
        null: Whether None in a mapping is a value of the field, and not the same as leaving it out.
    """

    right: str
    accepts: Callable[[object], bool]
    shown: bool = True
    duration: bool = False
    nested: type[CheckedOptions] | None = None
    null: bool = False


def _is_duration(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == math.inf or 0 < value < 1e300


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_port(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535)


def _is_retention(value: object) -> bool:
    return _is_duration(value) and MIN_RETENTION <= value < 1e9  # type: ignore[operator]  # a duration is a number


def is_text(value: object) -> bool:
    """Whether a value is text that can go over the network."""
    # Text that UTF-8 cannot hold would fail much later, with an exception that carries it.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


def _is_secret(value: object) -> bool:
    return is_text(value.reveal() if isinstance(value, Secret) else value)


def _is_ssl_context(value: object) -> bool:
    return value is None or isinstance(value, ssl.SSLContext)


def _are_addresses(value: object) -> bool:
    if not isinstance(value, list | tuple):
        return False
    try:
        return all(isinstance(item, str) and str(ip_address(item)) == item for item in value)
    except ValueError:
        return False


def _are_flags(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_word(name) and name.isascii() and len(name) < 256 and name not in OWN_AUTH_ENTRIES and _is_flag(flag)
        for name, flag in value.items()
    )


def _is_flag(value: object) -> bool:
    if isinstance(value, str | bytes):
        return isinstance(value, bytes) or is_text(value)
    try:
        return is_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return False


SECONDS: Final = {RULE: Rule("a number of seconds above 0, or infinity for no limit", _is_duration, duration=True)}
RETENTION: Final = {RULE: Rule("a number of seconds from 86,400 (24 hours) to 1e9", _is_retention, duration=True)}
MONEY: Final = {RULE: Rule("'auto', 'keyed' or 'plain'", lambda value: value in ("auto", "keyed", "plain"))}
COUNT: Final = {RULE: Rule("a whole number above 0", _is_count)}
PORT: Final = {RULE: Rule("a port number from 0 to 65535, or None to open none", _is_port, null=True)}
TEXT: Final = {RULE: Rule("text (str) that UTF-8 can hold", is_text)}
NAME: Final = {RULE: Rule("text (str), not empty", lambda value: bool(value) and is_text(value))}
WORD: Final = {RULE: Rule("text (str), not empty, without spaces or control characters", _is_word)}
SECRET: Final = {RULE: Rule("text (str) that UTF-8 can hold, or a Secret of it", _is_secret, shown=False)}
CREDENTIAL: Final = {
    RULE: Rule(
        "text (str) or a Secret, not empty",
        lambda value: bool(value) and _is_secret(value),
        shown=False,
    )
}
SWITCH: Final = {RULE: Rule("True or False", lambda value: isinstance(value, bool))}
SSL_CONTEXT: Final = {RULE: Rule("an ssl.SSLContext or None", _is_ssl_context)}
ADDRESSES: Final = {RULE: Rule("a tuple of IP addresses in their shortest form", _are_addresses)}
FLAGS: Final = {
    RULE: Rule(
        "a mapping of names of 1 to 255 ASCII characters, none of "
        f"{', '.join(sorted(OWN_AUTH_ENTRIES))}, to text, bytes or what JSON can hold",
        _are_flags,
        shown=False,
    )
}


def as_secret(value: str | Secret) -> Secret:
    """Return text as a ``Secret``; for the ``converter`` of a field."""
    return Secret(value) if isinstance(value, str) else value


def shown(value: object) -> str:
    """Return a wrong value as an error may show it: containers and objects may hold a secret and give their type."""
    try:
        if isinstance(value, str):
            return repr(value) if len(value) <= 60 else f"{value[:60]!r}…"
        if value is None or isinstance(value, bool | int | float):
            return repr(value)
    except ValueError:  # an int of more digits than Python writes
        pass
    return f"a value of type {type(value).__name__}"


@frozen(kw_only=True)
class CheckedOptions:
    """Options that check themselves; the base for the options of a plugin.

    A subclass gives its fields a ``Rule`` in ``metadata`` and overrides ``find_conflicts``.
    """

    def __attrs_post_init__(self) -> None:
        problems = self.find_problems({each.name: getattr(self, each.name) for each in fields(type(self))})
        raise_problems(type(self), problems)

    @classmethod
    def find_problems(
        cls, values: Mapping[str, Any], spelled: Mapping[str, str] | None = None, skip: Collection[str] = ()
    ) -> list[str]:
        """Say all that is wrong with these values.

        Args:
            values: Field names to values; a field that is not there takes its default.
            spelled: Field names to the names that the user wrote.
            skip: Fields whose problems are known already.

        Returns:
            One line for each problem.
        """
        spelled = spelled or {}
        problems = []
        for each in fields(cls):
            rule: Rule = each.metadata.get(RULE, ANYTHING)
            name = spelled.get(each.name, each.name)
            right = rule.right.replace("seconds", "milliseconds") if name != each.name else rule.right
            if each.name not in values:
                if each.default is NOTHING and each.name not in skip:
                    problems.append(f"{name}: missing, must be {right}")
            elif each.name not in skip and not rule.accepts(value := values[each.name]):
                got = shown(value) if rule.shown else f"a value of type {type(value).__name__}"
                problems.append(f"{name}: got {got}, must be {right}")
        problems += [f"{spelled.get(name, name)}: {what}" for name, what in cls.find_conflicts(values)]
        return problems

    @classmethod
    def find_conflicts(cls, values: Mapping[str, Any]) -> Iterable[tuple[str, str]]:  # noqa: ARG003  # for subclasses
        """Give (field, what is wrong) for rules over several fields; values may be of any type."""
        return ()


ANYTHING: Final = Rule("any value", lambda _: True)


def raise_problems(cls: type[CheckedOptions], problems: list[str]) -> None:
    """Raise ``InvalidFieldsError`` with all the problems, where there are any."""
    if problems:
        raise InvalidFieldsError(
            f"{cls.__name__}, {len(problems)} wrong:" + "".join(f"\n- {each}" for each in problems)
        )
