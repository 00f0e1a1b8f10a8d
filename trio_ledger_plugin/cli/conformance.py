"""``conformance``: does a plugin conform to the Ledger Plugin Interface?"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

import click

from ..log import escape
from ..testing.conformance import CHECKS, InvalidFactoryError, Verdict, run_conformance
from ..testing.conformance.builtin_pairs import FACTORIES
from ..testing.conformance.runner import check_factory
from .errors import COMMON, ENDED, Exit
from .output import Screen
from .parameters import Command, epilog, json_option
from .signals import run_until_sigterm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..testing.conformance import Check, Outcome, PairFactory, Report

__all__ = ["conformance"]

EXAMPLES = """
  trio-ledger-plugin conformance btp                       both ends, without stores
  trio-ledger-plugin conformance btp --store               the same with transactional stores
  trio-ledger-plugin conformance my_tests:my_pair --json   your own plugin
"""
# How each verdict begins its line, and its colour.
WORDS = {Verdict.PASSED: ("PASS", "green"), Verdict.FAILED: ("FAIL", "red"), Verdict.NOT_APPLICABLE: ("N/A ", "dim")}


@click.command(
    cls=Command, epilog=epilog(EXAMPLES, *COMMON, *ENDED), short_help="Does a plugin conform to the interface?"
)
@click.argument("plugin")
@click.option("--store", "transactional", is_flag=True, help="Give both ends a transactional store.")
@click.option("--check", "names", multiple=True, metavar="NAME", help="Run only this check; may be repeated.")
@json_option
def conformance(plugin: str, transactional: bool, names: Sequence[str], as_json: bool) -> int:
    """Check a plugin against the Ledger Plugin Interface (RFC-0024) and the promises of this package.

    PLUGIN is loopback, btp, btp-accounts, http or http-accounts, or MODULE:FACTORY for your own plugin: a function that
    gives pairs of plugins, as the guide on testing a plugin shows. The module may be in the working directory. If a
    pair lacks what a check needs, the check is not applicable, and its line says why.
    """
    factories = _find(plugin)
    checks = _choose(names)
    for factory in factories.values():
        try:
            run_until_sigterm(partial(check_factory, factory, transactional=transactional))
        except InvalidFactoryError as error:
            raise click.UsageError(str(error)) from error
    screen = Screen()
    reports = {}
    for pair, factory in factories.items():
        if not as_json:
            screen.line(f"{pair}, with transactional stores" if transactional else pair, "bold")
        report_outcome = None if as_json else partial(_show, screen)
        reports[pair] = run_until_sigterm(
            partial(run_conformance, factory, transactional=transactional, checks=checks, tell=report_outcome)
        )
    counts = {verdict: sum(len(report.of(verdict)) for report in reports.values()) for verdict in Verdict}
    passed = not counts[Verdict.FAILED] and counts[Verdict.PASSED] > 0
    if as_json:
        pairs = [_as_json(pair, report) for pair, report in reports.items()]
        click.echo(json.dumps({"passed": passed, "transactional": transactional, "pairs": pairs}))
    else:
        screen.line(
            f"{'PASS' if passed else 'FAIL'}: {counts[Verdict.PASSED]} passed, {counts[Verdict.FAILED]} failed, "
            f"{counts[Verdict.NOT_APPLICABLE]} not applicable",
            "bold green" if passed else "bold red",
        )
    return Exit.OK if passed else Exit.FAILED


def _find(plugin: str) -> Mapping[str, PairFactory]:
    """Return the factories that an argument names.

    Raises:
        click.UsageError: It does not name a factory.
    """
    if plugin in FACTORIES:
        return FACTORIES[plugin]
    module, colon, name = plugin.partition(":")
    if not colon:
        raise click.UsageError(f"PLUGIN is {', '.join(FACTORIES)} or MODULE:FACTORY")
    # As ``python -m`` does; a console script searches its own folder instead.
    sys.path.insert(0, "")
    try:
        factory = getattr(import_module(module), name, None)
    except Exception as error:  # a module may raise anything
        raise click.UsageError(f"the module of FACTORY cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise click.UsageError("the module of FACTORY has no such function; PLUGIN is MODULE:FACTORY")
    return {name: factory}


def _choose(names: Sequence[str]) -> Sequence[Check]:
    """Return the checks of these names; without names, all.

    Raises:
        click.UsageError: There is no check of one of the names.
    """
    known = {check.name: check for check in CHECKS}
    if not set(names) <= known.keys():
        raise click.UsageError("there is no check of that name; without --check all checks run, with their names")
    return [known[name] for name in names] or CHECKS


def _show(screen: Screen, outcome: Outcome) -> None:
    word, style = WORDS[outcome.verdict]
    detail = f": {escape(outcome.detail)}" if outcome.detail else ""
    screen.line(f"{word}  {outcome.check.name}{detail}", style)


def _as_json(pair: str, report: Report) -> dict[str, object]:
    return {
        "pair": pair,
        "passed": report.passed,
        "checks": [
            {
                "check": outcome.check.name,
                "section": outcome.check.section,
                "level": outcome.check.level.value,
                "sentence": outcome.check.sentence,
                "verdict": outcome.verdict.value,
                "detail": outcome.detail,
            }
            for outcome in report.outcomes
        ],
    }
