"""What an operator asks about a store: is it sound, and has something been left behind?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .dialect import SQLITE

if TYPE_CHECKING:
    from .dialect import Connection, Dialect

__all__ = ["examine_store"]

INTEGRITY: Final = "PRAGMA integrity_check(5)"
STANDBYS: Final = "SHOW synchronous_standby_names"
LEDGERS: Final = "SELECT ledger, age, journal FROM lpi_ledgers"
OLDEST_TO_SEND: Final = "SELECT min(id) FROM lpi_to_send"
OLDEST_TO_DELIVER: Final = "SELECT min(id) FROM lpi_to_deliver"
CREATED: Final = "SELECT created FROM lpi_transfers WHERE id = ?"


def examine_store(connection: Connection, dialect: Dialect) -> dict[str, Any]:
    """Return what is known of a store with a journal; ``sound`` is False if its file is damaged.

    Args:
        connection: A connection that may only read.
        dialect: The database's dialect.
    """
    found: dict[str, Any] = {"sound": True}
    if dialect is SQLITE:
        problems = [row[0] for row in connection.execute(INTEGRITY).fetchall()]
        found |= {"sound": problems == ["ok"], "integrity": "; ".join(problems)}
    else:
        found["synchronous_standby_names"] = connection.execute(STANDBYS).fetchone()[0]
    found["ledgers"] = {
        ledger: {"age": round(age), "journal": journal}
        for ledger, age, journal in sorted(connection.execute(LEDGERS).fetchall())
    }
    for name, query in (("oldest_to_send", OLDEST_TO_SEND), ("oldest_to_deliver", OLDEST_TO_DELIVER)):
        number = connection.execute(query).fetchone()[0]
        row = None if number is None else connection.execute(dialect.statement(CREATED), (number,)).fetchone()
        found[name] = None if row is None else row[0]
    return found
