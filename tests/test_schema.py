"""The tables of a store are created once, upgraded by a newer version, and left alone by an older one."""

import sqlite3
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_ledger_plugin.errors import StoreError
from trio_ledger_plugin.stores import open_sqlite_store
from trio_ledger_plugin.stores.schema import VALUES, add_functions, migrate

STEPS = (
    ("CREATE TABLE payments (name TEXT)",),
    ("ALTER TABLE payments ADD COLUMN amount TEXT NOT NULL DEFAULT '0'", "CREATE INDEX by_amount ON payments (amount)"),
    ("UPDATE payments SET amount = lpi_add(amount, '1')",),
)


async def upgraded_to(path, steps):
    """Upgrade a file's payments to a version, and return their rows."""

    def work(connection):
        migrate(connection, "payments", steps)
        return connection.execute("SELECT * FROM payments").fetchall()

    async with open_sqlite_store(path) as store:
        return await store.transaction(work)


@pytest.mark.parametrize("known", [1, 2, 3])
async def test_upgrade_keeps_the_data_of_an_older_version(tmp_path, known):
    path = tmp_path / "store.db"
    await upgraded_to(path, STEPS[:known])
    async with open_sqlite_store(path) as store:
        await store.transaction(lambda c: c.execute("INSERT INTO payments (name) VALUES ('old')").rowcount)
    assert await upgraded_to(path, STEPS) == [("old", "0" if known == 3 else "1")]
    # A second time changes nothing.
    assert await upgraded_to(path, STEPS) == [("old", "0" if known == 3 else "1")]


async def test_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "store.db"
    await upgraded_to(path, STEPS)
    with pytest.raises(StoreError, match=r"'payments' have version 3, but this program .* up to 2: .* upgrade"):
        await upgraded_to(path, STEPS[:2])
    assert await upgraded_to(path, STEPS) == []


async def test_failed_upgrade_leaves_the_older_version(tmp_path):
    path = tmp_path / "store.db"
    await upgraded_to(path, STEPS[:1])
    with pytest.raises(sqlite3.OperationalError, match="syntax"):
        await upgraded_to(path, (*STEPS, ("NONSENSE",)))
    assert await upgraded_to(path, STEPS[:1]) == []


async def test_each_component_has_its_own_version(tmp_path):
    path = tmp_path / "store.db"
    await upgraded_to(path, STEPS)
    async with open_sqlite_store(path) as store:
        versions = await store.transaction(lambda c: dict(c.execute("SELECT component, version FROM lpi_schema")))
    assert versions == {"payments": 3, "values": len(VALUES)}


def test_component_without_steps_is_not_recorded():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, "nothing", ())
        assert connection.execute("SELECT count(*) FROM lpi_schema").fetchone() == (0,)


@given(left=st.integers(-(10**40), 10**40), right=st.integers(-(10**40), 10**40))
def test_sums_are_exact_beyond_sqlite_integers(left, right):
    with closing(sqlite3.connect(":memory:")) as connection:
        add_functions(connection)
        assert connection.execute("SELECT lpi_add(?, ?)", (str(left), str(right))).fetchone() == (str(left + right),)
        assert connection.execute("SELECT lpi_add(?, NULL), lpi_add(NULL, ?)", (str(left), str(right))).fetchone() == (
            None,
            None,
        )
