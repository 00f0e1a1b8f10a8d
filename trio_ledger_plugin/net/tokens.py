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
from enum import Enum
from functools import partial
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as hmac_digest
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

import trio

from ..errors import InvalidServicesError, NotAcceptedError, StoreError, UnreachableError
from ..runtime.tasks import run_to_end
from .lookups import Lookups
from .names import NEW, Names
from .store_values import add, update

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.context import Context
    from ..services import Changes, Read, Store

__all__ = ["AccountTokens", "is_segment"]

SEGMENT: Final = re.compile(r"[A-Za-z0-9_~-]{1,255}")
HASH: Final = re.compile(r"[A-Za-z0-9_-]{43}")
# No name of an account contains a colon.
SECRET_KEY: Final = "lpi:token-key"  # noqa: S105 (the name under which it is stored)
SECRET: Final = re.compile(r"[0-9a-f]{64}")
KEYED: Final = "hmac-sha256:"
# How long a store without transactions may take to store a name whose client has hung up.
STORE_SECONDS: Final = 1.0


def is_segment(name: str) -> bool:
    """Whether a name can be an account's: one segment of an ILP address (RFC-0015)."""
    return SEGMENT.fullmatch(name) is not None


class Verdict(Enum):
    """What is known of a token.

    Attributes:
        RIGHT: It is the account's.
        WRONG: The account has another one.
        TAKEN: The name was free and is the token's now.
        KEPT: The same, and the name was reserved for the token.
        AGAIN: The token that has taken the name is shown for the second time.
        FULL: The name is free, and no further name can be taken.
    """

    RIGHT = "right"
    WRONG = "wrong"
    TAKEN = "taken"
    KEPT = "kept"
    AGAIN = "again"
    FULL = "full"


class AccountTokens:
    """Checks the credentials of the clients of a server of many accounts.

    Args:
        store: Keeps the digests of the tokens; None if there is no store.
        generate_account: The option of that name.
        context: What the parts of the plugin share.
        is_used: Returns whether something was sent over the connections of an account; None if it has none.

    Attributes:
        names: The names in the store.

    Raises:
        InvalidServicesError: ``generate_account`` is False and there is no store.
    """

    def __init__(
        self,
        store: Store | None,
        generate_account: bool | None,
        context: Context,
        is_used: Callable[[str], bool | None],
    ) -> None:
        if generate_account is False and store is None:
            raise InvalidServicesError("store: missing, generate_account=False needs one to keep the accounts' tokens")
        self._store = None if generate_account else store
        self._needs_username = generate_account is False
        self._log = context.log
        self._counters = context.counters
        self._ledger_id = ledger_id = context.options.ledger_id
        self._secret: bytes | None = None
        self._locks = _Locks() if self._store is None else _locks_of(self._store)
        self.names: Names | None = None
        self._lookups: Lookups | None = None
        if self._store is not None:
            # A store's key has no NUL character.
            ending = ledger_id.replace("%", "%25").replace("\0", "%00")
            forgets = hasattr(store, "update")
            self._lookups = Lookups(context.tasks, self._store) if forgets else None
            self.names = Names(context, ending, self._store, is_used, forgets=forgets)

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
            UnreachableError: The name is free, and the server remembers too many accounts to take another.
            StoreError: The store failed.

        Cancellation: A new account may have been stored.
        """
        assert self._store is not None
        assert self.names is not None
        try:
            verdict = await self._look_up(self._store, self.names, account, token)
        except Exception as error:
            self._log.once().error("cannot look up the token of account %s: %o", account, error)
            raise StoreError("the store failed") from error
        if verdict is Verdict.WRONG:
            raise NotAcceptedError("invalid auth_token")
        if verdict is Verdict.FULL:
            self._counters.links_refused += 1
            raise UnreachableError("this server remembers too many accounts; try again later")

    async def _look_up(self, store: Store, names: Names, account: str, token: bytes) -> Verdict:
        secret = await self._get_secret(store)
        await names.load()
        own, shared = _keyed(secret, self._ledger_id, account, token), _keyed(secret, None, account, token)

        def decide(read: Read) -> tuple[Verdict, Changes]:
            return _judge(account, names, read, secret, own, shared, _hashed(token))

        note = partial(_note, names, account)
        if self._lookups is not None:
            return await self._lookups.run(decide, note)
        verdicts: list[Verdict] = []

        async def judge() -> None:
            verdicts.append(await update(store, decide))
            note(verdicts[0])

        # Of two clients that ask for the same new name at once, one may get it. A name that is stored has to be counted
        # although its client may have hung up.
        async with self._locks.lock(account):
            await run_to_end(judge, STORE_SECONDS)
        return verdicts[0]

    async def _get_secret(self, store: Store) -> bytes:
        """Return the key of the digests; the first server that uses the store makes it.

        Raises:
            ValueError: The store has another value in its place.
        """
        if self._secret is None:
            async with self._locks.lock(SECRET_KEY):
                secret = await store.get(SECRET_KEY) or await add(store, SECRET_KEY, secrets.token_hex(32))
                if SECRET.fullmatch(secret) is None:
                    raise ValueError(f"the store's value of {SECRET_KEY!r} is not a key")
                self._secret = bytes.fromhex(secret)
        return self._secret


class _Locks:
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
_stores: WeakKeyDictionary[Store, _Locks] = WeakKeyDictionary()


def _locks_of(store: Store) -> _Locks:
    try:
        return _stores.setdefault(store, _Locks())
    except TypeError:
        # The application's own class cannot be a key. Then two servers of this store must not share a ledger_id.
        return _Locks()


def _note(names: Names, account: str, verdict: Verdict) -> None:
    """Note what the store has now, whether the client is still there or not."""
    if verdict in (Verdict.TAKEN, Verdict.KEPT):
        names.taken(account, stays=verdict is Verdict.KEPT or not names.forgets)
    elif verdict is Verdict.AGAIN:
        names.kept(account)


def _judge(
    account: str, names: Names, read: Read, secret: bytes, digest: str, shared_digest: str, hashed: str
) -> tuple[Verdict, Changes]:
    """Judge a token by the values of the store; return the verdict, and what the store is to have.

    Args:
        account: The account.
        names: The names in the store.
        read: Returns the values of keys.
        secret: The key of the digests.
        digest: The token's digest for the account at servers with this ledger id.
        shared_digest: Its digest for the account at every server of the store.
        hashed: Its plain digest.
    """
    own, plain, shared = names.own_key(account), f"{account}:token", f"{account}:hashed-token"
    known, plain_token, reserved = read((own, plain, shared))
    if known is not None:
        if not _are_equal(known.removeprefix(NEW), digest):
            return Verdict.WRONG, {}
        # A name that is used again is never forgotten.
        return (Verdict.AGAIN, {own: digest}) if known.startswith(NEW) else (Verdict.RIGHT, {})
    changes: dict[str, str | None] = {}
    if plain_token is not None:
        # An early ilp-plugin-mini-accounts stored the token itself.
        changes[plain] = None
        if reserved is None and plain_token:
            reserved = changes[shared] = _keyed(secret, None, account, plain_token.encode())
    if reserved is not None:
        if not _are_equal(reserved, hashed, shared_digest):
            return Verdict.WRONG, changes
        # First, and it stays: the name is reserved at the other servers of this store as well.
        return Verdict.KEPT, {shared: shared_digest} | changes | {own: digest, shared: shared_digest}
    if HASH.fullmatch(account):
        # A name that looks like a hash belongs to the token with that hash; there is nothing to store.
        return (Verdict.RIGHT if _are_equal(account, hashed) else Verdict.WRONG), changes
    if names.is_full:
        return Verdict.FULL, changes
    return Verdict.TAKEN, changes | {own: NEW + digest if names.forgets else digest}


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
