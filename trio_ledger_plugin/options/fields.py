"""The validators of fields: what a field accepts, and the sentence with which an error refuses the rest.

An error shows a refused value only where that value cannot hold a secret; otherwise it shows the value's type.
"""

from __future__ import annotations

import math
import ssl
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from attrs import frozen

from ..negotiation import MIN_RETENTION
from ..secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ADDRESSES",
    "ANYTHING",
    "CLIENT_CONTEXT",
    "COUNT",
    "CREDENTIAL",
    "EARLIER_NAME",
    "HOST",
    "MONEY",
    "NAME",
    "NESTED",
    "OPTIONAL_SWITCH",
    "PORT",
    "RETENTION",
    "SECONDS",
    "SECRET",
    "SERVER_CONTEXT",
    "SSL_CONTEXT",
    "SWITCH",
    "TEXT",
    "VALIDATOR",
    "WORD",
    "Milliseconds",
    "Refused",
    "Validator",
    "as_host",
    "as_secret",
    "as_tuple",
    "bare_host",
    "is_text",
    "is_word",
    "shown",
]

# The keys of a field's metadata: its validator; its name in earlier versions, which is still accepted; and the options
# class of a field whose value is a mapping within the mapping.
VALIDATOR: Final = "trio_ledger_plugin.validator"
EARLIER_NAME: Final = "trio_ledger_plugin.earlier_name"
NESTED: Final = "trio_ledger_plugin.nested"


@frozen
class Milliseconds:
    """A time in milliseconds, which a mapping gives under a camelCase name; ``value`` may be of any type."""

    value: object

    def as_seconds(self) -> object:
        """Return the time in seconds, or ``value`` itself if it is not a number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            return self.value
        try:
            return self.value / 1000
        except OverflowError:  # an int that no float can hold; no time is that long
            return self.value


@frozen
class Refused:
    """Stands in a field for a value that could not be made, and says why.

    Converters and the loader return it instead of raising, so that the constructor reports it with all other problems.

    Attributes:
        problems: Pairs of a field and what is wrong with it. The field is one of a nested options class, or an empty
            string for the value as a whole.
    """

    problems: tuple[tuple[str, str], ...]

    @classmethod
    def because(cls, text: str) -> Refused:
        """Return a refusal of the value as a whole."""
        return cls((("", text),))


def _whole(value: object) -> object:
    return value


@frozen
class Validator:
    """What a field accepts. It stands in the field's ``metadata`` under ``VALIDATOR``.

    Attributes:
        expected: What the field accepts, in words that follow "must be".
        accepts: Returns whether the field accepts a value of any type.
        shown: Whether an error may show a refused value.
        milliseconds: Only for times, which are in seconds: ``expected`` in milliseconds, the unit of a camelCase name.
        null: Whether None in a mapping is a value of the field. If not, None means that the field is not given.
        find_part: Returns the part of a refused value that is wrong, for errors that show it.
    """

    expected: str
    accepts: Callable[[object], bool]
    shown: bool = True
    milliseconds: str = ""
    null: bool = False
    find_part: Callable[[object], object] = _whole

    def find_problem(self, value: object) -> str:
        """Return what is wrong with a value, or an empty string if nothing is."""
        given, expected = value, self.expected
        if isinstance(value, Milliseconds):
            given, expected = value.value, self.milliseconds
            value = value.as_seconds()
        if self.accepts(value):
            return ""
        given = self.find_part(given)
        return f"got {shown(given) if self.shown else _type_of(given)}, must be {expected}"


def _is_duration(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value == math.inf or 0 < value < 1e300


def _is_count(value: object) -> bool:
    # Limits are compared with floats, written to JSON, and used in statements.
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63


def _is_port(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535)


def _is_retention(value: object) -> bool:
    return _is_duration(value) and MIN_RETENTION <= value < 1e9  # type: ignore[operator]  # a duration is a number


def is_text(value: object) -> TypeGuard[str]:
    """Return whether a value is text that can go over the network."""
    # Text that UTF-8 cannot hold would fail much later, with an exception that carries it.
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def is_word(value: object) -> bool:
    """Return whether a value is text without spaces and control characters, and not empty."""
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


def _is_secret(value: object) -> bool:
    return is_text(value.reveal() if isinstance(value, Secret) else value)


def _is_ssl_context(value: object) -> bool:
    return value is None or isinstance(value, ssl.SSLContext)


def _is_for_servers(value: object) -> bool:
    # Python would refuse the other kind only in each handshake. A context of the deprecated PROTOCOL_TLS does for both.
    return _is_ssl_context(value) and getattr(value, "protocol", None) is not ssl.PROTOCOL_TLS_CLIENT


def _is_for_clients(value: object) -> bool:
    return _is_ssl_context(value) and getattr(value, "protocol", None) is not ssl.PROTOCOL_TLS_SERVER


def _are_addresses(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_address, value))


def _is_address(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return str(ip_network(value) if "/" in value else ip_address(value)) == value
    except ValueError:
        return False


def _first_bad_address(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    return next(item for item in value if not _is_address(item))


ANYTHING: Final = Validator("any value", lambda _: True)
SECONDS: Final = {
    VALIDATOR: Validator(
        "a number of seconds above 0, or infinity for no limit",
        _is_duration,
        milliseconds="a number of milliseconds above 0, or infinity for no limit",
    )
}
RETENTION: Final = {
    VALIDATOR: Validator(
        "a number of seconds from 86,400 (24 hours) to 1e9",
        _is_retention,
        milliseconds="a number of milliseconds from 86,400,000 (24 hours) to 1e12",
    )
}
ACCEPT_MONEY: Final = {VALIDATOR: Validator("'handler' or 'journal'", lambda value: value in ("handler", "journal"))}
MONEY: Final = {VALIDATOR: Validator("'auto', 'keyed' or 'plain'", lambda value: value in ("auto", "keyed", "plain"))}
COUNT: Final = {VALIDATOR: Validator("a whole number above 0 and below 2**63", _is_count)}
PORT: Final = {VALIDATOR: Validator("a port number from 0 to 65535, or None to open none", _is_port, null=True)}
TEXT: Final = {VALIDATOR: Validator("text (str) that UTF-8 can hold", is_text)}
NAME: Final = {VALIDATOR: Validator("text (str), not empty", lambda value: bool(value) and is_text(value))}
WORD: Final = {VALIDATOR: Validator("text (str), not empty, without spaces or control characters", is_word)}
HOST: Final = {
    VALIDATOR: Validator(
        "a host name or an IP address (str), or '*' for every address",
        lambda value: value is None or is_word(value),
    )
}
SECRET: Final = {VALIDATOR: Validator("text (str) that UTF-8 can hold, or a Secret of it", _is_secret, shown=False)}
CREDENTIAL: Final = {
    VALIDATOR: Validator(
        "text (str) or a Secret, not empty", lambda value: _is_secret(value) and bool(value), shown=False
    )
}
SWITCH: Final = {VALIDATOR: Validator("True or False", lambda value: isinstance(value, bool))}
OPTIONAL_SWITCH: Final = {
    VALIDATOR: Validator("True, False or None", lambda value: value is None or isinstance(value, bool))
}
SSL_CONTEXT: Final = {VALIDATOR: Validator("an ssl.SSLContext or None", _is_ssl_context)}
SERVER_CONTEXT: Final = {
    VALIDATOR: Validator(
        "None or an ssl.SSLContext for a server, as of ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)",
        _is_for_servers,
    )
}
CLIENT_CONTEXT: Final = {
    VALIDATOR: Validator(
        "None or an ssl.SSLContext for a client, as of ssl.create_default_context()",
        _is_for_clients,
    )
}
ADDRESSES: Final = {
    VALIDATOR: Validator(
        "IP addresses or networks in their shortest form, such as ('192.0.2.1', '10.0.0.0/8')",
        _are_addresses,
        find_part=_first_bad_address,
    )
}


def as_host(value: str | None) -> Any:  # noqa: ANN401 (the validator judges what the converter leaves)
    """Return None for the text ``*``: in a mapping, None means "not given". Other values are as of ``bare_host()``."""
    return None if value == "*" else bare_host(value)


def bare_host(value: str | None) -> Any:  # noqa: ANN401 (the validator judges what the converter leaves)
    """Return an IPv6 address without the brackets that it has in a URL, and any other value as it is."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]") and ":" in value:
        return value[1:-1]
    return value


def as_secret(value: str | Secret) -> Secret:
    """Return text as a ``Secret``; for the ``converter`` of a field."""
    return Secret(value) if isinstance(value, str) else value


def as_tuple(value: list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Return a list, such as JSON has, as a tuple; for the ``converter`` of a field."""
    return tuple(value) if isinstance(value, list) else value


def shown(value: object) -> str:
    """Return a refused value as an error may show it: only the type of what may hold a secret."""
    try:
        if isinstance(value, str):
            return repr(value) if len(value) <= 60 else f"{value[:60]!r}…"
        if value is None or isinstance(value, bool | int | float):
            return repr(value)
    except ValueError:  # an int of more digits than Python writes
        pass
    return _type_of(value)


def _type_of(value: object) -> str:
    if isinstance(value, Secret):
        # The text that was given, as converted.
        return "text that is not shown" if value else "empty text"
    return f"a value of type {type(value).__name__}"
