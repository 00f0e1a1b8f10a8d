"""Looks tokens up in a store; tokens that clients show at about the same time share a transaction.

A transaction costs several times as much as what is read and written in it for one client. So while one is under way,
further lookups are collected for the next.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import outcome
import trio

from ..errors import StoreError
from ..parking import Waiter, park
from .store_values import update

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..runtime.tasks import TaskGroup
    from ..services import Changes, Read, Store

__all__ = ["Lookups"]

T = TypeVar("T")
# How many lookups share a transaction.
AT_ONCE: Final = 64


class _Lookup(Waiter):
    """One lookup, and the task that waits for it."""

    __slots__ = ("_waiting", "decide", "note")

    def __init__(
        self,
        decide: Callable[[Read], tuple[Any, Changes]],
        note: Callable[[Any], None],
        waiting: dict[_Lookup, None],
    ) -> None:
        super().__init__()
        self.decide = decide
        self.note = note
        self._waiting = waiting
        waiting[self] = None

    def abandon(self, raise_cancel: object) -> trio.lowlevel.Abort:
        self._waiting.pop(self, None)
        return super().abandon(raise_cancel)


class Lookups:
    """The lookups in one store.

    Args:
        tasks: Owns the task that waits for the store.
        store: The store.
    """

    def __init__(self, tasks: TaskGroup, store: Store) -> None:
        self._tasks = tasks
        self._store = store
        self._waiting: dict[_Lookup, None] = {}
        self._running = False

    async def run(self, decide: Callable[[Read], tuple[T, Changes]], note: Callable[[T], None]) -> T:
        """Read values and change some of them, as ``store_values.update`` does.

        Args:
            decide: Reads and decides.
            note: Called with the result once the changes are made, also if the caller is cancelled meanwhile.

        Raises:
            StoreError: The store failed.

        Cancellation: The changes may be made; then ``note`` is called.
        """
        lookup = _Lookup(decide, note, self._waiting)
        if not self._running:
            self._running = True
            self._tasks.spawn(self._run)
        result: T = await park(lookup)
        return result

    async def _run(self) -> None:
        try:
            # What arrives in the same turn of the scheduler comes along.
            await trio.lowlevel.checkpoint()
            while self._waiting:
                batch = list(self._waiting)[:AT_ONCE]
                for lookup in batch:
                    del self._waiting[lookup]
                try:
                    results = await update(self._store, partial(_decide_all, batch))
                except Exception as error:  # noqa: BLE001 (an application's store may raise any)
                    for lookup in batch:
                        # An error for each: raising an exception changes its traceback.
                        lookup.wake(outcome.Error(_caused_by(error)))
                else:
                    for lookup, result in zip(batch, results, strict=True):
                        lookup.note(result)
                        lookup.wake(outcome.Value(result))
        finally:
            self._running = False


def _decide_all(batch: Sequence[_Lookup], read: Read) -> tuple[list[Any], Changes]:
    """Decide for each lookup by what the earlier ones have left."""
    changes: dict[str, str | None] = {}

    def read_changed(keys: Sequence[str]) -> list[str | None]:
        return [changes.get(key, value) for key, value in zip(keys, read(keys), strict=True)]

    results = []
    for lookup in batch:
        result, more = lookup.decide(read_changed)
        results.append(result)
        changes.update(more)
    return results, changes


def _caused_by(error: Exception) -> StoreError:
    failure = StoreError("the store failed")
    failure.__cause__ = error
    return failure
