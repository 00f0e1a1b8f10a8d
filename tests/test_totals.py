"""What each account has sent and received in all: exact at any size, and bounded in how much it remembers."""

import sqlite3

import pytest

from trio_ledger_plugin import MoneyLevel
from trio_ledger_plugin.money.totals import TABLE, AccountTotals
from trio_ledger_plugin.stores.schema import add_functions

KEYED, PLAIN = MoneyLevel.KEYED, MoneyLevel.PLAIN


@pytest.fixture
def connection():
    connection = sqlite3.connect(":memory:")
    add_functions(connection)
    connection.execute(TABLE)
    yield connection
    connection.close()


def test_an_account_that_nobody_knows_has_nothing_and_is_plain(connection):
    balances = AccountTotals("main", max_keys=10)
    assert balances.sums(connection, "a") == (0, 0)
    assert balances.level(connection, "a") is PLAIN


def test_sums_are_exact_past_what_sqlite_can_count(connection):
    balances, most = AccountTotals("main", max_keys=1000), 2**64 - 1
    for _ in range(100):
        assert balances.credit(connection, "a", str(most), KEYED)
        balances.count_sent(connection, "a", str(most))
    assert balances.sums(connection, "a") == (100 * most, 100 * most)
    balances.take_back(connection, "a", str(most))
    assert balances.sums(connection, None) == (100 * most, 99 * most)


def test_accounts_and_ledgers_are_kept_apart(connection):
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


def test_no_more_keys_are_kept_than_agreed(connection):
    balances = AccountTotals("main", max_keys=2)
    assert [balances.credit(connection, "a", "1", PLAIN) for _ in range(3)] == [True, True, False]
    assert balances.sums(connection, "a") == (0, 2)
    assert balances.credit(connection, "b", "1", PLAIN)
    balances.forget_keys(connection, "a", 1)
    assert [balances.credit(connection, "a", "1", PLAIN) for _ in range(2)] == [True, False]


def test_receiving_at_keyed_makes_an_account_keyed_and_plain_does_not_undo_it(connection):
    balances = AccountTotals("main", max_keys=10)
    balances.credit(connection, "a", "1", KEYED)
    balances.credit(connection, "a", "1", PLAIN)
    assert balances.level(connection, "a") is KEYED
    balances.set_level(connection, "a", PLAIN)
    assert balances.level(connection, "a") is PLAIN
    assert balances.sums(connection, "a") == (0, 2)


def test_an_account_that_is_full_is_not_made_keyed_by_what_it_refuses(connection):
    balances = AccountTotals("main", max_keys=1)
    assert balances.credit(connection, "a", "1", PLAIN)
    assert not balances.credit(connection, "a", "1", KEYED)
    assert balances.level(connection, "a") is PLAIN
