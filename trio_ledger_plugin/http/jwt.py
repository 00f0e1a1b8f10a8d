"""JSON Web Tokens with a shared secret (RFC 7519; HS256, HS384 and HS512 of RFC 7518).

Invariant: a token is accepted only if its signature is right, and ``exp`` and ``nbf`` allow it now. No text of a token
is in an error.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hmac import compare_digest
from hmac import digest as hmac_digest
from math import inf
from typing import Any, Final

from attrs import frozen

from ..errors import NotAcceptedError

__all__ = ["LEEWAY", "Claims", "sign", "verify"]

# By how many seconds the clocks of the two ends may differ.
LEEWAY: Final = 5
LONGEST: Final = 4096
ALGORITHMS: Final = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}
HEADER: Final = '{"alg":"HS256","typ":"JWT"}'


@frozen
class Claims:
    """What a token says.

    Attributes:
        subject: Whose token it is; None if it does not say.
        expires: When it expires, in seconds since 1970; infinity for never.
    """

    subject: str | None
    expires: float


def sign(secret: bytes, now: float, lifetime: float, subject: str | None = None) -> str:
    """Return a token, signed with HS256.

    Args:
        secret: The secret that both ends know.
        now: The time, in seconds since 1970.
        lifetime: For how many seconds the token is valid; at least one.
        subject: Whose token it is, the claim ``sub``; None for none.
    """
    claims: dict[str, object] = {"iat": int(now), "exp": int(now) + max(1, int(lifetime))}
    if subject is not None:
        claims["sub"] = subject
    signed = b".".join(_encode(text.encode()) for text in (HEADER, json.dumps(claims, separators=(",", ":"))))
    return b".".join((signed, _encode(hmac_digest(secret, signed, "sha256")))).decode()


def verify(token: str, secret: bytes, now: float, *, require_exp: bool = True) -> Claims:
    """Return what a token says.

    Args:
        token: The token.
        secret: The secret that both ends know.
        now: The time, in seconds since 1970.
        require_exp: Whether a token without ``exp`` is refused.

    Raises:
        NotAcceptedError: It is not a token, its signature is wrong, or it is not valid now.
    """
    if len(token) > LONGEST or not token.isascii() or token.count(".") != 2:
        raise NotAcceptedError("not a JSON Web Token")
    signed, _, signature = token.encode().rpartition(b".")
    header, claims = map(_read_object, signed.split(b"."))
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or "crit" in header:
        raise NotAcceptedError(f"the token's algorithm must be {', '.join(ALGORITHMS)}")
    if not compare_digest(_decode(signature), hmac_digest(secret, signed, ALGORITHMS[algorithm])):
        raise NotAcceptedError("the token's signature is wrong")
    expires = _read_time(claims, "exp")
    if expires is None and require_exp:
        raise NotAcceptedError("the token does not say when it expires")
    if expires is not None and now >= expires + LEEWAY:
        raise NotAcceptedError("the token has expired")
    begins = _read_time(claims, "nbf")
    if begins is not None and now < begins - LEEWAY:
        raise NotAcceptedError("the token is not valid yet")
    subject = claims.get("sub")
    if subject is not None and not isinstance(subject, str):
        raise NotAcceptedError("the token's sub is no text")
    return Claims(subject, inf if expires is None else expires)


def _read_time(claims: dict[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    # Compared, not converted: an integer may be greater than every float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < inf:
        raise NotAcceptedError(f"the token's {name} is no time")
    return value


def _read_object(part: bytes) -> dict[str, Any]:
    try:
        value = json.loads(_decode(part), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise NotAcceptedError("not a JSON Web Token")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers could take different ones.
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)


def _encode(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


def _decode(part: bytes) -> bytes:
    try:
        data = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        data = b""
    # The decoder ignores characters that it does not know.
    if _encode(data) != part:
        raise NotAcceptedError("not a JSON Web Token")
    return data
