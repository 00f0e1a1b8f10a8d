"""The journal compared with a model of it in plain Python: in any order of operations, no unit is lost or made."""

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.journals import (
    IN,
    KEYED,
    OUT,
    PEER_RETENTION,
    PLAIN,
    PROMISED,
    REFUSAL,
    RETENTION,
    accept,
    connect,
    forget_in_slices,
    in_transaction,
    journal_of,
    new_journal,
    read_pages,
    refuse,
    rows_of,
    transfer_of,
)

from trio_ledger_plugin import (
    InvalidFieldsError,
    MoneyLevelError,
    NotAcceptedError,
    StoreError,
    Transfer,
    TransferNotFoundError,
    UnreachableError,
)
from trio_ledger_plugin.errors import wire_error
from trio_ledger_plugin.money import history, outgoing
from trio_ledger_plugin.money.incoming import PLAIN_SECONDS, Credited, Received
from trio_ledger_plugin.money.outgoing import BEING_SENT, BeingSent
from trio_ledger_plugin.money.peers import Meeting
from trio_ledger_plugin.negotiation import MAX_RETENTION, PeerNumbers
from trio_ledger_plugin.transfer import TRANSITIONS, TransferState

NAMES = ("", "alice", "bob")
MAX_KEYS = 4

accounts = st.sampled_from(NAMES)
keys = st.sampled_from(["a", "b", "c", "d"])
amounts = st.sampled_from([1, 7, 2**63, 2**64 - 1])
levels = st.sampled_from([KEYED, PLAIN])
# The journals that a peer shows.
peers = st.sampled_from(["first", "second"])
pauses = st.sampled_from([0.0, 1.0, 60.0])


class Row:
    """A transfer in the model.

    ``next_try`` and ``tries`` are those of its row in a queue; None if it is in none.
    """

    def __init__(self, number, amount, level, state, keep_for, *, forget_at=None, journal=""):
        self.number = number
        self.amount = amount
        self.level = level
        self.state = state
        self.keep_for = keep_for
        self.forget_at = forget_at
        self.journal = journal
        self.next_try: float | None = None
        self.tries: int | None = None
        self.refusal: Any = None
        self.peer_number = 0
        self.receipt: int | None = None
        # Whether undoing it undoes a part of its account's level; not if the level was reset since.
        self.counts_for_level = level is KEYED

    def enter_queue(self, next_try, tries):
        self.next_try, self.tries = next_try, tries

    def leave_queue(self):
        self.next_try = self.tries = None


class JournalMachine(RuleBasedStateMachine):
    """Every operation on the journal, and on a dictionary."""

    def __init__(self):
        super().__init__()
        self.connection = connect()
        self.now = 5000.0
        self.patch = pytest.MonkeyPatch()
        # So that all that is read page by page has several pages.
        self.patch.setattr(history, "PAGE", 3)
        self.patch.setattr(outgoing, "PAGE", 2)
        self.promised, self.key_retention = PROMISED, RETENTION
        self.journal = self.make_journal()
        self.undone = False
        self.call(self.journal.open, settle=True)
        self.fill_neighbour()
        self.connection.execute("CREATE TABLE mine (account TEXT, key TEXT)")
        self.last_number = 5
        # By account, direction, origin and key.
        self.rows: dict[Any, Row] = {}
        # Outgoing transfers by account and key, also those that are no longer in the journal.
        self.begun: dict[Any, BeingSent] = {}
        self.finished: list[Credited] = []
        self.written: list[tuple[str, str]] = []
        self.sent = dict.fromkeys(NAMES, 0)
        self.received = dict.fromkeys(NAMES, 0)
        self.keyed = dict.fromkeys(NAMES, 0)
        self.current = dict.fromkeys(NAMES, "")
        # For each account and journal: the numbers sent, acked, received and credited, and the age that the journal has
        # shown.
        self.numbers: dict[tuple[str, str], list[Any]] = {}
        # The accounts of which something is known.
        self.entered: set[str] = set()
        self.had_handler = False
        # The age at which another journal took the place of one.
        self.left_at: dict[tuple[str, str], float] = {}
        # The age of the ledger that a crash cannot take back.
        self.certain_age = 0.0

    def make_journal(self):
        return new_journal(
            lambda: self.now, max_keys=MAX_KEYS, key_retention=self.key_retention, promised=self.promised
        )

    def fill_neighbour(self):
        """Fill another ledger in the same tables, with rows that are in doubt, due, and ready to be forgotten."""
        other = new_journal(lambda: self.now, "other", key_retention=0.0, promised=0.0)
        other.open(self.connection, settle=True)
        for key, level in (("a", KEYED), ("b", KEYED), ("c", PLAIN)):
            account = "alice" if level is KEYED else ""
            peer = journal_of("first") if level is KEYED else None
            begun = other.outgoing.begin(self.connection, transfer_of(account, key, 5, level), peer, plain_allowed=True)
            assert isinstance(begun, BeingSent)
            if key == "b":
                other.outgoing.doubt(self.connection, begun.number)
        for key in "ab":
            transfer = transfer_of("alice", key, 5, KEYED, "first")
            other.incoming.receive(
                self.connection, transfer, None if key == "a" else lambda *_: None, plain_allowed=True
            )
        self.neighbour = rows_of(self.connection, "other")

    def teardown(self):
        self.patch.undo()
        self.connection.close()

    def call(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run work in a transaction; if a commit has to fail, in two of which the first is undone."""
        if self.undone:
            self.undone = False
            self.connection.execute("BEGIN")
            try:
                work(self.connection, *args, **kwargs)
            except (MoneyLevelError, InvalidFieldsError, TransferNotFoundError):
                pass
            finally:
                self.connection.execute("ROLLBACK")
        return in_transaction(self.connection, work, *args, **kwargs)

    @precondition(lambda self: not self.undone)
    @rule()
    def fail_next_commit(self):
        self.undone = True

    @property
    def age(self):
        return self.journal.age()

    def rows_in(self, account, direction, *in_states):
        return [
            (place, row)
            for place, row in self.rows.items()
            if place[:2] == (account, direction) and row.state in in_states
        ]

    def outgoing_row(self, account, key):
        return self.rows.get((account, OUT, "", key))

    def check_number(self, number):
        """A number that was used once is never used again."""
        assert number > self.last_number
        self.last_number = number

    # Outgoing transfers.

    @rule(account=accounts, key=keys, amount=amounts, level=levels, plain_allowed=st.booleans(), peer=peers)
    def begin(self, account, key, amount, level, plain_allowed, peer):
        transfer = transfer_of(account, key, amount, level)
        known = self.outgoing_row(account, key)
        shown = journal_of(peer) if level is KEYED else None
        try:
            found = self.call(self.journal.outgoing.begin, transfer, shown, plain_allowed=plain_allowed)
        except MoneyLevelError:
            assert known is None
            assert level is PLAIN
            assert self.keyed[account] or not plain_allowed
            return
        if known is not None:
            assert (found.number, found.amount, found.level) == (known.number, known.amount, known.level)
            assert found.state.value == known.state
            return
        assert level is KEYED or (plain_allowed and not self.keyed[account])
        until = 1000.0 + PEER_RETENTION / 2
        journal, resend_until = (peer, until) if level is KEYED else ("", 0.0)
        assert found == BeingSent(found.number, transfer, journal, resend_until)
        self.check_number(found.number)
        self.entered.add(account)
        row = self.rows[account, OUT, "", key] = Row(
            found.number, amount, level, "sent", self.key_retention, journal=journal
        )
        row.enter_queue(BEING_SENT, -1)
        self.begun[account, key] = found
        self.certain_age = self.age
        if level is KEYED:
            self.keyed[account] += 1
            self.use(account, peer, 1000.0)
            self.numbers[account, peer][0] += 1
            row.peer_number = self.numbers[account, peer][0]
        assert found.transfer.number == row.peer_number

    def undo(self, account, row):
        if row.counts_for_level:
            self.keyed[account] -= 1

    def settle(self, account, row, after):
        row.state, row.forget_at = after, self.age + row.keep_for
        row.leave_queue()
        if after == "acked":
            self.sent[account] += row.amount
        else:
            self.undo(account, row)

    def put_row_in_doubt(self, row):
        row.state = "in_doubt"
        row.leave_queue()

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), error=st.sampled_from([None, REFUSAL]), receipt=st.sampled_from([0, 3, 7]))
    def answered(self, data, error, receipt):
        account, key = data.draw(st.sampled_from(sorted(self.begun)))
        sent, row = self.begun[account, key], self.outgoing_row(account, key)
        state = self.call(self.journal.outgoing.answered, sent, error, receipt).value
        after = "acked" if error is None else "rejected"
        if row is None:
            assert state == after
        elif row.state not in ("sent", "in_doubt"):
            assert state == row.state
        else:
            assert state == after
            self.settle(account, row, after)
            row.refusal = error and error.code
            if error is None and row.level is KEYED and self.current[account] == row.journal:
                self.numbers[account, row.journal][1] = max(self.numbers[account, row.journal][1], receipt)

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def doubt(self, data):
        place = data.draw(st.sampled_from(sorted(self.begun)))
        row = self.outgoing_row(*place)
        is_new = self.call(self.journal.outgoing.doubt, self.begun[place].number)
        assert is_new is (row is not None and row.state == "sent")
        if row is not None and is_new:
            self.put_row_in_doubt(row)

    def doubt_open_keyed(self, account):
        """Put the account's open KEYED transfers in doubt, and return their number and sum."""
        doubted = [row for _, row in self.rows_in(account, OUT, "sent") if row.level is KEYED]
        for row in doubted:
            self.put_row_in_doubt(row)
        return len(doubted), sum(row.amount for row in doubted)

    @rule(account=accounts)
    def put_in_doubt(self, account):
        assert self.call(self.journal.outgoing.put_in_doubt, account) == self.doubt_open_keyed(account)

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), waiting=st.booleans())
    def withdraw(self, data, waiting):
        """Withdraw a transfer that is being sent, or one that waits for its next try."""
        account, key = data.draw(st.sampled_from(sorted(self.begun)))
        row = self.outgoing_row(account, key)
        method = self.journal.outgoing.withdraw_waiting if waiting else self.journal.outgoing.withdraw
        withdrawn = self.call(method, self.begun[account, key])
        if row is None:
            # What waits may be withdrawn twice.
            assert withdrawn is waiting
            return
        assert withdrawn is (row.state == "sent" and not (waiting and row.next_try == BEING_SENT))
        if withdrawn:
            self.remove_outgoing(account, key)

    @rule(account=accounts, key=keys)
    def withdraw_new(self, account, key):
        row = self.outgoing_row(account, key)
        self.call(self.journal.outgoing.withdraw_new, account, key)
        if row is not None and row.tries == -1:
            self.remove_outgoing(account, key)

    def remove_outgoing(self, account, key):
        self.undo(account, self.rows.pop((account, OUT, "", key)))

    @precondition(lambda self: any(begun.journal for begun in self.begun.values()))
    @rule(data=st.data(), pause=pauses, tries=st.integers(0, 3))
    def postpone(self, data, pause, tries):
        keyed = sorted(place for place, begun in self.begun.items() if begun.journal)
        place = data.draw(st.sampled_from(keyed))
        row, sent = self.outgoing_row(*place), self.begun[place]
        sent.tries = tries
        self.call(self.journal.outgoing.postpone, sent, pause)
        self.certain_age = self.age
        if row is not None and row.next_try is not None:
            row.enter_queue(self.age + pause, tries)

    @rule(account=accounts, limit=st.sampled_from([1, 2, 100]))
    def take_due(self, account, limit):
        waiting = sorted(
            (row.next_try, row.number, key, row)
            for (_, _, _, key), row in self.rows_in(account, OUT, "sent")
            if row.next_try < BEING_SENT
        )
        expected = [each for each in waiting if each[0] <= self.age][:limit]
        due = self.call(self.journal.outgoing.take_due, account, limit)
        until = 1000.0 + PEER_RETENTION / 2
        assert due.transfers == [
            BeingSent(number, Transfer(str(row.amount), account, key=key, level=KEYED), row.journal, until, row.tries)
            for _, number, key, row in expected
        ]
        for (_, _, key, row), sent in zip(expected, due.transfers, strict=True):
            row.next_try = BEING_SENT
            assert sent.transfer.number == row.peer_number
            self.begun[account, key] = sent
        assert due.next_age == (waiting[len(expected)][0] if len(waiting) > len(expected) else None)

    @rule(account=accounts, key=keys, confirmed=st.booleans())
    def reconcile(self, account, key, confirmed):
        row: Any = self.outgoing_row(account, key)
        after = TransferState.ACKED if confirmed else TransferState.REJECTED
        try:
            self.call(self.journal.history.settle, account, key, after)
        except TransferNotFoundError:
            assert row is None
        except InvalidFieldsError:
            assert row.state in ("acked", "rejected")
        else:
            assert row.state in ("sent", "in_doubt")
            self.settle(account, row, after.value)

    @rule(account=accounts)
    def reset_level(self, account):
        try:
            self.call(self.journal.reset_level, account)
        except InvalidFieldsError:
            assert not self.keyed[account]
            return
        assert self.keyed[account]
        self.keyed[account] = 0
        self.doubt_open_keyed(account)
        for (whose, _, _, _), row in self.rows.items():
            if whose == account:
                row.counts_for_level = False

    # Opening.

    @rule(
        how=st.sampled_from(["again", "after a rest", "after a crash"]),
        settle=st.booleans(),
        promised=st.sampled_from([PROMISED, PROMISED / 10, PROMISED * 10]),
        key_retention=st.sampled_from([RETENTION, RETENTION / 10]),
    )
    def open_again(self, how, settle, promised, key_retention):
        """Open the ledger again; the options may be others than before."""
        before = self.age
        if how == "after a rest":
            self.journal.rest()
            self.now += 1000.0
        if how == "after a crash":
            # The machine has started again: its clock as well.
            self.now = 0.0
            self.promised, self.key_retention = promised, key_retention
            name, self.journal = self.journal.id, self.make_journal()
        waiting = self.call(self.journal.open, settle=settle)
        if how == "after a crash":
            assert self.journal.id == name
            assert self.certain_age <= self.age <= before
        else:
            assert self.age == before
        if settle:
            self.certain_age = self.age
            for place, row in self.rows.items():
                if place[1] is OUT and row.next_try == BEING_SENT:
                    if row.level is PLAIN:
                        self.put_row_in_doubt(row)
                    else:
                        row.enter_queue(self.age, 0)
        assert waiting == {place[0] for place, row in self.rows.items() if row.state == "sent"}

    @rule()
    def save_age(self):
        assert self.call(self.journal.save_age) == self.age
        self.certain_age = self.age

    @rule(seconds=st.sampled_from([1.0, PLAIN_SECONDS + 1, RETENTION / 2, RETENTION + 1, MAX_RETENTION + 1.0]))
    def let_time_pass(self, seconds):
        self.now += seconds

    # The journals of peers.

    def use(self, account, peer, age=0.0):
        self.entered.add(account)
        if self.current[account] == peer:
            return
        former, self.current[account] = self.current[account], peer
        self.left_at.pop((account, peer), None)
        self.numbers.setdefault((account, peer), [0, 0, 0, 0, age])
        if former:
            self.left_at[account, former] = self.age
        for place, age in list(self.left_at.items()):
            if place[0] == account and age < self.age - MAX_RETENTION:
                del self.left_at[place], self.numbers[place]

    @rule(account=accounts, peer=peers, age=st.sampled_from([100.0, 1000.0]))
    def meet(self, account, peer, age):
        """Meet a peer on a new link. If it has another journal, or a younger one, its open transfers are in doubt."""
        former = self.current[account]
        meeting = self.call(self.journal.peers.meet, account, journal_of(peer, age))
        if account not in self.entered:
            # Anybody can connect under any name.
            assert meeting == Meeting()
            return
        self.use(account, peer, age)
        is_younger = age < self.numbers[account, peer][4]
        self.numbers[account, peer][4] = age
        assert bool(meeting.trouble) is (former not in ("", peer) or is_younger)
        doubted = self.doubt_open_keyed(account) if meeting.trouble else (0, 0)
        assert (meeting.doubts, meeting.amount) == doubted

    # Incoming transfers.

    def kept(self, account):
        """Return how many received transfers count: those with a key, and those that wait for the handler."""
        return sum(
            1
            for (whose, direction, _, _), row in self.rows.items()
            if (whose, direction) == (account, IN) and (row.level is KEYED or row.state == "applied")
        )

    def apply_with(self, error, ran):
        """Return a transactional handler that writes to the database and then refuses, or not."""

        def apply(connection, received):
            connection.execute("INSERT INTO mine VALUES (?, ?)", (received.account, received.key))
            ran.append(received)
            return error

        return apply

    @rule(
        account=accounts,
        key=keys,
        amount=amounts,
        level=levels,
        peer=peers,
        number=st.sampled_from([0, 2, 9]),
        plain_allowed=st.booleans(),
        verdict=st.sampled_from(["outbox", "accept", "refuse", "later"]),
    )
    def receive(self, account, key, amount, level, peer, number, plain_allowed, verdict):
        origin = peer if level is KEYED else ""
        if level is PLAIN:
            key = f"made after {self.last_number}"
        transfer = transfer_of(account, key, amount, level, origin, number if level is KEYED else 0)
        error = {"refuse": NotAcceptedError("no"), "later": UnreachableError("later")}.get(verdict)
        ran: list[Transfer] = []
        apply = None if verdict == "outbox" else self.apply_with(error, ran)
        known, is_full, undone = self.rows.get((account, IN, origin, key)), self.kept(account) >= MAX_KEYS, self.undone
        received = self.call(self.journal.incoming.receive, transfer, apply, plain_allowed=plain_allowed)
        wire: Any = None if received.refusal is None else wire_error(received.refusal)
        if level is PLAIN and (self.keyed[account] or not plain_allowed):
            assert wire[0] == "F00"
        elif known is not None:
            self.check_repeated(known, amount, received)
        elif is_full:
            assert wire[0] == "T00"
            if level is KEYED:
                self.use(account, peer)
        else:
            assert wire == (None if error is None else wire_error(error))
            assert len(ran) == (verdict != "outbox") * (1 + undone)
            self.enter_received(transfer, verdict, received, error and wire_error(error))
            return
        assert ran == []
        assert received.credited is None

    def check_repeated(self, row, amount, received):
        wire: Any = None if received.refusal is None else wire_error(received.refusal)
        if row.amount != amount:
            assert (wire[0], received.receipt) == ("F05", None)
        else:
            assert (wire, received.receipt) == (row.refusal, row.receipt)

    def enter_received(self, transfer, verdict, received, refusal):
        account, level = transfer.account, transfer.level
        if verdict == "later" or (verdict == "refuse" and level is PLAIN):
            return
        number = self.connection.execute("SELECT max(id) FROM lpi_transfers WHERE ledger = 'main'").fetchone()[0]
        self.check_number(number)
        self.certain_age = self.age
        state = {"outbox": "applied", "accept": "delivered", "refuse": "refused"}[verdict]
        self.entered.add(account)
        kept = self.promised if level is KEYED or verdict == "outbox" else PLAIN_SECONDS
        row = self.rows[account, IN, transfer.journal, transfer.key] = Row(
            number, int(transfer.amount), level, state, self.promised, forget_at=self.age + kept
        )
        row.refusal = refusal
        if verdict == "refuse":
            return
        self.received[account] += row.amount
        if level is KEYED:
            self.keyed[account] += 1
            self.use(account, transfer.journal)
            numbers = self.numbers[account, transfer.journal]
            numbers[2] = max(numbers[2], transfer.number)
            numbers[3] += 1
            row.receipt = numbers[3]
        if verdict == "outbox":
            row.enter_queue(self.age, 0)
            assert received == Received(None, row.receipt, Credited(number, transfer))
        else:
            assert received == Received(None, row.receipt)
            self.written.append((account, transfer.key))

    @rule(account=accounts, key=keys, amount=amounts, peer=peers)
    def repeat_reply(self, account, key, amount, peer):
        row = self.rows.get((account, IN, peer, key))
        received = self.call(self.journal.incoming.repeat_reply, transfer_of(account, key, amount, KEYED, peer))
        if row is None:
            assert received is None
        else:
            self.check_repeated(row, amount, received)

    @rule(
        account=accounts,
        limit=st.sampled_from([1, 2, 100]),
        which=st.integers(0, 2),
        outcome=st.sampled_from(["finished", "finished within", "refused within", "failed"]),
        pause=pauses,
    )
    def deliver(self, account, limit, which, outcome, pause):
        waiting = sorted(
            (row.next_try, row.number, origin, key, row)
            for (_, _, origin, key), row in self.rows_in(account, IN, "applied")
        )
        expected = [each for each in waiting if each[0] <= self.age][:limit]
        due, next_age = self.call(self.journal.incoming.due_to_deliver, account, limit)
        assert due == [
            Credited(number, Transfer(str(row.amount), account, key=key, level=row.level, journal=origin), row.tries)
            for _, number, origin, key, row in expected
        ]
        assert next_age == min((each[0] for each in waiting if each[0] > self.age), default=None)
        if which >= len(due):
            return
        credited, row = due[which], expected[which][4]
        incoming, error = self.journal.incoming, NotAcceptedError("no")
        if outcome == "finished":
            self.call(incoming.delivered, credited)
        elif outcome == "finished within":
            assert self.call(incoming.deliver_within, credited, self.apply_with(None, [])) is None
            self.written.append((account, str(credited.transfer.key)))
        elif outcome == "refused within":
            assert self.call(incoming.deliver_within, credited, self.apply_with(error, [])) is error
        else:
            self.call(incoming.postpone_delivery, credited, pause)
            self.certain_age = self.age
            row.enter_queue(self.age + pause, row.tries + 1)
        if outcome in ("finished", "finished within"):
            self.finished.append(credited)
            row.state = "delivered"
            row.leave_queue()
            if row.level is PLAIN:
                del self.rows[account, IN, credited.transfer.journal, credited.transfer.key]

    @precondition(lambda self: self.finished)
    @rule(data=st.data(), failed=st.booleans())
    def record_delivery_again(self, data, failed):
        """The commit before was in doubt, and it counted."""
        credited = data.draw(st.sampled_from(self.finished))
        if failed:
            self.call(self.journal.incoming.postpone_delivery, credited, 1.0)
            self.certain_age = self.age
        else:
            self.call(self.journal.incoming.delivered, credited)

    @rule()
    def forget(self):
        """Exactly those are forgotten whose time has come, by what was promised when they were entered."""
        self.call(lambda connection: list(forget_in_slices(connection, self.journal)))
        for place, row in list(self.rows.items()):
            waits = row.state == "applied" and self.had_handler
            if row.forget_at is not None and row.forget_at < self.age and not waits:
                del self.rows[place]
                if place[1] is IN and (row.level is KEYED or row.state == "applied"):
                    self.drop_unused(place[0])

    def drop_unused(self, account):
        """Forget an account of which nothing is known any longer."""
        known = self.numbers.get((account, self.current[account]), [0, 0, 0, 0])[:4]
        is_open = self.rows_in(account, OUT, "sent", "in_doubt") or self.kept(account)
        has_older = any(place[0] == account for place in self.left_at)
        moved = self.sent[account] or self.received[account] or self.keyed[account]
        # Numbers are never given again.
        if not (is_open or moved or has_older or any(known)):
            self.entered.discard(account)
            self.numbers.pop((account, self.current[account]), None)
            self.current[account] = ""

    @rule()
    def note_handler(self):
        self.call(self.journal.history.note_handler)
        self.had_handler = True

    # Invariants.

    def select(self, statement):
        return self.connection.execute(statement).fetchall()

    @invariant()
    def journal_has_the_entries_of_the_model(self):
        entries = [entry for page in read_pages(self.connection, self.journal) for entry in page]
        assert [entry.number for entry in entries] == sorted(row.number for row in self.rows.values())
        found = {
            entry.number: (
                *(entry.account, entry.direction, entry.key, entry.amount, entry.level, entry.state.value),
                *(entry.error and entry.error.code,),
            )
            for entry in entries
        }
        assert found == {
            row.number: (account, direction, key, row.amount, row.level, row.state, _code_of(row.refusal))
            for (account, direction, _, key), row in self.rows.items()
        }

    @invariant()
    def promises_are_those_of_the_time_of_entry(self):
        found = self.select(
            "SELECT id, origin, keep_for, forget_at, coalesce(peer_journal, '') FROM lpi_transfers"
            " WHERE ledger = 'main' ORDER BY id"
        )
        assert found == sorted(
            (row.number, origin, row.keep_for, row.forget_at, row.journal)
            for (_, _, origin, _), row in self.rows.items()
        )

    @invariant()
    def queues_are_the_open_transfers(self):
        for table, direction in (("lpi_to_send", OUT), ("lpi_to_deliver", IN)):
            statement = f"SELECT id, account, next_try, tries FROM {table} WHERE ledger = 'main' ORDER BY id"  # noqa: S608
            found = self.select(statement)
            assert found == sorted(
                (row.number, account, row.next_try, row.tries)
                for (account, where, _, _), row in self.rows.items()
                if where is direction and row.state in ("sent", "applied")
            )
        waiting = {account for (account, _, _, _), row in self.rows.items() if row.state == "applied"}
        assert self.journal.accounts_to_deliver(self.connection) == sorted(waiting)

    @invariant()
    def an_account_is_kept_while_something_is_known_of_it(self):
        rows = self.select("SELECT account FROM lpi_accounts WHERE ledger = 'main' ORDER BY account")
        assert [account for (account,) in rows] == sorted(self.entered)

    @invariant()
    def no_unit_is_lost_or_made(self):
        for account in NAMES:
            totals = self.journal.history.totals(self.connection, account)
            assert totals.sent == self.sent[account]
            assert totals.received == self.received[account]
            open_ones = self.rows_in(account, OUT, "sent", "in_doubt")
            assert totals.in_doubt == sum(row.amount for _, row in open_ones)
        found, after = [], None
        while page := self.journal.history.accounts(self.connection, after):
            found += page
            after = page[-1].account
        assert [each.account for each in found] == sorted(each.account for each in found)
        assert sum(each.totals.received for each in found) == sum(self.received.values())
        levels = {each.account: each.level for each in found}
        assert all(levels.get(name, PLAIN) is (KEYED if self.keyed[name] else PLAIN) for name in NAMES)

    @invariant()
    def as_many_keys_are_counted_as_are_kept(self):
        rows = self.select("SELECT account, keys_kept, keyed FROM lpi_accounts WHERE ledger = 'main'")
        found = {account: counted for account, *counted in rows}
        for account in NAMES:
            assert found.get(account, [0, 0]) == [self.kept(account), self.keyed[account]]

    @invariant()
    def numbers_are_those_of_the_model(self):
        for account in NAMES:
            numbers = self.journal.peers.numbers
            shown = self.current[account]
            for peer in ("first", "second"):
                known = self.numbers.get((account, peer))
                expected = None if known is None else PeerNumbers(peer, *known[:4])
                assert numbers(self.connection, account, peer) == expected
                if peer == shown:
                    assert numbers(self.connection, account, None) == expected
            if not shown:
                assert numbers(self.connection, account, None) is None

    @invariant()
    def what_a_handler_wrote_is_there_exactly_when_its_transfer_counts(self):
        written = self.connection.execute("SELECT account, key FROM mine").fetchall()
        assert sorted(written) == sorted(self.written)

    @invariant()
    def another_ledger_is_left_alone(self):
        assert rows_of(self.connection, "other") == self.neighbour


def _code_of(refusal):
    return refusal[0] if isinstance(refusal, tuple) else refusal


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# Every transition, allowed or refused.

ENTERED = {
    TransferState.SENT: lambda book, sent: None,
    TransferState.IN_DOUBT: lambda book, sent: book.journal.outgoing.doubt(book.connection, sent.number),
    TransferState.ACKED: lambda book, sent: book.answer(sent),
    TransferState.REJECTED: lambda book, sent: book.answer(sent, REFUSAL),
}
WANTED = {
    "acknowledged": (TransferState.ACKED, lambda book, sent: book.answer(sent)),
    "refused": (TransferState.REJECTED, lambda book, sent: book.answer(sent, REFUSAL)),
    "confirmed": (TransferState.ACKED, lambda book, sent: book.settle("k", TransferState.ACKED)),
    "rejected": (TransferState.REJECTED, lambda book, sent: book.settle("k", TransferState.REJECTED)),
    "doubted": (TransferState.IN_DOUBT, lambda book, sent: book.journal.outgoing.doubt(book.connection, sent.number)),
}


@pytest.mark.parametrize("level", [KEYED, PLAIN])
@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("before", ENTERED)
def test_outgoing_transition_happens_exactly_if_allowed(book, before, wanted, level):
    """A final transfer that changed again would be counted twice, or taken back after it was paid."""
    sent, (after, step) = book.begin("k", amount=7, level=level), WANTED[wanted]
    ENTERED[before](book, sent)
    everything = rows_of(book.connection, "main")
    allowed = after in TRANSITIONS[before]
    if allowed or wanted not in ("confirmed", "rejected"):
        step(book, sent)
    else:
        with pytest.raises(InvalidFieldsError, match=f"{before.value} already; nothing was changed"):
            step(book, sent)
    assert book.state("k") is (after if allowed else before)
    state = after if allowed else before
    expected = [7 * (state is each) for each in (TransferState.ACKED, TransferState.SENT, TransferState.IN_DOUBT)]
    assert (book.totals().sent, book.totals().in_doubt) == (expected[0], expected[1] + expected[2])
    assert book.select("SELECT count(*) FROM lpi_to_send") == [(int(state is TransferState.SENT),)]
    if not allowed:
        assert rows_of(book.connection, "main") == everything


@pytest.mark.parametrize("before", ENTERED)
def test_only_an_open_transfer_can_be_withdrawn(book, before):
    sent = book.begin("k", amount=7)
    ENTERED[before](book, sent)
    withdrawn = book.journal.outgoing.withdraw(book.connection, sent)
    assert withdrawn is (before is TransferState.SENT)
    assert book.state("k") is (None if withdrawn else before)
    # A withdrawn key can be used again.
    assert (book.begin("k").number > sent.number) if withdrawn else (book.keys == ["k"])


def test_received_transfer_is_delivered_once(book):
    credited = book.receive("k").credited
    assert [entry.state for entry in book.walk()] == [TransferState.APPLIED]
    for _ in range(2):
        book.journal.incoming.delivered(book.connection, credited)
        assert [entry.state for entry in book.walk()] == [TransferState.DELIVERED]
    book.journal.incoming.postpone_delivery(book.connection, credited, 1.0)
    assert book.select("SELECT count(*) FROM lpi_to_deliver") == [(0,)]
    assert book.receive("k").credited is None
    assert book.totals().received == 5


# Keys.


@pytest.mark.parametrize("handler", [None, accept, refuse], ids=["queued", "accepted", "refused"])
def test_same_key_and_digest_get_the_same_reply(book, handler):
    first = book.receive("k", apply=handler)
    again = [book.receive("k", apply=each) for each in (None, accept, refuse)]
    replies = [each.refusal and wire_error(each.refusal) for each in (first, *again)]
    assert len(set(replies)) == 1
    assert [each.credited for each in again] == [None, None, None]
    assert book.totals().received == (0 if handler is refuse else 5)
    assert len(book.walk()) == 1


@pytest.mark.parametrize("handler", [None, accept, refuse], ids=["queued", "accepted", "refused"])
def test_same_key_with_another_digest_is_refused(book, handler):
    """Two transfers under one key would be taken for one, and the second would be lost silently."""
    book.receive("k", apply=handler)
    before = rows_of(book.connection, "main")
    for each in (None, accept, refuse):
        assert wire_error(book.receive("k", amount=6, apply=each).refusal)[0] == "F05"
    assert rows_of(book.connection, "main") == before


def test_temporary_refusal_is_not_kept_under_its_key(book):
    refused = book.receive("k", apply=lambda *_: UnreachableError("later"))
    assert wire_error(refused.refusal)[0] == "T00"
    assert book.walk() == []
    assert book.receive("k", amount=6, apply=accept) == Received(None, 1)


def test_keys_of_two_journals_are_two_transfers(book):
    """Two programs that pay "bill 1" to one account pay two bills."""
    for peer, amount in (("first", 5), ("second", 6), ("first", 5), ("second", 6)):
        assert book.receive("bill 1", peer=peer, amount=amount, apply=accept) == Received(None, 1)
    assert book.totals().received == 11
    assert wire_error(book.receive("bill 1", peer="second", amount=5).refusal)[0] == "F05"
    assert book.select("SELECT origin, key FROM lpi_transfers ORDER BY id") == [
        ("first", "bill 1"),
        ("second", "bill 1"),
    ]


def test_sent_and_received_keys_are_apart(book):
    book.pay("k", amount=1)
    assert book.receive("k", amount=2, apply=accept) == Received(None, 1)
    for account in ("alice", "bob"):
        book.pay("k", account=account, amount=4)
    assert [(entry.account, entry.direction, entry.amount) for entry in book.walk()] == [
        ("", OUT, 1),
        ("", IN, 2),
        ("alice", OUT, 4),
        ("bob", OUT, 4),
    ]


def test_known_key_gives_its_entry_and_changes_nothing(book):
    book.pay("k", amount=5)
    before = rows_of(book.connection, "main")
    for amount, peer in ((5, journal_of("first")), (6, journal_of("second")), (5, None)):
        transfer = transfer_of("", "k", amount, KEYED if peer else PLAIN)
        found = book.journal.outgoing.begin(book.connection, transfer, peer, plain_allowed=True)
        assert (found.key, found.amount, found.state) == ("k", 5, TransferState.ACKED)
    assert rows_of(book.connection, "main") == before


def test_entry_contains_all_that_is_known(book, monkeypatch):
    monkeypatch.setattr(outgoing, "time", lambda: 100.0)
    sent = book.begin("k", amount=2**64 - 1, account="alice")
    monkeypatch.setattr(outgoing, "time", lambda: 200.0)
    book.answer(sent, REFUSAL)
    entry = book.find("k", "alice")
    assert (entry.account, entry.direction, entry.key, entry.amount) == ("alice", OUT, "k", 2**64 - 1)
    assert (entry.number, entry.level, entry.state) == (sent.number, KEYED, TransferState.REJECTED)
    assert (entry.error.code, entry.error.name, entry.error.data) == ("F00", "NotAcceptedError", b"{}")
    assert (entry.created.timestamp(), entry.changed.timestamp()) == (100.0, 200.0)


def test_running_again_after_a_commit_that_counts_is_harmless(book):
    sent = book.begin("k")
    for _ in range(2):
        assert book.answer(sent) is TransferState.ACKED
        assert book.receive("k").refusal is None
    assert not book.journal.outgoing.doubt(book.connection, sent.number)
    assert not book.journal.outgoing.withdraw(book.connection, sent)
    assert book.answer(sent, REFUSAL) is TransferState.ACKED
    assert (book.totals().sent, book.totals().received, book.totals().in_doubt) == (5, 5, 0)


# The level.


def test_rejecting_what_a_reset_put_in_doubt_keeps_the_new_level(book):
    """The account is at KEYED again; a peer that has lost its journal could otherwise pay at PLAIN unnoticed."""
    book.begin("before")
    book.journal.reset_level(book.connection, "")
    assert book.level() is PLAIN
    book.pay("after")
    book.settle("before", TransferState.REJECTED)
    assert book.level() is KEYED


@pytest.mark.parametrize("undo", ["refuse", "withdraw", "reject"])
def test_transfer_without_effect_leaves_the_level_as_it_was(book, undo):
    sent = book.begin("k")
    assert book.level() is KEYED
    if undo == "refuse":
        book.answer(sent, REFUSAL)
    elif undo == "withdraw":
        book.journal.outgoing.withdraw(book.connection, sent)
    else:
        book.settle("k", TransferState.REJECTED)
    assert book.level() is PLAIN
    assert book.receive("at PLAIN", level=PLAIN, apply=accept) == Received()


def written(connection):
    """Return the number of changes so far, or what the tables hold where the database does not count them."""
    if isinstance(connection, sqlite3.Connection):
        return connection.total_changes
    return [
        connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()  # noqa: S608 (constants)
        for table in ("lpi_accounts", "lpi_transfers", "lpi_to_send")
    ]


def test_refused_sending_changes_nothing(book):
    """Otherwise the works of other accounts that share its commit would have to run again, each in its own."""
    book.pay("k")
    before = written(book.connection)
    with pytest.raises(MoneyLevelError):
        book.begin("plain", level=PLAIN)
    assert written(book.connection) == before


@pytest.mark.parametrize("first", ["sent", "received"])
def test_account_that_was_at_keyed_takes_no_plain_money(book, first):
    """The peer may have lost its journal, and with it what it has applied."""
    if first == "sent":
        book.pay("k")
    else:
        book.receive("k", apply=accept)
    assert wire_error(book.receive("plain", level=PLAIN, apply=accept).refusal)[0] == "F00"
    with pytest.raises(MoneyLevelError, match="reset the account's level"):
        book.begin("plain", level=PLAIN)
    book.journal.reset_level(book.connection, "")
    assert book.receive("plain", level=PLAIN, apply=accept) == Received()
    assert book.begin("plain", level=PLAIN).journal == ""


def test_reset_that_changes_nothing_is_an_error(book):
    book.pay("k", account="alice", level=PLAIN)
    for account, text in (("nobody", "is not known"), ("alice", "is not at KEYED")):
        with pytest.raises(InvalidFieldsError, match=f"account '{account}' {text}; nothing was changed"):
            book.journal.reset_level(book.connection, account)


# Opening.


def test_second_opening_changes_nothing(book):
    book.begin("k")
    assert book.journal.open(book.connection, settle=True) == {""}
    before = rows_of(book.connection, "main")
    assert book.journal.open(book.connection, settle=True) == {""}
    assert rows_of(book.connection, "main") == before
    assert book.state("k") is TransferState.SENT


def test_file_of_a_newer_version_is_refused(book):
    book.connection.execute("UPDATE lpi_schema SET version = 99 WHERE component = 'transfers'")
    with pytest.raises(StoreError, match="newer version"):
        book.reopen()


def test_opening_makes_due_what_an_earlier_process_was_sending(book):
    keyed, plain = book.begin("keyed"), book.begin("plain", level=PLAIN, account="alice")
    assert book.journal.outgoing.take_due(book.connection, "", 9).transfers == []
    journal = new_journal(lambda: 0.0, dialect=book.dialect)
    # A reader does not touch what another process sends.
    assert journal.open(book.connection, settle=False) == {"", "alice"}
    assert [book.state("keyed"), book.state("plain", "alice")] == [TransferState.SENT, TransferState.SENT]
    assert journal.open(book.connection, settle=True) == {""}
    assert book.state("plain", "alice") is TransferState.IN_DOUBT
    due = journal.outgoing.take_due(book.connection, "", 9).transfers
    assert [(sent.number, sent.journal, sent.resend_until) for sent in due] == [(keyed.number, "first", 51_000.0)]
    assert journal.outgoing.take_due(book.connection, "alice", 9).transfers == []
    assert not journal.outgoing.doubt(book.connection, plain.number)


def test_age_goes_on_over_restarts_and_the_rest_between(book):
    book.now = 100.0
    assert book.journal.save_age(book.connection) == 100.0
    book.journal.rest()
    book.now = 5000.0
    book.journal.open(book.connection, settle=True)
    assert book.journal.age() == 100.0
    book.now = 5010.0
    # The ledger does not age between the end of one process and the beginning of the next.
    assert book.journal.save_age(book.connection) == 110.0
    book.now = 0.0
    assert book.reopen().age() == 110.0
    # A clock that steps back does not make it younger.
    book.now = -50.0
    assert book.journal.age() == 110.0


def test_id_of_a_journal_stays_and_is_its_own(book):
    first = book.journal.id
    assert len(first) == 32
    assert book.reopen().id == first
    assert book.reopen("other").id != first
