"""The credentials of both directions: what the peer must show, and what this end shows."""

from __future__ import annotations

import time
from hashlib import sha256
from hmac import compare_digest
from math import inf
from typing import TYPE_CHECKING

from ..errors import NotAcceptedError
from . import jwt

if TYPE_CHECKING:
    from ..secret import Secret
    from .options import IncomingOptions, OutgoingOptions

__all__ = ["Authorization", "PeerToken", "bearer_token"]


def bearer_token(authorization: str | None, *, allow_bare: bool) -> str:
    """Return the token of a header ``Authorization``.

    Args:
        authorization: The header's value; None if there is none.
        allow_bare: Whether a token without ``Bearer`` is allowed.

    Raises:
        NotAcceptedError: There is no token.
    """
    scheme, _, token = (authorization or "").partition(" ")
    token = token.strip()
    if scheme.lower() == "bearer" and token:
        return token
    if allow_bare and authorization:
        return authorization
    raise NotAcceptedError("a bearer token is missing")


class PeerToken:
    """Checks the token of a plugin's one peer.

    Args:
        options: What the peer must show.
    """

    def __init__(self, options: IncomingOptions) -> None:
        self._digest = _digest(options.static_token.reveal()) if options.static_token else None
        self._jwt_secret = _bytes(options.jwt_secret)
        self._subject = options.jwt_subject
        self._require_exp = options.require_exp

    def check(self, token: str) -> jwt.Claims:
        """Check a token, and return what it says.

        Raises:
            NotAcceptedError: It is wrong. The text may be shown to the peer.
        """
        if self._digest is not None and compare_digest(_digest(token), self._digest):
            return jwt.Claims(None, inf)
        if self._jwt_secret is None:
            raise NotAcceptedError("the token is wrong")
        claims = jwt.verify(token, self._jwt_secret, time.time(), require_exp=self._require_exp)
        if self._subject is not None and claims.subject != self._subject:
            raise NotAcceptedError("the token's sub is another one")
        return claims


class Authorization:
    """The header ``Authorization`` of this end's requests.

    Args:
        options: What this end shows.
    """

    def __init__(self, options: OutgoingOptions) -> None:
        self._options = options
        self._scheme = "" if options.secret or options.secret_token else "Bearer "
        self._jwt_secret = _bytes(options.jwt_secret)
        self._from = self._until = -inf
        self._value = f"{self._scheme}{options.static_token.reveal()}"
        if self._jwt_secret is None:
            self._until = inf

    def value(self) -> str:
        """Return the header's value; a JSON Web Token is renewed after half of its life."""
        if self._until < inf:
            now = time.time()
            # Also after the clock was set back.
            if not self._from <= now < self._until:
                assert self._jwt_secret is not None
                lifetime = self._options.jwt_expiry
                token = jwt.sign(self._jwt_secret, now, lifetime, self._options.jwt_subject)
                self._from, self._until = now, now + lifetime / 2
                self._value = f"{self._scheme}{token}"
        return self._value


def _bytes(secret: Secret) -> bytes | None:
    return secret.reveal().encode() if secret else None


def _digest(token: str) -> bytes:
    return sha256(token.encode("utf-8", "surrogatepass")).digest()
