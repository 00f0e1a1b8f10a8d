"""Finds the account of a token, and keeps digests of the tokens in the store.

Invariant: an account belongs to the token that first authenticated for it. The store holds digests with a random key,
so that equal tokens cannot be recognized in two stores or in two accounts. Servers that share a store share the names
of accounts only if they have the same ``ledger_id``.

An entry of ilp-plugin-mini-accounts, ``<account>:hashed-token`` with the plain SHA-256 digest, reserves the account's
name at every server that uses the store. When its token is used, the digest in it is replaced by one with the key.
"""

from __future__ import annotations

import re
import secrets
from base64 import urlsafe_b64encode
from functools import partial
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as hmac_digest
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import trio

from ..errors import InvalidServicesError, NotAcceptedError, StoreError
from ..runtime.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ..services import Log, Store

__all__ = ["AccountTokens", "is_segment"]

SEGMENT: Final = re.compile(r"[A-Za-z0-9_~-]{1,255}")
HASH: Final = re.compile(r"[A-Za-z0-9_-]{43}")
# No name of an account contains a colon.
SECRET_KEY: Final = "lpi:token-key"  # noqa: S105 (the name under which it is stored)
SECRET: Final = re.compile(r"[0-9a-f]{64}")
KEYED: Final = "hmac-sha256:"


def is_segment(name: str) -> bool:
    """Whether a name can be an account's: one segment of an ILP address (RFC-0015)."""
    return SEGMENT.fullmatch(name) is not None


class AccountTokens:
    """Checks the credentials of the clients of a server of many accounts.

    Args:
        store: Keeps the digests of the tokens; None if there is no store.
        generate_account: The option of that name.
        log: Gets the failures of the store.
        ledger_id: The option of that name.

    Raises:
        InvalidServicesError: ``generate_account`` is False and there is no store.
    """

    def __init__(self, store: Store | None, generate_account: bool | None, log: Log, ledger_id: str) -> None:
        if generate_account is False and store is None:
            raise InvalidServicesError("store: missing, generate_account=False needs one to keep the accounts' tokens")
        self._store = None if generate_account else store
        self._needs_username = generate_account is False
        self._log = log
        self._ledger_id = ledger_id
        # A store's key has no NUL character.
        self._ending = ledger_id.replace("%", "%25").replace("\0", "%00")
        self._secret: bytes | None = None
        self._names = _Names() if self._store is None else _names_of(self._store)

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
            right = await self._is_right(self._store, account, token)
        except Exception as error:
            self._log.error("cannot look up the token of account %s: %o", account, error)
            raise StoreError("the store failed") from error
        if not right:
            raise NotAcceptedError("invalid auth_token")

    async def _is_right(self, store: Store, account: str, token: bytes) -> bool:
        secret = await self._get_secret(store)
        own, shared = f"{account}:token:{self._ending}", f"{account}:hashed-token"
        digest = _keyed(secret, self._ledger_id, account, token)
        # Of two clients that ask for the same new name at once, one may get it.
        async with self._names.lock(account):
            known = await store.get(own)
            if known is not None:
                return _are_equal(known, digest)
            reserved = await self._get_reservation(store, secret, account, shared)
            if reserved is not None:
                if not _are_equal(reserved, _hashed(token), _keyed(secret, None, account, token)):
                    return False
                # First, and it stays: the name is reserved at the other servers of this store as well.
                await store.put(shared, _keyed(secret, None, account, token))
            elif HASH.fullmatch(account):
                # A name that looks like a hash belongs to the token with that hash; there is nothing to store.
                return _are_equal(account, _hashed(token))
            # Another process that shares the store may have stored a token for the name meanwhile.
            return _are_equal(await _add(store, own, digest), digest)

    async def _get_reservation(self, store: Store, secret: bytes, account: str, shared: str) -> str | None:
        """Return the digest that reserves a name at every server of the store; None if there is none."""
        found: dict[str, str | None] = {}

        async def look_up(key: str) -> None:
            found[key] = await store.get(key)

        # At the same time, so that they share one turn at the store.
        await run_all([partial(look_up, f"{account}:token"), partial(look_up, shared)])
        # An early ilp-plugin-mini-accounts stored the token itself.
        plain, reserved = found[f"{account}:token"], found[shared]
        if plain:
            if reserved is None:
                reserved = _keyed(secret, None, account, plain.encode())
                await store.put(shared, reserved)
            await store.delete(f"{account}:token")
        return reserved

    async def _get_secret(self, store: Store) -> bytes:
        """Return the key of the digests; the first server that uses the store makes it.

        Raises:
            ValueError: The store has another value in its place.
        """
        if self._secret is None:
            async with self._names.lock(SECRET_KEY):
                secret = await store.get(SECRET_KEY) or await _add(store, SECRET_KEY, secrets.token_hex(32))
                if SECRET.fullmatch(secret) is None:
                    raise ValueError(f"the store's value of {SECRET_KEY!r} is not a key")
                self._secret = bytes.fromhex(secret)
        return self._secret


class _Names:
    """The names that are being looked up, each under a lock of its own, so that none waits for another."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    def lock(self, name: str) -> trio.Lock:
        """Return the lock of a name."""
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = trio.Lock()
        return lock


# Servers that share a store also share its locks, whether they share names or not.
_stores: WeakKeyDictionary[Store, _Names] = WeakKeyDictionary()


def _names_of(store: Store) -> _Names:
    try:
        return _stores.setdefault(store, _Names())
    except TypeError:
        # The application's own class cannot be a key. Then two servers of this store must not share a ledger_id.
        return _Names()


async def _add(store: Store, key: str, value: str) -> str:
    """Store a value under a key that has none, and return the value that the key has then."""
    add: Callable[[str, str], Awaitable[str]] | None = getattr(store, "put_if_absent", None)
    if add is not None:
        return await add(key, value)
    # An application's store, which no other process uses.
    await store.put(key, value)
    return value


def _keyed(secret: bytes, ledger_id: str | None, account: str, token: bytes) -> str:
    """Return the digest of a token for one account at the servers of one ledger; None: at every server."""
    ledger = b"" if ledger_id is None else b"l" + ledger_id.encode()
    # Separated by lengths, so that no two sets of values give the same text.
    text = b"%d:%b%d:%b%b" % (len(ledger), ledger, len(account), account.encode(), token)
    return KEYED + _text(hmac_digest(secret, text, "sha256"))


def _are_equal(known: str, *digests: str) -> bool:
    """Compare a digest with others in constant time."""
    # All are compared before any() can stop at the first that is equal.
    equal = [compare_digest(known.encode(), digest.encode()) for digest in digests]
    return any(equal)


def _hashed(token: bytes) -> str:
    return _text(sha256(token).digest())


def _text(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode()
