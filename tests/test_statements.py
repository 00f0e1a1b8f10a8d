"""No statement of the journal becomes slower as the history grows: none scans it, and none sorts it.

With a million remembered transfers, one statement that reads them all stops all money for seconds.
"""

# ruff: noqa: S608 (the statements that fill a database are constants)

import ast
import re
import sqlite3
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from support.journals import IN, REFUSAL, Book, accept, journal_of, refuse

import trio_ledger_plugin
from trio_ledger_plugin import MoneyLevel, UnreachableError
from trio_ledger_plugin.money.history import START
from trio_ledger_plugin.money.peers import MAX_OLDER, Lost
from trio_ledger_plugin.money.statements import JoinedStatements, Statements
from trio_ledger_plugin.stores.dialect import SQLITE
from trio_ledger_plugin.stores.postgres_dialect import POSTGRES
from trio_ledger_plugin.stores.schema import VALUES, add_functions, migrate
from trio_ledger_plugin.stream import tables
from trio_ledger_plugin.transfer import TransferState

ROOT = Path(trio_ledger_plugin.__file__).parent
SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH)\s")
# Where the text of a statement may be. The upgrade of an old database reads it all, once.
JOURNAL, UPGRADES = "money/statements.py", ("money/tables.py", "stream/tables.py")
# Statements for PostgreSQL only; each is about one row that has a key.
POSTGRES_ONLY = "stores/postgres_"
# Tables with a row for each ledger, or one row, or one for each table.
SMALL = {"lpi_ledgers", "lpi_opening", "sqlite_schema"}
KEYED, PLAIN = MoneyLevel.KEYED, MoneyLevel.PLAIN

JOURNALS = {name: text for name, text in vars(Statements(SQLITE)).items() if isinstance(text, str)}

JOINED = {name: text for name, text in vars(JoinedStatements(SQLITE)).items() if isinstance(text, str)}


def find_literals():
    """Return the statements that are text in the package, by the file and line where they are."""
    found: dict[str, str] = {}
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            first: ast.AST | None = next(iter(node.values), None) if isinstance(node, ast.JoinedStr) else node
            if isinstance(first, ast.Constant) and SQL.match(str(first.value)):
                place = f"{path.relative_to(ROOT).as_posix()}:{first.lineno}"
                assert not isinstance(node, ast.JoinedStr) or place.startswith(JOURNAL), f"{place} is put together"
                found[place] = str(first.value)
    return found


LITERALS = find_literals()
STORES = {place: text for place, text in LITERALS.items() if not place.startswith((JOURNAL, *UPGRADES, POSTGRES_ONLY))}


def fill(connection, rows):
    """Fill a database as a busy server has it: three ledgers, sixty accounts, a long history and short queues."""
    connection.execute(
        """INSERT INTO lpi_ledgers SELECT column1, 1e6, column1, 0 FROM (VALUES ('main'), ('second'), ('third'))
            WHERE true ON CONFLICT DO UPDATE SET age = 1e6"""
    )
    numbers = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)"
    ledger = "CASE i % 10 WHEN 0 THEN 'second' WHEN 1 THEN 'third' ELSE 'main' END"
    account = "CASE WHEN i % 10 = 0 THEN '' ELSE 'account ' || (i % 60) END"
    state = (
        "CASE WHEN i % 500 = 7 AND i < 2000 THEN 'in_doubt' WHEN i % 500 = 17 THEN 'sent' WHEN i % 2 THEN 'acked'"
        " WHEN i % 500 = 4 THEN 'applied' WHEN i % 100 = 2 THEN 'refused' ELSE 'delivered' END"
    )
    connection.execute(
        f"""{numbers} INSERT INTO lpi_transfers
            (ledger, account, direction, origin, key, amount, level, state, digest, created, changed, keep_for,
             forget_at, peer_journal, resend_until)
            SELECT {ledger}, {account}, CASE WHEN i % 2 THEN 'out' ELSE 'in' END,
                CASE WHEN i % 2 THEN '' ELSE 'the journal of ' || (i % 60) END, 'key ' || i, '1000',
                CASE WHEN i % 10 = 0 THEN 'plain' ELSE 'keyed' END, {state}, x'00', i, i, 604800,
                CASE WHEN {state} IN ('in_doubt', 'sent') THEN NULL ELSE 2e6 + i END,
                CASE WHEN i % 2 THEN 'the journal of ' || (i % 60) END, 1e9 FROM n""",
        (rows,),
    )
    for table, waits in (("lpi_to_send", "sent"), ("lpi_to_deliver", "applied")):
        connection.execute(
            f"INSERT INTO {table} (id, ledger, account, next_try)"
            f" SELECT id, ledger, account, created FROM lpi_transfers WHERE state = '{waits}' ORDER BY id LIMIT 40"
        )
    connection.execute(
        """INSERT INTO lpi_accounts (ledger, account, keyed, keys_kept, age, peer_journal)
            SELECT DISTINCT ledger, account, 5, 5, 1e5, coalesce(peer_journal, origin) FROM lpi_transfers
            WHERE true ON CONFLICT DO NOTHING"""
    )
    connection.execute(
        """INSERT INTO lpi_peers SELECT ledger, account, 'an older one ' || i, 1, 1, 1, 1, 1, 1
            FROM lpi_accounts, (SELECT 1 AS i UNION SELECT 2)"""
    )
    connection.execute(
        f"{numbers} INSERT INTO lpi_values SELECT 'account ' || i || ':token', 'x' FROM n", (rows // 10,)
    )


@pytest.fixture(scope="module")
def database():
    """A store with a long history, as it is in production: never analyzed."""
    book = Book()
    migrate(book.connection, "values", VALUES)
    migrate(book.connection, "stream", tables.STEPS)
    fill(book.connection, 30_000)
    yield book.connection
    book.connection.close()


@pytest.fixture(scope="module")
def analyzed(database):
    """The same after ANALYZE, with which the planner may choose otherwise."""
    connection = sqlite3.connect(":memory:")
    add_functions(connection)
    database.backup(connection)
    connection.execute("ANALYZE")
    yield connection
    connection.close()


def complaints(connection, text):
    """Return what is wrong with the plan of a statement."""
    plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", (None,) * text.count("?")).fetchall()
    steps = [step[3] for step in plan]
    return [
        step
        for step in steps
        if "TEMP B-TREE" in step or "AUTOMATIC" in step or (step.startswith("SCAN") and step.split()[1] not in SMALL)
    ]


@pytest.mark.slow
def test_no_statement_scans_or_sorts_in_postgres(postgres_server):
    """The planner takes an index wherever it can, since scans are disabled; what it cannot avoid shows in the plan."""
    book = Book(postgres_server.dsn())
    book.connection.execute("SET LOCAL enable_seqscan = off")
    book.connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    wrong = {}
    for name, text in vars(Statements(POSTGRES)).items():
        if isinstance(text, str):
            numbers = count(1)
            numbered = re.sub("%s", lambda _: f"${next(numbers)}", text)  # noqa: B023 (called at once)
            book.connection.execute(f"PREPARE {name.lower()} AS {numbered}")
            values = ", ".join(["NULL"] * text.count("%s"))
            explain = f"EXPLAIN EXECUTE {name.lower()}" + (f"({values})" if values else "")
            plan = " ".join(row[0] for row in book.connection.execute(explain).fetchall())
            on_a_ledger = "lpi_ledgers" in plan
            if ("Seq Scan" in plan or re.search(r"\bSort\b", plan)) and not on_a_ledger:
                wrong[name] = plan
    book.connection.close()
    assert wrong == {}


@pytest.mark.parametrize("text", [*JOURNALS.values(), *STORES.values()], ids=[*JOURNALS, *STORES])
def test_no_statement_scans_or_sorts(database, analyzed, text):
    assert complaints(database, text) == []
    assert complaints(analyzed, text) == []


@pytest.mark.parametrize(
    "text",
    [
        "SELECT count(*) FROM lpi_transfers",
        "SELECT id FROM lpi_transfers WHERE state = 'applied'",
        "SELECT id FROM lpi_transfers WHERE ledger = ? ORDER BY changed",
        "UPDATE lpi_accounts SET keyed = 0 WHERE age < ?",
        "DELETE FROM lpi_transfers WHERE forget_at < ?",
        "SELECT q.id FROM lpi_to_send AS q JOIN lpi_transfers AS t ON t.key = q.account WHERE q.ledger = ?",
    ],
)
def test_statement_that_scans_or_sorts_is_found(database, text):
    assert complaints(database, text) != []


@pytest.mark.parametrize("name", JOINED)
def test_joined_statement_reads_tables_only_in_its_parts(name):
    """SQLite cannot be asked for its plan, but for those of its parts."""
    rest = JOINED[name]
    for part in sorted(JOURNALS.values(), key=len, reverse=True):
        rest = rest.replace(part, "")
    assert rest != JOINED[name]
    assert re.findall(r"(?:FROM|JOIN|UPDATE) (lpi_\w+)", rest) == []


def test_every_statement_of_the_package_is_asked_for():
    """A new statement must not escape: all text that is SQL is here, and only stores and the journal use a database."""
    in_journal = {SQLITE.statement(text) for place, text in LITERALS.items() if place.startswith(JOURNAL)}
    # A statement of the journal is one text, or begins with one.
    known = (*JOURNALS.values(), *JOINED.values())
    assert {text for text in in_journal if not any(each.startswith(text) for each in known)} == set()
    assert {name for name in vars(Statements) if name.isupper()} == set(JOURNALS)
    assert [place for place in STORES if place.startswith("money/")] == []
    assert {place.partition("/")[0] for place in LITERALS} == {"money", "stores", "stream"}
    calls = {
        (path.relative_to(ROOT).parts[0], node.func.attr)
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("execute", "executemany", "executescript")
    }
    # A cursor of PostgreSQL passes executemany() on.
    assert calls == {("money", "execute"), ("stores", "execute"), ("stores", "executemany"), ("stream", "execute")}


class Counting(sqlite3.Connection):
    """A connection that counts the steps of SQLite's virtual machine for each statement."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps: dict[str, int] = {}
        self.count = 0
        self.current = ""
        self.set_progress_handler(self.step, 1)

    def step(self):
        self.count += 1
        self.steps[self.current] = max(self.steps.get(self.current, 0), self.count)

    def execute(self, text, *args):
        self.current, self.count = text, 0
        self.steps.setdefault(text, 0)
        return super().execute(text, *args)


def use_everything(book):
    """Call every method of the journal, with all branches that have a statement of their own."""
    journal, connection = book.journal, book.connection
    outgoing, incoming, peers = journal.outgoing, journal.incoming, journal.peers
    for account in ("account 7", "new"):
        at = {"account": account, "peer": "the journal of 7"}
        book.pay("paid", **at)
        book.pay("paid on", account=account, peer="another")
        for refused in [book.begin("refused", **at)] * 2:
            book.answer(refused, REFUSAL)
        outgoing.withdraw(connection, book.begin("withdrawn", **at))
        waiting = book.begin("waiting", **at)
        outgoing.postpone(connection, waiting, 0.0)
        outgoing.take_due(connection, account, 10)
        outgoing.take_due(connection, account, 10, ())
        outgoing.postpone(connection, waiting, 0.0)
        outgoing.withdraw_waiting(connection, waiting)
        book.begin("never sent", **at)
        outgoing.withdraw_new(connection, account, "never sent")
        outgoing.doubt(connection, book.begin("doubted", **at).number)
        book.settle("doubted", TransferState.ACKED, account)
        book.begin("left", **at)
        outgoing.put_in_doubt(connection, account)
        peers.meet(connection, account, journal_of("another"))
        for number in range(MAX_OLDER + 1):
            peers.use(connection, account, f"journal {number}", 0.0)
        peers.meet(connection, account, journal_of("another"))
        peers.numbers(connection, account, "the journal of 7")
        peers.others(connection, account)
        peers.credits_lost(connection, account, "another", Lost(5))
        peers.sendings_lost(connection, account, "another", Lost(5))
        for key, apply in (("queued", None), ("accepted", accept), ("refused", refuse), ("queued", accept)):
            book.receive(key, apply=apply, **at)
        book.receive("later", apply=lambda *_: UnreachableError("later"), **at)
        for credited in incoming.due_to_deliver(connection, account, 3)[0]:
            incoming.postpone_delivery(connection, credited, 0.0)
            incoming.deliver_within(connection, credited, accept)
            incoming.delivered(connection, credited)
        journal.reset_level(connection, account)
        book.pay("at PLAIN", account=account, level=PLAIN)
        for number in range(2):
            received = book.receive(f"at PLAIN {number}", account=account, level=PLAIN).credited
            if received is not None:
                incoming.delivered(connection, received)
        book.totals(account)
        journal.history.knows(connection, account)
    for state in (None, TransferState.IN_DOUBT):
        for after in (0, 90):
            journal.history.page(connection, None, IN, state, after)
    journal.history.accounts(connection, None)
    journal.history.accounts(connection, "account 7")
    journal.history.count(connection, None)
    journal.history.count(connection, "account 7")
    journal.history.note_handler(connection)
    journal.history.ledgers(connection)
    journal.accounts_to_deliver(connection)
    book.begin("being sent", account="account 7", peer="the journal of 7")
    book.begin("at PLAIN in the last process", account="account 9", level=PLAIN)
    book.now += 2e6 - 50.0
    journal.history.forget(connection, START)
    journal.save_age(connection)
    book.reopen()


def steps_with(rows, monkeypatch):
    """Return how many steps each statement takes with so many transfers in the history."""
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Counting))
    book = Book()
    monkeypatch.undo()
    connection = book.connection
    assert isinstance(connection, Counting)
    migrate(connection, "values", VALUES)
    fill(connection, rows)
    connection.execute("UPDATE lpi_accounts SET keyed = 0, peer_journal = '' WHERE account = 'account 9'")
    book.reopen()
    connection.steps.clear()
    use_everything(book)
    connection.close()
    return {name: connection.steps[text] for name, text in JOURNALS.items() if text in connection.steps}


def test_no_statement_takes_more_steps_with_a_longer_history(monkeypatch):
    """A search can be a scan as well, if its index leaves most of the rows."""
    short, long = steps_with(2_000, monkeypatch), steps_with(40_000, monkeypatch)
    # Each statement is used, and so is counted.
    assert set(short) == set(long) == set(JOURNALS)
    grown = {name: (short[name], steps) for name, steps in long.items() if steps > 1.5 * short[name] + 40}
    assert grown == {}
