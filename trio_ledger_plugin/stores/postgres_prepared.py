"""Statements of this package as PostgreSQL runs them: prepared once on each connection, and then sent as they are.

The tables of this package have only text, whole numbers, floating-point numbers and bytes. For these, a call of libpq
costs a fraction of what a cursor does that converts every type. Works of applications use cursors as usual.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, Final, Self

import psycopg
from psycopg.pq import ConnStatus, ExecStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg.pq.abc import PGconn, PGresult

__all__ = ["Prepared", "Rows", "check", "encode_all", "prepare", "run_prepared", "run_text", "text_array"]

_numbers = count(1)
DONE: Final[frozenset[int]] = frozenset((ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK))

# How a value of each of PostgreSQL's types is read: bigint, integer, double precision, and bytea in hexadecimal.
READ: Final[dict[int, Callable[[bytes], Any]]] = {
    20: int,
    23: int,
    701: float,
    17: lambda text: bytes.fromhex(text[2:].decode("ascii")),
}


class Prepared(str):
    """A statement of this package, with ``%s`` for each value.

    Attributes:
        name: The name under which connections have prepared it.
        numbered: The statement as PostgreSQL takes it.
    """

    __slots__ = ("name", "numbered")

    def __new__(cls, text: str) -> Self:
        """Return the statement of a text with ``%s`` for each value."""
        statement = super().__new__(cls, text)
        parts = text.split("%s")
        numbered = parts[0] + "".join(f"${number}{part}" for number, part in enumerate(parts[1:], 1))
        statement.name = f"lpi_{next(_numbers)}".encode()
        statement.numbered = numbered.encode()
        return statement

    name: bytes
    numbered: bytes


class Rows:
    """What a statement has returned, as a cursor gives it.

    Args:
        result: The result.
    """

    __slots__ = ("_next", "_result")

    def __init__(self, result: PGresult) -> None:
        self._result = result
        self._next = 0

    @property
    def rowcount(self) -> int:
        """How many rows were returned or changed."""
        return self._result.command_tuples or 0

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row; None at the end."""
        result, row = self._result, self._next
        if row >= result.ntuples:
            return None
        self._next += 1
        return tuple(_read(result, row, column) for column in range(result.nfields))

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        return list(iter(self.fetchone, None))


def run_prepared(
    pgconn: PGconn, known: set[bytes], statement: Prepared, values: tuple[str | bytes | float | None, ...]
) -> Rows:
    """Run a statement, which is prepared first if the connection does not know it.

    Args:
        pgconn: The connection of libpq.
        known: The names of the statements that it has prepared.
        statement: The statement.
        values: Its values.

    Raises:
        psycopg.Error: It failed.
    """
    prepare(pgconn, known, statement)
    return Rows(check(pgconn, pgconn.exec_prepared(statement.name, encode_all(values))))


def prepare(pgconn: PGconn, known: set[bytes], statement: Prepared) -> None:
    """Prepare a statement on a connection that does not know it.

    Raises:
        psycopg.Error: It failed.
    """
    if statement.name not in known:
        check(pgconn, pgconn.prepare(statement.name, statement.numbered))
        known.add(statement.name)


def encode_all(values: tuple[str | bytes | float | None, ...]) -> list[Any]:
    """Return the values of a statement as libpq takes them."""
    return [_encode(value) for value in values]


def run_text(pgconn: PGconn, text: bytes) -> bytes:
    """Run one or several statements without values in one round trip, and return the status of the last one.

    Raises:
        psycopg.Error: One failed, and those after it were not run.
    """
    return check(pgconn, pgconn.exec_(text)).command_status or b""


def text_array(texts: Iterable[str]) -> str:
    """Return the value of an array of text."""
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"


def _encode(value: str | bytes | float | None) -> bytes | None:
    if value is None:
        return None
    if isinstance(value, bytes):
        return b"\\x" + value.hex().encode()
    text = value if isinstance(value, str) else repr(value)
    if "\0" in text:
        raise psycopg.DataError("PostgreSQL text has no NUL character")
    return text.encode()


def _read(result: PGresult, row: int, column: int) -> object:
    value = result.get_value(row, column)
    if value is None:
        return None
    read = READ.get(result.ftype(column))
    return value.decode() if read is None else read(value)


def check(pgconn: PGconn, result: PGresult) -> PGresult:
    """Return a result that is none of an error.

    Raises:
        psycopg.Error: It is one.
    """
    if result.status in DONE:
        return result
    if pgconn.status == ConnStatus.BAD:
        raise psycopg.OperationalError(pgconn.get_error_message())
    raise psycopg.errors.error_from_result(result)
