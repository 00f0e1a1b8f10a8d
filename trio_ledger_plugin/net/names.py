"""The names of a server's accounts that are in its store: how many there are, and which of them can be forgotten.

Anybody may take a name that is free. So a name that was used by one connection only, which did nothing, is forgotten
once ten thousand others were taken. The store has the names for that in numbered places: a new name goes to a place by
chance, and the name that was there is forgotten. A name stays for good once its token is shown a second time, or once
something was sent over its connection in either direction. In an application's own store, which has no ``update``, all
names stay.

How many names there are is in the store as well. After a restart, the number may lack the names of the last seconds,
and new names among them stay.
"""

from __future__ import annotations

from functools import partial
from random import randrange
from typing import TYPE_CHECKING, Final

import trio

from .store_values import update

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runtime.context import Context
    from ..services import Changes, Read, Store

__all__ = ["NEW", "PLACES", "Names"]

#: Stands before the digest of a name that may be forgotten.
NEW: Final = "new "
#: How many names that may be forgotten are remembered.
PLACES: Final = 10_000
# How many names are handled in one transaction.
AT_ONCE: Final = 50
# How often it is recorded which names are new, and which were used, in seconds.
RECORD_SECONDS: Final = 5.0


class Names:
    """The names at one server.

    Args:
        context: What the parts of the plugin share.
        ending: What distinguishes the server's keys in the store.
        store: The store.
        is_used: Returns whether something was sent over the connections of an account; None if it has none.
        forgets: Whether names are forgotten.

    Attributes:
        forgets: Whether names are forgotten.
    """

    def __init__(
        self, context: Context, ending: str, store: Store, is_used: Callable[[str], bool | None], *, forgets: bool
    ) -> None:
        self.forgets: bool = forgets
        self._context = context
        self._ending = ending
        self._store = store
        self._is_used = is_used
        self._most = context.options.max_accounts
        self._count = 0
        self._saved_count: int | None = None
        # New names that have no place yet, and used ones that the store does not know to be so.
        self._without_place: list[str] = []
        self._used: list[str] = []
        # New names that are connected and have done nothing, and until when a name may be so that its client has not
        # connected: some hang up while the store is asked.
        self._watched: dict[str, float] = {}
        self._recording = False
        context.timers.periodic.append(self)

    @property
    def is_full(self) -> bool:
        """Whether no further name can be taken."""
        return self._count >= self._most

    def own_key(self, name: str) -> str:
        """Return the key of the digest of a name's token."""
        return f"{name}:token:{self._ending}"

    async def load(self) -> None:
        """Read how many names there are.

        Raises:
            StoreError: The store failed.

        Cancellation: Safe at any time.
        """
        if self._saved_count is None:
            count = await update(self._store, self._read_count)
            if self._saved_count is None:
                self._count += count
                self._saved_count = count

    def _read_count(self, read: Read) -> tuple[int, Changes]:
        (known,) = read((self._count_key,))
        return int(known or 0), {}

    @property
    def _count_key(self) -> str:
        return f"lpi:names:{self._ending}"

    def taken(self, name: str, *, stays: bool) -> None:
        """Count a name that was free.

        Args:
            name: The name.
            stays: Whether it is not to be forgotten.
        """
        self._count += 1
        if not stays:
            self._without_place.append(name)
            self._watched[name] = trio.current_time() + self._context.options.auth_timeout

    def kept(self, name: str) -> None:
        """Handle that a name's token was shown a second time."""
        self._watched.pop(name, None)

    def left(self, name: str, *, used: bool) -> None:
        """Handle that an account has lost its last connection.

        Args:
            name: The account's name.
            used: Whether something was sent over its connections.
        """
        if name in self._watched:
            del self._watched[name]
            if used:
                self._used.append(name)

    def fire(self, now: float) -> float:
        """Start a task that records what has changed; return when to do it next."""
        for name, until in tuple(self._watched.items()):
            is_used = self._is_used(name)
            if is_used:
                self._used.append(name)
            if is_used or (is_used is None and until < now):
                del self._watched[name]
        has_changed = self._without_place or self._used or self._count != self._saved_count
        if has_changed and self._saved_count is not None and not self._recording:
            self._context.tasks.spawn(self._record)
        return now + RECORD_SECONDS

    async def _record(self) -> None:
        self._recording = True
        try:
            await self._record_names()
            await self._save_count()
        except Exception as error:  # noqa: BLE001 (an application's store may raise any)
            self._context.log.once().warn("cannot record which names are used: %o", error)
        finally:
            self._recording = False

    async def _record_names(self) -> None:
        again: list[str] = []
        try:
            while self._without_place or self._used:
                again += await self._record_some()
        finally:
            # Also when the store fails: a name without a place would never be forgotten.
            self._without_place += again

    async def _record_some(self) -> list[str]:
        """Record at most ``AT_ONCE`` names of each kind; return those that need another place."""
        used, self._used = self._used[:AT_ONCE], self._used[AT_ONCE:]
        placed, self._without_place = self._without_place[:AT_ONCE], self._without_place[AT_ONCE:]
        places = [(randrange(PLACES), name) for name in placed]  # noqa: S311 (it is no secret)
        try:
            forgotten, connected = await update(self._store, partial(self._decide, used, places))
        except BaseException:
            self._used += used
            self._without_place += placed
            raise
        self._count -= forgotten
        return connected

    async def _save_count(self) -> None:
        count = self._count

        def decide(read: Read) -> tuple[None, Changes]:
            read((self._count_key,))
            return None, {self._count_key: str(count)}

        await update(self._store, decide)
        self._saved_count = count

    def _decide(
        self, used: list[str], places: list[tuple[int, str]], read: Read
    ) -> tuple[tuple[int, list[str]], Changes]:
        """Return how many names are forgotten, those that need another place, and the changes of the store."""
        changes: dict[str, str | None] = {}
        for name in used:
            (digest,) = read((self.own_key(name),))
            if digest is not None and digest.startswith(NEW):
                changes[self.own_key(name)] = digest.removeprefix(NEW)
        forgotten, again = 0, []
        for place, name in places:
            place_key = f"lpi:new:{self._ending}:{place}"
            former = changes[place_key] if place_key in changes else read((place_key,))[0]
            changes[place_key] = name
            if former is None or former == name:
                continue
            key = self.own_key(former)
            digest = changes[key] if key in changes else read((key,))[0]
            if digest is None or not digest.startswith(NEW):
                continue
            if former in self._watched:
                # It is connected, and gets another place.
                again.append(former)
            else:
                changes[key] = None
                forgotten += 1
        return (forgotten, again), changes
