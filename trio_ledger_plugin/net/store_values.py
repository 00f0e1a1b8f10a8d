"""Reading and changing values of any store: in one transaction where the store can."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..runtime.tasks import run_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ..services import Changes, Read, Store

__all__ = ["add", "update"]

T = TypeVar("T")


class _MissingError(Exception):
    """Values are needed that are not read yet."""


async def update(store: Store, decide: Callable[[Read], tuple[T, Changes]]) -> T:
    """Read values and change some of them; ``WorkerStore.update`` documents the arguments.

    In a store without that method, the changes are made one after the other, and only ``put_if_absent`` protects them
    from those of others.

    Cancellation: Some of the changes may be made.
    """
    method: Callable[[Callable[[Read], tuple[T, Changes]]], Awaitable[T]] | None = getattr(store, "update", None)
    if method is not None:
        return await method(decide)
    values: dict[str, str | None] = {}
    while True:
        missing: list[str] = []

        def read(keys: Sequence[str], missing: list[str] = missing) -> list[str | None]:
            missing += [key for key in keys if key not in values]
            if missing:
                raise _MissingError
            return [values[key] for key in keys]

        try:
            result, changes = decide(read)
        except _MissingError:
            # At the same time, so that they share one turn at the store.
            await run_all([partial(_get, store, key, values) for key in missing])
            continue
        for key, value in changes.items():
            if value is None:
                await store.delete(key)
            elif values[key] is not None:
                await store.put(key, value)
            elif await add(store, key, value) != value:
                values.clear()
                break
        else:
            return result


async def _get(store: Store, key: str, values: dict[str, str | None]) -> None:
    values[key] = await store.get(key)


async def add(store: Store, key: str, value: str) -> str:
    """Store a value under a key that has none, and return the value that the key has then.

    Cancellation: The value may be stored.
    """
    method: Callable[[str, str], Awaitable[str]] | None = getattr(store, "put_if_absent", None)
    if method is not None:
        return await method(key, value)
    # An application's store, which no other process uses.
    await store.put(key, value)
    return value
