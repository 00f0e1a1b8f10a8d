"""The options of a client's HTTP request: headers that the application adds, and the proxy to go through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from ..options.fields import VALIDATOR, Refused, Validator, is_text
from ..secret import Secret
from .tunnel import parse_proxy

__all__ = ["HEADERS", "HEADER_TEXT", "PROXY", "as_headers", "as_proxy"]

HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Headers that the handshake has already, or that would change its meaning.
OWN_HEADERS: Final = re.compile(
    "host|upgrade|connection|sec-websocket-.*|content-length|transfer-encoding|user-agent|origin|proxy-.*",
    re.IGNORECASE,
)
SECRET_HEADERS: Final = frozenset({"authorization", "cookie"})


def _is_header_text(value: object) -> bool:
    text = value.reveal() if isinstance(value, Secret) else value
    if not isinstance(text, str) or text != text.strip():
        return False
    return all(" " <= character <= "~" or "\xa0" <= character <= "\xff" for character in text)


def _are_headers(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and HEADER_NAME.fullmatch(name) is not None
        and OWN_HEADERS.fullmatch(name) is None
        and _is_header_text(text)
        for name, text in value.items()
    )


def as_headers(value: object) -> Any:  # noqa: ANN401 (the validator judges what is no mapping)
    """Copy headers, and make those with credentials secret."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: Secret(text) if isinstance(text, str) and str(name).lower() in SECRET_HEADERS else text
        for name, text in value.items()
    }


def as_proxy(value: str | Secret | None) -> Any:  # noqa: ANN401  # a Secret, None, or Refused until it is reported
    """Check a proxy's URL; it may have credentials, and so all of it is secret."""
    url = value.reveal() if isinstance(value, Secret) else value
    if not is_text(url):
        return value
    try:
        if url:
            parse_proxy(url)
    except ValueError as error:
        return Refused.because(str(error))
    return Secret(url)


HEADER_TEXT: Final = {VALIDATOR: Validator("text (str) in Latin-1 on one line", _is_header_text)}
HEADERS: Final = {
    VALIDATOR: Validator(
        "a mapping of header names, none of those of the handshake itself, to text in Latin-1 on one line",
        _are_headers,
        shown=False,
    )
}
PROXY: Final = {
    VALIDATOR: Validator(
        "the URL of an HTTP proxy, as text (str) or as a Secret, or None",
        lambda value: value is None or isinstance(value, Secret),
        shown=False,
    )
}
