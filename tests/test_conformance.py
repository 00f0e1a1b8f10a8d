"""The conformance suite finds broken plugins, and this package's plugins pass it."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import entry_points
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
from support.broken_plugins import BROKEN
from support.ledgers import until
from support.leftovers import all_tasks

from trio_ledger_plugin import InvalidServicesError
from trio_ledger_plugin.loopback import LoopbackPlugin
from trio_ledger_plugin.stores import PostgresStore, open_postgres_store
from trio_ledger_plugin.testing.conformance import (
    CHECKS,
    ConformanceSuite,
    Level,
    NonConformanceError,
    Outcome,
    PairConfig,
    PluginPair,
    Verdict,
    run_check,
    run_conformance,
)
from trio_ledger_plugin.testing.conformance.builtin_pairs import (
    btp_account,
    btp_account_client,
    btp_client,
    btp_listener,
    http,
    http_account,
    http_account_client,
    loopback,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio.testing import MockClock

pytestmark = pytest.mark.slow

# What never comes is found by waiting only.
HANGING = ("a_money_handler_is_tried_again_until_it_succeeds",)
MONEY_CHECKS = [check for check in CHECKS if check.money or check.store]


class TestLoopback(ConformanceSuite):
    def pair(self, conditions):
        return loopback(conditions)


class TestBtpClient(ConformanceSuite):
    def pair(self, conditions):
        return btp_client(conditions)


class TestBtpListener(ConformanceSuite):
    def pair(self, conditions):
        return btp_listener(conditions)


class TestBtpAccount(ConformanceSuite):
    def pair(self, conditions):
        return btp_account(conditions)


class TestBtpAccountClient(ConformanceSuite):
    def pair(self, conditions):
        return btp_account_client(conditions)


class TestHttp(ConformanceSuite):
    def pair(self, conditions):
        return http(conditions)


class TestHttpAccount(ConformanceSuite):
    def pair(self, conditions):
        return http_account(conditions)


class TestHttpAccountClient(ConformanceSuite):
    def pair(self, conditions):
        return http_account_client(conditions)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("factory", [loopback, btp_client, btp_listener, btp_account, btp_account_client])
async def test_with_transactional_stores_money_conforms_too(factory: Any, kind: str, request: Any) -> None:
    opened: list[PostgresStore] = []
    if kind == "postgres":
        factory = partial(open_in_postgres, factory, request.getfixturevalue("postgres_dsn"), opened)
    report = await run_conformance(factory, transactional=True, checks=MONEY_CHECKS)
    report.raise_failures()
    passed = len(report.of(Verdict.PASSED))
    assert passed > 10
    assert (len(opened) >= 2 * passed) is (kind == "postgres")


@asynccontextmanager
async def open_in_postgres(
    factory: Any, dsn: str, opened: list[PostgresStore], conditions: PairConfig
) -> AsyncIterator[PluginPair]:
    """Open a pair whose ends have stores in PostgreSQL, each in a schema of its own."""
    async with AsyncExitStack() as stack:
        for _ in range(2):
            opening = open_postgres_store(dsn, replication="none", schema=f"end{len(opened)}")
            opened.append(await stack.enter_async_context(opening))
        ours, theirs = opened[-2:]
        conditions = evolve(
            conditions,
            services=evolve(conditions.services, store=ours),
            peer_services=evolve(conditions.peer_services, store=theirs),
        )
        async with factory(conditions) as pair:
            yield pair
        # The plugins release their ledgers before the stores are closed.
        await until(lambda: not conditions.nursery.child_tasks)


def test_every_check_has_a_plugin_that_breaks_it() -> None:
    assert BROKEN.keys() == {check.name for check in CHECKS}
    assert len(CHECKS) > 100


def test_every_check_has_a_sentence() -> None:
    for check in CHECKS:
        assert check.sentence.endswith("."), check
        assert check.section, check
        assert str(check) == check.name
    assert {check.level for check in CHECKS} == set(Level)


@pytest.mark.parametrize("check", CHECKS, ids=str)
async def test_check_finds_the_plugin_that_breaks_its_rule(check: Any) -> None:
    """A broken plugin would pass."""
    hangs = check.name in HANGING
    outcome = await run_check(
        check, BROKEN[check.name], transactional=check.store is True, deadline=0.5 if hangs else 5
    )
    assert outcome.verdict is Verdict.FAILED
    assert ("hangs" in outcome.detail) is hangs, outcome.detail


async def test_few_checks_find_a_broken_rule() -> None:
    """An author who breaks one rule sees that rule, and few others, fail."""
    report = await run_conformance(BROKEN["a_plain_function_is_no_data_handler"])
    assert [outcome.check.name for outcome in report.of(Verdict.FAILED)] == ["a_plain_function_is_no_data_handler"]


async def test_hanging_check_fails() -> None:
    class Hangs(LoopbackPlugin):
        async def connect(self, options: Any = None) -> None:
            await trio.sleep_forever()

    outcome = await run_check(named("connect_connects"), lambda conditions: loopback(conditions, Hangs), deadline=0.1)
    assert outcome.detail == "it hangs: not done after 0.1 s"


@pytest.mark.parametrize("peer_dials", [False, True])
async def test_pair_that_does_not_connect_is_the_failure(peer_dials: bool, autojump_clock: MockClock) -> None:
    """For a plugin that listens, each check would hang without a reason."""

    @asynccontextmanager
    async def unrelated(conditions: PairConfig) -> AsyncIterator[PluginPair]:
        one, another = (conditions.make(LoopbackPlugin, {"name": name}) for name in ("one", "another"))
        yield PluginPair(plugin=one, peer=another, peer_dials=peer_dials)

    outcome = await run_check(named("connect_connects"), unrelated)
    assert outcome.detail.startswith("it hangs: the two were not connected within 10 s")
    assert ("peer_dials=True" in outcome.detail) is not peer_dials


async def test_error_of_the_factory_is_a_failure_with_its_text() -> None:
    def factory(conditions: PairConfig) -> Any:
        raise OSError("no network")

    before = all_tasks()
    report = await run_conformance(factory, checks=CHECKS[:1])
    assert [outcome.detail for outcome in report.outcomes] == ["OSError: no network"]
    assert not report.passed
    with pytest.raises(ExceptionGroup) as caught:
        report.raise_failures()
    assert caught.value.exceptions[0].__notes__ == ["check: version_is_2 (LedgerPlugin.version)"]
    assert all_tasks() <= before


async def test_report_without_applicable_checks_is_no_success() -> None:
    """A pair without any optional field would count as conforming."""
    told: list[Outcome] = []
    report = await run_conformance(
        btp_account_client,
        checks=[named("options_are_json"), named("a_known_key_has_its_effect_once")],
        tell=told.append,
    )
    assert report.outcomes == tuple(told)
    assert [outcome.detail for outcome in told] == [
        "the factory gives no new",
        "needs a transactional store; run the kit with one",
    ]
    assert not report.of(Verdict.FAILED)
    assert not report.passed


def test_suite_skips_and_fails_as_the_checks_do() -> None:
    class Suite(ConformanceSuite):
        deadline = 5

        def pair(self, conditions):
            return BROKEN["version_is_2"](conditions)

    suite: Any = Suite()
    with pytest.raises(NonConformanceError, match="version is 1"):
        suite.test_version_is_2()
    with pytest.raises(pytest.skip.Exception, match="the factory gives no cut"):
        suite.test_a_connection_that_is_cut_is_told_once()
    suite.test_connect_connects()
    with pytest.raises(NotImplementedError, match="pair"):
        ConformanceSuite().pair(None)  # type: ignore[arg-type]  # it is not looked at


def named(name: str) -> Any:
    return next(check for check in CHECKS if check.name == name)


def test_kit_works_without_pytest() -> None:
    """An author without pytest could not import the kit."""
    program = "import sys; sys.modules['pytest'] = None; import trio_ledger_plugin.testing.conformance"
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert run.stderr == ""


async def test_plugin_that_refuses_plain_functions_conforms() -> None:
    """The rule is that a plain function's result is not a response; to refuse the function at once is better."""

    class Strict(LoopbackPlugin):
        def register_data_handler(self, handler: Any) -> None:
            if not iscoroutinefunction(handler):
                raise TypeError("not async")
            super().register_data_handler(handler)

    check = named("a_plain_function_is_no_data_handler")
    outcome = await run_check(check, lambda conditions: loopback(conditions, Strict))
    assert outcome.verdict is Verdict.PASSED


async def test_plugin_without_its_required_store_says_so() -> None:
    @asynccontextmanager
    async def factory(conditions: PairConfig) -> AsyncIterator[PluginPair]:
        def new(opts: Any, services: Any) -> Any:
            raise InvalidServicesError("no store")

        async with loopback(conditions) as subject:
            yield evolve(subject, needs_store=True, new=new)

    report = await run_conformance(
        factory, checks=[named("a_missing_service_is_an_invalid_services_error"), named("works_without_services")]
    )
    assert [outcome.verdict for outcome in report.outcomes] == [Verdict.PASSED, Verdict.NOT_APPLICABLE]


async def test_plugin_without_money_conforms() -> None:
    outcome = await run_check(
        named("send_money_reaches_the_peers_handler"), BROKEN["a_plugin_without_money_says_so"], deadline=5
    )
    assert (outcome.verdict, outcome.detail) == (Verdict.NOT_APPLICABLE, "the plugin has no money")


def test_fixture_makes_one_test_for_each_check(tmp_path):
    """The author has installed the package, and has written only this file."""
    (tmp_path / "test_mine.py").write_text(
        "from trio_ledger_plugin.testing.conformance.builtin_pairs import loopback\n"
        "def test_mine(conformance_check):\n"
        "    conformance_check(loopback)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run([*command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    listed = subprocess.run([*command, "--collect-only"], capture_output=True, text=True, check=False)
    for check in CHECKS:
        assert f"test_mine[{check.name}]" in listed.stdout


def test_pytest_finds_the_fixture():
    (found,) = [entry for entry in entry_points(group="pytest11") if entry.name == "trio-ledger-plugin"]
    assert found.value == "trio_ledger_plugin.pytest_plugin"
