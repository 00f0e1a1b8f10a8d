"""Finds the account of a token, and keeps the tokens' hashes in the store.

Invariant: an account belongs to the token that first authenticated for it. The store holds hashes only, with the keys
and the format of ilp-plugin-mini-accounts, so that a store of that plugin works unchanged.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64encode
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

import trio

from ..errors import InvalidServicesError, NotAcceptedError, StoreError

if TYPE_CHECKING:
    from ..services import Log, Store

__all__ = ["AccountTokens", "is_segment"]

SEGMENT: Final = re.compile(r"[A-Za-z0-9_~-]{1,255}")
HASH: Final = re.compile(r"[A-Za-z0-9_-]{43}")


def is_segment(name: str) -> bool:
    """Whether a name can be an account's: one segment of an ILP address (RFC-0015)."""
    return SEGMENT.fullmatch(name) is not None


class AccountTokens:
    """Checks the credentials of the clients of a server of many accounts.

    Args:
        store: Keeps the tokens' hashes; None if there is no store.
        generate_account: The option of that name.
        log: Gets the failures of the store.

    Raises:
        InvalidServicesError: ``generate_account`` is False and there is no store.
    """

    def __init__(self, store: Store | None, generate_account: bool | None, log: Log) -> None:
        if generate_account is False and store is None:
            raise InvalidServicesError("store: missing, generate_account=False needs one to keep the accounts' tokens")
        self._store = None if generate_account else store
        self._needs_username = generate_account is False
        self._log = log
        # Held while a new account is stored: of two clients that ask for the same name at once, one may get it.
        self._claiming = trio.Lock()

    @property
    def are_stored(self) -> bool:
        """Whether tokens are stored, so that ``verify`` must be called."""
        return self._store is not None

    def identify(self, username: str | None, token: bytes) -> str:
        """Return the account that a client asks for.

        Args:
            username: The username; None if the client gives none.
            token: The token.

        Raises:
            NotAcceptedError: The token is empty, or the username cannot be used. The client may read the text.
        """
        if not token:
            raise NotAcceptedError("auth_token is empty")
        generated = _hashed(token)
        account = username or generated
        if self._needs_username and not username:
            raise NotAcceptedError("auth_username is missing")
        if self._store is None and not compare_digest(account.encode(), generated.encode()):
            raise NotAcceptedError("auth_username must be empty here: the token names the account")
        if not is_segment(account):
            raise NotAcceptedError("auth_username must be letters, digits, _, ~ or -")
        return account

    async def verify(self, account: str, token: bytes) -> None:
        """Compare a token with the account's; the first token for an account is stored.

        Raises:
            NotAcceptedError: The account has another token.
            StoreError: The store failed.

        Cancellation: A new account may have been stored.
        """
        assert self._store is not None
        try:
            right = await self._is_right(self._store, account, _hashed(token))
        except Exception as error:
            self._log.error("cannot look up the token of account %s: %o", account, error)
            raise StoreError("the store failed") from error
        if not right:
            raise NotAcceptedError("invalid auth_token")

    async def _is_right(self, store: Store, account: str, hashed: str) -> bool:
        known = await store.get(_key(account))
        if known is None:
            async with self._claiming:
                known = await store.get(_key(account)) or await _convert(store, account)
                if known is None:
                    # A name that looks like a hash needs the token with that hash. It is reserved for a client that
                    # has used that token without a store.
                    if HASH.fullmatch(account) and account != hashed:
                        return False
                    await store.put(_key(account), hashed)
                    return True
        return compare_digest(known.encode(), hashed.encode())


def _key(account: str) -> str:
    return f"{account}:hashed-token"


async def _convert(store: Store, account: str) -> str | None:
    """Replace a token that an early ilp-plugin-mini-accounts stored in plain text."""
    old = f"{account}:token"
    token = await store.get(old)
    if not token:
        return None
    hashed = _hashed(token.encode())
    await store.put(_key(account), hashed)
    await store.delete(old)
    return hashed


def _hashed(token: bytes) -> str:
    return urlsafe_b64encode(sha256(token).digest()).rstrip(b"=").decode()
