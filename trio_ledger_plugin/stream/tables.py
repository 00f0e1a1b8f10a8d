"""The tables of packets of STREAM that were accepted, and how earlier versions are upgraded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..stores.schema import Steps

__all__ = ["COMPONENT", "STEPS"]

COMPONENT: Final = "stream"
STEPS: Final[Steps] = (
    (
        # Numbers and amounts have up to 64 bits without a sign: more than a database's integers.
        """CREATE TABLE lpi_stream_packets (
            destination TEXT NOT NULL,
            sequence TEXT NOT NULL,
            amount TEXT NOT NULL,
            condition BLOB NOT NULL,
            PRIMARY KEY (destination, sequence)
        ) WITHOUT ROWID""",
        """CREATE TABLE lpi_stream_totals (
            destination TEXT PRIMARY KEY,
            total TEXT NOT NULL
        ) WITHOUT ROWID""",
    ),
    (
        # How many packets of the connection are in the other table, when the last one came, and its highest number. Up
        # to the number in refused_to, packets are not accepted any more.
        "ALTER TABLE lpi_stream_totals ADD COLUMN kept INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE lpi_stream_totals ADD COLUMN changed REAL NOT NULL DEFAULT 0",
        "ALTER TABLE lpi_stream_totals ADD COLUMN highest TEXT NOT NULL DEFAULT '0'",
        "ALTER TABLE lpi_stream_totals ADD COLUMN refused_to TEXT NOT NULL DEFAULT '0'",
        """UPDATE lpi_stream_totals SET
            kept = (SELECT count(*) FROM lpi_stream_packets AS p WHERE p.destination = lpi_stream_totals.destination),
            highest = (SELECT sequence FROM lpi_stream_packets AS p WHERE p.destination = lpi_stream_totals.destination
                ORDER BY length(sequence) DESC, sequence DESC LIMIT 1)""",
        "CREATE INDEX lpi_stream_kept ON lpi_stream_totals (changed) WHERE kept > 0",
    ),
)
