"""``store``: checks a store, and copies a store in a file into a PostgreSQL database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial

import click

from ..log import escape
from ..money.tables import COMPONENT, steps_of
from ..stores.dialect import SQLITE
from ..stores.health import examine_store
from ..stores.schema import migrate
from .errors import COMMON, ENDED, Exit
from .output import Screen
from .parameters import Command, Group, epilog, json_option
from .signals import run_until_sigterm
from .stores import StoreChoice, StoreName, dialect_for, open_any_reader, open_any_store

__all__ = ["store"]

EXAMPLES = """
  trio-ledger-plugin store check wallet.db                               is it sound, and is anything left behind?
  trio-ledger-plugin store copy wallet.db postgresql://localhost/wallet  move to PostgreSQL, while nothing is open
"""
NEVER_COPIED = "the source and the copy must not be used at the same time: keep the file as a backup only"


@click.group(cls=Group, epilog=epilog(EXAMPLES, *COMMON, *ENDED), short_help="Check a store, or move it to PostgreSQL.")
def store() -> None:
    """Check a store, or move one from a file to PostgreSQL."""


@store.command(cls=Command, epilog=epilog(EXAMPLES, *COMMON, *ENDED), short_help="Check a store.")
@click.argument("db", type=StoreName(exists=True, dir_okay=False))
@json_option
def check(db: str, as_json: bool) -> int:
    """Check a store: its tables, its integrity or replication, its ledgers, and what has waited longest.

    DB is a file, or the URL of a PostgreSQL database. Nothing is written, and a program may have it open.
    """
    dialect = dialect_for(db)
    try:
        with open_any_reader(db) as connection:
            found = examine_store(connection, dialect)
    except dialect.error as error:
        raise click.ClickException(f"the store cannot be read: {error}") from error
    if as_json:
        click.echo(json.dumps(found))
    else:
        screen = Screen()
        ledgers = found.pop("ledgers")
        for name, value in found.items():
            screen.line(f"{name.replace('_', ' ')}: {escape(_shown(value))}")
        for ledger, known in ledgers.items():
            screen.line(f"ledger {escape(ledger)}: in use for {known['age']} s so far, journal {known['journal']}")
    return Exit.OK if found["sound"] else Exit.FAILED


def _shown(value: object) -> str:
    """Return a value that ``examine_store()`` has found, for people."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d %H:%M:%SZ}"
        case _:
            return str(value)


@store.command("copy", cls=Command, epilog=epilog(EXAMPLES, *COMMON, *ENDED), short_help="Copy a file into PostgreSQL.")
@click.argument("source", type=click.Path(exists=True, dir_okay=False))
@click.argument("target", type=StoreName(dir_okay=False))
@click.option("--replication", type=click.Choice(["checked", "trusted", "none"]), default="checked", show_default=True)
@json_option
def copy(source: str, target: str, replication: str, as_json: bool) -> int:
    """Copy a store exactly, from the file SOURCE into the empty PostgreSQL database TARGET.

    Nothing may have either open. Afterwards use only the copy: two programs that send the same journal would pay twice.
    """
    if dialect_for(target) is SQLITE:
        raise click.UsageError("TARGET must be a URL that begins with postgresql://")
    rows = run_until_sigterm(_copy, source, StoreChoice(target, replication))
    click.echo(json.dumps({"rows": rows}) if as_json else f"{rows} rows were copied; {NEVER_COPIED}")
    return Exit.OK


async def _copy(source: str, target: StoreChoice) -> int:
    from ..stores.postgres_copy import copy_store  # noqa: PLC0415 (psycopg is an extra)

    async with open_any_store(StoreChoice(source)) as old, open_any_store(target) as new:
        for each in (old, new):
            steps, dialect = steps_of(each.dialect), each.dialect
            await each.transaction(partial(migrate, component=COMPONENT, steps=steps, dialect=dialect))
        return await copy_store(old, new)
