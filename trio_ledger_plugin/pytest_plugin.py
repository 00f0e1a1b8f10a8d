"""The conformance checks for whoever likes fixtures better than subclassing; pytest finds it by its entry point.

A test that takes ``conformance_check`` becomes one test a check::

    def test_my_plugin(conformance_check):
        conformance_check(my_pair)

``my_pair`` is what ``ConformanceSuite.pair`` is: it is given ``PairConfig`` and opens two plugins that are peers.
Nothing of the kit is imported before a test takes the fixture. Where the package's own import is too much for a start
of pytest, ``-p no:trio-ledger-plugin`` leaves this out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .testing.conformance.harness import Check
    from .testing.conformance.pair import PairFactory

__all__ = ["conformance_check", "pytest_generate_tests"]

FIXTURE = "conformance_check"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test a check of a test that takes the fixture."""
    if FIXTURE in metafunc.fixturenames:
        from .testing.conformance.runner import CHECKS  # noqa: PLC0415 (only for those who use it)

        metafunc.parametrize(FIXTURE, CHECKS, ids=[check.name for check in CHECKS], indirect=True)


@pytest.fixture
def conformance_check(request: pytest.FixtureRequest) -> Callable[[PairFactory], None]:
    """Give a function that makes one check of the plugins that it is given.

    It runs Trio itself, so the test is a plain function. A check that is not applicable skips the test.
    """
    from .testing.conformance.suite import make_check  # noqa: PLC0415 (only for those who use it)

    check: Check = request.param

    def run(pair: PairFactory, *, transactional: bool = False) -> None:
        make_check(check, pair, transactional=transactional)

    return run
