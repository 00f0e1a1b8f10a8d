"""The conformance checks as a pytest fixture; pytest finds this module by its entry point.

A test that takes ``conformance_check`` becomes one test for each check::

    def test_my_plugin(conformance_check):
        conformance_check(my_pair)

``my_pair`` is like ``ConformanceSuite.pair``: it takes a ``PairConfig`` and opens two plugins that are peers.

This module is outside ``testing`` because pytest imports it at every start, and ``testing/__init__`` would bring the
whole kit. ``-p no:trio-ledger-plugin`` avoids the import of the package itself too.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .testing.conformance.pair import PairFactory

__all__ = ["conformance_check", "pytest_generate_tests"]

FIXTURE = "conformance_check"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise a test that takes the fixture: one test for each check."""
    if FIXTURE in metafunc.fixturenames:
        from .testing.conformance.runner import CHECKS  # noqa: PLC0415 (only for tests that use it)

        metafunc.parametrize(FIXTURE, CHECKS, ids=[check.name for check in CHECKS], indirect=True)


@pytest.fixture
def conformance_check(request: pytest.FixtureRequest) -> Callable[[PairFactory], None]:
    """Give a function that runs one check on a pair of plugins.

    It takes the factory of the pair and, as keyword arguments, ``transactional`` and ``deadline``, which are those of
    ``ConformanceSuite``. It runs Trio itself, so the test is a plain function. A check that is not applicable skips the
    test.
    """
    from .testing.conformance.suite import make_check  # noqa: PLC0415 (only for tests that use it)

    return partial(make_check, request.param)
