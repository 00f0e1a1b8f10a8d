"""What the two ends leave on the disk, and whether it agrees."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen
from book import read_lines
from sending import BASE, is_refused

if TYPE_CHECKING:
    from end import Config
    from other_stores import OtherStores

__all__ = ["Account", "Records", "compare", "compare_totals"]


@frozen
class Account:
    """What one end has on the disk about one account.

    Attributes:
        outcomes: The application's own outcome of each amount that it asked for: done, refused or doubt.
        sent: The journal's state of each sent transfer.
        received: The amounts and states of the received transfers in the journal.
        mine: What the transactional handler wrote.
        applied: What another handler wrote.
        ever: What was credited in stores that are gone.
        lost: What was credited there and must never be credited again.
    """

    outcomes: dict[int, str]
    sent: dict[int, str]
    received: list[tuple[int, str]]
    mine: list[int]
    applied: list[int]
    ever: set[int]
    lost: set[int]

    def amounts(self, outcome: str) -> list[int]:
        return sorted(amount for amount, came in self.outcomes.items() if came == outcome)


class Records:
    """What one end has on the disk."""

    def __init__(self, config: Config, stores: OtherStores) -> None:
        self._home = home = Path(config.home)
        self._accounts = config.accounts
        self._ledgers = {config.ledger_of(account): account for account in config.accounts}
        self._stores = stores
        self._keyed = config.keyed
        self._rows: list[tuple[str, str, str, str, int, str]] = []
        self._mine: list[tuple[str, int]] = []
        if (home / "store.sqlite3").exists():
            connection = sqlite3.connect(home / "store.sqlite3")
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = connection.execute("SELECT ledger, account, direction, key, amount, state FROM lpi_transfers")
            self._rows = [(*row[:4], int(row[4]), row[5]) for row in rows if row[0] in self._ledgers]
            if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'mine'").fetchone():
                rows = connection.execute("SELECT account, amount FROM mine")
                self._mine = [(account, int(amount)) for account, amount in rows]
            connection.close()

    def of(self, account: str) -> Account:
        outcomes: dict[int, str] = {}
        for word, amount in read_lines(self._home / f"asked-{account}"):
            known = outcomes.get(int(amount), "ask")
            assert known in ("ask", word), f"{amount} was {known}, and then {word}"
            outcomes[int(amount)] = word
        mine = [row for row in self._rows if self._name(*row[:2]) == account]
        return Account(
            outcomes=outcomes,
            sent={amount: state for _, _, direction, _, amount, state in mine if direction == "out"},
            received=sorted((amount, state) for _, _, direction, _, amount, state in mine if direction == "in"),
            mine=sorted(amount for name, amount in self._mine if self._owns(name, account, amount)),
            applied=sorted(
                int(amount) for _, amount in read_lines(self._home / "applied") if self._owns("", account, int(amount))
            ),
            ever={amount for name, amount in self._stores.ever if name == account},
            lost={amount for name, amount in self._stores.lost if name == account},
        )

    def compare_with(self, totals: Counter[str]) -> None:
        """Compare the totals that the plugins tell with the rows: no clock makes an end forget any of them yet."""
        sums = Counter[str]()
        for _, _, direction, _, amount, state in self._rows:
            sums[f"{direction} {state}"] += amount
        if totals and self._keyed:
            assert totals["sent"] == sums["out acked"]
            assert totals["received"] == sums["in applied"] + sums["in delivered"]
            assert totals["in_doubt"] == sums["out sent"] + sums["out in_doubt"]

    def _name(self, ledger: str, account: str) -> str:
        """Return the account that a row is of: a server's has its name, a client's is in a ledger of that name."""
        return account or self._ledgers[ledger]

    def _owns(self, name: str, account: str, amount: int) -> bool:
        """Whether an amount is one of an account's range, as its sender counts."""
        assert name in ("", account) or name in self._accounts
        return (amount - BASE) % 10**12 // 10**9 == self._accounts.index(account)


def compare(ours: Account, theirs: Account, handler: str, *, keyed: bool, others: bool) -> None:
    """Compare one account's transfers, one way.

    Raises:
        AssertionError: They do not agree.
    """
    done, doubt = ours.amounts("done"), ours.amounts("doubt")
    assert ours.amounts("ask") == [], "the application does not know what became of these"
    refused = [amount for amount in ours.outcomes if is_refused(amount)] if handler == "transactional" else []
    credited = [amount for amount, state in theirs.received if state in ("applied", "delivered")]
    if handler == "direct":
        credited = theirs.applied
    elif not keyed and handler != "none":
        # At PLAIN, a transfer leaves the journal once a handler has finished with it; the handler may be called again.
        credited = theirs.mine if handler == "transactional" else sorted(set(theirs.applied))
    assert max(Counter(credited).values(), default=1) == 1, f"doubled: {Counter(credited).most_common(5)}"
    lost = set(done) - set(credited) - theirs.ever
    assert not lost, f"lost: {sorted(lost)[:5]}"
    again = theirs.lost & set(credited)
    assert not again, f"credited again after it was lost: {sorted(again)[:5]}"
    assert set(credited) <= {*done, *doubt}, f"never acknowledged: {sorted(set(credited) - {*done, *doubt})[:5]}"
    if handler == "transactional":
        # Another ledger has begun in the same database, where the handler's table stayed.
        assert set(theirs.mine) - theirs.ever == set(credited) - theirs.ever, "the handler's own table differs"
        assert others or theirs.mine == credited, "the handler's own table is not what was credited"
    if handler == "outbox":
        assert set(theirs.applied) - theirs.ever == set(credited) - theirs.ever, "the handler was not called for each"
        assert {state for _, state in theirs.received} <= {"delivered"}
    if others:
        outcomes = {
            "acked": {"done", "doubt"},
            "rejected": {"refused", "doubt"},
            "in_doubt": {"done", "refused", "doubt"},
        }
        wrong = {amount: state for amount, state in ours.sent.items() if ours.outcomes[amount] not in outcomes[state]}
        assert not wrong, f"the journal tells otherwise: {list(wrong.items())[:5]}"
        return
    states = {"acked": done, "in_doubt": doubt, "rejected": ours.amounts("refused")}
    assert ours.sent == {amount: state for state, amounts in states.items() for amount in amounts}
    if keyed:
        assert doubt == []
        assert sorted(refused) == ours.amounts("refused")


def compare_totals(sums: Counter[str], sender: Counter[str], receiver: Counter[str]) -> None:
    """Compare the plugins' totals with the counts of the sending application.

    Raises:
        AssertionError: They do not agree.
    """
    assert sender["sent"] == sums["done"]
    assert sender["in_doubt"] == sums["doubt"]
    # There are none of a receiver without a store.
    if receiver:
        assert sums["done"] <= receiver["received"] <= sums["done"] + sums["doubt"]
