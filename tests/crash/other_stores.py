"""Gives an end that was killed another store than its own: an older copy, none, or another ledger.

That is what an operator does with a backup, or by mistake. What the end loses is known here from the files; afterwards
both ends must report it on their next link, and nothing of it may take effect again.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from shutil import copy2, rmtree
from typing import TYPE_CHECKING, Final

from attrs import evolve, field, frozen, mutable
from book import Book, read_lines

if TYPE_CHECKING:
    from random import Random

    from end import Config

__all__ = ["Loss", "OtherStores", "Rows", "read_rows"]

FILES: Final = ("store.sqlite3", "store.sqlite3-wal")
KEPT: Final = 4
CREDITED: Final = ("applied", "delivered")


@frozen
class Rows:
    """The KEYED transfers in the ledgers that an end uses, by account and amount.

    Attributes:
        sent: The state of each sent transfer.
        credited: The transfers that were received and credited.
    """

    sent: dict[tuple[str, int], str]
    credited: set[tuple[str, int]]

    @property
    def acked(self) -> set[tuple[str, int]]:
        """The transfers that the other end has acknowledged."""
        return {place for place, state in self.sent.items() if state == "acked"}


@frozen
class Loss:
    """What an end has lost, and what the two ends must report.

    Attributes:
        copied: Whether the end has an older copy of its own journal; otherwise it has begun another journal.
        credited: What it has credited and no longer knows.
        acked: The part of it that the other end knows to be credited.
        sent: What it has sent and no longer knows.
        arrived: The part of it that the other end had credited when the store was replaced.
        read_from: How much of the error logs of both ends was written before.
    """

    copied: bool
    credited: set[tuple[str, int]]
    acked: set[tuple[str, int]]
    sent: set[tuple[str, int]]
    arrived: set[tuple[str, int]]
    read_from: tuple[int, int]

    @property
    def must_be_found(self) -> bool:
        """Whether the other end can know of it."""
        return bool(self.acked or self.arrived)


@mutable
class OtherStores:
    """The copies of one end's store, and what was lost when others took its place.

    Attributes:
        config: What the end is to do at present.
        copies: The directories of the copies, the oldest first; each is older than the store.
        lost: What was credited and must never be credited again.
        ever: Everything that was credited in a store that is gone.
        replaced: How many stores took the place of another.
        made: How many copies were made.
    """

    config: Config
    copies: list[Path] = field(factory=list)
    lost: set[tuple[str, int]] = field(factory=set)
    ever: set[tuple[str, int]] = field(factory=set)
    replaced: int = 0
    made: int = 0

    @property
    def home(self) -> Path:
        return Path(self.config.home)

    def rows(self) -> Rows:
        return read_rows(self.config)

    def copy(self) -> None:
        """Copy the store of the end, which is not running."""
        if not (self.home / FILES[0]).exists():
            return
        self.made += 1
        directory = self.home / f"copy {self.made}"
        directory.mkdir()
        self._copy(self.home, directory)
        self.copies.append(directory)
        while len(self.copies) > KEPT:
            rmtree(self.copies.pop(0))

    def replace(self, random: Random, other: OtherStores) -> Loss:
        """Give the end, which is not running, another store, and return what is lost."""
        before = self.rows()
        kinds = ["an empty store", "another ledger", *(["a copy"] * 6 if self.copies else [])]
        kind = random.choice(kinds)
        self.replaced += 1
        if kind == "another ledger":
            self.config = evolve(self.config, ledger=f"ledger {self.replaced}")
        else:
            self._remove()
        if kind == "a copy":
            chosen = random.choice(self.copies)
            self._copy(chosen, self.home)
            # What is newer belongs to another history.
            for newer in self.copies[self.copies.index(chosen) + 1 :]:
                self.copies.remove(newer)
                rmtree(newer)
        else:
            while self.copies:
                rmtree(self.copies.pop())
            self._give_up_open_ones()
        after, theirs = self.rows(), other.rows()
        credited, sent = before.credited - after.credited, before.sent.keys() - after.sent.keys()
        loss = Loss(
            copied=kind == "a copy",
            credited=credited,
            acked=credited & theirs.acked,
            sent=sent,
            arrived=sent & theirs.credited,
            read_from=(self._errors(), other._errors()),
        )
        self.ever |= before.credited
        # If no end can notice the loss, an open transfer is sent again, as if it had never arrived.
        self.lost |= credited if loss.must_be_found or not loss.copied else loss.acked
        return loss

    def is_reported(self, loss: Loss, other: OtherStores) -> bool:
        """Whether both ends have reported a loss that must be found."""
        own, theirs = (
            (each.home / "stderr").read_bytes()[start:].decode(errors="replace")
            for each, start in zip((self, other), loss.read_from, strict=True)
        )
        if not loss.copied:
            # This end has nothing to compare with.
            return "it was replaced" in theirs
        if "this journal is an old copy" not in own or "its journal is an old copy" not in theirs:
            return False
        named = [line for line in theirs.splitlines() if "its journal is an old copy" in line]
        keys = {f"'key-{amount}'" for _, amount in loss.acked | loss.sent}
        return any(key in line for line in named for key in keys)

    def _errors(self) -> int:
        path = self.home / "stderr"
        return path.stat().st_size if path.exists() else 0

    def _give_up_open_ones(self) -> None:
        """Write down that the application cannot know what became of its open transfers: their journal is gone."""
        for account in self.config.accounts:
            path = self.home / f"asked-{account}"
            if path.exists():
                lines = read_lines(path)
                settled = {amount for word, amount in lines if word != "ask"}
                book = Book(path)
                for amount in [amount for word, amount in lines if word == "ask" and amount not in settled]:
                    book.write("doubt", amount)
                book.close()

    def _remove(self) -> None:
        for path in self.home.glob("store.sqlite3*"):
            path.unlink()

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        for name in FILES:
            if (source / name).exists():
                copy2(source / name, target / name)


def read_rows(config: Config) -> Rows:
    """Return the KEYED transfers in the ledgers that an end uses."""
    path = Path(config.home) / FILES[0]
    if not path.exists():
        return Rows({}, set())
    ledgers = {config.ledger_of(account): account for account in config.accounts}
    sent, credited = {}, set()
    with closing(sqlite3.connect(path)) as connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'lpi_transfers'").fetchone() is None:
            return Rows({}, set())
        statement = "SELECT ledger, account, direction, amount, state FROM lpi_transfers WHERE level = 'keyed'"
        for ledger, account, direction, amount, state in connection.execute(statement):
            if ledger in ledgers:
                place = account or ledgers[ledger], int(amount)
                if direction == "out":
                    sent[place] = state
                elif state in CREDITED:
                    credited.add(place)
    return Rows(sent, credited)
