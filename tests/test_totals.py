"""The totals of each account: exact at any size, with a bounded number of kept keys."""

import sqlite3

import pytest
from trio_ledger_plugin.money.totals import TABLE, AccountTotals

from trio_ledger_plugin import MoneyLevel
from trio_ledger_plugin.stores.schema import add_functions

KEYED, PLAIN = MoneyLevel.KEYED, MoneyLevel.PLAIN


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:")
    add_functions(connection)
    connection.execute(TABLE)
    yield connection
    connection.close()


def test_unknown_account_has_zero_totals_and_is_plain(connection):
    totals = AccountTotals("main", max_keys=10)
    assert totals.sums(connection, "a") == (0, 0)
    assert totals.level(connection, "a") is PLAIN


def test_sums_are_exact_beyond_sqlite_integers(connection):
    totals, most = AccountTotals("main", max_keys=1000), 2**64 - 1
    for _ in range(100):
        assert totals.credit(connection, "a", str(most), KEYED)
        totals.count_sent(connection, "a", str(most))
    assert totals.sums(connection, "a") == (100 * most, 100 * most)
    totals.take_back(connection, "a", str(most))
    assert totals.sums(connection, None) == (100 * most, 99 * most)


def test_accounts_and_ledgers_are_independent(connection):
    first, second = AccountTotals("first", max_keys=10), AccountTotals("second", max_keys=10)
    first.credit(connection, "a", "1", PLAIN)
    first.credit(connection, "b", "2", KEYED)
    second.credit(connection, "a", "4", PLAIN)
    second.count_sent(connection, "", "8")
    assert (first.sums(connection, "a"), first.sums(connection, "b"), first.sums(connection, None)) == (
        (0, 1),
        (0, 2),
        (0, 3),
    )
    assert (second.sums(connection, None), second.sums(connection, "")) == ((8, 4), (8, 0))
    assert [first.level(connection, name) for name in "ab"] == [PLAIN, KEYED]
    assert second.level(connection, "b") is PLAIN


def test_number_of_kept_keys_is_bounded(connection):
    totals = AccountTotals("main", max_keys=2)
    assert [totals.credit(connection, "a", "1", PLAIN) for _ in range(3)] == [True, True, False]
    assert totals.sums(connection, "a") == (0, 2)
    assert totals.credit(connection, "b", "1", PLAIN)
    totals.forget_keys(connection, "a", 1)
    assert [totals.credit(connection, "a", "1", PLAIN) for _ in range(2)] == [True, False]


def test_account_that_received_at_keyed_stays_keyed(connection):
    totals = AccountTotals("main", max_keys=10)
    totals.credit(connection, "a", "1", KEYED)
    totals.credit(connection, "a", "1", PLAIN)
    assert totals.level(connection, "a") is KEYED
    totals.set_level(connection, "a", PLAIN)
    assert totals.level(connection, "a") is PLAIN
    assert totals.sums(connection, "a") == (0, 2)


def test_refused_transfer_does_not_make_an_account_keyed(connection):
    totals = AccountTotals("main", max_keys=1)
    assert totals.credit(connection, "a", "1", PLAIN)
    assert not totals.credit(connection, "a", "1", KEYED)
    assert totals.level(connection, "a") is PLAIN
