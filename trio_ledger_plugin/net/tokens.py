"""Which account a token opens, and what the store keeps about it.

Invariant: an account belongs to the token that it was first opened with. The store holds hashes only, under the keys
and in the form of ilp-plugin-mini-accounts, so that its store works unchanged.
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
    """Whether a name can be one segment of an ILP address (RFC-0015), and so an account's."""
    return SEGMENT.fullmatch(name) is not None


class AccountTokens:
    """Judges the credentials of a many-account server's clients.

    Args:
        store: Where the tokens' hashes are kept, or None.
        generate_account: The option of that name.
        log: Where failures of the store are logged.

    Raises:
        InvalidServicesError: Usernames are wanted and there is no store to remember whose they are.
    """

    def __init__(self, store: Store | None, generate_account: bool | None, log: Log) -> None:
        if generate_account is False and store is None:
            raise InvalidServicesError("store: missing, generate_account=False needs one to keep the accounts' tokens")
        self._store = None if generate_account else store
        self._needs_username = generate_account is False
        self._log = log
        # One first use at a time: of two clients that want the same name at once only one may have it.
        self._claiming = trio.Lock()

    @property
    def are_stored(self) -> bool:
        """Whether ``verify`` has anything to look up."""
        return self._store is not None

    def identify(self, username: str | None, token: bytes) -> str:
        """Return the account that a client asks for.

        Args:
            username: The username, where the client gives one.
            token: The token.

        Raises:
            NotAcceptedError: There is no token, or no account that it could be; the text is fit for the client to read.
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
        """Compare a token with the account's; the first token of an account becomes the account's.

        Raises:
            NotAcceptedError: It is another.
            StoreError: The store fails, and cannot tell.

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
                    # Names like a token's hash can be had with that token only: those who had one before there was
                    # a store may still come.
                    if HASH.fullmatch(account) and account != hashed:
                        return False
                    await store.put(_key(account), hashed)
                    return True
        return compare_digest(known.encode(), hashed.encode())


def _key(account: str) -> str:
    return f"{account}:hashed-token"


async def _convert(store: Store, account: str) -> str | None:
    """Replace a token that an early ilp-plugin-mini-accounts stored in the clear."""
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
