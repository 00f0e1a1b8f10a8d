"""The values of a store in SQL: text under keys.

Every method runs inside the caller's transaction, on a thread of the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..services import Changes, Read
    from .dialect import Connection, Dialect

__all__ = ["Update", "Values"]

T = TypeVar("T")

#: How many values can be read at once.
MOST_KEYS: Final = 3
GET: Final = "SELECT value FROM lpi_values WHERE key = ?"
GET_SEVERAL: Final = "SELECT key, value FROM lpi_values WHERE key IN (?, ?, ?)"
PUT: Final = "INSERT INTO lpi_values VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value"
ADD: Final = "INSERT INTO lpi_values VALUES (?, ?) ON CONFLICT (key) DO NOTHING"
REPLACE: Final = "UPDATE lpi_values SET value = ? WHERE key = ? AND value = ?"
REMOVE: Final = "DELETE FROM lpi_values WHERE key = ? AND value = ?"
DELETE: Final = "DELETE FROM lpi_values WHERE key = ?"


class Update(Generic[T]):
    """A work that reads values and changes some of them, or none.

    Args:
        values: The statements.
        decide: Decides by what it reads; ``WorkerStore.update`` documents it.
    """

    def __init__(self, values: Values, decide: Callable[[Read], tuple[T, Changes]]) -> None:
        self._values = values
        self._decide = decide

    def __call__(self, connection: Connection) -> T:
        """Read, decide and change, inside a transaction."""
        return self._values.update(connection, self._decide)

    def look(self, connection: Connection) -> tuple[T] | None:
        """Read and decide, outside a transaction; return the result, or None if something has to be changed."""
        result, changes, _ = self._values.look(connection, self._decide)
        return None if changes else (result,)


class Values:
    """The statements about values, as a database takes them.

    Args:
        dialect: The database's dialect.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._get, self._get_several = dialect.statement(GET), dialect.statement(GET_SEVERAL)
        self._put, self._add = dialect.statement(PUT), dialect.statement(ADD)
        self._replace, self._remove = dialect.statement(REPLACE), dialect.statement(REMOVE)
        self._delete = dialect.statement(DELETE)

    def get(self, connection: Connection, key: str) -> str | None:
        """Return the value under a key; None if there is none."""
        row = connection.execute(self._get, (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, connection: Connection, key: str, value: str) -> None:
        """Store a value under a key, replacing an earlier one."""
        connection.execute(self._put, (key, value))

    def add(self, connection: Connection, key: str, value: str) -> str:
        """Store a value under a key that has none, and return the key's value."""
        # A key that has a value costs one statement, and no write.
        known = self.get(connection, key)
        while known is None:
            connection.execute(self._add, (key, value))
            known = self.get(connection, key)
        return known

    def delete(self, connection: Connection, key: str) -> None:
        """Remove a key and its value."""
        connection.execute(self._delete, (key,))

    def update(self, connection: Connection, decide: Callable[[Read], tuple[T, Changes]]) -> T:
        """Read values, and change some of them; start again if another process has changed one of those meanwhile."""
        while True:
            result, changes, seen = self.look(connection, decide)
            if all(self._change(connection, key, seen[key], value) for key, value in changes.items()):
                return result

    def look(
        self, connection: Connection, decide: Callable[[Read], tuple[T, Changes]]
    ) -> tuple[T, Changes, dict[str, str | None]]:
        """Read values; return what ``decide`` returns, and the values."""
        seen: dict[str, str | None] = {}

        def read(keys: Sequence[str]) -> list[str | None]:
            seen.update(dict.fromkeys(keys))
            # The same statement for any number of keys: one more key costs less than one more statement.
            padded = (*keys, *(keys[0] for _ in range(MOST_KEYS - len(keys))))
            seen.update(connection.execute(self._get_several, padded).fetchall())
            return [seen[key] for key in keys]

        return *decide(read), seen

    def _change(self, connection: Connection, key: str, seen: str | None, value: str | None) -> bool:
        """Change one value; return False if it is no longer the one that was read."""
        if seen is None:
            return value is None or bool(connection.execute(self._add, (key, value)).rowcount)
        if value is None:
            return bool(connection.execute(self._remove, (key, seen)).rowcount)
        return bool(connection.execute(self._replace, (value, key, seen)).rowcount)
